package h2

import (
	"crypto/tls"
	"errors"
	"io"
	"net/netip"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// tunnel is a stream seen as a byte stream. While idle it holds no goroutine
// and no buffer.
type tunnel stream

var (
	_ netio.Conn        = (*tunnel)(nil)
	_ netio.Unparker    = (*tunnel)(nil)
	_ netio.Prober      = (*tunnel)(nil)
	_ netio.PartsWriter = (*tunnel)(nil)

	_ netio.ReadInterrupter = (*tunnel)(nil)
)

// tunnel makes s a tunnel and sends the head that was held back.
func (s *stream) tunnel() netio.Conn {
	c := s.c
	c.mu.Lock()
	s.tunnelled = true
	if !s.inMap { // the peer has ended it already
		c.releaseHold(s)
		c.quiesce()
	}
	c.flush(s)
	s.becomeSmall()
	return (*tunnel)(s)
}

// becomeSmall gives back what a tunnel has no use for.
func (s *stream) becomeSmall() {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wake.drop()
	s.rwake.drop()
	x := s.x
	if x == nil {
		return
	}
	s.x = nil
	x.head.Reset()
	x.trailers.Reset()
	x.protocol, x.heads, x.status = "", nil, 0
	exchanges.Put(x)
}

// resetByPeer is the cause of a tunnel that the peer reset.
//
//nolint:errname // not an error that callers name
type resetByPeer struct{ *transport.ResetError }

func (e *resetByPeer) Unwrap() error        { return e.ResetError }
func (e *resetByPeer) Is(target error) bool { return target == netio.ErrReset }

func tunnelError(err error) error {
	var re *transport.ResetError
	if errors.As(err, &re) && (re.Reason == transport.RemoteReset || re.Reason == transport.RemoteRefused) {
		return &resetByPeer{re}
	}
	return err
}

func (t *tunnel) Read(p []byte) (int, error) { return t.read(p, true) }

func (t *tunnel) TryRead(p []byte) (int, error) { return t.read(p, false) }

func (t *tunnel) read(p []byte, wait bool) (int, error) {
	s := (*stream)(t)
	s.mu.Lock()
	if wait && len(p) > 0 {
		_ = s.waitInput() // judged below
	}
	var err error
	switch {
	case s.rerr != nil:
		err = tunnelError(s.rerr)
	case len(p) == 0 || s.q.first != nil:
	case s.eof:
		err = io.EOF
	default:
		err = netio.ErrWouldBlock
	}
	if err != nil {
		s.mu.Unlock()
		return 0, err
	}
	n := s.q.read(p)
	inc := s.grant(int64(n))
	s.mu.Unlock()
	s.c.granted(s, s.id, n, inc)
	return n, nil
}

func (t *tunnel) Write(p []byte) (int, error) {
	if err := t.c.writeData((*stream)(t), p, false); err != nil {
		return 0, tunnelWriteError(err)
	}
	return len(p), nil
}

func tunnelWriteError(err error) error {
	if err == errEnded { //nolint:errorlint // compared as it is
		return netio.ErrClosed
	}
	return tunnelError(err)
}

// WriteParts implements netio.PartsWriter; the parts share a batch.
func (t *tunnel) WriteParts(a, b, c []byte) error {
	s := (*stream)(t)
	s.c.mu.Lock()
	for _, p := range [...][]byte{a, b, c} {
		if err := s.c.appendData(s, p, false); err != nil {
			s.c.mu.Unlock()
			return tunnelWriteError(err)
		}
	}
	s.c.flush(s)
	return nil
}

// readable reports whether TryRead would return. s.mu is held.
func (s *stream) readable() bool { return s.q.first != nil || s.eof || s.rerr != nil }

// Park implements netio.Conn; it returns false if there is something to read.
func (t *tunnel) Park(resume func()) bool {
	s := (*stream)(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readable() {
		return false
	}
	s.resume = resume
	return true
}

// Unpark implements netio.Unparker.
func (t *tunnel) Unpark() bool {
	s := (*stream)(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.resume != nil
	s.resume = nil
	return was
}

// Probe implements netio.Prober.
func (t *tunnel) Probe() (readable, ended bool) {
	s := (*stream)(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.readable(), s.eof || s.rerr != nil
}

func (t *tunnel) CloseWrite() error {
	s := (*stream)(t)
	s.c.mu.Lock()
	if s.endSent {
		s.c.mu.Unlock()
		return nil
	}
	err := s.c.appendData(s, nil, true)
	if err != nil {
		wanted := !s.endRecv || !wantsNoMore(err)
		s.c.mu.Unlock()
		if wanted {
			return tunnelWriteError(err)
		}
		return nil // both directions have ended in order
	}
	s.c.flush(s)
	return nil
}

// wantsNoMore reports whether err is RST_STREAM(NO_ERROR), by which a server that
// has said everything stops what is still being sent to it.
func wantsNoMore(err error) bool {
	var re *transport.ResetError
	return errors.As(err, &re) && re.Reason == transport.RemoteReset && re.Detail == codeNo.String()
}

// Close implements netio.Conn. It does not block: what was written goes out with
// the connection's next batch. If the peer has not ended its direction, it is
// told with RST_STREAM to stop.
func (t *tunnel) Close() error {
	s := (*stream)(t)
	c := s.c
	c.mu.Lock()
	if s.inMap && !s.endSent {
		c.reserve(frameHeaderLen)
		c.out = appendFrameHeader(c.out, 0, frameData, flagEndStream, s.id)
		c.frames++
		c.endSent(s)
	}
	if s.inMap {
		code := codeNo
		if c.client {
			code = codeCancel
		}
		c.sendRST(s.id, code)
		c.remove(s, closedByUs)
	}
	s.end(netio.ErrClosed)
	return nil
}

// Reset implements netio.Conn. It does not block.
func (t *tunnel) Reset() {
	s := (*stream)(t)
	c := s.c
	c.mu.Lock()
	if s.inMap {
		c.sendRST(s.id, codeCancel)
		c.remove(s, closedByUs)
	}
	s.end(netio.ErrClosed)
}

// end makes all calls fail with cause. c.mu is held and released.
func (s *stream) end(cause error) {
	c := s.c
	s.werr = cause
	c.watchWriter(s)
	s.wake.wake()
	c.room.Broadcast()
	c.kick()
	c.mu.Unlock()
	s.mu.Lock()
	n := s.q.drop()
	s.rerr, s.onReset = cause, nil
	s.signal()
	s.mu.Unlock()
	c.consumed(n)
}

func (t *tunnel) Interrupt(cause error) { (*stream)(t).interrupt(cause) }

// InterruptRead implements netio.ReadInterrupter.
func (t *tunnel) InterruptRead(cause error) {
	s := (*stream)(t)
	s.mu.Lock()
	n := s.q.drop()
	s.rerr = cause
	s.signal()
	s.mu.Unlock()
	s.c.consumed(n)
}

func (t *tunnel) LocalAddr() netip.AddrPort { return t.c.nc.LocalAddr() }

func (t *tunnel) RemoteAddr() netip.AddrPort { return t.c.nc.RemoteAddr() }

// TLS implements netio.Conn: the TLS session protects the connection, not the
// stream.
func (t *tunnel) TLS() *tls.ConnectionState { return nil }
