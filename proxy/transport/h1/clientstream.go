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

// maxInformational bounds the 1xx heads before a response.
const maxInformational = 1000

// clientStream is the exchange in flight on a Client, reused for the next one.
type clientStream struct {
	c *Client

	// The writing side. mu also orders a reader that sends what is held back; a writer
	// may hold it for as long as the peer takes nothing.
	mu      sync.Mutex
	out     output
	req     requestHead
	kind    string // of the request: HEAD, CONNECT, ""
	sentEnd bool   // the request was handed over completely
	sendErr error
	begun   atomic.Bool // the head was given: kind and req.upgrade are there
	reading atomic.Bool // ReadHeaders waits: nothing is held back any more
	sent    atomic.Uint64

	// The reading side.
	p       parser
	hd      head
	body    body
	informs int
	gotHead bool
	recvErr error
	inStart uint64
	tunnel  bool

	cause atomic.Pointer[error] // of an interruption
}

func (s *clientStream) init(c *Client) {
	s.c = c
	b := &s.body
	b.rd, b.trailers, b.maxBytes, b.maxCount, b.cause = &c.rd, c.cfg.EnableTrailers, c.maxHeaderBytes(), c.cfg.MaxHeaders, s.stopped
	b.response = true
	s.p.keepCase = c.cfg.Case == transport.KeepCase
}

func (s *clientStream) begin() {
	s.req, s.kind, s.sentEnd, s.sendErr = requestHead{}, "", false, nil
	s.begun.Store(false)
	s.reading.Store(false)
	s.hd, s.informs, s.gotHead, s.recvErr, s.tunnel = head{}, 0, false, nil, false
	s.body.begin(framingNone, 0)
	s.inStart = s.c.rd.in.Load()
	s.sent.Store(0)
	if s.cause.Load() != nil {
		s.cause.Store(nil)
	}
}

// stop makes cause what calls fail with.
func (s *clientStream) stop(cause error) {
	s.cause.CompareAndSwap(nil, &cause)
}

// stopped returns the cause of an interruption, nil if there was none.
func (s *clientStream) stopped() error {
	if c := s.cause.Load(); c != nil {
		return *c
	}
	return nil
}

// failure prefers the cause of an interruption over its symptom.
func (s *clientStream) failure(err error) error {
	if c := s.stopped(); c != nil {
		return c
	}
	return asReset(err)
}

// Version implements transport.ClientStream.
func (s *clientStream) Version() message.Version { return message.HTTP11 }

// WriteHeaders implements transport.ClientStream. The head waits for the body,
// Flush or ReadHeaders, also if end: a complete request and the wait for its
// answer are one visit to the poller.
func (s *clientStream) WriteHeaders(h *message.Header, end bool) error {
	s.mu.Lock()
	err := s.writeHeadersLocked(h, end)
	s.mu.Unlock()
	return s.handOver(err)
}

// handOver is called when the writer has let mu go: it sends what it held back if
// the reader came too late to take that; see exchange.
func (s *clientStream) handOver(err error) error {
	if err != nil || !s.reading.Load() {
		return err
	}
	return s.Flush()
}

func (s *clientStream) writeHeadersLocked(h *message.Header, end bool) error {
	if s.begun.Load() {
		return errSecond
	}
	defer s.begun.Store(true)
	b, r, err := appendRequestHead(s.out.grow(roomFor(h)), h, end)
	if err != nil {
		s.out.drop()
		s.sendErr = err
		return err
	}
	writeNames(b, h, s.c.cfg.Case)
	s.out.keep(b)
	s.kind = r.kind()
	r.method = "" // h may change
	s.req, s.sentEnd = r, end
	return nil
}

// WriteData implements transport.ClientStream.
func (s *clientStream) WriteData(p []byte, end bool) error {
	s.mu.Lock()
	held, err := s.writeDataLocked(p, end)
	s.mu.Unlock()
	if held {
		return s.handOver(err)
	}
	return err
}

func (s *clientStream) writeDataLocked(p []byte, end bool) (held bool, err error) {
	if !s.begun.Load() || s.sentEnd {
		return false, errNoHead
	}
	tail, ok := s.req.body.frame(&s.out, p, end)
	if !ok {
		s.sendErr = lengthError("request")
		return false, s.sendErr
	}
	s.sentEnd = end
	if end && !s.reading.Load() && s.out.n+len(p)+len(tail) <= joinLimit && s.sendErr == nil {
		s.out.add(p, tail)
		return true, nil
	}
	return false, s.flushLocked(p, tail)
}

// WriteTrailers implements transport.ClientStream.
func (s *clientStream) WriteTrailers(h *message.Header) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.begun.Load() || s.sentEnd {
		return errNoHead
	}
	if s.req.body.fr == framingChunked {
		b, err := appendTrailers(s.out.grow(roomFor(h)), h, s.c.cfg.EnableTrailers)
		if err != nil {
			s.sendErr = err
			return err
		}
		writeNames(b, h, s.c.cfg.Case)
		s.out.keep(b)
	} else if _, ok := s.req.body.frame(&s.out, nil, true); !ok {
		s.sendErr = lengthError("request")
		return s.sendErr
	}
	s.sentEnd = true
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
	n, err := s.out.send(s.c.rd.c, nil, p, tail)
	s.sent.Add(uint64(n))
	if err != nil {
		s.sendErr = s.failure(err)
	}
	return s.sendErr
}

// ReadHeaders implements transport.ClientStream.
func (s *clientStream) ReadHeaders(h *message.Header) (status int, end bool, err error) {
	if s.recvErr == nil {
		status, end, err = s.readHeaders(h)
		if err != nil {
			s.recvErr = s.failure(err)
		}
	}
	if s.recvErr != nil {
		return 0, false, s.recvErr
	}
	return status, end, nil
}

func (s *clientStream) readHeaders(h *message.Header) (int, bool, error) {
	if s.gotHead {
		return 0, false, errSecond
	}
	n, err := s.readHead()
	if err != nil {
		return 0, false, err
	}
	h.Reset()
	rd := &s.c.rd
	hd, err := s.p.response(rd.bytes()[:n], h, s.kind, s.req.upgrade, s.c.cfg.MaxHeaders)
	rd.r += n
	if err != nil {
		return 0, false, err
	}
	s.hd = hd
	if hd.status < 200 && hd.status != 101 {
		if s.informs++; s.informs > maxInformational {
			return 0, false, errTooMany
		}
		return hd.status, false, nil
	}
	s.gotHead = true
	s.body.begin(hd.framing, hd.length)
	if s.accepted() {
		return hd.status, false, nil
	}
	return hd.status, hd.framing == framingNone, nil
}

// accepted reports whether the response turned the connection into a tunnel.
func (s *clientStream) accepted() bool {
	return s.gotHead && (s.hd.upgrade || s.kind == "CONNECT" && s.hd.status < 300)
}

// readHead sends what is held back and reads until a whole head is there.
func (s *clientStream) readHead() (int, error) {
	rd := &s.c.rd
	if err := s.exchange(); err != nil {
		return 0, err
	}
	limit := s.c.maxHeaderBytes()
	for scanned := 0; ; {
		b := rd.bytes()
		n := headEnd(b, scanned)
		switch scanned = len(b); {
		case n > limit, n == 0 && scanned > limit:
			return 0, errTooLarge
		case n > 0:
			return n, nil
		case scanned > 0 && (b[0] != 'H' || badFirstLine(b)):
			return 0, errCodec
		}
		if err := rd.fill(netio.SmallBuffer); err != nil {
			if errors.Is(err, io.EOF) && scanned > 0 {
				return 0, errCutOff
			}
			return 0, err
		}
	}
}

// exchange sends what is held back: a complete request together with the wait
// for its answer.
func (s *clientStream) exchange() error {
	rd := &s.c.rd
	s.reading.Store(true)
	if !s.begun.Load() {
		return errNoHead
	}
	if !s.mu.TryLock() {
		// The writer is at it, maybe for as long as the peer takes nothing: it may have
		// answered. What the writer holds back it sends itself, see handOver.
		return nil
	}
	if s.sendErr != nil && s.out.n > 0 {
		s.out.drop()
	}
	if s.out.n == 0 || !s.sentEnd || len(rd.bytes()) > 0 {
		// A peer that takes no more may have answered before.
		if err := s.flushLocked(nil, nil); transport.ReasonOf(err) == transport.ProtocolError {
			s.mu.Unlock()
			return err
		}
		s.mu.Unlock()
		return nil
	}
	out := s.out
	s.out = output{}
	s.mu.Unlock()
	rd.room(netio.SmallBuffer)
	n, _, err := netio.WriteRead(rd.c, out.bytes(), (*rd.buf)[rd.w:])
	s.sent.Add(uint64(out.n))
	out.drop()
	return rd.filled(n, err)
}

// Body implements transport.ClientStream.
func (s *clientStream) Body() message.Body {
	if s.hd.framing == framingNone {
		return message.NoBody
	}
	return &s.body
}

// Tunnel implements transport.ClientStream.
func (s *clientStream) Tunnel() netio.Conn {
	if s.tunnel || !s.accepted() {
		panic("h1: Tunnel without an accepted CONNECT or upgrade")
	}
	s.tunnel = true
	rd := &s.c.rd
	c := netio.WithPrefix(rd.c, rd.bytes())
	rd.drop()
	return newTunnel(c, s.c.tunnelEnded)
}

// Interrupt implements transport.ClientStream.
func (s *clientStream) Interrupt(cause error) {
	s.stop(cause)
	s.c.rd.c.Interrupt(cause)
}

// Reset implements transport.ClientStream.
func (s *clientStream) Reset() {
	s.mu.Lock()
	sent := s.sentEnd && s.sendErr == nil && s.out.n == 0
	s.mu.Unlock()
	if !s.tunnel && (!sent || !s.received()) {
		var cause error = &transport.ResetError{Reason: transport.LocalReset}
		if transport.ReasonOf(s.recvErr) == transport.ConnectionTermination {
			cause = s.recvErr // there is nothing left to end
		}
		s.c.Close(cause)
	}
}

// received reports whether the response is complete and the connection usable
// behind it.
func (s *clientStream) received() bool {
	return s.recvErr == nil && s.gotHead && !s.accepted() && !s.hd.close && s.stopped() == nil &&
		s.body.discard() && len(s.c.rd.bytes()) == 0
}

// Release implements transport.ClientStream.
func (s *clientStream) Release() {
	if s.tunnel {
		return
	}
	s.mu.Lock()
	ok := s.sentEnd && s.sendErr == nil && s.out.n == 0
	s.out.drop()
	s.mu.Unlock()
	ok = ok && s.received()
	s.c.rd.drop()
	s.c.release(ok)
}

// BytesIn implements transport.ClientStream.
func (s *clientStream) BytesIn() uint64 { return s.c.rd.in.Load() - s.inStart }

// BytesOut implements transport.ClientStream.
func (s *clientStream) BytesOut() uint64 { return s.sent.Load() }

var _ transport.ClientStream = (*clientStream)(nil)
