package h2

import (
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// headersFrame starts a header block.
func (r *reader) headersFrame(flags uint8, id uint32, p []byte) *connError {
	if id == 0 {
		return protocolError("HEADERS on stream 0")
	}
	pad := 0
	if flags&flagPadded != 0 {
		if len(p) == 0 {
			return &connError{codeFrameSize, "http2.protocol_error", "padded frame without pad length"}
		}
		pad, p = int(p[0]), p[1:]
	}
	r.selfDep = false
	if flags&flagPriority != 0 {
		if len(p) < 5 {
			return &connError{codeFrameSize, "http2.protocol_error", "HEADERS is too short for its priority"}
		}
		r.selfDep = be32(p)&maxStreamID == id
		p = p[5:]
	}
	if pad > len(p) {
		return protocolError("padding exceeds the frame")
	}
	p = p[:len(p)-pad]
	r.blockEnd = flags&flagEndStream != 0
	if err := r.countPayload(len(p) == 0 && !r.blockEnd); err != nil {
		return err
	}
	if flags&flagEndHeaders != 0 {
		return r.headerBlock(id, p)
	}
	r.blockID = id
	r.block = append(r.block[:0], p...)
	return nil
}

func (r *reader) continuation(flags uint8, id uint32, p []byte) *connError {
	if r.blockID == 0 {
		return protocolError("CONTINUATION without HEADERS")
	}
	end := flags&flagEndHeaders != 0
	if err := r.countPayload(len(p) == 0 && !end); err != nil {
		return err
	}
	// No list within the limit has a longer encoding, save a contrived one: a
	// field's 32 octets of overhead cover its integers.
	if len(r.block)+len(p) > r.c.lim.headerBytes {
		return flood("http2.too_many_headers", "header block is too large")
	}
	r.block = append(r.block, p...)
	if !end {
		return nil
	}
	r.blockID = 0
	err := r.headerBlock(id, r.block)
	if cap(r.block) > minMaxFrameSize {
		r.block = nil
	}
	return err
}

// headerBlock handles a complete header block.
func (r *reader) headerBlock(id uint32, p []byte) *connError {
	r.armHeaders(false)
	if r.c.client {
		return r.responseBlock(id, p)
	}
	c := r.c
	c.mu.Lock()
	s := c.streams[id]
	last, ignored := c.lastID, r.ignored(id)
	how, certain := c.closed.find(id)
	halfClosed := s != nil && s.endRecv
	c.mu.Unlock()
	switch {
	case s != nil:
		return r.trailerBlock(s, id, p, halfClosed)
	case id&1 == 0:
		return protocolError("request on an even stream")
	case ignored:
		return r.decode(p, &r.scratch, sectionAny)
	case id <= last:
		return r.lateBlock(id, p, how, certain)
	}
	return r.requestBlock(id, p)
}

func (r *reader) decode(p []byte, h *message.Header, sec section) *connError {
	r.head.reset(h, sec, r.c.lim.headerBytes, r.c.lim.headerFields)
	if err := r.dec.decode(p, &r.head); err != nil {
		return &connError{codeCompression, "http2.protocol_error", err.Error()}
	}
	return nil
}

// lateBlock judges HEADERS for a stream that was closed or skipped.
func (r *reader) lateBlock(id uint32, p []byte, how closedHow, certain bool) *connError {
	switch how {
	case closedByUs:
		return r.decode(p, &r.scratch, sectionAny) // they may have crossed
	case closedInOrder:
		return &connError{codeStreamClosed, "http2.protocol_error", "HEADERS on a closed stream"}
	case closedUnknown:
		if certain {
			return protocolError("stream ID is lower than an earlier one")
		}
	case closedByPeer:
	}
	if err := r.decode(p, &r.scratch, sectionAny); err != nil {
		return err
	}
	return r.resetStream(id, codeStreamClosed, "")
}

// trailerBlock ends a message that has begun.
func (r *reader) trailerBlock(s *stream, id uint32, p []byte, halfClosed bool) *connError {
	if err := r.decode(p, &r.scratch, sectionTrailers); err != nil {
		return err
	}
	switch {
	case halfClosed:
		return r.resetStream(id, codeStreamClosed, "HEADERS after END_STREAM")
	case !r.blockEnd:
		return r.resetStream(id, codeProtocol, "trailers without END_STREAM")
	case r.head.over:
		return r.resetStream(id, codeEnhanceYourCalm, "http2.too_many_headers")
	case r.head.fault != "":
		return r.resetStream(id, codeProtocol, r.head.fault)
	}
	r.c.mu.Lock()
	if r.c.streams[id] == s {
		r.c.endReceived(s)
	}
	r.c.mu.Unlock()
	if !s.finish(r.c, id, &r.scratch, len(p)+frameHeaderLen) {
		return r.fault(s, id, codeProtocol, "body differs from content-length")
	}
	return nil
}

// requestBlock opens a stream.
func (r *reader) requestBlock(id uint32, p []byte) *connError {
	c := r.c
	s := r.spare
	if s == nil {
		s = newStream(c)
	}
	r.spare = nil
	if err := r.decode(p, &s.x.head, sectionRequest); err != nil {
		r.spare = s
		return err
	}
	b := &r.head
	b.finishRequest(c.lim.allowConnect)
	c.mu.Lock()
	c.lastID = id
	c.total++
	full := uint32(len(c.streams)) >= c.lim.maxStreams || c.running >= 2*int(c.lim.maxStreams)
	c.mu.Unlock()
	var err *connError
	switch {
	case r.selfDep:
		err = r.resetStream(id, codeProtocol, "stream depends on itself")
	case b.over:
		err = r.refuseHead(id)
	case b.fault != "", r.blockEnd && b.length > 0 && !b.connect:
		c.handler.ProtocolError(0, "http2.violation.of.messaging.rule")
		err = r.resetStream(id, codeProtocol, b.fault)
	case full:
		err = r.resetStream(id, codeRefusedStream, "too many streams")
	default:
		r.open(s, id, len(p)+frameHeaderLen)
		return nil
	}
	r.spare = s
	return err
}

// open puts the request into the table and hands it to a worker.
func (r *reader) open(s *stream, id uint32, wire int) {
	c, b := r.c, &r.head
	s.connect, s.headReq, s.x.protocol = b.connect, b.headReq, b.protocol
	s.mu.Lock()
	s.id = id
	s.bytesIn = uint64(wire)
	s.eof, s.headEnd = r.blockEnd, r.blockEnd
	if !b.connect {
		s.left = b.length
	}
	s.mu.Unlock()
	c.mu.Lock()
	s.sendWin = c.peer.initialWindow
	s.endRecv = r.blockEnd
	dead := c.dead
	if !dead {
		s.inMap = true
		c.streams[id] = s
		c.running++
	}
	drain := c.lim.maxRequests > 0 && c.total >= uint64(c.lim.maxRequests)
	c.mu.Unlock()
	if dead {
		s.recycle()
		return
	}
	c.pool.run(task{s: s})
	if drain {
		c.drain()
	}
}

// refuseHead answers a request whose head is too large.
func (r *reader) refuseHead(id uint32) *connError {
	c := r.c
	c.handler.ProtocolError(431, "http2.too_many_headers")
	c.mu.Lock()
	if !c.dead {
		c.reserve(128)
		start := len(c.out)
		c.out = c.enc.begin(append(c.out, make([]byte, frameHeaderLen)...))
		c.out, _ = c.enc.field(c.out, message.Status, "431", false)
		c.splitHead(start, flagEndStream, id)
		c.control++
		if r.blockEnd {
			c.closed.add(id, closedInOrder)
		} else {
			c.sendRST(id, codeNo)
			c.closed.add(id, closedByUs)
		}
		r.wantFlush = true
	}
	err := c.checkOutbound()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return r.countReset()
}

// responseBlock handles a response head or trailers.
func (r *reader) responseBlock(id uint32, p []byte) *connError {
	c := r.c
	c.mu.Lock()
	s := c.streams[id]
	idle := s == nil && r.isIdle(id)
	halfClosed := s != nil && s.endRecv
	c.mu.Unlock()
	if idle {
		return protocolError("HEADERS on an idle stream")
	}
	if s == nil {
		if err := r.decode(p, &r.scratch, sectionAny); err != nil {
			return err
		}
		return r.countGlitch()
	}
	if halfClosed || s.hasHead(c, id) {
		return r.trailerBlock(s, id, p, halfClosed)
	}
	if err := r.decode(p, &r.scratch, sectionResponse); err != nil {
		return err
	}
	b := &r.head
	b.finishResponse()
	switch {
	case b.over:
		return r.resetStream(id, codeInternal, "http2.too_many_headers")
	case b.fault != "":
		return r.resetStream(id, codeProtocol, b.fault)
	case b.status < 200 && r.blockEnd:
		return r.resetStream(id, codeProtocol, "informational response with END_STREAM")
	}
	if r.blockEnd {
		c.mu.Lock()
		if c.streams[id] == s {
			c.endReceived(s)
		}
		c.mu.Unlock()
	}
	if !s.respond(c, id, r, len(p)+frameHeaderLen) {
		return r.fault(s, id, codeProtocol, "body differs from content-length")
	}
	return nil
}

func (s *stream) hasHead(c *conn, id uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.c == c && s.id == id && s.gotHead
}

// maxInformational is how many 1xx heads wait for a slow reader; further ones
// are dropped, as RFC 9110 section 15.2 allows a proxy to.
const maxInformational = 16

// respond stores a response head, swapping r.scratch for an empty one.
func (s *stream) respond(c *conn, id uint32, r *reader, wire int) bool {
	b := &r.head
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c != c || s.id != id || s.rerr != nil || s.x == nil {
		return true
	}
	s.bytesIn += uint64(wire)
	if b.status < 200 {
		if x := s.x; len(x.heads) < maxInformational {
			h := new(message.Header)
			*h, r.scratch = r.scratch, *h
			x.heads = append(x.heads, h)
			s.signal()
		}
		return true
	}
	tunnel := s.connect && b.status < 300
	if s.x.protocol != "" && b.status == 200 {
		// Envoy's transformUpgradeResponseFromH2toH1.
		r.scratch.Set(message.Status, "101")
		r.scratch.Add("upgrade", s.x.protocol)
		r.scratch.Add("connection", "upgrade")
		b.status = 101
	}
	switch {
	case tunnel:
		r.scratch.Del("content-length")
	case s.headReq, b.status == 204, b.status == 304:
		s.left = 0
	case r.blockEnd && b.length > 0:
		return false
	default:
		s.left = b.length
	}
	s.x.head, r.scratch = r.scratch, s.x.head
	s.gotHead, s.x.status = true, b.status
	s.headEnd, s.eof = r.blockEnd, r.blockEnd
	s.signal()
	return true
}
