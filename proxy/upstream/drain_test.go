package upstream

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// A connection is among those of its pool before its codec is there.
func TestAConnectionInTheMakingCanBeLookedAtAndDrained(t *testing.T) {
	for name, act := range map[string]func(c *Cluster){
		"the process ends":  func(c *Cluster) { c.m.Close() },
		"the host is gone":  func(c *Cluster) { c.update(assignment("10.0.0.2:80")) },
		"a host has come":   func(c *Cluster) { c.update(assignment("10.0.0.1:80", "10.0.0.2:80")) },
		"memory is told":    func(c *Cluster) { c.m.Memory() },
		"nothing but close": func(c *Cluster) {},
	} {
		t.Run(name, func(t *testing.T) {
			o := &origin{}
			entered, goOn := make(chan struct{}), make(chan struct{})
			m := newTestManager(t, o, func(opt *Options) {
				opt.HTTP1 = func(c netio.Conn, cfg *transport.ClientConfig) transport.ClientConn {
					close(entered)
					<-goOn
					return o.client(1)(c, cfg)
				}
			})
			spec := cluster("a", "10.0.0.1:80")
			spec.LB.RenewOnChange = true
			m.Apply([]*xdsresource.Cluster{spec})
			c := m.Cluster("a")
			h := pick(t, c)
			ctx, cancel := context.WithCancel(t.Context())
			left := make(chan error, 1)
			go func() {
				_, err := c.NewStream(ctx, h, &ConnectOptions{})
				left <- err
			}()
			<-entered
			cancel()
			if err := <-left; !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			act(c)
			close(goOn)
			p := c.poolFor(h, &ConnectOptions{})
			until(t, "the dial ends", func() bool {
				p.mu.Lock()
				defer p.mu.Unlock()
				return p.connecting == 0 && (len(p.ready) == 1 || len(p.all) == 0)
			})
			m.Close()
			until(t, "the connection is closed", func() bool { return c.breakers[0].connections.n.Load() == 0 && h.st.cxActive.Load() == 0 })
			idle(t, c)
		})
	}
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not so after 10 s", what)
		}
	}
}

func TestAPoolMadeWhileItsHostIsRemovedIsDrained(t *testing.T) {
	o := &origin{}
	c := serving(t, o, cluster("a", "10.0.0.1:80"))
	h := pick(t, c)
	p := c.newPool(h, poolKey{proto: http1})
	c.update(assignment("10.0.0.2:80"))
	if got := h.st.install(&h.st.fast[0][http1], p); got != p || !p.draining {
		t.Fatal("the pool keeps its connections, though nobody will drain it")
	}
	finish(t, mustOpen(t, c, h))
	if n := c.breakers[0].connections.n.Load(); n != 0 {
		t.Errorf("%d connections to a host that is gone", n)
	}
}

func mustOpen(t *testing.T, c *Cluster, h *Host) *Stream {
	t.Helper()
	s, err := c.NewStream(context.Background(), h, &ConnectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Who waits may be given one of several connections that are ready.
func TestTheOthersAreDrainedOnceNobodyWaits(t *testing.T) {
	o := &origin{}
	c := serving(t, o, cluster("a", "10.0.0.1:80"))
	h := pick(t, c)
	s1, s2 := mustOpen(t, c, h), mustOpen(t, c, h)
	finish(t, s1)
	finish(t, s2)
	p := c.poolFor(h, &ConnectOptions{})
	w := &waiter{ch: make(chan result, 1)}
	p.mu.Lock()
	p.waiters.PushBack(w) // is about to be given one
	p.mu.Unlock()
	c.update(assignment("10.0.0.2:80"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _ = p.wait(ctx, h, &ConnectOptions{}) // may be given one, too
	p.abandon(w)
	p.served()
	until(t, "all connections are closed", func() bool { return c.breakers[0].connections.n.Load() == 0 })
	idle(t, c)
}

// A connection may end before its constructor returns.
func TestNoLongestLifeOfAConnectionThatHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, reg := &origin{}, &stats.Registry{}
		m := newTestManager(t, o, func(opt *Options) {
			opt.Stats = reg.Scope("")
			opt.HTTP1 = func(c netio.Conn, cfg *transport.ClientConfig) transport.ClientConn {
				cc := o.client(1)(c, cfg)
				cc.Close(errors.New("ended"))
				return cc
			}
		})
		defer m.Close()
		spec := cluster("a", "10.0.0.1:80")
		spec.HTTP.MaxConnectionDuration = time.Second
		m.Apply([]*xdsresource.Cluster{spec})
		c := m.Cluster("a")
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		o.mu.Lock()
		o.gate = make(chan struct{}, 1)
		o.gate <- struct{}{} // one dial
		gate := o.gate
		o.mu.Unlock()
		_, err := c.NewStream(ctx, pick(t, c), &ConnectOptions{})
		if err == nil {
			t.Error("a stream on a connection that has ended")
		}
		close(gate)
		time.Sleep(2 * time.Second)
		if n := c.stats().cxMaxDuration.Value(); n != 0 {
			t.Errorf("%d connections ended by their longest life", n)
		}
	})
}

// The PROXY protocol gives each client a pool of its own.
func TestAnEmptyPoolOfAnUnusualKeyIsForgotten(t *testing.T) {
	client := func(n uint16) *ConnectOptions {
		return &ConnectOptions{Conn: &streaminfo.Conn{Remote: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), n), Local: netip.MustParseAddrPort("192.0.2.2:80")}}
	}
	o := &origin{}
	spec := cluster("a", "10.0.0.1:80")
	spec.TransportSocket.ProxyProtocol = 1
	c := serving(t, o, spec)
	h := pick(t, c)
	pools := func() int {
		h.st.mu.Lock()
		defer h.st.mu.Unlock()
		return len(h.st.keyed)
	}
	use := func(p *pool, n uint16) {
		t.Helper()
		s, err := p.wait(t.Context(), h, client(n))
		if err != nil {
			t.Fatal(err)
		}
		finish(t, s)
	}
	for n := range uint16(10) {
		use(c.poolFor(h, client(n)), n)
	}
	if pools() != 10 {
		t.Errorf("%d pools for 10 clients", pools())
	}
	held := c.poolFor(h, client(3))
	o.mu.Lock()
	conns := slices.Clone(o.conns)
	o.refuse = errors.New("refused")
	o.mu.Unlock()
	for _, cc := range conns {
		cc.Close(nil)
	}
	if _, err := c.NewStream(t.Context(), h, client(99)); err == nil {
		t.Error("a refused connection can be used")
	}
	until(t, "the pools are forgotten", func() bool { return pools() == 0 })
	o.mu.Lock()
	o.refuse = nil
	o.mu.Unlock()
	use(held, 3) // by who got it before
	until(t, "its connection is closed", func() bool { return c.breakers[0].connections.n.Load() == 0 })
	if n := pools(); n != 0 {
		t.Errorf("%d pools", n)
	}
	idle(t, c)
}
