// Package extauthz is the ext_authz HTTP filter: it asks a service whether a
// request may pass. Services that speak HTTP are called; those that speak gRPC
// are not yet, and the requests that they concern are refused.
package extauthz

import (
	"fmt"
	"math/rand/v2"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/authz"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Factory makes ext_authz filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL, typeURLPerRoute} }

// Compile implements filters.HTTPFactory.
func (Factory) Compile(env *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	c, ok := base.(*Config)
	if !ok {
		return nil, fmt.Errorf("ext_authz: configuration is a %T", base)
	}
	f := &filter{c: c, body: c.Body}
	if override != nil {
		o, ok := override.(*Override)
		if !ok {
			return nil, fmt.Errorf("ext_authz: per-route configuration is a %T", override)
		}
		if o.Disabled {
			return nil, nil //nolint:nilnil // nothing to do on this route
		}
		if o.Body != nil {
			f.body = o.Body
		}
		if o.NoBody {
			f.body = nil
		}
	}
	if c.Enabled != nil {
		m, err := authz.MatchMetadata(*c.Enabled)
		if err != nil {
			return nil, fmt.Errorf("ext_authz: filter_enabled_metadata: %w", err)
		}
		f.concerns = m
	}
	if env != nil {
		f.upstreams = env.Upstreams
		count := func(name string) *stats.Counter { return env.Stats.Counter("envoy_http_ext_authz_" + name) }
		f.ok, f.denied, f.failed, f.failedAllowed, f.disabled = count("ok"), count("denied"), count("error"), count("failure_mode_allowed"), count("disabled")
	}
	return f, nil
}

type filter struct {
	c         *Config
	body      *Body
	concerns  func(in authz.Input) bool // nil: every request
	upstreams filters.Upstreams

	ok, denied, failed, failedAllowed, disabled *stats.Counter
}

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	if f.concerns != nil && !f.concerns(authz.Input{Info: &s.Info, Request: &s.Request}) {
		return next.Do(s)
	}
	if p := f.c.EnabledPPM; p < 1_000_000 && rand.Uint32N(1_000_000) >= p {
		f.disabled.Inc()
		if f.c.DenyDisabled {
			return s.LocalReply(f.c.StatusOnError, "", "ext_authz_denied", streaminfo.UnauthorizedExternalService), nil
		}
		return next.Do(s)
	}
	if f.c.HTTP == nil || f.upstreams == nil {
		f.failed.Inc()
		return f.refuse(s), nil
	}
	return f.check(s, next)
}

// refuse answers a request that could not be checked.
func (f *filter) refuse(s *filters.Stream) *filters.Response {
	return s.LocalReply(f.c.StatusOnError, "", "ext_authz_error", streaminfo.UnauthorizedExternalService)
}
