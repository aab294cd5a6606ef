package dlp

import (
	"bytes"
	"sync"
	"unicode/utf8"
	"unsafe"
)

// normalizer undoes the ways of writing a character that hide it from a
// detector and that the reader of the stream may undo as well: percent
// encoding, JSON escapes, numbers of characters in HTML, full-width forms, Arabic-Indic digits, kinds of
// hyphens and spaces; zero-width characters vanish. It is a transducer: its
// output does not depend on how the input was cut.
type normalizer struct {
	plus  bool // "+" is a space: queries and forms
	carry []byte
	out   []byte
	units []unit
	base  int32 // what out[0] counts as in units
}

// unit is one character that was written otherwise: out[at:at+n] was raw. n is
// 0 or 1.
type unit struct {
	at     int32
	n      uint8
	rawLen uint8
	raw    [maxEntity]byte
}

// maxEntity is the longest reference to a character in HTML that is undone,
// like &#x00034; it has nine bytes.
const maxEntity = 9

// leads are bytes with which something to normalize may begin.
var leads = []byte{'\\', '%', 0xC2, 0xD9, 0xDB, 0xE2, 0xEF}

// plain reports whether p is its own normal form.
func (n *normalizer) plain(p []byte) bool {
	if len(n.carry) > 0 {
		return false
	}
	for _, c := range leads {
		if bytes.IndexByte(p, c) >= 0 {
			return false
		}
	}
	if bytes.Contains(p, []byte("&#")) || len(p) > 0 && p[len(p)-1] == '&' {
		return false
	}
	return !n.plus || bytes.IndexByte(p, '+') < 0
}

// write appends the normal form of p to n.out and its units to n.units.
func (n *normalizer) write(p []byte, final bool) {
	if len(n.carry) > 0 {
		p = append(n.carry, p...)
		n.carry = nil
	}
	for i := 0; i < len(p); {
		c := p[i]
		if c != '\\' && c != '%' && c != '&' && c < 0xC2 && (c != '+' || !n.plus) {
			n.out = append(n.out, c)
			i++
			continue
		}
		width, text, ok := n.decode(p[i:], final)
		if width == 0 { // more bytes decide
			n.carry = append([]byte(nil), p[i:]...)
			return
		}
		if !ok {
			n.out = append(n.out, p[i:i+width]...)
			i += width
			continue
		}
		u := unit{at: n.base + int32(len(n.out)), n: uint8(len(text)), rawLen: uint8(width)}
		copy(u.raw[:], p[i:i+width])
		n.out = append(n.out, text...)
		n.units = append(n.units, u)
		i += width
	}
}

// decode looks at the character at the beginning of p. It returns its width,
// 0 if p may continue it, and what it stands for, if for something else.
func (n *normalizer) decode(p []byte, final bool) (width int, text string, ok bool) {
	switch p[0] {
	case '+':
		return 1, " ", true
	case '%':
		if len(p) < 3 {
			if final || len(p) == 2 && !isHex(p[1]) {
				return 1, "", false
			}
			return 0, "", false
		}
		if !isHex(p[1]) || !isHex(p[2]) {
			return 1, "", false
		}
		return 3, string([]byte{hexValue(p[1])<<4 | hexValue(p[2])}), true
	case '\\':
		return jsonEscape(p, final)
	case '&':
		return entity(p, final)
	}
	if !utf8.FullRune(p) && !final {
		return 0, "", false
	}
	r, w := utf8.DecodeRune(p)
	text, ok = plainForm(r)
	return w, text, ok
}

// entity undoes &#52; and &#x34;.
func entity(p []byte, final bool) (width int, text string, ok bool) {
	r, base, i := rune(0), rune(10), 1
	for ; i < len(p) && i < maxEntity; i++ {
		c := p[i]
		switch {
		case i == 1 && c == '#':
			continue
		case i == 2 && lower(c) == 'x':
			base = 16
			continue
		case i >= 2 && isDigit(c), i >= 3 && base == 16 && isHex(c):
			r = r*base + rune(hexValue(c))
			continue
		case i >= 3 && c == ';' && (base == 10 || i > 3):
			if t, ok := plainForm(r); ok {
				return i + 1, t, true
			}
			if r < utf8.RuneSelf {
				return i + 1, string(r), true
			}
		}
		return 1, "", false
	}
	if i < maxEntity && !final {
		return 0, "", false
	}
	return 1, "", false
}

func jsonEscape(p []byte, final bool) (width int, text string, ok bool) {
	if len(p) < 2 {
		if final {
			return 1, "", false
		}
		return 0, "", false
	}
	switch p[1] {
	case 'n':
		return 2, "\n", true
	case 'r':
		return 2, "\r", true
	case 't':
		return 2, "\t", true
	case '/', '"', '\\':
		return 2, string(p[1:2]), true
	case 'u':
	default:
		return 1, "", false
	}
	r := rune(0)
	for k := 2; k < 6; k++ {
		if k >= len(p) {
			if final {
				return 1, "", false
			}
			return 0, "", false
		}
		if !isHex(p[k]) {
			return 1, "", false
		}
		r = r<<4 | rune(hexValue(p[k]))
	}
	if t, ok := plainForm(r); ok {
		return 6, t, true
	}
	if r < utf8.RuneSelf {
		return 6, string(r), true
	}
	return 6, "\x80", true // one byte that is no part of anything
}

func hexValue(c byte) byte {
	switch {
	case isDigit(c):
		return c - '0'
	case c >= 'a':
		return c - 'a' + 10
	}
	return c - 'A' + 10
}

// plainForm returns the ASCII that r stands for, "" for nothing at all.
func plainForm(r rune) (string, bool) {
	switch {
	case r >= 0xFF01 && r <= 0xFF5E: // full-width forms
		return string(r - 0xFF01 + '!'), true
	case r >= 0x0660 && r <= 0x0669: // Arabic-Indic digits
		return string(r - 0x0660 + '0'), true
	case r >= 0x06F0 && r <= 0x06F9:
		return string(r - 0x06F0 + '0'), true
	case r >= 0x2010 && r <= 0x2015, r == 0x2212:
		return "-", true
	case r == 0x00A0, r >= 0x2000 && r <= 0x200A, r == 0x202F:
		return " ", true
	case r >= 0x200B && r <= 0x200D, r == 0x2060, r == 0xFEFF, r == 0x00AD:
		return "", true
	}
	return "", false
}

// Stream scans a stream in its normal form and edits it as it is written.
// Findings count offsets in the normal form.
type Stream struct {
	sc   *Scanner
	norm normalizer
	// units of what is held, with offsets counted from the oldest held byte
	held    []unit
	out     []byte
	quote   func(tag string) string
	pending int // bytes of the normal form that are held
	// json says that the stream is JSON: a number that is edited stays one, or
	// becomes a string.
	json, inString bool
	block          int // bytes of the block at hand that were written
}

// NewStream returns a stream scanner that reports to sink. plus says that "+"
// means a space. quote, if not nil, makes a replacement fit the syntax of the
// stream. Free gives it back.
func (e *Engine) NewStream(sink Sink, plus bool, quote func(tag string) string) *Stream {
	s, ok := streams.Get().(*Stream)
	if !ok {
		s = &Stream{}
	}
	s.sc, s.quote, s.norm.plus, s.json = e.NewScanner(sink), quote, plus, false
	s.norm.carry, s.held, s.pending, s.inString, s.block = nil, s.held[:0], 0, false, 0
	return s
}

// JSON says, before anything is written, that the stream is JSON: of numbers
// outside strings, digits are masked with 9, and what replaces them is put in
// quotes.
func (s *Stream) JSON() { s.json = true }

var streams = sync.Pool{New: func() any { return &Stream{} }}

// Syntax changes what Stream was made with, for the next stream.
func (s *Stream) Syntax(plus bool, quote func(tag string) string) {
	s.Reset()
	s.norm.plus, s.quote = plus, quote
}

// Free gives s back. It must not be used afterwards, nor what Write returned.
func (s *Stream) Free() {
	s.sc.Free()
	s.sc, s.quote = nil, nil
	if cap(s.out) > maxKept || cap(s.norm.out) > maxKept || cap(s.held) > maxUnits {
		*s = Stream{}
	}
	clear(s.out[:cap(s.out)])
	clear(s.norm.out[:cap(s.norm.out)])
	streams.Put(s)
}

// Reset makes s ready for another stream.
func (s *Stream) Reset() {
	s.sc.Reset()
	s.norm.carry, s.held, s.pending, s.inString, s.block = nil, s.held[:0], 0, false, 0
}

// Blocked reports whether the sink asked to stop the stream.
func (s *Stream) Blocked() bool { return s.sc.Blocked() }

// Held returns how many bytes are held back, in the normal form.
func (s *Stream) Held() int { return s.sc.Held() + len(s.norm.carry) }

// Write is Scanner.Write for a Stream.
func (s *Stream) Write(p []byte, final bool) ([]byte, error) {
	s.out = s.out[:0]
	for {
		// Block by block, and blocks begin at fixed offsets of the stream: then
		// memory is bounded, and its bounds don't depend on the pieces.
		n := min(len(p), blockBytes-s.block)
		s.block = (s.block + n) % blockBytes
		s.sc.force = s.block == 0
		if err := s.write(p[:n], final && n == len(p)); err != nil || s.sc.Blocked() {
			return nil, err
		}
		if s.block == 0 && (len(s.held) > maxUnits || len(s.sc.edits)-s.sc.gone > maxEdits) {
			s.sc.err = ErrTooComplex
			return nil, ErrTooComplex
		}
		if p = p[n:]; len(p) == 0 {
			return s.out, nil
		}
	}
}

const (
	blockBytes = 768
	// maxUnits and maxEdits bound the characters that are written otherwise
	// and the edits among the bytes held back after a block: a few KiB in
	// which something is still possible.
	maxUnits = 384
	maxEdits = 128
)

// write scans p and appends what is released to s.out.
func (s *Stream) write(p []byte, final bool) error {
	plain := len(s.held) == 0 && s.quote == nil && s.norm.plain(p)
	if !plain {
		if n := len(s.held) + len(p)/2 + 1; n > cap(s.held) { // not the double
			s.held = append(make([]unit, 0, n), s.held...)
		}
		s.norm.out, s.norm.base, s.norm.units = s.norm.out[:0], int32(s.pending), s.held
		s.norm.write(p, final)
		s.held, p = s.norm.units, s.norm.out
	}
	r, err := s.sc.write(p, final)
	s.pending = s.sc.Held()
	switch {
	case err != nil || s.sc.Blocked():
		return err
	case plain && len(r.edits) == 0:
		s.quotes(r.clean)
		if n := len(s.out) + len(r.clean); n > cap(s.out) {
			s.out = append(fit(nil, n), s.out...)
		}
		s.out = append(s.out, r.clean...)
	default:
		s.raw(&r, final)
	}
	return nil
}

// Memory returns how many bytes s takes.
func (s *Stream) Memory() int {
	return int(unsafe.Sizeof(*s)) + s.sc.Memory() + cap(s.out) + cap(s.norm.out) + cap(s.norm.carry) + int(unsafe.Sizeof(unit{}))*cap(s.held)
}

// raw appends what was released to s.out, in its original form, edited.
func (s *Stream) raw(r *released, final bool) {
	s.room(r)
	next, replace := 0, r.replace
	for i := 0; i < len(r.clean) || final; {
		atUnit := next < len(s.held) && int(s.held[next].at) == i
		if atUnit && s.held[next].n == 0 { // vanished before the byte at i
			s.out = append(s.out, s.held[next].raw[:s.held[next].rawLen]...)
			next++
			continue
		}
		if i >= len(r.clean) {
			break
		}
		if len(replace) > 0 && int(replace[0].start) == i {
			s.out = append(s.out, s.tag(r.styles[replace[0].style].Tag)...)
			end := int(replace[0].end())
			replace = replace[1:]
			for ; next < len(s.held) && int(s.held[next].at) < end; next++ {
				s.quotes(r.clean[i:s.held[next].at])
				i = int(s.held[next].at) + int(s.held[next].n) // a quote that was escaped is none
			}
			s.quotes(r.clean[min(i, end):end])
			i = end
			continue
		}
		if atUnit {
			s.unit(&s.held[next], r.clean[i], r.masked[i])
			next++
			i++
			continue
		}
		end := len(r.clean)
		if next < len(s.held) {
			end = min(end, int(s.held[next].at))
		}
		if len(replace) > 0 {
			end = min(end, int(replace[0].start))
		}
		s.plain(r.clean[i:end], r.masked[i:end])
		i = end
	}
	s.held = append(s.held[:0], s.held[next:]...)
	for i := range s.held {
		s.held[i].at -= int32(len(r.clean))
	}
}

// room makes s.out large enough for what raw will append: not twice that.
func (s *Stream) room(r *released) {
	n := len(s.out) + len(r.clean)
	for i := range s.held {
		if int(s.held[i].at) <= len(r.clean) {
			n += int(s.held[i].rawLen)
		}
	}
	for i := range r.replace {
		n += len(r.tag(i))
	}
	if n > cap(s.out) {
		s.out = append(fit(nil, n), s.out...)
	}
}

// quotes notes the quotes of JSON in b.
func (s *Stream) quotes(b []byte) {
	if s.json && bytes.Count(b, []byte{'"'})%2 == 1 {
		s.inString = !s.inString
	}
}

// plain writes what was written without escapes.
func (s *Stream) plain(clean, masked []byte) {
	if !s.json || bytes.Equal(clean, masked) {
		s.quotes(clean)
		s.out = append(s.out, masked...)
		return
	}
	for i, c := range clean {
		m := masked[i]
		switch {
		case c == '"':
			s.inString = !s.inString
		case m != c && isDigit(c) && !s.inString:
			m = '9'
		}
		s.out = append(s.out, m)
	}
}

// unit writes u, masked over its whole width if its byte was.
func (s *Stream) unit(u *unit, clean, masked byte) {
	if clean == masked {
		s.out = append(s.out, u.raw[:u.rawLen]...)
		return
	}
	for range u.rawLen {
		s.out = append(s.out, masked)
	}
}

func (s *Stream) tag(t string) string {
	switch {
	case s.quote != nil:
		return s.quote(t)
	case s.json && !s.inString:
		return `"` + t + `"`
	}
	return t
}
