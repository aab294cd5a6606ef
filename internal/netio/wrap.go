package netio

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
)

// Wrap is the portable form of a connection: it drives any net.Conn by its
// ordinary methods. Sockets get the raw form from Listen and Dial; tests hold
// both equal. Park of the portable form holds a small buffer, having to read
// to learn of readiness, and TryRead may take 0.1 ms to see that nothing is
// there.
func Wrap(nc net.Conn) Conn {
	return &wrapped{nc: nc, local: addrPort(nc.LocalAddr()), remote: addrPort(nc.RemoteAddr())}
}

// tryDeadline is how long a TryRead of the portable form looks for bytes.
const tryDeadline = 100 * time.Microsecond

type wrapped struct {
	nc            net.Conn
	local, remote netip.AddrPort
	u             putBack               // read ahead
	rerr          error                 // found behind it
	cause, rcause atomic.Pointer[error] // of both directions, of reading only
	closed        atomic.Bool
}

func (w *wrapped) LocalAddr() netip.AddrPort  { return w.local }
func (w *wrapped) RemoteAddr() netip.AddrPort { return w.remote }
func (w *wrapped) TLS() *tls.ConnectionState  { return nil }

func (w *wrapped) fail(err error) error {
	switch c := w.cause.Load(); {
	case err == nil:
		return nil
	case c != nil:
		return *c
	case w.closed.Load(), errors.Is(err, net.ErrClosed):
		return ErrClosed
	}
	return asSysError(err)
}

// readCause returns why reading was interrupted, nil if it was not.
func (w *wrapped) readCause() error {
	if c := w.cause.Load(); c != nil {
		return *c
	}
	if c := w.rcause.Load(); c != nil {
		return *c
	}
	return nil
}

// ahead serves what was read ahead.
func (w *wrapped) ahead(p []byte) (n int, err error, ok bool) { // ok goes last
	switch c := w.readCause(); {
	case c != nil:
		return 0, c, true
	case len(p) == 0:
		return 0, nil, true
	case w.u.b != nil:
		return w.u.read(p), nil, true
	case w.rerr != nil:
		return 0, w.fail(w.rerr), true
	}
	return 0, nil, false
}

func (w *wrapped) Read(p []byte) (int, error) {
	if n, err, ok := w.ahead(p); ok {
		return n, err
	}
	n, err := w.nc.Read(p)
	return w.got(n, err)
}

// got keeps an error that came with bytes for the next read.
func (w *wrapped) got(n int, err error) (int, error) {
	if n > 0 {
		w.rerr = err
		return n, nil
	}
	if c := w.readCause(); c != nil && err != nil {
		return 0, c
	}
	return 0, w.fail(err)
}

func (w *wrapped) TryRead(p []byte) (int, error) {
	if n, err, ok := w.ahead(p); ok {
		return n, err
	}
	if err := w.nc.SetReadDeadline(time.Now().Add(tryDeadline)); err != nil {
		return 0, w.fail(err)
	}
	n, err := w.nc.Read(p)
	_ = w.nc.SetReadDeadline(time.Time{})
	if c := w.readCause(); c != nil { // interrupted meanwhile
		_ = w.nc.SetReadDeadline(past)
		return 0, c
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
		if n == 0 {
			return 0, ErrWouldBlock
		}
	}
	return w.got(n, err)
}

func (w *wrapped) Park(func()) bool {
	if w.u.b != nil || w.rerr != nil || w.readCause() != nil {
		return false
	}
	n, err := w.nc.Read(w.u.room(SmallBuffer))
	w.u.grew(n)
	w.rerr = err
	return false
}

func (w *wrapped) putBack(p []byte) { w.u.put(p) }

// Peek implements Peeker.
func (w *wrapped) Peek(n int) ([]byte, error) {
	n = min(n, LargeBuffer)
	for w.u.len() < n {
		if w.rerr != nil {
			return w.u.bytes(), w.fail(w.rerr)
		}
		m, err := w.nc.Read(w.u.room(n))
		w.u.grew(m)
		w.rerr = err
	}
	return w.u.bytes()[:n], nil
}

func (w *wrapped) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := w.nc.Write(p)
	return n, w.fail(err)
}

// WriteParts implements PartsWriter.
func (w *wrapped) WriteParts(a, b, c []byte) error {
	bufs := make(net.Buffers, 0, 3)
	for _, p := range [...][]byte{a, b, c} {
		if len(p) > 0 {
			bufs = append(bufs, p)
		}
	}
	_, err := bufs.WriteTo(w.nc)
	return w.fail(err)
}

// CloseWrite fails with errors.ErrUnsupported if the net.Conn can't.
func (w *wrapped) CloseWrite() error {
	if c, ok := w.nc.(interface{ CloseWrite() error }); ok {
		return w.fail(c.CloseWrite())
	}
	return errors.ErrUnsupported
}

func (w *wrapped) Close() error {
	if w.closed.Swap(true) {
		return nil
	}
	return w.nc.Close()
}

func (w *wrapped) Reset() {
	if c, ok := w.nc.(interface{ SetLinger(sec int) error }); ok && !w.closed.Load() {
		_ = c.SetLinger(0)
	}
	_ = w.Close()
}

func (w *wrapped) Interrupt(cause error) {
	if cause == nil {
		cause = ErrClosed
	}
	if w.cause.CompareAndSwap(nil, &cause) {
		_ = w.nc.SetDeadline(past)
	}
}

// InterruptRead implements ReadInterrupter.
func (w *wrapped) InterruptRead(cause error) {
	if cause == nil {
		cause = ErrClosed
	}
	if w.rcause.CompareAndSwap(nil, &cause) {
		_ = w.nc.SetReadDeadline(past)
	}
}
