package h2

import (
	"errors"
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/timer"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// reader parses what the peer sends. One goroutine runs it at a time: on a
// socket one that waits in the poller as long as something comes, on a connection
// that calls back the one that the call brings. It never blocks on writing.
type reader struct {
	c   *conn
	buf *[]byte // nil while idle
	// buf[r:w] is unparsed.
	r, w int
	// rest keeps a few octets of an incomplete frame while buf is given back.
	rest []byte
	kept atomic.Int64 // size of buf while it waits for the rest of a frame

	preface int  // octets of the preface still to come (server)
	settled bool // the peer's first SETTINGS was seen
	data    dataFrame
	skip    int // octets to discard: padding, unknown frames

	// The header block being assembled from CONTINUATION frames.
	block    []byte
	blockID  uint32 // 0: none
	blockEnd bool   // HEADERS had END_STREAM
	selfDep  bool   // HEADERS made the stream depend on itself

	dec     decoder
	head    head
	scratch message.Header
	spare   *stream
	flood   floodGuard

	waiting      bool // headersTimer is armed
	headersTimer timer.Timer
	wantFlush    bool
	large        bool // the transport fills large buffers
	discarded    int
	err          error
	resume       func()
}

// dataFrame is a DATA frame whose payload has not arrived completely.
type dataFrame struct {
	s    *stream // nil: discard
	id   uint32
	left int
	pad  int
	end  bool
}

const (
	// keptRest is the most octets for which an idle reader keeps no buffer.
	keptRest = 1 << 10
	// maxDiscard is how much is read after GOAWAY so that the peer sees it.
	maxDiscard = 1 << 20
)

func (r *reader) init(c *conn) {
	r.c = c
	r.dec = decoder{limit: defaultTableSize}
	r.dec.tab.max = defaultTableSize
	if !c.client {
		r.preface = len(preface)
	}
	r.resume = c.read
}

// read drives the connection until it ends or parks.
func (c *conn) read() {
	r := &c.rd
	if l, ok := c.nc.(netio.Looper); ok {
		var err error
		if d, ok := l.(netio.Dozer); ok {
			var dozing bool
			if dozing, err = d.LoopOrDoze(r.step, r.resume); dozing {
				return
			}
		} else {
			err = l.Loop(r.step)
		}
		if r.err != nil {
			err = r.err
		}
		c.readEnded(err)
		return
	}
	for r.step() {
		if c.nc.Park(r.resume) {
			return
		}
	}
	c.readEnded(r.err)
}

// step reads and parses until nothing is there. False means that the connection
// has ended with err.
func (r *reader) step() bool {
	for {
		n, err, direct := r.readDirect()
		if !direct {
			if r.buf == nil {
				r.buf = netio.GetBuffer(netio.LargeBuffer)
				r.r, r.w = 0, copy(*r.buf, r.rest)
				r.rest = r.rest[:0]
			}
			n, err = r.c.nc.TryRead((*r.buf)[r.w:])
		}
		if n > 0 {
			r.c.rx.Add(uint64(n))
		}
		if err != nil {
			if errors.Is(err, netio.ErrWouldBlock) {
				r.idle()
				return true
			}
			r.err = err
			netio.PutBuffer(r.buf)
			r.buf = nil
			return false
		}
		r.c.received.Add(uint64(n))
		if !direct {
			r.w += n
			if cerr := r.process(); cerr != nil {
				r.failed(cerr)
			}
		}
		if r.wantFlush {
			r.wantFlush = false
			r.c.mu.Lock()
			r.c.kick()
			r.c.mu.Unlock()
		}
	}
}

// idle gives the buffer back, keeping what is incomplete.
func (r *reader) idle() {
	const typeAt = 3
	if r.blockID != 0 || r.w-r.r > typeAt && frameType((*r.buf)[r.r+typeAt]) == frameHeaders {
		r.armHeaders(true)
	}
	switch {
	case r.buf == nil:
		return
	case r.w-r.r > keptRest:
		r.kept.Store(int64(len(*r.buf)))
		return
	case r.kept.Load() != 0:
		r.kept.Store(0)
	}
	r.rest = append(r.rest[:0], (*r.buf)[r.r:r.w]...)
	netio.PutBuffer(r.buf)
	r.buf, r.r, r.w = nil, 0, 0
}

// failed ends the connection for a fault of the peer.
func (r *reader) failed(e *connError) {
	c := r.c
	r.r, r.w, r.blockID = 0, 0, 0
	c.mu.Lock()
	dead := c.dead
	c.mu.Unlock()
	if dead {
		return
	}
	if c.handler != nil {
		c.handler.ProtocolError(0, e.details)
	}
	reason := transport.ProtocolError
	c.shutdown(e.code, e.msg, resetError(reason, e.Error()), e.code != codeEnhanceYourCalm)
}

// process parses buf[r:w].
func (r *reader) process() *connError {
	c := r.c
	c.mu.Lock()
	dead := c.dead
	c.mu.Unlock()
	if dead {
		if r.discarded += r.w; r.discarded > maxDiscard {
			c.closeSoon()
		}
		r.r, r.w = 0, 0
		return nil
	}
	for {
		if r.preface > 0 {
			if err := r.readPreface(); err != nil || r.preface > 0 {
				return err
			}
		}
		if r.data.left > 0 {
			r.moreData()
			if r.data.left > 0 {
				break
			}
		}
		if r.skip > 0 {
			n := min(r.skip, r.w-r.r)
			r.skip -= n
			r.r += n
			if r.skip > 0 {
				break
			}
		}
		more, err := r.frame()
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	r.compact()
	return nil
}

// compact makes room at the end of buf.
func (r *reader) compact() {
	if r.r == r.w {
		r.r, r.w = 0, 0
	} else if r.r > 0 {
		r.w = copy(*r.buf, (*r.buf)[r.r:r.w])
		r.r = 0
	}
}

func (r *reader) readPreface() *connError {
	n := min(r.preface, r.w-r.r)
	at := len(preface) - r.preface
	if string((*r.buf)[r.r:r.r+n]) != preface[at:at+n] {
		return protocolError("no HTTP/2 preface")
	}
	r.r += n
	r.preface -= n
	return nil
}

// frame parses one frame. more is false if it is not there completely.
func (r *reader) frame() (more bool, err *connError) {
	b := (*r.buf)[r.r:r.w]
	if len(b) < frameHeaderLen {
		return false, nil
	}
	n := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	t, flags, id := frameType(b[3]), b[4], be32(b[5:])&maxStreamID
	switch {
	case n > r.c.lim.frameSize:
		return false, &connError{codeFrameSize, "http2.protocol_error", "frame is larger than SETTINGS_MAX_FRAME_SIZE"}
	case !r.settled && (t != frameSettings || flags&flagAck != 0):
		return false, protocolError("the first frame is not SETTINGS")
	case r.blockID != 0 && (t != frameContinuation || id != r.blockID):
		return false, protocolError("header block was interrupted")
	case t == frameData:
		return r.dataFrame(b, n, flags, id)
	case t > frameContinuation:
		r.r += frameHeaderLen
		r.skip = n
		return true, r.countGlitch()
	case (t == frameHeaders || t == frameContinuation) && n > r.c.lim.headerBytes+256:
		return false, flood("http2.too_many_headers", "header block is too large")
	case len(b) < frameHeaderLen+n:
		r.compact()
		if frameHeaderLen+n > len(*r.buf) {
			if t != frameHeaders && t != frameContinuation {
				return false, flood("http2.protocol_error", "control frame is too large")
			}
			r.buf = netio.GrowBuffer(r.buf, r.w, frameHeaderLen+n)
		}
		return false, nil
	}
	r.r += frameHeaderLen + n
	return true, r.control(t, flags, id, b[frameHeaderLen:frameHeaderLen+n])
}

func (r *reader) control(t frameType, flags uint8, id uint32, p []byte) *connError {
	switch t {
	case frameHeaders:
		return r.headersFrame(flags, id, p)
	case frameContinuation:
		return r.continuation(flags, id, p)
	case framePriority:
		return r.priority(id, p)
	case frameRSTStream:
		return r.rstStream(id, p)
	case frameSettings:
		return r.settings(flags, id, p)
	case framePing:
		return r.ping(flags, id, p)
	case frameGoAway:
		return r.goAway(id, p)
	case frameWindowUpdate:
		return r.windowUpdate(id, p)
	default: // DATA has its own way
		return protocolError("unexpected PUSH_PROMISE")
	}
}

// streamError ends one stream for a fault of the peer. mu is held.
func (r *reader) streamError(id uint32, code errCode) {
	c := r.c
	c.sendRST(id, code)
	r.wantFlush = true
	if s := c.streams[id]; s != nil {
		s.werr = resetError(transport.ProtocolError, code.String())
		s.wake.wake()
		c.room.Broadcast()
		c.remove(s, closedByUs)
	} else {
		c.closed.add(id, closedByUs)
	}
}

// resetStream ends stream id, if it is there, for a fault of the peer, and counts
// that.
func (r *reader) resetStream(id uint32, code errCode, why string) *connError {
	r.c.mu.Lock()
	s := r.c.streams[id]
	r.c.mu.Unlock()
	return r.fault(s, id, code, why)
}

// fault is resetStream for a stream that may have left the table with the very
// frame that is at fault; s may be nil.
func (r *reader) fault(s *stream, id uint32, code errCode, why string) *connError {
	c := r.c
	c.mu.Lock()
	if s == nil || c.streams[id] == s {
		r.streamError(id, code)
	}
	err := c.checkOutbound()
	c.mu.Unlock()
	if s != nil {
		s.abort(c, id, resetError(transport.ProtocolError, why))
	}
	if err != nil {
		return err
	}
	return r.countReset()
}
