package netio

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/timer"
)

// ServerTLS runs the server side of a handshake on c and returns the protected
// stream. ctx bounds the handshake. On error c is closed. cfg is used as it
// is; for bulk transfers DynamicRecordSizingDisabled saves records.
func ServerTLS(ctx context.Context, c Conn, cfg *tls.Config) (Conn, error) {
	return startTLS(ctx, c, func(io *tlsIO) *tls.Conn { return tls.Server(io, cfg) })
}

// ClientTLS is ServerTLS for the client side.
func ClientTLS(ctx context.Context, c Conn, cfg *tls.Config) (Conn, error) {
	return startTLS(ctx, c, func(io *tlsIO) *tls.Conn { return tls.Client(io, cfg) })
}

func startTLS(ctx context.Context, c Conn, wrap func(*tlsIO) *tls.Conn) (Conn, error) {
	t := &tlsConn{inner: c}
	t.sock, _ = c.(pooledReader)
	t.io.t, t.io.block, t.io.size = t, true, SmallBuffer
	t.io.handshaking.Store(true)
	t.tc = wrap(&t.io)
	if err := t.tc.HandshakeContext(ctx); err != nil {
		t.io.drop()
		// The alert, if any, is on its way; a reset would overtake it.
		_ = c.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else if cause := t.cause.Load(); cause != nil {
			err = *cause
		}
		return nil, fmt.Errorf("tls handshake with %v: %w", c.RemoteAddr(), err)
	}
	t.io.block = false
	t.io.handshaking.Store(false)
	cs := t.tc.ConnectionState()
	t.state = &cs
	p, _ := c.(Prober)
	switch c := c.(type) {
	case interface {
		Looper
		Dozer
	}:
		return &tlsDozer{tlsLooper{t, c, tlsProber{t, p}}, c}, nil
	case Looper:
		return &tlsLooper{t, c, tlsProber{t, p}}, nil
	case Unparker:
		return &tlsParker{t, c, tlsProber{t, p}}, nil
	}
	return t, nil
}

// pooledReader reads into a pooled buffer that is taken only once something
// can be read; sockets have it.
type pooledReader interface {
	readPooled(size int, block bool) (*[]byte, int, error)
	drained() bool
	tryWrite(p []byte) int
}

// tlsConn is TLS over any Conn. crypto/tls does the records and is driven
// without blocking: the connection that it sees, tlsIO, serves what has been
// read in large pieces and answers "would block" else. What it writes is
// collected and leaves in one write.
type tlsConn struct {
	inner  Conn
	sock   pooledReader // inner, if it is a raw socket
	tc     *tls.Conn
	io     tlsIO
	state  *tls.ConnectionState
	cause  atomic.Pointer[error]
	rcause atomic.Pointer[error] // of reading only

	// Reader's state.
	one    [1]byte // read by Park
	hasOne bool
	unread putBack
	full   bool  // the last read filled its buffer: more plaintext may wait
	rerr   error // found by Park
	resume func()

	closing timer.Timer
	closed  atomic.Bool
}

// tlsLooper is a tlsConn over a Looper.
type tlsLooper struct {
	*tlsConn
	Looper
	tlsProber
}

// tlsDozer is a tlsLooper over a Dozer.
type tlsDozer struct {
	tlsLooper
	Dozer
}

// tlsParker is a tlsConn over an Unparker.
type tlsParker struct {
	*tlsConn
	Unparker
	tlsProber
}

// tlsProber asks the connection below; what it has may be records without
// plaintext.
type tlsProber struct {
	t *tlsConn
	p Prober
}

// Probe implements Prober.
func (p tlsProber) Probe() (readable, ended bool) {
	if p.p == nil {
		return false, false
	}
	return p.p.Probe()
}

func (t *tlsConn) LocalAddr() netip.AddrPort  { return t.inner.LocalAddr() }
func (t *tlsConn) RemoteAddr() netip.AddrPort { return t.inner.RemoteAddr() }
func (t *tlsConn) TLS() *tls.ConnectionState  { return t.state }

func (t *tlsConn) fail(err error) error {
	if c := t.cause.Load(); c != nil {
		return *c
	}
	if t.closed.Load() && !errors.Is(err, io.EOF) {
		return ErrClosed
	}
	return err
}

// readFail is fail for the reading side.
func (t *tlsConn) readFail(err error) error {
	if c := t.rcause.Load(); c != nil && t.cause.Load() == nil {
		return *c
	}
	return t.fail(err)
}

func (t *tlsConn) Read(p []byte) (int, error) {
	if n, err := t.pending(p); n > 0 || err != nil || len(p) == 0 {
		return n, err
	}
	t.io.block = true
	n, err := t.tc.Read(p)
	t.io.block = false
	return t.done(p, n, err)
}

func (t *tlsConn) TryRead(p []byte) (int, error) {
	if n, err := t.pending(p); n > 0 || err != nil || len(p) == 0 {
		return n, err
	}
	if !t.full && t.io.buf == nil && t.sock != nil && t.sock.drained() {
		return 0, ErrWouldBlock // crypto/tls would allocate to find that out
	}
	n, err := t.tc.Read(p)
	return t.done(p, n, err)
}

// pending serves what was put back, and what Park read ahead: one byte, then
// the rest of its record.
func (t *tlsConn) pending(p []byte) (int, error) {
	if t.unread.b != nil && len(p) > 0 {
		return t.unread.read(p), nil
	}
	if t.rerr != nil {
		return 0, t.readFail(t.rerr)
	}
	if !t.hasOne || len(p) == 0 {
		return 0, nil
	}
	t.hasOne = false
	p[0] = t.one[0]
	if len(p) == 1 {
		return 1, nil
	}
	n, err := t.tc.Read(p[1:])
	t.full = n == len(p)-1 && err == nil
	if err != nil && !errors.Is(err, ErrWouldBlock) {
		t.rerr = err
	}
	return 1 + n, nil
}

func (t *tlsConn) done(p []byte, n int, err error) (int, error) {
	t.full = n == len(p)
	if n > 0 || err == nil {
		return n, nil
	}
	if errors.Is(err, ErrWouldBlock) {
		return 0, ErrWouldBlock
	}
	t.io.drop()
	return 0, t.readFail(err)
}

// Holds implements Holder.
func (t *tlsConn) Holds() bool {
	return t.hasOne || t.full || t.io.buf != nil || t.unread.b != nil || t.rerr != nil
}

// Park waits until a byte of plaintext, the end or an error is there: bytes on
// the connection below may be part of a record, or none of ours.
func (t *tlsConn) Park(resume func()) bool {
	for !t.ahead() {
		t.resume = resume
		if t.inner.Park(t.unparked) {
			return true
		}
	}
	return false
}

func (t *tlsConn) unparked() {
	for !t.ahead() {
		if t.inner.Park(t.unparked) {
			return
		}
	}
	t.resume()
}

// ahead tries to read one byte and reports whether a read would return.
func (t *tlsConn) ahead() bool {
	if t.hasOne || t.unread.b != nil || t.rerr != nil || t.cause.Load() != nil || t.closed.Load() {
		return true
	}
	n, err := t.tc.Read(t.one[:])
	t.hasOne = n > 0
	if n == 0 && err != nil {
		if errors.Is(err, ErrWouldBlock) {
			return false
		}
		t.rerr = err
		t.io.drop()
	}
	return true
}

func (t *tlsConn) putBack(p []byte) { t.unread.put(p) }

func (t *tlsConn) Write(p []byte) (int, error) {
	t.io.cork()
	n, err := t.tc.Write(p)
	if e := t.io.uncork(); err == nil && e != nil {
		n, err = 0, e
	}
	if err != nil {
		err = t.fail(err)
	}
	return n, err
}

// WriteParts implements PartsWriter.
func (t *tlsConn) WriteParts(a, b, c []byte) error {
	if n := len(a) + len(b) + len(c); n <= MediumBuffer { // one record
		buf := GetBuffer(n)
		k := copy(*buf, a)
		k += copy((*buf)[k:], b)
		k += copy((*buf)[k:], c)
		_, err := t.Write((*buf)[:k])
		PutBuffer(buf)
		return err
	}
	t.io.cork()
	var err error
	for _, p := range [...][]byte{a, b, c} {
		if len(p) > 0 && err == nil {
			_, err = t.tc.Write(p)
		}
	}
	if e := t.io.uncork(); err == nil {
		err = e
	}
	if err != nil {
		err = t.fail(err)
	}
	return err
}

// WriteRead implements Exchanger.
func (t *tlsConn) WriteRead(out, in []byte) (n int, wrote bool, err error) {
	x, ok := t.inner.(Exchanger)
	if !ok || len(out) == 0 || t.io.buf != nil || t.full || t.hasOne || t.unread.b != nil {
		if _, err = t.Write(out); err != nil {
			return 0, false, err
		}
		n, err = t.Read(in)
		return n, true, err
	}
	t.io.cork()
	if _, err = t.tc.Write(out); err != nil {
		_ = t.io.uncork()
		return 0, false, t.fail(err)
	}
	records, k := t.io.take()
	buf := GetBuffer(t.io.size)
	m, wrote, err := x.WriteRead((*records)[:k], *buf)
	PutBuffer(records)
	if err != nil {
		PutBuffer(buf)
		return 0, wrote, t.fail(err)
	}
	t.io.buf, t.io.r, t.io.w = buf, 0, m
	n, err = t.Read(in)
	return n, true, err
}

func (t *tlsConn) CloseWrite() error {
	if err := t.tc.CloseWrite(); err != nil {
		return t.fail(err)
	}
	return t.inner.CloseWrite()
}

// closeGrace bounds how long the close_notify may wait for a peer that does
// not read.
const closeGrace = time.Second

func (t *tlsConn) Close() error {
	if t.closed.Swap(true) {
		return nil
	}
	if t.sock == nil {
		t.closing.Arm(closeGrace, t.giveUp)
	}
	t.io.closing.Store(true)
	_ = t.tc.Close() // close_notify, then tlsIO.Close
	t.closing.Stop()
	return t.inner.Close()
}

func (t *tlsConn) giveUp() { t.inner.Interrupt(ErrClosed) }

func (t *tlsConn) Reset() {
	t.closed.Store(true)
	t.inner.Reset()
}

func (t *tlsConn) Interrupt(cause error) {
	if cause == nil {
		cause = ErrClosed
	}
	t.cause.CompareAndSwap(nil, &cause)
	t.inner.Interrupt(cause)
}

// InterruptRead implements ReadInterrupter.
func (t *tlsConn) InterruptRead(cause error) {
	if cause == nil {
		cause = ErrClosed
	}
	t.rcause.CompareAndSwap(nil, &cause)
	InterruptRead(t.inner, cause)
}

// lockedBuffer collects records.
type lockedBuffer struct {
	mu     sync.Mutex
	corked bool
	b      *[]byte
	n      int
}
