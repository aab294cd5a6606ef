// Package extauthz is the ext_authz HTTP filter: it asks a service, over gRPC or
// HTTP, whether a request may pass.
package extauthz

import (
	"fmt"
	"maps"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/authcheck"
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
	f := &filter{c: c, http: c.HTTP, grpc: c.GRPC, body: c.Body, tell: c.Tell}
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
		if o.HTTP != nil || o.GRPC != nil {
			f.http, f.grpc = o.HTTP, o.GRPC
		}
		f.tell.Extensions = authcheck.Sorted(o.Extensions)
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
		f.count(env)
		f.tell.Labels = authcheck.Labels(env.Node, c.LabelsKey)
	}
	return f, nil
}

type filter struct {
	c         *Config
	http      *HTTPService // or grpc
	grpc      *authcheck.Service
	body      *Body
	tell      authcheck.Telling
	concerns  func(in authz.Input) bool // nil: every request
	upstreams filters.Upstreams

	ok, denied, failed, failedAllowed, disabled *stats.Counter
	invalid, ignoredMetadata, rejectedMutations *stats.Counter

	stats    *stats.Scope
	clusters stats.Cache[string, clusterCounters]
}

// clusterCounters are those of the cluster that requests are routed to.
type clusterCounters struct{ ok, denied, failed, failedAllowed, invalid *stats.Counter }

// count takes the handles of the counters.
func (f *filter) count(env *filters.Env) {
	var labels []stats.Label
	if p := f.c.StatPrefix; p != "" {
		labels = []stats.Label{{Name: "envoy_ext_authz_prefix", Value: p}}
	}
	c := func(name string) *stats.Counter {
		return env.HTTPStats.Counter("envoy_http_ext_authz_"+name, labels...)
	}
	f.ok, f.denied, f.failed, f.failedAllowed, f.disabled = c("ok"), c("denied"), c("error"), c("failure_mode_allowed"), c("disabled")
	f.invalid, f.ignoredMetadata, f.rejectedMutations = c("invalid"), c("ignored_dynamic_metadata"), c("rejected_header_mutations")
	f.stats, f.clusters.Own = env.Stats, strings.Clone
}

// of returns the counters of the cluster that s is routed to.
func (f *filter) of(s *filters.Stream) *clusterCounters {
	if s.Route == nil || f.stats == nil {
		return &clusterCounters{}
	}
	return f.clusters.Get(s.Route.ClusterName(), func(cluster string) *clusterCounters {
		labels := []stats.Label{{Name: "envoy_cluster_name", Value: cluster}}
		if p := f.c.StatPrefix; p != "" {
			labels = append(labels, stats.Label{Name: "envoy_ext_authz_prefix", Value: p})
		}
		c := func(name string) *stats.Counter { return f.stats.Counter("envoy_cluster_ext_authz_"+name, labels...) }
		return &clusterCounters{c("ok"), c("denied"), c("error"), c("failure_mode_allowed"), c("invalid")}
	})
}

// MergeOverrides implements filters.OverrideMerger: context extensions add up,
// everything else is the specific one's.
func (Factory) MergeOverrides(general, specific filters.Config) filters.Config {
	g, ok := general.(*Override)
	o, ok2 := specific.(*Override)
	if !ok || !ok2 || len(g.Extensions) == 0 {
		return specific
	}
	sum := *o
	sum.Extensions = maps.Clone(g.Extensions)
	maps.Copy(sum.Extensions, o.Extensions)
	return &sum
}

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	if f.concerns != nil && !f.concerns(authz.Input{Info: &s.Info, Request: &s.Request}) || !filters.Drawn(f.c.EnabledPPM) {
		f.disabled.Inc()
		if f.c.DenyDisabled {
			return s.Deny(f.c.StatusOnError, "", "ext_authz_error", streaminfo.UnauthorizedExternalService, f.decision("disabled", nil)), nil
		}
		return next.Do(s)
	}
	return f.check(s, next)
}
