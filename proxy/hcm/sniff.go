package hcm

import (
	"errors"

	"github.com/fairlead-mesh/fairlead/internal/netio"
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// sniffed is told what a connection begins with.
type sniffed interface {
	serve(c netio.Conn, first []byte, http2 bool)
	fail(c netio.Conn)
}

// sniff looks for the HTTP/2 preface (codec AUTO without ALPN) and calls serve,
// or fail if the connection ends first. Nothing is held while it waits on a
// connection that can park.
func sniff(c netio.Conn, to sniffed) { (&sniffer{c: c, to: to}).run(false) }

// sniffer is the search for the preface on one connection.
type sniffer struct {
	c   netio.Conn
	to  sniffed
	n   int
	buf [len(preface)]byte
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
			s.to.fail(s.c)
			return
		}
		s.n += n
		got := s.buf[:s.n]
		if string(got) != preface[:s.n] {
			s.to.serve(s.c, got, false)
			return
		}
		if s.n == len(preface) {
			s.to.serve(s.c, got, true)
			return
		}
	}
}
