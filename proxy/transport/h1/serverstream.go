package h1

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// serverStream is the request in flight on a Server, reused for the next one.
type serverStream struct {
	s      *Server
	loop   netio.LoopWriter // the connection, if it is one
	header *message.Header  // pooled; between parse and ReadHeaders
	hd     head
	body   body
	whole  bool // the request is in the buffer

	out        output
	resp       responseHead
	started    bool // the final head was written
	complete   bool // the response is complete
	failed     bool
	closeAfter bool
	tunnel     bool
	early      uint64 // bytes of the tunnel that came with the head
	abandoned  bool   // Reset was called
	sent       atomic.Uint64
	inStart    uint64
	endedAt    time.Time // if the handler said so
}

// transaction is what a Server needs only from a request's head to the response's
// end; an idle connection has none.
type transaction struct {
	st serverStream
	p  parser
}

var transactions = sync.Pool{New: func() any { return new(transaction) }}

// take gives s a transaction unless it has one.
func (s *Server) take() *transaction {
	if s.x != nil {
		return s.x
	}
	x := transactions.Get().(*transaction) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	x.p.keepCase = s.cfg.Case == transport.KeepCase
	st := &x.st
	st.s = s
	st.loop, _ = s.rd.c.(netio.LoopWriter)
	b := &st.body
	b.rd, b.trailers, b.maxBytes, b.maxCount = &s.rd, s.cfg.EnableTrailers, s.maxHeaderBytes(), s.cfg.MaxHeaders
	s.x = x
	return x
}

// leave gives the transaction back. The handler has returned, and nobody may use its
// stream any more.
func (s *Server) leave() {
	x := s.x
	if x == nil {
		return
	}
	s.x = nil
	st := &x.st
	st.dropHeader()
	st.s, st.loop, st.body.rd, st.body.next = nil, nil, nil, nil
	x.p.f, st.body.p.f = fieldSection{}, fieldSection{} // they point into buffers
	transactions.Put(x)
}

var (
	errNoHead  = errors.New("http/1.1: body or trailers before the response head, or after the response's end")
	errSecond  = errors.New("http/1.1: second response head")
	headerPool = sync.Pool{New: func() any { return new(message.Header) }}
)

// begin readies the stream for parsing.
func (st *serverStream) begin() {
	if st.header == nil {
		st.header, _ = headerPool.Get().(*message.Header)
	}
	st.header.Reset()
	st.inStart = st.s.rd.in.Load() - uint64(len(st.s.rd.bytes()))
	st.resp = responseHead{}
	st.started, st.complete, st.failed, st.closeAfter, st.tunnel, st.abandoned = false, false, false, false, false, false
	st.early = 0
	st.sent.Store(0)
	st.endedAt = time.Time{}
}

func (st *serverStream) dropHeader() {
	if st.header != nil {
		headerPool.Put(st.header)
		st.header = nil
	}
}

// prepare readies the stream for the handler after the head was parsed.
func (st *serverStream) prepare(hd head) {
	st.hd = hd
	b := &st.body
	b.begin(hd.framing, hd.length)
	st.whole = !hd.connect && !hd.upgrade && (hd.framing == framingNone || b.whole())
	st.closeAfter = hd.close
	st.s.seq.Add(1)
}

var continueLine = []byte("HTTP/1.1 100 Continue\r\n\r\n")

// sendContinue asks for the body, whatever becomes of the request, as Envoy does.
func (st *serverStream) sendContinue() error {
	n, err := st.s.rd.c.Write(continueLine)
	st.count(n)
	return err
}

// refusesTunnel reports whether the head answers a CONNECT or an upgrade with
// something else. What the client sends behind such a request is not HTTP, so
// the connection ends, as in Envoy.
func (st *serverStream) refusesTunnel(h *message.Header) bool {
	switch status := h.Get(message.Status); {
	case st.hd.upgrade:
		return status != "101"
	case st.hd.connect:
		return !hasPrefix(status, "2")
	}
	return false
}

// Version implements transport.ServerStream.
func (st *serverStream) Version() message.Version { return st.hd.version }

// ReadHeaders implements transport.ServerStream: h and the parsed header trade
// places.
func (st *serverStream) ReadHeaders(h *message.Header) {
	h.Reset()
	if st.header == nil {
		return
	}
	*h, *st.header = *st.header, *h
	st.dropHeader()
}

// Body implements transport.ServerStream.
func (st *serverStream) Body() message.Body {
	if st.hd.framing == framingNone {
		return message.NoBody
	}
	return &st.body
}

// WriteInformational implements transport.ServerStream.
func (st *serverStream) WriteInformational(h *message.Header) error {
	if st.hd.version == message.HTTP10 || st.started {
		return nil
	}
	r := responseHead{method: st.hd.method, version: st.hd.version, end: true}
	b, err := appendResponseHead(st.out.grow(roomFor(h)), h, &r)
	if err == nil && (r.status >= 200 || r.status == 101) {
		err = badField(message.Status)
	}
	if err != nil {
		st.out.drop()
		return err
	}
	writeNames(b, h, st.s.cfg.Case)
	st.out.keep(b)
	return st.Flush()
}

// WriteHeaders implements transport.ServerStream.
func (st *serverStream) WriteHeaders(h *message.Header, end bool) error {
	if st.started {
		return errSecond
	}
	st.resp = responseHead{method: st.hd.method, version: st.hd.version, end: end, keep: st.hd.keepAlive}
	r := &st.resp
	// An answer to a request that is still arriving ends the connection, as
	// in Envoy.
	r.close = st.closeAfter || st.s.draining.Load() || !st.whole && !st.body.ended.Load() || st.refusesTunnel(h)
	b, err := appendResponseHead(st.out.grow(roomFor(h)), h, r)
	if err == nil && (r.status < 200 && r.status != 101 || r.status == 101 && !st.hd.upgrade) {
		err = badField(message.Status)
	}
	if err != nil {
		st.out.drop()
		return err
	}
	writeNames(b, h, st.s.cfg.Case)
	st.out.keep(b)
	st.started = true
	st.closeAfter = r.close
	if end {
		st.complete = true
		return st.Flush()
	}
	return nil
}

// WriteData implements transport.ServerStream.
func (st *serverStream) WriteData(p []byte, end bool) error {
	if !st.started || st.complete {
		return errNoHead
	}
	tail, ok := st.resp.body.frame(&st.out, p, end)
	if !ok {
		if st.resp.body.fr != framingNone {
			st.failed = true
			return lengthError("response")
		}
		p = nil // HEAD, 204, 304: there is no place for it
	}
	st.complete = end
	return st.write(p, tail)
}

func (st *serverStream) write(p, tail []byte) error {
	if st.failed {
		return &transport.ResetError{Reason: transport.LocalReset}
	}
	var loop netio.LoopWriter
	if st.s.inLoop {
		loop = st.loop
	}
	n, err := st.out.send(st.s.rd.c, loop, p, tail)
	st.count(n)
	if err != nil {
		st.failed = true
		return asReset(err)
	}
	return nil
}

// count counts bytes that were written.
func (st *serverStream) count(n int) {
	st.sent.Add(uint64(n))
	st.s.cfg.Sent.Add(uint64(n))
}

// WriteTrailers implements transport.ServerStream.
func (st *serverStream) WriteTrailers(h *message.Header) error {
	if !st.started || st.complete {
		return errNoHead
	}
	if st.resp.body.fr != framingChunked {
		return st.WriteData(nil, true)
	}
	b, err := appendTrailers(st.out.grow(roomFor(h)), h, st.s.cfg.EnableTrailers)
	if err != nil {
		st.failed = true
		return err
	}
	writeNames(b, h, st.s.cfg.Case)
	st.out.keep(b)
	st.complete = true
	return st.write(nil, nil)
}

// Flush implements transport.ServerStream.
func (st *serverStream) Flush() error { return st.write(nil, nil) }

// Tunnel implements transport.ServerStream.
func (st *serverStream) Tunnel() netio.Conn {
	s := st.s
	if st.tunnel || !st.started || st.complete || st.resp.body.fr != framingNone {
		panic("h1: Tunnel without an accepted CONNECT or upgrade")
	}
	st.tunnel = true
	_ = st.Flush() // the tunnel's first call fails as well
	if !st.body.discard() {
		s.rd.c.Reset() // bytes of a body must not enter the tunnel
	}
	rest := s.rd.bytes()
	st.early = uint64(len(rest))
	c := netio.WithPrefix(s.rd.c, rest)
	s.rd.drop()
	return newTunnel(c, s.end)
}

// EarlyBytes are those of the tunnel that came with the head, and are counted as
// bytes of the connection.
func (st *serverStream) EarlyBytes() uint64 { return st.early }

// Reset implements transport.ServerStream.
func (st *serverStream) Reset(transport.ResetReason) {
	st.s.mu.Lock()
	st.abandoned = true
	st.s.mu.Unlock()
	st.s.rd.c.Reset()
}

// BytesIn implements transport.ServerStream.
func (st *serverStream) BytesIn() uint64 {
	n := st.s.rd.in.Load() - st.inStart
	if st.body.ended.Load() && !st.tunnel {
		n -= uint64(len(st.s.rd.bytes())) // the next request's
	}
	return n
}

// BytesOut implements transport.ServerStream.
func (st *serverStream) BytesOut() uint64 { return st.sent.Load() }

// EndedAt implements transport.EndNoter.
func (st *serverStream) EndedAt(t time.Time) { st.endedAt = t }

// CloseAfter implements transport.ServerStream.
func (st *serverStream) CloseAfter() { st.closeAfter = true }

// afterServe cleans up behind the handler and says how the connection goes on.
func (st *serverStream) afterServe() action {
	s := st.s
	s.seq.Add(1)
	s.mu.Lock()
	s.onReset = nil
	gone, abandoned := s.gone != nil, st.abandoned
	s.mu.Unlock()
	st.dropHeader()
	if st.tunnel {
		s.stopWatching()
		return actDetached
	}
	if !st.failed && st.started && !abandoned {
		_ = st.Flush()
	}
	st.out.drop()
	switch {
	case gone, abandoned, st.failed, !st.complete:
		return actReset
	case st.whole && st.body.err == nil:
		st.body.discard()
	}
	switch {
	case st.closeAfter && st.body.ended.Load() && len(st.s.rd.bytes()) == 0:
		return actClose
	case st.closeAfter, !st.body.ended.Load(), st.body.err != nil:
		return actLinger
	}
	return actAgain
}
