// Package h1 is HTTP/1.1 (RFC 9112) on both sides: strict in, one canonical
// form out. A connection holds a buffer and, a moment longer, a goroutine
// only while a message is in flight.
package h1

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/timer"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

const (
	defaultMaxHeaderBytes = 60 << 10
	defaultIdleTimeout    = time.Hour
	// lingerTime and lingerBytes bound what is read and dropped after an
	// answer that ends the connection, so that the client sees it before a RST
	// (Envoy's delayed_close_timeout).
	lingerTime  = time.Second
	lingerBytes = 1 << 20
)

var (
	errIdle   = errors.New("http/1.1: connection was idle for too long")
	errClosed = errors.New("http/1.1: idle connection is closed")
)

// Server is one downstream connection; it implements transport.ServerConn. There
// are as many as clients keep connections, or streams of tunnels: what only a
// request in flight needs is in transaction and watcher.
type Server struct {
	rd   reader
	cfg  *transport.ServerConfig
	h    transport.Handler
	done func()
	// Method values, made once; step if the connection is a netio.Looper.
	resume func()
	step   func() bool

	x *transaction // nil while idle

	// mu guards what follows, and transaction.st.abandoned.
	mu      sync.Mutex
	watch   *watcher // nil while idle, soon
	onReset func(error)
	gone    *loss // nil while the client is there

	scanned   int    // bytes of the buffer without a head's end
	next      action // after the loop
	inLoop    bool   // the loop's goroutine is inside the loop
	rechecked bool   // whether an end hid behind the first request
	requests  atomic.Int32
	seq       atomic.Uint32 // odd: a request is in flight
	state     atomic.Int32
	draining  atomic.Bool

	// The idle timer stays armed through requests; idleSince, nanoseconds since
	// epoch, is when the last one ended, idling whether the timer is armed.
	// heading: part of a head is here, and the headers timer runs; see headExpired.
	idling    atomic.Bool
	heading   atomic.Int32
	idleSince atomic.Int64
	idle      timer.Timer
	rare      *rareTimers // nil before one of them is needed
}

// epoch is what times in a Server count from.
var epoch = time.Now()

// States of a Server.
const (
	stateIdle int32 = iota
	stateActive
	stateClosing
)

// action is what to do next with a connection.
type action uint8

const (
	actWait     action = iota // for bytes
	actServe                  // the parsed request
	actAgain                  // look for a further request
	actClose                  // in order
	actLinger                 // in order, the peer still sending
	actReset                  // abruptly
	actDetached               // a tunnel has the connection
)

// NewServer prepares c; cfg is shared and read-only.
func NewServer(c netio.Conn, cfg *transport.ServerConfig, h transport.Handler) *Server {
	s := &Server{cfg: cfg, h: h}
	s.rd.c, s.rd.total = c, cfg.Received
	s.resume = s.run
	if _, ok := c.(netio.Looper); ok {
		s.step = s.loopStep
	}
	return s
}

// Unread gives s a copy of the first bytes of the connection, which somebody has
// read. It is called before Serve.
func (s *Server) Unread(first []byte) {
	if len(first) == 0 {
		return
	}
	s.rd.room(max(len(first), netio.SmallBuffer))
	_ = s.rd.filled(copy((*s.rd.buf)[s.rd.w:], first), nil)
}

// Serve drives the connection. It returns when the connection is idle, on a socket
// after a moment. done is called once when the connection has ended.
func (s *Server) Serve(done func()) {
	s.done = done
	if d := s.cfg.MaxConnectionDuration; d > 0 {
		s.timers().age.Arm(d, s.tooOld)
	}
	s.armIdle(time.Now())
	s.run()
}

func (s *Server) maxHeaderBytes() int {
	if s.cfg.MaxHeaderBytes > 0 {
		return s.cfg.MaxHeaderBytes
	}
	return defaultMaxHeaderBytes
}

// run serves requests until the connection is idle and parked, or has ended.
func (s *Server) run() {
	looper, _ := s.rd.c.(netio.Looper)
	for {
		var a action
		if looper != nil {
			dozing, err := s.loop(looper)
			switch {
			case dozing:
				return
			case err != nil:
				a = s.unreadable(err)
			default:
				a = s.next
			}
		} else {
			a = s.pump()
		}
		switch a {
		case actWait:
			if s.rd.c.Park(s.resume) {
				return
			}
			continue
		case actServe:
			a = s.serve()
		default:
		}
		if a != actAgain {
			s.finish(a)
			return
		}
	}
}

// loop serves what can be served inside the poller. With dozing, the connection is
// idle and has no goroutine.
func (s *Server) loop(l netio.Looper) (dozing bool, err error) {
	if d, ok := l.(netio.Dozer); ok {
		return d.LoopOrDoze(s.step, s.resume)
	}
	return false, l.Loop(s.step)
}

// loopStep is a step of the poller's loop: it serves what can be served without
// waiting for further bytes; s.next says why it ended.
func (s *Server) loopStep() (wait bool) {
	s.inLoop = true
	wait = s.steps()
	s.inLoop = false
	return wait
}

func (s *Server) steps() (wait bool) {
	for {
		a := s.pump()
		if a == actServe && s.x.st.whole {
			a = s.serve()
		}
		switch a {
		case actAgain:
		case actWait:
			s.next = actWait
			return true
		default:
			s.next = a
			return false
		}
	}
}

// pump reads until a request head is complete.
func (s *Server) pump() action {
	for {
		if len(s.rd.bytes()) > 0 {
			if n, err := s.head(); err != nil {
				return s.refuse(err)
			} else if n > 0 {
				return s.parse(n)
			}
		} else {
			s.scanned = 0
		}
		switch err := s.rd.tryFill(netio.SmallBuffer); {
		case err == nil:
		case errors.Is(err, netio.ErrWouldBlock):
			if s.endMayHide() {
				continue
			}
			s.rd.release()
			s.leave()
			if d := s.cfg.HeadersTimeout; d > 0 && s.rd.buf != nil && s.heading.Load() == 0 {
				n := s.requests.Load() + 1
				s.heading.Store(n)
				s.timers().deadline.Arm(d, func() { s.headExpired(n) })
			}
			return actWait
		default:
			return s.unreadable(err)
		}
	}
}

// endMayHide asks once, behind the first request, for a read that shows an end
// that came together with it: clients with a single request end like that, and
// would wait for the connection to be closed. Kept connections rarely do, and
// the read costs.
func (s *Server) endMayHide() bool {
	if s.rechecked || s.requests.Load() == 0 {
		return false
	}
	s.rechecked = true
	r, ok := s.rd.c.(netio.Rechecker)
	return ok && r.Recheck()
}

// unreadable says what to do when reading between requests ended with err.
func (s *Server) unreadable(err error) action {
	switch {
	case errors.Is(err, errTimedOut):
		return s.refuse(err)
	case errors.Is(err, io.EOF), errors.Is(err, errIdle), errors.Is(err, errClosed):
		return actClose
	}
	return actReset
}

// head returns the length of the request head in the buffer, 0 if it is not
// complete.
func (s *Server) head() (int, error) {
	b := s.rd.bytes()
	for s.scanned == 0 && b[0] == '\r' { // empty lines are tolerated (RFC 9112 section 2.2)
		switch {
		case len(b) == 1:
			return 0, nil
		case b[1] != '\n':
			return 0, errCodec
		}
		s.rd.r += 2
		if b = b[2:]; len(b) == 0 {
			return 0, nil
		}
	}
	limit := s.maxHeaderBytes()
	switch n := headEnd(b, s.scanned); {
	case n > limit:
		return 0, errTooLarge
	case n > 0:
		return n, nil
	}
	if !tokenChar[b[0]] || s.scanned == 0 && badFirstLine(b) {
		return 0, errCodec
	}
	if s.scanned = len(b); s.scanned > limit {
		return 0, errTooLarge
	}
	return 0, nil
}

// badFirstLine tells early that what arrives does not end its lines with CRLF.
func badFirstLine(b []byte) bool {
	_, _, ok := startLine(b)
	return !ok && len(b) > 0 && b[len(b)-1] == '\n'
}

// parse makes the first n bytes of the buffer the current request.
func (s *Server) parse(n int) action {
	s.scanned = 0
	if n := s.heading.Load(); n != 0 {
		if n < 0 || !s.heading.CompareAndSwap(n, 0) {
			return s.refuse(errTimedOut)
		}
		s.stopDeadline()
	}
	x := s.take()
	st := &x.st
	st.begin()
	hd, err := x.p.request(s.rd.bytes()[:n], st.header, s.cfg)
	s.rd.r += n
	if err != nil {
		return s.refuse(err)
	}
	if !s.state.CompareAndSwap(stateIdle, stateActive) {
		return actClose
	}
	st.prepare(hd)
	if hd.expect && !s.cfg.Proxy100Continue && st.sendContinue() != nil {
		st.dropHeader()
		return actReset
	}
	return actServe
}

// serve runs the handler on the current request.
func (s *Server) serve() action {
	st := &s.x.st
	n := s.requests.Add(1)
	if m := s.cfg.MaxRequestsPerConnection; m > 0 && int(n) >= m {
		st.closeAfter = true
	}
	s.h.ServeStream(st)
	a := st.afterServe()
	if a == actDetached {
		return a
	}
	s.state.CompareAndSwap(stateActive, stateIdle)
	if a == actAgain {
		now := st.endedAt
		if now.IsZero() {
			now = time.Now()
		}
		s.armIdle(now)
	}
	return a
}

// refuse answers a peer that sent no request that can be served.
func (s *Server) refuse(err error) action {
	if s.x != nil {
		s.x.st.dropHeader()
	}
	pe := errCodec
	if !errors.As(err, &pe) {
		return actReset
	}
	s.h.ProtocolError(pe.status, pe.details)
	text := reasons[pe.status]
	if pe == errTimedOut {
		text = "request header timeout"
	}
	b := append(appendStatusLine(nil, message.HTTP11, pe.status), "\r\n"...)
	b = append(appendLength(b, uint64(len(text))), "content-type: text/plain\r\nconnection: close\r\n\r\n"...)
	writeNames(b, nil, s.cfg.Case)
	n, err := s.rd.c.Write(append(b, text...))
	if s.cfg.Sent.Add(uint64(n)); err != nil {
		return actReset
	}
	return actLinger
}

// finish ends the connection.
func (s *Server) finish(a action) {
	if a == actDetached {
		return
	}
	s.state.Store(stateClosing)
	s.stopDeadline()
	s.idle.Stop()
	s.rd.drop()
	s.leave()
	switch a {
	case actReset:
		s.rd.c.Reset()
	case actLinger:
		s.linger()
		_ = s.rd.c.Close()
	default:
		_ = s.rd.c.Close()
	}
	s.end()
}

// end tells the owner.
func (s *Server) end() {
	s.idle.Stop()
	if s.rare != nil {
		s.rare.deadline.Stop()
		s.rare.age.Stop()
	}
	s.stopWatching()
	s.done()
}

// linger ends the sending side and takes what the peer still sends for a
// moment.
func (s *Server) linger() {
	if s.rd.c.CloseWrite() != nil {
		return
	}
	s.timers().deadline.Arm(lingerTime, func() { netio.InterruptRead(s.rd.c, errIdle) })
	before := s.rd.in.Load()
	for s.rd.in.Load()-before < lingerBytes {
		s.rd.r = s.rd.w
		if s.rd.fill(netio.SmallBuffer) != nil {
			break
		}
	}
	s.stopDeadline()
	s.rd.drop()
}

// Drain implements transport.ServerConn. An idle connection is left alone: a
// request may be on its way. It is answered, and closed after that.
func (s *Server) Drain() { s.draining.Store(true) }

// Close implements transport.ServerConn.
func (s *Server) Close(cause error) {
	if cause == nil {
		cause = netio.ErrClosed
	}
	if s.state.CompareAndSwap(stateIdle, stateClosing) {
		netio.InterruptRead(s.rd.c, errClosed)
		return
	}
	s.rd.c.Interrupt(cause)
	s.lost(cause)
}

// Active implements transport.ServerConn.
func (s *Server) Active() int {
	if s.state.Load() == stateActive {
		return 1
	}
	return 0
}

var _ transport.ServerConn = (*Server)(nil)
