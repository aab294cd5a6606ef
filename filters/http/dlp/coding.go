package dlp

import (
	"bufio"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"slices"
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
		case "x-gzip":
			c = "gzip"
		case "gzip", "deflate", "br", "zstd":
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
	forms   []string // the codings, the last applied first, as they turned out
	closers []func()
	buf     []byte
	counter *countingReader
	ratio   int64
	err     error

	fault     bool        // a layer failed
	limit     error       // the bounds were exceeded
	over      func() bool // may allow that; nil doesn't
	unbounded bool        // it was

	// seen are bytes of the encoded body that were read: all if keep is
	// positive, else what whoever clears it has not seen. Nothing is kept if
	// keep is 0, which it becomes when seen grows beyond it.
	seen []byte
	keep int
}

// keepAll is a keep without a bound: seen is cleared.
const keepAll = -1

func (d *decodedBody) see(p []byte) {
	switch {
	case d.keep == 0:
		return
	case d.keep > 0 && len(d.seen)+len(p) > d.keep:
		d.forget()
		return
	}
	d.seen = append(d.seen, p...)
}

// forget frees what was kept.
func (d *decodedBody) forget() {
	clear(d.seen)
	d.seen, d.keep = nil, 0
}

// countingReader counts what was read of the encoded body.
type countingReader struct {
	r     io.Reader
	n     int64
	see   func([]byte)
	ended bool
	err   error // of the encoded body, other than its end
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.see(p[:n])
	switch {
	case errors.Is(err, io.EOF):
		c.ended = true
	case err != nil:
		c.err = err
	}
	return n, err
}

// layer is one coding undone. It makes its decoder at the first read, for
// making one may block, and bounds what the decoder makes of the body: also of
// what another layer reads and nobody else sees, like empty members of gzip.
type layer struct {
	d    *decodedBody
	make func() (io.Reader, error)
	r    io.Reader
	out  int64
}

func (l *layer) Read(p []byte) (int, error) {
	if l.r == nil {
		r, err := l.make()
		if err != nil {
			return 0, err
		}
		l.r = r
	}
	n, err := l.r.Read(p)
	l.out += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		l.d.fault = true // decoders above may take it for the end
	}
	if !l.d.unbounded && l.out > freeOutput && l.out > l.d.ratio*l.d.counter.n {
		if l.d.over == nil || !l.d.over() {
			l.d.limit = &uninspectableError{"decompression_limit"}
			return 0, l.d.limit
		}
		l.d.unbounded = true
	}
	return n, err
}

func newDecodedBody(inner message.Body, list []string, ratio int) *decodedBody {
	d := &decodedBody{inner: inner, ratio: int64(ratio), forms: slices.Clone(list)}
	d.counter = &countingReader{r: message.NewReader(inner), see: d.see}
	d.r = d.counter
	for i := range list {
		d.r = d.undo(i, d.r)
	}
	return d
}

// undo undoes coding i.
func (d *decodedBody) undo(i int, r io.Reader) io.Reader {
	return &layer{d: d, make: func() (io.Reader, error) {
		b := bufio.NewReaderSize(r, 4<<10)
		if _, err := b.Peek(1); errors.Is(err, io.EOF) {
			return b, nil // an empty body needs no header
		}
		switch d.forms[i] {
		case "deflate":
			// RFC 9110 means zlib; some send raw deflate.
			if p, _ := b.Peek(2); len(p) == 2 && p[0]&0x0f == 8 && (uint(p[0])<<8|uint(p[1]))%31 == 0 {
				z, err := zlib.NewReader(b)
				return &strictReader{z, b}, err
			}
			d.forms[i] = rawDeflate
			return &strictReader{flate.NewReader(b), b}, nil
		case "br":
			return &strictReader{newBrotliReader(b), b}, nil
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

// brotliReader reads one brotli stream. The decoder calls the last bytes
// "excessive input" if they come in small pieces: it has them in a buffer of
// eight bytes. So it is given either more than that, or single bytes.
type brotliReader struct {
	r    *brotli.Reader
	in   *bufio.Reader
	last int // bytes that were given last
}

func newBrotliReader(in *bufio.Reader) *brotliReader {
	b := &brotliReader{in: in}
	b.r = brotli.NewReader(readerFunc(b.give))
	return b
}

func (b *brotliReader) give(p []byte) (int, error) {
	if _, err := b.in.Peek(1); err != nil {
		return 0, err
	}
	n := min(b.in.Buffered(), len(p))
	if n < 16 {
		n = 1
	}
	b.last = n
	return b.in.Read(p[:n])
}

func (b *brotliReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && b.last == 1 && err.Error() == "brotli: excessive input" {
		// Another read tells whether the byte belongs to the stream: if not,
		// the decoder still has it; if so, nothing may follow.
		_, err = b.r.Read(p[n:])
	}
	return n, err
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func (d *decodedBody) Next() ([]byte, bool, error) {
	if d.err != nil {
		return nil, false, d.err
	}
	if d.buf == nil {
		d.buf = make([]byte, 8<<10)
	}
	n, err := d.r.Read(d.buf)
	switch {
	case d.limit != nil:
		d.err = d.limit
	case errors.Is(err, io.EOF) && !d.fault && d.counter.ended:
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

// Close frees the decoders and closes the encoded body.
func (d *decodedBody) Close() {
	defer d.inner.Close()
	for _, c := range d.closers {
		c()
	}
	d.closers = nil
	d.forget()
}
