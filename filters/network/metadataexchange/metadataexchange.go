// Package metadataexchange is Istio's metadata_exchange network filter, on
// connections downstream and upstream. Where both sides agreed by ALPN, each
// begins with a description of itself; else the workloads at both ends are found
// in the mesh's table.
package metadataexchange

import (
	"crypto/tls"
	"fmt"
	"net/netip"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/peers"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Factory makes metadata_exchange filters.
type Factory struct{}

// TypeURLs implements filters.NetworkFactory and filters.UpstreamFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.NetworkFactory.
func (Factory) Compile(env *filters.Env, cfg filters.Config) (any, error) {
	e, err := newExchange(env, cfg)
	if err != nil {
		return nil, err
	}
	return &filter{e}, nil
}

// CompileUpstream implements filters.UpstreamFactory.
func (Factory) CompileUpstream(env *filters.Env, cfg filters.Config) (filters.UpstreamFilter, error) {
	e, err := newExchange(env, cfg)
	if err != nil {
		return nil, err
	}
	return &upstreamFilter{e}, nil
}

// exchange is what both sides have in common. It is immutable.
type exchange struct {
	protocol  string
	labels    []string
	frame     []byte // what this side says, nil if nothing
	workloads filters.Workloads

	agreed, notAgreed, noFrame, badFrame, added *stats.Counter
}

func newExchange(env *filters.Env, cfg filters.Config) (*exchange, error) {
	c, ok := cfg.(*Config)
	if !ok {
		return nil, fmt.Errorf("metadata_exchange: configuration is a %T", cfg)
	}
	e := &exchange{protocol: c.Protocol, labels: c.Labels}
	if env == nil {
		return e, nil
	}
	if c.Discovery {
		e.workloads = env.Workloads
	}
	if env.Node != nil {
		e.frame = peers.Frame(peers.NodeWith(env.Node, c.Labels), env.Node.ID)
	}
	count := func(name string) *stats.Counter { return env.Stats.Counter("envoy_metadata_exchange_" + name) }
	e.agreed, e.notAgreed, e.noFrame = count("alpn_protocol_found"), count("alpn_protocol_not_found"), count("initial_header_not_found")
	e.badFrame, e.added = count("header_not_found"), count("metadata_added")
	return e, nil
}

// agrees reports whether the peer of a connection takes part, and counts it.
func (e *exchange) agrees(state *tls.ConnectionState) bool {
	if state == nil || state.NegotiatedProtocol != e.protocol {
		e.notAgreed.Inc()
		return false
	}
	e.agreed.Inc()
	return true
}

// begin says who this is, and returns a connection whose reader finds out about
// the peer first. Whatever goes wrong, the connection goes on.
func (e *exchange) begin(c netio.Conn, told *streaminfo.Awaited) netio.Conn {
	if len(e.frame) > 0 {
		if _, err := c.Write(e.frame); err == nil { // else the next to use c learns it
			e.added.Inc()
		}
	}
	return &conn{Conn: c, e: e, told: told}
}

// lookup asks the table of workloads.
func (e *exchange) lookup(a netip.Addr) *streaminfo.Peer {
	p := peers.Lookup(e.workloads, a)
	if p != nil {
		e.added.Inc()
	}
	return p
}

// filter stands on connections from downstream.
type filter struct{ *exchange }

// OnNewConnection implements filters.NetworkFilter.
func (f *filter) OnNewConnection(c *filters.Connection) error {
	ci := c.Info.Conn
	if f.agrees(c.TLS()) {
		told := &streaminfo.Awaited{}
		if ci.FilterState.Get(peers.Downstream) == nil {
			ci.FilterState.SetStatic(peers.Downstream, told, streaminfo.SharingNone)
			ci.FilterState.SetStatic(peers.DownstreamObj, told, streaminfo.SharingNone)
		}
		c.Conn = f.begin(c.Conn, told)
	} else if p := f.lookup(ci.Remote.Addr()); p != nil {
		peers.SetDownstream(&ci.FilterState, p, streaminfo.SharingNone)
	}
	c.WhenConnected(f.upstream)
	return nil
}

// upstream finds the peer once a host was picked: what the cluster's filter
// knows, or what the table says. It writes to the stream's own filter state: the
// connection's may be shared by now.
func (f *filter) upstream(c *filters.Connection) {
	fs := &c.Info.FilterState
	if s := c.Info.Upstream.State; s != nil {
		fs.Adopt(peers.Upstream, s)
		fs.Adopt(peers.UpstreamObj, s)
	}
	if fs.Get(peers.Upstream) != nil || fs.Awaits(peers.Upstream) {
		return
	}
	if p := peers.Lookup(f.workloads, peers.UpstreamAddress(c.Info)); p != nil {
		peers.SetUpstream(fs, p, streaminfo.SharingNone)
	}
}

// OnConnectionEnd implements filters.ConnectionEnder, for connections that never
// had an upstream: the host that was tried is known.
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

// upstreamFilter stands on connections to the hosts of a cluster.
type upstreamFilter struct{ *exchange }

// OnDial implements filters.UpstreamFilter.
func (*upstreamFilter) OnDial(*filters.UpstreamConnection) {}

// OnConnected implements filters.UpstreamFilter.
func (f *upstreamFilter) OnConnected(c *filters.UpstreamConnection) error {
	if f.agrees(c.TLS()) {
		told := &streaminfo.Awaited{}
		c.State.SetStatic(peers.Upstream, told, streaminfo.SharingNone)
		c.State.SetStatic(peers.UpstreamObj, told, streaminfo.SharingNone)
		c.Conn = f.begin(c.Conn, told)
		return nil
	}
	if _, remote := c.HostMetadata.Namespace("istio")["double_hbone"]; remote {
		return nil // the gateway of another network, about which the table says nothing
	}
	if c.State.Get(peers.Upstream) != nil || c.State.Awaits(peers.Upstream) {
		return nil // told by another filter
	}
	if p := f.lookup(c.Address.Addr()); p != nil {
		peers.SetUpstream(&c.State, p, streaminfo.SharingNone)
	}
	return nil
}
