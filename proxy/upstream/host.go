package upstream

import (
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Host is one endpoint of a cluster. Its identity (address, endpoint ID)
// survives EDS updates, with its pools and outlier state. A Host is immutable:
// an update that changes weight, locality or metadata makes a new Host for the
// same identity, see Same.
type Host struct {
	Endpoint xdsresource.Endpoint
	// Locality is "region/zone/sub_zone", "" if unknown.
	Locality string
	Priority uint32

	region, zone, subZone string
	name                  string
	socket                *xdsresource.TransportSocket
	st                    *hostState
}

// String returns the host as access logs name it: "ip:port" or
// "envoy://listener/endpoint".
func (h *Host) String() string { return h.name }

// Same reports whether h and o are the same endpoint, perhaps as described by
// different updates.
func (h *Host) Same(o *Host) bool { return h != nil && o != nil && h.st == o.st }

// Address returns the IP address of h: for an internal endpoint that of its
// endpoint ID if it has the form "ip:port", else the zero AddrPort.
func (h *Host) Address() netip.AddrPort { return h.st.address }

// Internal returns the internal listener that h names, "" if it is no internal
// endpoint.
func (h *Host) Internal() string { return h.Endpoint.InternalListener }

// Secure reports whether connections to h use TLS of this cluster's own.
func (h *Host) Secure() bool { return h.socket.TLS != nil }

// hostKey is a host's identity inside its cluster.
type hostKey struct {
	addr               netip.AddrPort
	listener, endpoint string
	pipe               string
	dns                string
}

func keyOf(e *xdsresource.Endpoint) hostKey {
	k := hostKey{addr: e.Address, listener: e.InternalListener, endpoint: e.EndpointID, pipe: e.Pipe}
	if !e.Address.IsValid() && e.HostName != "" {
		k.dns = e.HostName
	}
	return k
}

func (k *hostKey) String() string {
	switch {
	case k.listener != "":
		return "envoy://" + k.listener + "/" + k.endpoint
	case k.pipe != "":
		return k.pipe
	case k.addr.IsValid():
		return k.addr.String()
	}
	return k.dns
}

// hostState is what a host keeps across updates. It is safe for concurrent
// use.
type hostState struct {
	key     hostKey
	address netip.AddrPort
	since   time.Time

	rqActive                               atomic.Int64
	rqTotal, rqSuccess, rqError, rqTimeout atomic.Uint64
	cxTotal, cxFail                        atomic.Uint64
	cxActive, pending                      atomic.Int64
	lastUsed                               atomic.Int64 // unix nanoseconds, for ORIGINAL_DST
	removed                                atomic.Bool

	outlier monitor

	// fast holds the pools of the usual keys: [priority][protocol].
	fast  [2][protocols]atomic.Pointer[pool]
	mu    sync.Mutex
	keyed map[poolKey]*pool
}

func newHostState(k hostKey) *hostState {
	st := &hostState{key: k, since: time.Now(), address: k.addr}
	if k.listener != "" {
		st.address, _ = netip.ParseAddrPort(k.endpoint)
	}
	st.outlier.rate.Store(-1)
	return st
}

// newHost builds the Host for e. prev, if not nil, lends its state; it is
// returned itself if nothing changed.
func (c *Cluster) newHost(e *xdsresource.Endpoint, l *xdsresource.LocalityEndpoints, prev *Host) *Host {
	if prev != nil && prev.Priority == l.Priority && prev.region == l.Region && prev.zone == l.Zone && prev.subZone == l.SubZone &&
		reflect.DeepEqual(&prev.Endpoint, e) {
		return prev
	}
	h := &Host{Endpoint: *e, Priority: l.Priority, region: l.Region, zone: l.Zone, subZone: l.SubZone, socket: c.socketFor(e)}
	if l.Region != "" || l.Zone != "" || l.SubZone != "" {
		h.Locality = strings.TrimRight(l.Region+"/"+l.Zone+"/"+l.SubZone, "/")
	}
	if prev != nil && prev.socket == h.socket && c.samePassthrough(prev, h) {
		h.st, h.name = prev.st, prev.name
		return h
	}
	k := keyOf(e)
	h.st, h.name = newHostState(k), k.String()
	return h
}

// socketFor chooses the transport socket of an endpoint: the first of
// transport_socket_matches whose labels its metadata carries, else the
// cluster's.
func (c *Cluster) socketFor(e *xdsresource.Endpoint) *xdsresource.TransportSocket {
	have := e.Metadata.Namespace("envoy.transport_socket_match")
next:
	for i := range c.spec.Matches {
		m := &c.spec.Matches[i]
		for k, v := range m.Match {
			w, ok := have[k]
			if !ok || !reflect.DeepEqual(v, w) {
				continue next
			}
		}
		return &m.Socket
	}
	return &c.spec.TransportSocket
}

// samePassthrough reports whether a and b would send the same metadata across
// an internal hop, so that pooled connections of one serve the other.
func (c *Cluster) samePassthrough(a, b *Host) bool {
	if b.socket.Internal == nil {
		return true
	}
	for _, p := range b.socket.Internal.Passthrough {
		if p.Host && !reflect.DeepEqual(a.Endpoint.Metadata.Namespace(p.Name), b.Endpoint.Metadata.Namespace(p.Name)) {
			return false
		}
	}
	return true
}

// eachPool calls f for every pool of st.
func (st *hostState) eachPool(f func(*pool)) {
	for i := range st.fast {
		for j := range st.fast[i] {
			if p := st.fast[i][j].Load(); p != nil {
				f(p)
			}
		}
	}
	st.mu.Lock()
	ps := make([]*pool, 0, len(st.keyed))
	for _, p := range st.keyed {
		ps = append(ps, p)
	}
	st.mu.Unlock()
	for _, p := range ps {
		f(p)
	}
}

// drain lets the connections of a removed host end with their last stream.
func (st *hostState) drain() {
	st.removed.Store(true)
	st.eachPool((*pool).drain)
}
