package h1

import (
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// tunnel is a connection after CONNECT or 101. Its end ends the HTTP connection
// that it was.
type tunnel struct {
	netio.Conn
	closed atomic.Bool
	ended  func()
}

// newTunnel wraps c; ended is called once when the tunnel is closed or reset.
func newTunnel(c netio.Conn, ended func()) netio.Conn {
	t := &tunnel{Conn: c, ended: ended}
	if l, ok := c.(netio.Looper); ok {
		return &loopTunnel{t, l}
	}
	return t
}

// loopTunnel is a tunnel over a netio.Looper.
type loopTunnel struct {
	*tunnel
	netio.Looper
}

// Recheck implements netio.Rechecker.
func (t *loopTunnel) Recheck() bool {
	r, ok := t.Conn.(netio.Rechecker)
	return ok && r.Recheck()
}

// Close implements netio.Conn.
func (t *tunnel) Close() error {
	err := t.Conn.Close()
	t.end()
	return err
}

// Reset implements netio.Conn.
func (t *tunnel) Reset() {
	t.Conn.Reset()
	t.end()
}

func (t *tunnel) end() {
	if !t.closed.Swap(true) {
		t.ended()
	}
}

// WriteParts implements netio.PartsWriter.
func (t *tunnel) WriteParts(a, b, c []byte) error { return netio.WriteParts(t.Conn, a, b, c) }

// InterruptRead implements netio.ReadInterrupter.
func (t *tunnel) InterruptRead(cause error) { netio.InterruptRead(t.Conn, cause) }
