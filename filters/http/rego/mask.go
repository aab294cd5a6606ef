package rego

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	oparego "github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// erase removes what path points to from v and appends the pointers of what
// was removed. "*" stands for each key or index. It changes v and returns what
// takes v's place.
func erase(v any, path, at []string, erased *[]string) any {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			if path[0] != "*" && path[0] != k {
				continue
			}
			here := append(slices.Clip(at), k)
			if len(path) == 1 {
				delete(v, k)
				*erased = append(*erased, joinPointer(here))
				continue
			}
			v[k] = erase(v[k], path[1:], here, erased)
		}
	case []any:
		kept := v[:0]
		for i, e := range v {
			key := strconv.Itoa(i)
			if path[0] != "*" && path[0] != key {
				kept = append(kept, e)
				continue
			}
			here := append(slices.Clip(at), key)
			if len(path) == 1 {
				*erased = append(*erased, joinPointer(here))
				continue
			}
			kept = append(kept, erase(e, path[1:], here, erased))
		}
		return kept
	}
	return v
}

// upsert puts value at path in v, making objects on the way, as OPA's mask
// operation does, and reports whether it could.
func upsert(v any, path []string, value any) bool {
	for ; ; path = path[1:] {
		last := len(path) == 1
		switch n := v.(type) {
		case map[string]any:
			if last {
				n[path[0]] = value
				return true
			}
			child, ok := n[path[0]]
			if !ok {
				child = map[string]any{}
				n[path[0]] = child
			}
			v = child
		case []any:
			i, err := strconv.Atoi(path[0])
			if err != nil || i < 0 || i >= len(n) {
				return false
			}
			if last {
				n[i] = value
				return true
			}
			v = n[i]
		default:
			return false
		}
	}
}

// maskRule is one element of what a mask rule makes.
type maskRule struct {
	path   []string
	upsert bool
	value  any
}

// parseMasks reads the value of a mask rule: pointers, or objects with op
// ("remove" or "upsert"), path and value.
func parseMasks(v any) ([]maskRule, error) {
	list, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("masks are %T: want a set or an array", v)
	}
	out := make([]maskRule, len(list))
	for i, e := range list {
		m := &out[i]
		pointer, _ := e.(string)
		if o, ok := e.(map[string]any); ok {
			pointer, _ = o["path"].(string)
			switch o["op"] {
			case "remove":
			case "upsert":
				m.upsert, m.value = true, o["value"]
			default:
				return nil, fmt.Errorf("mask has op %v: want remove or upsert", o["op"])
			}
		}
		var err error
		if m.path, err = splitPointer(pointer); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// applyMasks removes and replaces what the configuration and then the policy's
// own rule say. If the rule fails, all that could be a secret is removed.
func (l *decisionLog) applyMasks(event map[string]any, c *compiled, cancel topdown.Cancel) error {
	var erased, masked []string
	for _, path := range l.cfg.mask {
		erase(event, path, nil, &erased)
	}
	err := l.ruleMasks(event, c, cancel, &erased, &masked)
	if err != nil {
		for _, k := range []string{"input", "result", "request"} {
			erase(event, []string{k}, nil, &erased)
		}
	}
	if len(erased) > 0 {
		event["erased"] = erased
	}
	if len(masked) > 0 {
		event["masked"] = masked
	}
	return err
}

func (l *decisionLog) ruleMasks(event map[string]any, c *compiled, cancel topdown.Cancel, erased, masked *[]string) error {
	if c == nil || c.mask == nil {
		return nil
	}
	v, err := ask(c.mask, event, cancel)
	if err != nil || v == nil {
		return err
	}
	rules, err := parseMasks(v)
	if err != nil {
		return err
	}
	for _, r := range rules {
		switch {
		case !r.upsert:
			erase(event, r.path, nil, erased)
		case event[r.path[0]] != nil && upsert(event, r.path, r.value):
			*masked = append(*masked, joinPointer(r.path))
		}
	}
	return nil
}

// drops asks the policy whether event is not worth being logged.
func (l *decisionLog) drops(event map[string]any, c *compiled, cancel topdown.Cancel) (bool, error) {
	if c == nil || c.drop == nil {
		return false, nil
	}
	v, err := ask(c.drop, event, cancel)
	b, _ := v.(bool)
	return b, err
}

// ask evaluates a rule about an event; nil is undefined.
func ask(q *oparego.PreparedEvalQuery, event map[string]any, cancel topdown.Cancel) (v any, err error) {
	defer func() {
		if p := recover(); p != nil {
			v, err = nil, &panicError{p}
		}
	}()
	in, err := ast.InterfaceToValue(event)
	if err != nil {
		return nil, err
	}
	rs, err := q.Eval(context.Background(), oparego.EvalParsedInput(in), oparego.EvalExternalCancel(cancel), oparego.EvalMetrics(metrics.NoOp()))
	if err != nil || len(rs) == 0 {
		return nil, err
	}
	if len(rs) > 1 || len(rs[0].Expressions) != 1 {
		return nil, errors.New("more than one result")
	}
	return rs[0].Expressions[0].Value, nil
}
