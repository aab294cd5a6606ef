package listener

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// greeter is a terminal filter that says its name and reads until the end.
type greeter struct{ name string }

func (g greeter) Serve(c *filters.Connection, done func()) {
	defer done()
	_, _ = c.Write([]byte(g.name + "\n"))
	buf := make([]byte, 64)
	for {
		if _, err := c.Read(buf); err != nil {
			return
		}
	}
}

// lines is an access log of the parts that matter here.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Log(c *format.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ci := c.Info.Conn
	l.all = append(l.all, fmt.Sprintf("%s|%s|%s", ci.FilterChainName, c.Info.Details, ci.TransportFailureReason))
}

func (l *lines) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.all
	l.all = nil
	return out
}

type brokenTLS struct{}

func (brokenTLS) Config() (*tls.Config, error)                  { return nil, errors.New("no certificate") }
func (brokenTLS) Describe(*tls.ConnectionState) *streaminfo.TLS { return nil }

// refuser is a network filter that lets nobody in.
type refuser struct{}

func (refuser) OnNewConnection(*filters.Connection) error {
	return &filters.Denied{Details: "not_today"}
}

// bomb is a filter of every kind that panics where when says.
type bomb struct{ when string }

func (b bomb) at(when string) {
	if b.when == when {
		panic("a filter's bug")
	}
}

func (b bomb) OnAccept(*filters.Connection) error        { b.at("accept"); return nil }
func (b bomb) OnNewConnection(*filters.Connection) error { b.at("new"); return nil }
func (b bomb) OnConnectionEnd(*filters.Connection)       { b.at("end") }
func (b bomb) Serve(_ *filters.Connection, done func())  { b.at("serve"); done() }

// ender counts what it is told.
type ender struct{ ended *atomic.Int32 }

func (ender) OnNewConnection(*filters.Connection) error { return nil }
func (e ender) OnConnectionEnd(*filters.Connection)     { e.ended.Add(1) }

// witness is an ender that hears of connections that never reached it.
type witness struct {
	ender
	refused *atomic.Int32
}

func (w witness) OnConnectionRefused(*filters.Connection) { w.refused.Add(1) }

func TestFiltersBehindARefusalHearOfIt(t *testing.T) {
	for name, tc := range map[string]struct {
		chain          *Chain
		before         int // filters before the witness
		refused, ended int32
	}{
		"by a filter before":   {&Chain{Network: []filters.NetworkFilter{refuser{}, nil}}, 1, 1, 0},
		"by a filter behind":   {&Chain{Network: []filters.NetworkFilter{nil, refuser{}}}, 0, 0, 1},
		"by the TLS handshake": {&Chain{TLS: brokenTLS{}, Network: []filters.NetworkFilter{nil}}, 0, 1, 0},
		"by a panic before":    {&Chain{Network: []filters.NetworkFilter{bomb{"new"}, nil}}, 1, 1, 0},
		"by nobody":            {&Chain{Network: []filters.NetworkFilter{nil}}, 0, 0, 1},
	} {
		w := witness{ender{&atomic.Int32{}}, &atomic.Int32{}}
		c := tc.chain
		c.Name, c.Terminal = "a", greeter{"hello"}
		c.Network[tc.before] = w
		l, addr := start(t, config(&lines{}, c))
		_, _ = hear(t, addr)
		l.Close()
		for end := time.Now().Add(20 * time.Second); w.refused.Load()+w.ended.Load() == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
		if r, e := w.refused.Load(), w.ended.Load(); r != tc.refused || e != tc.ended {
			t.Errorf("%s: refused %d, ended %d; want %d, %d", name, r, e, tc.refused, tc.ended)
		}
	}
}

// silentTLS takes whoever says hello.
type silentTLS struct{ brokenTLS }

func (silentTLS) Config() (*tls.Config, error) { return &tls.Config{MinVersion: tls.VersionTLS12}, nil }

func config(log *lines, chains ...*Chain) Config {
	reg := &stats.Registry{}
	return Config{
		Spec:   &xdsresource.Listener{Resource: xdsresource.Resource{Name: "l"}, BindToPort: true, Addresses: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}},
		Chains: chains, AccessLogs: []AccessLogger{log}, Stats: reg.Scope("listener_"), DrainTime: 50 * time.Millisecond,
	}
}

func start(t *testing.T, c Config) (*Listener, string) {
	t.Helper()
	l := New("l")
	if err := l.Update(c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l, l.Addresses()[0].String()
}

// hear connects and returns what the server says until it closes, or its first
// line.
func hear(t *testing.T, addr string) (net.Conn, string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if errors.Is(err, syscall.ECONNRESET) { // closed before Dial returned
		return nil, "."
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	var said strings.Builder
	b := make([]byte, 1)
	for {
		if _, err := c.Read(b); err != nil {
			return c, said.String() + "."
		}
		if b[0] == '\n' {
			return c, said.String()
		}
		said.Write(b)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within 5 s: " + what)
		}
	}
}

func TestEachConnectionIsLoggedOnceWhenItEnds(t *testing.T) {
	for _, c := range []struct {
		name  string
		chain *Chain
		said  string
		log   string
	}{
		{"one that is served", &Chain{Name: "a", Terminal: greeter{"hello"}}, "hello", "a||"},
		{"no chain", &Chain{Name: "a", Match: &xdsresource.FilterChainMatch{DestinationPort: 1}, Terminal: greeter{"hello"}}, ".", "|filter_chain_not_found|"},
		{"a chain that can't be executed", &Chain{Name: "a", Broken: "why not"}, ".", "a|filter_chain_not_executable|"},
		{"a failed handshake", &Chain{Name: "a", TLS: brokenTLS{}, Terminal: greeter{"hello"}}, ".", "a||no certificate"},
		{"a refused one", &Chain{Name: "a", Network: []filters.NetworkFilter{refuser{}}, Terminal: greeter{"hello"}}, ".", "a||"},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := &lines{}
			l, addr := start(t, config(log, c.chain))
			conn, said := hear(t, addr)
			if said != c.said {
				t.Errorf("heard %q", said)
			}
			if c.said != "." && len(log.take()) != 0 {
				t.Error("it is logged before its end")
			}
			if conn != nil {
				_ = conn.Close()
			}
			eventually(t, "the connection ends", func() bool { return l.Active() == 0 })
			if got := log.take(); len(got) != 1 || got[0] != c.log {
				t.Errorf("the log is %q, want %q", got, c.log)
			}
		})
	}
}

func TestAHandshakeThatTakesTooLongEndsAndSaysSo(t *testing.T) {
	log := &lines{}
	l, addr := start(t, config(log, &Chain{Name: "a", TLS: silentTLS{}, HandshakeTimeout: 30 * time.Millisecond, Terminal: greeter{"hello"}}))
	begin := time.Now()
	if _, said := hear(t, addr); said != "." || time.Since(begin) < 30*time.Millisecond {
		t.Errorf("heard %q after %v", said, time.Since(begin))
	}
	eventually(t, "the connection ends", func() bool { return l.Active() == 0 })
	if got := log.take(); len(got) != 1 || !strings.HasSuffix(got[0], "the time for the tls handshake is over") {
		t.Errorf("the log is %q", got)
	}
}

func TestAPanicOfAFilterEndsItsConnectionAndNoMore(t *testing.T) {
	for _, when := range []string{"accept", "new", "end", "serve"} {
		t.Run(when, func(t *testing.T) {
			log, ended := &lines{}, &atomic.Int32{}
			c := config(log, &Chain{Name: "a", Network: []filters.NetworkFilter{ender{ended}, bomb{when}}, Terminal: greeter{"hello"}})
			c.ListenerFilters = []ListenerFilter{{Filter: bomb{when}}}
			want := "."
			switch when {
			case "end":
				want = "hello"
			case "serve":
				c.Chains[0].Terminal = bomb{when}
			}
			l, addr := start(t, c)
			for range 2 { // the listener goes on
				conn, said := hear(t, addr)
				if said != want {
					t.Errorf("heard %q, want %q", said, want)
				}
				if conn != nil {
					_ = conn.Close()
				}
			}
			eventually(t, "the connections end", func() bool { return l.Active() == 0 })
			if got := log.take(); len(got) != 2 {
				t.Errorf("the log is %q", got)
			}
			if n := ended.Load(); when != "accept" && n != 2 {
				t.Errorf("a filter before was told of %d ends", n)
			}
		})
	}
}

func TestAnUpdateDrainsWhatItReplacesAndKeepsTheRest(t *testing.T) {
	log := &lines{}
	keep := &Chain{Name: "keep", Terminal: greeter{"keep"}}
	l, addr := start(t, config(log, keep))
	kept, said := hear(t, addr)
	if said != "keep" {
		t.Fatal(said)
	}
	next := config(log, &Chain{Name: "new", Terminal: greeter{"new"}})
	next.Default = keep
	if err := l.Update(next); err != nil {
		t.Fatal(err)
	}
	if got := l.Addresses(); len(got) != 1 || got[0].String() != addr {
		t.Errorf("the socket changed: %v", got)
	}
	if _, said := hear(t, addr); said != "new" {
		t.Errorf("a new connection hears %q", said)
	}
	time.Sleep(100 * time.Millisecond) // twice the drain time
	if _, err := kept.Write([]byte("x")); err != nil || keep.Active() != 1 {
		t.Errorf("the kept chain's connection: %v, %d", err, keep.Active())
	}
	if err := l.Update(config(log, &Chain{Name: "last", Terminal: greeter{"last"}})); err != nil {
		t.Fatal(err)
	}
	if _, err := kept.Read(make([]byte, 1)); err == nil {
		t.Error("the replaced chain's connection goes on")
	}
}

func TestCloseEndsEveryConnectionAndFreesThePort(t *testing.T) {
	log := &lines{}
	l, addr := start(t, config(log, &Chain{Name: "a", Terminal: greeter{"hello"}}))
	var conns []net.Conn
	for range 3 {
		c, said := hear(t, addr)
		if said != "hello" {
			t.Fatal(said)
		}
		conns = append(conns, c)
	}
	if l.Active() != 3 {
		t.Errorf("%d are active", l.Active())
	}
	l.Close()
	for _, c := range conns {
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.ErrNoProgress) {
			t.Error("a connection goes on")
		}
	}
	eventually(t, "all end", func() bool { return l.Active() == 0 })
	if got := log.take(); len(got) != 3 {
		t.Errorf("%d lines", len(got))
	}
	taken, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = taken.Close()
}

// A client that goes on sending its ClientHello, a byte at a time, has no more time
// for its handshake than one that says nothing.
func TestAHandshakeByteByByteIsEndedInTime(t *testing.T) {
	ch := &Chain{Name: "c", TLS: silentTLS{}, HandshakeTimeout: 300 * time.Millisecond, Terminal: greeter{"never"}}
	l, addr := start(t, config(&lines{}, ch))
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	hello := append([]byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3}, make([]byte, 512)...)
	for i, end := 0, time.Now().Add(10*time.Second); ; i++ {
		if _, err := c.Write(hello[i%len(hello) : i%len(hello)+1]); err != nil {
			break // it was closed
		}
		if time.Now().After(end) {
			t.Fatal("it is still open")
		}
		time.Sleep(25 * time.Millisecond)
	}
	for end := time.Now().Add(10 * time.Second); l.Active() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("its books are still open")
		}
	}
}
