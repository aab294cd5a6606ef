// Package ratelimit is the ratelimit HTTP filter: it asks a service
// (envoy.service.ratelimit.v3) whether a request is within its limits.
package ratelimit

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/headeredit"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/ratelimit"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

const path = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"

// Factory makes ratelimit filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL, typeURLPerRoute} }

// Compile implements filters.HTTPFactory.
func (Factory) Compile(env *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	c, ok := base.(*Config)
	if !ok {
		return nil, fmt.Errorf("ratelimit: configuration is a %T", base)
	}
	f := &filter{c: c, domain: c.Domain, own: c.Own, late: make(chan struct{}, maxLate)}
	if override != nil {
		o, ok := override.(*Override)
		if !ok {
			return nil, fmt.Errorf("ratelimit: per-route configuration is a %T", override)
		}
		f.virtualHost = o.VirtualHost
		if o.Own != nil {
			f.own = o.Own
		}
		if o.Domain != "" {
			f.domain = o.Domain
		}
	}
	f.mark = fmt.Sprintf("fairlead.ratelimit.%s.%d", f.domain, c.Stage)
	if c.EnabledPPM == 0 {
		return nil, nil //nolint:nilnil // nothing to do
	}
	if env != nil {
		f.upstreams, f.stats = env.Upstreams, env.Stats
		f.clusters.Own = strings.Clone
		if env.Node != nil {
			f.node = env.Node.Cluster
		}
	}
	return f, nil
}

type filter struct {
	c            *Config
	domain, node string
	virtualHost  ratelimit.VirtualHostLimits
	// mark is the filter state of requests that OnStreamEnd tells the service of; late
	// bounds these calls.
	mark      string
	late      chan struct{}
	own       *ratelimit.Policy // nil: those of routes and virtual hosts
	upstreams filters.Upstreams
	stats     *stats.Scope
	clusters  stats.Cache[string, counters]
}

// counters are those of the cluster that requests are routed to.
type counters struct{ ok, failed, over, failedAllowed *stats.Counter }

func (f *filter) count(cluster string) *counters {
	if f.stats == nil {
		return &counters{}
	}
	return f.clusters.Get(cluster, func(cluster string) *counters {
		labels := []stats.Label{{Name: "envoy_cluster_name", Value: cluster}}
		if p := f.c.StatPrefix; p != "" {
			labels = append(labels, stats.Label{Name: "envoy_ratelimit_prefix", Value: p})
		}
		c := func(name string) *stats.Counter { return f.stats.Counter("envoy_cluster_ratelimit_"+name, labels...) }
		return &counters{c("ok"), c("error"), c("over_limit"), c("failure_mode_allowed")}
	})
}

// limits are those that count for s, and their stage; nil for none.
func (f *filter) limits(s *filters.Stream) (p *ratelimit.Policy, stage uint32) {
	if f.own != nil {
		return f.own, 0
	}
	if r, ok := s.Route.(ratelimit.Route); ok {
		p = r.RateLimits()
	}
	return p, f.c.Stage
}

// descriptors are what the limits of the route yield for s at a moment; answer is
// nil before there is one.
func (f *filter) descriptors(s *filters.Stream, m ratelimit.Moment, answer *message.Header) []ratelimit.Descriptor {
	p, stage := f.limits(s)
	if p == nil {
		return nil
	}
	in := &ratelimit.Input{Info: &s.Info, Request: &s.Request, Response: answer, Cluster: s.Cluster(), Node: f.node, RouteMetadata: s.Route.Metadata()}
	return p.Descriptors(stage, f.virtualHost, m, in)
}

// concerns tells whether s is of the kind that is limited.
func (f *filter) concerns(s *filters.Stream) bool {
	if f.c.Internal && f.c.External {
		return true
	}
	return (s.Request.Get("x-envoy-internal") == "true") == f.c.Internal
}

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	if s.Route == nil || !f.concerns(s) || !filters.Drawn(f.c.EnabledPPM) {
		return next.Do(s)
	}
	if p, stage := f.limits(s); p.AsksOnDone(stage, f.virtualHost) {
		s.Info.FilterState.Set(f.mark, streaminfo.String("true"), streaminfo.SharingNone)
	}
	ds := f.descriptors(s, ratelimit.OnRequest, nil)
	if len(ds) == 0 {
		return next.Do(s)
	}
	n := f.count(s.Route.ClusterName())
	a, err := f.ask(s, ds)
	if cause := s.Cause(); cause != nil {
		return nil, cause
	}
	if err != nil {
		n.failed.Inc()
		if filters.Drawn(f.c.DenyPPM) {
			return s.Deny(f.c.StatusOnError, "", "rate_limiter_error", streaminfo.RateLimitServiceError,
				streaminfo.Decision{Filter: "ratelimit", Policy: f.domain, Reason: "service_failed", Why: err.Error}), nil
		}
		n.failedAllowed.Inc()
		return next.Do(s)
	}
	for k, v := range a.metadata {
		s.Info.Metadata.Set(f.c.MetadataNamespace, k, v)
	}
	if a.over {
		n.over.Inc()
		if filters.Drawn(f.c.EnforcedPPM) {
			return f.limited(s, a), nil
		}
	} else {
		n.ok.Inc()
	}
	for _, h := range a.request {
		addHeader(&s.Request, h)
	}
	r, err := next.Do(s)
	if err == nil && r != nil {
		f.annotate(r, a)
	}
	return r, err
}

func (f *filter) ask(s *filters.Stream, ds []ratelimit.Descriptor) (*answer, error) {
	q, err := question(f.domain, ds)
	if err != nil {
		return nil, err
	}
	b, err := f.c.Service.Call(s.Context(), f.upstreams, "ratelimit", path, q, &format.Context{Info: &s.Info, Request: &s.Request})
	if err != nil {
		return nil, err
	}
	return parse(b)
}

// limited answers a request that is over its limits.
func (f *filter) limited(s *filters.Stream, a *answer) *filters.Response {
	r := s.Deny(f.c.Status, string(a.body), "request_rate_limited", streaminfo.RateLimited,
		streaminfo.Decision{Filter: "ratelimit", Policy: f.domain, Reason: "rate_limited"})
	if s.Info.IsGRPC && f.c.ResourceExhausted {
		r.Header.Set("grpc-status", "8")
	}
	if !f.c.NoLimitedHeader {
		r.Header.Set("x-envoy-ratelimited", "true")
	}
	headeredit.Apply(f.c.ResponseHeaders, &r.Header, &format.Context{Info: &s.Info, Request: &s.Request, Response: &r.Header})
	f.annotate(r, a)
	if f.c.RetryAfter && f.c.Status == 429 && a.retry > 0 && !r.Header.Has("retry-after") {
		r.Header.Set("retry-after", strconv.FormatInt(a.retry, 10))
	}
	return r
}

// annotate adds what the service wants the client to see.
func (f *filter) annotate(r *filters.Response, a *answer) {
	for _, h := range a.response {
		addHeader(&r.Header, h)
	}
	if !f.c.XRateLimit || len(a.statuses) == 0 {
		return
	}
	least := &a.statuses[0]
	var policy strings.Builder
	for i := range a.statuses {
		st := &a.statuses[i]
		if st.left < least.left {
			least = st
		}
		fmt.Fprintf(&policy, ", %d;w=%d", st.requests, st.window/time.Second)
		if st.name != "" {
			fmt.Fprintf(&policy, ";name=%q", st.name)
		}
	}
	r.Header.Set("x-ratelimit-limit", strconv.FormatUint(uint64(least.requests), 10)+policy.String())
	r.Header.Set("x-ratelimit-remaining", strconv.FormatUint(uint64(least.left), 10))
	r.Header.Set("x-ratelimit-reset", strconv.FormatInt(int64(least.resetsIn/time.Second), 10))
}

// addHeader adds a header of the service's, unless it can't be sent: pseudo
// headers and framing are not its matter.
func addHeader(h *message.Header, kv [2]string) {
	switch n := kv[0]; {
	case n == "" || n[0] == ':' || n == "host" || n == "content-length" || n == "transfer-encoding" || n == "connection":
		return
	case strings.ContainsAny(n, " \t\r\n\x00:") || strings.ContainsAny(kv[1], "\r\n\x00"):
		return
	}
	h.Add(kv[0], kv[1])
}

// Explain says what the service would be asked. It is not called.
func (f *filter) Explain(s *filters.Stream) filters.Explanation {
	if s.Route == nil || !f.concerns(s) {
		return filters.Explanation{Verdict: filters.VerdictPass, Text: []string{"the request is not of the kind that is limited"}}
	}
	var done []string
	if p, stage := f.limits(s); p.AsksOnDone(stage, f.virtualHost) {
		done = []string{"when the request has ended the service is told of what apply_on_stream_done limits"}
	}
	ds := f.descriptors(s, ratelimit.OnRequest, nil)
	if len(ds) == 0 {
		if done != nil {
			return filters.Explanation{Verdict: filters.VerdictPass, Text: done}
		}
		return filters.Explanation{Verdict: filters.VerdictPass, Text: []string{"the route's rate limits yield no descriptor: the service is not asked"}}
	}
	x := filters.Explanation{Verdict: filters.VerdictUnknown, Text: []string{"the service behind cluster " + f.c.Service.Cluster + " would be asked in domain " + f.domain + "; it is not asked here"}}
	for i := range ds {
		var b strings.Builder
		for _, e := range ds[i].Entries {
			fmt.Fprintf(&b, " %s=%q", e.Key, e.Value)
		}
		x.Text = append(x.Text, "descriptor:"+b.String())
	}
	x.Text = append(x.Text, done...)
	switch f.c.DenyPPM {
	case 0:
		x.Text = append(x.Text, "if it fails, the request passes")
	case 1_000_000:
		x.Text = append(x.Text, "if it fails, the request is denied")
	default:
		x.Text = append(x.Text, fmt.Sprintf("if it fails, %g %% of the requests are denied", float64(f.c.DenyPPM)/10_000))
	}
	return x
}
