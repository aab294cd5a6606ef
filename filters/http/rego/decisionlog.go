package rego

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// decisionLog writes decisions as events of OPA's form: lines of JSON to a
// file, records to an OpenTelemetry collector. It is safe for concurrent use.
type decisionLog struct {
	cfg          *logConfig
	policy, path string // path of the decision, as OPA writes it
	node         string
	timeout      time.Duration // of the rules about the log
	lines        func([]byte) bool
	otlp         *exporter
	logger       *slog.Logger
	// dropped counts events that a file didn't take, badMasks failures of rules.
	dropped, badMasks *stats.Counter
}

// newDecisionLog opens what cfg names. The second result releases it.
func newDecisionLog(env *filters.Env, shared *filters.Shared, c *config, name string, logger *slog.Logger) (*decisionLog, func(), error) {
	policy := stats.Label{Name: "policy", Value: name}
	l := &decisionLog{
		cfg: c.log, policy: name, timeout: c.timeout, logger: logger,
		path:     strings.ReplaceAll(strings.TrimPrefix(c.query, "data."), ".", "/"),
		dropped:  env.Stats.Counter("fairlead_policy_log_dropped_total", policy, stats.Label{Name: "sink", Value: "file"}),
		badMasks: env.Stats.Counter("fairlead_policy_log_mask_failures_total", policy),
	}
	if env.Node != nil {
		l.node = env.Node.ID
	}
	if c.log.filename != "" {
		if env.Logs == nil {
			return nil, nil, fmt.Errorf("filename: %s can't be opened here", c.log.filename)
		}
		var err error
		if l.lines, err = env.Logs.Lines(c.log.filename); err != nil {
			return nil, nil, fmt.Errorf("filename: %w", err)
		}
	}
	release := func() {}
	if c.log.otlp != nil {
		var err error
		if l.otlp, release, err = acquireExporter(env, shared, c.log.otlp, logger); err != nil {
			return nil, nil, fmt.Errorf("otlp: %w", err)
		}
	}
	return l, release, nil
}

// decisionID is a random UUID.
func decisionID() string {
	a, b := rand.Uint64(), rand.Uint64()
	return fmt.Sprintf("%08x-%04x-4%03x-%04x-%012x", a>>32, a>>16&0xffff, a&0xfff, b>>48&0x3fff|0x8000, b&0xffffffffffff)
}

// write logs one decision. It runs before the request is changed.
func (l *decisionLog) write(s *filters.Stream, r *result, c *compiled, dryRun, pass bool) {
	now := time.Now()
	event := l.event(s, r, c, now, dryRun, pass)
	drop, err := l.edit(event, c)
	if err != nil {
		l.badMasks.Inc()
		l.logger.Error("rego: the policy's rules about the decision log failed", "error", err)
		event["log_error"] = err.Error()
	}
	if drop {
		return
	}
	if l.otlp != nil {
		l.otlp.Add(record(event, now, s.Info.TraceID, s.Info.SpanID))
	}
	if l.lines != nil {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if err := e.Encode(event); err != nil {
			l.logger.Error("rego: a decision can't be written as JSON", "error", err)
			return
		}
		if !l.lines(b.Bytes()) {
			l.dropped.Inc()
		}
	}
}

// edit applies masks and the policy's rules about the log to event, within the
// time of one evaluation.
func (l *decisionLog) edit(event map[string]any, c *compiled) (drop bool, err error) {
	if c == nil || c.mask == nil && c.drop == nil {
		return false, l.applyMasks(event, nil, nil)
	}
	g := guards.Get().(*guard) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	defer g.put()
	g.timer.Arm(l.timeout, g.fire)
	drop, err = l.drops(event, c, g)
	if !drop {
		if maskErr := l.applyMasks(event, c, g); maskErr != nil {
			err = maskErr
		}
	}
	g.clean = g.timer.Stop() && !g.Cancelled()
	return drop, err
}

// event is the decision under the names of OPA's decision logs, and what OPA
// doesn't have under names of our own.
func (l *decisionLog) event(s *filters.Stream, r *result, c *compiled, now time.Time, dryRun, pass bool) map[string]any {
	e := map[string]any{
		"decision_id": r.id,
		"timestamp":   now.UTC().Format(time.RFC3339Nano),
		"type":        "openpolicyagent.org/decision_logs",
		"path":        l.path,
		"policy":      l.policy,
		"outcome":     outcomeNames[r.outcome],
		"passed":      pass,
		"dry_run":     dryRun,
		"metrics":     map[string]any{"timer_rego_query_eval_ns": json.Number(strconv.FormatInt(r.elapsed.Nanoseconds(), 10))},
		"request":     l.request(s),
	}
	set := func(k, v string) {
		if v != "" {
			e[k] = validUTF8(v)
		}
	}
	set("source_principal", sourcePrincipal(&s.Info))
	set("route", s.Info.RouteName)
	set("trace_id", s.Info.TraceID)
	set("span_id", s.Info.SpanID)
	if l.node != "" {
		e["labels"] = map[string]any{"id": l.node}
	}
	if s.Info.Conn != nil {
		set("requested_by", s.Info.Conn.Remote.String())
		set("destination", s.Info.Conn.Local.String())
	}
	if c != nil && len(c.bundles) > 0 {
		e["bundles"] = c.bundles
	}
	if r.err != nil {
		set("error", r.err.Error())
	}
	if l.cfg.includeInput && r.input != nil {
		if in, err := ast.JSON(r.input); err == nil {
			e["input"] = in
		}
	}
	if l.cfg.includeResult && r.value != nil {
		if v, err := ast.JSON(r.value); err == nil {
			e["result"] = v
		}
	}
	return e
}

// request says which request it was, without its query.
func (l *decisionLog) request(s *filters.Stream) map[string]any {
	path, _, _ := strings.Cut(s.Request.Get(message.Path), "?")
	out := map[string]any{
		"id":     validUTF8(s.Info.RequestID),
		"method": validUTF8(s.Request.Get(message.Method)),
		"host":   validUTF8(s.Request.Get(message.Authority)),
		"path":   validUTF8(path),
	}
	if len(l.cfg.headers) > 0 {
		h := map[string]any{}
		for _, name := range l.cfg.headers {
			if v, ok := s.Request.Joined(name); ok {
				h[name] = validUTF8(v)
			}
		}
		out["headers"] = h
	}
	return out
}
