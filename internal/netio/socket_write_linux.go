//go:build linux && (amd64 || arm64)

package netio

import (
	"sync"
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

// vector is what a WriteParts needs while it lasts.
type vector struct {
	s     *socket
	parts [3]syscall.Iovec // the rest is the last n
	n     int
	msg   syscall.Msghdr
	fn    func(uintptr) bool
}

var vectors = sync.Pool{New: func() any {
	v := &vector{}
	v.fn = v.write
	return v
}}

// WriteParts implements PartsWriter.
func (s *socket) WriteParts(a, b, c []byte) error {
	v := vectors.Get().(*vector) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	for _, p := range [...][]byte{c, b, a} {
		if len(p) > 0 {
			v.n++
			v.parts[len(v.parts)-v.n] = syscall.Iovec{Base: unsafe.SliceData(p), Len: uint64(len(p))}
		}
	}
	var err error
	s.werr = 0
	if v.n > 0 {
		v.s = s
		err = s.rc.Write(v.fn)
	}
	v.s, v.n, v.parts, v.msg.Iov = nil, 0, [3]syscall.Iovec{}, nil
	vectors.Put(v)
	switch {
	case err != nil:
		return s.fail(err)
	case s.werr != 0:
		return &sysError{"write", s.werr}
	}
	return nil
}

func (v *vector) write(fd uintptr) bool {
	for v.n > 0 {
		v.msg.Iov = &v.parts[len(v.parts)-v.n]
		v.msg.Iovlen = uint64(v.n)
		var n int
		n, v.s.werr = rawWritev(fd, &v.msg)
		switch v.s.werr {
		case 0:
			v.advance(n)
		case syscall.EAGAIN:
			return false
		case syscall.EINTR:
		default:
			return true
		}
	}
	return true
}

func (v *vector) advance(n int) {
	for n > 0 {
		p := &v.parts[len(v.parts)-v.n]
		if uint64(n) < p.Len {
			p.Base = (*byte)(unsafe.Add(unsafe.Pointer(p.Base), n))
			p.Len -= uint64(n)
			return
		}
		n -= int(p.Len)
		*p = syscall.Iovec{}
		v.n--
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
