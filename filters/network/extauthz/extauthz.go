// Package extauthz is the ext_authz network filter. Authorization services are
// not called for connections yet: those that the filter concerns are refused.
package extauthz

import (
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/authz"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Factory makes network ext_authz filters.
type Factory struct{}

// TypeURLs implements filters.NetworkFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.NetworkFactory.
func (Factory) Compile(env *filters.Env, cfg filters.Config) (any, error) {
	c, ok := cfg.(*Config)
	if !ok {
		return nil, fmt.Errorf("ext_authz: configuration is a %T", cfg)
	}
	f := &filter{}
	if c.Enabled != nil {
		m, err := authz.MatchMetadata(*c.Enabled)
		if err != nil {
			return nil, fmt.Errorf("ext_authz: filter_enabled_metadata: %w", err)
		}
		f.concerns = m
	}
	if env != nil {
		f.failed = env.Stats.Counter("envoy_ext_authz_" + authz.MetricName(c.StatPrefix) + "error")
	}
	return f, nil
}

type filter struct {
	concerns func(in authz.Input) bool // nil: every connection
	failed   *stats.Counter
}

// OnNewConnection implements filters.NetworkFilter.
func (f *filter) OnNewConnection(c *filters.Connection) error {
	if f.concerns != nil && !f.concerns(authz.Input{Info: c.Info}) {
		return nil
	}
	f.failed.Inc()
	return &filters.Denied{Details: "ext_authz_error", Flag: streaminfo.UnauthorizedExternalService}
}
