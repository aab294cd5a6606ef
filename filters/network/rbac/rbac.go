// Package rbac is the network RBAC filter: it admits or refuses a connection
// by the policies that istiod makes of AuthorizationPolicy for TCP ports.
package rbac

import (
	"fmt"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/authz"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// Namespace is the dynamic metadata namespace of the filter.
const Namespace = "envoy.filters.network.rbac"

const statRoot = "envoy_rbac_"

// Factory makes network RBAC filters.
type Factory struct{}

// TypeURLs implements filters.NetworkFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.NetworkFactory.
func (Factory) Compile(env *filters.Env, cfg filters.Config) (any, error) {
	c, ok := cfg.(*Config)
	if !ok {
		return nil, fmt.Errorf("rbac: configuration is a %T", cfg)
	}
	var sc *stats.Scope
	if env != nil {
		sc = env.Stats
	}
	labels := []stats.Label{{Name: "envoy_rbac_prefix", Value: strings.TrimSuffix(c.StatPrefix, ".")}}
	f := &filter{delay: c.DelayDeny}
	var err error
	if f.rules, err = authz.NewRecorder(c.Rules, authz.RecorderOptions{Namespace: Namespace, StatRoot: statRoot, Kind: authz.Enforced, Labels: labels}, sc); err != nil {
		return nil, fmt.Errorf("rbac: rules.%w", err)
	}
	if f.shadow, err = authz.NewRecorder(c.Shadow, authz.RecorderOptions{Namespace: Namespace, StatRoot: statRoot + authz.MetricName(c.ShadowPrefix), Kind: authz.Shadow, Prefix: c.ShadowPrefix, Labels: labels}, sc); err != nil {
		return nil, fmt.Errorf("rbac: shadow_rules.%w", err)
	}
	return f, nil
}

type filter struct {
	rules, shadow *authz.Recorder
	delay         time.Duration
}

// OnNewConnection implements filters.NetworkFilter.
func (f *filter) OnNewConnection(c *filters.Connection) error {
	in := authz.Input{Info: c.Info}
	f.shadow.Decide(in)
	allowed, details := f.rules.Decide(in)
	if allowed {
		return nil
	}
	if f.delay > 0 {
		time.Sleep(f.delay) // the connection has a goroutine of its own here
	}
	d := f.rules.Decision(in)
	return &filters.Denied{Details: details, Decision: &d}
}

// Review implements filters.Reviewer. Shadow rules don't count again.
func (f *filter) Review(c *filters.Connection) *filters.Denied {
	return f.rules.Review(authz.Input{Info: c.Info})
}

// Explain says what OnNewConnection would decide, by which policy, and which one
// came closest to allowing.
func (f *filter) Explain(c *filters.Connection) filters.Explanation {
	x := filters.Explanation{Verdict: filters.VerdictPass}
	in := authz.Input{Info: c.Info}
	f.shadow.Explain(in, &x)
	f.rules.Explain(in, &x)
	return x
}

// Detached implements filters.Detached.
func (f *filter) Detached() {}
