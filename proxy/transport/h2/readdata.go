package h2

import "github.com/fairlead-mesh/fairlead/internal/netio"

// dataFrame starts a DATA frame; b begins with its header. Its payload is
// delivered as it arrives.
func (r *reader) dataFrame(b []byte, n int, flags uint8, id uint32) (more bool, err *connError) {
	if id == 0 {
		return false, protocolError("DATA on stream 0")
	}
	head, pad := frameHeaderLen, 0
	if flags&flagPadded != 0 {
		if n == 0 {
			return false, &connError{codeFrameSize, "http2.protocol_error", "padded frame without pad length"}
		}
		if len(b) <= frameHeaderLen {
			return false, nil
		}
		if pad = int(b[frameHeaderLen]); pad >= n {
			return false, protocolError("padding exceeds the frame")
		}
		head++
	}
	end := flags&flagEndStream != 0
	size := n - (head - frameHeaderLen) - pad
	if err := r.countPayload(size == 0 && !end); err != nil {
		return false, err
	}
	have := min(size, len(b)-head)
	p := b[head : head+have]
	r.r += head + have
	r.data = dataFrame{id: id, left: size - have, pad: pad, end: end}
	r.skip = pad

	ends := end && r.data.left == 0
	s, v, err := r.admitData(id, n, size, ends)
	if err != nil {
		return false, err
	}
	if v == admitOK {
		switch s.feed(r.c, id, piece{p: p, window: int64(n), overhead: int64(n - size), wire: n + frameHeaderLen, end: ends}) {
		case fed:
			r.data.s = s
		case feedGone:
		case feedOverflow:
			return true, r.fault(s, id, codeFlowControl, "peer exceeded the stream's window")
		case feedLength:
			return true, r.fault(s, id, codeProtocol, "body differs from content-length")
		case feedEarly:
			return true, r.fault(s, id, codeProtocol, "DATA before the response head")
		}
		return true, nil
	}
	if v == admitStray {
		if err := r.resetStream(id, codeStreamClosed, "DATA after END_STREAM"); err != nil {
			return true, err
		}
		return true, r.countNobodys(size)
	}
	if size < smallData {
		return true, r.countNobodys(size)
	}
	return true, nil
}

// admission is what becomes of a DATA frame.
type admission uint8

const (
	admitOK admission = iota
	// admitIgnore: the payload is dropped, the window given back.
	admitIgnore
	// admitStray: the stream no longer receives.
	admitStray
)

// admitData does what concerns the connection: its window and the stream's
// state. ends says that the frame is complete and carries END_STREAM.
func (r *reader) admitData(id uint32, n, size int, ends bool) (*stream, admission, *connError) {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.recvWin -= int64(n); c.recvWin < 0 {
		return nil, 0, &connError{codeFlowControl, "http2.protocol_error", "peer exceeded the connection's window"}
	}
	s := c.streams[id]
	open := s != nil && !s.endRecv
	if !open || c.buffered.Load() <= c.lim.buffered {
		c.owed += int64(n) + c.withheld
		c.withheld = 0
		c.isBehind.Store(false)
	} else {
		c.owed += int64(n - size)
		c.withheld += int64(size)
		c.isBehind.Store(true)
	}
	r.wantFlush = c.grantConn() || r.wantFlush
	if open {
		if ends {
			c.endReceived(s)
		}
		return s, admitOK, nil
	}
	if s != nil {
		return nil, admitStray, nil
	}
	if r.isIdle(id) {
		return nil, 0, protocolError("DATA on an idle stream")
	}
	if how, _ := c.closed.find(id); how == closedByUs || r.ignored(id) {
		return nil, admitIgnore, nil
	}
	return nil, admitStray, nil
}

// endReceived notes the peer's END_STREAM. mu is held.
func (c *conn) endReceived(s *stream) {
	s.endRecv = true
	if s.endSent {
		c.completed.Add(1)
		c.remove(s, closedInOrder)
	}
}

// isIdle reports whether the peer's stream id was never opened. mu is held.
func (r *reader) isIdle(id uint32) bool {
	c := r.c
	if c.client {
		return id&1 == 0 || id >= c.nextID
	}
	return id&1 == 0 || id > c.lastID && !r.ignored(id)
}

// ignored reports whether id is beyond what a final GOAWAY admitted. mu is held.
func (r *reader) ignored(id uint32) bool {
	c := r.c
	return !c.client && c.goAwaySent && !c.notice && id > c.finalID
}

// moreData delivers a further piece of the current DATA frame from buf.
func (r *reader) moreData() {
	d := &r.data
	n := min(d.left, r.w-r.r)
	if n == 0 {
		return
	}
	p := (*r.buf)[r.r : r.r+n]
	r.r += n
	r.deliver(p, nil)
}

// directRead is the rest of a DATA frame from which on it is read into the chunk
// that the stream gets, instead of being copied there.
const directRead = netio.MediumBuffer

// readDirect reads into a chunk for the stream of the current DATA frame. ok is
// false if that is not worth it.
func (r *reader) readDirect() (n int, err error, ok bool) {
	d := &r.data
	if d.s == nil || d.left < directRead || r.r < r.w {
		return 0, nil, false
	}
	size := directRead
	if r.large {
		size = min(d.left, netio.LargeBuffer)
	}
	ch := newChunk(size)
	b := (*ch.buf)[:min(size, len(*ch.buf))]
	n, err = r.c.nc.TryRead(b)
	if err != nil {
		ch.free()
		return 0, err, true
	}
	// A transport that fills what it is given (no TLS records) may have more.
	r.large = n == len(b)
	ch.w = n
	r.deliver(b[:n], ch)
	return n, nil, true
}

// deliver hands a further piece of the current frame to its stream; ch, if not
// nil, is given away.
func (r *reader) deliver(p []byte, ch *chunk) {
	d := &r.data
	d.left -= len(p)
	if d.s == nil {
		return
	}
	end := d.end && d.left == 0
	if end {
		r.c.mu.Lock()
		if r.c.streams[d.id] == d.s {
			r.c.endReceived(d.s)
		}
		r.c.mu.Unlock()
	}
	res := d.s.feed(r.c, d.id, piece{p: p, ch: ch, end: end})
	if res == fed {
		return
	}
	if ch != nil {
		ch.free()
	}
	if res == feedLength {
		if err := r.fault(d.s, d.id, codeProtocol, "body differs from content-length"); err != nil {
			r.failed(err)
		}
	}
	d.s = nil
}
