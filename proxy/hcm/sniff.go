package hcm

import (
	"errors"

	"github.com/fairlead-mesh/fairlead/internal/netio"
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// sniff looks for the HTTP/2 preface (codec AUTO without ALPN) and calls serve,
// or fail if the connection ends first. Nothing is held while it waits on a
// connection that can park.
func sniff(c netio.Conn, serve func(first []byte, http2 bool), fail func()) {
	(&sniffer{c: c, serve: serve, fail: fail}).run(false)
}

// sniffer is the search for the preface on one connection.
type sniffer struct {
	c     netio.Conn
	serve func(first []byte, http2 bool)
	fail  func()
	n     int
	buf   [len(preface)]byte
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
			s.fail()
			return
		}
		s.n += n
		got := s.buf[:s.n]
		if string(got) != preface[:s.n] {
			s.serve(got, false)
			return
		}
		if s.n == len(preface) {
			s.serve(got, true)
			return
		}
	}
}
