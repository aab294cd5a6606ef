// Package peers finds out who a workload's peer is, from the mesh's table of
// workloads, from baggage and from Istio's metadata exchange, and keeps the
// answer as filter state.
package peers

import (
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Keys of the filter-state objects, all *streaminfo.Peer. Envoy keeps the peer
// twice, for expressions and for its FIELD formatter; here one object does both.
const (
	Downstream    = "downstream_peer"
	DownstreamObj = "downstream_peer_obj"
	Upstream      = "upstream_peer"
	UpstreamObj   = "upstream_peer_obj"
)

// SetDownstream keeps p as the downstream peer unless there is one already.
func SetDownstream(fs *streaminfo.FilterState, p *streaminfo.Peer, sharing streaminfo.Sharing) {
	if fs.Get(Downstream) == nil {
		fs.SetStatic(Downstream, p, sharing)
		fs.SetStatic(DownstreamObj, p, sharing)
	}
}

// SetUpstream keeps p as the upstream peer unless there is one already.
func SetUpstream(fs *streaminfo.FilterState, p *streaminfo.Peer, sharing streaminfo.Sharing) {
	if fs.Get(Upstream) == nil {
		fs.SetStatic(Upstream, p, sharing)
		fs.SetStatic(UpstreamObj, p, sharing)
	}
}

// Get returns the peer kept under key, nil if there is none.
func Get(fs *streaminfo.FilterState, key string) *streaminfo.Peer {
	p, _ := fs.Get(key).(*streaminfo.Peer)
	return p
}

// Awaited reports whether the peer under key is still to tell who it is, over
// the connection downstream or, for Upstream, over that to upstream.
func Awaited(info *streaminfo.Info, key string) bool {
	return info.FilterState.Awaits(key) || key == Upstream && info.Upstream.State.Awaits(key)
}

// Lookup asks the table of workloads; it may be nil.
func Lookup(w filters.Workloads, a netip.Addr) *streaminfo.Peer {
	if w == nil || !a.IsValid() {
		return nil
	}
	return w.Peer(a.Unmap().WithZone(""))
}

// UpstreamAddress returns the address of the workload behind the host that was
// picked. It is invalid if there is no host, or if the host is the gateway of
// another network (double HBONE), about which the table says nothing.
func UpstreamAddress(info *streaminfo.Info) netip.Addr {
	u := &info.Upstream
	if _, remote := u.HostMetadata.Namespace("istio")["double_hbone"]; remote {
		return netip.Addr{}
	}
	return u.Address.Addr()
}

// Table of peers that are described by messages instead of the control plane.
// The descriptions come from other workloads, so the table is bounded.
type table struct {
	mu sync.RWMutex
	m  map[string]*streaminfo.Peer
}

const maxInterned = 1024

// dense numbers interned peers above those of the table of workloads.
var dense atomic.Uint32

// intern returns the peer for a description, made by parse on first use; parse
// may return nil. Equal descriptions give the same Peer.
func (t *table) intern(text string, parse func(string) *streaminfo.Peer) *streaminfo.Peer {
	t.mu.RLock()
	p, ok := t.m[text]
	t.mu.RUnlock()
	if ok {
		return p
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, ok := t.m[text]; ok {
		return p
	}
	if t.m == nil || len(t.m) >= maxInterned {
		t.m = map[string]*streaminfo.Peer{}
	}
	text = strings.Clone(text)
	p = parse(text)
	if p != nil {
		p.DenseID = 1<<31 | dense.Add(1)
	}
	t.m[text] = p
	return p
}

// endpointPeers are described by the control plane, but as text.
var endpointPeers table

// FromEndpoint describes a peer by the "istio.workload" metadata of an
// endpoint, "workload;namespace;canonical name;canonical revision;cluster".
func FromEndpoint(md *streaminfo.Metadata) *streaminfo.Peer {
	text, _ := md.Namespace("istio")["workload"].(string)
	if text == "" {
		return nil
	}
	return endpointPeers.intern(text, func(s string) *streaminfo.Peer {
		f := strings.Split(s, ";")
		if len(f) < 5 {
			return nil
		}
		return &streaminfo.Peer{Workload: f[0], Namespace: f[1], CanonicalName: f[2], CanonicalRevision: f[3], ClusterID: f[4]}
	})
}

// Node describes this proxy by what it tells its control plane.
func Node(n *filters.Node) *streaminfo.Peer { return NodeWith(n, nil) }

// NodeWith is Node with those of the labels that have no field of their own.
func NodeWith(n *filters.Node, keep []string) *streaminfo.Peer {
	if n == nil {
		return &streaminfo.Peer{}
	}
	str := func(key string) string { s, _ := n.Metadata[key].(string); return s }
	labels := map[string]any{}
	for k, v := range n.Labels {
		labels[k] = v
	}
	p := FromStruct(map[string]any{
		"NAME": str("NAME"), "NAMESPACE": n.Namespace, "OWNER": str("OWNER"), "WORKLOAD_NAME": n.WorkloadName,
		"CLUSTER_ID": n.ClusterID, "LABELS": labels,
	}, keep)
	p.NetworkID = n.Network
	return p
}
