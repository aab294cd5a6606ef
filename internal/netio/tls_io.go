package netio

import (
	"io"
	"net"
	"sync/atomic"
	"time"
)

// tlsIO is the net.Conn that crypto/tls sees.
type tlsIO struct {
	t     *tlsConn
	block bool // Read may block; owned by the reader

	// Received bytes, nil while there are none. crypto/tls is never given
	// bytes beyond the record that it reads, so that it keeps none back.
	buf  *[]byte
	r, w int
	size int // of the next buffer
	hdr  [5]byte
	nh   int // bytes of the record header seen
	left int // bytes of the record after its header

	out                  lockedBuffer
	closing, handshaking atomic.Bool
}

func (c *tlsIO) Read(p []byte) (int, error) {
	if c.buf == nil {
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n := 0
	if c.left == 0 {
		n = copy(p, c.hdrBytes())
		c.r += n
		c.nh += n
		if c.nh == len(c.hdr) {
			c.nh = 0
			c.left = int(c.hdr[3])<<8 | int(c.hdr[4])
		}
	}
	m := copy(p[n:], (*c.buf)[c.r:min(c.w, c.r+c.left)])
	c.r += m
	c.left -= m
	if c.r == c.w {
		c.drop()
	}
	return n + m, nil
}

// hdrBytes returns what is there of the missing part of the record header,
// having noted it.
func (c *tlsIO) hdrBytes() []byte {
	b := (*c.buf)[c.r:c.w]
	n := copy(c.hdr[c.nh:], b)
	return b[:n]
}

func (c *tlsIO) drop() {
	PutBuffer(c.buf)
	c.buf, c.r, c.w = nil, 0, 0
}

// fill reads a buffer full. Its size follows the traffic: small until a read
// fills it.
func (c *tlsIO) fill() error {
	var err error
	c.r = 0
	if c.t.sock != nil {
		c.buf, c.w, err = c.t.sock.readPooled(c.size, c.block)
	} else {
		b := GetBuffer(c.size)
		if c.block {
			c.w, err = c.t.inner.Read(*b)
		} else {
			c.w, err = c.t.inner.TryRead(*b)
		}
		if err != nil {
			PutBuffer(b)
			c.w = 0
		} else {
			c.buf = b
		}
	}
	if err != nil {
		if err == ErrWouldBlock { //nolint:errorlint // returned as it is
			c.size = SmallBuffer
			return wouldBlock{}
		}
		return err
	}
	if c.w == len(*c.buf) {
		c.size = LargeBuffer
	}
	return nil
}

func (c *tlsIO) Write(p []byte) (int, error) {
	o := &c.out
	if c.closing.Load() {
		// Closing does not wait for a writer that is stuck.
		if !o.mu.TryLock() {
			return 0, io.ErrShortWrite
		}
	} else {
		o.mu.Lock()
	}
	defer o.mu.Unlock()
	if o.corked {
		if o.n+len(p) > LargeBuffer {
			if err := c.flushLocked(); err != nil {
				return 0, err
			}
		}
		o.b = GrowBuffer(o.b, o.n, o.n+len(p))
		o.n += copy((*o.b)[o.n:], p)
		return len(p), nil
	}
	if c.closing.Load() && c.t.sock != nil {
		if n := c.t.sock.tryWrite(p); n < len(p) {
			return n, io.ErrShortWrite
		}
		return len(p), nil
	}
	return c.t.inner.Write(p)
}

// cork makes writes collect until uncork. Only the writer calls it; records
// that the reader's side of crypto/tls writes meanwhile (key updates) join.
func (c *tlsIO) cork() {
	c.out.mu.Lock()
	c.out.corked = true
	c.out.mu.Unlock()
}

func (c *tlsIO) uncork() error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.corked = false
	return c.flushLocked()
}

func (c *tlsIO) flushLocked() error {
	o := &c.out
	if o.n == 0 {
		return nil
	}
	_, err := c.t.inner.Write((*o.b)[:o.n])
	PutBuffer(o.b)
	o.b, o.n = nil, 0
	return err
}

// take returns the collected records for a WriteRead and ends the corking.
func (c *tlsIO) take() (*[]byte, int) {
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	b, n := o.b, o.n
	o.b, o.n, o.corked = nil, 0, false
	return b, n
}

// Close is called by crypto/tls when a handshake's context ends, and by
// tls.Conn.Close; what to do with the connection below is tlsConn's business.
func (c *tlsIO) Close() error {
	if c.handshaking.Load() {
		c.t.inner.Interrupt(errHandshake)
	}
	return nil
}

func (c *tlsIO) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.t.LocalAddr()) }

func (c *tlsIO) RemoteAddr() net.Addr             { return net.TCPAddrFromAddrPort(c.t.RemoteAddr()) }
func (c *tlsIO) SetDeadline(time.Time) error      { return nil }
func (c *tlsIO) SetReadDeadline(time.Time) error  { return nil }
func (c *tlsIO) SetWriteDeadline(time.Time) error { return nil }
