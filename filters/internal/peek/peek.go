// Package peek lets listener filters look at the first bytes of any
// connection.
package peek

import (
	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// Of returns a Peeker for c. If c.Conn is none, it is replaced by a wrapper
// that serves peeked bytes to its reader.
func Of(c *filters.Connection) netio.Peeker {
	if p, ok := c.Conn.(netio.Peeker); ok {
		return p
	}
	b := &buffered{Conn: c.Conn}
	c.Conn = b
	return b
}

// Max is the largest number of bytes that can be peeked at.
const Max = 64 << 10

// buffered holds what was read ahead. Its reader is one goroutine.
type buffered struct {
	netio.Conn
	ahead []byte
}

// Peek implements netio.Peeker.
func (b *buffered) Peek(n int) ([]byte, error) {
	n = min(n, Max)
	for len(b.ahead) < n {
		var chunk [1024]byte
		m, err := b.Conn.Read(chunk[:min(len(chunk), Max-len(b.ahead))])
		b.ahead = append(b.ahead, chunk[:m]...)
		if err != nil {
			return b.ahead[:min(n, len(b.ahead))], err
		}
	}
	return b.ahead[:n], nil
}

func (b *buffered) take(p []byte) int {
	n := copy(p, b.ahead)
	if b.ahead = b.ahead[n:]; len(b.ahead) == 0 {
		b.ahead = nil
	}
	return n
}

// Read implements netio.Conn.
func (b *buffered) Read(p []byte) (int, error) {
	if len(b.ahead) > 0 {
		return b.take(p), nil
	}
	return b.Conn.Read(p)
}

// TryRead implements netio.Conn.
func (b *buffered) TryRead(p []byte) (int, error) {
	if len(b.ahead) > 0 {
		return b.take(p), nil
	}
	return b.Conn.TryRead(p)
}

// Park implements netio.Conn.
func (b *buffered) Park(resume func()) bool {
	if len(b.ahead) > 0 {
		return false
	}
	return b.Conn.Park(resume)
}

// Consume reads exactly n bytes that have been peeked at.
func Consume(c netio.Conn, n int) error {
	var scratch [512]byte
	for n > 0 {
		m, err := c.Read(scratch[:min(n, len(scratch))])
		if err != nil {
			return err
		}
		n -= m
	}
	return nil
}

// Step asks for the next number of bytes to peek at when want are needed at
// least and have are there: one more than what is known, so that a peer that
// waits for an answer is never waited for.
func Step(have, want int) int { return max(have+1, want) }
