// Package peermetadata is Istio's peer_metadata network filter: it keeps the
// baggage that describes this workload where a tunnel's request takes it from.
package peermetadata

import (
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/peers"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Factory makes peer_metadata filters.
type Factory struct{}

// TypeURLs implements filters.NetworkFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.NetworkFactory.
func (Factory) Compile(env *filters.Env, cfg filters.Config) (any, error) {
	c, ok := cfg.(*Config)
	if !ok {
		return nil, fmt.Errorf("peer_metadata: configuration is a %T", cfg)
	}
	f := &filter{key: c.BaggageKey}
	if env != nil && env.Node != nil {
		f.baggage = streaminfo.String(peers.Baggage(peers.Node(env.Node)))
	}
	return f, nil
}

type filter struct {
	key     string
	baggage streaminfo.String
}

// OnNewConnection implements filters.NetworkFilter.
func (f *filter) OnNewConnection(c *filters.Connection) error {
	if f.key != "" {
		c.Info.Conn.FilterState.SetStatic(f.key, f.baggage, streaminfo.SharingNone)
	}
	return nil
}

// Explain does what OnNewConnection does.
func (f *filter) Explain(c *filters.Connection) filters.Explanation {
	_ = f.OnNewConnection(c) // never refuses
	return filters.Explanation{Verdict: filters.VerdictPass}
}

// Detached implements filters.Detached.
func (f *filter) Detached() {}
