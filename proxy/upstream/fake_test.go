package upstream

import (
	"context"
	"crypto/tls"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// origin is the other side: it counts dials and scripts answers.
type origin struct {
	mu     sync.Mutex
	dials  map[netip.AddrPort]int
	conns  []*fakeConn
	refuse error
	hang   bool          // dials end with their context only
	gate   chan struct{} // if not nil, dials wait for it
	limit  int           // streams per multiplexing connection
	answer func(h *message.Header, body []byte) (status int, respBody string)
}

func (o *origin) dial(ctx context.Context, a netip.AddrPort, _ netio.DialOptions) (netio.Conn, error) {
	o.mu.Lock()
	if o.dials == nil {
		o.dials = map[netip.AddrPort]int{}
	}
	o.dials[a]++
	refuse, hang, gate := o.refuse, o.hang, o.gate
	o.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if gate != nil {
		<-gate
	}
	if refuse != nil {
		return nil, refuse
	}
	return &rawConn{remote: a}, nil
}

func (o *origin) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for _, d := range o.dials {
		n += d
	}
	return n
}

type rawConn struct {
	netio.Conn
	remote netip.AddrPort
	closed atomic.Bool
}

func (c *rawConn) LocalAddr() netip.AddrPort   { return netip.MustParseAddrPort("127.0.0.1:1") }
func (c *rawConn) TLS() *tls.ConnectionState   { return nil }
func (c *rawConn) Close() error                { c.closed.Store(true); return nil }
func (c *rawConn) Reset()                      { c.closed.Store(true) }
func (c *rawConn) Write(p []byte) (int, error) { return len(p), nil }

type fakeConn struct {
	o      *origin
	raw    *rawConn
	cfg    transport.ClientConfig
	limit  int
	mu     sync.Mutex
	active int
	closed bool
	drain  bool
	blind  int // streams begun by Resume
}

func (o *origin) client(limit int) func(c netio.Conn, cfg *transport.ClientConfig) *fakeConn {
	return func(c netio.Conn, cfg *transport.ClientConfig) *fakeConn {
		f := &fakeConn{o: o, raw: c.(*rawConn), cfg: *cfg, limit: limit}
		o.mu.Lock()
		o.conns = append(o.conns, f)
		o.mu.Unlock()
		return f
	}
}

func (c *fakeConn) NewStream() (transport.ClientStream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed || c.drain:
		return nil, &transport.ResetError{Reason: transport.ConnectionTermination}
	case c.active >= c.limit:
		return nil, &transport.ResetError{Reason: transport.Overflow}
	}
	c.active++
	return &fakeStream{c: c, stop: make(chan struct{})}, nil
}

func (c *fakeConn) Resume() (transport.ClientStream, error) {
	s, err := c.NewStream()
	c.mu.Lock()
	c.blind++
	c.mu.Unlock()
	return s, err
}

func (c *fakeConn) Available() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.drain {
		return 0
	}
	return c.limit - c.active
}

func (c *fakeConn) Active() int { c.mu.Lock(); defer c.mu.Unlock(); return c.active }

func (c *fakeConn) Drain() {
	c.mu.Lock()
	c.drain = true
	idle := c.active == 0
	c.mu.Unlock()
	if idle {
		c.Close(nil)
	}
}

func (c *fakeConn) Close(err error) {
	c.mu.Lock()
	was := c.closed
	c.closed = true
	c.mu.Unlock()
	if !was {
		c.raw.Close()
		c.cfg.OnClose(c, err)
	}
}

func (c *fakeConn) Done() <-chan struct{} { return nil }

type fakeStream struct {
	c        *fakeConn
	h        message.Header
	body     []byte
	resp     string
	complete bool
	stop     chan struct{}
	once     sync.Once
	cause    error
}

func (s *fakeStream) Version() message.Version { return message.HTTP11 }
func (s *fakeStream) WriteHeaders(h *message.Header, _ bool) error {
	s.h.CopyFrom(h)
	return nil
}

func (s *fakeStream) WriteData(p []byte, _ bool) error    { s.body = append(s.body, p...); return nil }
func (s *fakeStream) WriteTrailers(*message.Header) error { return nil }
func (s *fakeStream) Flush() error                        { return nil }
func (s *fakeStream) Tunnel() netio.Conn                  { return nil }
func (s *fakeStream) BytesIn() uint64                     { return 0 }
func (s *fakeStream) BytesOut() uint64                    { return 0 }
func (s *fakeStream) Body() message.Body                  { return message.Bytes([]byte(s.resp)) }
func (s *fakeStream) Reset()                              {}
func (s *fakeStream) Interrupt(err error)                 { s.once.Do(func() { s.cause = err; close(s.stop) }) }

func (s *fakeStream) ReadHeaders(h *message.Header) (int, bool, error) {
	status, body := 200, ""
	if s.c.o.answer != nil {
		status, body = s.c.o.answer(&s.h, s.body)
	}
	if status == 0 { // hang until interrupted
		<-s.stop
		return 0, false, s.cause
	}
	s.resp, s.complete = body, true
	text := "200"
	if status != 200 {
		text = strconv.Itoa(status)
	}
	h.Add(message.Status, text)
	return status, body == "", nil
}

func (s *fakeStream) Release() {
	c := s.c
	c.mu.Lock()
	c.active--
	end := c.drain && c.active == 0
	closed := c.closed
	c.mu.Unlock()
	switch {
	case closed:
	case end, !s.complete && c.limit == 1:
		c.Close(nil)
	default:
		if c.cfg.OnIdle != nil {
			c.cfg.OnIdle(c)
		}
	}
}

func newTestManager(t testing.TB, o *origin, edit func(*Options)) *Manager {
	opt := Options{
		Dial:  o.dial,
		HTTP1: func(c netio.Conn, cfg *transport.ClientConfig) transport.ClientConn { return o.client(1)(c, cfg) },
		HTTP2: func(c netio.Conn, cfg *transport.ClientConfig) (transport.ClientConn, error) {
			return o.client(max(1, o.limit))(c, cfg), nil
		},
	}
	if edit != nil {
		edit(&opt)
	}
	m := NewManager(opt)
	t.Cleanup(m.Close)
	return m
}

const unlimited = 4294967295

func cluster(name string, addrs ...string) *xdsresource.Cluster {
	c := &xdsresource.Cluster{Assignment: assignment(addrs...)}
	c.Name, c.Digest = name, xdsresource.Digest{1}
	for i := range c.Breakers {
		c.Breakers[i] = xdsresource.CircuitBreaker{MaxConnections: unlimited, MaxPendingRequests: unlimited, MaxRequests: unlimited, MaxRetries: unlimited}
	}
	return c
}

func assignment(addrs ...string) *xdsresource.ClusterLoadAssignment {
	a := &xdsresource.ClusterLoadAssignment{Localities: []xdsresource.LocalityEndpoints{{Weight: 1}}}
	for _, s := range addrs {
		a.Localities[0].Endpoints = append(a.Localities[0].Endpoints, xdsresource.Endpoint{Address: netip.MustParseAddrPort(s), Weight: 1})
	}
	return a
}

func pick(t testing.TB, c *Cluster) *Host {
	t.Helper()
	h, err := c.Pick(&PickContext{})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func open(t testing.TB, c *Cluster) *Stream {
	t.Helper()
	s, err := c.NewStream(context.Background(), pick(t, c), &ConnectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// finish completes the exchange of s.
func finish(t testing.TB, s *Stream) {
	t.Helper()
	var h message.Header
	if _, _, err := s.ReadHeaders(&h); err != nil {
		t.Fatal(err)
	}
	s.Release()
}
