package dlp

import (
	"bytes"
	"errors"
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/filters/internal/dlp"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// pieceBytes bounds what is scanned at once, and so what a scanner gives back.
const pieceBytes = 4 << 10

// stepBytes is what one more piece may add to the memory of a body: itself and
// what was held back, here and in the scanner's buffers.
const stepBytes = 2 * (pieceBytes + dlp.MaxMatch)

// stopError ends a body that must not go on.
type stopError struct{ details string }

func (e *stopError) Error() string { return "dlp: " + e.details }

// gate decides what happens when a request is stopped while its response may
// have begun: before, the filter answers by itself; after, the stream ends.
type gate struct{ state atomic.Int32 }

const (
	gateOpen     = iota // neither
	gateAnswered        // the response went on first
	gateStopped         // the request was stopped first
)

// answered reports false if the request was stopped.
func (g *gate) answered() bool { return g.state.CompareAndSwap(gateOpen, gateAnswered) }

// stopped reports false if the response went on already.
func (g *gate) stopped() bool { return g.state.CompareAndSwap(gateOpen, gateStopped) }

// source produces scanned pieces of a body. final comes with the last one. The
// piece is valid until the next call.
type source interface {
	next() (piece []byte, final bool, err error)
	memory() int // bytes that it takes
	free()
}

// body is an inspected message.Body.
type body struct {
	inner message.Body
	src   source
	in    *inspection
	stop  func(error) // tells the stream; nil for responses

	queue []byte // held in front
	done  bool
	freed bool // src is somebody else's
	err   error
	// rewrites is set when the head has gone on without what would be wrong
	// of another body.
	rewrites bool
}

func newBody(inner message.Body, src source, in *inspection, stop func(error)) *body {
	return &body{inner: inner, src: src, in: in, stop: stop}
}

// hold pulls the body until it is complete or takes limit bytes of memory, so
// that it can still be answered cleanly.
func (b *body) hold(limit int) {
	for b.err == nil && !b.done && b.memory()+stepBytes < limit {
		p, ok := b.step()
		if !ok {
			return
		}
		if n := len(b.queue) + len(p); n > cap(b.queue) { // not the double
			b.queue = append(make([]byte, 0, n), b.queue...)
		}
		b.queue = append(b.queue, p...)
	}
}

// recodes reports whether messages within b are compressed again when they are
// edited.
func (b *body) recodes() bool {
	s, ok := b.src.(*grpcSource)
	return ok && s.coding != ""
}

// memory is what b takes, without what inner holds.
func (b *body) memory() int { return cap(b.queue) + b.src.memory() }

// step scans once more. It reports false after an error.
func (b *body) step() ([]byte, bool) {
	b.in.place = inBody
	p, final, err := b.src.next()
	if err == nil && b.in.blocker != nil {
		err = &stopError{b.in.details()}
	}
	if err != nil {
		b.fail(err)
		return nil, false
	}
	if final {
		b.done = true
		if t := b.inner.Trailers(); t != nil {
			if b.in.set.looks[inTrailer] {
				b.in.trailers(t)
			}
			if b.in.stopped() {
				b.fail(&stopError{b.in.details()})
				return nil, false
			}
			if b.rewrites {
				dropDigests(t)
			}
		}
		b.in.report()
	}
	return p, true
}

// uninspectableOf returns what err says about a body that can't be looked at,
// or nil.
func uninspectableOf(err error) *uninspectableError {
	if errors.Is(err, dlp.ErrTooComplex) {
		return &uninspectableError{reason: "too_complex"}
	}
	var un *uninspectableError
	errors.As(err, &un)
	return un
}

func (b *body) fail(err error) {
	if un := uninspectableOf(err); un != nil {
		// What was scanned has lost its original form: it can't pass.
		b.in.uninspectable(un.reason)
		b.in.refused = true
		err = &stopError{b.in.details()}
	}
	b.err, b.queue = err, nil
	b.in.report()
	var s *stopError
	if b.stop != nil && errors.As(err, &s) {
		b.stop(err)
	}
}

func (b *body) Next() ([]byte, bool, error) {
	switch {
	case b.err != nil:
		return nil, false, b.err
	case len(b.queue) > 0:
		p := b.queue
		b.queue = nil
		return p, b.done, nil
	case b.done:
		return nil, true, nil
	}
	for {
		p, ok := b.step()
		if !ok {
			return nil, false, b.err
		}
		if len(p) > 0 || b.done {
			return p, b.done, nil
		}
	}
}

func (b *body) Ready() (int, bool) {
	if b.err != nil {
		return 0, false
	}
	return len(b.queue), b.done
}

func (b *body) Trailers() *message.Header { return b.inner.Trailers() }

func (b *body) Close() {
	b.in.report()
	b.queue, b.err = nil, errClosed
	if !b.freed { // else inner panicked then
		b.freed = true
		b.src.free()
	}
	b.inner.Close()
}

var errClosed = errors.New("dlp: body read after it was closed")

// plainSource scans the bytes of a body as they are.
type plainSource struct {
	inner  message.Body
	stream *dlp.Stream
	rest   []byte // of the chunk at hand
	last   bool   // inner has returned last
	in     *inspection
	// sniffed is the beginning of the body.
	sniffed []byte
	// tee is set if no rule may change or stop the body: it passes at once,
	// and is looked at on the way.
	tee  bool
	quit bool // scanning was given up
	// parts is the end of what was read of a multipart body, to find the
	// transfer encodings of its parts; nil for other bodies.
	parts []byte
}

func newPlainSource(inner message.Body, in *inspection, plus, json bool) plainSource {
	s := in.set.engine.NewStream(in.found, plus, nil)
	if json {
		s.JSON()
	}
	return plainSource{inner: inner, stream: s, in: in, sniffed: make([]byte, 0, sniffBytes)}
}

func (s *plainSource) next() ([]byte, bool, error) {
	if len(s.rest) == 0 && !s.last {
		var err error
		if s.rest, s.last, err = s.inner.Next(); err != nil {
			return nil, false, err
		}
	}
	p := s.rest[:min(len(s.rest), pieceBytes)]
	s.rest = s.rest[len(p):]
	if len(s.sniffed) < sniffBytes {
		s.sniffed = append(s.sniffed, p[:min(len(p), sniffBytes-len(s.sniffed))]...)
		if reason := disguised(s.sniffed); reason != "" && s.in.reason == "" {
			if s.in.uninspectable(reason); s.in.refused {
				return nil, false, &uninspectableError{reason}
			}
		}
	}
	if s.parts != nil && s.in.reason == "" && s.encodedPart(p) {
		if s.in.uninspectable("transfer_encoding"); s.in.refused {
			return nil, false, &uninspectableError{"transfer_encoding"}
		}
	}
	final := s.last && len(s.rest) == 0
	if s.quit {
		return p, final, nil
	}
	out, err := s.stream.Write(p, final)
	if s.tee {
		if err != nil {
			s.quit = true
			if s.in.uninspectable("too_complex"); s.in.refused {
				return nil, false, err
			}
		}
		return p, final, nil
	}
	return out, final, err
}

const sniffBytes = 4

// disguised recognizes content that is not what detectors can read.
func disguised(p []byte) string {
	switch {
	case len(p) >= 3 && p[0] == 0x1f && p[1] == 0x8b && p[2] == 8:
		return "gzip_content"
	case len(p) >= 4 && p[0] == 0x28 && p[1] == 0xb5 && p[2] == 0x2f && p[3] == 0xfd:
		return "zstd_content"
	case len(p) >= 2 && (p[0] == 0xfe && p[1] == 0xff || p[0] == 0xff && p[1] == 0xfe), len(p) >= 4 && (wide(p[0], p[1]) && wide(p[2], p[3]) || wide(p[1], p[0]) && wide(p[3], p[2])):
		return "utf16_content"
	case len(p) >= 4 && (string(p[:4]) == "PK\x03\x04" || string(p[:4]) == "PK\x05\x06" || string(p[:4]) == "Rar!" || string(p[:4]) == "7z\xbc\xaf" || string(p[:4]) == "\xfd7zX"),
		len(p) >= 4 && string(p[:3]) == "BZh" && p[3] >= '1' && p[3] <= '9':
		return "archive_content"
	}
	return ""
}

// wide reports whether a printable character is written in two bytes.
func wide(c, zero byte) bool { return zero == 0 && c >= '\t' && c < 0x7f }

const transferEncoding = "content-transfer-encoding:"

// encodedPart reports whether a part of a multipart body says that it is in
// base64 or quoted-printable. p is what follows s.parts.
func (s *plainSource) encodedPart(p []byte) bool {
	s.parts = append(s.parts, bytes.ToLower(p)...)
	b := s.parts
	for rest := b; ; {
		i := bytes.Index(rest, []byte(transferEncoding))
		if i < 0 {
			break
		}
		rest = rest[i+len(transferEncoding):]
		value := bytes.TrimLeft(rest, " \t\r\n\"")
		if bytes.HasPrefix(value, []byte("base64")) || bytes.HasPrefix(value, []byte("quoted-printable")) || bytes.HasPrefix(value, []byte("x-uu")) {
			return true
		}
	}
	keep := min(len(b), len(transferEncoding)+40)
	s.parts = append(s.parts[:0], b[len(b)-keep:]...)
	return false
}

func (s *plainSource) memory() int { return s.stream.Memory() }
func (s *plainSource) free()       { s.stream.Free() }

// uninspectableError ends a body that can't be looked at.
type uninspectableError struct{ reason string }

func (e *uninspectableError) Error() string {
	return "dlp: body can't be inspected: " + e.reason
}
