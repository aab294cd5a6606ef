package h1

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/timer"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// serverStream is the request in flight on a Server, reused for the next one.
type serverStream struct {
	s      *Server
	header message.Header
	hd     head
	body   body

	out        *[]byte // response bytes not written yet
	outLen     int
	fr         framing
	left       uint64
	started    bool // the final head was written
	complete   bool // the response is complete
	failed     bool
	bodyHead   bool // HEAD or a status without body: data is dropped
	taken      bool // the connection belongs to a tunnel
	closeAfter bool
	continued  bool
	sent       atomic.Uint64
	inStart    uint64

	probe   timer.Timer
	onProbe func()

	mu      sync.Mutex
	onReset func(error)
	gone    error
}

var errNoHead = errors.New("http/1.1: body before the response head")

func (st *serverStream) init(s *Server) {
	st.s = s
	st.onProbe = st.checkClient
	st.body.trailers = s.cfg.EnableTrailers
	st.body.limit = s.maxHeaderBytes()
	st.body.fields = s.cfg.MaxHeaders
}

func (st *serverStream) begin() {
	st.header.Reset()
	st.inStart = st.s.rd.in.Load() - uint64(len(st.s.rd.bytes()))
	st.fr, st.left, st.started, st.complete, st.failed, st.bodyHead, st.continued, st.closeAfter = 0, 0, false, false, false, false, false, false
	st.sent.Store(0)
	st.mu.Lock()
	st.onReset, st.gone = nil, nil
	st.mu.Unlock()
}

// prepare readies the body after the head was parsed.
func (st *serverStream) prepare() {
	st.body.reset(&st.s.rd, st.hd.framing, st.hd.length)
	st.body.before = nil
	if st.hd.expect && !st.s.cfg.Proxy100Continue && st.hd.framing != framingNone {
		st.body.before = st.sendContinue
	}
	st.probe.Arm(probeInterval, st.onProbe)
}

// checkClient looks whether the client is still there while nobody reads.
func (st *serverStream) checkClient() {
	p, ok := st.s.rd.c.(netio.Prober)
	if !ok {
		return
	}
	if readable, ended := p.Probe(); ended && readable {
		st.lost(&transport.ResetError{Reason: transport.ConnectionTermination, Detail: "the client closed the connection"})
		return
	}
	st.probe.Arm(probeInterval, st.onProbe)
}

// lost tells the stream's owner that the client is gone.
func (st *serverStream) lost(cause error) {
	st.mu.Lock()
	if st.gone != nil {
		st.mu.Unlock()
		return
	}
	st.gone = cause
	f := st.onReset
	st.mu.Unlock()
	if f != nil {
		f(cause)
	}
}

func (st *serverStream) sendContinue() error {
	if st.continued || st.started {
		return nil
	}
	st.continued = true
	_, err := st.s.rd.c.Write([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
	return err
}

// Version implements transport.ServerStream.
func (st *serverStream) Version() message.Version { return st.hd.version }

// ReadHeaders implements transport.ServerStream.
func (st *serverStream) ReadHeaders(h *message.Header) { h.CopyFrom(&st.header) }

// Body implements transport.ServerStream.
func (st *serverStream) Body() message.Body {
	if st.hd.framing == framingNone {
		return message.NoBody
	}
	return &st.body
}

// WriteInformational implements transport.ServerStream.
func (st *serverStream) WriteInformational(h *message.Header) error {
	if st.hd.version == message.HTTP10 || st.started {
		return nil
	}
	st.continued = true
	b := st.buffer()
	out, _, _, err := appendResponseHead(b, h, &responseHead{method: st.hd.method, version: message.HTTP11, end: true})
	if err != nil {
		return err
	}
	st.keep(out)
	return st.Flush()
}

// buffer returns the pending output to append to.
func (st *serverStream) buffer() []byte {
	if st.out == nil {
		st.out = netio.GetBuffer(netio.SmallBuffer)
		st.outLen = 0
	}
	return (*st.out)[:st.outLen]
}

// keep stores what was appended to buffer's result.
func (st *serverStream) keep(b []byte) {
	if cap(b) != cap(*st.out) {
		old := st.out
		nb := b[:cap(b)]
		st.out = &nb
		netio.PutBuffer(old)
	}
	st.outLen = len(b)
}

func (st *serverStream) pending() []byte {
	if st.out == nil {
		return nil
	}
	return (*st.out)[:st.outLen]
}

func (st *serverStream) clearPending() {
	netio.PutBuffer(st.out)
	st.out, st.outLen = nil, 0
}

// WriteHeaders implements transport.ServerStream.
func (st *serverStream) WriteHeaders(h *message.Header, end bool) error {
	r := responseHead{method: st.hd.method, version: st.hd.version, end: end, close: st.closeAfter, keep: st.hd.keepAlive}
	out, fr, n, err := appendResponseHead(st.buffer(), h, &r)
	if err != nil {
		st.failed = true
		return err
	}
	st.keep(out)
	st.started, st.fr, st.left = true, fr, n
	st.closeAfter = r.close
	status := h.Get(message.Status)
	st.bodyHead = fr == framingNone
	if end {
		st.complete = fr != framingLength
		st.failed = fr == framingLength
		return st.Flush()
	}
	if status == "101" || st.hd.connect && status < "300" {
		return nil
	}
	return nil
}

// WriteData implements transport.ServerStream.
func (st *serverStream) WriteData(p []byte, end bool) error {
	if !st.started {
		return errNoHead
	}
	var tail []byte
	switch st.fr {
	case framingNone:
		p = nil
	case framingLength:
		if uint64(len(p)) > st.left || end && uint64(len(p)) < st.left {
			st.failed = true
			return &transport.ResetError{Reason: transport.ProtocolError, Detail: "response body differs from its content-length"}
		}
		st.left -= uint64(len(p))
	case framingChunked:
		if len(p) > 0 {
			st.keep(appendChunkSize(st.buffer(), len(p)))
			tail = crlf
			if end {
				tail = crlfEnd
			}
		} else if end {
			tail = lastChunk
		}
	case framingUntilClose:
	}
	if end {
		st.complete = true
	}
	return st.write(p, tail)
}

var (
	crlf      = []byte("\r\n")
	crlfEnd   = []byte("\r\n0\r\n\r\n")
	lastChunk = []byte("0\r\n\r\n")
)

func (st *serverStream) write(p, tail []byte) error {
	head := st.pending()
	if len(head)+len(p)+len(tail) == 0 {
		return nil
	}
	st.sent.Add(uint64(len(head) + len(p) + len(tail)))
	err := netio.WriteParts(st.s.rd.c, head, p, tail)
	st.clearPending()
	if err != nil {
		st.failed = true
		return broken(err)
	}
	return nil
}

// WriteTrailers implements transport.ServerStream.
func (st *serverStream) WriteTrailers(h *message.Header) error {
	if !st.started {
		return errNoHead
	}
	if st.fr != framingChunked {
		return st.WriteData(nil, true)
	}
	out, err := appendTrailers(st.buffer(), h, st.s.cfg.EnableTrailers)
	if err != nil {
		st.failed = true
		return err
	}
	st.keep(out)
	st.complete = true
	return st.write(nil, nil)
}

// Flush implements transport.ServerStream.
func (st *serverStream) Flush() error { return st.write(nil, nil) }

// Tunnel implements transport.ServerStream.
func (st *serverStream) Tunnel() netio.Conn {
	st.taken = true
	st.probe.Stop()
	return newTunnel(&st.s.rd, st.s.end)
}

// Reset implements transport.ServerStream.
func (st *serverStream) Reset(transport.ResetReason) {
	st.failed = true
	if st.out != nil {
		st.clearPending()
	}
	st.s.rd.c.Reset()
}

// OnReset implements transport.ServerStream.
func (st *serverStream) OnReset(f func(cause error)) {
	st.mu.Lock()
	gone := st.gone
	st.onReset = f
	st.mu.Unlock()
	if gone != nil {
		f(gone)
	}
}

// BytesIn implements transport.ServerStream.
func (st *serverStream) BytesIn() uint64 {
	return st.s.rd.in.Load() - uint64(len(st.s.rd.bytes())) - st.inStart
}

// BytesOut implements transport.ServerStream.
func (st *serverStream) BytesOut() uint64 { return st.sent.Load() }

// CloseAfter implements transport.ServerStream.
func (st *serverStream) CloseAfter() { st.closeAfter = true }

// afterServe tidies up when the handler has returned; false ends the connection.
func (st *serverStream) afterServe() bool {
	st.probe.Stop()
	st.mu.Lock()
	st.onReset = nil
	gone := st.gone
	st.mu.Unlock()
	if st.taken {
		return false
	}
	if st.out != nil && !st.failed {
		if st.Flush() != nil {
			return false
		}
	}
	if st.failed || !st.complete || gone != nil {
		if st.out != nil {
			st.clearPending()
		}
		if !st.failed && gone == nil {
			st.s.rd.c.Reset()
		}
		return false
	}
	if !st.drainRequest() || st.closeAfter {
		st.s.linger()
		return false
	}
	return true
}

// drainRequest drops the rest of a request body that is already here; a longer
// one costs the connection.
func (st *serverStream) drainRequest() bool {
	if st.hd.framing == framingNone || st.body.done {
		return true
	}
	if st.body.err != nil || st.body.before != nil {
		return false
	}
	for total := 0; total < maxDrain; {
		n, last := st.body.Ready()
		if n == 0 && !last {
			return false
		}
		p, done, err := st.body.Next()
		if err != nil {
			return false
		}
		if done {
			return true
		}
		total += len(p)
	}
	return false
}

var _ transport.ServerStream = (*serverStream)(nil)
