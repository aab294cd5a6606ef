package hbone

import (
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

func TestStreamsShareAConnection(t *testing.T) {
	p := newPeer(t, echo)
	d := p.dialer(t, Config{})
	for range 20 {
		c := mustDial(t, d, target("a:1"))
		roundTrip(t, c, "x")
		defer c.Close()
	}
	if n := p.opened.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	if c, s := d.Stats(); c != 1 || s != 20 {
		t.Error(c, s)
	}
}

func TestKeysSeparateConnections(t *testing.T) {
	p := newPeer(t, echo)
	d := p.dialer(t, Config{})
	keys := []PoolKey{
		{},
		{Identity: "a"},
		{Identity: "b"},
		{Identity: "a", TLS: "x"},
		{Identity: "a", TLS: "y"},
		{Identity: "a", TLS: "x", Source: netip.MustParseAddr("10.0.0.7")},
		{Identity: "a", TLS: "x", Source: netip.MustParseAddr("10.0.0.8")},
	}
	for range 2 {
		for _, k := range keys {
			tgt := target("a:1")
			tgt.Key = k
			c := mustDial(t, d, tgt)
			roundTrip(t, c, "x")
			_ = c.Close()
		}
	}
	if n := p.opened.Load(); int(n) != len(keys) {
		t.Errorf("%d connections for %d keys", n, len(keys))
	}
	if o := p.options[5]; o.Source != netip.MustParseAddrPort("10.0.0.7:0") || o.KeepaliveIdle != 180*time.Second {
		t.Errorf("%+v", o)
	}
}

func TestOneConnectionIsMadeForManyCallers(t *testing.T) {
	p := newPeer(t, echo)
	p.gate = make(chan struct{})
	d := p.dialer(t, Config{})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			c, err := d.Dial(t.Context(), target("a:1"), nil)
			if err != nil {
				t.Error(err)
				return
			}
			_ = c.Close()
		})
	}
	time.Sleep(20 * time.Millisecond)
	close(p.gate)
	wg.Wait()
	if n := p.opened.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestAFullConnectionIsJoinedByAnother(t *testing.T) {
	p := newPeer(t, echo)
	d := p.dialer(t, Config{})
	var cs []netio.Conn
	for range 250 {
		cs = append(cs, mustDial(t, d, target("a:1")))
	}
	if n, s := d.Stats(); n != 3 || s != 250 {
		t.Error(n, s)
	}
	for _, c := range cs {
		_ = c.Close()
	}
	waitFor(t, func() bool { _, s := d.Stats(); return s == 0 })
	for range 100 {
		_ = mustDial(t, d, target("a:1")).Close()
	}
	if n := p.opened.Load(); n != 3 {
		t.Errorf("%d connections", n)
	}
}

func TestThePeersLimitHolds(t *testing.T) {
	p := newPeer(t, echo)
	p.cfg.MaxStreams = 10
	d := p.dialer(t, Config{})
	for range 35 {
		c := mustDial(t, d, target("a:1"))
		roundTrip(t, c, "x")
		defer c.Close()
	}
	if n, s := d.Stats(); n != 4 || s != 35 {
		t.Error(n, s)
	}
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	p := newPeer(t, echo)
	d := p.dialer(t, Config{IdleTimeout: 50 * time.Millisecond})
	c := mustDial(t, d, target("a:1"))
	time.Sleep(150 * time.Millisecond)
	roundTrip(t, c, "a stream keeps its connection")
	_ = c.Close()
	waitFor(t, func() bool { n, _ := d.Stats(); return n == 0 })
	_ = mustDial(t, d, target("a:1")).Close()
	if n := p.opened.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

func TestADrainingConnectionIsNotUsed(t *testing.T) {
	p := newPeer(t, echo)
	d := p.dialer(t, Config{})
	c := mustDial(t, d, target("a:1"))
	p.last().Drain()
	var c2 netio.Conn
	waitFor(t, func() bool { // GOAWAY takes its time
		if c2 != nil {
			_ = c2.Close()
		}
		c2 = mustDial(t, d, target("a:1"))
		return p.opened.Load() > 1
	})
	roundTrip(t, c, "the old stream goes on")
	roundTrip(t, c2, "x")
	if n := p.opened.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
	_ = c.Close()
	_ = c2.Close()
	waitFor(t, func() bool { n, _ := d.Stats(); return n == 1 })
}

// A peer that is about to end accepts connections and says GOAWAY on them.
func TestAConnectionThatIsDrainedAtOnceIsReplaced(t *testing.T) {
	for range 60 {
		p := newPeer(t, echo)
		p.drained.Store(2)
		d := p.dialer(t, Config{})
		c := mustDial(t, d, target("a:1"))
		roundTrip(t, c, "x")
		_ = c.Close()
		d.Close()
	}
}

func TestAPooledConnectionThatDiesIsReplacedOnce(t *testing.T) {
	var kill sync.Map
	var p *peer
	p = newPeer(t, func(r *Request) {
		if _, ok := kill.Load("now"); ok {
			kill.Delete("now")
			p.conns()[0].Reset()
			return
		}
		echo(r)
	})
	d := p.dialer(t, Config{})
	_ = mustDial(t, d, target("a:1")).Close()
	kill.Store("now", true)
	c := mustDial(t, d, target("a:1"))
	roundTrip(t, c, "x")
	_ = c.Close()
	if n := p.opened.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

func TestANewConnectionThatDiesIsAnError(t *testing.T) {
	var p *peer
	p = newPeer(t, func(*Request) { p.conns()[0].Reset() })
	d := p.dialer(t, Config{})
	_, err := d.Dial(t.Context(), target("a:1"), nil)
	var de *DialError
	if transport.ReasonOf(err) != transport.ConnectionTermination || !errors.As(err, &de) || de.Address != serverAddr {
		t.Error(err)
	}
	if n := p.opened.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}
