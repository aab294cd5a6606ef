package netio

import (
	"crypto/tls"
	"io"
	"net/netip"
	"sync"
)

// pipeLimit bounds the bytes that one direction of a Pipe holds.
const pipeLimit = LargeBuffer

// Pipe returns two connected in-memory streams with bounded buffers (64 KiB
// each way) whose Park calls back. a's remote is b's local address and so on.
func Pipe(aLocal, aRemote netip.AddrPort) (a, b Conn) {
	p := &pipe{}
	p.cond.L = &p.mu
	p.end[0] = pipeEnd{p: p, local: aLocal, remote: aRemote, peer: &p.end[1]}
	p.end[1] = pipeEnd{p: p, local: aRemote, remote: aLocal, peer: &p.end[0]}
	return &p.end[0], &p.end[1]
}

type pipe struct {
	mu   sync.Mutex
	cond sync.Cond
	end  [2]pipeEnd
}

// pipeEnd is one end; it owns the buffer of the direction that it reads.
type pipeEnd struct {
	p             *pipe
	peer          *pipeEnd
	local, remote netip.AddrPort

	buf    *[]byte // received, nil while empty
	r, w   int
	peeked []byte
	eof    bool  // the peer ended its direction
	reset  bool  // the peer reset, or closed and takes no more
	closed bool  // closed by this side
	ended  bool  // CloseWrite was called
	cause  error // of both directions
	rcause error // of reading only
	resume func()
}

func (e *pipeEnd) LocalAddr() netip.AddrPort  { return e.local }
func (e *pipeEnd) RemoteAddr() netip.AddrPort { return e.remote }
func (e *pipeEnd) TLS() *tls.ConnectionState  { return nil }

// readableLocked reports whether a read would return.
func (e *pipeEnd) readableLocked() bool {
	return e.r < e.w || e.eof || e.reset || e.closed || e.cause != nil || e.rcause != nil
}

// wakeLocked tells the reader of e, and writers to it, that something changed.
func (e *pipeEnd) wakeLocked() {
	e.p.cond.Broadcast()
	if e.resume != nil && e.readableLocked() {
		f := e.resume
		e.resume = nil
		go f()
	}
}

func (e *pipeEnd) Read(p []byte) (int, error) {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	for len(p) > 0 && !e.readableLocked() {
		e.p.cond.Wait()
	}
	return e.takeLocked(p)
}

func (e *pipeEnd) TryRead(p []byte) (int, error) {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	if len(p) > 0 && !e.readableLocked() {
		return 0, ErrWouldBlock
	}
	return e.takeLocked(p)
}

func (e *pipeEnd) takeLocked(p []byte) (int, error) {
	switch {
	case e.cause != nil:
		return 0, e.cause
	case e.closed:
		return 0, ErrClosed
	case e.rcause != nil:
		return 0, e.rcause
	case len(p) == 0:
		return 0, nil
	case e.reset && !e.eof:
		return 0, ErrReset
	case e.r == e.w:
		return 0, io.EOF
	}
	n := copy(p, (*e.buf)[e.r:e.w])
	full := e.w-e.r >= pipeLimit // more, if bytes were put back
	e.r += n
	if e.r == e.w {
		e.dropLocked()
	}
	if full {
		e.p.cond.Broadcast()
	}
	return n, nil
}

func (e *pipeEnd) dropLocked() {
	PutBuffer(e.buf)
	e.buf, e.r, e.w = nil, 0, 0
}

func (e *pipeEnd) Write(p []byte) (int, error) {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	d, n := e.peer, 0
	for {
		switch {
		case e.cause != nil:
			return n, e.cause
		case e.closed || e.ended:
			return n, ErrClosed
		case e.reset || d.closed:
			return n, ErrReset
		case len(p) == n:
			return n, nil
		}
		room := pipeLimit - (d.w - d.r)
		if room <= 0 {
			e.p.cond.Wait()
			continue
		}
		m := min(room, len(p)-n)
		d.putLocked(p[n : n+m])
		n += m
		d.wakeLocked()
	}
}

func (e *pipeEnd) putLocked(p []byte) {
	if e.buf != nil && e.r > 0 && e.w+len(p) > len(*e.buf) {
		e.w = copy(*e.buf, (*e.buf)[e.r:e.w])
		e.r = 0
	}
	e.buf = GrowBuffer(e.buf, e.w, e.w+len(p))
	e.w += copy((*e.buf)[e.w:], p)
}

func (e *pipeEnd) putBack(p []byte) {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	b := GetBuffer(len(p) + e.w - e.r)
	w := copy(*b, p)
	if e.buf != nil {
		w += copy((*b)[w:], (*e.buf)[e.r:e.w])
	}
	e.dropLocked()
	e.buf, e.w = b, w
	e.wakeLocked()
}

// Peek implements Peeker.
func (e *pipeEnd) Peek(n int) ([]byte, error) {
	n = min(n, pipeLimit)
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	for e.w-e.r < n && !e.eof && !e.reset && !e.closed && e.cause == nil && e.rcause == nil {
		e.p.cond.Wait()
	}
	if e.w-e.r < n {
		var err error
		if e.r == e.w || e.cause != nil || e.rcause != nil || e.closed {
			_, err = e.takeLocked(make([]byte, 1))
			return nil, err
		}
		e.peeked = append(e.peeked[:0], (*e.buf)[e.r:e.w]...)
		return e.peeked, io.EOF
	}
	if n == 0 {
		return nil, nil
	}
	// A copy: the buffer moves when the peer writes.
	e.peeked = append(e.peeked[:0], (*e.buf)[e.r:e.r+n]...)
	return e.peeked, nil
}

func (e *pipeEnd) Park(resume func()) bool {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	if e.readableLocked() {
		go resume()
		return true
	}
	e.resume = resume
	return true
}

// Unpark implements Unparker.
func (e *pipeEnd) Unpark() bool {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	was := e.resume != nil
	e.resume = nil
	return was
}

// Probe implements Prober.
func (e *pipeEnd) Probe() (readable, ended bool) {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	return e.readableLocked(), e.eof || e.reset || e.closed
}

func (e *pipeEnd) CloseWrite() error {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	if e.closed {
		return ErrClosed
	}
	e.ended = true
	e.peer.eof = true
	e.peer.wakeLocked()
	e.wakeLocked()
	return nil
}

func (e *pipeEnd) Close() error { e.end(false); return nil }

func (e *pipeEnd) Reset() { e.end(true) }

func (e *pipeEnd) end(abrupt bool) {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	if e.closed {
		return
	}
	e.closed = true
	e.dropLocked()
	if abrupt && !e.ended {
		e.peer.reset = true
		e.peer.dropLocked()
	} else {
		e.peer.eof = true
	}
	e.peer.wakeLocked()
	e.wakeLocked()
}

func (e *pipeEnd) Interrupt(cause error) {
	if cause == nil {
		cause = ErrClosed
	}
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	if e.cause == nil {
		e.cause = cause
	}
	e.wakeLocked()
}

// InterruptRead implements ReadInterrupter.
func (e *pipeEnd) InterruptRead(cause error) {
	if cause == nil {
		cause = ErrClosed
	}
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	if e.rcause == nil {
		e.rcause = cause
	}
	e.wakeLocked()
}
