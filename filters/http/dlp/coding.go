package dlp

import (
	"bufio"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"strings"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"github.com/fairlead-mesh/fairlead/internal/message"
)

const (
	// maxCodings bounds how many content codings are undone.
	maxCodings = 3
	// freeOutput is how much a body may grow to whatever its ratio.
	freeOutput = 1 << 20
	// maxZstdWindow is RFC 9659's.
	maxZstdWindow = 8 << 20
)

// codings returns the content codings of h, the last applied first, and
// whether all of them are known. identity is left out.
func codings(h *message.Header) (list []string, known bool) {
	v, ok := h.Joined("content-encoding")
	if !ok {
		return nil, true
	}
	known = true
	for c := range strings.SplitSeq(v, ",") {
		c = strings.ToLower(strings.TrimSpace(c))
		switch c {
		case "", "identity":
			continue
		case "gzip", "x-gzip", "deflate", "br", "zstd":
		default:
			known = false
		}
		list = append([]string{c}, list...)
	}
	return list, known && len(list) <= maxCodings
}

// decodedBody is a body with its content codings undone.
type decodedBody struct {
	inner   message.Body
	r       io.Reader
	closers []func()
	buf     []byte
	counter *countingReader
	out     int64
	ratio   int64
	err     error
}

// countingReader counts what was read of the encoded body.
type countingReader struct {
	r   io.Reader
	n   int64
	err error // of the encoded body, other than its end
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

// lazyReader makes its decoder at the first read: making one may block.
type lazyReader struct {
	make func() (io.Reader, error)
	r    io.Reader
}

func (l *lazyReader) Read(p []byte) (int, error) {
	if l.r == nil {
		r, err := l.make()
		if err != nil {
			return 0, err
		}
		l.r = r
	}
	return l.r.Read(p)
}

func newDecodedBody(inner message.Body, list []string, ratio int) *decodedBody {
	d := &decodedBody{inner: inner, ratio: int64(ratio), counter: &countingReader{r: message.NewReader(inner)}}
	d.r = d.counter
	for _, c := range list {
		d.r = d.undo(c, d.r)
	}
	return d
}

func (d *decodedBody) undo(coding string, r io.Reader) io.Reader {
	return &lazyReader{make: func() (io.Reader, error) {
		b := bufio.NewReaderSize(r, 4<<10)
		if _, err := b.Peek(1); errors.Is(err, io.EOF) {
			return b, nil // an empty body needs no header
		}
		switch coding {
		case "deflate":
			// RFC 9110 means zlib; some send raw deflate.
			if p, _ := b.Peek(2); len(p) == 2 && p[0]&0x0f == 8 && (uint(p[0])<<8|uint(p[1]))%31 == 0 {
				z, err := zlib.NewReader(b)
				return &strictReader{z, b}, err
			}
			return &strictReader{flate.NewReader(b), b}, nil
		case "br":
			return &strictReader{brotli.NewReader(b), b}, nil
		case "zstd":
			z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderMaxMemory(maxZstdWindow))
			if err != nil {
				return nil, err
			}
			d.closers = append(d.closers, z.Close)
			return z, nil
		}
		return gzip.NewReader(b)
	}}
}

// strictReader fails if bytes follow the end of the compressed data: whoever
// reads it elsewhere may see them.
type strictReader struct {
	r    io.Reader
	rest *bufio.Reader
}

func (s *strictReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if errors.Is(err, io.EOF) {
		if _, more := s.rest.Peek(1); more == nil {
			return n, errors.New("data behind the compressed data")
		}
	}
	return n, err
}

func (d *decodedBody) Next() ([]byte, bool, error) {
	if d.err != nil {
		return nil, false, d.err
	}
	if d.buf == nil {
		d.buf = make([]byte, 8<<10)
	}
	n, err := d.r.Read(d.buf)
	d.out += int64(n)
	switch {
	case d.out > freeOutput && d.out > d.ratio*d.counter.n:
		d.err = &uninspectableError{"decompression_limit"}
	case errors.Is(err, io.EOF):
		return d.buf[:n], true, nil
	case err != nil:
		d.err = d.cause()
	default:
		return d.buf[:n], false, nil
	}
	return nil, false, d.err
}

// cause tells malformed encodings from bodies that broke off.
func (d *decodedBody) cause() error {
	if d.counter.err != nil {
		return d.counter.err
	}
	return &uninspectableError{"malformed_encoding"}
}

func (d *decodedBody) Ready() (int, bool)        { return 0, false }
func (d *decodedBody) Trailers() *message.Header { return d.inner.Trailers() }

// Close frees the decoders and closes the encoded body.
func (d *decodedBody) Close() {
	defer d.inner.Close()
	for _, c := range d.closers {
		c()
	}
	d.closers = nil
}
