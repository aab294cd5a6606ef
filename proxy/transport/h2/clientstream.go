package h2

import (
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// clientStream is a stream seen by whoever sends the request. It is reused after
// Release: nobody may call it after that, timers included. A stream that became
// a tunnel ends with the tunnel; Release does nothing then.
type clientStream stream

var _ transport.ClientStream = (*clientStream)(nil)

func (v *clientStream) Version() message.Version { return message.HTTP2 }

func (v *clientStream) WriteHeaders(h *message.Header, end bool) error {
	s := (*stream)(v)
	c := s.c
	method := h.Get(message.Method)
	s.headReq, s.connect = method == "HEAD", method == "CONNECT"
	if !s.connect {
		if up := h.Get("upgrade"); up != "" {
			s.connect, s.x.protocol = true, up
		}
	}
	c.mu.Lock()
	err := c.admit(s)
	if err == nil {
		err = c.openStream(s, h, end)
	}
	if err != nil && !s.headSent {
		s.unanswered(err)
	}
	if err != nil || !end {
		c.mu.Unlock()
		return err
	}
	c.flush(s)
	return nil
}

// unanswered tells who waits for the answer that there will be none: the head could
// not be sent.
func (s *stream) unanswered(err error) {
	s.mu.Lock()
	if s.rerr == nil {
		s.rerr = err
	}
	s.signal()
	s.mu.Unlock()
}

// admit waits until s may be opened. mu is held.
func (c *conn) admit(s *stream) error {
	for {
		switch {
		case s.werr != nil:
			return s.werr
		case s.headSent:
			return errEnded
		case c.dead:
			// Nothing of the stream was sent: as safe to repeat as a refusal.
			return resetError(transport.RemoteRefused, "connection ended before the request was sent: "+c.err.Error())
		case c.refused, c.nextID > maxStreamID:
			return resetError(transport.RemoteRefused, "connection is going away")
		case len(c.out) >= batchMax:
			c.waitRoom(s)
			continue
		case s.protocol() != "" && !c.peer.received:
			c.kick()
			c.ready.Wait()
			continue
		case s.protocol() != "" && !c.peer.connect:
			return resetError(transport.LocalReset, "peer does not allow extended CONNECT")
		}
		return nil
	}
}

// openStream gives s its ID and queues its head, in one step so that IDs appear
// in order. mu is held.
func (c *conn) openStream(s *stream, h *message.Header, end bool) error {
	s.mu.Lock()
	s.id = c.nextID
	s.mu.Unlock()
	s.sendWin = c.peer.initialWindow
	s.headSent = true
	s.inMap = true
	c.streams[s.id] = s
	if err := c.writeHead(s, h, headRequest, end); err != nil {
		delete(c.streams, s.id)
		s.inMap, s.headSent = false, false
		s.werr = err
		s.mu.Lock()
		s.id = 0
		s.mu.Unlock()
		return err
	}
	c.nextID += 2
	c.total++
	return nil
}

func (v *clientStream) WriteData(p []byte, end bool) error {
	return v.c.writeData((*stream)(v), p, end)
}

func (v *clientStream) WriteTrailers(h *message.Header) error {
	return (*stream)(v).writeTrailers(h)
}

func (v *clientStream) Flush() error { return (*stream)(v).flushHeld() }

func (v *clientStream) ReadHeaders(h *message.Header) (status int, end bool, err error) {
	s := (*stream)(v)
	s.c.mu.Lock()
	s.c.flush(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.x.heads) == 0 && !s.gotHead && s.rerr == nil {
		s.waitRead()
	}
	x := s.x
	switch {
	case s.rerr != nil:
		return 0, false, s.rerr
	case len(x.heads) > 0:
		h.Reset()
		*h, x.heads = *x.heads[0], x.heads[1:]
		status, _ := parseLength(h.Get(message.Status))
		return int(status), false, nil
	}
	x.head, *h = *h, x.head
	x.head.Reset()
	return x.status, s.headEnd, nil
}

func (v *clientStream) Body() message.Body {
	s := (*stream)(v)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.headEnd {
		return message.NoBody
	}
	return (*body)(v)
}

func (v *clientStream) Tunnel() netio.Conn { return (*stream)(v).tunnel() }

func (v *clientStream) Interrupt(cause error) { (*stream)(v).interrupt(cause) }

func (v *clientStream) Reset() {
	(*stream)(v).reset(codeCancel, resetError(transport.LocalReset, ""))
}

func (v *clientStream) Release() {
	s := (*stream)(v)
	c := s.c
	c.mu.Lock()
	if s.tunnelled {
		c.mu.Unlock()
		return
	}
	if s.inMap {
		c.sendRST(s.id, codeCancel)
		c.remove(s, closedByUs)
	}
	c.releaseHold(s)
	c.quiesce()
	c.flush(s)
	s.recycle()
	c.onFree()
}

func (v *clientStream) BytesIn() uint64  { return (*stream)(v).received() }
func (v *clientStream) BytesOut() uint64 { return (*stream)(v).sent() }
