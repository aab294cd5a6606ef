package behaviour

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// errorCodes are the names of HTTP/2 error codes in scripts.
var errorCodes = map[string]http2.ErrCode{}

func init() { //nolint:gochecknoinits // names that x/net knows
	for c := range http2.ErrCodeHTTP11Required + 1 {
		errorCodes[c.String()] = c
	}
}

// frameWriter writes frames with one table of fields.
type frameWriter struct {
	mu  sync.Mutex
	fr  *http2.Framer
	buf bytes.Buffer
	enc *hpack.Encoder
}

func newFrameWriter(w io.Writer, r io.Reader) *frameWriter {
	f := &frameWriter{fr: http2.NewFramer(w, r)}
	f.fr.AllowIllegalWrites = true
	f.enc = hpack.NewEncoder(&f.buf)
	f.enc.SetMaxDynamicTableSize(0) // a block may be refused and forgotten
	return f
}

func (f *frameWriter) headers(stream uint32, end bool, fields []header) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.buf.Reset()
	for _, h := range fields {
		if err := f.enc.WriteField(hpack.HeaderField{Name: h.name, Value: h.value}); err != nil {
			return err
		}
	}
	return f.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: f.buf.Bytes(), EndStream: end, EndHeaders: true})
}

func (f *frameWriter) do(write func(fr *http2.Framer) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return write(f.fr)
}

// parseH2 turns a section request.h2 into the bytes of a connection: lines
// "STREAM HEADERS [END]" with "  name: value" lines behind, "STREAM DATA [END]
// "text"", "STREAM RST CODE", and "pause DURATION". :scheme, :authority and
// :path are added to a request that names none of the three.
func parseH2(text string) ([]Chunk, []uint32, error) {
	chunks, streams := []Chunk{{}}, []uint32(nil)
	var out bytes.Buffer
	w := newFrameWriter(&out, nil)
	out.WriteString(http2.ClientPreface)
	if err := w.fr.WriteSettings(); err != nil {
		return nil, nil, err
	}
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		if d, ok := strings.CutPrefix(lines[i], "pause "); ok {
			pause, err := time.ParseDuration(d)
			if err != nil {
				return nil, nil, err
			}
			chunks[len(chunks)-1].Data = out.String()
			chunks = append(chunks, Chunk{Pause: pause})
			out.Reset()
			continue
		}
		words := strings.SplitN(lines[i], " ", 3)
		if len(words) < 2 {
			return nil, nil, fmt.Errorf("%q is no frame", lines[i])
		}
		n, err := strconv.ParseUint(words[0], 10, 31)
		if err != nil {
			return nil, nil, err
		}
		stream, rest := uint32(n), strings.Join(words[2:], "")
		if !slices.Contains(streams, stream) {
			streams = append(streams, stream)
		}
		after, end := strings.CutPrefix(rest, "END")
		switch words[1] {
		case "HEADERS":
			var fields []header
			for ; i+1 < len(lines) && strings.HasPrefix(lines[i+1], "  "); i++ {
				name, value, _ := strings.Cut(strings.TrimSpace(lines[i+1]), ": ")
				fields = append(fields, header{name, value})
			}
			err = w.headers(stream, end, complete(fields))
		case "DATA":
			var s string
			if s, err = strconv.Unquote(strings.TrimSpace(after)); err == nil {
				err = w.fr.WriteData(stream, end, []byte(s))
			}
		case "RST":
			code, ok := errorCodes[rest]
			if !ok {
				return nil, nil, fmt.Errorf("%q is no code", rest)
			}
			err = w.fr.WriteRSTStream(stream, code)
		default:
			err = fmt.Errorf("%q is no frame", lines[i])
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%q: %w", lines[i], err)
		}
	}
	chunks[len(chunks)-1].Data = out.String()
	return chunks, streams, nil
}

func complete(fields []header) []header {
	if len(fields) == 0 || fields[0].name != ":method" || slices.ContainsFunc(fields, func(h header) bool {
		return h.name == ":scheme" || h.name == ":path" || h.name == ":authority"
	}) {
		return fields
	}
	return slices.Insert(fields, 1, header{":scheme", "http"}, header{":authority", "a.test"}, header{":path", "/"})
}

// h2stream is what came back on one stream.
type h2stream struct {
	id    uint32
	parts []*message // a response for each block of fields but the trailers
	ended string     // how the stream ended, empty while it is open
}

// exchangeH2 sends the chunks of a section request.h2 and returns what came back
// on each stream, and how the connection ended if it did.
func exchangeH2(port int, chunks []Chunk, ids []uint32, compare map[string]bool) (string, error) {
	c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return "", err
	}
	var writing sync.WaitGroup
	defer writing.Wait()
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	lc := &lockedConn{Conn: c}
	writing.Go(func() {
		for _, ch := range chunks {
			time.Sleep(ch.Pause)
			if _, err := lc.Write([]byte(ch.Data)); err != nil {
				return
			}
		}
	})
	var streams []*h2stream
	for _, id := range ids {
		streams = append(streams, &h2stream{id: id})
	}
	end := readH2(lc, streams)
	var b strings.Builder
	for i, s := range streams {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "stream %d\n", s.id)
		for _, m := range s.parts {
			m.canonical(&b, func(h header) (string, bool) { return h.value, compare[h.name] || !hidden[h.name] })
		}
		if s.ended == "" {
			s.ended = "open"
		}
		b.WriteString("| " + s.ended + "\n")
	}
	return b.String() + end, nil
}

// lockedConn is written to by the script and by acknowledgements.
type lockedConn struct {
	net.Conn
	mu sync.Mutex
}

func (c *lockedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Conn.Write(p)
}

// readH2 reads until all streams have ended, or the connection has.
func readH2(c net.Conn, streams []*h2stream) (end string) {
	fr := http2.NewFramer(c, bufio.NewReader(c))
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	fr.MaxHeaderListSize = 1 << 20
	goaway := ""
	for slices.ContainsFunc(streams, func(s *h2stream) bool { return s.ended == "" }) {
		f, err := fr.ReadFrame()
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return goaway + "| silence\n"
			}
			return goaway + "| closed\n"
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = fr.WriteSettingsAck()
			}
			continue
		case *http2.GoAwayFrame:
			goaway = "| goaway " + f.ErrCode.String() + "\n"
			continue
		}
		i := slices.IndexFunc(streams, func(s *h2stream) bool { return s.id == f.Header().StreamID })
		if i < 0 {
			continue
		}
		streams[i].take(f)
	}
	return goaway
}

func (s *h2stream) take(f http2.Frame) {
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		m := &message{start: "trailers"}
		for _, h := range f.Fields {
			if h.Name == ":status" {
				m.start = "status " + h.Value
			} else {
				m.headers = append(m.headers, header{h.Name, h.Value})
			}
		}
		if m.start == "trailers" && len(s.parts) > 0 {
			s.parts[len(s.parts)-1].trailers = m.headers
		} else {
			s.parts = append(s.parts, m)
		}
		if f.StreamEnded() {
			s.ended = "end"
		}
	case *http2.DataFrame:
		if len(s.parts) > 0 {
			s.parts[len(s.parts)-1].body += string(f.Data())
		}
		if f.StreamEnded() {
			s.ended = "end"
		}
	case *http2.RSTStreamFrame:
		if s.ended == "" {
			s.ended = "reset " + f.ErrCode.String()
		} else {
			s.ended += ", reset " + f.ErrCode.String()
		}
	}
}
