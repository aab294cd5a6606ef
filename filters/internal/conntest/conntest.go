// Package conntest is a connection for tests of filters: it serves given bytes
// and keeps what is written.
package conntest

import (
	"crypto/tls"
	"errors"
	"io"
	"net/netip"

	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// ErrWait is what a read returns when all bytes are read and the peer has not
// ended: a real connection would block.
var ErrWait = errors.New("conntest: read would block")

// Conn implements netio.Conn.
type Conn struct {
	// In is what the peer sent. Chunk bounds one read; 0 means no bound.
	In    string
	Chunk int
	// Ended says that the peer ended its direction after In.
	Ended bool
	// Out is what was written; Closed and WasReset tell how it ended.
	Out              []byte
	Closed, WasReset bool
}

// Read implements netio.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if c.In == "" {
		if c.Ended {
			return 0, io.EOF
		}
		return 0, ErrWait
	}
	if c.Chunk > 0 && len(p) > c.Chunk {
		p = p[:c.Chunk]
	}
	n := copy(p, c.In)
	c.In = c.In[n:]
	return n, nil
}

// TryRead implements netio.Conn.
func (c *Conn) TryRead(p []byte) (int, error) {
	n, err := c.Read(p)
	if errors.Is(err, ErrWait) {
		err = netio.ErrWouldBlock
	}
	return n, err
}

// Write implements netio.Conn.
func (c *Conn) Write(p []byte) (int, error) { c.Out = append(c.Out, p...); return len(p), nil }

// Park implements netio.Conn.
func (c *Conn) Park(func()) bool { return false }

// CloseWrite implements netio.Conn.
func (c *Conn) CloseWrite() error { return nil }

// Close implements netio.Conn.
func (c *Conn) Close() error { c.Closed = true; return nil }

// Reset implements netio.Conn.
func (c *Conn) Reset() { c.WasReset = true }

// Interrupt implements netio.Conn.
func (c *Conn) Interrupt(error) {}

// LocalAddr implements netio.Conn.
func (c *Conn) LocalAddr() netip.AddrPort { return netip.AddrPort{} }

// RemoteAddr implements netio.Conn.
func (c *Conn) RemoteAddr() netip.AddrPort { return netip.AddrPort{} }

// TLS implements netio.Conn.
func (c *Conn) TLS() *tls.ConnectionState { return nil }
