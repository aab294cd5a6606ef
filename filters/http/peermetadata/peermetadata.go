// Package peermetadata is Istio's peer_metadata HTTP filter: it finds out which
// workloads are at both ends of a request and tells others who this one is.
package peermetadata

import (
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/peers"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

const (
	headerPeer    = "x-envoy-peer-metadata"
	headerPeerID  = "x-envoy-peer-metadata-id"
	headerBaggage = "baggage"
	headerNetwork = "x-forwarded-network"
)

// Factory makes peer_metadata filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.HTTPFactory.
func (Factory) Compile(env *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	c, ok := base.(*Config)
	if !ok || override != nil {
		return nil, fmt.Errorf("peer_metadata: configuration is a %T, override a %T", base, override)
	}
	f := &filter{c: c}
	if c.SharedWithUpstream {
		f.sharing = streaminfo.SharingOnce
	}
	if env != nil {
		f.workloads = env.Workloads
		f.clusters, _ = env.Upstreams.(clusters)
		if env.Node != nil {
			self := peers.NodeWith(env.Node, c.AdditionalLabels)
			self.Region, self.Zone = env.Node.Region, env.Node.Zone
			f.network, f.id, f.exchange, f.baggage = env.Node.Network, env.Node.ID, peers.Exchange(self), peers.Baggage(self)
		}
	}
	f.strips = uses(c.DownstreamDiscovery, IstioHeaders)
	f.stripsUp = uses(c.UpstreamDiscovery, IstioHeaders)
	return f, nil
}

func uses(steps []Step, m Method) bool {
	for _, s := range steps {
		if s.Method == m {
			return true
		}
	}
	return false
}

type filter struct {
	c                 *Config
	sharing           streaminfo.Sharing
	workloads         filters.Workloads
	clusters          clusters
	network, id       string
	exchange, baggage string
	strips, stripsUp  bool
}

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	q := f.before(s)
	r, err := next.Do(s)
	if err != nil || r == nil {
		return r, err
	}
	f.discoverUpstream(s, r)
	for _, p := range f.c.DownstreamPropagation {
		switch p.Method {
		case Baggage:
			r.Header.Set(headerBaggage, f.baggage)
		case IstioHeaders:
			if f.disabled(s, &p) {
				continue
			}
			if q.id {
				r.Header.Set(headerPeerID, f.id)
			}
			if q.peer {
				r.Header.Set(headerPeer, f.exchange)
			}
		case WorkloadDiscovery, UpstreamFilterState: // tells nobody
		}
	}
	return r, nil
}

// question is which of Istio's headers the client sent, where they were looked
// for.
type question struct{ id, peer bool }

// before does what is to be done before the request goes on.
func (f *filter) before(s *filters.Stream) question {
	q := f.discoverDownstream(s)
	for i := range f.c.UpstreamPropagation {
		f.tellUpstream(s, &f.c.UpstreamPropagation[i])
	}
	return q
}

// Explain finds the client as Do does, and says who it is.
func (f *filter) Explain(s *filters.Stream) filters.Explanation {
	f.before(s)
	x := filters.Explanation{Verdict: filters.VerdictPass}
	if len(f.c.DownstreamDiscovery) == 0 {
		return x
	}
	who := "the client is not known to be a workload"
	if p := peers.Get(&s.Info.FilterState, peers.Downstream); p != nil {
		who = "the client is " + p.Namespace + "/" + p.Workload
	}
	x.Text = []string{who}
	return x
}

func (f *filter) discoverDownstream(s *filters.Stream) (q question) {
	for _, m := range f.c.DownstreamDiscovery {
		var p *streaminfo.Peer
		switch m.Method {
		case WorkloadDiscovery:
			// Addresses of other networks say nothing here.
			if n, ok := s.Request.Lookup(headerNetwork); !ok || n == f.network {
				p = peers.Lookup(f.workloads, s.Info.Conn.Remote.Addr())
			}
		case IstioHeaders:
			_, q.id = s.Request.Lookup(headerPeerID)
			_, q.peer = s.Request.Lookup(headerPeer)
			p = peers.FromExchange(s.Request.Get(headerPeer), f.c.AdditionalLabels)
		case Baggage:
			p = peers.FromBaggage(s.Request.Get(headerBaggage))
		case UpstreamFilterState: // of upstream only
		}
		if p != nil {
			peers.SetDownstream(&s.Info.FilterState, p, f.sharing)
			break
		}
	}
	if f.strips {
		strip(&s.Request)
	}
	return q
}

func (f *filter) discoverUpstream(s *filters.Stream, r *filters.Response) {
	for i := range f.c.UpstreamDiscovery {
		var p *streaminfo.Peer
		switch m := &f.c.UpstreamDiscovery[i]; m.Method {
		case WorkloadDiscovery:
			p = peers.Lookup(f.workloads, peers.UpstreamAddress(&s.Info))
		case IstioHeaders:
			p = peers.FromExchange(r.Header.Get(headerPeer), f.c.AdditionalLabels)
		case UpstreamFilterState:
			if p = peers.Get(&s.Info.FilterState, m.Key); p == nil {
				p = peers.Get(s.Info.Upstream.State, m.Key)
			}
		case Baggage: // of downstream only
		}
		if p != nil {
			peers.SetUpstream(&s.Info.FilterState, p, f.sharing)
			break
		}
	}
	if f.stripsUp {
		strip(&r.Header)
	}
}

func strip(h *message.Header) {
	h.Del(headerPeer)
	h.Del(headerPeerID)
}

// tellUpstream adds what describes this proxy to the request.
func (f *filter) tellUpstream(s *filters.Stream, p *Step) {
	switch p.Method {
	case Baggage:
		s.Request.Set(headerBaggage, f.baggage)
	case IstioHeaders:
		if f.keepsQuiet(s, p) {
			return
		}
		s.Request.Set(headerPeerID, f.id)
		s.Request.Set(headerPeer, f.exchange)
	case WorkloadDiscovery, UpstreamFilterState: // tells nobody
	}
}

// clusters is what the caller of clusters knows about them.
type clusters interface {
	// ClusterMetadata returns the static metadata of a cluster, nil if unknown.
	ClusterMetadata(name string) *streaminfo.Metadata
}

// keepsQuiet reports whether the cluster is one that gets no Istio headers. Nothing
// is told to a cluster about which nothing is known.
func (f *filter) keepsQuiet(s *filters.Stream, p *Step) bool {
	return s.Route == nil || f.clusters == nil || s.Route.ClusterName() == "" || f.disabled(s, p)
}

// disabled reports whether the route's cluster is one whose requests carry no
// Istio headers in either direction: external ones, if so configured, and those
// whose metadata says disable_mx.
func (f *filter) disabled(s *filters.Stream, p *Step) bool {
	if s.Route == nil || f.clusters == nil {
		return false
	}
	name := s.Route.ClusterName()
	if p.SkipExternal && name == "PassthroughCluster" {
		return true
	}
	istio := f.clusters.ClusterMetadata(name).Namespace("istio")
	off, _ := istio["disable_mx"].(bool)
	external, _ := istio["external"].(bool)
	return off || p.SkipExternal && external
}
