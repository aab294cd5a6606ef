// Package peermetadata is Istio's peer_metadata network filter, on the way into a
// tunnel and on the connections of the clusters that use one: it keeps the
// baggage that describes this workload where a tunnel's request takes it from,
// and hands the baggage of the tunnel's answer to the streams inside.
package peermetadata

import (
	"fmt"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/peers"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

const (
	// tunnelResponse is where tcp_proxy keeps the head of a tunnel's answer.
	tunnelResponse = "envoy.tcp_proxy.propagate_response_headers"
	// handOff is where a cluster's filter awaits what the tunnel tells. It crosses
	// the internal hop.
	handOff = "fairlead.peer_metadata"
	// namespace and disabled are the metadata by which istiod turns this off.
	namespace = "istio.peer_metadata"
	disabled  = "disable_baggage_discovery"
)

// Factory makes peer_metadata filters of listeners.
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
	ci := c.Info.Conn
	if f.key != "" {
		ci.FilterState.SetStatic(f.key, f.baggage, streaminfo.SharingNone)
	}
	if off, _ := ci.Metadata.Namespace(namespace)[disabled].(bool); !off && ci.FilterState.Awaits(handOff) {
		c.WhenConnected(tell)
	}
	return nil
}

// tell hands over what the answer to the tunnel's request says of the peer, and
// whose certificate the tunnel's end has.
func tell(c *filters.Connection) {
	var p *streaminfo.Peer
	if head := c.Info.FilterState.Get(tunnelResponse); head != nil {
		if baggage, ok := head.Field("baggage"); ok {
			identity := ""
			if t := c.Info.Upstream.TLS; t != nil {
				identity = strings.Join(t.Peer.URISANs, ",")
			}
			p = peers.FromBaggageOf(baggage, identity)
		}
	}
	arrive(c, p)
}

// arrive ends the wait of the dialler; p may be nil.
func arrive(c *filters.Connection, p *streaminfo.Peer) {
	if p == nil {
		c.Info.Conn.FilterState.Arrive(handOff, nil)
		return
	}
	c.Info.Conn.FilterState.Arrive(handOff, p)
}

// OnConnectionEnd implements filters.ConnectionEnder: without a tunnel nobody
// tells anything.
func (*filter) OnConnectionEnd(c *filters.Connection) { arrive(c, nil) }

// Explain does what OnNewConnection does.
func (f *filter) Explain(c *filters.Connection) filters.Explanation {
	_ = f.OnNewConnection(c) // never refuses
	return filters.Explanation{Verdict: filters.VerdictPass}
}

// Detached implements filters.Detached.
func (f *filter) Detached() {}

// UpstreamFactory makes peer_metadata filters of clusters.
type UpstreamFactory struct{}

// TypeURLs implements filters.UpstreamFactory.
func (UpstreamFactory) TypeURLs() []string { return []string{upstreamTypeURL} }

// CompileUpstream implements filters.UpstreamFactory.
func (UpstreamFactory) CompileUpstream(_ *filters.Env, cfg filters.Config) (filters.UpstreamFilter, error) {
	if _, ok := cfg.(*UpstreamConfig); !ok {
		return nil, fmt.Errorf("peer_metadata: configuration is a %T", cfg)
	}
	return upstreamFilter{}, nil
}

// upstreamFilter awaits what the listener's filter tells.
type upstreamFilter struct{}

// OnDial implements filters.UpstreamFilter.
func (upstreamFilter) OnDial(c *filters.UpstreamConnection) {
	if !tunnels(c.Internal) || isOff(c.HostMetadata) || isOff(c.ClusterMetadata) {
		return
	}
	told := &streaminfo.Awaited{}
	c.State.SetStatic(handOff, told, streaminfo.SharingOnce)
	c.State.SetStatic(peers.Upstream, told, streaminfo.SharingNone)
	c.State.SetStatic(peers.UpstreamObj, told, streaminfo.SharingNone)
}

// OnConnected implements filters.UpstreamFilter.
func (upstreamFilter) OnConnected(*filters.UpstreamConnection) error { return nil }

// tunnels reports whether an internal listener, "" for none, is one that opens
// tunnels and has the other half of this filter.
func tunnels(listener string) bool {
	return listener == "connect_originate" || listener == "inner_connect_originate"
}

func isOff(md *streaminfo.Metadata) bool {
	off, _ := md.Namespace(namespace)[disabled].(bool)
	return off
}
