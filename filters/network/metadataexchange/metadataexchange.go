// Package metadataexchange is Istio's metadata_exchange network filter. Of its
// two ways it knows the one that works in ambient mode: finding the workloads
// at both ends of a connection in the mesh's table.
package metadataexchange

import (
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/peers"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Factory makes metadata_exchange filters.
type Factory struct{}

// TypeURLs implements filters.NetworkFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.NetworkFactory.
func (Factory) Compile(env *filters.Env, cfg filters.Config) (any, error) {
	c, ok := cfg.(*Config)
	if !ok {
		return nil, fmt.Errorf("metadata_exchange: configuration is a %T", cfg)
	}
	f := &filter{}
	if env != nil {
		if c.Discovery {
			f.workloads = env.Workloads
		}
		f.added = env.Stats.Counter("envoy_metadata_exchange_metadata_added")
	}
	return f, nil
}

type filter struct {
	workloads filters.Workloads
	added     *stats.Counter
}

// OnNewConnection implements filters.NetworkFilter.
func (f *filter) OnNewConnection(c *filters.Connection) error {
	ci := c.Info.Conn
	if p := peers.Lookup(f.workloads, ci.Remote.Addr()); p != nil {
		f.added.Inc()
		peers.SetDownstream(&ci.FilterState, p, streaminfo.SharingNone)
	}
	if f.workloads != nil {
		c.Observe(f.upstream)
	}
	return nil
}

// upstream finds the peer once a host was picked. It writes to the stream's
// own filter state: the connection's may be shared by now.
func (f *filter) upstream(c *filters.Connection) {
	if p := peers.Lookup(f.workloads, peers.UpstreamAddress(c.Info)); p != nil {
		peers.SetUpstream(&c.Info.FilterState, p, streaminfo.SharingNone)
	}
}

// OnConnectionEnd implements filters.ConnectionEnder, for the access log.
func (f *filter) OnConnectionEnd(c *filters.Connection) { f.upstream(c) }

// Explain finds the client as OnNewConnection does, and says who it is.
func (f *filter) Explain(c *filters.Connection) filters.Explanation {
	ci := c.Info.Conn
	p := peers.Lookup(f.workloads, ci.Remote.Addr())
	if p == nil {
		return filters.Explanation{Verdict: filters.VerdictPass}
	}
	peers.SetDownstream(&ci.FilterState, p, streaminfo.SharingNone)
	return filters.Explanation{Verdict: filters.VerdictPass, Text: []string{"the client is " + p.Namespace + "/" + p.Workload}}
}
