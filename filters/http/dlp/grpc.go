package dlp

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
	"unicode/utf8"

	"github.com/fairlead-mesh/fairlead/filters/internal/dlp"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// grpcSource scans gRPC messages one by one. A message up to the window is
// scanned whole, field by field, before any byte of it goes on; of a longer
// one the payload is scanned as a stream. Replacing changes the lengths of
// fields, of the messages around them and of the frame; where a field may be
// text or a message, and in what is scanned as a stream, it is masking.
type grpcSource struct {
	inner  message.Body
	in     *inspection
	stream *dlp.Stream
	coding string // grpc-encoding
	form   string // and how it turned out, of the message at hand
	window int

	rest []byte
	last bool

	msg   []byte // prefix and payload, as far as it was read
	need  int    // length of the whole message with its prefix, 0 unknown
	big   int    // payload bytes to come of a message beyond the window
	ended bool
	err   error

	inPlace bool   // lengths must not change
	out     []byte // of the last scan
}

const prefixLen = 5

func newGRPCSource(inner message.Body, in *inspection, coding string, window int) *grpcSource {
	s := &grpcSource{inner: inner, in: in, coding: coding, window: window}
	s.stream = in.set.engine.NewStream(func(f dlp.Finding, text []byte) dlp.Edit {
		e := in.found(f, text)
		if e.Action == dlp.Replace && s.inPlace {
			e.Action = dlp.Mask
		}
		return e
	}, false, nil)
	return s
}

func (s *grpcSource) memory() int { return cap(s.msg) + cap(s.out) + s.stream.Memory() }
func (s *grpcSource) free()       { s.stream.Free(); s.msg, s.out = nil, nil }

func (s *grpcSource) next() ([]byte, bool, error) {
	if s.ended {
		s.msg = s.msg[:0] // what was returned last is free again
		s.ended = false
	}
	if len(s.rest) == 0 {
		if s.last {
			return nil, true, s.tornMessage()
		}
		var err error
		if s.rest, s.last, err = s.inner.Next(); err != nil {
			return nil, false, err
		}
	}
	if s.big > 0 {
		return s.payload()
	}
	s.take(prefixLen)
	if len(s.msg) < prefixLen {
		return nil, false, nil
	}
	if s.need == 0 {
		n := int(binary.BigEndian.Uint32(s.msg[1:]))
		if n > s.window {
			return s.begin(n)
		}
		s.need = prefixLen + n
	}
	s.take(s.need)
	if len(s.msg) < s.need {
		return nil, false, nil
	}
	s.need = 0
	out, err := s.whole()
	s.ended = true
	return out, s.last && len(s.rest) == 0, err
}

// tornMessage is nil if the body ended between messages.
func (s *grpcSource) tornMessage() error {
	if len(s.msg) > 0 || s.big > 0 {
		return &uninspectableError{"torn_grpc_message"}
	}
	return nil
}

// take moves bytes into msg until it holds n.
func (s *grpcSource) take(n int) {
	k := min(max(n-len(s.msg), 0), len(s.rest))
	s.msg = append(s.msg, s.rest[:k]...)
	s.rest = s.rest[k:]
}

// begin lets the prefix of a message beyond the window go on.
func (s *grpcSource) begin(n int) ([]byte, bool, error) {
	if s.msg[0]&1 != 0 {
		if err := s.opaque("compressed_grpc_message"); err != nil {
			return nil, false, err
		}
	}
	s.big, s.ended, s.inPlace = n, true, true
	s.stream.Reset()
	return s.msg, false, nil
}

func (s *grpcSource) payload() ([]byte, bool, error) {
	p := s.rest[:min(len(s.rest), s.big, pieceBytes)]
	s.rest = s.rest[len(p):]
	s.big -= len(p)
	out, err := s.stream.Write(p, s.big == 0)
	return out, s.big == 0 && s.last && len(s.rest) == 0, err
}

// opaque notes a message that can't be read; the error stops it.
func (s *grpcSource) opaque(reason string) error {
	if s.in.uninspectable(reason); s.in.refused {
		return &uninspectableError{reason}
	}
	return nil
}

// whole scans the message in s.msg and returns it, edited. One that is
// compressed stays so.
func (s *grpcSource) whole() ([]byte, error) {
	payload := s.msg[prefixLen:]
	compressed := s.msg[0]&1 != 0
	if compressed {
		var ok bool
		if payload, ok = s.decompress(payload); !ok {
			return s.msg, s.opaque("compressed_grpc_message")
		}
	}
	before := s.in.changed
	s.in.changed = false
	edited := s.look(payload)
	changed := s.in.changed
	s.in.changed = changed || before
	if s.err != nil || s.in.blocker != nil || !changed {
		return s.msg, s.err
	}
	if edited == nil {
		edited = payload // in place
	}
	if compressed {
		var b bytes.Buffer
		c, _ := compressors[s.form].Get().(compressor)
		c.Reset(&b)
		_, err := c.Write(edited)
		if cerr := c.Close(); err == nil {
			err = cerr
		}
		c.Reset(io.Discard)
		compressors[s.form].Put(c)
		if err != nil {
			return nil, err
		}
		edited = b.Bytes()
	}
	s.msg = append(s.msg[:prefixLen], edited...)
	binary.BigEndian.PutUint32(s.msg[1:], uint32(len(edited)))
	return s.msg, nil
}

// look scans payload, and edits it in place unless it returns what it has
// become.
func (s *grpcSource) look(payload []byte) []byte {
	s.in.track, s.in.seen = true, s.in.seen[:0]
	defer func() { s.in.track, s.in.again = false, false }()
	text := readable(payload)
	edited, ok := s.fields(payload, 0, text)
	if !ok {
		edited = s.scan(payload, false)
	} else if s.err == nil && text {
		s.in.again = true
		s.scan(payload, true)
	}
	return edited
}

// scan looks at b and edits it in place. If the length changes, which inPlace
// rules out, it returns what b has become.
func (s *grpcSource) scan(b []byte, inPlace bool) []byte {
	if s.in.blocker != nil {
		return nil
	}
	s.stream.Reset()
	s.inPlace, s.out = inPlace, s.out[:0]
	for p := b; ; {
		n := min(len(p), pieceBytes)
		out, err := s.stream.Write(p[:n], n == len(p))
		if err != nil {
			s.err = err
			return nil
		}
		s.out = append(s.out, out...)
		if n == len(p) {
			break
		}
		p = p[n:]
	}
	if len(s.out) == len(b) || s.in.blocker != nil {
		copy(b, s.out)
		return nil
	}
	return slices.Clone(s.out)
}

// decompress undoes grpc-encoding, up to the whole window.
func (s *grpcSource) decompress(p []byte) ([]byte, bool) {
	if compressors[s.coding] == nil || s.coding == rawDeflate {
		return nil, false
	}
	limit := 4 * s.window
	d := newDecodedBody(message.Bytes(p), []string{s.coding}, limit) // the ratio can't be exceeded before the limit
	defer d.Close()
	var plain []byte
	for {
		chunk, last, err := d.Next()
		if plain = append(plain, chunk...); err != nil || len(plain) > limit {
			return nil, false
		}
		if last {
			s.form = d.forms[0]
			return plain, true
		}
	}
}

// maxNesting bounds recursion into nested messages.
const maxNesting = 32

// fields scans every length-delimited field of the protobuf message b that is
// no message itself. It reports false, and scans nothing, if b is not
// well-formed. It returns what b has become if its length changed, which
// inPlace rules out.
func (s *grpcSource) fields(b []byte, depth int, inPlace bool) (edited []byte, ok bool) {
	if depth > maxNesting || len(b) == 0 || !walkWire(b, nil) {
		return nil, false
	}
	done := 0 // of b, in edited
	walkWire(b, func(size, start, end int) bool {
		field := b[start:end]
		text := readable(field)
		sub, nested := s.fields(field, depth+1, inPlace || text)
		if s.err == nil && (!nested || text) {
			// Readable text may look like a nested message by chance, or
			// by design: then both are tried, and no length changes.
			s.in.again = nested
			sub = s.scan(field, inPlace || nested)
			s.in.again = false
		}
		if sub != nil {
			edited = append(edited, b[done:size]...)
			edited = binary.AppendUvarint(edited, uint64(len(sub)))
			edited = append(edited, sub...)
			done = end
		}
		return s.err == nil && s.in.blocker == nil
	})
	if edited != nil {
		edited = append(edited, b[done:]...)
	}
	return edited, true
}

// readable reports whether b may be meant as text.
func readable(b []byte) bool {
	return utf8.Valid(b) && !bytes.ContainsFunc(b, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' && r != '\r' })
}

// walkWire goes over the fields of b. It reports whether b is well-formed. f is
// called with where the size of a length-delimited field is, and its bytes.
func walkWire(b []byte, f func(size, start, end int) bool) bool {
	for i := 0; i < len(b); {
		tag, n := binary.Uvarint(b[i:])
		if n <= 0 || tag>>3 == 0 || tag>>3 > 1<<29-1 {
			return false
		}
		i += n
		switch tag & 7 {
		case 0:
			if _, n = binary.Uvarint(b[i:]); n <= 0 {
				return false
			}
			i += n
		case 1, 5:
			if i += 8 - int(tag&4); i > len(b) {
				return false
			}
		case 2:
			size, n := binary.Uvarint(b[i:])
			if n <= 0 || size > uint64(len(b)-i-n) {
				return false
			}
			end := i + n + int(size)
			if f != nil && !f(i, i+n, end) {
				return true
			}
			i = end
		default:
			return false
		}
	}
	return true
}
