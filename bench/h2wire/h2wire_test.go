package h2wire

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"
)

// collector is a Handler that waits for the end of a stream.
type collector struct {
	fields []hpack.HeaderField
	body   bytes.Buffer
	ended  chan struct{}
}

func (c *collector) Header(_ uint32, fields []hpack.HeaderField, end bool) {
	c.fields = append(c.fields, fields...)
	if end {
		close(c.ended)
	}
}

func (c *collector) Data(_ uint32, p []byte, end bool) {
	c.body.Write(p)
	if end {
		close(c.ended)
	}
}

func (c *collector) Reset(uint32, uint32) { close(c.ended) }

// The other side is net/http's, which is strict: a large body both ways needs
// flow control, trailers a second head.
func TestAClientOfNetHTTP(t *testing.T) {
	const size = 300 << 10
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil || len(b) != size || r.Header.Get("X-Long") == "" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = w.Write(b)
		w.Header().Set("Grpc-Status", "0")
	}))
	s.Config.Protocols = &http.Protocols{}
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	defer s.Close()
	nc, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	c, err := New(nc, Options{Decode: true, ReadBuffer: 4 << 10})
	if err != nil {
		t.Fatal(err)
	}
	h := &collector{ended: make(chan struct{})}
	go func() { _ = c.Serve(h) }()
	fields := []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":authority", Value: "h"},
		{Name: ":path", Value: "/"},
		{Name: "x-long", Value: strings.Repeat("x", 100)},
	}
	body := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	for range 3 {
		h.ended, h.fields = make(chan struct{}), nil
		h.body.Reset()
		id, err := c.Open(fields, false, func(uint32) {})
		if err != nil {
			t.Fatal(err)
		}
		c.Send(id, nil, body, nil, true)
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-h.ended:
		case <-time.After(10 * time.Second):
			t.Fatal("no answer")
		}
		if !slices.Contains(h.fields, hpack.HeaderField{Name: ":status", Value: "200"}) || !slices.Contains(h.fields, hpack.HeaderField{Name: "grpc-status", Value: "0"}) || !bytes.Equal(h.body.Bytes(), body) {
			t.Fatalf("%v, %d bytes", h.fields, h.body.Len())
		}
	}
	if len(c.open) != 0 || len(c.pending) != 0 {
		t.Errorf("%d streams and %d pieces are left", len(c.open), len(c.pending))
	}
}

func TestMessagesAreFoundWhereverTheyAreCut(t *testing.T) {
	all := slices.Concat(Message([]byte("abc")), Message(nil), Message(make([]byte, 300)))
	for step := 1; step <= len(all); step++ {
		var m Messages
		var got []int
		for p := range slices.Chunk(all, step) {
			m.Feed(p, func(n int) { got = append(got, n) })
		}
		if !slices.Equal(got, []int{3, 0, 300}) {
			t.Fatalf("in steps of %d: %v", step, got)
		}
	}
}

// FuzzReadFrame: as many frames are read as a naive count finds whole ones, or
// an error says why not.
func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Add([]byte{0, 0, 1, 1, 0, 0, 0, 0, 1, 0x88, 0, 0, 1, 9, 4, 0, 0, 0, 1, 0x88})
	f.Add([]byte{0, 0, 6, 0, 8, 0, 0, 0, 1, 9, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		whole := 0
		for b := in; len(b) >= headLength; whole++ {
			n := headLength + int(b[0])<<16 + int(b[1])<<8 + int(b[2])
			if n > len(b) {
				break
			}
			b = b[n:]
		}
		c, err := New(&half{bytes.NewReader(in)}, Options{Decode: true})
		if err != nil {
			t.Fatal(err)
		}
		read := -1
		for ; err == nil; read++ {
			err = c.ReadFrame(ignore{})
		}
		if read > whole || read+1 < whole && err == io.EOF && !bytes.Contains(in, []byte{frameContinue}) { //nolint:errorlint // returned as it is
			t.Fatalf("%d frames read of %d, %v", read, whole, err)
		}
	})
}

type half struct{ io.Reader }

func (half) Write(p []byte) (int, error) { return len(p), nil }

type ignore struct{}

func (ignore) Header(uint32, []hpack.HeaderField, bool) {}
func (ignore) Data(uint32, []byte, bool)                {}
func (ignore) Reset(uint32, uint32)                     {}
