//go:build linux && (amd64 || arm64)

package netio

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/timer"
)

// socket is a TCP or Unix stream socket driven by raw system calls inside the
// callbacks of its RawConn: the runtime's poller says when, this type reads
// and writes. Arguments and results of the callbacks travel in fields, so that
// no call allocates.
type socket struct {
	nc            net.Conn
	rc            syscall.RawConn
	local, remote netip.AddrPort

	// Reader's state.
	rbuf    []byte
	rn      int
	rerr    syscall.Errno
	woken   bool
	looping bool // the reader is inside Loop
	can     bool // inside Loop: the socket may hold bytes
	loop    func() bool
	lfd     uintptr
	peeked  putBack
	xout    []byte // WriteRead: what is left to write
	xsent   bool
	psize   int // readPooled
	pbuf    *[]byte

	readFn, tryFn, parkFn, loopFn, exchangeFn, pooledFn func(uintptr) bool

	// Writer's state.
	wbuf    []byte
	werr    syscall.Errno
	writeFn func(uintptr) bool

	cause, rcause atomic.Pointer[error] // of both directions, of reading only

	mu     sync.Mutex
	inLoop bool
	closed bool

	// A FIN that arrived together with the last bytes makes no further edge
	// in the poller. lost looks for it once a loop has been quiet for a while.
	lost   timer.Timer
	lostFn func()
	armed  atomic.Bool
	dozes  atomic.Bool   // the loop shall end when it was quiet for a while
	quiet  atomic.Bool   // it was
	rounds atomic.Uint32 // odd: f is running
	seen   atomic.Uint32

	pmu         sync.Mutex // Probe, by any goroutine
	pread, pend bool
	probeFn     func(uintptr)
	quietFD     atomic.Uint64 // 1 + descriptor, 0 before Quiet

	resume func() // while dozing; guarded by dozers.mu
}

// newSocket takes over nc, which is a *net.TCPConn or *net.UnixConn.
func newSocket(nc net.Conn) (Conn, error) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return Wrap(nc), nil
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{nc: nc, rc: rc, local: addrPort(nc.LocalAddr()), remote: addrPort(nc.RemoteAddr())}
	s.readFn, s.writeFn = s.onRead, s.onWrite
	return s, nil
}

func (s *socket) LocalAddr() netip.AddrPort  { return s.local }
func (s *socket) RemoteAddr() netip.AddrPort { return s.remote }
func (s *socket) TLS() *tls.ConnectionState  { return nil }

// readCause returns why reading was interrupted, nil if it was not.
func (s *socket) readCause() error {
	if c := s.cause.Load(); c != nil {
		return *c
	}
	if c := s.rcause.Load(); c != nil {
		return *c
	}
	return nil
}

// fail turns an error of the poller into what the caller sees.
func (s *socket) fail(err error) error {
	if c := s.cause.Load(); c != nil {
		return *c
	}
	if errors.Is(err, net.ErrClosed) || s.isClosed() {
		return ErrClosed
	}
	return err
}

func (s *socket) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *socket) result() (int, error) {
	switch {
	case s.rerr == 0 && s.rn > 0:
		return s.rn, nil
	case s.rerr == 0:
		return 0, io.EOF
	case s.rerr == syscall.EAGAIN:
		return 0, ErrWouldBlock
	}
	return 0, &sysError{"read", s.rerr}
}

func (s *socket) Read(p []byte) (int, error) {
	if s.peeked.b != nil {
		return s.peeked.read(p), nil
	}
	if len(p) == 0 {
		return 0, nil
	}
	if s.looping {
		panic("netio: Read inside Loop")
	}
	s.rbuf = p
	err := s.read(s.readFn)
	s.rbuf = nil
	if err != nil {
		return 0, err
	}
	return s.result()
}

// read enters the poller with f.
func (s *socket) read(f func(uintptr) bool) error {
	for {
		err := s.rc.Read(f)
		if err == nil {
			return nil
		}
		if s.kicked(err) {
			if s.looping && s.dozes.Load() && s.quiet.Load() && s.peeked.b == nil {
				return errQuiet
			}
			continue
		}
		if c := s.readCause(); c != nil {
			return c
		}
		return s.fail(err)
	}
}

// kicked reports whether err only is the read deadline that findLost set to
// wake a loop, and clears it.
func (s *socket) kicked(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) || s.readCause() != nil || s.isClosed() {
		return false
	}
	_ = s.nc.SetReadDeadline(time.Time{})
	if s.readCause() != nil || s.isClosed() {
		_ = s.nc.SetReadDeadline(past)
	}
	return true
}

func (s *socket) onRead(fd uintptr) bool {
	s.recv(fd)
	return s.rerr != syscall.EAGAIN
}

func (s *socket) recv(fd uintptr) {
	for {
		s.rn, s.rerr = rawRead(fd, s.rbuf)
		if s.rerr != syscall.EINTR {
			return
		}
	}
}

func (s *socket) TryRead(p []byte) (int, error) {
	if s.peeked.b != nil {
		return s.peeked.read(p), nil
	}
	if len(p) == 0 {
		return 0, nil
	}
	if s.looping && !s.can && s.readCause() == nil {
		return 0, ErrWouldBlock
	}
	s.rbuf = p
	err := s.try()
	s.rbuf = nil
	if err != nil {
		return 0, err
	}
	return s.result()
}

// try receives into rbuf without waiting.
func (s *socket) try() error {
	if c := s.readCause(); c != nil {
		return c
	}
	if s.looping {
		// The loop holds a reference on the descriptor.
		if s.isClosed() {
			return ErrClosed
		}
		s.recv(s.lfd)
		s.can = s.rerr == 0 && s.rn == len(s.rbuf)
		return nil
	}
	if s.tryFn == nil {
		s.tryFn = func(fd uintptr) bool { s.recv(fd); return true }
	}
	return s.read(s.tryFn)
}

// readPooled is Read (block) or TryRead into a pooled buffer of about size
// bytes, which is taken only once there is something to read. The buffer is
// nil on error.
func (s *socket) readPooled(size int, block bool) (*[]byte, int, error) {
	if s.peeked.b != nil {
		b, n := s.peeked.take()
		return b, n, nil
	}
	if !block {
		if s.looping && !s.can && s.readCause() == nil {
			return nil, 0, ErrWouldBlock
		}
		b := GetBuffer(size)
		s.rbuf = *b
		err := s.try()
		s.rbuf = nil
		return s.pooled(b, err)
	}
	var b *[]byte
	s.psize, s.pbuf = size, nil
	if s.pooledFn == nil {
		s.pooledFn = s.onReadPooled
	}
	err := s.read(s.pooledFn)
	b, s.pbuf, s.rbuf = s.pbuf, nil, nil
	return s.pooled(b, err)
}

func (s *socket) pooled(b *[]byte, err error) (*[]byte, int, error) {
	n := 0
	if err == nil {
		n, err = s.result()
	}
	if err != nil {
		PutBuffer(b)
		return nil, 0, err
	}
	return b, n, nil
}

func (s *socket) onReadPooled(fd uintptr) bool {
	s.pbuf = GetBuffer(s.psize)
	s.rbuf = *s.pbuf
	s.recv(fd)
	if s.rerr == syscall.EAGAIN {
		PutBuffer(s.pbuf)
		s.pbuf, s.rbuf = nil, nil
		return false
	}
	return true
}

// Peek implements Peeker.
func (s *socket) Peek(n int) ([]byte, error) {
	n = min(n, LargeBuffer)
	for s.peeked.len() < n {
		s.rbuf = s.peeked.room(n)
		err := s.read(s.readFn)
		s.rbuf = nil
		m := 0
		if err == nil {
			m, err = s.result()
		}
		s.peeked.grew(m)
		if err != nil {
			return s.peeked.bytes(), err
		}
	}
	return s.peeked.bytes()[:n], nil
}

func (s *socket) putBack(p []byte) { s.peeked.put(p) }

// drained reports whether the socket is known to be empty: the loop is told
// when that changes.
func (s *socket) drained() bool {
	return s.looping && !s.can && s.peeked.b == nil && s.readCause() == nil
}

func (s *socket) Park(func()) bool {
	if s.looping {
		panic("netio: Park inside Loop")
	}
	if s.peeked.b != nil {
		return false
	}
	if s.parkFn == nil {
		s.parkFn = func(fd uintptr) bool {
			if s.woken {
				return true
			}
			s.woken = true
			readable, _ := rawPoll(fd)
			return readable
		}
	}
	s.woken = false
	_ = s.read(s.parkFn) // the next read reports the error
	return false
}

func (s *socket) CloseWrite() error {
	c, ok := s.nc.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	if err := c.CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
		return s.fail(err)
	}
	return nil
}

func (s *socket) Close() error { return s.close(false) }

func (s *socket) Reset() { _ = s.close(true) }

func (s *socket) close(abrupt bool) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	if tc, ok := s.nc.(*net.TCPConn); ok && abrupt {
		_ = tc.SetLinger(0)
	}
	s.closed = true
	inLoop := s.inLoop
	s.mu.Unlock()
	dozers.wake(s)
	if !abrupt {
		// Closing a socket with unread bytes (a late alert, the rest of a body
		// that nobody wants) resets the connection, and what was written before
		// would be lost on its way.
		_ = s.rc.Control(discard)
	}
	if !inLoop {
		return s.nc.Close()
	}
	// The loop holds the descriptor: it closes it when it ends. The FIN does
	// not have to wait for that; the RST comes with the close.
	if !abrupt {
		_ = s.rc.Control(func(fd uintptr) { _ = syscall.Shutdown(int(fd), syscall.SHUT_RDWR) })
	}
	return s.nc.SetDeadline(past)
}

// maxDiscard bounds what discard drops.
const maxDiscard = 1 << 20

// discard drops what has been received, without copying it (MSG_TRUNC of tcp(7)).
func discard(fd uintptr) {
	_, _, _ = syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, 0, maxDiscard, syscall.MSG_DONTWAIT|syscall.MSG_TRUNC, 0, 0)
}

func (s *socket) Interrupt(cause error) {
	if cause == nil {
		cause = ErrClosed
	}
	if s.cause.CompareAndSwap(nil, &cause) {
		_ = s.nc.SetDeadline(past)
		dozers.wake(s)
	}
}

// InterruptRead implements ReadInterrupter.
func (s *socket) InterruptRead(cause error) {
	if cause == nil {
		cause = ErrClosed
	}
	if s.rcause.CompareAndSwap(nil, &cause) {
		_ = s.nc.SetReadDeadline(past)
		dozers.wake(s)
	}
}
