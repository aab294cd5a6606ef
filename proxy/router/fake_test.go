package router

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"strconv"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/fairlead-mesh/fairlead/internal/timer.(*wheel).run"))
}

// exchange is one attempt as the scripted origin sees it.
type exchange struct {
	n    int // from 1, over the origin's life
	host string
	head message.Header
	st   *fakeStream
}

// body waits for the end of the request and returns its body.
func (x *exchange) body() string {
	select {
	case <-x.st.sentAll:
	case <-x.st.stop:
	}
	x.st.mu.Lock()
	defer x.st.mu.Unlock()
	return string(x.st.got)
}

// answer is what the origin says.
type answer struct {
	err      error // instead of a head
	hang     bool  // until interrupted
	info     []int
	status   int
	fields   []message.Field
	body     string
	trailers *message.Header
	bodyErr  error // after body
	bodyHang bool
}

func reset(r transport.ResetReason) error { return &transport.ResetError{Reason: r} }

type origin struct {
	mu      sync.Mutex
	n       int
	hosts   []string
	refuse  error
	refuseN int // refuse only the first
	handle  func(x *exchange) answer
	reused  func(n int) bool
	version message.Version
	tunnel  func() netio.Conn
	// stuck, if not nil, is told of each write, which then lasts until the stream is
	// interrupted.
	stuck chan struct{}
	// in and out are the bytes of every stream on the wire.
	in, out uint64
}

func (o *origin) attempts() int { o.mu.Lock(); defer o.mu.Unlock(); return o.n }

func (o *origin) dial(ctx context.Context, a netip.AddrPort, _ netio.DialOptions) (netio.Conn, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.refuse != nil {
		o.hosts = append(o.hosts, a.String())
		err := o.refuse
		if o.refuseN > 0 {
			if o.refuseN--; o.refuseN == 0 {
				o.refuse = nil
			}
		}
		return nil, err
	}
	return rawConn{host: a.String()}, nil
}

type rawConn struct {
	netio.Conn
	host string
}

func (rawConn) LocalAddr() netip.AddrPort { return netip.MustParseAddrPort("127.0.0.1:1") }
func (rawConn) TLS() *tls.ConnectionState { return nil }
func (rawConn) Close() error              { return nil }
func (rawConn) Reset()                    {}

type fakeConn struct {
	o      *origin
	host   string
	cfg    transport.ClientConfig
	mu     sync.Mutex
	closed bool
	fast   *fakeStream
}

func (c *fakeConn) NewStream() (transport.ClientStream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, reset(transport.ConnectionTermination)
	}
	if c.fast != nil { // allocation tests reuse one
		return c.fast, nil
	}
	return &fakeStream{c: c, stop: make(chan struct{}), sentAll: make(chan struct{})}, nil
}
func (c *fakeConn) Available() int { return 1 }
func (c *fakeConn) Active() int    { return 0 }
func (c *fakeConn) Drain()         { c.Close(nil) }
func (c *fakeConn) Close(err error) {
	c.mu.Lock()
	was := c.closed
	c.closed = true
	c.mu.Unlock()
	if !was {
		c.cfg.OnClose(c, err)
	}
}
func (c *fakeConn) Done() <-chan struct{} { return nil }

type fakeStream struct {
	c       *fakeConn
	mu      sync.Mutex
	head    message.Header
	got     []byte
	trail   *message.Header
	ended   bool
	sentAll chan struct{}
	stop    chan struct{}
	once    sync.Once
	cause   error
	a       answer
	infos   int
	handled bool
	resetN  int
	done    bool
	quick   bool
}

func (s *fakeStream) Version() message.Version { return s.c.o.version }
func (s *fakeStream) WriteHeaders(h *message.Header, end bool) error {
	s.head.CopyFrom(h)
	s.finish(end)
	return s.interrupted()
}

func (s *fakeStream) interrupted() error {
	if s.quick {
		return nil
	}
	select {
	case <-s.stop:
		return s.cause
	default:
		return nil
	}
}

func (s *fakeStream) finish(end bool) {
	if end && !s.quick {
		s.mu.Lock()
		s.ended = true
		s.mu.Unlock()
		close(s.sentAll)
	}
}

func (s *fakeStream) WriteData(p []byte, end bool) error {
	if c := s.c.o.stuck; c != nil {
		c <- struct{}{}
		<-s.stop
	}
	if err := s.interrupted(); err != nil {
		return err
	}
	s.mu.Lock()
	s.got = append(s.got, p...)
	s.mu.Unlock()
	s.finish(end)
	return nil
}

func (s *fakeStream) WriteTrailers(h *message.Header) error {
	s.trail = &message.Header{}
	s.trail.CopyFrom(h)
	s.finish(true)
	return nil
}
func (s *fakeStream) Flush() error { return s.interrupted() }
func (s *fakeStream) Tunnel() netio.Conn {
	return s.c.o.tunnel()
}
func (s *fakeStream) BytesIn() uint64  { return s.c.o.in }
func (s *fakeStream) BytesOut() uint64 { return s.c.o.out }
func (s *fakeStream) Reset()           { s.resetN++ }
func (s *fakeStream) Interrupt(err error) {
	s.once.Do(func() { s.cause = err; close(s.stop) })
}

func (s *fakeStream) ReadHeaders(h *message.Header) (int, bool, error) {
	if s.quick {
		h.Add(message.Status, "200")
		return 200, s.a.body == "", nil
	}
	if !s.handled {
		s.handled = true
		o := s.c.o
		o.mu.Lock()
		o.n++
		o.hosts = append(o.hosts, s.c.host)
		x := &exchange{n: o.n, host: s.c.host, st: s}
		handle := o.handle
		o.mu.Unlock()
		x.head.CopyFrom(&s.head)
		s.a = answer{status: 200}
		if handle != nil {
			s.a = handle(x)
		}
	}
	if s.a.hang {
		<-s.stop
	}
	if err := s.interrupted(); err != nil {
		return 0, false, err
	}
	if s.a.err != nil {
		return 0, false, s.a.err
	}
	if s.infos < len(s.a.info) {
		s.infos++
		n := s.a.info[s.infos-1]
		h.Add(message.Status, strconv.Itoa(n))
		return n, false, nil
	}
	h.Add(message.Status, strconv.Itoa(s.a.status))
	for _, f := range s.a.fields {
		h.Add(f.Name, f.Value)
	}
	end := s.a.body == "" && s.a.bodyErr == nil && !s.a.bodyHang && s.a.trailers == nil
	s.done = end
	return s.a.status, end, nil
}

func (s *fakeStream) Body() message.Body { return &fakeBody{s: s, rest: s.a.body} }

type fakeBody struct {
	s    *fakeStream
	rest string
}

func (b *fakeBody) Next() ([]byte, bool, error) {
	if b.rest != "" {
		p := b.rest
		b.rest = ""
		last := b.s.a.bodyErr == nil && !b.s.a.bodyHang
		b.s.done = last
		return []byte(p), last, nil
	}
	if b.s.a.bodyHang {
		<-b.s.stop
		return nil, false, b.s.cause
	}
	if b.s.a.bodyErr != nil {
		return nil, false, b.s.a.bodyErr
	}
	b.s.done = true
	return nil, true, nil
}

func (b *fakeBody) Ready() (int, bool)        { return len(b.rest), b.s.a.bodyErr == nil && !b.s.a.bodyHang }
func (b *fakeBody) Trailers() *message.Header { return b.s.a.trailers }
func (b *fakeBody) Close()                    {}

func (s *fakeStream) Release() {
	if s.quick {
		s.c.cfg.OnIdle(s.c)
		return
	}
	s.mu.Lock()
	whole := s.done && s.ended && s.resetN == 0
	s.mu.Unlock()
	if whole {
		s.c.cfg.OnIdle(s.c)
	} else {
		s.c.Close(nil)
	}
}

// slowBody serves chunks as they are sent on c; closing c ends the body.
type slowBody struct {
	c    chan string
	stop chan struct{}
	once sync.Once
	err  error
	last bool
}

func newSlowBody() *slowBody { return &slowBody{c: make(chan string), stop: make(chan struct{})} }

func (b *slowBody) Next() ([]byte, bool, error) {
	select {
	case p, ok := <-b.c:
		if !ok {
			return nil, true, nil
		}
		return []byte(p), false, nil
	case <-b.stop:
		return nil, false, b.err
	}
}
func (b *slowBody) Ready() (int, bool)        { return 0, false }
func (b *slowBody) Trailers() *message.Header { return nil }
func (b *slowBody) Close()                    {}
func (b *slowBody) Interrupt(err error)       { b.once.Do(func() { b.err = err; close(b.stop) }) }

var errRefused = errors.New("delayed connect error: Connection refused")
