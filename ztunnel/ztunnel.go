// Package ztunnel is a small layer-4 proxy of Istio's ambient mesh that needs no
// privileges: applications reach the mesh by SOCKS5, HTTP CONNECT or forwarded
// ports, and peers reach the application by HBONE. The mesh is described by a
// local file.
package ztunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/admin"
	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/overload"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/workload"
	"github.com/fairlead-mesh/fairlead/proxy/hbone"
)

const (
	handshakeTimeout = 10 * time.Second
	connectTimeout   = 10 * time.Second
	openTimeout      = 30 * time.Second
	defaultDrain     = 5 * time.Second
	defaultIdle      = time.Hour
)

var (
	errDrain     = errors.New("connection closed due to connection drain")
	errHandshake = errors.New("the client did not say in time where it wants to go")
)

// Ztunnel is one workload's proxy.
type Ztunnel struct {
	cfg     *Config
	m       *mesh
	self    *workload.Workload
	id      identity.ID
	source  identity.Source
	follow  func(context.Context) error // keeps source up to date; may be nil
	log     *slog.Logger
	metrics *metrics
	dialer  *hbone.Dialer
	router  *router
	inbound *inboundTable
	join    netio.JoinOptions
	// overload refuses connections while memory is short; nil without a limit.
	overload *overload.Monitor

	hbone     *netio.Listener
	fronts    []front
	stats     *admin.Server
	ports     map[uint16]bool
	lookup    func(ctx context.Context, network, host string) ([]netip.Addr, error)
	wg        sync.WaitGroup
	mu        sync.Mutex
	conns     map[netio.Conn]struct{}
	servers   map[*hbone.Server]struct{}
	draining  bool
	tlsServer *tls.Config
}

// front is a listener for applications.
type front struct {
	l *netio.Listener
	f func(context.Context, netio.Conn)
}

// New binds the listeners; Run serves. An error leaves nothing open.
func New(c *Config) (*Ztunnel, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	z := &Ztunnel{
		cfg: c, m: c.mesh, self: c.mesh.find(c.Namespace, c.Name, c.ServiceAccount), log: c.Logger, source: c.Source,
		conns: make(map[netio.Conn]struct{}), servers: make(map[*hbone.Server]struct{}),
		ports: map[uint16]bool{15001: true, 15006: true, hbonePort: true}, lookup: net.DefaultResolver.LookupNetIP,
	}
	if z.log == nil {
		z.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if z.id, err = identity.ParseID(z.self.Identity()); err != nil {
		return nil, fmt.Errorf("workload: %w", err)
	}
	if z.source == nil {
		if err := z.openIdentity(); err != nil {
			return nil, err
		}
	}
	registry := c.Registry
	if registry == nil {
		registry = &stats.Registry{}
	}
	z.metrics = newMetrics(registry)
	z.tlsServer = serverTLS(z.source, z.id)
	z.join.IdleTimeout = c.IdleTimeout
	if c.IdleTimeout == 0 {
		z.join.IdleTimeout = defaultIdle
	} else if c.IdleTimeout < 0 {
		z.join.IdleTimeout = 0
	}
	z.router = &router{m: z.m, self: z.self, illegal: z.illegal, intn: randomBelow}
	z.inbound = &inboundTable{m: z.m, self: z.self, upstream: c.Upstream, illegal: z.illegal}
	if err := z.listen(registry); err != nil {
		z.closeListeners()
		return nil, err
	}
	z.dialer = hbone.NewDialer(hbone.Config{TLS: clientTLS(z.source)})
	return z, nil
}

func (z *Ztunnel) illegal(port uint16) bool { return z.ports[port] }

func (z *Ztunnel) openIdentity() error {
	if z.cfg.Identity.DevCA {
		ca, err := identity.NewDevCA(z.id.TrustDomain)
		if err != nil {
			return fmt.Errorf("identity: %w", err)
		}
		r := identity.NewRotator(identity.RotatorConfig{Fetch: ca.Issuer(z.id, 0), Logger: z.log})
		z.source, z.follow = r, r.Run
		z.log.Warn("the development CA of this process is trusted by nobody else")
		return nil
	}
	i := z.cfg.Identity
	f, err := identity.NewFiles(i.Certificate, i.Key, i.Roots, z.log)
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	if got, err := identity.IDOf(f.Certificate().Leaf); err != nil || got != z.id {
		return fmt.Errorf("identity: the certificate is for %v (%w), but the workload is %s", got, err, z.id)
	}
	z.source, z.follow = f, f.Run
	return nil
}

func (z *Ztunnel) listen(registry *stats.Registry) (err error) {
	open := func(what string, a netip.AddrPort, o netio.ListenOptions) *netio.Listener {
		if err != nil || !a.IsValid() {
			return nil
		}
		l, e := netio.Listen(a, o)
		if e != nil {
			err = fmt.Errorf("listeners.%s: %w", what, e)
			return nil
		}
		z.ports[l.Addr().Port()] = true
		return l
	}
	z.hbone = open("hbone", z.cfg.HBONE, netio.ListenOptions{ReusePort: z.cfg.ReusePort})
	if l := open("socks5", z.cfg.SOCKS5, netio.ListenOptions{}); l != nil {
		z.fronts = append(z.fronts, front{l, z.serveSOCKS})
	}
	if l := open("connect", z.cfg.Connect, netio.ListenOptions{}); l != nil {
		z.fronts = append(z.fronts, front{l, z.serveConnect})
	}
	for _, w := range z.cfg.Forwards {
		if l := open("forward", w.Listen, netio.ListenOptions{}); l != nil {
			z.fronts = append(z.fronts, front{l, z.forwarder(w.Destination)})
		}
	}
	if err != nil || !z.cfg.Stats.IsValid() {
		return err
	}
	z.ports[z.cfg.Stats.Port()] = true
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) { _ = registry.WritePrometheus(w) })
	mux.Handle("GET /healthz/ready", admin.Probe(z.ready))
	z.stats, err = admin.Serve(z.cfg.Stats.String(), mux, z.log)
	return err
}

func (z *Ztunnel) ready() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.draining {
		return errors.New("draining")
	}
	if z.source.Certificate() == nil {
		return errNoCertificate
	}
	return nil
}

func (z *Ztunnel) closeListeners() {
	if z.hbone != nil {
		_ = z.hbone.Close()
	}
	for _, f := range z.fronts {
		_ = f.l.Close()
	}
}

// Addr is where the listener "hbone", "socks5", "connect" or "forward" (the
// first) is bound; the zero AddrPort if there is none.
func (z *Ztunnel) Addr(what string) netip.AddrPort {
	if what == "hbone" && z.hbone != nil {
		return z.hbone.Addr()
	}
	i := 0
	for _, x := range []struct {
		name string
		is   bool
	}{{"socks5", z.cfg.SOCKS5.IsValid()}, {"connect", z.cfg.Connect.IsValid()}, {"forward", len(z.cfg.Forwards) > 0}} {
		if x.is && x.name == what {
			return z.fronts[i].l.Addr()
		}
		if x.is {
			i++
		}
	}
	return netip.AddrPort{}
}

// Run serves until ctx ends, then drains: it stops accepting, sends GOAWAY, and
// cuts what is still open after DrainTime. It is called once.
func (z *Ztunnel) Run(ctx context.Context) error {
	// Flows outlive ctx; work ends with them.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	z.overload = overload.New(overload.Options{Logger: z.log})
	z.wg.Go(func() { z.overload.Run(work) })
	if z.follow != nil {
		z.wg.Go(func() { _ = z.follow(work) })
	}
	var accepting sync.WaitGroup
	if z.hbone != nil {
		accepting.Go(func() { z.accept(z.hbone, func(c netio.Conn) { z.serveHBONE(work, c) }) })
	}
	for _, f := range z.fronts {
		accepting.Go(func() { z.accept(f.l, func(c netio.Conn) { f.f(work, c) }) })
	}
	<-ctx.Done()
	z.closeListeners()
	accepting.Wait()
	z.drain()
	stop()
	z.cut()
	z.wg.Wait()
	z.dialer.Close()
	return z.closeStats()
}

func (z *Ztunnel) closeStats() error {
	if z.stats == nil {
		return nil
	}
	return z.stats.Close()
}

func (z *Ztunnel) accept(l *netio.Listener, serve func(netio.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			if !errors.Is(err, netio.ErrClosed) {
				z.log.Error("accept failed", "listener", l.Addr().String(), "error", err)
			}
			return
		}
		if z.overload.RefusesConnections() {
			c.Reset()
			continue
		}
		z.track(c)
		z.wg.Go(func() { serve(c) })
	}
}

// track makes c be cut at the end of a drain; untrack forgets it.
func (z *Ztunnel) track(c netio.Conn) {
	z.mu.Lock()
	z.conns[c] = struct{}{}
	z.mu.Unlock()
}

func (z *Ztunnel) untrack(c netio.Conn) {
	z.mu.Lock()
	delete(z.conns, c)
	z.mu.Unlock()
}

// drain waits for flows to end by themselves, at most DrainTime.
func (z *Ztunnel) drain() {
	z.mu.Lock()
	z.draining = true
	servers := slices.Collect(maps.Keys(z.servers))
	z.mu.Unlock()
	for _, s := range servers {
		s.Drain()
	}
	limit := z.cfg.DrainTime
	if limit == 0 {
		limit = defaultDrain
	}
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		z.mu.Lock()
		left := len(z.conns) + len(z.servers)
		z.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			z.log.Warn("drain time is over, cutting connections", "connections", left)
			return
		}
	}
}

func (z *Ztunnel) cut() {
	z.mu.Lock()
	conns := slices.Collect(maps.Keys(z.conns))
	servers := slices.Collect(maps.Keys(z.servers))
	z.mu.Unlock()
	for _, c := range conns {
		c.Interrupt(errDrain)
	}
	for _, s := range servers {
		s.Close(errDrain)
	}
}
