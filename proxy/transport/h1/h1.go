// Package h1 is HTTP/1.1 (RFC 9112) on both sides: strict in, one canonical
// form out. A connection holds a buffer and, where it can park, a goroutine
// only while a message is in flight.
package h1

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/timer"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

const (
	defaultMaxHeaderBytes = 60 << 10
	defaultIdleTimeout    = time.Hour
	// probeInterval is how often a stream in flight looks whether its client is
	// still there; nobody reads the socket meanwhile.
	probeInterval = 500 * time.Millisecond
	// maxDrain bounds the request body that is read and dropped to keep a
	// connection alive after an early response.
	maxDrain = 64 << 10
)

var (
	errIdle    = errors.New("http/1.1: connection was idle for too long")
	errHeaders = errors.New("http/1.1: request headers timed out")
)

// Server is one downstream connection; it implements transport.ServerConn.
type Server struct {
	rd   reader
	cfg  *transport.ServerConfig
	h    transport.Handler
	done func()
	// resume continues loop after a park; made once.
	resume    func()
	st        serverStream
	requests  int
	deadline  timer.Timer
	onIdle    func()
	onHeaders func()

	mu       sync.Mutex
	active   bool
	draining bool
	ended    bool
}

// NewServer prepares c; cfg is shared and read-only.
func NewServer(c netio.Conn, cfg *transport.ServerConfig, h transport.Handler) *Server {
	s := &Server{cfg: cfg, h: h}
	s.rd.c = c
	s.resume = func() { s.loop(true) }
	s.onIdle = func() { s.rd.c.Interrupt(errIdle) }
	s.onHeaders = func() { s.rd.c.Interrupt(errHeaders) }
	s.st.init(s)
	return s
}

// Serve drives the connection. On a connection that can park it returns at
// once whenever the connection is idle; on a socket it blocks. done is called
// once when the connection has ended.
func (s *Server) Serve(done func()) {
	s.done = done
	if d := s.cfg.MaxConnectionDuration; d > 0 {
		time.AfterFunc(d, s.Drain)
	}
	s.loop(false)
}

func (s *Server) maxHeaderBytes() int {
	if s.cfg.MaxHeaderBytes > 0 {
		return s.cfg.MaxHeaderBytes
	}
	return defaultMaxHeaderBytes
}

// loop serves requests until the connection is idle and parked, or ended. ready
// says that it was parked and has become readable.
func (s *Server) loop(ready bool) {
	for {
		if ready {
			ready = false
			s.leaveIdle()
		} else if len(s.rd.bytes()) == 0 {
			s.rd.release()
			if !s.idle() {
				s.end()
				return
			}
			if s.rd.c.Park(s.resume) {
				return
			}
			s.leaveIdle()
		} else {
			s.leaveIdle()
		}
		if !s.one() {
			if !s.st.taken {
				s.end()
			}
			return
		}
	}
}

// idle notes that the connection waits for a request; false if it should end.
func (s *Server) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.active = false
	d := s.cfg.IdleTimeout
	if d == 0 {
		d = defaultIdleTimeout
	}
	if d > 0 {
		s.deadline.Arm(d, s.onIdle)
	}
	return true
}

func (s *Server) leaveIdle() {
	s.deadline.Stop()
}

// one reads and serves one request; false ends the connection.
func (s *Server) one() bool {
	n, err := s.readHead()
	if err != nil {
		s.refuse(err)
		return false
	}
	st := &s.st
	st.begin()
	st.hd, err = parseRequest(s.rd.bytes()[:n], &st.header, s.cfg)
	s.rd.r += n
	if err == nil && st.hd.version == message.HTTP10 && !s.cfg.AcceptHTTP10 {
		err = errHTTP10
	}
	if err != nil {
		s.refuse(err)
		return false
	}
	s.requests++
	s.mu.Lock()
	s.active = true
	st.closeAfter = st.hd.close || s.draining || s.cfg.MaxRequestsPerConnection > 0 && s.requests >= s.cfg.MaxRequestsPerConnection
	s.mu.Unlock()
	st.prepare()
	s.h.ServeStream(st)
	return st.afterServe()
}

// readHead reads until a whole head is buffered and returns its length.
func (s *Server) readHead() (int, error) {
	limit := s.maxHeaderBytes()
	scanned := 0
	timed := false
	defer func() {
		if timed {
			s.deadline.Stop()
		}
	}()
	for {
		if scanned == 0 { // robustness: empty lines before a request (RFC 9112 2.2)
			for {
				b := s.rd.bytes()
				if len(b) < 2 || b[0] != '\r' || b[1] != '\n' {
					break
				}
				s.rd.r += 2
			}
		}
		b := s.rd.bytes()
		if n := headEnd(b, scanned); n > 0 {
			if n > limit {
				return 0, errTooLarge
			}
			return n, nil
		}
		if len(b) > 0 && hopeless(b) {
			return 0, errCodec
		}
		scanned = len(b)
		if len(b) > limit {
			return 0, errTooLarge
		}
		if d := s.cfg.HeadersTimeout; d > 0 && !timed && len(b) > 0 {
			timed = true
			s.deadline.Arm(d, s.onHeaders)
		}
		if err := s.rd.fill(netio.SmallBuffer); err != nil {
			if len(s.rd.bytes()) == 0 && errors.Is(err, io.EOF) {
				return 0, io.EOF
			}
			return 0, err
		}
	}
}

// hopeless tells early that what arrives is no HTTP request line.
func hopeless(b []byte) bool {
	if !tokenChar[b[0]] {
		return true
	}
	i := bytes.IndexByte(b, '\n')
	return i == 0 || i > 0 && b[i-1] != '\r'
}

// refuse ends a connection whose peer sent no request that can be served, with
// an answer if it makes sense.
func (s *Server) refuse(err error) {
	var pe *parseError
	switch {
	case errors.As(err, &pe):
	case errors.Is(err, errHeaders):
		pe = &parseError{408, "request_header_timeout"}
	default:
		return
	}
	s.h.ProtocolError(pe.status, pe.details)
	text := map[int]string{400: "Bad Request", 408: "Request Timeout", 426: "Upgrade Required", 431: "Request Header Fields Too Large", 501: "Not Implemented"}[pe.status]
	code := string([]byte{byte('0' + pe.status/100), byte('0' + pe.status/10%10), byte('0' + pe.status%10)})
	b := "HTTP/1.1 " + code + " " + text + "\r\n"
	if pe.status == 426 {
		b += "upgrade: HTTP/1.1\r\n"
	}
	_, _ = s.rd.c.Write([]byte(b + "content-length: 0\r\nconnection: close\r\n\r\n"))
	s.linger()
}

// linger closes the sending side and takes what the peer still sends for a
// moment, so that it can read the answer before a RST.
func (s *Server) linger() {
	_ = s.rd.c.CloseWrite()
	t := time.AfterFunc(time.Second, func() { s.rd.c.Interrupt(errIdle) })
	defer t.Stop()
	for total := 0; total < 1<<20; {
		s.rd.r = s.rd.w
		before := s.rd.in.Load()
		if s.rd.fill(netio.SmallBuffer) != nil {
			return
		}
		total += int(s.rd.in.Load() - before)
	}
}

// end closes the connection and tells the owner.
func (s *Server) end() {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return
	}
	s.ended = true
	s.mu.Unlock()
	s.deadline.Stop()
	s.rd.drop()
	_ = s.rd.c.Close()
	s.done()
}

// Drain implements transport.ServerConn. An idle connection is left alone: a
// request may be on its way. It is answered, and closed after that.
func (s *Server) Drain() {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
}

// Close implements transport.ServerConn.
func (s *Server) Close(cause error) {
	s.rd.c.Interrupt(cause)
	s.st.lost(cause)
}

// Active implements transport.ServerConn.
func (s *Server) Active() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active {
		return 1
	}
	return 0
}

var _ transport.ServerConn = (*Server)(nil)
