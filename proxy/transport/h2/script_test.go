package h2

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// wire is the other end of a connection under test, at the level of frames. A
// script is a list of lines; the words of a line may be quoted as in Go.
//
//	> HEADERS 1 end :status=200 a=b     send a frame; flags end, more (no END_HEADERS), pad=N, prio=N
//	> GET 1 end a=b -:path +:path=/x    a request with the usual pseudo-headers, fields added, left out, repeated
//	> DATA 1 end "text" | 100           payload or its length
//	> SETTINGS 4=100, PRIORITY 3 1, RST 1 CANCEL, PING, WINDOW 1 100, GOAWAY 0 NO_ERROR, CONTINUATION 1 a=b
//	> RAW 0a0b                          octets as they are
//	x100 ...                            a line that is sent so often; %d is 2n+1
//	< HEADERS 1 end :status=200         expect a frame; WINDOW_UPDATE, SETTINGS and unasked PING are skipped
//	! GET                               client scripts: start a request, see request
//	= 0 200 | body                      client scripts: await the result of request 0
//	< CLOSED                            expect the end of the connection
//	< FLOOD                             read until GOAWAY(ENHANCE_YOUR_CALM) or the end
//
// Frames of one line are separated by ";".
type wire struct {
	t    *testing.T
	conn netio.Conn
	fr   *http2.Framer
	enc  *hpack.Encoder
	buf  bytes.Buffer
	out  []byte
	data map[uint32][]byte
	late atomic.Bool // the connection was given up, 5 s after the script began

	client  transport.ClientConn // client scripts only
	results []chan string
}

func newWire(t *testing.T, c netio.Conn) *wire {
	w := &wire{t: t, conn: c, data: map[uint32][]byte{}}
	w.enc = hpack.NewEncoder(&w.buf)
	w.fr = http2.NewFramer(io.Discard, c)
	w.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return w
}

func words(line string) []string {
	var ws []string
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		if q, err := strconv.QuotedPrefix(line); err == nil {
			u, _ := strconv.Unquote(q)
			ws, line = append(ws, u), line[len(q):]
			continue
		}
		w, rest, _ := strings.Cut(line, " ")
		ws, line = append(ws, w), rest
	}
	return ws
}

var usual = [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "example.com"}, {":path", "/echo"}}

// frameFlags takes the words that are flags off ws.
func frameFlags(ws []string) (flags uint8, pad int, prio string, rest []string) {
	flags = flagEndHeaders
	pad = -1
	for _, w := range ws {
		switch {
		case w == "end":
			flags |= flagEndStream
		case w == "more":
			flags &^= flagEndHeaders
		case strings.HasPrefix(w, "pad="):
			pad, _ = strconv.Atoi(w[4:])
		case strings.HasPrefix(w, "prio="):
			prio = w[5:]
		default:
			rest = append(rest, w)
		}
	}
	return flags, pad, prio, rest
}

func (w *wire) fields(base [][2]string, ws []string) []byte {
	fs := slices.Clone(base)
	for _, f := range ws {
		if n, ok := strings.CutPrefix(f, "-"); ok {
			fs = slices.DeleteFunc(fs, func(p [2]string) bool { return p[0] == n })
			continue
		}
		f, repeat := strings.CutPrefix(f, "+")
		i := 1 + strings.IndexByte(f[min(1, len(f)):], '=')
		p := [2]string{f[:i], f[i+1:]}
		at := slices.IndexFunc(fs, func(q [2]string) bool { return q[0] == p[0] })
		if at >= 0 && !repeat && strings.HasPrefix(p[0], ":") {
			fs[at] = p
		} else {
			fs = append(fs, p)
		}
	}
	w.buf.Reset()
	for _, f := range fs {
		_ = w.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return w.buf.Bytes()
}

func codeOf(name string) errCode {
	for i, n := range codeNames {
		if n == name {
			return errCode(i)
		}
	}
	panic("no error code " + name)
}

func number(s string) uint32 {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		panic(err)
	}
	return uint32(n)
}

// send appends the frame that ws describes.
func (w *wire) send(ws []string) {
	op := ws[0]
	var id uint32
	if len(ws) > 1 && op != "RAW" && op != "SETTINGS" && op != "PING" && op != "EOF" {
		id = number(ws[1])
	}
	switch op {
	case "RAW":
		for _, h := range ws[1:] {
			b, err := hex.DecodeString(h)
			if err != nil {
				panic(err)
			}
			w.out = append(w.out, b...)
		}
	case "GET", "POST", "HEADERS", "CONTINUATION":
		flags, pad, prio, rest := frameFlags(ws[2:])
		base := slices.Clone(usual)
		base[0][1] = op
		t := frameHeaders
		if op == "HEADERS" || op == "CONTINUATION" {
			base = nil
		}
		if op == "CONTINUATION" {
			t = frameContinuation
		}
		block := w.fields(base, rest)
		if prio != "" {
			flags |= flagPriority
			block = append(append(appendBE32(nil, number(prio)), 15), block...)
		}
		w.payload(t, flags, id, block, pad)
	case "DATA":
		flags, pad, _, rest := frameFlags(ws[2:])
		var p []byte
		if len(rest) > 0 {
			p = []byte(rest[0])
			if n, err := strconv.Atoi(rest[0]); err == nil {
				p = bytes.Repeat([]byte{'d'}, n)
			}
		}
		w.payload(frameData, flags&flagEndStream, id, p, pad)
	case "SETTINGS":
		at := len(w.out)
		w.out = append(w.out, make([]byte, frameHeaderLen)...)
		for _, s := range ws[1:] {
			k, v, _ := strings.Cut(s, "=")
			w.out = appendSetting(w.out, uint16(number(k)), number(v))
		}
		putFrameHeader(w.out[at:], len(w.out)-at-frameHeaderLen, frameSettings, 0, 0)
	case "PRIORITY":
		w.out = append(appendBE32(appendFrameHeader(w.out, 5, framePriority, 0, id), number(ws[2])), 15)
	case "RST":
		w.out = appendRSTStream(w.out, id, codeOf(ws[2]))
	case "PING":
		w.out = appendPing(w.out, 0, []byte("12345678"))
	case "WINDOW":
		w.out = appendWindowUpdate(w.out, id, number(ws[2]))
	case "EOF":
		w.flush()
		_ = w.conn.CloseWrite()
	case "GOAWAY":
		w.out = appendGoAway(w.out, id, codeOf(ws[2]), "")
	default:
		panic("cannot send " + op)
	}
}

func (w *wire) payload(t frameType, flags uint8, id uint32, p []byte, pad int) {
	n := len(p)
	if pad >= 0 {
		flags |= flagPadded
		n += 1 + pad
	}
	w.out = appendFrameHeader(w.out, n, t, flags, id)
	if pad >= 0 {
		w.out = append(w.out, byte(pad))
	}
	w.out = append(append(w.out, p...), make([]byte, max(pad, 0))...)
}

// flush writes what was sent. A connection under test may have closed already.
func (w *wire) flush() {
	if len(w.out) > 0 {
		_, _ = w.conn.Write(w.out)
		w.out = w.out[:0]
	}
}

// next returns the next frame that scripts look at.
func (w *wire) next() (http2.Frame, error) {
	for {
		f, err := w.fr.ReadFrame()
		if err != nil {
			return nil, err
		}
		switch f := f.(type) {
		case *http2.WindowUpdateFrame:
		case *http2.SettingsFrame:
		case *http2.PingFrame:
			if f.IsAck() {
				return f, nil
			}
			w.out = appendPing(w.out, flagAck, f.Data[:])
			w.flush()
		default:
			return f, nil
		}
	}
}

// expect reads until what ws describes was seen; anything else is an error.
func (w *wire) expect(ws []string) error {
	w.flush()
	switch ws[0] {
	case "DATA":
		return w.expectData(ws[1:])
	case "FLOOD":
		for {
			f, err := w.next()
			if w.late.Load() {
				return errors.New("it was not cut")
			}
			if err != nil {
				return nil //nolint:nilerr // cut, as wanted
			}
			if g, ok := f.(*http2.GoAwayFrame); ok {
				if g.ErrCode != http2.ErrCodeEnhanceYourCalm {
					return fmt.Errorf("got %v", g)
				}
				return nil
			}
		}
	}
	f, err := w.next()
	if ws[0] == "CLOSED" {
		if err == nil || w.late.Load() {
			return fmt.Errorf("it was not closed, got %v", f)
		}
		return nil
	}
	if err != nil {
		return err
	}
	switch f := f.(type) {
	case *http2.PingFrame:
		if ws[0] == "PING" {
			return nil
		}
	case *http2.RSTStreamFrame:
		if ws[0] == "RST" && f.StreamID == number(ws[1]) && uint32(f.ErrCode) == uint32(codeOf(ws[2])) {
			return nil
		}
	case *http2.GoAwayFrame:
		if ws[0] == "GOAWAY" && uint32(f.ErrCode) == uint32(codeOf(ws[1])) && (len(ws) < 3 || f.LastStreamID == number(ws[2])) {
			return nil
		}
		return fmt.Errorf("got %v %q", f, f.DebugData())
	case *http2.MetaHeadersFrame:
		if ws[0] == "HEADERS" && f.StreamID == number(ws[1]) {
			return matchHead(f, ws[2:])
		}
	}
	return fmt.Errorf("got %v", f)
}

func matchHead(f *http2.MetaHeadersFrame, ws []string) error {
	flags, _, _, rest := frameFlags(ws)
	if end := flags&flagEndStream != 0; end != f.StreamEnded() {
		return fmt.Errorf("END_STREAM is %v in %v", f.StreamEnded(), f)
	}
	for _, w := range rest {
		i := 1 + strings.IndexByte(w[1:], '=')
		if !slices.ContainsFunc(f.Fields, func(h hpack.HeaderField) bool { return h.Name == w[:i] && h.Value == w[i+1:] }) {
			return fmt.Errorf("no %s in %v", w, f.Fields)
		}
	}
	return nil
}

func (w *wire) expectData(ws []string) error {
	id := number(ws[0])
	flags, _, _, rest := frameFlags(ws[1:])
	want := []byte(nil)
	if len(rest) > 0 {
		want = []byte(rest[0])
		if n, err := strconv.Atoi(rest[0]); err == nil {
			want = bytes.Repeat([]byte{'d'}, n)
		}
	}
	end := false
	for len(w.data[id]) < len(want) || flags&flagEndStream != 0 && !end {
		f, err := w.next()
		if err != nil {
			return err
		}
		d, ok := f.(*http2.DataFrame)
		if !ok {
			return fmt.Errorf("got %v after %d octets", f, len(w.data[id]))
		}
		w.data[d.StreamID] = append(w.data[d.StreamID], d.Data()...)
		if d.StreamID == id {
			end = d.StreamEnded()
		}
	}
	got := w.data[id]
	w.data[id] = nil
	if !bytes.Equal(got, want) || end != (flags&flagEndStream != 0) {
		return fmt.Errorf("got %d octets %.40q, END_STREAM %v", len(got), got, end)
	}
	return nil
}

// run plays a script. It returns whether the connection was expected to end.
func (w *wire) run(script string) (ends bool) {
	w.t.Helper()
	watchdog := time.AfterFunc(5*time.Second, func() {
		w.late.Store(true)
		w.conn.Reset()
	})
	defer watchdog.Stop()
	for n, line := range strings.Split(script, "\n") {
		line, _, _ = strings.Cut(line, " # ")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		times := 1
		if strings.HasPrefix(line, "x") {
			var count string
			count, line, _ = strings.Cut(line[1:], " ")
			times, _ = strconv.Atoi(count)
		}
		ws := words(line)
		switch ws[0] {
		case ">":
			for i := range times {
				cp := slices.Clone(ws[1:])
				for j := range cp {
					cp[j] = strings.ReplaceAll(cp[j], "%d", strconv.Itoa(2*i+1))
				}
				for len(cp) > 0 {
					at := slices.Index(cp, ";")
					if at < 0 {
						w.send(cp)
						break
					}
					w.send(cp[:at])
					cp = cp[at+1:]
				}
				if len(w.out) > 32<<10 {
					w.flush()
				}
			}
		case "<":
			for range times {
				if err := w.expect(ws[1:]); err != nil {
					w.t.Fatalf("line %d: %s: %v", n+1, line, err)
				}
			}
			ends = ends || ws[1] == "GOAWAY" || ws[1] == "CLOSED" || ws[1] == "FLOOD"
		case "!":
			w.flush()
			ch := make(chan string, 1)
			w.results = append(w.results, ch)
			go func() { ch <- request(w.client, ws[1:]) }()
		case "=":
			w.flush()
			want := strings.TrimSpace(strings.SplitN(line, " ", 3)[2])
			got := <-w.results[number(ws[1])]
			if got != want && (!strings.HasPrefix(want, "error ") || !strings.HasPrefix(got, want)) {
				w.t.Fatalf("line %d: %s: got %s", n+1, line, got)
			}
		default:
			w.t.Fatalf("line %d: %q", n+1, line)
		}
	}
	w.flush()
	return ends
}

// finish checks that a connection that should live answers a PING and sends
// nothing else, and that one that should end does.
func (w *wire) finish(ends bool) {
	w.t.Helper()
	if ends {
		for range 3 {
			if _, err := w.next(); err != nil {
				return
			}
		}
		w.t.Error("the connection goes on")
		return
	}
	w.send([]string{"PING"})
	if err := w.expect([]string{"PING"}); err != nil {
		w.t.Errorf("after the script: %v", err)
	}
}
