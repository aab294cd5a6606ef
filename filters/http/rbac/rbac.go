// Package rbac is the HTTP RBAC filter: it admits or refuses a request by the
// policies that istiod makes of AuthorizationPolicy.
package rbac

import (
	"fmt"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/authz"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// Namespace is the dynamic metadata namespace of the filter.
const Namespace = "envoy.filters.http.rbac"

// Factory makes RBAC filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL, typeURLPerRoute} }

// Compile implements filters.HTTPFactory.
func (Factory) Compile(env *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	c, ok := base.(*Config)
	if !ok {
		return nil, fmt.Errorf("rbac: configuration is a %T", base)
	}
	if override != nil {
		o, ok := override.(*Override)
		if !ok {
			return nil, fmt.Errorf("rbac: per-route configuration is a %T", override)
		}
		if o.Config == nil {
			return nil, nil //nolint:nilnil // nothing to do on this route
		}
		c = o.Config
	}
	if c.Rules == nil && c.Shadow == nil {
		return nil, nil //nolint:nilnil // nothing to do on this route
	}
	f := &filter{}
	var err error
	if f.rules, err = authz.NewRecorder(c.Rules, authz.RecorderOptions{Namespace: Namespace, StatRoot: statRoot, Kind: authz.Enforced, Prefix: c.RulesStatPrefix, Labels: prefixLabel(c.RulesStatPrefix), PerRule: c.TrackPerRuleStats}, scope(env)); err != nil {
		return nil, fmt.Errorf("rbac: rules.%w", err)
	}
	if f.shadow, err = authz.NewRecorder(c.Shadow, authz.RecorderOptions{Namespace: Namespace, StatRoot: statRoot, Kind: authz.Shadow, Prefix: c.ShadowPrefix, Labels: prefixLabel(c.ShadowPrefix), PerRule: c.TrackPerRuleStats}, scope(env)); err != nil {
		return nil, fmt.Errorf("rbac: shadow_rules.%w", err)
	}
	return f, nil
}

const statRoot = "envoy_http_rbac_"

// prefixLabel is Envoy's tag for a stat prefix of rules.
func prefixLabel(prefix string) []stats.Label {
	if prefix == "" {
		return nil
	}
	return []stats.Label{{Name: "envoy_rbac_http_prefix", Value: strings.TrimSuffix(prefix, ".")}}
}

func scope(env *filters.Env) *stats.Scope {
	if env == nil {
		return nil
	}
	return env.HTTPStats
}

type filter struct{ rules, shadow *authz.Recorder }

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	in := input(s)
	f.shadow.Decide(in)
	if allowed, details := f.rules.Decide(in); !allowed {
		return f.deny(s, in, details), nil
	}
	return next.Do(s)
}

func (f *filter) deny(s *filters.Stream, in authz.Input, details string) *filters.Response {
	return s.Deny(403, "RBAC: access denied", details, 0, f.rules.Decision(in))
}

// Review implements filters.RequestReviewer. Shadow rules don't count again.
func (f *filter) Review(s *filters.Stream) *filters.Denied { return f.rules.Review(input(s)) }

// Explain says what Do would decide, by which policy, and which one came
// closest to allowing.
func (f *filter) Explain(s *filters.Stream) filters.Explanation {
	x := filters.Explanation{Verdict: filters.VerdictPass}
	in := input(s)
	f.shadow.Explain(in, &x)
	f.rules.Explain(in, &x)
	if x.Verdict == filters.VerdictDeny {
		x.Status = 403
	}
	return x
}

func input(s *filters.Stream) authz.Input {
	in := authz.Input{Info: &s.Info, Request: &s.Request}
	if s.Route != nil {
		in.Route = s.Route.Metadata()
	}
	return in
}
