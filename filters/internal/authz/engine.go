package authz

import (
	"fmt"
	"strings"
)

// Engine is compiled Rules: immutable, safe for concurrent use.
type Engine struct {
	action   Action
	policies []policy
	index    *index // nil: look at all policies in order
}

type policy struct {
	name, details         string
	boxed                 any // name, boxed once
	permission, principal match
	rules                 *Policy // for Explain
}

// indexFrom is the number of policies from which an index pays.
const indexFrom = 5

// New compiles rules. Nil rules give a nil Engine: nothing to enforce.
func New(rules *Rules) (*Engine, error) {
	if rules == nil {
		return nil, nil //nolint:nilnil // a nil Engine is the documented "no rules"
	}
	e := &Engine{action: rules.Action, policies: make([]policy, len(rules.Policies))}
	doubt := rules.Action != Allow
	for i := range rules.Policies {
		p := &rules.Policies[i]
		permission, err := compileAll(p.Permissions, doubt, false)
		if err != nil {
			return nil, fmt.Errorf("policies[%s].permissions: %w", p.Name, err)
		}
		principal, err := compileAll(p.Principals, doubt, false)
		if err != nil {
			return nil, fmt.Errorf("policies[%s].principals: %w", p.Name, err)
		}
		e.policies[i] = policy{name: p.Name, details: ResponseDetails(p.Name), boxed: p.Name, permission: permission, principal: principal, rules: p}
	}
	if len(e.policies) >= indexFrom {
		e.index = newIndex(rules, doubt)
	}
	return e, nil
}

// ResponseDetails returns Envoy's response code details for a request refused
// by the policy called name, "" for none.
func ResponseDetails(name string) string {
	if name == "" {
		name = "none"
	}
	return "rbac_access_denied_matched_policy[" + strings.Join(strings.Fields(name), "_") + "]"
}

var detailsNone = ResponseDetails("")

// Decision is the outcome for one request or connection.
type Decision struct {
	Allowed bool
	// Policy is the index of the effective policy, -1 if none matched.
	Policy int
}

// Decide evaluates the rules. A nil Engine allows.
func (e *Engine) Decide(in Input) Decision {
	if e == nil {
		return Decision{Allowed: true, Policy: -1}
	}
	i := e.first(in)
	d := Decision{Policy: i}
	switch e.action {
	case Allow:
		d.Allowed = i >= 0
	case Deny:
		d.Allowed = i < 0
	case Log:
		d.Allowed = true
	}
	return d
}

// first returns the first policy that matches, -1 if there is none.
func (e *Engine) first(in Input) int {
	if e.index != nil {
		return e.index.first(e, in)
	}
	for i := range e.policies {
		if e.matches(i, in) {
			return i
		}
	}
	return -1
}

func (e *Engine) matches(i int, in Input) bool {
	p := &e.policies[i]
	return p.permission(in) && p.principal(in)
}

// Action returns what a match means.
func (e *Engine) Action() Action { return e.action }

// Len returns the number of policies.
func (e *Engine) Len() int {
	if e == nil {
		return 0
	}
	return len(e.policies)
}

// PolicyName returns the name of policy i, "" for -1.
func (e *Engine) PolicyName(i int) string {
	if i < 0 {
		return ""
	}
	return e.policies[i].name
}

// Details returns the response code details for a refusal with effective
// policy i, -1 for none.
func (e *Engine) Details(i int) string {
	if i < 0 {
		return detailsNone
	}
	return e.policies[i].details
}
