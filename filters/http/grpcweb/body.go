package grpcweb

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

var errBase64 = errors.New("grpc_web: the request is not base64")

// decoder undoes the base64 of a request, four characters at a time: clients
// may end each chunk with padding.
type decoder struct {
	inner message.Body
	rest  []byte // up to three characters
	out   []byte
	err   error
	ended bool
}

// Next implements message.Body.
func (d *decoder) Next() ([]byte, bool, error) {
	if d.err != nil || d.ended {
		return nil, d.ended, d.err
	}
	p, last, err := d.inner.Next()
	if err != nil {
		return nil, false, err
	}
	if err := d.decode(p, last); err != nil {
		d.err = err
		return nil, false, err
	}
	d.ended = last
	return d.out, last, nil
}

func (d *decoder) decode(p []byte, last bool) error {
	d.out = d.out[:0]
	for len(d.rest) > 0 && len(d.rest) < 4 && len(p) > 0 {
		d.rest, p = append(d.rest, p[0]), p[1:]
	}
	if len(d.rest) == 4 {
		if err := d.group(d.rest); err != nil {
			return err
		}
		d.rest = d.rest[:0]
	}
	if len(d.rest) > 0 { // p is used up
		return d.whole(last)
	}
	n := len(p) / 4 * 4
	d.rest = append(d.rest, p[n:]...)
	for p = p[:n]; len(p) > 0; {
		// All at once up to the first padding.
		end := len(p)
		for i := 3; i < len(p); i += 4 {
			if p[i] == '=' {
				end = i + 1
				break
			}
		}
		if err := d.group(p[:end]); err != nil {
			return err
		}
		p = p[end:]
	}
	return d.whole(last)
}

func (d *decoder) whole(last bool) error {
	if last && len(d.rest) > 0 {
		return errBase64
	}
	return nil
}

func (d *decoder) group(p []byte) error {
	if bytes.ContainsAny(p, "\r\n") { // which the package would skip
		return errBase64
	}
	out, err := base64.StdEncoding.Strict().AppendDecode(d.out, p)
	if err != nil || len(p)%4 != 0 {
		return errBase64
	}
	d.out = out
	return nil
}

// Ready implements message.Body.
func (d *decoder) Ready() (int, bool) {
	if d.ended {
		return 0, true
	}
	return 0, false
}

// Trailers implements message.Body: browsers send none.
func (d *decoder) Trailers() *message.Header { return nil }

// Close implements message.Body.
func (d *decoder) Close() {
	d.inner.Close()
	d.out, d.rest = nil, nil
}

// framed ends a response with a frame that holds its trailers, all of it in
// base64 if text is set.
type framed struct {
	inner message.Body
	s     *filters.Stream
	text  bool
	out   []byte
	state int // of the values below
}

const (
	reading  = iota
	trailing // inner has ended, its trailers are to come
	ended
)

// trailerFrame is the flag of a frame with trailers.
const trailerFrame = 0x80

// Next implements message.Body.
func (f *framed) Next() ([]byte, bool, error) {
	switch f.state {
	case ended:
		return nil, true, nil
	case trailing:
		f.state = ended
		return f.encode(trailers(f.inner.Trailers())), true, nil
	}
	p, last, err := f.inner.Next()
	if err != nil {
		return nil, false, err
	}
	if !last {
		return f.encode(p), false, nil
	}
	if f.inner.Trailers() == nil {
		f.state = ended
		return f.encode(p), true, nil
	}
	if f.state = trailing; len(p) == 0 {
		return f.Next()
	}
	return f.encode(p), false, nil
}

func (f *framed) encode(p []byte) []byte {
	if !f.text {
		return p
	}
	f.out = base64.StdEncoding.AppendEncode(f.out[:0], p)
	return f.out
}

// trailers is the frame with h.
func trailers(h *message.Header) []byte {
	b := make([]byte, 5, 64)
	b[0] = trailerFrame
	for i := range h.Len() {
		f := h.At(i)
		b = append(b, f.Name...)
		b = append(b, ':')
		b = append(b, f.Value...)
		b = append(b, "\r\n"...)
	}
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-5))
	return b
}

// Ready implements message.Body.
func (f *framed) Ready() (int, bool) {
	if f.state == ended {
		return 0, true
	}
	if f.state == trailing || f.text {
		return 0, false
	}
	n, _ := f.inner.Ready()
	return n, false
}

// Trailers implements message.Body: nothing is sent after the body. Records of
// a stream that has ended get what upstream sent.
func (f *framed) Trailers() *message.Header {
	if f.s.Info.End.IsZero() {
		return nil
	}
	return f.inner.Trailers()
}

// Close implements message.Body.
func (f *framed) Close() { f.inner.Close() }
