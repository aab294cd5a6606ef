package message

import "io"

// Body is the payload of one message, pulled by whoever sends it on. A Body is
// used by one goroutine at a time.
//
// Pulling is the back-pressure: a codec grants its peer window or reads its
// socket only as chunks are taken.
type Body interface {
	// Next returns the next chunk. The bytes are valid until the next call of
	// Next or Close and must not be modified. last reports that no bytes
	// follow; trailers may, see Trailers. After last, Next returns nil, true,
	// nil. An error is final: the message is incomplete.
	Next() (chunk []byte, last bool, err error)
	// Ready returns bytes that Next would return without blocking: n of the
	// next chunk, and whether it ends the body. It never blocks and consumes
	// nothing. Writers use it to join a head and a small body in one write.
	Ready() (n int, last bool)
	// Trailers returns the trailer section, or nil if there is none. It is
	// complete once Next has returned last.
	Trailers() *Header
	// Close abandons the rest of the body and releases its buffers. It is
	// called exactly once, also after last or an error.
	Close()
}

// NoBody is the Body of a message that has none. It is safe for concurrent
// use by any number of messages.
var NoBody Body = noBody{}

type noBody struct{}

func (noBody) Next() ([]byte, bool, error) { return nil, true, nil }
func (noBody) Ready() (int, bool)          { return 0, true }
func (noBody) Trailers() *Header           { return nil }
func (noBody) Close()                      {}

// Bytes returns a Body that serves b, which must not change while it is used.
func Bytes(b []byte) Body {
	if len(b) == 0 {
		return NoBody
	}
	return &bytesBody{b: b}
}

type bytesBody struct{ b []byte }

func (b *bytesBody) Next() ([]byte, bool, error) { p := b.b; b.b = nil; return p, true, nil }
func (b *bytesBody) Ready() (int, bool)          { return len(b.b), true }
func (b *bytesBody) Trailers() *Header           { return nil }
func (b *bytesBody) Close()                      { b.b = nil }

// IsEmpty reports whether b is known to carry no bytes and no trailers without
// blocking. It is true for NoBody.
func IsEmpty(b Body) bool {
	if b == NoBody {
		return true
	}
	n, last := b.Ready()
	return n == 0 && last && b.Trailers() == nil
}

// NewReader adapts b to io.Reader for libraries that want one. It does not
// close b.
func NewReader(b Body) io.Reader { return &reader{b: b} }

type reader struct {
	b    Body
	rest []byte
	last bool
}

func (r *reader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.last {
			return 0, io.EOF
		}
		var err error
		if r.rest, r.last, err = r.b.Next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Version is an HTTP version.
type Version uint8

// The HTTP versions that Fairlead speaks. The zero Version is unknown.
const (
	HTTP10 Version = iota + 1
	HTTP11
	HTTP2
)

// String returns the version as Envoy's %PROTOCOL% writes it, "HTTP/1.1".
func (v Version) String() string {
	switch v {
	case HTTP10:
		return "HTTP/1.0"
	case HTTP11:
		return "HTTP/1.1"
	case HTTP2:
		return "HTTP/2"
	}
	return ""
}
