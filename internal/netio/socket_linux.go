//go:build linux && (amd64 || arm64)

package netio

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

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
	wbuf   []byte
	werr   syscall.Errno
	parts  [3]syscall.Iovec
	nparts int
	msg    syscall.Msghdr

	writeFn, partsFn func(uintptr) bool

	cause, rcause atomic.Pointer[error] // of both directions, of reading only

	mu     sync.Mutex
	inLoop bool
	closed bool

	// A FIN that arrived together with the last bytes makes no further edge
	// in the poller. lost looks for it once a loop has been quiet for a while.
	lost   timer.Timer
	lostFn func()
	armed  atomic.Bool
	rounds atomic.Uint32
	seen   uint32

	pmu         sync.Mutex // Probe, by any goroutine
	pread, pend bool
	probeFn     func(uintptr)
}

const lostCheck = time.Second

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

func (s *socket) result(op string) (int, error) {
	switch {
	case s.rerr == 0 && s.rn > 0:
		return s.rn, nil
	case s.rerr == 0:
		return 0, io.EOF
	case s.rerr == syscall.EAGAIN:
		return 0, ErrWouldBlock
	}
	return 0, &sysError{op, s.rerr}
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
	return s.result("read")
}

// read enters the poller with f.
func (s *socket) read(f func(uintptr) bool) error {
	for {
		err := s.rc.Read(f)
		if err == nil {
			return nil
		}
		if s.kicked(err) {
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
	return s.result("read")
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
		n, err = s.result("read")
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
			m, err = s.result("read")
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

// Loop implements Looper.
func (s *socket) Loop(f func() bool) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return s.fail(ErrClosed)
	}
	s.inLoop = true
	s.mu.Unlock()
	if s.loopFn == nil {
		s.loopFn, s.lostFn = s.onLoop, s.findLost
	}
	s.loop, s.looping = f, true
	err := s.read(s.loopFn)
	s.loop, s.looping = nil, false
	s.lost.Stop()
	s.armed.Store(false)
	s.mu.Lock()
	s.inLoop = false
	closed := s.closed
	s.mu.Unlock()
	if closed {
		_ = s.nc.Close()
	}
	return err
}

func (s *socket) onLoop(fd uintptr) bool {
	s.rounds.Add(1)
	s.lfd, s.can = fd, true
	for {
		if !s.loop() {
			return true
		}
		if s.peeked.b == nil {
			break
		}
	}
	// A short read, not EAGAIN, said that the socket is empty: an end may hide
	// behind the bytes.
	if s.rerr != syscall.EAGAIN && !s.armed.Swap(true) {
		s.lost.Arm(lostCheck, s.lostFn)
	}
	return false
}

// findLost wakes a quiet loop whose socket is readable after all.
func (s *socket) findLost() {
	if n := s.rounds.Load(); n != s.seen {
		s.seen = n
		s.lost.Arm(lostCheck, s.lostFn)
		return
	}
	s.armed.Store(false)
	if readable, _ := s.Probe(); readable {
		_ = s.nc.SetReadDeadline(past)
	}
}

// Probe implements Prober.
func (s *socket) Probe() (readable, ended bool) {
	s.pmu.Lock()
	defer s.pmu.Unlock()
	if s.probeFn == nil {
		s.probeFn = func(fd uintptr) { s.pread, s.pend = rawPoll(fd) }
	}
	if err := s.rc.Control(s.probeFn); err != nil {
		return true, true
	}
	return s.pread, s.pend
}

// WriteRead implements Exchanger.
func (s *socket) WriteRead(out, in []byte) (n int, wrote bool, err error) {
	if s.looping {
		panic("netio: WriteRead inside Loop")
	}
	if s.peeked.b != nil || len(out) == 0 {
		if _, err = s.Write(out); err != nil {
			return 0, false, err
		}
		n, err = s.Read(in)
		return n, true, err
	}
	if s.exchangeFn == nil {
		s.exchangeFn = s.onExchange
	}
	s.xout, s.rbuf, s.xsent = out, in, false
	err = s.read(s.exchangeFn)
	rest := s.xout
	s.xout, s.rbuf = nil, nil
	if err != nil {
		return 0, len(rest) == 0, err
	}
	if len(rest) > 0 { // the peer is slow, or the write failed
		if s.rerr != 0 && s.rerr != syscall.EAGAIN {
			return 0, false, &sysError{"write", s.rerr}
		}
		if _, err = s.Write(rest); err != nil {
			return 0, false, err
		}
		n, err = s.Read(in)
		return n, true, err
	}
	n, err = s.result("read")
	return n, true, err
}

func (s *socket) onExchange(fd uintptr) bool {
	if !s.xsent {
		s.xsent = true
		s.rn, s.rerr = rawWrite(fd, s.xout)
		if s.rerr == 0 {
			s.xout = s.xout[s.rn:]
		}
		return len(s.xout) > 0 || s.rerr != 0
	}
	if len(s.xout) > 0 { // woken again after a partial write: leave the poller
		return true
	}
	return s.onRead(fd)
}

func (s *socket) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.wbuf = p
	err := s.rc.Write(s.writeFn)
	n := len(p) - len(s.wbuf)
	s.wbuf = nil
	if err != nil {
		return n, s.fail(err)
	}
	if s.werr != 0 {
		return n, &sysError{"write", s.werr}
	}
	return n, nil
}

func (s *socket) onWrite(fd uintptr) bool {
	for {
		var n int
		n, s.werr = rawWrite(fd, s.wbuf)
		switch s.werr {
		case 0:
			s.wbuf = s.wbuf[n:]
			if len(s.wbuf) == 0 {
				return true
			}
		case syscall.EAGAIN:
			return false
		case syscall.EINTR:
		default:
			return true
		}
	}
}

// tryWrite writes what the socket takes without blocking.
func (s *socket) tryWrite(p []byte) int {
	n := 0
	_ = s.rc.Control(func(fd uintptr) { n, _ = rawWrite(fd, p) })
	return max(n, 0)
}

// WriteParts implements PartsWriter.
func (s *socket) WriteParts(a, b, c []byte) error {
	if s.partsFn == nil {
		s.partsFn = s.onParts
	}
	s.nparts = 0
	for _, p := range [...][]byte{a, b, c} {
		if len(p) > 0 {
			s.parts[s.nparts] = syscall.Iovec{Base: unsafe.SliceData(p), Len: uint64(len(p))}
			s.nparts++
		}
	}
	if s.nparts == 0 {
		return nil
	}
	err := s.rc.Write(s.partsFn)
	s.parts = [3]syscall.Iovec{}
	s.msg.Iov = nil
	if err != nil {
		return s.fail(err)
	}
	if s.werr != 0 {
		return &sysError{"write", s.werr}
	}
	return nil
}

func (s *socket) onParts(fd uintptr) bool {
	first := 3 - s.nparts
	if first > 0 && s.parts[2].Base == nil { // right-align, so that the rest is parts[3-nparts:]
		copy(s.parts[first:], s.parts[:s.nparts])
		clear(s.parts[:first])
	}
	for s.nparts > 0 {
		s.msg.Iov = &s.parts[3-s.nparts]
		s.msg.Iovlen = uint64(s.nparts) //nolint:gosec // 1..3
		var n int
		n, s.werr = rawWritev(fd, &s.msg)
		switch s.werr {
		case 0:
			s.advance(n)
		case syscall.EAGAIN:
			return false
		case syscall.EINTR:
		default:
			return true
		}
	}
	return true
}

func (s *socket) advance(n int) {
	for n > 0 {
		v := &s.parts[3-s.nparts]
		if uint64(n) < v.Len { //nolint:gosec // n > 0
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n)) //nolint:gosec // inside the piece
			v.Len -= uint64(n)                                      //nolint:gosec // n > 0
			return
		}
		n -= int(v.Len) //nolint:gosec // at most n
		*v = syscall.Iovec{}
		s.nparts--
	}
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

func (s *socket) Interrupt(cause error) {
	if cause == nil {
		cause = ErrClosed
	}
	if s.cause.CompareAndSwap(nil, &cause) {
		_ = s.nc.SetDeadline(past)
	}
}

// InterruptRead implements ReadInterrupter.
func (s *socket) InterruptRead(cause error) {
	if cause == nil {
		cause = ErrClosed
	}
	if s.rcause.CompareAndSwap(nil, &cause) {
		_ = s.nc.SetReadDeadline(past)
	}
}

// pollfd is struct pollfd of poll(2).
type pollfd struct {
	fd              int32
	events, revents int16
}

// Bits of poll(2).
const (
	pollIn    = 0x1
	pollErr   = 0x8
	pollHup   = 0x10
	pollRdHup = 0x2000
)

func rawPoll(fd uintptr) (readable, ended bool) {
	p := pollfd{fd: int32(fd), events: pollIn | pollRdHup} //nolint:gosec // a descriptor
	var zero syscall.Timespec
	n, _, e := syscall.RawSyscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&zero)), 0, 0, 0) //nolint:gosec // system call
	runtime.KeepAlive(&p)
	runtime.KeepAlive(&zero)
	if e != 0 || n == 0 {
		return false, false
	}
	return true, p.revents&(pollRdHup|pollErr|pollHup) != 0
}
