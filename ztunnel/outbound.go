package ztunnel

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/workload"
	"github.com/fairlead-mesh/fairlead/proxy/hbone"
)

// nameError says that a host name could not be resolved.
type nameError struct {
	host string
	err  error
}

func (e *nameError) Error() string { return fmt.Sprintf("resolve %s: %v", e.host, e.err) }
func (e *nameError) Unwrap() error { return e.err }

// open connects to host:port, for the application at src. The flow is not nil;
// with an error it has ended.
func (z *Ztunnel) open(ctx context.Context, src netip.AddrPort, host string, port uint16) (netio.Conn, *flow, error) {
	f := &flow{m: z.metrics, log: z.log, start: time.Now(), src: src, srcW: z.self}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	c, err := z.connect(ctx, f, host, port)
	if err != nil {
		f.end(0, 0, err)
		return nil, f, err
	}
	f.open()
	return c, f, nil
}

func (z *Ztunnel) connect(ctx context.Context, f *flow, host string, port uint16) (netio.Conn, error) {
	a, named, err := z.resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	f.dst = netip.AddrPortFrom(a, port)
	var rt route
	switch {
	case named != nil && !a.IsValid():
		rt, err = z.router.toService(named, f.dst) // a service without address
	default:
		rt, err = z.router.route(f.dst)
	}
	f.dstW, f.service = rt.dest, rt.service
	if err != nil {
		return nil, err
	}
	if rt.hostname != "" {
		a, err := z.dns(ctx, rt.hostname)
		if err != nil {
			return nil, err
		}
		rt.addr = netip.AddrPortFrom(a, rt.addr.Port())
	}
	f.dst = rt.addr
	if !rt.tunnel {
		if rt.addr.Addr().IsLoopback() && z.illegal(rt.addr.Port()) {
			return nil, errRecursive
		}
		return z.dialPlain(ctx, rt.addr)
	}
	f.hboneAddr, f.srcID = rt.authority, z.id.String()
	if len(rt.expect) > 0 {
		f.dstID = rt.expect[0]
	}
	t := &hbone.Target{
		Address: rt.addr, Authority: rt.authority, Headers: z.headers(f),
		Key: hbone.PoolKey{Identity: z.id.String(), TLS: strings.Join(rt.expect, ",")},
	}
	return z.dialer.Dial(ctx, t, nil)
}

func (z *Ztunnel) dialPlain(ctx context.Context, a netip.AddrPort) (netio.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	return netio.Dial(ctx, a, dialOptions)
}

// resolve translates what an application asked for: an address, a service's
// name, or any other name. A service without virtual address has the zero Addr.
func (z *Ztunnel) resolve(ctx context.Context, host string) (netip.Addr, *service, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.WithZone("").Unmap(), nil, nil
	}
	s := z.m.serviceShort(host, z.self.Namespace, orElse(z.cfg.ClusterDomain, "cluster.local"))
	if s == nil {
		a, err := z.dns(ctx, host)
		return a, nil, err
	}
	for _, v := range s.VIPs {
		if v.Network == z.m.network && v.Prefix.IsSingleIP() {
			return v.Prefix.Addr(), s, nil
		}
	}
	if z.router.waypointOf(s.Service) != nil {
		return netip.Addr{}, nil, &nameError{host, errors.New("the service has a waypoint but no virtual address to name it by")}
	}
	if s.Mode == workload.LBPassthrough {
		a, err := z.dns(ctx, host)
		return a, nil, err
	}
	return netip.Addr{}, s, nil
}

func (z *Ztunnel) dns(ctx context.Context, host string) (netip.Addr, error) {
	as, err := z.lookup(ctx, "ip", host)
	if err == nil && len(as) == 0 {
		err = errors.New("no address")
	}
	if err != nil {
		return netip.Addr{}, &nameError{host, err}
	}
	return as[rand.IntN(len(as))].Unmap(), nil
}

// headers are what a CONNECT tells about its origin.
func (z *Ztunnel) headers(f *flow) []message.Field {
	h := make([]message.Field, 0, 3)
	if b := baggage(z.self); b != "" {
		h = append(h, message.Field{Name: "baggage", Value: b})
	}
	forwarded := `for="` + f.src.String() + `"`
	if f.service != nil {
		forwarded += ";host=" + f.service.Hostname
	}
	var id [24]byte
	for i := range id {
		id[i] = byte(rand.Uint32())
	}
	trace := "00-" + hex.EncodeToString(id[:16]) + "-" + hex.EncodeToString(id[16:]) + "-00"
	return append(h, message.Field{Name: "forwarded", Value: forwarded}, message.Field{Name: "traceparent", Value: trace})
}

// baggage describes w to the other end of a tunnel.
func baggage(w *workload.Workload) string {
	var b strings.Builder
	for _, x := range [][2]string{
		{"k8s.cluster.name", w.ClusterID},
		{"k8s.namespace.name", w.Namespace},
		{"k8s." + orElse(strings.ToLower(w.Kind), "deployment") + ".name", w.WorkloadName},
		{"service.name", w.CanonicalName},
		{"service.version", w.CanonicalRevision},
		{"cloud.region", w.Region},
		{"cloud.availability_zone", w.Zone},
	} {
		if x[1] == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(x[0] + "=" + x[1])
	}
	return b.String()
}

// relay joins the application's connection and the mesh's until both have ended.
func (z *Ztunnel) relay(app, c netio.Conn, f *flow) {
	o := z.join
	o.OnBytes = f.progress
	received, sent, err := netio.Join(app, c, o)
	f.end(received, sent, err)
}
