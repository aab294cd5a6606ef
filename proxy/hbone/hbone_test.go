package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

type rw struct{ netio.Conn }

func roundTrip(t testing.TB, c netio.Conn, msg string) {
	t.Helper()
	if _, err := c.Write([]byte(msg)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(msg))
	if _, err := io.ReadFull(rw{c}, got); err != nil || string(got) != msg {
		t.Fatalf("%q %v", got, err)
	}
}

func mustDial(t testing.TB, d *Dialer, tgt *Target) netio.Conn {
	t.Helper()
	c, err := d.Dial(t.Context(), tgt, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestATunnelCarriesBytesAndTheHeadsAreSeen(t *testing.T) {
	seen := make(chan string, 1)
	p := newPeer(t, func(r *Request) {
		seen <- fmt.Sprintf("%v %s %s %d", r.IsConnect(), r.Authority(), r.Header.Get("baggage"), r.Header.Len())
		c, err := r.Accept(message.Field{Name: "baggage", Value: "k8s.namespace.name=b"})
		if err != nil {
			return
		}
		go func() { _, _, _ = netio.Join(c, loop(), netio.JoinOptions{}) }()
	})
	d := p.dialer(t, Config{})
	tgt := target("10.9.9.9:80")
	tgt.Headers = []message.Field{{Name: "baggage", Value: "k8s.namespace.name=a"}}
	var resp message.Header
	c, err := d.Dial(t.Context(), tgt, &resp)
	if err != nil {
		t.Fatal(err)
	}
	if s := <-seen; s != "true 10.9.9.9:80 k8s.namespace.name=a 3" {
		t.Error(s)
	}
	if resp.Get("baggage") != "k8s.namespace.name=b" || resp.Get(":status") != "200" {
		t.Error(resp)
	}
	roundTrip(t, c, "hello")
	if c.TLS() != nil || c.RemoteAddr() != serverAddr {
		t.Error(c.TLS(), c.RemoteAddr())
	}
	_ = c.CloseWrite()
	if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
		t.Error(b, err)
	}
	_ = c.Close()
}

func TestStatusesAreTyped(t *testing.T) {
	p := newPeer(t, func(r *Request) { _ = r.Reject(401, message.Field{Name: "x-why", Value: "policy"}) })
	d := p.dialer(t, Config{})
	for range 3 {
		var resp message.Header
		_, err := d.Dial(t.Context(), target("a:1"), &resp)
		var se *StatusError
		if !errors.As(err, &se) || se.Status != 401 || se.Authority != "a:1" || resp.Get("x-why") != "policy" {
			t.Error(err, resp)
		}
	}
	if n := p.opened.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	if _, s := d.Stats(); s != 0 {
		t.Errorf("%d streams left", s)
	}
}

func TestAnUndecidedRequestIsReset(t *testing.T) {
	p := newPeer(t, func(*Request) {})
	d := p.dialer(t, Config{})
	if _, err := d.Dial(t.Context(), target("a:1"), nil); transport.ReasonOf(err) != transport.RemoteReset {
		t.Error(err)
	}
}

func TestAConnectTimeoutHintsAtNetworkPolicy(t *testing.T) {
	p := newPeer(t, echo)
	p.gate = make(chan struct{})
	const hint = "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008"
	for name, f := range map[string]func() error{
		"the caller's deadline": func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			_, err := p.dialer(t, Config{}).Dial(ctx, target("a:1"), nil)
			return err
		},
		"ConnectTimeout": func() error {
			_, err := p.dialer(t, Config{ConnectTimeout: 30 * time.Millisecond}).Dial(t.Context(), target("a:1"), nil)
			return err
		},
	} {
		err := f()
		if err == nil || !strings.Contains(err.Error(), hint) || !errors.Is(err, context.DeadlineExceeded) || transport.ReasonOf(err) != transport.ConnectionFailure {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestACancelledDialLeavesNoStream(t *testing.T) {
	hold := make(chan struct{})
	gone := make(chan struct{}, 100)
	p := newPeer(t, func(r *Request) {
		if r.Authority() == "hold:1" {
			ch := make(chan struct{})
			r.OnReset(func(error) { close(ch) })
			select {
			case <-ch:
			case <-hold:
			}
			gone <- struct{}{}
			return
		}
		echo(r)
	})
	defer close(hold)
	d := p.dialer(t, Config{})
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		tm := time.AfterFunc(5*time.Millisecond, cancel)
		if _, err := d.Dial(ctx, target("hold:1"), nil); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		tm.Stop()
		cancel()
	}
	c := mustDial(t, d, target("a:1"))
	roundTrip(t, c, "x")
	_ = c.Close()
	waitFor(t, func() bool { _, s := d.Stats(); return s == 0 })
}

func TestAnUntrustedPeerIsAnError(t *testing.T) {
	p := newPeer(t, echo)
	d := p.dialer(t, Config{})
	bad := pki().client.Clone()
	bad.RootCAs = nil
	d.cfg.TLS = func(*Target) *tls.Config { return bad }
	_, err := d.Dial(t.Context(), target("a:1"), nil)
	var de *DialError
	if !errors.As(err, &de) || de.Stage != "tls handshake" || transport.ReasonOf(err) != transport.ConnectionFailure {
		t.Error(err)
	}
}

func TestDoubleHBONE(t *testing.T) {
	inner := newPeer(t, echo)
	// The gateway passes the inner bytes on as they are.
	outer := newPeer(t, func(r *Request) {
		if r.Authority() != "svc.example:80" {
			_ = r.Reject(404)
			return
		}
		c, err := r.Accept()
		if err != nil {
			return
		}
		in, err := inner.connect(context.Background(), serverAddr, netio.DialOptions{})
		if err != nil {
			c.Reset()
			return
		}
		go func() { _, _, _ = netio.Join(c, in, netio.JoinOptions{}) }()
	})
	d := outer.dialer(t, Config{})
	for range 3 {
		oc := mustDial(t, d, target("svc.example:80"))
		tgt := target("svc.example:80")
		tgt.Headers = []message.Field{{Name: "x-forwarded-network", Value: "n1"}}
		c, err := d.DialOver(t.Context(), oc, tgt, nil)
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, c, "through two layers")
		_ = c.CloseWrite()
		if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
			t.Error(b, err)
		}
		_ = c.Close()
	}
	if outer.opened.Load() != 1 || inner.opened.Load() != 3 {
		t.Error(outer.opened.Load(), inner.opened.Load())
	}
	waitFor(t, func() bool { _, s := d.Stats(); return s == 0 })
}

func TestCloseDrains(t *testing.T) {
	p := newPeer(t, echo)
	d := p.dialer(t, Config{})
	c := mustDial(t, d, target("a:1"))
	d.Close()
	if _, err := d.Dial(t.Context(), target("a:1"), nil); err == nil {
		t.Error("dialled on a closed dialer")
	}
	roundTrip(t, c, "x")
	_ = c.Close()
	waitFor(t, func() bool { n, _ := d.Stats(); return n == 0 })
}

func TestADeadPeerIsFoundByPing(t *testing.T) {
	p := newPeer(t, echo)
	d := p.dialer(t, Config{Transport: Transport{KeepaliveInterval: 30 * time.Millisecond, KeepaliveTimeout: 3 * time.Second}})
	p.cfg.Transport.KeepaliveInterval = -1
	c := mustDial(t, d, target("a:1"))
	time.Sleep(200 * time.Millisecond)
	roundTrip(t, c, "a quiet peer that answers PING lives")
	// The peer stops reading and writing without closing.
	p.conns()[0].Interrupt(errors.New("gone"))
	_, err := c.Read(make([]byte, 1))
	if transport.ReasonOf(err) != transport.ConnectionTermination {
		t.Error(err)
	}
	_ = c.Close()
}

func TestResetsCrossTheTunnel(t *testing.T) {
	ends := make(chan netio.Conn, 1)
	p := newPeer(t, func(r *Request) {
		c, err := r.Accept()
		if err == nil {
			ends <- c
		}
	})
	d := p.dialer(t, Config{})
	c := mustDial(t, d, target("a:1"))
	s := <-ends
	c.Reset()
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, netio.ErrReset) {
		t.Error(err)
	}
	_ = s.Close()
	c = mustDial(t, d, target("a:1"))
	s = <-ends
	s.Reset()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, netio.ErrReset) {
		t.Error(err)
	}
	_ = c.Close()
}

func TestThousandStreamsGoOnWhileOneReceiverStalls(t *testing.T) {
	const streams, size = 1000, 20_000
	stalled := make(chan netio.Conn, 1)
	p := newPeer(t, func(r *Request) {
		c, err := r.Accept()
		if err != nil {
			return
		}
		if r.Authority() == "stalled:1" {
			stalled <- c
			return
		}
		go func() { _, _, _ = netio.Join(c, loop(), netio.JoinOptions{}) }()
	})
	p.cfg.MaxStreams = 2 * streams
	d := p.dialer(t, Config{MaxStreams: 2 * streams})
	first := mustDial(t, d, target("a:1")) // the peer's limit is known after this
	roundTrip(t, first, "x")
	_ = first.Close()
	others := func() time.Duration {
		began := time.Now()
		var wg sync.WaitGroup
		for range streams - 1 {
			c := mustDial(t, d, target("a:1"))
			wg.Go(func() {
				go func() {
					_, _ = c.Write(make([]byte, size))
					_ = c.CloseWrite()
				}()
				if b, err := io.ReadAll(c); len(b) != size || err != nil {
					t.Error(len(b), err)
				}
				_ = c.Close()
			})
		}
		wg.Wait()
		return time.Since(began)
	}
	alone := others()
	st := mustDial(t, d, target("stalled:1"))
	var taken atomic.Int64
	go func() {
		for b := make([]byte, 64<<10); ; {
			n, err := st.Write(b)
			taken.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	srv := <-stalled
	beside := others()
	// How long it takes depends on what else runs; that it ends shows that the others
	// go on.
	t.Logf("%d streams in %v alone, in %v beside one that stalls, which took %d KiB", streams-1, alone.Round(time.Millisecond), beside.Round(time.Millisecond), taken.Load()>>10)
	if n := taken.Load(); n > 5<<20 { // a window, and what is under way
		t.Errorf("%d bytes were taken for a receiver that reads nothing", n)
	}
	if n := p.opened.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	srv.Reset()
	_ = st.Close()
}

func TestOnlyWhatThePeerHasNotSeenIsRepeated(t *testing.T) {
	for _, c := range []struct {
		reason transport.ResetReason
		fresh  bool
		try    int
		want   bool
	}{
		{transport.RemoteRefused, true, 1, true},
		{transport.RemoteRefused, false, maxTries - 1, true},
		{transport.RemoteRefused, false, maxTries, false},
		{transport.ConnectionTermination, false, 1, true},
		{transport.ConnectionTermination, true, 1, false},
		{transport.ConnectionTermination, false, 2, false},
		{transport.RemoteReset, false, 1, false},
		{transport.ConnectionFailure, false, 1, false},
	} {
		if got := repeatable(&transport.ResetError{Reason: c.reason}, c.fresh, c.try); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
}

// A handshake within a tunnel that breaks off, at any place, is an error at once, and
// leaves nothing behind.
func TestAnInnerHandshakeThatBreaksOffIsAnError(t *testing.T) {
	for _, n := range []int{0, 1, 4, 5, 60, 200} {
		outer := newPeer(t, func(r *Request) {
			c, err := r.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = c.Read(make([]byte, 4096))
				_, _ = c.Write(append([]byte{22, 3, 3, 0, 122, 2, 0, 0, 118, 3, 3}, make([]byte, 200)...)[:n])
				_ = c.CloseWrite()
				_ = c.Close()
			}()
		})
		d := outer.dialer(t, Config{})
		oc := mustDial(t, d, target("svc.example:80"))
		began := time.Now()
		if _, err := d.DialOver(t.Context(), oc, target("svc.example:80"), nil); err == nil {
			t.Errorf("%d bytes of a handshake are enough", n)
		}
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("the end behind %d bytes was noticed after %v", n, took)
		}
		waitFor(t, func() bool { _, s := d.Stats(); return s == 0 })
	}
}
