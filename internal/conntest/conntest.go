// Package conntest has connections that break, for tests of what holds them: at
// each step it must give back what it took, and say so once.
package conntest

import (
	"sync/atomic"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// Conn is a connection whose nth call that moves bytes, or ends its sending side,
// resets it.
type Conn struct {
	netio.Conn
	left  atomic.Int64
	ended atomic.Bool
}

// Break returns c with its nth call failing, n from 1, and what tells about it. If
// c is a netio.Looper, so is the connection.
func Break(c netio.Conn, n int) (netio.Conn, *Conn) {
	b := &Conn{Conn: c}
	b.left.Store(int64(n))
	switch l := c.(type) {
	case interface {
		netio.Looper
		netio.Dozer
	}:
		return &struct {
			*Conn
			netio.Looper
			netio.Dozer
		}{b, l, l}, b
	case netio.Looper:
		return &struct {
			*Conn
			netio.Looper
		}{b, l}, b
	}
	return b, b
}

// Broke reports whether the call that fails has been made.
func (b *Conn) Broke() bool { return b.left.Load() <= 0 }

// Ended reports whether the connection was closed or reset by its holder.
func (b *Conn) Ended() bool { return b.ended.Load() }

func (b *Conn) step() error {
	switch n := b.left.Add(-1); {
	case n > 0:
		return nil
	case n == 0:
		b.Conn.Reset()
	}
	return netio.ErrReset
}

// Read implements netio.Conn.
func (b *Conn) Read(p []byte) (int, error) {
	if err := b.step(); err != nil {
		return 0, err
	}
	return b.Conn.Read(p)
}

// TryRead implements netio.Conn.
func (b *Conn) TryRead(p []byte) (int, error) {
	if err := b.step(); err != nil {
		return 0, err
	}
	return b.Conn.TryRead(p)
}

// Write implements netio.Conn.
func (b *Conn) Write(p []byte) (int, error) {
	if err := b.step(); err != nil {
		return 0, err
	}
	return b.Conn.Write(p)
}

// CloseWrite implements netio.Conn.
func (b *Conn) CloseWrite() error {
	if err := b.step(); err != nil {
		return err
	}
	return b.Conn.CloseWrite()
}

// Close implements netio.Conn.
func (b *Conn) Close() error {
	b.ended.Store(true)
	return b.Conn.Close()
}

// Reset implements netio.Conn.
func (b *Conn) Reset() {
	b.ended.Store(true)
	b.Conn.Reset()
}

// Probe implements netio.Prober.
func (b *Conn) Probe() (readable, ended bool) {
	if p, ok := b.Conn.(netio.Prober); ok {
		return p.Probe()
	}
	return false, false
}

// maxSteps bounds how many calls are looked at.
const maxSteps = 100

// EachStep calls f with 1, 2 and so on, each in a test of its own, until it reports
// that its connection did not break.
func EachStep(t *testing.T, f func(t *testing.T, n int) (broke bool)) {
	t.Helper()
	for n := 1; n <= maxSteps && !t.Failed(); n++ {
		broke := false
		t.Run("", func(t *testing.T) { broke = f(t, n) })
		if !broke {
			return
		}
	}
}
