//go:build linux && (amd64 || arm64)

package netio

import (
	"syscall"
	"unsafe"
)

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

// LoopWrite implements LoopWriter: it takes no reference on the descriptor, and
// does not ask the poller unless the peer is slow.
func (s *socket) LoopWrite(p []byte) (int, error) {
	if !s.looping {
		panic("netio: LoopWrite outside Loop")
	}
	n := 0
	if s.cause.Load() == nil && !s.isClosed() && len(p) > 0 {
		var e syscall.Errno
		switch n, e = rawWrite(s.lfd, p); e {
		case 0:
		case syscall.EAGAIN, syscall.EINTR:
			n = 0
		default:
			return 0, s.fail(&sysError{"write", e})
		}
		if n == len(p) {
			return n, nil
		}
	}
	m, err := s.Write(p[n:])
	return n + m, err
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
		s.msg.Iovlen = uint64(s.nparts)
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
		if uint64(n) < v.Len {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
			v.Len -= uint64(n)
			return
		}
		n -= int(v.Len)
		*v = syscall.Iovec{}
		s.nparts--
	}
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
	n, err = s.result()
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
