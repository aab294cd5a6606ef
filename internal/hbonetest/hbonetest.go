// Package hbonetest is an HBONE client for tests that says what it likes: frames
// of HTTP/2 as they are, over mutual TLS or anything else.
package hbonetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Peer is one connection. Its methods but Data and Read, which may run at the
// same time, are for one goroutine.
type Peer struct {
	t       testing.TB
	conn    net.Conn
	mu      sync.Mutex // of writing
	fr      *http2.Framer
	enc     *hpack.Encoder
	dec     *hpack.Decoder
	head    bytes.Buffer
	streams map[uint32]*Answer
	gone    error
	// NoCredit says that Read gives back no flow control credit.
	NoCredit bool
}

// Answer is what has come on one stream so far.
type Answer struct {
	// Status is that of the head, "" if there was none.
	Status string
	Fields []hpack.HeaderField
	Data   []byte
	// Ended says that the peer ended its direction, Reset that it ended the stream
	// with Code.
	Ended, Reset bool
	Code         http2.ErrCode
}

// New speaks HTTP/2 on conn: the preface and SETTINGS are sent. conn is closed
// when the test ends.
func New(t testing.TB, conn net.Conn) *Peer {
	t.Helper()
	p := &Peer{t: t, conn: conn, streams: map[uint32]*Answer{}}
	t.Cleanup(func() { _ = conn.Close() })
	p.fr = http2.NewFramer(conn, conn)
	p.fr.AllowIllegalWrites = true
	p.dec = hpack.NewDecoder(4096, nil)
	p.enc = hpack.NewEncoder(&p.head)
	p.enc.SetMaxDynamicTableSizeLimit(0)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := p.fr.WriteWindowUpdate(0, 1<<30); err != nil {
		t.Fatal(err)
	}
	return p
}

// Head sends HEADERS of name, value, name, value.
func (p *Peer) Head(stream uint32, end bool, fields ...string) {
	p.t.Helper()
	p.head.Reset()
	for i := 0; i+1 < len(fields); i += 2 {
		_ = p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	block := p.head.Bytes()
	first := block[:min(len(block), 16384)]
	_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: first, EndStream: end, EndHeaders: len(first) == len(block)})
	for block = block[len(first):]; len(block) > 0; {
		part := block[:min(len(block), 16384)]
		block = block[len(part):]
		_ = p.fr.WriteContinuation(stream, len(block) == 0, part)
	}
}

// Connect asks for a tunnel.
func (p *Peer) Connect(stream uint32, authority string, more ...string) {
	p.t.Helper()
	p.Head(stream, false, append([]string{":method", "CONNECT", ":authority", authority}, more...)...)
}

// Data sends one DATA frame, however much credit there is.
func (p *Peer) Data(stream uint32, end bool, b []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fr.WriteData(stream, end, b)
}

// Reset ends a stream.
func (p *Peer) Reset(stream uint32, code http2.ErrCode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.fr.WriteRSTStream(stream, code)
}

// Read takes the next frame. The error is that of the connection, or GOAWAY with
// an error.
func (p *Peer) Read() error {
	if p.gone != nil {
		return p.gone
	}
	f, err := p.fr.ReadFrame()
	if err != nil {
		p.gone = err
		return err
	}
	a := p.Stream(f.Header().StreamID)
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			p.mu.Lock()
			_ = p.fr.WriteSettingsAck()
			p.mu.Unlock()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			p.mu.Lock()
			_ = p.fr.WritePing(true, f.Data)
			p.mu.Unlock()
		}
	case *http2.GoAwayFrame:
		if f.ErrCode != http2.ErrCodeNo {
			p.gone = fmt.Errorf("GOAWAY %v %q", f.ErrCode, f.DebugData())
			return p.gone
		}
	case *http2.RSTStreamFrame:
		a.Reset, a.Code = true, f.ErrCode
	case *http2.HeadersFrame:
		if a.Fields, err = p.dec.DecodeFull(f.HeaderBlockFragment()); err != nil {
			p.gone = err
			return err
		}
		for _, x := range a.Fields {
			if x.Name == ":status" {
				a.Status = x.Value
			}
		}
		a.Ended = a.Ended || f.StreamEnded()
	case *http2.DataFrame:
		a.Data = append(a.Data, f.Data()...)
		a.Ended = a.Ended || f.StreamEnded()
		if n := f.Header().Length; n > 0 && !p.NoCredit {
			p.mu.Lock()
			_ = p.fr.WriteWindowUpdate(0, n)
			if !f.StreamEnded() {
				_ = p.fr.WriteWindowUpdate(f.StreamID, n)
			}
			p.mu.Unlock()
		}
	}
	return nil
}

// Stream is what has come on a stream so far.
func (p *Peer) Stream(id uint32) *Answer {
	a := p.streams[id]
	if a == nil {
		a = &Answer{}
		p.streams[id] = a
	}
	return a
}

var errTooLate = errors.New("nothing within the time")

// Wait reads until done is true of a stream, and reports what ended the
// connection before, if that was so.
func (p *Peer) Wait(stream uint32, within time.Duration, done func(*Answer) bool) (*Answer, error) {
	p.t.Helper()
	_ = p.conn.SetReadDeadline(time.Now().Add(within))
	a := p.Stream(stream)
	for !done(a) {
		if err := p.Read(); err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				p.gone = nil
				return a, errTooLate
			}
			return a, err
		}
	}
	return a, nil
}

// Answered is for Wait: there is a head, or the stream was reset.
func Answered(a *Answer) bool { return a.Status != "" || a.Reset }

// Over is for Wait: nothing more comes on the stream.
func Over(a *Answer) bool { return a.Ended || a.Reset }
