package metadataexchange

import (
	"errors"
	"io"
	"slices"
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/filters/internal/peers"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// conn is a connection whose peer begins with a frame. Its reader takes the frame
// off; all else passes. Bytes that are no frame are handed on as they came.
type conn struct {
	netio.Conn
	e    *exchange
	told *streaminfo.Awaited

	// through: nothing is between the reader and the connection any more. Park may
	// look at it while it is set by the reader before.
	through atomic.Bool
	r       frameReader
}

// frameReader is the state of a reader inside the frame. It asks for no byte more
// than the frame has, and for memory only as they come.
type frameReader struct {
	head    [peers.FrameHead]byte
	n       int    // read of head
	rest    uint32 // to read of the payload
	payload []byte // what was read of it, or a scratch buffer
	skip    bool   // the payload is too large to be looked at
	pending []byte // read, and no frame: the application's
	end     error  // follows pending
}

// Read implements netio.Conn.
func (c *conn) Read(p []byte) (int, error) { return c.read(p, c.Conn.Read) }

// TryRead implements netio.Conn.
func (c *conn) TryRead(p []byte) (int, error) { return c.read(p, c.Conn.TryRead) }

func (c *conn) read(p []byte, from func([]byte) (int, error)) (int, error) {
	if c.through.Load() || len(p) == 0 {
		return from(p)
	}
	for !c.r.over() {
		n, err := from(c.r.want())
		if c.r.feed(n, c); err != nil {
			if errors.Is(err, netio.ErrWouldBlock) {
				return 0, err
			}
			c.broken(err)
		}
	}
	if len(c.r.pending) > 0 {
		n := copy(p, c.r.pending)
		c.r.pending = c.r.pending[n:]
		c.pass()
		return n, nil
	}
	if c.pass(); c.r.end != nil {
		return 0, c.r.end
	}
	return from(p)
}

// pass takes the frame's reader away once it holds nothing.
func (c *conn) pass() {
	if c.r.end == nil && len(c.r.pending) == 0 {
		c.r = frameReader{n: peers.FrameHead}
		c.through.Store(true)
	}
}

// broken ends the frame by the end, or failure, of the connection: what came of a
// head is the application's, what came of a payload nobody's.
func (c *conn) broken(err error) {
	if c.r.over() {
		return
	}
	c.e.noFrame.Inc()
	c.told.Arrive(nil)
	if c.r.n < peers.FrameHead && errors.Is(err, io.EOF) {
		c.r.pending = c.r.head[:c.r.n]
	}
	c.r.end, c.r.n, c.r.rest, c.r.payload = err, peers.FrameHead, 0, nil
}

// over reports that the frame, or what came in its place, has been read.
func (r *frameReader) over() bool { return r.n == peers.FrameHead && r.rest == 0 }

// want is where the next bytes of the frame go.
func (r *frameReader) want() []byte {
	if r.n < peers.FrameHead {
		return r.head[r.n:]
	}
	n := len(r.payload)
	r.payload = slices.Grow(r.payload, int(min(r.rest, uint32(max(n, firstRead)))))
	return r.payload[n:min(cap(r.payload), n+int(min(r.rest, peers.MaxFrame)))]
}

// firstRead is how much of a payload is read at once in the beginning.
const firstRead = 2 << 10

// feed takes n bytes that were read to where want said.
func (r *frameReader) feed(n int, c *conn) {
	switch {
	case n == 0:
	case r.n < peers.FrameHead:
		if r.n += n; r.n == peers.FrameHead {
			r.start(c)
		}
	default:
		r.rest -= uint32(n)
		if !r.skip {
			r.payload = r.payload[:len(r.payload)+n]
		}
		if r.rest == 0 && !r.skip {
			c.learn(r.payload)
		}
	}
}

// start looks at a head.
func (r *frameReader) start(c *conn) {
	n, ok := peers.FrameLength(r.head[:])
	if !ok {
		c.e.noFrame.Inc()
		c.told.Arrive(nil)
		r.pending = r.head[:]
		return
	}
	r.rest = n
	if r.skip = n > peers.MaxFrame; r.skip || n == 0 {
		c.e.badFrame.Inc()
		c.told.Arrive(nil)
	}
}

// learn takes the payload of the peer's frame.
func (c *conn) learn(payload []byte) {
	p, ok := peers.FromFrame(payload, c.e.labels)
	if !ok || p == nil {
		c.e.badFrame.Inc()
		c.told.Arrive(nil)
		return
	}
	c.told.Arrive(p)
}

// Park implements netio.Conn. It may return before there is a byte for the
// application.
func (c *conn) Park(resume func()) bool {
	if !c.through.Load() && c.r.over() {
		return false
	}
	return c.Conn.Park(resume)
}

// WriteParts implements netio.PartsWriter.
func (c *conn) WriteParts(a, b, d []byte) error { return netio.WriteParts(c.Conn, a, b, d) }

// InterruptRead implements netio.ReadInterrupter.
func (c *conn) InterruptRead(cause error) { netio.InterruptRead(c.Conn, cause) }
