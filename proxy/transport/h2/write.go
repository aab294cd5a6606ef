package h2

import (
	"errors"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

var (
	errEnded  = errors.New("h2: the message was already ended")
	errNoHead = errors.New("h2: no head was written")
)

// reserve makes room for n octets in out. mu is held.
func (c *conn) reserve(n int) {
	need := len(c.out) + n
	if c.outBuf != nil && need <= cap(c.out) {
		return
	}
	if c.outBuf != nil {
		need = max(need, netio.LargeBuffer)
	}
	b := netio.GetBuffer(need)
	c.out = append((*b)[:0], c.out...)
	netio.PutBuffer(c.outBuf)
	c.outBuf = b
}

// beginFrame leaves room for a frame header and returns its position; endFrame
// fills it in.
func (c *conn) beginFrame() int {
	at := len(c.out)
	c.out = append(c.out, make([]byte, frameHeaderLen)...)
	return at
}

func (c *conn) endFrame(at int, t frameType, flags uint8, id uint32) {
	putFrameHeader(c.out[at:], len(c.out)-at-frameHeaderLen, t, flags, id)
	c.frames++
}

// The control frames of the reader; nothing is queued on a dead connection. mu
// is held.

func (c *conn) sendRST(id uint32, code errCode) {
	if c.countControl(4) {
		c.out = appendRSTStream(c.out, id, code)
	}
}

func (c *conn) sendWindowUpdate(id uint32, inc int64) {
	if c.countControl(4) {
		c.out = appendWindowUpdate(c.out, id, uint32(inc))
	}
}

func (c *conn) sendPing(flags uint8, data []byte) {
	if c.countControl(8) {
		c.out = appendPing(c.out, flags, data)
	}
}

func (c *conn) sendSettingsAck() {
	if c.countControl(0) {
		c.out = appendFrameHeader(c.out, 0, frameSettings, flagAck, 0)
	}
}

func (c *conn) sendGoAway(last uint32, code errCode) {
	if c.countControl(8) {
		c.out = appendGoAway(c.out, last, code, "")
	}
}

// countControl makes room for a control frame with a payload of n octets and counts
// it.
func (c *conn) countControl(n int) bool {
	if c.dead {
		return false
	}
	c.reserve(n + frameHeaderLen)
	c.frames++
	c.control++
	return true
}

// flush sees to it that out is written, by the goroutine that is at it or by this
// one, which serves s (nil: none in particular). mu is held and released.
func (c *conn) flush(s *stream) {
	if c.flushing || len(c.out) == 0 {
		c.mu.Unlock()
		return
	}
	c.flushing = true
	if len(c.out) < yieldBelow {
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	c.writeOut(s, nil)
	c.mu.Unlock()
}

// kick is flush for those who must not block: reader, timers, consumers of what
// was received. mu is held.
func (c *conn) kick() {
	if !c.flushing && len(c.out) > 0 {
		c.flushing = true
		workers.run(task{fn: c.flushFn})
	}
}

// finish has the last batch written and the transport closed. The connection is
// dead; mu is held.
func (c *conn) finish() {
	if !c.flushing {
		c.flushing = true
		workers.run(task{fn: c.flushFn})
	}
}

func (c *conn) flushTask() {
	c.mu.Lock()
	c.writeOut(nil, nil)
	c.mu.Unlock()
}

// maxRounds is how many batches a stream's goroutine writes before it hands the
// flushing on: others' data may not keep it from its own work.
const maxRounds = 4

// writeOut writes batches until there are none; the caller has set flushing. more,
// if not nil, follows the first batch without being copied. mu is held, and
// released while writing.
func (c *conn) writeOut(s *stream, more []byte) {
	var err error
	c.writer = s
	for round := 0; (len(c.out) > 0 || more != nil) && err == nil; round++ {
		if s != nil && round == maxRounds {
			c.writer = nil
			workers.run(task{fn: c.flushFn})
			return
		}
		b, buf, frames, control := c.out, c.outBuf, c.frames, c.control
		c.out, c.outBuf = nil, nil
		c.writes++
		c.dataSent.Store(c.dataPut) // once a batch: each costs a fence
		c.mu.Unlock()
		c.tx.Add(uint64(len(b) + len(more)))
		if more != nil {
			err = netio.WriteParts(c.nc, b, more, nil)
			more = nil
		} else {
			_, err = c.nc.Write(b)
		}
		netio.PutBuffer(buf)
		c.mu.Lock()
		c.frames -= frames
		c.control -= control
		c.room.Broadcast()
	}
	c.writer = nil
	c.flushing = false
	switch {
	case err != nil:
		c.mu.Unlock()
		c.abort(err)
		c.mu.Lock()
	case c.dead && c.linger:
		c.mu.Unlock()
		_ = c.nc.CloseWrite() // closeNow follows, by the reader or drainTimer
		c.mu.Lock()
	case c.dead:
		c.closeSoon()
	}
}

// stuckGrace is how long a write may go on that holds a stream's goroutine after
// the stream was interrupted. Then the transport is given up: the peer reads
// nothing at all.
const stuckGrace = time.Second

var errStuck = &transport.ResetError{Reason: transport.ConnectionTermination, Detail: "http/2 peer does not read"}

// watchWriter sees to it that s, which was interrupted, is not held by a write to
// a stalled transport. mu is held.
func (c *conn) watchWriter(s *stream) {
	if c.writer == s && !c.dead {
		c.stuckAt = c.writes
		c.stuckTimer.Arm(stuckGrace, c.onStuckTimer)
	}
}

func (c *conn) onStuckTimer() {
	c.mu.Lock()
	stuck := c.writer != nil && c.writes == c.stuckAt
	c.mu.Unlock()
	if stuck {
		workers.run(task{fn: func() { c.abort(errStuck) }})
	}
}

// waitRoom returns when the batch was or is being written. mu is held.
func (c *conn) waitRoom(s *stream) {
	if c.flushing {
		c.room.Wait()
		return
	}
	c.flushing = true
	c.writeOut(s, nil)
}

// waitWindow blocks s until it may send or has failed. mu is held.
func (c *conn) waitWindow(s *stream) {
	if !c.flushing && len(c.out) > 0 {
		c.flushing = true
		c.writeOut(s, nil)
		return
	}
	if c.sendWin <= 0 && !s.queued {
		s.queued = true
		c.winWait = append(c.winWait, s)
	}
	s.wake.wait(&c.mu, s.tunnelled)
}

// unqueue takes s out of those that wait for the connection's window: it may serve
// another connection soon. mu is held.
func (c *conn) unqueue(s *stream) {
	if s.queued {
		s.queued = false
		c.winWait = slices.DeleteFunc(c.winWait, func(w *stream) bool { return w == s })
	}
}

// grow adds to the connection's send window and wakes who waits for it.
func (c *conn) grow(n int64) bool {
	if c.sendWin += n; c.sendWin > maxWindow {
		return false
	}
	if c.sendWin > 0 {
		for i, s := range c.winWait {
			s.queued = false
			s.wake.wake()
			c.winWait[i] = nil
		}
		c.winWait = c.winWait[:0]
	}
	return true
}

// writeData sends p as the windows allow, blocking for them and for the
// transport.
func (c *conn) writeData(s *stream, p []byte, end bool) error {
	c.mu.Lock()
	if err := c.appendData(s, p, end); err != nil {
		c.mu.Unlock()
		return err
	}
	c.flush(s)
	return nil
}

// directMin is the payload from which on it is written without being copied into
// the batch, if nobody else is writing.
const directMin = 16 << 10

// appendData is writeData without the last flush. mu is held, and released while
// it blocks.
func (c *conn) appendData(s *stream, p []byte, end bool) error {
	for len(p) > 0 || end {
		if err := s.writable(); err != nil {
			return err
		}
		free := batchMax - len(c.out) - frameHeaderLen
		if free < min(len(p), 4<<10) {
			c.waitRoom(s)
			continue
		}
		n := int(min(int64(len(p)), int64(free), int64(c.peer.maxFrame), s.sendWin, c.sendWin))
		if n <= 0 && len(p) > 0 {
			c.waitWindow(s)
			continue
		}
		n = max(n, 0) // a window may be negative, an empty frame needs none
		var flags uint8
		if end && n == len(p) {
			flags = flagEndStream
		}
		c.putData(s, p[:n], flags)
		p = p[n:]
		if flags != 0 {
			break
		}
	}
	return nil
}

// putData queues one DATA frame that the windows allow, or writes it. mu is held.
func (c *conn) putData(s *stream, p []byte, flags uint8) {
	n := len(p)
	direct := n >= directMin && !c.flushing
	if direct {
		c.flushing = true
		c.reserve(frameHeaderLen)
	} else {
		c.reserve(n + frameHeaderLen)
	}
	c.out = appendFrameHeader(c.out, n, frameData, flags, s.id)
	if !direct {
		c.out = append(c.out, p...)
	}
	c.frames++
	c.dataPut++
	s.sendWin -= int64(n)
	c.sendWin -= int64(n)
	s.bytesOut += uint64(n) + frameHeaderLen
	if flags&flagEndStream != 0 {
		c.endSent(s)
	}
	if direct {
		c.writeOut(s, p)
	}
}

// endSent notes that this side's END_STREAM was queued. mu is held.
func (c *conn) endSent(s *stream) {
	s.endSent = true
	if s.endRecv {
		c.completed.Add(1)
		c.remove(s, closedInOrder)
	}
}

// headRules is what a head is checked and changed for on its way out.
type headRules uint8

const (
	headRequest headRules = iota
	headResponse
	headTrailers
)

// writeHead queues a header block; s is in the table. mu is held, and released
// while the batch is full.
func (c *conn) writeHead(s *stream, h *message.Header, rules headRules, end bool) error {
	for len(c.out) >= batchMax {
		c.waitRoom(s)
		if err := s.writable(); err != nil {
			return err
		}
	}
	c.reserve(h.Bytes() + 128)
	start := len(c.out)
	c.out = c.enc.begin(append(c.out, make([]byte, frameHeaderLen)...))
	if err := c.encodeFields(s, h, rules); err != nil {
		c.out = c.out[:start]
		c.enc.restart()
		return err
	}
	var flags uint8
	if end {
		flags = flagEndStream
	}
	c.splitHead(start, flags, s.id)
	s.bytesOut += uint64(len(c.out) - start)
	if end {
		c.endSent(s)
	}
	return nil
}

// splitHead turns the block at out[start+9:] into HEADERS and, if it exceeds the
// peer's frame size, CONTINUATION frames.
func (c *conn) splitHead(start int, flags uint8, id uint32) {
	size, limit := len(c.out)-start-frameHeaderLen, c.peer.maxFrame
	if size <= limit {
		putFrameHeader(c.out[start:], size, frameHeaders, flags|flagEndHeaders, id)
		c.frames++
		return
	}
	block := append([]byte(nil), c.out[start+frameHeaderLen:]...)
	c.out = c.out[:start]
	t := frameHeaders
	for len(block) > 0 {
		n := min(len(block), limit)
		if n == len(block) {
			flags |= flagEndHeaders
		}
		c.out = append(appendFrameHeader(c.out, n, t, flags, id), block[:n]...)
		c.frames++
		block, t, flags = block[n:], frameContinuation, 0
	}
}

func (c *conn) encodeFields(s *stream, h *message.Header, rules headRules) error {
	status := h.Get(message.Status) // "" of a request
	tunnel := s.connect && (status == "" || status < "300")
	for i := range h.Len() {
		f := h.At(i)
		switch k := classify(f.Name); {
		case skipField(k, &f, rules),
			tunnel && k == kindContentLength,
			s.connect && s.protocol() == "" && (k == kindScheme || k == kindPath):
			continue
		case k == kindStatus && f.Value == "101":
			f.Value = "200" // an upgrade is an extended CONNECT here
		case k == kindMethod:
			if err := c.encodeMethod(s, f.Value, h); err != nil {
				return err
			}
			continue
		}
		if err := c.encodeField(&f); err != nil {
			return err
		}
	}
	return nil
}

// encodeMethod adds what belongs to a request line besides: the protocol of an
// extended CONNECT, and the authority if there is only a host field.
func (c *conn) encodeMethod(s *stream, method string, h *message.Header) error {
	protocol := s.protocol()
	if protocol != "" {
		method = "CONNECT"
	}
	if err := c.encodeField(&message.Field{Name: message.Method, Value: method}); err != nil {
		return err
	}
	if protocol != "" {
		if err := c.encodeField(&message.Field{Name: message.Protocol, Value: protocol}); err != nil {
			return err
		}
	}
	if host := h.Get("host"); host != "" && !h.Has(message.Authority) {
		return c.encodeField(&message.Field{Name: message.Authority, Value: host})
	}
	return nil
}

func (c *conn) encodeField(f *message.Field) error {
	var ok bool
	if c.out, ok = c.enc.field(c.out, f.Name, f.Value, f.NeverIndex); !ok {
		return &transport.ResetError{Reason: transport.LocalReset, Detail: "field may not be sent in HTTP/2: " + strconv.Quote(f.Name)}
	}
	return nil
}

// skipField drops what has no place in HTTP/2 (RFC 9113 section 8.2.2).
func skipField(k fieldKind, f *message.Field, rules headRules) bool {
	switch k {
	case kindConnection:
		return true
	case kindTE:
		return rules != headRequest || f.Value != "trailers"
	case kindHost:
		return rules != headResponse
	case kindContentLength:
		return rules == headTrailers
	case kindMethod, kindScheme, kindAuthority, kindPath, kindProtocol:
		return rules != headRequest
	case kindStatus:
		return rules != headResponse
	default:
		return f.Name == "http2-settings"
	}
}

func resetError(reason transport.ResetReason, detail string) error {
	return &transport.ResetError{Reason: reason, Detail: detail}
}
