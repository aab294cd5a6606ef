package h1

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// Client is one upstream connection: one exchange at a time.
type Client struct {
	rd   reader
	cfg  *transport.ClientConfig
	st   clientStream
	done chan struct{}

	mu       sync.Mutex
	active   bool
	draining bool
	closed   bool
}

// NewClient wraps c as an upstream connection.
func NewClient(c netio.Conn, cfg *transport.ClientConfig) transport.ClientConn {
	cl := &Client{cfg: cfg, done: make(chan struct{})}
	cl.rd.c = c
	cl.st.c = cl
	cl.st.body.trailers = cfg.EnableTrailers
	cl.st.body.limit = cl.maxHeaderBytes()
	cl.st.body.fields = cfg.MaxHeaders
	return cl
}

func (c *Client) maxHeaderBytes() int {
	if c.cfg.MaxHeaderBytes > 0 {
		return c.cfg.MaxHeaderBytes
	}
	return defaultMaxHeaderBytes
}

// NewStream implements transport.ClientConn. A connection on which the server
// said something, or ended, while it was idle is closed here.
func (c *Client) NewStream() (transport.ClientStream, error) {
	c.mu.Lock()
	switch {
	case c.closed:
		c.mu.Unlock()
		return nil, &transport.ResetError{Reason: transport.ConnectionTermination, Detail: "connection is closed"}
	case c.active || c.draining:
		c.mu.Unlock()
		return nil, &transport.ResetError{Reason: transport.Overflow, Detail: "connection is in use"}
	}
	c.active = true
	c.mu.Unlock()
	if p, ok := c.rd.c.(netio.Prober); ok {
		if readable, ended := p.Probe(); readable || ended {
			err := &transport.ResetError{Reason: transport.ConnectionTermination, Detail: "the server closed the idle connection"}
			c.Close(err)
			return nil, err
		}
	}
	c.st.begin()
	return &c.st, nil
}

// Available implements transport.ClientConn.
func (c *Client) Available() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.active || c.closed || c.draining {
		return 0
	}
	return 1
}

// Active implements transport.ClientConn.
func (c *Client) Active() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.active && !c.closed {
		return 1
	}
	return 0
}

// Drain implements transport.ClientConn.
func (c *Client) Drain() {
	c.mu.Lock()
	c.draining = true
	idle := !c.active && !c.closed
	c.mu.Unlock()
	if idle {
		c.Close(netio.ErrClosed)
	}
}

// Close implements transport.ClientConn.
func (c *Client) Close(cause error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	active := c.active
	c.mu.Unlock()
	if active {
		c.rd.c.Interrupt(cause)
	}
	_ = c.rd.c.Close()
	c.ended(cause)
}

func (c *Client) ended(cause error) {
	close(c.done)
	if c.cfg.OnClose != nil {
		c.cfg.OnClose(c, cause)
	}
}

// tunnelEnded follows the end of a connection that a tunnel had taken.
func (c *Client) tunnelEnded() {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if !closed {
		c.ended(nil)
	}
}

// Done implements transport.ClientConn.
func (c *Client) Done() <-chan struct{} { return c.done }

// clientStream is the exchange on a Client, reused for the next one.
type clientStream struct {
	c      *Client
	method string
	body   body
	hd     head

	mu        sync.Mutex // guards the sending side
	out       *[]byte
	outLen    int
	fr        framing
	left      uint64
	sentEnd   bool
	sendErr   error
	gotHead   bool
	gotAny    bool
	recvErr   error
	tunnelled bool
	sent      atomic.Uint64
	inStart   uint64

	cmu   sync.Mutex
	cause error
}

func (s *clientStream) begin() {
	s.method, s.fr, s.left, s.sentEnd, s.sendErr, s.gotHead, s.gotAny, s.recvErr, s.tunnelled = "", 0, 0, false, nil, false, false, nil, false
	s.hd = head{}
	s.body.reset(&s.c.rd, framingNone, 0)
	s.inStart = s.c.rd.in.Load()
	s.sent.Store(0)
	s.cmu.Lock()
	s.cause = nil
	s.cmu.Unlock()
}

// Version implements transport.ClientStream.
func (s *clientStream) Version() message.Version { return message.HTTP11 }

// failure prefers the cause of an interruption over its symptom.
func (s *clientStream) failure(err error) error {
	s.cmu.Lock()
	defer s.cmu.Unlock()
	if s.cause != nil {
		return s.cause
	}
	return broken(err)
}

// WriteHeaders implements transport.ClientStream.
func (s *clientStream) WriteHeaders(h *message.Header, end bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.method = h.Get(message.Method)
	switch s.method {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT":
	default:
		s.method = string(append([]byte(nil), s.method...))
	}
	s.out = netio.GetBuffer(netio.SmallBuffer)
	b, fr, n, err := appendRequestHead((*s.out)[:0], h, end)
	if err != nil {
		netio.PutBuffer(s.out)
		s.out, s.sendErr = nil, err
		return err
	}
	s.keep(b)
	s.fr, s.left, s.sentEnd = fr, n, end
	return nil
}

func (s *clientStream) keep(b []byte) {
	if cap(b) != cap(*s.out) {
		old := s.out
		nb := b[:cap(b)]
		s.out = &nb
		netio.PutBuffer(old)
	}
	s.outLen = len(b)
}

// WriteData implements transport.ClientStream.
func (s *clientStream) WriteData(p []byte, end bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var tail []byte
	switch s.fr {
	case framingNone, framingUntilClose:
		if len(p) > 0 {
			return s.failLocked(&transport.ResetError{Reason: transport.ProtocolError, Detail: "request body without framing"})
		}
	case framingLength:
		if uint64(len(p)) > s.left || end && uint64(len(p)) < s.left {
			return s.failLocked(&transport.ResetError{Reason: transport.ProtocolError, Detail: "request body differs from its content-length"})
		}
		s.left -= uint64(len(p))
	case framingChunked:
		if len(p) > 0 {
			if s.out == nil {
				s.out, s.outLen = netio.GetBuffer(netio.SmallBuffer), 0
			}
			s.keep(appendChunkSize((*s.out)[:s.outLen], len(p)))
			tail = crlf
			if end {
				tail = crlfEnd
			}
		} else if end {
			tail = lastChunk
		}
	}
	s.sentEnd = end
	return s.flushLocked(p, tail)
}

func (s *clientStream) failLocked(err error) error { s.sendErr = err; return err }

// WriteTrailers implements transport.ClientStream.
func (s *clientStream) WriteTrailers(h *message.Header) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sentEnd = true
	if s.fr != framingChunked {
		if s.fr == framingLength && s.left > 0 {
			return s.failLocked(&transport.ResetError{Reason: transport.ProtocolError, Detail: "request body differs from its content-length"})
		}
		return s.flushLocked(nil, nil)
	}
	if s.out == nil {
		s.out, s.outLen = netio.GetBuffer(netio.SmallBuffer), 0
	}
	b, err := appendTrailers((*s.out)[:s.outLen], h, s.c.cfg.EnableTrailers)
	if err != nil {
		return s.failLocked(err)
	}
	s.keep(b)
	return s.flushLocked(nil, nil)
}

// Flush implements transport.ClientStream.
func (s *clientStream) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flushLocked(nil, nil)
}

func (s *clientStream) flushLocked(p, tail []byte) error {
	if s.sendErr != nil {
		return s.sendErr
	}
	var head []byte
	if s.out != nil {
		head = (*s.out)[:s.outLen]
	}
	if len(head)+len(p)+len(tail) == 0 {
		return nil
	}
	s.sent.Add(uint64(len(head) + len(p) + len(tail)))
	err := netio.WriteParts(s.c.rd.c, head, p, tail)
	netio.PutBuffer(s.out)
	s.out, s.outLen = nil, 0
	if err != nil {
		s.sendErr = s.failure(err)
	}
	return s.sendErr
}

// ReadHeaders implements transport.ClientStream.
func (s *clientStream) ReadHeaders(h *message.Header) (status int, end bool, err error) {
	if s.recvErr != nil {
		return 0, false, s.recvErr
	}
	n, err := s.readHead()
	if err != nil {
		s.recvErr = s.failure(err)
		return 0, false, s.recvErr
	}
	h.Reset()
	rd := &s.c.rd
	hd, err := parseResponse(rd.bytes()[:n], h, s.method, s.c.cfg.MaxHeaders)
	rd.r += n
	if err != nil {
		s.recvErr = broken(err)
		return 0, false, s.recvErr
	}
	s.hd = hd
	if hd.status >= 100 && hd.status < 200 && hd.status != 101 {
		return hd.status, false, nil
	}
	s.gotHead = true
	s.body.reset(rd, hd.framing, hd.length)
	if hd.status == 101 || s.method == "CONNECT" && hd.status < 300 {
		return hd.status, false, nil
	}
	return hd.status, hd.framing == framingNone, nil
}

// readHead sends what is pending and reads until a whole head is there.
func (s *clientStream) readHead() (int, error) {
	rd := &s.c.rd
	if err := s.exchange(); err != nil {
		return 0, err
	}
	limit := s.c.maxHeaderBytes()
	for scanned := 0; ; {
		b := rd.bytes()
		if n := headEnd(b, scanned); n > 0 {
			if n > limit {
				return 0, errTooLarge
			}
			return n, nil
		}
		if scanned = len(b); scanned > limit {
			return 0, errTooLarge
		}
		if len(b) > 0 && b[0] != 'H' {
			return 0, errCodec
		}
		if err := rd.fill(netio.SmallBuffer); err != nil {
			if errors.Is(err, io.EOF) && len(rd.bytes()) > 0 {
				return 0, errIncomplete
			}
			return 0, err
		}
	}
}

// exchange joins a complete request and the wait for its answer in one visit to
// the poller; otherwise it only flushes.
func (s *clientStream) exchange() error {
	rd := &s.c.rd
	s.mu.Lock()
	if s.sendErr != nil || s.out == nil || !s.sentEnd || len(rd.bytes()) > 0 {
		err := s.flushLocked(nil, nil)
		s.mu.Unlock()
		if err != nil && s.sentEnd {
			return err
		}
		return nil
	}
	out := s.out
	n := s.outLen
	s.out, s.outLen = nil, 0
	s.mu.Unlock()
	rd.room(netio.SmallBuffer)
	got, _, err := netio.WriteRead(rd.c, (*out)[:n], (*rd.buf)[rd.w:])
	s.sent.Add(uint64(n))
	netio.PutBuffer(out)
	rd.w += got
	rd.in.Add(uint64(got))
	if got > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// Body implements transport.ClientStream.
func (s *clientStream) Body() message.Body {
	if s.hd.framing == framingNone {
		return message.NoBody
	}
	return (*clientBody)(s)
}

// clientBody reports an interruption rather than its symptom.
type clientBody clientStream

// Next implements message.Body.
func (b *clientBody) Next() ([]byte, bool, error) {
	p, last, err := b.body.Next()
	if err != nil {
		err = (*clientStream)(b).failure(err)
	}
	return p, last, err
}

// Ready implements message.Body.
func (b *clientBody) Ready() (int, bool) { return b.body.Ready() }

// Trailers implements message.Body.
func (b *clientBody) Trailers() *message.Header { return b.body.Trailers() }

// Close implements message.Body.
func (b *clientBody) Close() {}

// Tunnel implements transport.ClientStream.
func (s *clientStream) Tunnel() netio.Conn {
	s.tunnelled = true
	return newTunnel(&s.c.rd, s.c.tunnelEnded)
}

// Interrupt implements transport.ClientStream.
func (s *clientStream) Interrupt(cause error) {
	s.cmu.Lock()
	if s.cause == nil {
		s.cause = cause
	}
	s.cmu.Unlock()
	s.c.rd.c.Interrupt(cause)
}

// Reset implements transport.ClientStream.
func (s *clientStream) Reset() {
	if s.tunnelled {
		return
	}
	s.c.Close(&transport.ResetError{Reason: transport.LocalReset})
}

// Release implements transport.ClientStream.
func (s *clientStream) Release() {
	c := s.c
	if s.tunnelled {
		return
	}
	s.mu.Lock()
	if s.out != nil {
		netio.PutBuffer(s.out)
		s.out, s.outLen = nil, 0
		s.sentEnd = false
	}
	ok := s.sentEnd && s.sendErr == nil && s.recvErr == nil && s.gotHead && s.body.done && s.body.err == nil && !s.hd.close && len(c.rd.bytes()) == 0
	s.mu.Unlock()
	s.cmu.Lock()
	ok = ok && s.cause == nil
	s.cmu.Unlock()
	c.mu.Lock()
	ok = ok && !c.draining && !c.closed
	if ok {
		c.active = false
	}
	c.mu.Unlock()
	c.rd.drop()
	if !ok {
		c.Close(netio.ErrClosed)
		return
	}
	if c.cfg.OnIdle != nil {
		c.cfg.OnIdle(c)
	}
}

// BytesIn implements transport.ClientStream.
func (s *clientStream) BytesIn() uint64 { return s.c.rd.in.Load() - s.inStart }

// BytesOut implements transport.ClientStream.
func (s *clientStream) BytesOut() uint64 { return s.sent.Load() }

var (
	_ transport.ClientConn   = (*Client)(nil)
	_ transport.ClientStream = (*clientStream)(nil)
)
