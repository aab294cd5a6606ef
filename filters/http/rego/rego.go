// Package rego decides on requests with Open Policy Agent's Rego, in process.
// Policies written for opa-envoy-plugin move unchanged: the input document and
// the forms of the decision are the plugin's. The policy is compiled with the
// configuration; what it reads of the input is found by analysis, so that a
// request pays only for that.
package rego

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/internal/timer"
)

// Factory makes rego filters.
type Factory struct{}

// TypeURLs returns the two types of the filter.
func (Factory) TypeURLs() []string { return []string{TypeURL, PerRouteTypeURL} }

// outcome is how a decision came about; its name is a metric label and part of
// the response code details.
type outcome uint8

const (
	allowed outcome = iota
	denied
	undefined
	failed
	timedOut
	tooLarge
	panicked
	malformed // the request can't be made an input document of
	noPolicy  // no bundle has arrived yet
	outcomes
)

var outcomeNames = [outcomes]string{"allowed", "denied", "undefined", "error", "timeout", "body_too_large", "panic", "bad_request", "no_policy"}

// evaluationBuckets are bounds in seconds.
var evaluationBuckets = []float64{5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 1, 10}

// filter is the compiled filter of one route.
type filter struct {
	cfg        *config
	name       string // of the policy
	program    *program
	extensions *ast.Term
	methods    grpcMethods // nil: messages of gRPC are not parsed
	log        *decisionLog
	logger     *slog.Logger
	decisions  [outcomes]*stats.Counter
	latency    *stats.Histogram
	// network is set if the policy may call builtins that need a context.
	network bool
	release []func()
}

// Compile builds the filter for one route.
func (Factory) Compile(env *filters.Env, base, over filters.Config) (filters.HTTPFilter, error) {
	cfg, ok := base.(*config)
	if !ok {
		return nil, fmt.Errorf("rego: configuration of type %T", base)
	}
	if over != nil {
		o, ok := over.(*override)
		if !ok {
			return nil, fmt.Errorf("rego: per-route configuration of type %T", over)
		}
		if o.disabled {
			return nil, nil
		}
		cfg = cfg.with(o)
	}
	name := cfg.name
	if name == "" {
		name = env.Name
	}
	logger := env.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	f := &filter{cfg: cfg, name: name, extensions: extensionsTerm(cfg.extensions), logger: logger.With("policy", name), network: len(cfg.allowBuiltins) > 0}
	dry := "false"
	if cfg.dryRun {
		dry = "true"
	}
	for i := range f.decisions {
		f.decisions[i] = env.Stats.Counter("fairlead_policy_decisions_total",
			stats.Label{Name: "policy", Value: name}, stats.Label{Name: "result", Value: outcomeNames[i]}, stats.Label{Name: "dry_run", Value: dry})
	}
	f.latency = env.Stats.Histogram("fairlead_policy_evaluation_seconds", evaluationBuckets, stats.Label{Name: "policy", Value: name})
	failures := env.Stats.Counter("fairlead_policy_reload_failures_total", stats.Label{Name: "policy", Value: name})

	shared := env.Shared
	if shared == nil {
		shared = &filters.Shared{}
	}
	var err error
	if f.methods, err = cfg.methods(); err != nil {
		return nil, fmt.Errorf("rego: proto_descriptor: %w", err)
	}
	var release func()
	if f.program, release, err = acquireProgram(env, shared, cfg, f.logger, failures); err != nil {
		return nil, fmt.Errorf("rego: policy %s: %w", name, err)
	}
	f.release = append(f.release, release)
	if cfg.log != nil {
		if f.log, release, err = newDecisionLog(env, shared, cfg, name, f.logger); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("rego: decision_log: %w", err)
		}
		f.release = append(f.release, release)
	}
	return f, nil
}

var _ io.Closer = (*filter)(nil)

// Close releases the policy and the decision log.
func (f *filter) Close() error {
	for _, r := range f.release {
		r()
	}
	f.release = nil
	return nil
}

// with returns c with o applied.
func (c *config) with(o *override) *config {
	n := *c
	if o.policy != nil {
		n.policy = *o.policy
	}
	if o.query != "" {
		n.query = o.query
	}
	if len(o.extensions) > 0 {
		n.extensions = maps.Clone(c.extensions)
		if n.extensions == nil {
			n.extensions = map[string]string{}
		}
		maps.Copy(n.extensions, o.extensions)
	}
	return &n
}

// result is one decided request, as metrics and the decision log see it.
type result struct {
	outcome outcome
	dec     decision
	err     error
	input   ast.Value
	value   ast.Value // the decision as the policy gave it
	elapsed time.Duration
	id      string // of the decision; only if it is logged
}

// Do asks the policy and lets the request pass, or answers it.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	c := f.program.current.Load()
	res, err := f.decide(s, c)
	if err != nil {
		return nil, err
	}
	f.decisions[res.outcome].Inc()
	pass := f.cfg.dryRun || f.passes(&res)
	f.report(s, &res, c, pass)
	if !pass {
		return f.deny(s, &res), nil
	}
	if f.cfg.dryRun || res.outcome != allowed {
		return next.Do(s)
	}
	if err := res.dec.applyRequest(s, f); err != nil {
		res.err = err
		return f.deny(s, &result{outcome: failed, err: err}), nil //nolint:nilerr // it is in the result
	}
	r, err := next.Do(s)
	if err == nil && r != nil {
		for _, h := range res.dec.responseHeaders {
			r.Header.Add(h.name, h.value)
		}
	}
	return r, err
}

// decide asks c about s. The error is the stream's.
func (f *filter) decide(s *filters.Stream, c *compiled) (result, error) {
	if c == nil {
		return result{outcome: noPolicy, err: errNotYet}, nil
	}
	var res result
	body, err := f.buffer(s, c)
	switch {
	case errors.Is(err, errTooLarge):
		res = result{outcome: tooLarge, err: err}
	case err != nil:
		if cause := s.Cause(); cause != nil {
			return res, cause
		}
		return res, fmt.Errorf("rego: reading the request body: %w", err)
	default:
		res = f.evaluate(s, c, body)
	}
	return res, s.Cause() // if the client is gone, the decision is of no use
}

// passes says whether a decision lets the request through.
func (f *filter) passes(r *result) bool {
	switch r.outcome {
	case allowed:
		return true
	case failed, timedOut, panicked:
		return f.cfg.failOpen
	default:
		return false
	}
}

// buffer reads the request body if the policy reads it.
func (f *filter) buffer(s *filters.Stream, c *compiled) (requestBody, error) {
	if !c.want.needsBody() {
		return requestBody{}, nil
	}
	data, rest, truncated, err := readBody(s.Body, f.cfg.maxBody)
	if err != nil {
		return requestBody{}, err
	}
	if rest != s.Body {
		s.Body = filters.Interruptible(rest, s.Body)
	}
	if truncated && !f.cfg.truncate {
		return requestBody{}, errTooLarge
	}
	return requestBody{bytes: data, truncated: truncated}, nil
}

func (f *filter) evaluate(s *filters.Stream, c *compiled, body requestBody) (res result) {
	start := time.Now()
	defer func() {
		res.elapsed = time.Since(start)
		f.latency.Observe(res.elapsed.Seconds())
	}()
	input, err := f.buildInput(s, &c.want, body)
	if errors.Is(err, errTooLarge) {
		return result{outcome: tooLarge, err: err}
	}
	if err != nil {
		return result{outcome: malformed, err: fmt.Errorf("input: %w", err)}
	}
	v, err := f.run(s, c, input)
	res = result{input: input, value: v, err: err}
	var p *panicError
	switch {
	case errors.As(err, &p):
		res.outcome = panicked
		f.logger.Error("rego: policy evaluation panicked", "error", err)
	case topdown.IsCancel(err):
		res.outcome = timedOut
		res.err = fmt.Errorf("evaluation took longer than %v", f.cfg.timeout)
	case err != nil:
		res.outcome = failed
	case v == nil:
		res.outcome = undefined
	default:
		if res.dec, res.err = parseDecision(v); res.err != nil {
			res.outcome = failed
		} else if !res.dec.allowed {
			res.outcome = denied
		}
	}
	return res
}

// run evaluates under the timeout and the stream's life.
func (f *filter) run(s *filters.Stream, c *compiled, input ast.Value) (ast.Value, error) {
	ctx := context.Background()
	if f.network {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(s.Context(), f.cfg.timeout)
		defer cancel()
	}
	g := guards.Get().(*guard) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	defer g.put()
	if err := s.Guard(g); err != nil {
		return nil, err
	}
	defer s.Unguard(g)
	g.timer.Arm(f.cfg.timeout, g.fire)
	v, err := c.eval(ctx, input, g)
	if g.timer.Stop() && !g.Cancelled() {
		g.clean = true
	}
	return v, err
}

// guard cancels one evaluation, by time or by the stream's end.
type guard struct {
	flag  atomic.Bool
	timer timer.Timer
	fire  func()
	clean bool // the timer can't fire any more: fit for reuse
}

var guards = sync.Pool{New: func() any {
	g := &guard{}
	g.fire = g.Cancel
	return g
}}

func (g *guard) Cancel()         { g.flag.Store(true) }
func (g *guard) Cancelled() bool { return g.flag.Load() }
func (g *guard) Interrupt(error) { g.Cancel() }

// put returns g to the pool. It runs after Unguard: an interruption may have
// come until then.
func (g *guard) put() {
	if g.clean && !g.Cancelled() {
		g.clean = false
		guards.Put(g)
	}
}

// deny answers the request.
func (f *filter) deny(s *filters.Stream, r *result) *filters.Response {
	status, details, flag := f.cfg.denyStatus, "rego_denied{"+outcomeNames[r.outcome]+"}", streaminfo.UnauthorizedExternalService
	switch r.outcome {
	case denied:
		return r.dec.reply(s, f)
	case tooLarge:
		status, flag = 413, 0
	case malformed:
		status = 400
	default:
	}
	return s.Deny(status, "", details, flag, f.refusal(r))
}

// refusal is what is told about r elsewhere than in the decision log: nothing
// that the client sent.
func (f *filter) refusal(r *result) streaminfo.Decision {
	d := streaminfo.Decision{Filter: "rego", Policy: f.name, Reason: outcomeNames[r.outcome]}
	switch r.outcome {
	case denied, undefined:
		d.Rule = f.cfg.query
	case failed, timedOut, panicked, noPolicy:
		if r.err != nil {
			d.Why = r.err.Error
		}
	default:
	}
	return d
}

// report writes the decision log, and failures to the ordinary log.
func (f *filter) report(s *filters.Stream, r *result, c *compiled, pass bool) {
	switch r.outcome {
	case failed, timedOut, panicked:
		f.logger.Warn("rego: policy could not be evaluated", "outcome", outcomeNames[r.outcome], "error", r.err, "passed", pass)
	default:
	}
	if f.log != nil && (!f.log.cfg.deniedOnly || !pass || r.outcome != allowed) {
		r.id = decisionID()
		s.Info.Metadata.Set(f.cfg.metadataNamespace, "decision_id", r.id)
		f.log.write(s, r, c, f.cfg.dryRun, pass)
	}
}
