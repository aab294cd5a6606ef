package upstream

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// dynamicHosts are the hosts of a cluster that learns them from its traffic:
// ORIGINAL_DST, where the stream names an address, and dynamic_forward_proxy,
// where it names a host. Hosts that were not used for a while are dropped.
type dynamicHosts struct {
	c *Cluster

	mu     sync.RWMutex
	byAddr map[dynamicKey]*Host
	timer  *time.Timer
	closed bool
	// names is nil for ORIGINAL_DST.
	names *nameCache
}

// dynamicKey tells hosts apart; name is set for dynamic_forward_proxy only.
type dynamicKey struct {
	addr netip.AddrPort
	name string
}

func newDynamicHosts(c *Cluster) *dynamicHosts {
	d := &dynamicHosts{c: c, byAddr: map[dynamicKey]*Host{}}
	if c.spec.Discovery == xdsresource.DiscoveryDynamicForwardProxy {
		d.names = newNameCache(c)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.timer = time.AfterFunc(d.interval(), d.sweep)
	return d
}

// interval is cleanup_interval, 5 s by default, as in Envoy.
func (d *dynamicHosts) interval() time.Duration {
	if d.c.spec.CleanupInterval > 0 {
		return d.c.spec.CleanupInterval
	}
	return 5 * time.Second
}

func (d *dynamicHosts) count() int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return len(d.byAddr)
}

func (d *dynamicHosts) hosts() []*Host {
	d.mu.RLock()
	defer d.mu.RUnlock()
	out := make([]*Host, 0, len(d.byAddr))
	for _, h := range d.byAddr {
		out = append(out, h)
	}
	return out
}

func (d *dynamicHosts) pick(p *PickContext) (*Host, error) {
	if d.c.spec.Discovery == xdsresource.DiscoveryDynamicForwardProxy {
		return d.pickName(p)
	}
	addr, ok := d.destination(p)
	if !ok {
		s := d.c.stats()
		s.originalDstBad.Inc()
		s.cxNoneHealthy.Inc()
		return nil, ErrNoHealthyHost
	}
	if port := d.c.spec.OriginalDst.PortOverride; port != 0 {
		addr = netip.AddrPortFrom(addr.Addr(), uint16(port))
	}
	return d.host(addr, "")
}

// originalDstKey is the filter-state object by which filters override the
// destination.
const originalDstKey = "envoy.network.transport_socket.original_dst_address"

// destination finds where the stream was going, in Envoy's order: filter state,
// metadata, header, original destination of the connection.
func (d *dynamicHosts) destination(p *PickContext) (netip.AddrPort, bool) {
	o := &d.c.spec.OriginalDst
	v := ""
	if p.Info != nil {
		v = p.Info.FilterState.GetString(originalDstKey)
	} else if p.Conn != nil {
		v = p.Conn.FilterState.GetString(originalDstKey)
	}
	if v != "" {
		if a, err := netip.ParseAddrPort(v); err == nil {
			return a, true
		}
		return netip.AddrPort{}, false
	}
	if o.MetadataNS != "" {
		if a, ok := d.fromMetadata(p); ok {
			return a, a.IsValid()
		}
	}
	if o.UseHTTPHeader && p.Stream != nil {
		name := o.HTTPHeader
		if name == "" {
			name = "x-envoy-original-dst-host"
		}
		if v, ok := p.Stream.Request.Lookup(name); ok {
			if a, err := netip.ParseAddrPort(v); err == nil {
				return a, true
			}
			d.c.stats().originalDstBad.Inc()
		}
	}
	if p.Conn == nil {
		return netip.AddrPort{}, false
	}
	return unmap(p.Conn.Local), p.Conn.Local.IsValid()
}

// fromMetadata reads metadata_key from the stream's and then the connection's
// dynamic metadata. ok without a valid address means that it was malformed.
func (d *dynamicHosts) fromMetadata(p *PickContext) (addr netip.AddrPort, ok bool) {
	o := &d.c.spec.OriginalDst
	var v any
	found := false
	if p.Info != nil {
		v, found = p.Info.Metadata.Lookup(o.MetadataNS, o.MetadataPath...)
	}
	if !found && p.Conn != nil {
		v, found = p.Conn.Metadata.Lookup(o.MetadataNS, o.MetadataPath...)
	}
	s, isString := v.(string)
	if !found || !isString || s == "" {
		return netip.AddrPort{}, false
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, true
	}
	return a, true
}

// host returns the host for addr, made on first use.
func (d *dynamicHosts) host(addr netip.AddrPort, name string) (*Host, error) {
	k := dynamicKey{addr, name}
	d.mu.RLock()
	h := d.byAddr[k]
	d.mu.RUnlock()
	if h == nil {
		d.mu.Lock()
		if h = d.byAddr[k]; h == nil {
			e := xdsresource.Endpoint{Address: addr, DisplayHost: strings.Clone(name), Weight: 1}
			h = d.c.newHost(&e, &xdsresource.LocalityEndpoints{}, nil)
			if d.closed {
				h.st.removed.Store(true) // nobody will drain it
			} else {
				d.byAddr[dynamicKey{addr, e.DisplayHost}] = h
			}
		}
		d.mu.Unlock()
	}
	h.st.lastUsed.Store(time.Now().UnixNano())
	if h.st.outlier.ejected.Load() {
		d.c.stats().cxNoneHealthy.Inc()
		return nil, ErrNoHealthyHost
	}
	return h, nil
}

// sweep drops hosts that carried nothing since the last two sweeps.
func (d *dynamicHosts) sweep() {
	now := time.Now()
	limit := now.Add(-d.interval()).UnixNano()
	var gone []*Host
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return
	}
	for k, h := range d.byAddr {
		if h.st.lastUsed.Load() < limit && h.st.rqActive.Load() == 0 && h.st.cxActive.Load() == 0 && h.st.pending.Load() == 0 {
			delete(d.byAddr, k)
			gone = append(gone, h)
		}
	}
	d.timer.Reset(d.interval())
	d.mu.Unlock()
	for _, h := range gone {
		if d.c.detector != nil {
			d.c.detector.forget(h)
		}
		h.st.drain()
	}
}

func (d *dynamicHosts) close() {
	d.mu.Lock()
	d.closed = true
	d.timer.Stop()
	d.mu.Unlock()
	if d.names != nil {
		d.names.close()
	}
	for _, h := range d.hosts() {
		h.st.drain()
	}
}

// ErrDNS is why a name of a dynamic_forward_proxy cluster has no address: flag
// DF.
var ErrDNS = errors.New("dns resolution failure")

// dynamicPortKey is the filter-state object by which sni_dynamic_forward_proxy
// says which port of the named host is meant.
const dynamicPortKey = "envoy.upstream.dynamic_port"

// pickName resolves the stream's :authority. It blocks while the name is
// resolved for the first time.
func (d *dynamicHosts) pickName(p *PickContext) (*Host, error) {
	name, port := "", uint16(d.c.spec.DNS.Port)
	ctx := d.c.ctx
	if p.Stream != nil {
		name, ctx = p.Stream.Request.Get(message.Authority), p.Stream.Context()
		if port == 0 {
			port = 80
		}
	} else if p.Conn != nil {
		name = p.Conn.RequestedServerName
		if n, err := strconv.ParseUint(p.Conn.FilterState.GetString(dynamicPortKey), 10, 16); err == nil {
			port = uint16(n)
		}
	}
	host := hostOf(name)
	if i := len(host); i < len(name) && !strings.HasSuffix(name, "]") {
		n, err := strconv.ParseUint(name[strings.LastIndexByte(name, ':')+1:], 10, 16)
		if err != nil {
			return nil, ErrNoHealthyHost
		}
		port = uint16(n)
	}
	if host == "" || port == 0 {
		return nil, ErrNoHealthyHost
	}
	addr, err := d.names.resolve(ctx, strings.ToLower(host))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDNS, host, err)
	}
	return d.host(netip.AddrPortFrom(addr, port), host)
}
