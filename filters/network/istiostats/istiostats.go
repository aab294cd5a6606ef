// Package istiostats is the TCP side of istio.stats: Istio's standard metrics
// for connections.
package istiostats

import (
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/istio/istiometrics"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Factory makes istio.stats network filters.
type Factory struct{}

// TypeURLs implements filters.NetworkFactory.
func (Factory) TypeURLs() []string { return []string{istiometrics.TypeURL} }

// Compile implements filters.NetworkFactory.
func (Factory) Compile(env *filters.Env, cfg filters.Config) (any, error) {
	c, ok := cfg.(*istiometrics.Config)
	if !ok {
		return nil, fmt.Errorf("istio.stats: configuration is a %T", cfg)
	}
	f := &filter{m: istiometrics.New(env, c), key: "istio.stats connection"}
	if env != nil {
		f.key += " " + env.Name
	}
	return f, nil
}

type filter struct {
	m   *istiometrics.Metrics
	key string
}

// OnNewConnection implements filters.NetworkFilter.
func (f *filter) OnNewConnection(c *filters.Connection) error {
	r := f.m.NewConnection()
	c.Info.FilterState.SetStatic(f.key, r, streaminfo.SharingNone)
	if f.m.Interval() > 0 {
		c.Observe(func(c *filters.Connection) { r.Report(c.Info, false) })
	}
	return nil
}

// OnConnectionEnd implements filters.ConnectionEnder.
func (f *filter) OnConnectionEnd(c *filters.Connection) {
	if r, ok := c.Info.FilterState.Get(f.key).(*istiometrics.Connection); ok {
		r.Report(c.Info, true)
	}
}

// OnConnectionRefused implements filters.RefusalWitness: connections that a
// policy before this filter refused are counted, as Envoy does.
func (f *filter) OnConnectionRefused(c *filters.Connection) {
	f.m.NewConnection().Report(c.Info, true)
}

// Detached implements filters.Detached.
func (f *filter) Detached() {}

// Explain says nothing about a connection: it only counts.
func (f *filter) Explain(*filters.Connection) filters.Explanation {
	return filters.Explanation{Verdict: filters.VerdictPass}
}
