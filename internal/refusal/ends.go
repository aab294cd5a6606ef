package refusal

import (
	"log/slog"
	"net/netip"
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Workloads is the mesh's table of workloads; filters.Workloads is one.
type Workloads interface {
	// Peer returns the workload that owns addr, nil if unknown.
	Peer(addr netip.Addr) *streaminfo.Peer
}

// Clusters knows what clusters stand for; *upstream.Manager does.
type Clusters interface {
	// ClusterMetadata returns the static metadata of a cluster, nil if unknown.
	ClusterMetadata(name string) *streaminfo.Metadata
}

// Directory describes the ends of a stream in events. Both fields may be nil.
type Directory struct {
	Workloads Workloads
	Clusters  Clusters
}

// Keys of filter state that tell who is at an end.
const (
	downstreamPeer = "downstream_peer"
	upstreamPeer   = "upstream_peer"
	peerPrincipal  = "io.istio.peer_principal"
	localPrincipal = "io.istio.local_principal"
)

// Principal returns the identity of the client: that of the outer tunnel in a
// waypoint, else the one in its certificate.
func Principal(info *streaminfo.Info) string {
	if p := info.FilterState.GetString(peerPrincipal); p != "" {
		return p
	}
	if info.Conn == nil {
		return ""
	}
	return info.Conn.PeerURI()
}

// Peer returns the client's workload as filters found it, nil if they did not.
func Peer(info *streaminfo.Info) *streaminfo.Peer {
	p, _ := info.FilterState.Get(downstreamPeer).(*streaminfo.Peer)
	return p
}

// Source is the attribute "source" of an event; peer may be nil.
func (d Directory) Source(ci *streaminfo.Conn, identity string, peer *streaminfo.Peer) slog.Attr {
	if peer == nil && d.Workloads != nil {
		peer = d.Workloads.Peer(ci.Remote.Addr())
	}
	a := addr(make([]slog.Attr, 0, 6), "address", ci.Remote)
	if ci.DirectRemote != ci.Remote {
		a = addr(a, "direct_address", ci.DirectRemote)
	}
	a = text(a, "identity", identity)
	if peer != nil {
		return group("source", describe(a, peer))
	}
	ns, account := workloadOf(identity)
	return group("source", text(text(a, "namespace", ns), "service_account", account))
}

// workloadOf is what a SPIFFE ID of the mesh says about its workload.
func workloadOf(identity string) (namespace, account string) {
	rest, ok := strings.CutPrefix(identity, "spiffe://")
	if !ok {
		return "", ""
	}
	p := strings.Split(rest, "/")
	if len(p) != 5 || p[1] != "ns" || p[3] != "sa" {
		return "", ""
	}
	return p[2], p[4]
}

// To is where a stream goes, as far as it is known. It holds nothing that
// changes when the stream goes on.
type To struct {
	conn *streaminfo.Conn
	// proxy is what this proxy is called by the client's end.
	proxy, identity string
	peer            *streaminfo.Peer
	address         netip.Addr
	metadata        *streaminfo.Metadata
	cluster, host   string
	failure         string
}

// ToOf returns where the stream of info goes, by now; cluster is that of its
// route, "" without one.
func ToOf(info *streaminfo.Info, cluster string) To {
	u := &info.Upstream
	t := To{
		conn: info.Conn, proxy: info.FilterState.GetString(localPrincipal), address: u.Address.Addr(), metadata: u.ClusterMetadata,
		cluster: cluster, host: u.Host, failure: u.TransportFailureReason,
	}
	t.peer, _ = info.FilterState.Get(upstreamPeer).(*streaminfo.Peer)
	if u.TLS != nil && len(u.TLS.Peer.URISANs) > 0 {
		t.identity = u.TLS.Peer.URISANs[0]
	} else if t.peer != nil {
		t.identity = t.peer.Identity
	}
	if !t.address.IsValid() {
		t.address = info.Conn.Local.Addr()
	}
	if u.ClusterRaw != "" {
		t.cluster = u.ClusterRaw
	}
	return t
}

// Destination is the attribute "destination" of an event.
func (d Directory) Destination(t To) slog.Attr {
	a := make([]slog.Attr, 0, 9)
	if t.conn.LocalName != "" {
		a = text(a, "address", t.conn.LocalName)
	} else {
		a = addr(a, "address", t.conn.Local)
	}
	peer := t.peer
	if peer == nil && d.Workloads != nil && t.address.IsValid() {
		peer = d.Workloads.Peer(t.address)
	}
	if t.identity == "" && peer != nil {
		t.identity = peer.Identity
	}
	a = text(text(a, "identity", t.identity), "proxy_identity", t.proxy)
	if peer != nil {
		a = describe(a, peer)
	} else { // a service that no workload was chosen of
		a = d.service(a, t)
	}
	a = text(a, "cluster", t.cluster)
	a = text(a, "host", t.host)
	return group("destination", text(a, "transport_failure", t.failure))
}

func describe(a []slog.Attr, p *streaminfo.Peer) []slog.Attr {
	a = text(a, "namespace", p.Namespace)
	a = text(a, "workload", p.Workload)
	return text(a, "service", p.CanonicalName)
}

// service names the service that a cluster stands for, as istiod says it in the
// cluster's metadata.
func (d Directory) service(a []slog.Attr, t To) []slog.Attr {
	md := t.metadata
	if md == nil && d.Clusters != nil && t.cluster != "" {
		md = d.Clusters.ClusterMetadata(t.cluster)
	}
	list, _ := md.Namespace("istio")["services"].([]any)
	if len(list) == 0 {
		return a
	}
	s, _ := list[0].(map[string]any)
	ns, _ := s["namespace"].(string)
	name, _ := s["name"].(string)
	return text(text(a, "namespace", ns), "service", name)
}
