package hcm

import (
	"errors"

	"github.com/fairlead-mesh/fairlead/internal/netio"
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// sniff looks for the HTTP/2 preface (codec AUTO without ALPN) and calls serve,
// or fail if the connection ends first. Nothing is held while it waits on a
// connection that can park.
func sniff(c netio.Conn, serve func(c netio.Conn, http2 bool), fail func()) {
	p := &prefixConn{Conn: c}
	p.sniff(false, serve, fail)
}

// sniff reads the first bytes; ready says that the connection has become
// readable.
func (p *prefixConn) sniff(ready bool, serve func(c netio.Conn, http2 bool), fail func()) {
	for {
		if !ready && p.Conn.Park(func() { p.sniff(true, serve, fail) }) {
			return
		}
		ready = false
		var b [len(preface)]byte
		n, err := p.Conn.TryRead(b[:len(preface)-len(p.prefix)])
		if errors.Is(err, netio.ErrWouldBlock) {
			continue
		}
		if err != nil || n == 0 {
			fail()
			return
		}
		p.prefix = append(p.prefix, b[:n]...)
		if string(p.prefix) != preface[:len(p.prefix)] {
			serve(p, false)
			return
		}
		if len(p.prefix) == len(preface) {
			serve(p, true)
			return
		}
	}
}

// prefixConn is a connection whose first bytes were read already.
type prefixConn struct {
	netio.Conn
	prefix []byte
}

func (p *prefixConn) take(b []byte) int {
	n := copy(b, p.prefix)
	if p.prefix = p.prefix[n:]; len(p.prefix) == 0 {
		p.prefix = nil
	}
	return n
}

func (p *prefixConn) Read(b []byte) (int, error) {
	if len(p.prefix) > 0 {
		return p.take(b), nil
	}
	return p.Conn.Read(b)
}

func (p *prefixConn) TryRead(b []byte) (int, error) {
	if len(p.prefix) > 0 {
		return p.take(b), nil
	}
	return p.Conn.TryRead(b)
}

func (p *prefixConn) Park(resume func()) bool {
	if len(p.prefix) > 0 {
		return false
	}
	return p.Conn.Park(resume)
}
