package h1

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// reader is the receiving half of a connection: bytes that were read and not
// used. It holds a buffer only while there are any.
type reader struct {
	c    netio.Conn
	buf  *[]byte
	r, w int
	in   atomic.Uint64
	held atomic.Int64 // size of buf
	// total counts the bytes of all such connections; server only.
	total *stats.Counter
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
		r.held.Store(0)
	}
}

// drop gives the buffer back with what is in it.
func (r *reader) drop() { r.r = r.w; r.release() }

// room makes space for at least one more byte, size being the wanted capacity.
func (r *reader) room(size int) {
	switch {
	case r.buf == nil || r.r == r.w && len(*r.buf) < size:
		netio.PutBuffer(r.buf)
		r.buf, r.r, r.w = netio.GetBuffer(size), 0, 0
		r.held.Store(int64(len(*r.buf)))
	case r.r == r.w:
		r.r, r.w = 0, 0
	case r.w < len(*r.buf):
	case r.r > 0:
		r.w = copy(*r.buf, (*r.buf)[r.r:r.w])
		r.r = 0
	default:
		r.buf = netio.GrowBuffer(r.buf, r.w, len(*r.buf)+1)
		r.held.Store(int64(len(*r.buf)))
	}
}

// fill reads more bytes, blocking.
func (r *reader) fill(size int) error {
	r.room(size)
	n, err := r.c.Read((*r.buf)[r.w:])
	return r.filled(n, err)
}

// tryFill is fill without blocking.
func (r *reader) tryFill(size int) error {
	r.room(size)
	n, err := r.c.TryRead((*r.buf)[r.w:])
	return r.filled(n, err)
}

func (r *reader) filled(n int, err error) error {
	if n > 0 {
		r.w += n
		r.in.Add(uint64(n))
		r.total.Add(uint64(n))
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
	rd      *reader
	fr      framing
	left    uint64
	ch      chunked
	scanned int // of an incomplete trailer section

	have bool // a chunk was decoded by Ready
	next []byte
	last bool
	err  error
	// ended: everything was received. It is read by other goroutines.
	ended atomic.Bool

	p        parser
	trailer  message.Header
	trailers bool // the section may be passed on
	seen     bool // there is one
	maxBytes int  // of the section
	maxCount int

	// response: the message comes from an origin.
	response bool
	// cause, if not nil, returns why the stream was interrupted.
	cause func() error

	halted  atomic.Bool // stopped is set
	mu      sync.Mutex  // guards what follows
	reading bool
	stopped error
}

// Interrupt implements filters.Interrupter: a Next that waits, on whatever
// goroutine, and later ones fail with cause. The connection can't be read any
// more; what is written goes on.
func (b *body) Interrupt(cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped != nil {
		return
	}
	b.stopped = cause
	b.halted.Store(true)
	if b.reading {
		netio.InterruptRead(b.rd.c, cause)
	}
}

// fill reads more unless the body was interrupted.
func (b *body) fill(size int) error {
	b.mu.Lock()
	if err := b.stopped; err != nil {
		b.mu.Unlock()
		return err
	}
	b.reading = true
	b.mu.Unlock()
	err := b.rd.fill(size)
	b.mu.Lock()
	b.reading = false
	if b.stopped != nil && err != nil {
		err = b.stopped
	}
	b.mu.Unlock()
	return err
}

// begin readies b for a message.
func (b *body) begin(fr framing, length uint64) {
	b.fr, b.left, b.ch, b.scanned = fr, length, chunked{}, 0
	b.have, b.next, b.last, b.err, b.seen = false, nil, false, nil, false
	if none := fr == framingNone; b.ended.Load() != none {
		b.ended.Store(none)
	}
	if b.halted.Load() {
		b.mu.Lock()
		b.stopped = nil
		b.halted.Store(false)
		b.mu.Unlock()
	}
}

// asReset turns a read or write error into what a stream reports.
func asReset(err error) error {
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

// fail makes err the body's end. Causes of interruptions stay as they are.
func (b *body) fail(err error) error {
	b.mu.Lock()
	stopped := b.stopped
	b.mu.Unlock()
	switch {
	case stopped != nil && errors.Is(err, stopped):
		b.err = stopped
	case b.cause != nil && b.cause() != nil:
		b.err = b.cause()
	default:
		b.err = asReset(err)
	}
	return b.err
}

// Next implements message.Body.
func (b *body) Next() ([]byte, bool, error) {
	for {
		switch {
		case b.err != nil:
			return nil, false, b.err
		case b.have:
			p := b.next
			b.have, b.next = false, nil
			return p, b.last, nil
		case b.ended.Load():
			b.last = true
			return nil, true, nil
		}
		if err := b.take(); err != nil {
			return nil, false, b.fail(err)
		}
		if b.have || b.ended.Load() {
			continue
		}
		err := b.fill(b.wanted())
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && b.fr == framingUntilClose:
			b.ended.Store(true)
		case errors.Is(err, io.EOF) && b.response:
			return nil, false, b.fail(errCutOff)
		default:
			return nil, false, b.fail(err)
		}
	}
}

// wanted is how large a buffer pays.
func (b *body) wanted() int {
	switch left := max(b.left, b.ch.left); {
	case b.fr == framingUntilClose || left > netio.MediumBuffer:
		return netio.LargeBuffer
	case left > netio.SmallBuffer || b.fr == framingChunked:
		return netio.MediumBuffer
	}
	return netio.SmallBuffer
}

// take decodes buffered bytes: a chunk into next, or the end.
func (b *body) take() error {
	buf := b.rd.bytes()
	if len(buf) == 0 {
		return nil
	}
	switch b.fr {
	case framingNone:
	case framingLength:
		k := min(uint64(len(buf)), b.left)
		b.left -= k
		b.rd.r += int(k)
		b.put(buf[:k], b.left == 0)
	case framingUntilClose:
		b.rd.r = b.rd.w
		b.put(buf, false)
	case framingChunked:
		return b.takeChunks(buf)
	}
	return nil
}

func (b *body) put(p []byte, last bool) {
	b.have, b.next, b.last = true, p, last
	if last {
		b.ended.Store(true)
	}
}

func (b *body) takeChunks(buf []byte) error {
	data, n, err := b.ch.decode(buf)
	if err != nil {
		return err
	}
	b.rd.r += n
	end := false
	if b.ch.state == chunkTrailer {
		if end, err = b.takeTrailers(b.rd.bytes()); err != nil {
			return err
		}
	}
	if len(data) > 0 || end {
		b.put(data, end)
	}
	return nil
}

// takeTrailers reads the trailer section if it is complete.
func (b *body) takeTrailers(buf []byte) (end bool, err error) {
	n := 2
	if len(buf) < 2 || buf[0] != '\r' || buf[1] != '\n' {
		if len(buf) > 0 && !tokenChar[buf[0]] && (len(buf) > 1 || buf[0] != '\r') {
			return false, errCodec
		}
		n = headEnd(buf, b.scanned)
		b.scanned = len(buf)
		switch {
		case n > b.maxBytes, n == 0 && len(buf) > b.maxBytes:
			return false, errTooLarge
		case n == 0:
			return false, nil
		}
		b.trailer.Reset() // a former message's
		into := &b.trailer
		if !b.trailers {
			into = nil // checked and dropped
		}
		if err := b.p.fields(buf[:n], into, fieldLimit(b.maxCount), inTrailers); err != nil {
			return false, err
		}
		b.seen = b.trailer.Len() > 0
	}
	b.rd.r += n
	return true, nil
}

// Ready implements message.Body. What is ready is decoded in place; nothing is
// read.
func (b *body) Ready() (int, bool) {
	if !b.have && b.err == nil && !b.ended.Load() {
		if err := b.take(); err != nil {
			_ = b.fail(err)
		}
	}
	switch {
	case b.err != nil:
		return 0, false
	case b.have:
		return len(b.next), b.last
	}
	return 0, b.ended.Load()
}

// whole reports whether all of the body is in the buffer.
func (b *body) whole() bool {
	if b.fr == framingLength { // without decoding
		return uint64(len(b.rd.bytes())) >= b.left
	}
	_, last := b.Ready()
	return last
}

// discard skips what is buffered and reports whether the body ends in it.
func (b *body) discard() bool {
	for b.err == nil && !b.ended.Load() {
		b.have, b.next = false, nil
		n := len(b.rd.bytes())
		if err := b.take(); err != nil {
			_ = b.fail(err)
		}
		if len(b.rd.bytes()) == n {
			break
		}
	}
	b.have, b.next = false, nil
	return b.err == nil && b.ended.Load()
}

// Trailers implements message.Body.
func (b *body) Trailers() *message.Header {
	if b.seen {
		return &b.trailer
	}
	return nil
}

// Close implements message.Body. What the peer still sends is the connection's
// concern.
func (b *body) Close() {}
