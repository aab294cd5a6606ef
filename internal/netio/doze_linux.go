//go:build linux && (amd64 || arm64)

package netio

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/fairlead-mesh/fairlead/internal/timer"
)

// errQuiet ends a loop that may doze.
var errQuiet = errors.New("netio: the connection is quiet")

// dozer waits for what comes on connections without a goroutine: an epoll
// instance of its own, which the runtime's poller watches. There is one goroutine
// for all of them, and none soon after there were any.
type dozer struct {
	mu     sync.Mutex
	byFD   []*socket // those that doze
	n      int
	poll   *os.File // nil while there is no goroutine
	rc     syscall.RawConn
	tm     timer.Timer
	failed bool // it was logged
}

var dozers = &dozer{}

// dozerLinger is how long the goroutine stays without work.
const dozerLinger = 50 * time.Millisecond

// add lets s doze. It fails if s was closed or interrupted, or the system refuses.
func (d *dozer) add(s *socket, resume func()) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.isClosed() || s.readCause() != nil {
		return false
	}
	if d.poll == nil {
		if err := d.start(); err != nil {
			d.complain(err)
			return false
		}
	}
	ok := false
	err := s.rc.Control(func(fd uintptr) { ok = d.watch(int(fd), s) })
	if err != nil || !ok {
		if d.n == 0 { // it may have been started for s
			d.tm.Arm(dozerLinger, d.stop)
		}
		return false
	}
	s.resume = resume
	d.n++
	return true
}

// watch asks for one event of fd. mu is held.
func (d *dozer) watch(fd int, s *socket) bool {
	ev := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLRDHUP | syscall.EPOLLONESHOT, Fd: int32(fd)}
	var err error
	if e := d.rc.Control(func(pfd uintptr) {
		// What has dozed before is still registered, unless another instance
		// was used for it.
		if err = syscall.EpollCtl(int(pfd), syscall.EPOLL_CTL_MOD, fd, &ev); errors.Is(err, syscall.ENOENT) {
			err = syscall.EpollCtl(int(pfd), syscall.EPOLL_CTL_ADD, fd, &ev)
		}
	}); e != nil {
		err = e
	}
	if err != nil {
		d.complain(err)
		return false
	}
	for len(d.byFD) <= fd {
		d.byFD = append(d.byFD, nil)
	}
	d.byFD[fd] = s
	return true
}

func (d *dozer) complain(err error) {
	if !d.failed {
		d.failed = true
		slog.Warn("idle connections keep a goroutine each: the system refuses to watch them; check the limits of open files and of fs.epoll.max_user_watches", "err", err)
	}
}

// wake ends the doze of s, if there is one, for whoever closes or interrupts it.
func (d *dozer) wake(s *socket) {
	d.mu.Lock()
	resume := s.resume
	if resume != nil {
		fd := -1 // it is open: closing it comes after this
		_ = s.rc.Control(func(v uintptr) { fd = int(v) })
		d.forget(fd, s)
	}
	d.mu.Unlock()
	if resume != nil {
		go resume()
	}
}

// forget takes s out. mu is held.
func (d *dozer) forget(fd int, s *socket) {
	s.resume = nil
	if fd >= 0 && fd < len(d.byFD) && d.byFD[fd] == s {
		d.byFD[fd] = nil
	}
	if d.n--; d.n == 0 {
		d.tm.Arm(dozerLinger, d.stop)
	}
}

// start makes an instance and its goroutine. mu is held.
func (d *dozer) start() error {
	pfd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	if err := syscall.SetNonblock(pfd, true); err != nil { // so that the runtime's poller takes it
		_ = syscall.Close(pfd)
		return err
	}
	f := os.NewFile(uintptr(pfd), "epoll")
	rc, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return err
	}
	if err := f.SetReadDeadline(time.Time{}); err != nil { // it did not
		_ = f.Close()
		return err
	}
	d.poll, d.rc = f, rc
	go d.run(f, rc)
	return nil
}

// stop ends the goroutine if nothing dozes.
func (d *dozer) stop() {
	d.mu.Lock()
	f := d.poll
	if d.n > 0 || f == nil {
		f = nil
	} else {
		d.poll, d.rc, d.byFD = nil, nil, nil
	}
	d.mu.Unlock()
	if f != nil {
		_ = f.SetReadDeadline(past)
	}
}

func (d *dozer) run(f *os.File, rc syscall.RawConn) {
	defer func() { _ = f.Close() }()
	var events [64]syscall.EpollEvent
	n := 0
	wait := func(pfd uintptr) bool {
		n = epollNow(pfd, events[:])
		return n > 0
	}
	for rc.Read(wait) == nil {
		for _, ev := range events[:n] {
			d.event(int(ev.Fd), f)
		}
	}
}

// event wakes what dozes on a descriptor. It may be nothing any more, or another
// connection by now, which will see that nothing has come.
func (d *dozer) event(fd int, f *os.File) {
	var resume func()
	d.mu.Lock()
	if d.poll == f && fd < len(d.byFD) && d.byFD[fd] != nil {
		s := d.byFD[fd]
		resume = s.resume
		d.forget(fd, s)
	}
	d.mu.Unlock()
	if resume != nil {
		go resume()
	}
}

// epollNow is epoll_wait(2) without waiting.
func epollNow(pfd uintptr, events []syscall.EpollEvent) int {
	for {
		n, _, e := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, pfd, uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
		if e != syscall.EINTR {
			return max(int(n), 0)
		}
	}
}
