// Package h2wire is as much of HTTP/2 as the load generator and an origin of
// the benchmark need, independent of the product's own: frames, header
// compression, flow control of what is sent, and writes that are gathered.
package h2wire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"golang.org/x/net/http2/hpack"
)

// Preface opens a connection.
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

const (
	frameData, frameHeaders, frameReset, frameSettings = 0, 1, 3, 4
	framePing, frameGoAway, frameWindow, frameContinue = 6, 7, 8, 9

	flagEndStream, flagAck, flagEndHeaders, flagPadded, flagPriority = 1, 1, 4, 8, 32

	settingTable, settingPush, settingStreams, settingWindow, settingFrame = 1, 2, 3, 4, 5

	headLength = 9
	maxFrame   = 16 << 10
	// What is received is credited again in steps of creditStep.
	connWindow, streamWindow, creditStep = 1 << 30, 1 << 30, 4 << 20
)

// Handler is told of what arrives, by the goroutine of Serve. Slices are valid
// during the call.
type Handler interface {
	// Header is a head or trailers; fields is nil unless the connection decodes.
	Header(stream uint32, fields []hpack.HeaderField, end bool)
	Data(stream uint32, p []byte, end bool)
	Reset(stream, code uint32)
}

// Conn is one side of a connection. Its methods other than Serve may be called
// by any goroutine.
type Conn struct {
	rw     io.ReadWriter
	r      *bufio.Reader
	decode *hpack.Decoder
	server bool
	block  []byte
	credit uint32

	mu       sync.Mutex
	out      []byte
	spare    []byte
	flushing bool
	err      error
	enc      *hpack.Encoder
	encoded  bytes.Buffer
	next     uint32
	window   int64
	initial  int64
	open     map[uint32]int64
	pending  []piece
}

// piece is what flow control holds back.
type piece struct {
	stream   uint32
	data     []byte
	end      bool
	trailers []hpack.HeaderField
}

// Options of a connection.
type Options struct {
	// Server says which side this is.
	Server bool
	// Decode makes Handler see fields.
	Decode bool
	// ReadBuffer is the size of the read buffer, 64 KiB by default.
	ReadBuffer int
}

// New starts a connection on rw: it writes the preface and SETTINGS.
func New(rw io.ReadWriter, o Options) (*Conn, error) {
	if o.ReadBuffer == 0 {
		o.ReadBuffer = 64 << 10
	}
	c := &Conn{rw: rw, server: o.Server, r: bufio.NewReaderSize(rw, o.ReadBuffer), next: 1, window: 65535, initial: 65535, open: map[uint32]int64{}}
	c.enc = hpack.NewEncoder(&c.encoded)
	if o.Decode {
		c.decode = hpack.NewDecoder(4096, nil)
	}
	settings := []uint32{settingWindow, streamWindow, settingStreams, 1 << 20}
	if !o.Server {
		c.out = append(c.out, Preface...)
		settings = []uint32{settingPush, 0, settingWindow, streamWindow}
	}
	c.frame(frameSettings, 0, 0, 6*len(settings)/2)
	for i := 0; i < len(settings); i += 2 {
		c.out = binary.BigEndian.AppendUint16(c.out, uint16(settings[i]))
		c.out = binary.BigEndian.AppendUint32(c.out, settings[i+1])
	}
	c.frame(frameWindow, 0, 0, 4)
	c.out = binary.BigEndian.AppendUint32(c.out, connWindow)
	_, err := rw.Write(c.out)
	c.out = c.out[:0]
	return c, err
}

// frame appends a head.
func (c *Conn) frame(kind, flags byte, stream uint32, length int) {
	c.out = append(c.out, byte(length>>16), byte(length>>8), byte(length), kind, flags)
	c.out = binary.BigEndian.AppendUint32(c.out, stream)
}

// Open sends the head of a new stream. register is called before anything can
// arrive for it.
func (c *Conn) Open(fields []hpack.HeaderField, end bool, register func(stream uint32)) (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	id := c.next
	c.next += 2
	register(id)
	c.open[id] = 0
	c.headers(id, fields, end)
	return id, nil
}

// headers appends a head; mu is held. Benchmarks' heads fit one frame.
func (c *Conn) headers(stream uint32, fields []hpack.HeaderField, end bool) {
	c.encoded.Reset()
	for _, f := range fields {
		_ = c.enc.WriteField(f) // a buffer takes everything
	}
	flags := byte(flagEndHeaders)
	if end {
		flags |= flagEndStream
		delete(c.open, stream)
	}
	c.frame(frameHeaders, flags, stream, c.encoded.Len())
	c.out = append(c.out, c.encoded.Bytes()...)
}

// Send sends the head of an answer (fields), data and trailers, whatever of it
// is not empty; end or trailers end the stream. What flow control holds back
// follows when the peer allows it.
func (c *Conn) Send(stream uint32, fields []hpack.HeaderField, data []byte, trailers []hpack.HeaderField, end bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.open[stream]; !ok && c.server {
		c.open[stream] = 0
	}
	if len(fields) > 0 {
		c.headers(stream, fields, end && len(data) == 0 && trailers == nil)
	}
	if len(data) == 0 && trailers == nil && (!end || len(fields) != 0) {
		return
	}
	p := piece{stream, data, end, trailers}
	if len(c.pending) > 0 || !c.send(&p) {
		p.data = bytes.Clone(p.data)
		c.pending = append(c.pending, p)
	}
}

// send appends as much of p as the windows allow and reports whether that was
// all; mu is held.
func (c *Conn) send(p *piece) bool {
	used, ok := c.open[p.stream]
	if !ok {
		return true // it was reset
	}
	for len(p.data) > 0 || p.end && p.trailers == nil {
		n := min(int64(len(p.data)), c.window, c.initial-used, maxFrame)
		if n <= 0 && len(p.data) > 0 {
			return false
		}
		flags := byte(0)
		if p.end && p.trailers == nil && n == int64(len(p.data)) {
			flags = flagEndStream
		}
		c.frame(frameData, flags, p.stream, int(n))
		c.out = append(c.out, p.data[:n]...)
		p.data = p.data[n:]
		c.window -= n
		used += n
		c.open[p.stream] = used
		if flags != 0 {
			delete(c.open, p.stream)
			return true
		}
	}
	if p.trailers != nil {
		c.headers(p.stream, p.trailers, true)
	}
	return true
}

// Flush writes what was gathered. It first lets other goroutines add to it, so
// that many streams share a write.
func (c *Conn) Flush() error {
	c.mu.Lock()
	if c.flushing {
		err := c.err
		c.mu.Unlock()
		return err
	}
	c.flushing = true
	c.mu.Unlock()
	runtime.Gosched()
	c.mu.Lock()
	for len(c.out) > 0 && c.err == nil {
		b := c.out
		c.out, c.spare = c.spare[:0], nil
		c.mu.Unlock()
		_, err := c.rw.Write(b)
		c.mu.Lock()
		c.spare = b
		if err != nil && c.err == nil {
			c.err = err
		}
	}
	c.flushing = false
	err := c.err
	c.mu.Unlock()
	return err
}

// Fail makes later calls return err.
func (c *Conn) Fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
}

// Serve reads until the connection ends and returns why; it flushes when it has
// nothing to read.
func (c *Conn) Serve(h Handler) error {
	err := c.ReadPreface()
	for err == nil {
		if c.r.Buffered() == 0 {
			if err = c.Flush(); err != nil {
				break
			}
		}
		err = c.ReadFrame(h)
	}
	c.Fail(err)
	return err
}

var errPreface = errors.New("h2wire: no HTTP/2 preface")

// ReadPreface reads the client's preface on the server's side.
func (c *Conn) ReadPreface() error {
	if !c.server {
		return nil
	}
	var b [len(Preface)]byte
	if _, err := io.ReadFull(c.r, b[:]); err != nil {
		return err
	}
	if string(b[:]) != Preface {
		return errPreface
	}
	return nil
}

// ReadFrame reads one frame and tells h of it.
func (c *Conn) ReadFrame(h Handler) error {
	head, err := c.r.Peek(headLength)
	if err != nil {
		return err
	}
	n := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
	kind, flags, stream := head[3], head[4], binary.BigEndian.Uint32(head[5:])&^(1<<31)
	if n > maxFrame {
		return fmt.Errorf("h2wire: a frame of %d bytes", n)
	}
	_, _ = c.r.Discard(headLength)
	p, err := c.payload(n)
	if err != nil {
		return err
	}
	if kind == frameHeaders || kind == frameData {
		if p, err = unpad(p, kind, flags); err != nil {
			return err
		}
	}
	switch kind {
	case frameData:
		h.Data(stream, p, flags&flagEndStream != 0)
		c.received(n)
	case frameHeaders:
		err = c.fields(h, stream, flags, p)
	case frameReset:
		c.mu.Lock()
		delete(c.open, stream)
		c.mu.Unlock()
		if len(p) == 4 {
			h.Reset(stream, binary.BigEndian.Uint32(p))
		}
	case frameSettings:
		err = c.settings(flags, p)
	case framePing:
		c.pong(flags, p)
	case frameWindow:
		if len(p) == 4 {
			c.credited(stream, int64(binary.BigEndian.Uint32(p)))
		}
	case frameGoAway:
		if len(p) >= 8 && binary.BigEndian.Uint32(p[4:]) != 0 {
			err = fmt.Errorf("h2wire: GOAWAY with code %d: %q", binary.BigEndian.Uint32(p[4:]), p[8:])
		}
	case frameContinue:
		err = errors.New("h2wire: CONTINUATION out of place")
	}
	return err
}

// payload returns n bytes that are valid until the next read.
func (c *Conn) payload(n int) ([]byte, error) {
	if n <= c.r.Size() {
		p, err := c.r.Peek(n)
		if err != nil {
			return nil, err
		}
		_, _ = c.r.Discard(n)
		return p, nil
	}
	if cap(c.block) < n {
		c.block = make([]byte, n)
	}
	_, err := io.ReadFull(c.r, c.block[:n])
	return c.block[:n], err
}

var errPadding = errors.New("h2wire: wrong padding")

func unpad(p []byte, kind, flags byte) ([]byte, error) {
	pad := 0
	if flags&flagPadded != 0 {
		if len(p) == 0 {
			return nil, errPadding
		}
		pad, p = int(p[0]), p[1:]
	}
	if kind == frameHeaders && flags&flagPriority != 0 {
		if len(p) < 5 {
			return nil, errPadding
		}
		p = p[5:]
	}
	if pad > len(p) {
		return nil, errPadding
	}
	return p[:len(p)-pad], nil
}

// fields reads the rest of a header block and decodes it, if that is wanted.
func (c *Conn) fields(h Handler, stream uint32, flags byte, p []byte) error {
	block := p
	for last := flags; last&flagEndHeaders == 0; {
		if len(block) == len(p) {
			block = bytes.Clone(p)
		}
		head, err := c.r.Peek(headLength)
		if err != nil {
			return err
		}
		if head[3] != frameContinue || head[0] != 0 {
			return errors.New("h2wire: CONTINUATION expected")
		}
		n := int(head[1])<<8 | int(head[2])
		last = head[4]
		_, _ = c.r.Discard(headLength)
		more, err := c.payload(n)
		if err != nil {
			return err
		}
		block = append(block, more...)
	}
	var fields []hpack.HeaderField
	if c.decode != nil {
		var err error
		if fields, err = c.decode.DecodeFull(block); err != nil {
			return err
		}
	}
	h.Header(stream, fields, flags&flagEndStream != 0)
	return nil
}

func (c *Conn) settings(flags byte, p []byte) error {
	if flags&flagAck != 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; len(p) >= 6; p = p[6:] {
		v := binary.BigEndian.Uint32(p[2:])
		switch binary.BigEndian.Uint16(p) {
		case settingTable:
			c.enc.SetMaxDynamicTableSizeLimit(v)
		case settingWindow:
			c.initial = int64(v)
		}
	}
	c.frame(frameSettings, flagAck, 0, 0)
	c.release()
	return nil
}

func (c *Conn) pong(flags byte, p []byte) {
	if flags&flagAck != 0 {
		return
	}
	c.mu.Lock()
	c.frame(framePing, flagAck, 0, len(p))
	c.out = append(c.out, p...)
	c.mu.Unlock()
}

// credited notes a WINDOW_UPDATE.
func (c *Conn) credited(stream uint32, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if stream == 0 {
		c.window += n
	} else if used, ok := c.open[stream]; ok {
		c.open[stream] = used - n
	}
	c.release()
}

// release sends what waited for a window; mu is held.
func (c *Conn) release() {
	for len(c.pending) > 0 && c.send(&c.pending[0]) {
		c.pending = c.pending[1:]
	}
}

// received credits the connection's window. A stream's is too large to run out.
func (c *Conn) received(n int) {
	if c.credit += uint32(n); c.credit < creditStep {
		return
	}
	c.mu.Lock()
	c.frame(frameWindow, 0, 0, 4)
	c.out = binary.BigEndian.AppendUint32(c.out, c.credit)
	c.mu.Unlock()
	c.credit = 0
}
