// Package localratelimit is the local_ratelimit HTTP filter: token buckets in
// this process bound the rate of requests.
package localratelimit

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/headeredit"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/ratelimit"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Factory makes local_ratelimit filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// tableKey finds the buckets of a configuration in filters.Shared.
type tableKey struct {
	name, prefix, descriptors string
	bucket                    Bucket
	always, override          bool
	maxDynamic                int
}

// describe writes ds so that different ones differ.
func describe(ds []Descriptor) string {
	var b strings.Builder
	for i := range ds {
		for _, e := range ds[i].Entries {
			fmt.Fprintf(&b, "%q=%q ", e.Key, e.Value)
		}
		c := &ds[i].Bucket
		fmt.Fprintf(&b, "%d %d %d %t;", c.Max, c.Fill, c.Interval, ds[i].Shadow)
	}
	return b.String()
}

// Compile implements filters.HTTPFactory.
func (Factory) Compile(env *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	if override != nil {
		base = override
	}
	c, ok := base.(*Config)
	if !ok {
		return nil, fmt.Errorf("local_ratelimit: configuration is a %T", base)
	}
	if c.Bucket.Interval == 0 && len(c.Descriptors) == 0 || c.EnabledPPM == 0 {
		return nil, nil //nolint:nilnil // nothing to do on this route
	}
	f := &filter{c: c, perRoute: override != nil, buckets: &table{rules: newRules(c)}, release: func() {}}
	if env == nil {
		return f, nil
	}
	if env.Node != nil {
		f.node = env.Node.Cluster
	}
	if env.Shared != nil {
		k := tableKey{env.Name, c.StatPrefix, describe(c.Descriptors), c.Bucket, c.AlwaysDefault, override != nil, c.MaxDynamic}
		v, release, err := env.Shared.Acquire(k, func() (any, error) { return f.buckets, nil })
		if err != nil {
			return nil, fmt.Errorf("local_ratelimit: %w", err)
		}
		f.release = release
		if t, isTable := v.(*table); isTable {
			f.buckets = t
		}
	}
	l := stats.Label{Name: "envoy_local_http_ratelimit_prefix", Value: c.StatPrefix}
	count := func(name string) *stats.Counter { return env.Stats.Counter("envoy_http_local_rate_limit_"+name, l) }
	f.enabled, f.enforced, f.limited, f.ok, f.shadow = count("enabled"), count("enforced"), count("rate_limited"), count("ok"), count("shadow_mode")
	return f, nil
}

type filter struct {
	c                                      *Config
	node                                   string
	perRoute                               bool
	buckets                                *table
	release                                func()
	enabled, enforced, limited, ok, shadow *stats.Counter
}

// Close implements io.Closer.
func (f *filter) Close() error { f.release(); return nil }

// descriptors are what rate_limits, of the filter or else of the route, make of
// s; there is no need for any if none is configured to match.
func (f *filter) descriptors(s *filters.Stream) []ratelimit.Descriptor {
	if len(f.c.Descriptors) == 0 {
		return nil
	}
	p, stage := f.c.Own, uint32(0)
	if p == nil {
		stage = f.c.Stage
		if r, ok := s.Route.(ratelimit.Route); ok {
			p = r.RateLimits()
		}
	}
	if p == nil {
		return nil
	}
	in := &ratelimit.Input{Info: &s.Info, Request: &s.Request, Node: f.node}
	if s.Route != nil {
		in.Cluster, in.RouteMetadata = s.Cluster(), s.Route.Metadata()
	}
	return p.Descriptors(stage, f.c.VirtualHost, ratelimit.AnyTime, in)
}

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	if !filters.Drawn(f.c.EnabledPPM) {
		return next.Do(s)
	}
	f.enabled.Inc()
	now := time.Now()
	x := f.buckets.get(f.place(s), now).decide(f.descriptors(s), now)
	if x.pass {
		if x.shadow {
			f.limited.Inc()
			f.shadow.Inc()
		} else {
			f.ok.Inc()
		}
		return f.pass(s, next, &x, now)
	}
	f.limited.Inc()
	c := format.Context{Info: &s.Info, Request: &s.Request}
	if !filters.Drawn(f.c.EnforcedPPM) {
		headeredit.Apply(f.c.RequestHeaders, &s.Request, &c)
		return f.pass(s, next, &x, now)
	}
	f.enforced.Inc()
	s.Info.Limit = x.limit()
	r := s.Deny(f.c.Status, "local_rate_limited", "local_rate_limited", streaminfo.RateLimited,
		streaminfo.Decision{Filter: "local_ratelimit", Policy: f.c.StatPrefix, Reason: "rate_limited"})
	if s.Info.IsGRPC && f.c.ResourceExhausted {
		r.Header.Set("grpc-status", "8")
	}
	c.Response = &r.Header
	headeredit.Apply(f.c.ResponseHeaders, &r.Header, &c)
	left, reset := x.bucket.state(now)
	if f.c.RetryAfter && f.c.Status == 429 && !r.Header.Has("retry-after") {
		r.Header.Set("retry-after", seconds(max(reset, time.Second)))
	}
	f.annotate(r, &x, left, reset)
	return r, nil
}

// pass hands s on. What the bucket holds is told as of now.
func (f *filter) pass(s *filters.Stream, next filters.Next, x *decision, now time.Time) (*filters.Response, error) {
	if !f.c.XRateLimit || x.bucket == nil {
		return next.Do(s)
	}
	left, reset := x.bucket.state(now)
	r, err := next.Do(s)
	if err == nil && r != nil {
		f.annotate(r, x, left, reset)
	}
	return r, err
}

// limit describes the bucket.
func (x *decision) limit() string {
	c := &x.bucket.c
	t := fmt.Sprintf("%d requests, %d more each %s", c.Max, c.Fill, c.Interval)
	if x.d == nil {
		return t
	}
	var b strings.Builder
	for i, e := range x.d.Entries {
		if i > 0 {
			b.WriteString(", ")
		}
		if e.Value == "" {
			b.WriteString("each " + e.Key)
		} else {
			b.WriteString(e.Key + "=" + e.Value)
		}
	}
	return t + ", for " + b.String()
}

// Explain tries the request on a copy of the buckets that Do would take tokens
// from.
func (f *filter) Explain(s *filters.Stream) filters.Explanation {
	now := time.Now()
	l, ds := f.buckets.clone(f.place(s), now), f.descriptors(s)
	before := l.clone()
	x := l.decide(ds, now)
	if x.bucket == nil {
		return filters.Explanation{Verdict: filters.VerdictPass, Text: []string{"no descriptor is limited, and there is no token_bucket"}}
	}
	y := filters.Explanation{Verdict: filters.VerdictAllow, Text: []string{fmt.Sprintf("limit %s: %d left now", x.limit(), before.left(&x, ds, now))}}
	switch {
	case x.shadow:
		y.Text = append(y.Text, "the limit is reached; the descriptor is in shadow mode, so that the request passes")
	case x.pass:
	default:
		y.Verdict, y.Status, y.Details = filters.VerdictDeny, f.c.Status, "local_rate_limited"
		if f.c.EnabledPPM < 1_000_000 || f.c.EnforcedPPM < 1_000_000 {
			y.Verdict = filters.VerdictUnknown
			y.Text = append(y.Text, "the limit applies to a share of the requests only")
		}
	}
	return y
}

func (f *filter) place(s *filters.Stream) place {
	ci := s.Info.Conn
	p := place{listener: ci.ListenerName, chain: ci.FilterChainName}
	if f.perRoute {
		p.vhost, p.route = s.Info.VirtualHost, s.Info.RouteName
	}
	if f.c.PerConnection {
		p.connection = ci.ID
	}
	return p
}

// annotate adds the x-ratelimit headers, if so configured.
func (f *filter) annotate(r *filters.Response, x *decision, left uint32, reset time.Duration) {
	if !f.c.XRateLimit {
		return
	}
	r.Header.Set("x-ratelimit-limit", strconv.FormatUint(uint64(x.bucket.c.Max), 10))
	r.Header.Set("x-ratelimit-remaining", strconv.FormatUint(uint64(left), 10))
	r.Header.Set("x-ratelimit-reset", seconds(reset))
}

// seconds rounds up: a client that waits as long as told finds a token.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}
