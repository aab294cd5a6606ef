// Package mongoproxy accepts Envoy's mongo_proxy network filter, which istiod
// puts before every port of protocol mongo to count messages. The bytes pass.
package mongoproxy

import (
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
)

// Factory makes filters that do nothing.
type Factory struct{}

// TypeURLs implements filters.NetworkFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.NetworkFactory.
func (Factory) Compile(_ *filters.Env, cfg filters.Config) (any, error) {
	if _, ok := cfg.(*Config); !ok {
		return nil, fmt.Errorf("mongo_proxy: configuration is a %T", cfg)
	}
	return filter{}, nil
}

type filter struct{}

// OnNewConnection implements filters.NetworkFilter.
func (filter) OnNewConnection(*filters.Connection) error { return nil }

// Explain says that the filter has no say.
func (filter) Explain(*filters.Connection) filters.Explanation {
	return filters.Explanation{Verdict: filters.VerdictPass}
}

// Detached implements filters.Detached.
func (filter) Detached() {}
