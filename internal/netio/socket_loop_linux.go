//go:build linux && (amd64 || arm64)

package netio

import (
	"runtime"
	"syscall"
	"time"
	"unsafe"
)

const (
	// lostCheck is how long a loop is quiet before the socket is looked at.
	lostCheck = time.Second
	// dozeCheck is how long a loop is quiet before its goroutine is given up. It is
	// longer than what keeps a connection apart from its next request under any
	// load worth the name: waking costs a few µs, looking one timer a period.
	dozeCheck = 250 * time.Millisecond
)

// Loop implements Looper.
func (s *socket) Loop(f func() bool) error {
	s.dozes.Store(false)
	return s.runLoop(f)
}

// LoopOrDoze implements Dozer.
func (s *socket) LoopOrDoze(f func() bool, resume func()) (dozing bool, err error) {
	s.dozes.Store(true)
	s.quiet.Store(false)
	if err = s.runLoop(f); err != errQuiet { //nolint:errorlint // compared as it is
		return false, err
	}
	if dozers.add(s, resume) {
		return true, nil
	}
	if c := s.readCause(); c != nil {
		return false, c
	}
	if s.isClosed() {
		return false, ErrClosed
	}
	return false, s.Loop(f) // the system has no room for dozing ones
}

// runLoop ends with errQuiet if the loop dozes.
func (s *socket) runLoop(f func() bool) error {
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
	defer s.rounds.Add(1)
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
	if (s.dozes.Load() || s.rerr != syscall.EAGAIN) && !s.armed.Swap(true) {
		s.lost.Arm(s.checkAfter(), s.lostFn)
	}
	return false
}

// checkAfter is how long the loop may be quiet.
func (s *socket) checkAfter() time.Duration {
	if s.dozes.Load() {
		return dozeCheck
	}
	return lostCheck
}

// Recheck implements Rechecker.
func (s *socket) Recheck() bool {
	if !s.looping || s.can || s.rerr != 0 || s.rn == 0 {
		return false
	}
	s.can = true
	return true
}

// findLost wakes a quiet loop that may doze, or whose socket is readable after
// all.
func (s *socket) findLost() {
	if n := s.rounds.Load(); s.seen.Swap(n) != n || n&1 == 1 {
		s.lost.Arm(s.checkAfter(), s.lostFn)
		return
	}
	s.armed.Store(false)
	if s.dozes.Load() {
		s.quiet.Store(true)
		_ = s.nc.SetReadDeadline(past)
		return
	}
	if readable, _ := s.Probe(); readable {
		_ = s.nc.SetReadDeadline(past)
	}
}

// Probe implements Prober.
func (s *socket) Probe() (readable, ended bool) {
	if s.isClosed() { // a loop, if there is one, holds the descriptor open
		return true, true
	}
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

// Quiet implements Quieter. Peeking costs half of what poll(2) does, and a third
// less without a reference on the descriptor, which is not needed: should the
// connection be closed by somebody else just now and its number be given to
// another socket, nothing is done to that one, and the answer matters to nobody.
func (s *socket) Quiet() bool {
	if s.quietFD.Load() == 0 && s.rc.Control(func(fd uintptr) { s.quietFD.Store(uint64(fd) + 1) }) != nil {
		return false
	}
	var b byte
	_, _, e := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(s.quietFD.Load()-1), uintptr(unsafe.Pointer(&b)), 1, syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
	return e == syscall.EAGAIN || e == syscall.EINTR
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
	p := pollfd{fd: int32(fd), events: pollIn | pollRdHup}
	var zero syscall.Timespec
	n, _, e := syscall.RawSyscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&zero)), 0, 0, 0)
	runtime.KeepAlive(&p)
	runtime.KeepAlive(&zero)
	if e != 0 || n == 0 {
		return false, false
	}
	return true, p.revents&(pollRdHup|pollErr|pollHup) != 0
}
