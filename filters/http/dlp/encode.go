package dlp

import (
	"bytes"
	"io"
	"slices"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"

	"github.com/fairlead-mesh/fairlead/internal/message"
)

// rawDeflate is how a coding that calls itself deflate is written without the
// header of zlib.
const rawDeflate = "raw deflate"

// compressor undoes what a decoder did.
type compressor interface {
	io.WriteCloser
	Flush() error
	Reset(w io.Writer)
}

// compressors are kept for the next message: making one takes hundreds of KiB.
var compressors = map[string]*sync.Pool{
	"gzip":     {New: func() any { w, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed); return w }},
	"deflate":  {New: func() any { w, _ := zlib.NewWriterLevel(nil, zlib.BestSpeed); return w }},
	rawDeflate: {New: func() any { w, _ := flate.NewWriter(nil, flate.BestSpeed); return w }},
	"br":       {New: func() any { return brotli.NewWriterOptions(nil, brotli.WriterOptions{Quality: 2, LGWin: 18}) }},
	"zstd": {New: func() any {
		w, _ := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true),
			zstd.WithWindowSize(256<<10), zstd.WithEncoderLevel(zstd.SpeedFastest))
		return w
	}},
}

// encoder puts the content codings of a body back that a decodedBody took off.
type encoder struct {
	d      *decodedBody
	out    bytes.Buffer
	layers []compressor // the last applied first; nil before the first byte
	names  []string
}

// write encodes p. Unless the body ends or more of it has arrived, everything
// written so far can be decoded on the other side: nobody waits for it. The
// bytes are valid until the next call.
func (e *encoder) write(p []byte, final bool) ([]byte, error) {
	e.out.Reset()
	if e.d.counter.n == 0 { // an empty body has no encoding
		return nil, nil
	}
	if e.layers == nil {
		e.open()
	}
	top := e.layers[len(e.layers)-1]
	if _, err := top.Write(p); err != nil {
		return nil, err
	}
	if final {
		err := e.close()
		return e.out.Bytes(), err
	}
	if n, _ := e.d.inner.Ready(); n == 0 && len(p) > 0 {
		for _, v := range slices.Backward(e.layers) {
			if err := v.Flush(); err != nil {
				return nil, err
			}
		}
	}
	return e.out.Bytes(), nil
}

// open takes a compressor for each coding, in the form that the decoders met.
func (e *encoder) open() {
	var w io.Writer = &e.out
	for _, name := range e.d.forms {
		c, ok := compressors[name].Get().(compressor)
		if !ok {
			continue // every pool has its own
		}
		c.Reset(w)
		e.layers, e.names = append(e.layers, c), append(e.names, name)
		w = c
	}
}

func (e *encoder) close() (err error) {
	for _, v := range slices.Backward(e.layers) {
		if cerr := v.Close(); err == nil {
			err = cerr
		}
	}
	e.free()
	return err
}

// free gives the compressors back.
func (e *encoder) free() {
	for i, c := range e.layers {
		c.Reset(io.Discard)
		compressors[e.names[i]].Put(c)
	}
	e.layers, e.names = e.layers[:0], nil
}

// encodedSource scans an encoded body. If no rule may change or stop it, the
// bytes pass as they came; otherwise what is scanned is encoded again.
type encodedSource struct {
	plainSource
	d   *decodedBody
	enc *encoder // nil if the bytes pass as they came
	// passing is set when decoding was given up: the bytes just pass.
	passing bool
	out     []byte // returned last, if the bytes pass as they came
	// begun is set when something was returned, gone when what was returned
	// has left.
	begun, gone bool
}

func newEncodedSource(plain plainSource, d *decodedBody, pass bool, window int) *encodedSource {
	s := &encodedSource{plainSource: plain, d: d}
	if pass {
		s.tee, d.keep = true, keepAll
		return s
	}
	s.enc, d.keep = &encoder{d: d}, window/4
	d.over = func() bool {
		s.in.uninspectable("decompression_limit")
		return !s.in.refused
	}
	return s
}

func (s *encodedSource) next() ([]byte, bool, error) {
	if s.passing {
		return s.d.inner.Next()
	}
	p, final, err := s.plainSource.next()
	if un := uninspectableOf(err); un != nil && (s.enc == nil || !s.begun && s.d.keep != 0) {
		if s.in.uninspectable(un.reason); s.in.refused {
			return nil, false, err
		}
		s.passing, final, err = true, s.d.counter.ended, nil
	}
	if err != nil {
		return nil, false, err
	}
	if s.enc == nil || s.passing {
		s.out = append(s.out[:0], s.d.seen...)
		s.d.seen = s.d.seen[:0]
		return s.out, final, nil
	}
	if p, err = s.enc.write(p, final); len(p) > 0 {
		s.begun = true
		if s.gone {
			s.d.forget()
		}
	}
	return p, final, err
}

// original returns the body as it came, if all of it was inspected, nothing
// changed, and it is short.
func (s *encodedSource) original() ([]byte, bool) {
	return s.d.seen, s.enc != nil && !s.passing && !s.in.body && s.d.keep > 0
}

// depart is called when the head of the message goes on: from now on there is
// no way back to the original form of what was returned.
func (s *encodedSource) depart() {
	if s.gone = true; s.begun {
		s.d.forget()
	}
}

func (s *encodedSource) memory() int {
	n := s.plainSource.memory() + cap(s.out) + cap(s.d.seen)
	if s.enc != nil {
		n += s.enc.out.Cap()
	}
	return n
}

func (s *encodedSource) free() {
	s.plainSource.free()
	if s.enc != nil {
		s.enc.free()
	}
	clear(s.out)
}

// Ready tells nothing: what can be decoded isn't known.
func (d *decodedBody) Ready() (int, bool)        { return 0, false }
func (d *decodedBody) Trailers() *message.Header { return d.inner.Trailers() }
