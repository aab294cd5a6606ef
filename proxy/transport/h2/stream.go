package h2

import (
	"io"
	"log/slog"
	"runtime/debug"
	"sync"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// stream is one exchange, either side. serverStream, clientStream, body and
// tunnel are views of it. Streams are pooled; those that became tunnels are
// not, because a netio.Conn may be closed at any later time. A tunnel may be idle
// for hours: what it has no use for is in exchange.
type stream struct {
	c *conn
	x *exchange // nil in a tunnel

	// Guarded by c.mu.
	wake      waiter // the writer waits here for its window
	sendWin   int64
	bytesOut  uint64
	werr      error  // why writing fails
	id        uint32 // 0: not yet sent (client) or not in use
	inMap     bool
	held      bool // client: counts against the limit of streams
	headSent  bool
	endSent   bool
	endRecv   bool
	tunnelled bool
	queued    bool // in c.winWait

	// Set before the stream is shared.
	connect bool // CONNECT, extended or not
	headReq bool // HEAD

	calling  bool // onReset is running
	eof      bool
	gotHead  bool // client: the final response head has come
	headEnd  bool // the head ended the message
	gotTrail bool

	mu sync.Mutex // guards what follows, what is between it and headReq, and changes of c, x and id

	rwake    waiter // the reader of body or tunnel waits here
	q        queue
	cur      *chunk // lent to the caller of body.Next
	rerr     error
	recvWin  int64 // what the peer may still send
	unacked  int64 // taken, not yet granted again
	left     int64 // octets that Content-Length still promises, -1: not declared
	bytesIn  uint64
	resume   func() // tunnel parked
	onReset  func(error)
	resetWhy error
}

// exchange is the part of a stream that only messages need. stream.mu guards it.
type exchange struct {
	protocol       string            // extended CONNECT, both sides; set before the stream is shared
	heads          []*message.Header // 1xx heads, client
	head, trailers message.Header
	status         int
}

var (
	streams   = sync.Pool{New: func() any { return new(stream) }}
	exchanges = sync.Pool{New: func() any { return new(exchange) }}
)

// newStream returns a stream of c that is not yet in the table.
func newStream(c *conn) *stream {
	s := streams.Get().(*stream) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	s.mu.Lock()
	s.c = c
	if s.x == nil {
		s.x = exchanges.Get().(*exchange) //nolint:errcheck,forcetypeassert // likewise
	}
	s.recvWin = c.lim.streamWindow
	s.left = -1
	s.mu.Unlock()
	return s
}

// recycle gives s back. It is out of the table, and its owner is done with it.
func (s *stream) recycle() {
	s.mu.Lock()
	s.awaitCallback()
	c := s.c
	n := s.q.drop()
	if s.cur != nil {
		s.cur.free()
	}
	x := s.x
	x.head.Reset()
	x.trailers.Reset()
	x.protocol, x.heads, x.status = "", nil, 0
	s.c, s.id = nil, 0
	s.sendWin, s.bytesOut, s.werr = 0, 0, nil
	s.inMap, s.held, s.headSent, s.endSent, s.endRecv = false, false, false, false, false
	s.connect, s.headReq = false, false
	s.cur, s.eof, s.rerr = nil, false, nil
	s.unacked, s.bytesIn = 0, 0
	s.resume, s.onReset, s.resetWhy = nil, nil, nil
	s.gotHead, s.headEnd, s.gotTrail = false, false, false
	s.mu.Unlock()
	c.consumed(n)
	streams.Put(s)
}

// writable returns why s cannot be written to. c.mu is held.
func (s *stream) writable() error {
	switch {
	case s.werr != nil:
		return s.werr
	case s.endSent:
		return errEnded
	case !s.headSent:
		return errNoHead
	}
	return nil
}

// serve runs the handler. A panic ends the stream, not the process.
func (s *stream) serve() {
	c := s.c
	defer func() {
		if p := recover(); p != nil {
			slog.Error("h2: a handler panicked; its stream is reset", "panic", p, "stack", string(debug.Stack()))
			s.reset(codeInternal, resetError(transport.LocalReset, "panic"))
		}
		c.handlerDone(s)
	}()
	c.handler.ServeStream((*serverStream)(s))
}

// handlerDone ends what the handler left open.
func (c *conn) handlerDone(s *stream) {
	c.mu.Lock()
	c.running--
	tunnelled := s.tunnelled
	if !tunnelled && s.inMap {
		code := codeInternal
		if s.endSent {
			code = codeNo // the rest of the request is not wanted
			c.completed.Add(1)
		}
		c.sendRST(s.id, code)
		c.remove(s, closedByUs)
	}
	c.quiesce()
	if len(c.out) > 0 && !c.flushing {
		c.flush(nil)
		c.mu.Lock()
	}
	c.checkEnd()
	if !tunnelled {
		s.recycle()
	}
}

// reset ends s with RST_STREAM(code) unless it has ended; both directions fail
// with cause from now on.
func (s *stream) reset(code errCode, cause error) {
	c := s.c
	c.mu.Lock()
	id := s.id
	if s.werr == nil {
		s.werr = cause
	}
	if s.inMap {
		c.sendRST(id, code)
		c.remove(s, closedByUs)
	}
	c.watchWriter(s)
	s.wake.wake()
	c.room.Broadcast()
	c.ready.Broadcast()
	c.kick()
	c.mu.Unlock()
	s.mu.Lock()
	s.onReset = nil
	s.mu.Unlock()
	s.abort(c, id, cause)
}

// abort fails the receiving side with cause; what was not yet taken is dropped
// unless the message had ended. It does nothing if s serves another exchange.
func (s *stream) abort(c *conn, id uint32, cause error) {
	s.mu.Lock()
	if s.c != c || s.id != id {
		s.mu.Unlock()
		return
	}
	n := 0
	if !s.eof && s.rerr == nil {
		s.rerr = cause
		n = s.q.drop()
	}
	f := s.onReset
	s.onReset = nil
	if s.resetWhy == nil {
		s.resetWhy = cause
	}
	if f != nil { // else one may be running, which is the other caller's
		s.calling = true
	}
	s.signal()
	s.mu.Unlock()
	c.consumed(n)
	if f == nil {
		return
	}
	f(cause)
	s.mu.Lock()
	s.calling = false
	s.rwake.wake()
	s.mu.Unlock()
}

// awaitCallback returns when onReset is not running. s.mu is held.
func (s *stream) awaitCallback() {
	for s.calling {
		s.waitRead()
	}
}

// interrupt makes blocked and later calls fail with cause.
func (s *stream) interrupt(cause error) {
	c := s.c
	c.mu.Lock()
	s.werr = cause
	c.watchWriter(s)
	s.wake.wake()
	c.room.Broadcast()
	c.ready.Broadcast()
	c.mu.Unlock()
	s.mu.Lock()
	n := s.q.drop()
	s.rerr = cause
	s.signal()
	s.mu.Unlock()
	c.consumed(n)
}

// signal wakes whoever waits for input. s.mu is held.
func (s *stream) signal() {
	s.rwake.wake()
	if f := s.resume; f != nil {
		s.resume = nil
		s.c.pool.run(task{fn: f})
	}
}

// feedResult is what became of a piece of payload.
type feedResult uint8

const (
	fed feedResult = iota
	feedGone
	feedOverflow
	feedLength
	feedEarly
)

// piece is payload on its way to a stream. The first piece of a frame brings what
// all of it takes from the window, the part of that which is padding, and its
// size on the wire.
type piece struct {
	p                []byte
	ch               *chunk // not nil: p is its content, and it is given away
	window, overhead int64
	wire             int
	end              bool
}

func (s *stream) feed(c *conn, id uint32, f piece) feedResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c != c || s.id != id || s.eof || s.rerr != nil {
		return feedGone
	}
	if c.client && !s.gotHead {
		return feedEarly
	}
	if s.recvWin -= f.window; s.recvWin < 0 {
		return feedOverflow
	}
	s.unacked += f.overhead
	s.bytesIn += uint64(f.wire)
	if s.left >= 0 {
		if s.left -= int64(len(f.p)); s.left < 0 || f.end && s.left > 0 {
			return feedLength
		}
	}
	c.buffered.Add(int64(len(f.p)))
	if f.ch != nil {
		s.q.n += len(f.p)
		s.q.push(f.ch)
	} else {
		s.q.add(f.p)
	}
	s.eof = f.end
	s.signal()
	return fed
}

// finish ends the message in order, with trailers if h is not nil; h's content
// is swapped out. It reports whether Content-Length was kept.
func (s *stream) finish(c *conn, id uint32, h *message.Header, wire int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c != c || s.id != id || s.eof || s.rerr != nil {
		return true
	}
	if s.left > 0 {
		return false
	}
	s.bytesIn += uint64(wire)
	if h != nil && s.x != nil {
		s.x.trailers, *h = *h, s.x.trailers
		s.gotTrail = true
	}
	s.eof = true
	s.signal()
	return true
}

// grant returns the window increment that is due. s.mu is held.
func (s *stream) grant(n int64) int64 {
	s.unacked += n
	if s.eof || s.rerr != nil || s.unacked < s.c.lim.streamWindow/2 {
		return 0
	}
	inc := s.unacked
	s.unacked = 0
	s.recvWin += inc
	return inc
}

// consumed notes that n received octets have left the queues.
func (c *conn) consumed(n int) {
	if n == 0 {
		return
	}
	if c.buffered.Add(-int64(n)) > c.lim.buffered || !c.isBehind.Load() {
		return
	}
	c.mu.Lock()
	c.owed += c.withheld
	c.withheld = 0
	c.isBehind.Store(false)
	c.grantConn()
	c.kick()
	c.mu.Unlock()
}

// grantConn queues a WINDOW_UPDATE for the connection if it is due. mu is held.
func (c *conn) grantConn() bool {
	if c.owed < c.lim.connWindow/2 {
		return false
	}
	c.sendWindowUpdate(0, c.owed)
	c.recvWin += c.owed
	c.owed = 0
	return true
}

// granted sends the stream's window increment, if any, and accounts for n
// octets that were taken.
func (c *conn) granted(s *stream, id uint32, n int, inc int64) {
	c.consumed(n)
	if inc == 0 {
		return
	}
	c.mu.Lock()
	if s.inMap && s.id == id && !s.endRecv {
		c.sendWindowUpdate(id, inc)
	}
	c.kick()
	c.mu.Unlock()
}

// waitInput blocks until there is payload, the end or an error. s.mu is held.
func (s *stream) waitInput() error {
	for s.q.first == nil && !s.eof && s.rerr == nil {
		s.waitRead()
	}
	if s.rerr != nil {
		return s.rerr
	}
	if s.q.first == nil {
		return io.EOF
	}
	return nil
}
