package h2

import (
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// serverStream is a stream seen by its handler. It is reused once the handler
// has returned: nobody may call it after that.
type serverStream stream

var _ transport.ServerStream = (*serverStream)(nil)

func (v *serverStream) Version() message.Version { return message.HTTP2 }

func (v *serverStream) ReadHeaders(h *message.Header) {
	// The contents are swapped: h's old memory serves a later request.
	v.x.head, *h = *h, v.x.head
	v.x.head.Reset()
}

func (v *serverStream) Body() message.Body {
	if v.headEnd {
		return message.NoBody
	}
	return (*body)(v)
}

func (v *serverStream) WriteInformational(h *message.Header) error {
	s := (*stream)(v)
	c := s.c
	c.mu.Lock()
	err := s.headable()
	if err == nil {
		err = c.writeHead(s, h, headResponse, false)
	}
	if err != nil {
		c.mu.Unlock()
		return err
	}
	c.flush(s)
	return nil
}

func (v *serverStream) WriteHeaders(h *message.Header, end bool) error {
	s := (*stream)(v)
	c := s.c
	c.mu.Lock()
	err := s.headable()
	if err == nil {
		s.headSent = true
		err = c.writeHead(s, h, headResponse, end)
	}
	if err != nil || !end {
		c.mu.Unlock()
		return err
	}
	c.flush(s)
	return nil
}

// headable returns why no head can be written. c.mu is held.
func (s *stream) headable() error {
	if s.werr == nil && !s.endSent && s.headSent {
		return errEnded
	}
	if err := s.writable(); err != nil && err != errNoHead { //nolint:errorlint // compared as it is
		return err
	}
	return nil
}

func (v *serverStream) WriteData(p []byte, end bool) error {
	return v.c.writeData((*stream)(v), p, end)
}

func (v *serverStream) WriteTrailers(h *message.Header) error {
	return (*stream)(v).writeTrailers(h)
}

// WriteLast implements transport.LastWriter: one flush instead of two.
func (v *serverStream) WriteLast(p []byte, h *message.Header) error {
	return (*stream)(v).writeLast(p, h)
}

func (s *stream) writeTrailers(h *message.Header) error { return s.writeLast(nil, h) }

func (s *stream) writeLast(p []byte, h *message.Header) error {
	c := s.c
	if h == nil || h.Len() == 0 {
		return c.writeData(s, p, true)
	}
	c.mu.Lock()
	err := s.writable()
	if err == nil && len(p) > 0 {
		if err = c.appendData(s, p, false); err == nil {
			err = s.writable()
		}
	}
	if err == nil {
		err = c.writeHead(s, h, headTrailers, true)
	}
	if err != nil {
		c.mu.Unlock()
		return err
	}
	c.flush(s)
	return nil
}

func (v *serverStream) Flush() error { return (*stream)(v).flushHeld() }

func (s *stream) flushHeld() error {
	c := s.c
	c.mu.Lock()
	err := s.werr
	c.flush(s)
	return err
}

func (v *serverStream) Tunnel() netio.Conn { return (*stream)(v).tunnel() }

func (v *serverStream) Reset(reason transport.ResetReason) {
	code := codeInternal
	switch reason {
	case transport.RemoteRefused:
		code = codeRefusedStream
	case transport.ProtocolError:
		code = codeProtocol
	case transport.RemoteReset, transport.LocalReset, transport.ConnectionFailure,
		transport.ConnectionTermination, transport.Overflow:
	}
	(*stream)(v).reset(code, resetError(transport.LocalReset, reason.String()))
}

// OnReset implements transport.ServerStream.
func (v *serverStream) OnReset(f func(cause error)) {
	s := (*stream)(v)
	s.mu.Lock()
	why := s.resetWhy
	switch {
	case f == nil:
		s.onReset = nil
		s.awaitCallback()
		why = nil
	case why == nil:
		s.onReset = f
	}
	s.mu.Unlock()
	if why != nil {
		f(why)
	}
}

func (v *serverStream) BytesIn() uint64  { return (*stream)(v).received() }
func (v *serverStream) BytesOut() uint64 { return (*stream)(v).sent() }

func (s *stream) received() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytesIn
}

func (s *stream) sent() uint64 {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.bytesOut
}

func (v *serverStream) CloseAfter() { v.c.drain() }
