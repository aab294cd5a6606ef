package hcm

import (
	"errors"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/timer"
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// sniffed is told what a connection begins with.
type sniffed interface {
	serve(c netio.Conn, first []byte, http2 bool)
	fail(c netio.Conn)
}

var errSilent = errors.New("hcm: the client does not say what it speaks")

// sniff looks for the HTTP/2 preface (codec AUTO without ALPN) and calls serve,
// or fail if the connection ends first, or the idle timeout, if positive, is over.
// Nothing is held while it waits on a connection that can park.
func sniff(c netio.Conn, idle time.Duration, to sniffed) {
	s := &sniffer{c: c, to: to}
	if idle > 0 {
		s.idle.Arm(idle, func() { netio.InterruptRead(c, errSilent) })
	}
	s.run(false)
}

// sniffer is the search for the preface on one connection.
type sniffer struct {
	c    netio.Conn
	to   sniffed
	idle timer.Timer
	n    int
	buf  [len(preface)]byte
}

// serve hands the connection on, unless it is being interrupted.
func (s *sniffer) serve(http2 bool) {
	s.idle.Stop()
	if s.idle.Fired() {
		s.to.fail(s.c)
		return
	}
	s.to.serve(s.c, s.buf[:s.n], http2)
}

// run reads the first bytes; ready says that the connection has become readable.
func (s *sniffer) run(ready bool) {
	for {
		if !ready && s.c.Park(func() { s.run(true) }) {
			return
		}
		ready = false
		n, err := s.c.TryRead(s.buf[s.n:])
		if errors.Is(err, netio.ErrWouldBlock) {
			continue
		}
		if err != nil || n == 0 {
			s.idle.Stop()
			s.to.fail(s.c)
			return
		}
		s.n += n
		got := s.buf[:s.n]
		if string(got) != preface[:s.n] {
			s.serve(false)
			return
		}
		if s.n == len(preface) {
			s.serve(true)
			return
		}
	}
}
