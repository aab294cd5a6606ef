package ztunnel

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/hbone"
)

// serveHBONE serves one connection of a peer. It returns when that is idle.
func (z *Ztunnel) serveHBONE(ctx context.Context, c netio.Conn) {
	src, local := c.RemoteAddr(), c.LocalAddr()
	hctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	tc, err := netio.ServerTLS(hctx, c, z.tlsServer)
	cancel()
	if err != nil {
		z.untrack(c)
		z.log.Warn("connection failed", "src.addr", src.String(), "dst.addr", local.String(), "direction", "inbound", "error", err.Error())
		return
	}
	peer, err := identity.IDOf(tc.TLS().PeerCertificates[0])
	if err != nil { // cannot be: the handshake has verified it
		tc.Reset()
		z.untrack(c)
		return
	}
	s := hbone.NewServer(tc, &hbone.ServerConfig{}, func(r *hbone.Request) { z.serveTunnel(ctx, r, peer, src, local) })
	z.mu.Lock()
	z.servers[s] = struct{}{}
	draining := z.draining
	z.mu.Unlock()
	z.wg.Add(1)
	s.Serve(func() {
		z.mu.Lock()
		delete(z.servers, s)
		z.mu.Unlock()
		z.untrack(c)
		z.wg.Done()
	})
	if draining {
		s.Drain()
	}
}

// serveTunnel decides about one CONNECT: authority, policy, application, 200.
func (z *Ztunnel) serveTunnel(ctx context.Context, r *hbone.Request, peer identity.ID, src, local netip.AddrPort) {
	f := &flow{
		m: z.metrics, log: z.log, start: time.Now(), inbound: true, src: src, dst: local, srcID: peer.String(), dstID: z.id.String(),
		srcW: z.m.byAddr[netAddr{z.m.network, src.Addr().Unmap()}], dstW: z.self,
	}
	if w := f.srcW; w != nil && w.Identity() != f.srcID {
		f.srcW = nil // another workload behind the same address
	}
	up, err := z.openInbound(ctx, r, f, peer)
	if err != nil {
		f.end(0, 0, err)
		_ = r.Reject(statusOf(err))
		return
	}
	var fields []message.Field
	if b := baggage(z.self); b != "" {
		fields = append(fields, message.Field{Name: "baggage", Value: b})
	}
	down, err := r.Accept(fields...)
	if err != nil {
		up.Reset()
		f.end(0, 0, err)
		return
	}
	f.open()
	z.track(up)
	o := z.join
	o.OnBytes = f.progress
	z.wg.Add(1)
	netio.JoinAsync(down, up, o, func(received, sent uint64, err error) {
		z.untrack(up)
		f.end(received, sent, err)
		z.wg.Done()
	})
}

func (z *Ztunnel) openInbound(ctx context.Context, r *hbone.Request, f *flow, peer identity.ID) (netio.Conn, error) {
	if z.overload.RefusesConnections() {
		return nil, &inboundError{503, errors.New("memory is nearly used up: no new tunnels")}
	}
	f.hboneAddr = r.Authority()
	if !r.IsConnect() {
		return nil, &inboundError{400, errors.New("the request is not CONNECT")}
	}
	// The string belongs to the request, which may be gone when it is logged.
	f.hboneAddr = string([]byte(f.hboneAddr))
	to, err := z.inbound.target(f.hboneAddr, f.dst.Addr())
	if err != nil {
		return nil, err
	}
	if host, _, err := splitAuthority(f.hboneAddr); err == nil {
		if s := z.m.serviceNamed(host, z.self.Namespace); s != nil {
			f.service = s.Service
		}
	}
	policyTo := to
	if z.cfg.Upstream.IsValid() && len(z.self.Addresses) > 0 {
		// Policies speak of the workload's address, not of where the
		// application happens to listen.
		policyTo = netip.AddrPortFrom(pickAddr(z.self, nil, f.dst.Addr()), to.Port())
	}
	if err := z.m.authorize(z.self, &flowInfo{source: f.src.Addr().Unmap(), id: peer, destination: policyTo}); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	r.OnReset(func(error) { cancel() })
	return netio.Dial(ctx, to, dialOptions)
}

var dialOptions = netio.DialOptions{KeepaliveIdle: 180 * time.Second, KeepaliveInterval: 180 * time.Second, KeepaliveCount: 9}
