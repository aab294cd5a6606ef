// Package localratelimit is the local_ratelimit HTTP filter: a token bucket in
// this process bounds the rate of requests.
package localratelimit

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/headeredit"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Factory makes local_ratelimit filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// tableKey finds the buckets of a configuration in filters.Shared.
type tableKey struct {
	name, prefix string
	bucket       Bucket
	override     bool
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
	if c.Bucket.Max == 0 || c.EnabledPPM == 0 {
		return nil, nil //nolint:nilnil // nothing to do on this route
	}
	f := &filter{c: c, perRoute: override != nil, buckets: &table{c: c.Bucket}, release: func() {}}
	if env == nil {
		return f, nil
	}
	if env.Shared != nil {
		k := tableKey{env.Name, c.StatPrefix, c.Bucket, override != nil}
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
	f.enabled, f.enforced, f.limited, f.ok = count("enabled"), count("enforced"), count("rate_limited"), count("ok")
	return f, nil
}

type filter struct {
	c                              *Config
	perRoute                       bool
	buckets                        *table
	release                        func()
	enabled, enforced, limited, ok *stats.Counter
}

// Close implements io.Closer.
func (f *filter) Close() error { f.release(); return nil }

func hit(ppm uint32) bool {
	return ppm >= 1_000_000 || ppm > 0 && rand.Uint32N(1_000_000) < ppm
}

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	if !hit(f.c.EnabledPPM) {
		return next.Do(s)
	}
	f.enabled.Inc()
	now := time.Now()
	pass, left, reset := f.buckets.get(f.place(s), now).take(now)
	if pass {
		f.ok.Inc()
		return f.annotate(left, reset)(next.Do(s))
	}
	f.limited.Inc()
	c := format.Context{Info: &s.Info, Request: &s.Request}
	if !hit(f.c.EnforcedPPM) {
		headeredit.Apply(f.c.RequestHeaders, &s.Request, &c)
		return f.annotate(left, reset)(next.Do(s))
	}
	f.enforced.Inc()
	s.Info.Limit = f.limit()
	r := s.Deny(f.c.Status, "local_rate_limited", "local_rate_limited", streaminfo.RateLimited,
		streaminfo.Decision{Filter: "local_ratelimit", Policy: f.c.StatPrefix, Reason: "rate_limited"})
	if s.Info.IsGRPC && f.c.ResourceExhausted {
		r.Header.Set("grpc-status", "8")
	}
	c.Response = &r.Header
	headeredit.Apply(f.c.ResponseHeaders, &r.Header, &c)
	if f.c.RetryAfter {
		r.Header.Set("retry-after", seconds(reset))
	}
	return f.annotate(left, reset)(r, nil)
}

// limit describes the bucket.
func (f *filter) limit() string {
	return fmt.Sprintf("%d requests, %d more each %s", f.c.Bucket.Max, f.c.Bucket.Fill, f.c.Bucket.Interval)
}

// Explain looks at the bucket that Do would take a token from.
func (f *filter) Explain(s *filters.Stream) filters.Explanation {
	left := f.buckets.peek(f.place(s), time.Now())
	x := filters.Explanation{Verdict: filters.VerdictAllow, Text: []string{fmt.Sprintf("limit %s: %d left now", f.limit(), left)}}
	if left > 0 {
		return x
	}
	x.Verdict, x.Status, x.Details = filters.VerdictDeny, f.c.Status, "local_rate_limited"
	if f.c.EnabledPPM < 1_000_000 || f.c.EnforcedPPM < 1_000_000 {
		x.Verdict = filters.VerdictUnknown
		x.Text = append(x.Text, "the limit applies to a share of the requests only")
	}
	return x
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
func (f *filter) annotate(left uint32, reset time.Duration) func(*filters.Response, error) (*filters.Response, error) {
	return func(r *filters.Response, err error) (*filters.Response, error) {
		if err != nil || r == nil || !f.c.XRateLimit {
			return r, err
		}
		r.Header.Set("x-ratelimit-limit", strconv.FormatUint(uint64(f.c.Bucket.Max), 10))
		r.Header.Set("x-ratelimit-remaining", strconv.FormatUint(uint64(left), 10))
		r.Header.Set("x-ratelimit-reset", seconds(reset))
		return r, nil
	}
}

// seconds rounds up: a client that waits as long as told finds a token.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}
