package h2

import (
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

func frameSizeError(msg string) *connError {
	return &connError{codeFrameSize, "http2.protocol_error", msg}
}

func (r *reader) priority(id uint32, p []byte) *connError {
	switch {
	case id == 0:
		return protocolError("PRIORITY on stream 0")
	case len(p) != 5:
		r.c.mu.Lock()
		idle := r.isIdle(id)
		r.c.mu.Unlock()
		if idle {
			return frameSizeError("PRIORITY is not 5 octets")
		}
		return r.resetStream(id, codeFrameSize, "PRIORITY is not 5 octets")
	case be32(p)&maxStreamID == id:
		r.c.mu.Lock()
		idle := r.isIdle(id)
		r.c.mu.Unlock()
		if idle {
			return protocolError("stream depends on itself")
		}
		return r.resetStream(id, codeProtocol, "stream depends on itself")
	}
	return r.countPriority()
}

func (r *reader) rstStream(id uint32, p []byte) *connError {
	c := r.c
	if id == 0 {
		return protocolError("RST_STREAM on stream 0")
	}
	if len(p) != 4 {
		return frameSizeError("RST_STREAM is not 4 octets")
	}
	code := errCode(be32(p))
	c.mu.Lock()
	s := c.streams[id]
	if s == nil {
		idle, ignored := r.isIdle(id), r.ignored(id)
		c.closed.resetByPeer(id)
		c.mu.Unlock()
		if idle && !ignored {
			return protocolError("RST_STREAM on an idle stream")
		}
		return r.countGlitch()
	}
	reason := transport.RemoteReset
	switch {
	case code == codeRefusedStream:
		reason = transport.RemoteRefused
	case code == codeProtocol && c.client: // as Envoy: the server finds fault with the request
		reason = transport.ProtocolError
	}
	cause := resetError(reason, code.String())
	// A server that has answered may say that it wants no more of the request.
	early := !s.endRecv || !c.client
	s.werr = cause
	s.wake.wake()
	c.room.Broadcast()
	c.remove(s, closedByPeer)
	c.mu.Unlock()
	s.abort(c, id, cause)
	if early {
		return r.countReset()
	}
	return nil
}

func (r *reader) ping(flags uint8, id uint32, p []byte) *connError {
	c := r.c
	switch {
	case id != 0:
		return protocolError("PING on a stream")
	case len(p) != 8:
		return frameSizeError("PING is not 8 octets")
	}
	if flags&flagAck != 0 {
		if string(p) == drainPing {
			c.drainFinal()
		}
		return r.countGlitch()
	}
	c.mu.Lock()
	c.sendPing(flagAck, p)
	r.wantFlush = true
	err := c.checkOutbound()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return r.countGlitch()
}

func (r *reader) windowUpdate(id uint32, p []byte) *connError {
	c := r.c
	if len(p) != 4 {
		return frameSizeError("WINDOW_UPDATE is not 4 octets")
	}
	if err := r.countWindowUpdate(); err != nil {
		return err
	}
	n := int64(be32(p) & maxStreamID)
	c.mu.Lock()
	if id == 0 {
		ok := n > 0 && c.grow(n)
		c.mu.Unlock()
		if n == 0 {
			return protocolError("WINDOW_UPDATE of 0")
		}
		if !ok {
			return &connError{codeFlowControl, "http2.protocol_error", "the connection's window overflows"}
		}
		return nil
	}
	s := c.streams[id]
	if s == nil {
		idle, ignored := r.isIdle(id), r.ignored(id)
		c.mu.Unlock()
		if idle && !ignored {
			return protocolError("WINDOW_UPDATE on an idle stream")
		}
		return r.countGlitch()
	}
	s.sendWin += n
	over := s.sendWin > maxWindow
	s.wake.wake()
	c.mu.Unlock()
	switch {
	case n == 0:
		return r.resetStream(id, codeProtocol, "WINDOW_UPDATE of 0")
	case over:
		return r.resetStream(id, codeFlowControl, "the stream's window overflows")
	}
	return nil
}

func (r *reader) settings(flags uint8, id uint32, p []byte) *connError {
	c := r.c
	switch {
	case id != 0:
		return protocolError("SETTINGS on a stream")
	case flags&flagAck != 0 && len(p) > 0:
		return frameSizeError("SETTINGS ACK with a payload")
	case flags&flagAck != 0:
		return r.countGlitch()
	case len(p)%6 != 0:
		return frameSizeError("SETTINGS is not a multiple of 6 octets")
	}
	if !r.settled {
		r.settled = true
		c.handshakeTimer.Stop()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; len(p) > 0; p = p[6:] {
		if err := c.applySetting(uint16(p[0])<<8|uint16(p[1]), be32(p[2:])); err != nil {
			return err
		}
	}
	if !c.peer.received {
		c.peer.received = true
		c.ready.Broadcast()
	}
	c.sendSettingsAck()
	r.wantFlush = true
	if err := c.checkOutbound(); err != nil {
		return err
	}
	return r.countGlitch()
}

// applySetting applies one of the peer's settings, in order. mu is held.
func (c *conn) applySetting(id uint16, v uint32) *connError {
	switch id {
	case settingHeaderTableSize:
		c.enc.setPeerLimit(v)
	case settingEnablePush:
		if v > 1 || c.client && v != 0 {
			return protocolError("invalid SETTINGS_ENABLE_PUSH")
		}
	case settingMaxConcurrentStreams:
		c.peer.maxStreams = v
	case settingInitialWindowSize:
		if v > maxWindow {
			return &connError{codeFlowControl, "http2.protocol_error", "invalid SETTINGS_INITIAL_WINDOW_SIZE"}
		}
		d := int64(v) - c.peer.initialWindow
		c.peer.initialWindow = int64(v)
		for _, s := range c.streams {
			if s.sendWin += d; s.sendWin > maxWindow {
				return &connError{codeFlowControl, "http2.protocol_error", "a stream's window overflows"}
			}
			s.wake.wake()
		}
	case settingMaxFrameSize:
		if v < minMaxFrameSize || v > maxMaxFrameSize {
			return protocolError("invalid SETTINGS_MAX_FRAME_SIZE")
		}
		c.peer.maxFrame = int(v)
	case settingEnableConnect:
		if v > 1 || c.peer.connect && v == 0 {
			return protocolError("invalid SETTINGS_ENABLE_CONNECT_PROTOCOL")
		}
		c.peer.connect = v == 1
	}
	return nil
}

func (r *reader) goAway(id uint32, p []byte) *connError {
	c := r.c
	switch {
	case id != 0:
		return protocolError("GOAWAY on a stream")
	case len(p) < 8:
		return frameSizeError("GOAWAY is shorter than 8 octets")
	}
	if !c.client {
		return r.countGlitch() // there is no push to stop
	}
	last := be32(p) & maxStreamID
	cause := resetError(transport.RemoteRefused, "GOAWAY "+errCode(be32(p[4:])).String())
	var victims []streamRef
	c.mu.Lock()
	c.draining, c.refused = true, true
	for sid, s := range c.streams {
		if sid > last {
			victims = append(victims, streamRef{s, sid})
			s.werr = cause
			s.wake.wake()
			c.remove(s, closedByPeer)
		}
	}
	c.room.Broadcast()
	c.quiesce()
	c.mu.Unlock()
	c.endStreams(victims, cause)
	return r.countGlitch()
}
