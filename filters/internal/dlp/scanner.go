package dlp

import (
	"math"
	"slices"
	"sync"
	"unsafe"
)

// Action is what a sink wants done with the bytes of a finding.
type Action uint8

// Actions in ascending order: of overlapping findings the strongest applies.
const (
	Keep    Action = iota
	Mask           // overwrite byte by byte
	Replace        // put Edit.Tag in the place of the match
	Block          // stop the stream
)

// Edit is the sink's answer to a finding.
type Edit struct {
	Action Action
	// KeepLast is how many bytes at the end of the match Mask leaves as they
	// are. Bytes that are neither letters nor digits are left, too, unless
	// All is set; backslashes are masked, so that an escape sequence of JSON
	// doesn't become an invalid one.
	KeepLast int
	// All masks punctuation as well.
	All bool
	// With is the mask byte; 0 is '*'.
	With byte
	// Tag is what Replace writes.
	Tag string
}

// Sink receives findings in an order that does not depend on how the stream
// was cut: by the byte that revealed them. text is valid during the call.
type Sink func(f Finding, text []byte) Edit

// view is what a recognizer sees of the stream: the bytes that are buffered.
type view struct {
	buf   []byte
	final bool // nothing follows buf
	short bool // something beyond buf was looked at and may follow
	from  int  // earliest possible start of the match
	work  int  // steps taken by regular expressions

	number  number   // of numberRec: not a local, it would be allocated
	scratch [24]byte // of maskRec, likewise
}

// at returns the byte at i, 0 before the beginning and after the end of the
// stream.
func (v *view) at(i int) byte {
	if uint(i) < uint(len(v.buf)) {
		return v.buf[i]
	}
	if i > 0 && !v.final {
		v.short = true
	}
	return 0
}

// has reports whether byte i exists, like at.
func (v *view) has(i int) bool {
	if i < len(v.buf) {
		return true
	}
	if !v.final {
		v.short = true
	}
	return false
}

// match is a finding in buffer coordinates.
type match struct {
	typ        int
	start, end int
	likelihood Likelihood
}

// emitter collects what one recognizer reports.
type emitter struct{ found []match }

func (e *emitter) add(typ, start, end int, l Likelihood) {
	e.found = append(e.found, match{typ, start, end, min(max(l, VeryUnlikely), VeryLikely)})
}

type candidate struct {
	ref  patternRef
	at   int // buffer index of the pattern's first byte
	from int // earliest start of the match
	need int // not worth trying before the buffer is that long
}

// editSpan is the place of an edit and which of Scanner.styles it is: as small
// as can be, for there may be many.
type editSpan struct {
	start int32
	size  uint16
	style uint16
}

func (e editSpan) end() int32 { return e.start + int32(e.size) }

// Scanner scans one stream. It is used by one goroutine at a time.
type Scanner struct {
	e    *Engine
	sink Sink

	buf     []byte // history, then what is not released yet
	base    int64  // stream offset of buf[0]
	release int    // buf[:release] has been given out
	scanned int    // buf[:scanned] went through the automaton
	state   uint32

	pending []candidate
	lastEnd []int64 // by type: end of the last finding, as stream offset
	edits   []editSpan
	styles  []Edit // what edits has of them
	emit    emitter
	view    view
	out     []byte // what Write returned
	masked  []byte // what was released last, masked
	gone    int    // of edits: those of what was released last
	force   bool   // try again whatever it costs
	work    int64
	err     error
	blocked bool
}

var scanners = sync.Pool{New: func() any { return &Scanner{} }}

// NewScanner returns a scanner that reports to sink. Free gives it back.
func (e *Engine) NewScanner(sink Sink) *Scanner {
	s, ok := scanners.Get().(*Scanner)
	if !ok {
		s = &Scanner{}
	}
	s.e, s.sink = e, sink
	s.lastEnd = slices.Grow(s.lastEnd[:0], len(e.types))[:len(e.types)]
	s.Reset()
	return s
}

// Reset makes s ready for another stream.
func (s *Scanner) Reset() {
	s.buf, s.out, s.pending, s.edits, s.styles = s.buf[:0], s.out[:0], s.pending[:0], s.edits[:0], s.styles[:0]
	s.base, s.release, s.scanned, s.work, s.gone = 0, 0, 0, 0, 0
	s.state = s.e.auto.start
	s.err, s.blocked = nil, false
	clear(s.lastEnd)
}

// maxKept bounds the buffers that a freed scanner keeps.
const maxKept = 32 << 10

// Free gives s back. It must not be used afterwards, nor what Write returned.
func (s *Scanner) Free() {
	if cap(s.buf) > maxKept || cap(s.out) > maxKept {
		s.buf, s.out, s.masked = nil, nil, nil
	}
	clear(s.buf[:cap(s.buf)]) // it held somebody's data
	clear(s.out[:cap(s.out)])
	clear(s.masked[:cap(s.masked)])
	clear(s.styles[:cap(s.styles)])
	s.e, s.sink, s.view = nil, nil, view{}
	scanners.Put(s)
}

// Blocked reports whether the sink asked to stop the stream.
func (s *Scanner) Blocked() bool { return s.blocked }

// Memory returns how many bytes s takes.
func (s *Scanner) Memory() int {
	const edit, pend = int(unsafe.Sizeof(editSpan{})), int(unsafe.Sizeof(candidate{}))
	return int(unsafe.Sizeof(*s)) + int(unsafe.Sizeof(Edit{}))*cap(s.styles) + cap(s.buf) + cap(s.out) + cap(s.masked) + edit*cap(s.edits) + pend*cap(s.pending) +
		int(unsafe.Sizeof(match{}))*cap(s.emit.found) + 8*cap(s.lastEnd)
}

// Held returns how many bytes are held back.
func (s *Scanner) Held() int { return len(s.buf) - s.release }

// Write scans p, the next piece of the stream, and returns the bytes that may
// go on, edited; they are valid until the next call. final says that the
// stream ends with p. After a blocking finding nothing is returned any more.
// The error, ErrTooComplex, is final.
func (s *Scanner) Write(p []byte, final bool) ([]byte, error) {
	r, err := s.write(p, final)
	if err != nil || len(r.edits) == 0 {
		return r.clean, err
	}
	if len(r.replace) == 0 {
		return r.masked, nil
	}
	n := len(r.masked)
	for i := range r.replace {
		n += len(r.tag(i))
	}
	s.out = fit(s.out, n)
	done := int32(0)
	for i := range r.replace {
		e := r.replace[i]
		s.out = append(append(s.out, r.masked[done:e.start]...), r.tag(i)...)
		done = e.end()
	}
	s.out = append(s.out, r.masked[done:]...)
	return s.out, nil
}

// fit returns b, emptied, with room for n bytes and little more.
func fit(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, 0, (n+1023)&^1023)
	}
	return b[:0]
}

// released is what one write lets go: the bytes as they came, the same with
// masks applied, and what is to be replaced, in offsets of both.
type released struct {
	clean, masked  []byte
	edits, replace []editSpan
	styles         []Edit
}

// tag returns what replacement i writes.
func (r *released) tag(i int) string { return r.styles[r.replace[i].style].Tag }

func (s *Scanner) write(p []byte, final bool) (released, error) {
	if s.err != nil || s.blocked {
		return released{}, s.err
	}
	s.compact()
	if n := len(s.buf) + len(p); n > cap(s.buf) { // not the double
		s.buf = append(fit(nil, n), s.buf...)
	}
	s.buf = append(s.buf, p...)
	s.advance(final)
	if s.err != nil || s.blocked {
		return released{}, s.err
	}
	return s.give(s.horizon(final)), nil
}

// compact drops what neither recognizers nor the reader need any more.
func (s *Scanner) compact() {
	s.edits = slices.Delete(s.edits, 0, s.gone)
	s.gone = 0
	if len(s.edits) == 0 {
		clear(s.styles)
		s.styles = s.styles[:0]
	}
	drop := s.release - history
	if drop <= 0 {
		return
	}
	n := copy(s.buf, s.buf[drop:])
	s.buf = s.buf[:n]
	s.base += int64(drop)
	s.release -= drop
	s.scanned -= drop
	for i := range s.pending {
		c := &s.pending[i]
		c.at, c.from, c.need = c.at-drop, c.from-drop, c.need-drop
	}
	for i := range s.edits {
		s.edits[i].start -= int32(drop)
	}
}

// advance runs the automaton over new bytes and tries the candidates that it
// finds, in order. A candidate that can't be decided yet stops everything
// behind it: those bytes are held anyway, and findings come in one order
// however the stream is cut.
func (s *Scanner) advance(final bool) {
	a := s.e.auto
	for s.decide(final) && s.scanned < len(s.buf) {
		st, n := a.run(s.state, s.buf[s.scanned:])
		s.state = st
		s.scanned += n
		if st < a.hits {
			return
		}
		for _, p := range a.ended(st) {
			ref := s.e.patterns[p]
			at := s.scanned - int(ref.length)
			from := at
			if ref.tail != nil {
				from = ref.tail.back(s.buf, at)
			}
			s.pending = append(s.pending, candidate{ref: ref, at: at, from: from})
		}
	}
}

// decide tries the pending candidates and reports whether none is left.
func (s *Scanner) decide(final bool) bool {
	for i := range s.pending {
		c := &s.pending[i]
		v := &s.view // not a local: it would be allocated for each candidate
		v.buf, v.final, v.from, v.work, v.short = s.buf, final, c.at, 0, !final && !s.force && c.need > len(s.buf)
		if !v.short {
			s.emit.found = s.emit.found[:0]
			s.e.recs[c.ref.rec].recognize(v, c.at, int(c.ref.id), &s.emit)
			c.from = min(v.from, c.at)
			// Trying again for every byte would cost the square of the match.
			c.need = len(s.buf) + max(1, (len(s.buf)-c.at)/8)
		}
		if v.short {
			s.pending = slices.Delete(s.pending, 0, i)
			return false
		}
		if s.work += int64(v.work); s.work > 1<<20+64*(s.base+int64(c.at)) {
			s.err = ErrTooComplex
		}
		s.report()
		if s.blocked || s.err != nil {
			return false
		}
	}
	s.pending = s.pending[:0]
	return true
}

// report hands the matches of one candidate to the sink. Matches of one type
// don't overlap: the first wins.
func (s *Scanner) report() {
	for _, m := range s.emit.found {
		m.start = max(m.start, s.release) // what is gone can't be edited
		start, end := s.base+int64(m.start), s.base+int64(m.end)
		if start < s.lastEnd[m.typ] || s.blocked {
			continue
		}
		s.lastEnd[m.typ] = end
		ed := s.sink(Finding{Type: m.typ, Start: start, End: end, Likelihood: m.likelihood}, s.buf[m.start:m.end])
		switch ed.Action {
		case Block:
			s.blocked = true
		case Mask, Replace:
			s.edit(m, ed)
		case Keep:
		}
	}
}

// edit notes an edit of m.
func (s *Scanner) edit(m match, e Edit) {
	style := slices.Index(s.styles, e)
	if style < 0 {
		style = len(s.styles)
		s.styles = append(s.styles, e)
	}
	if style > math.MaxUint16 || m.end-m.start > math.MaxUint16 {
		s.err = ErrTooComplex // beyond every bound
		return
	}
	if len(s.edits) == cap(s.edits) { // not the double
		s.edits = append(make([]editSpan, 0, len(s.edits)+64), s.edits...)
	}
	s.edits = append(s.edits, editSpan{int32(m.start), uint16(m.end - m.start), uint16(style)})
}

// back returns where a match whose tail ends at i may begin.
func (t *tail) back(b []byte, i int) int {
	for end := i; i > 0 && end-i < t.max && t.class.has(b[i-1]); {
		i--
	}
	return i
}

// horizon returns the end of what can be released: no match that is still
// possible begins before it.
func (s *Scanner) horizon(final bool) int {
	if final {
		return len(s.buf)
	}
	partial := s.scanned - s.e.auto.held(s.state)
	h := partial
	for _, t := range s.e.tails {
		end := s.scanned
		if t.before {
			end = partial
		}
		h = min(h, t.back(s.buf, end))
	}
	for i := range s.pending {
		h = min(h, s.pending[i].from)
	}
	return max(h, s.release)
}

// give releases the bytes up to h with the edits applied. An edit is applied
// whole: if h cuts it, everything from its start is held.
func (s *Scanner) give(h int) released {
	if len(s.edits) == 0 {
		p := s.buf[s.release:h]
		s.release = h
		return released{clean: p, masked: p}
	}
	slices.SortStableFunc(s.edits, func(a, b editSpan) int {
		if a.start != b.start {
			return int(a.start - b.start)
		}
		return int(b.size) - int(a.size)
	})
	for again := true; again; {
		again = false
		for i := range s.edits {
			if e := &s.edits[i]; int(e.start) < h && int(e.end()) > h {
				h, again = int(e.start), true
			}
		}
	}
	h = max(h, s.release)
	clean := s.buf[s.release:h]
	for s.gone < len(s.edits) && int(s.edits[s.gone].start) < h {
		s.edits[s.gone].start -= int32(s.release)
		s.gone++
	}
	s.release = h
	if s.gone == 0 {
		return released{clean: clean, masked: clean}
	}
	s.masked = append(fit(s.masked, len(clean)), clean...)
	return released{clean: clean, masked: s.masked, edits: s.edits[:s.gone], replace: s.apply(), styles: s.styles}
}

// apply masks s.masked and returns the replacements, which take the place of
// the edits. Overlapping edits with a Replace among them become one
// replacement.
func (s *Scanner) apply() []editSpan {
	gone, replaced := s.edits[:s.gone], 0
	for i := 0; i < len(gone); {
		group := gone[i]
		replace, j, end := -1, i, group.end()
		for ; j < len(gone) && gone[j].start < end; j++ {
			end = max(end, gone[j].end())
			if s.styles[gone[j].style].Action == Replace && replace < 0 {
				replace = j
			}
		}
		if replace >= 0 {
			gone[replaced] = editSpan{group.start, uint16(end - group.start), gone[replace].style}
			replaced++
		} else {
			for _, e := range gone[i:j] {
				MaskBytes(s.masked[e.start:e.end()], s.styles[e.style])
			}
		}
		i = j
	}
	return gone[:replaced]
}

// MaskBytes overwrites b, the bytes of one match, as a Mask edit does.
func MaskBytes(b []byte, e Edit) {
	with := e.With
	if with == 0 {
		with = '*'
	}
	keep := min(max(e.KeepLast, 0), len(b))
	if keep == len(b) { // keeping everything would be no mask
		keep = 0
	}
	for i := range len(b) - keep {
		if e.All || isAlnum(b[i]) || b[i] >= 0x80 || b[i] == '\\' {
			b[i] = with
		}
	}
}
