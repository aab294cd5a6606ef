package h1

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// reader is the receiving half of a connection: bytes that were read and not
// used. It holds a buffer only while there is something in flight.
type reader struct {
	c    netio.Conn
	buf  *[]byte
	r, w int
	in   atomic.Uint64
}

// bytes returns what is buffered.
func (r *reader) bytes() []byte {
	if r.buf == nil {
		return nil
	}
	return (*r.buf)[r.r:r.w]
}

// release gives the buffer back if nothing is in it.
func (r *reader) release() {
	if r.buf != nil && r.r == r.w {
		netio.PutBuffer(r.buf)
		r.buf, r.r, r.w = nil, 0, 0
	}
}

// drop gives the buffer back with what is in it.
func (r *reader) drop() { r.r = r.w; r.release() }

// room makes space for at least one more byte, size being the wanted capacity.
func (r *reader) room(size int) {
	if r.buf == nil {
		r.buf = netio.GetBuffer(size)
		r.r, r.w = 0, 0
		return
	}
	if r.r == r.w {
		r.r, r.w = 0, 0
		if len(*r.buf) < size && size <= netio.LargeBuffer {
			netio.PutBuffer(r.buf)
			r.buf = netio.GetBuffer(size)
		}
		return
	}
	if r.w < len(*r.buf) {
		return
	}
	if r.r > 0 {
		r.w = copy(*r.buf, (*r.buf)[r.r:r.w])
		r.r = 0
		return
	}
	r.buf = netio.GrowBuffer(r.buf, r.w, max(size, len(*r.buf)+1))
}

// fill reads more bytes, blocking.
func (r *reader) fill(size int) error {
	r.room(size)
	n, err := r.c.Read((*r.buf)[r.w:])
	r.w += n
	r.in.Add(uint64(n))
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// body is the payload of the message being received. It lives inside its
// connection's stream and is used for one message after the other.
type body struct {
	rd       *reader
	fr       framing
	left     uint64
	ch       chunked
	done     bool
	err      error
	trailer  message.Header
	trailers bool // section may be passed on
	seen     bool // there is a trailer section
	limit    int  // of trailer bytes
	fields   int
	// before, if not nil, runs before the first blocking read: 100 Continue.
	before func() error
	// onEnd, if not nil, is told once that the body is complete.
	onEnd func()

	imu     sync.Mutex // guards what follows
	reading bool
	stopped error
}

// Interrupt implements filters.Interrupter: a Next that waits, on whatever
// goroutine, and later ones fail with cause. If one waits, the connection is
// given up for it: a response has to be written before.
func (b *body) Interrupt(cause error) {
	b.imu.Lock()
	defer b.imu.Unlock()
	if b.stopped != nil {
		return
	}
	b.stopped = cause
	if b.reading {
		b.rd.c.Interrupt(cause)
	}
}

// fill reads more unless the body was interrupted.
func (b *body) fill(size int) error {
	b.imu.Lock()
	if err := b.stopped; err != nil {
		b.imu.Unlock()
		return err
	}
	b.reading = true
	b.imu.Unlock()
	err := b.rd.fill(size)
	b.imu.Lock()
	b.reading = false
	b.imu.Unlock()
	return err
}

func (b *body) reset(rd *reader, fr framing, length uint64) {
	b.rd, b.fr, b.left, b.done, b.err, b.seen = rd, fr, length, fr == framingNone, nil, false
	b.ch = chunked{}
	b.trailer.Reset()
	b.imu.Lock()
	b.stopped = nil
	b.imu.Unlock()
}

func (b *body) finish() {
	b.done = true
	if b.onEnd != nil {
		b.onEnd()
	}
}

func (b *body) fail(err error) error {
	if b.err == nil {
		b.err = err
	}
	return b.err
}

// broken turns a read error into what a stream reports.
func broken(err error) error {
	var pe *parseError
	switch {
	case errors.Is(err, io.EOF):
		return &transport.ResetError{Reason: transport.ConnectionTermination, Detail: "the peer closed before the message was complete"}
	case errors.As(err, &pe):
		return &transport.ResetError{Reason: transport.ProtocolError, Detail: pe.details}
	case transport.ReasonOf(err) != 0:
		return err
	}
	return &transport.ResetError{Reason: transport.ConnectionTermination, Detail: err.Error()}
}

// Next implements message.Body.
func (b *body) Next() ([]byte, bool, error) {
	for {
		if b.err != nil {
			return nil, false, b.err
		}
		if b.done {
			return nil, true, nil
		}
		if p, ok, err := b.take(); err != nil {
			return nil, false, b.fail(broken(err))
		} else if ok {
			return p, b.done, nil
		}
		if b.before != nil {
			f := b.before
			b.before = nil
			if err := f(); err != nil {
				return nil, false, b.fail(broken(err))
			}
		}
		size := netio.SmallBuffer
		if b.left > 2*netio.SmallBuffer || b.fr == framingUntilClose {
			size = netio.LargeBuffer
		}
		if err := b.fill(size); err != nil {
			if errors.Is(err, io.EOF) && b.fr == framingUntilClose {
				b.finish()
				return nil, true, nil
			}
			return nil, false, b.fail(broken(err))
		}
	}
}

// take uses buffered bytes; ok is false if more must be read first.
func (b *body) take() (p []byte, ok bool, err error) {
	buf := b.rd.bytes()
	switch b.fr {
	case framingNone:
	case framingLength:
		if len(buf) == 0 {
			return nil, false, nil
		}
		k := min(uint64(len(buf)), b.left)
		b.left -= k
		b.rd.r += int(k)
		if b.left == 0 {
			b.finish()
		}
		return buf[:k], true, nil
	case framingUntilClose:
		b.rd.r = b.rd.w
		return buf, len(buf) > 0, nil
	case framingChunked:
		return b.takeChunk(buf)
	}
	return nil, false, nil
}

func (b *body) takeChunk(buf []byte) (p []byte, ok bool, err error) {
	if b.ch.state == chunkTrailer {
		return b.takeTrailers(buf)
	}
	from, to, n, end, err := b.ch.next(buf)
	if err != nil {
		return nil, false, err
	}
	b.rd.r += n
	if end {
		return b.takeTrailers(buf[n:])
	}
	if to == from {
		return nil, false, nil
	}
	b.left = b.ch.left
	// Look ahead: if the last chunk is here already, the data can carry the end.
	if rest := buf[n:]; len(rest) > 0 {
		look := b.ch
		if _, _, m, end, err := look.next(rest); err == nil && end {
			b.ch = look
			b.rd.r += m
			if _, _, err := b.takeTrailers(rest[m:]); err != nil {
				return nil, false, err
			}
		}
	}
	return buf[from:to], true, nil
}

// takeTrailers reads the trailer section if it is complete.
func (b *body) takeTrailers(buf []byte) (p []byte, ok bool, err error) {
	n := 0
	switch {
	case len(buf) >= 2 && buf[0] == '\r' && buf[1] == '\n':
		n = 2
	default:
		if n = headEnd(buf, 0); n == 0 {
			if len(buf) > b.limit {
				return nil, false, errTooLarge
			}
			return nil, false, nil
		}
		if err := parseFields(buf[:n], &b.trailer, headerLimit(b.fields)); err != nil {
			return nil, false, err
		}
		b.trailer.DelFunc(func(f message.Field) bool { return forbiddenTrailer(f.Name) })
		b.seen = b.trailer.Len() > 0
	}
	b.rd.r += n
	b.finish()
	return nil, true, nil
}

// forbiddenTrailer lists fields that have no meaning, or a dangerous one, in a
// trailer section (RFC 9110 section 6.5.1).
func forbiddenTrailer(name string) bool {
	switch name {
	case "content-length", "transfer-encoding", "host", "connection", "keep-alive", "te", "trailer", "upgrade", "proxy-connection", "authorization", "content-encoding", "content-type":
		return true
	}
	return false
}

// Ready implements message.Body.
func (b *body) Ready() (int, bool) {
	if b.done || b.err != nil {
		return 0, b.done
	}
	n := len(b.rd.bytes())
	switch b.fr {
	case framingLength:
		if uint64(n) >= b.left {
			return int(b.left), true
		}
		return n, false
	case framingUntilClose:
		return n, false
	case framingChunked:
		look := b.ch
		if look.state == chunkTrailer {
			return 0, false
		}
		buf := b.rd.bytes()
		from, to, m, _, err := look.next(buf)
		if err != nil || to == from {
			return 0, false
		}
		_, _, k, end, err := look.next(buf[m:])
		rest := buf[m:]
		return to - from, err == nil && end && len(rest) >= k+2 && rest[k] == '\r' && rest[k+1] == '\n'
	case framingNone:
	}
	return 0, true
}

// Trailers implements message.Body.
func (b *body) Trailers() *message.Header {
	if b.seen && b.trailers {
		return &b.trailer
	}
	return nil
}

// Close implements message.Body. What the peer still sends is the
// connection's concern.
func (b *body) Close() {}
