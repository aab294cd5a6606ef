package authz

import (
	"slices"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// RecordKind says whether a Recorder's rules are enforced or only recorded.
type RecordKind uint8

// Record kinds.
const (
	Enforced RecordKind = iota
	Shadow
)

// RecorderOptions say where a Recorder writes.
type RecorderOptions struct {
	// Namespace is the dynamic metadata namespace.
	Namespace string
	Kind      RecordKind
	// StatRoot begins the names of all counters, "envoy_http_rbac_".
	StatRoot string
	// Prefix is rules_stat_prefix or shadow_rules_stat_prefix: it is put
	// before the metadata keys.
	Prefix string
	// Labels are those of all counters.
	Labels []stats.Label
	// PerRule adds counters for each policy.
	PerRule bool
}

// Recorder evaluates rules and does Envoy's bookkeeping: counters, and the
// effective policy and result as dynamic metadata.
type Recorder struct {
	engine                *Engine
	namespace             string
	policyKey, resultKey  string
	allowed, denied       *stats.Counter
	ruleAllow, ruleDenied []*stats.Counter
	log, quiet            bool
}

// NewRecorder compiles rules; nil rules give a nil Recorder, which allows.
func NewRecorder(rules *Rules, o RecorderOptions, scope *stats.Scope) (*Recorder, error) {
	e, err := New(rules)
	if err != nil || e == nil {
		return nil, err
	}
	kind := ""
	r := &Recorder{engine: e, namespace: o.Namespace, log: rules.Action == Log && o.Kind == Enforced}
	if o.Kind == Shadow {
		kind = "shadow_"
		r.policyKey, r.resultKey = o.Prefix+"shadow_effective_policy_id", o.Prefix+"shadow_engine_result"
	} else {
		r.policyKey, r.resultKey = o.Prefix+"enforced_effective_policy_id", o.Prefix+"enforced_engine_result"
		r.quiet = true
	}
	count := func(name string, more ...stats.Label) *stats.Counter {
		return scope.Counter(o.StatRoot+name, slices.Concat(o.Labels, more)...)
	}
	r.allowed, r.denied = count(kind+"allowed"), count(kind+"denied")
	if o.PerRule {
		for i := range e.policies {
			l := stats.Label{Name: "envoy_rbac_policy_name", Value: e.policies[i].name}
			r.ruleAllow = append(r.ruleAllow, count("policy_"+kind+"allowed", l))
			r.ruleDenied = append(r.ruleDenied, count("policy_"+kind+"denied", l))
		}
	}
	return r, nil
}

// MetricName turns an Envoy stat prefix into part of a metric name: Envoy
// joins it by a dot, which Prometheus output writes as "_".
func MetricName(prefix string) string {
	if prefix == "" {
		return ""
	}
	if !strings.HasSuffix(prefix, ".") {
		prefix += "."
	}
	return strings.Map(func(c rune) rune {
		if c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			return c
		}
		return '_'
	}, prefix)
}

// Decide evaluates in and records the outcome. details is set for a refusal.
// Only shadow rules and Log write metadata on every request; enforced rules
// write it when they refuse.
func (r *Recorder) Decide(in Input) (allowed bool, details string) {
	if r == nil {
		return true, ""
	}
	d := r.engine.Decide(in)
	r.publish(in, d)
	if d.Allowed {
		r.allowed.Inc()
	} else {
		r.denied.Inc()
		details = r.engine.Details(d.Policy)
	}
	if r.ruleAllow != nil && d.Policy >= 0 {
		if d.Allowed {
			r.ruleAllow[d.Policy].Inc()
		} else {
			r.ruleDenied[d.Policy].Inc()
		}
	}
	return d.Allowed, details
}

// Review evaluates in for what was admitted before: it returns why that is refused
// now, nil if it is not. Only refusals are counted, and nothing is written to
// in.Info. A nil Recorder refuses nothing.
func (r *Recorder) Review(in Input) *filters.Denied {
	if r == nil {
		return nil
	}
	d := r.engine.Decide(in)
	if d.Allowed {
		return nil
	}
	r.denied.Inc()
	if r.ruleDenied != nil && d.Policy >= 0 {
		r.ruleDenied[d.Policy].Inc()
	}
	info := *in.Info // Why may be asked when the caller has gone on
	in.Info = &info
	if in.Request != nil {
		h := &message.Header{}
		h.CopyFrom(in.Request)
		in.Request = h
	}
	decision := r.Decision(in)
	return &filters.Denied{Details: r.engine.Details(d.Policy), Decision: &decision}
}

// Decision says why in was refused. It evaluates in again, to spare requests
// that pass the room for an answer.
func (r *Recorder) Decision(in Input) streaminfo.Decision {
	i := r.engine.Decide(in).Policy
	out := streaminfo.Decision{Filter: "rbac", Policy: r.engine.PolicyName(i), Reason: "matched_policy", Why: func() string { return r.engine.why(in, i) }}
	if i < 0 {
		out.Reason = "no_policy_matched"
	}
	return out
}

// publish writes what later filters and access logs read.
func (r *Recorder) publish(in Input, d Decision) {
	md := &in.Info.Metadata
	if r.log {
		md.Set("envoy.common", "access_log_hint", d.Policy >= 0)
	}
	if r.quiet && d.Allowed {
		return
	}
	if d.Policy >= 0 {
		md.Set(r.namespace, r.policyKey, r.engine.policies[d.Policy].boxed)
	}
	if d.Allowed {
		md.Set(r.namespace, r.resultKey, resultAllowed)
	} else {
		md.Set(r.namespace, r.resultKey, resultDenied)
	}
}

// Explain evaluates in as Decide does, counts nothing, and adds what it found
// to x: the policies, and for enforced rules the verdict and the nearest miss. A
// nil Recorder adds nothing.
func (r *Recorder) Explain(in Input, x *filters.Explanation) {
	if r == nil {
		return
	}
	d, ps := r.engine.Explain(in)
	r.publish(in, d)
	if !r.quiet {
		for i := range ps {
			ps[i].Shadow = true
		}
		x.Policies = append(x.Policies, ps...)
		return
	}
	x.Policies = append(x.Policies, ps...)
	if d.Allowed {
		x.Verdict = filters.VerdictAllow
		return
	}
	x.Verdict, x.Details = filters.VerdictDeny, r.engine.Details(d.Policy)
	if r.engine.action == Allow {
		x.Nearest = Nearest(ps)
	}
}

// Metadata values boxed once, so that setting them does not allocate.
var resultAllowed, resultDenied any = "allowed", "denied"
