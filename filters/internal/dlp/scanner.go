package dlp

import (
	"slices"
	"sync"
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

type editSpan struct {
	start, end int
	Edit
}

// Scanner scans one stream. It is used by one goroutine at a time.
type Scanner struct {
	e    *Engine
	sink Sink

	buf     []byte // history, then what is not released yet
	base    int64  // stream offset of buf[0]
	release int    // buf[:release] has been given out
	scanned int    // buf[:scanned] went through the automaton
	state   uint32

	pending  []candidate
	lastEnd  []int64 // by type: end of the last finding, as stream offset
	edits    []editSpan
	emit     emitter
	view     view
	out      []byte // what Write returned
	masked   []byte // what was released last, masked
	gone     []editSpan
	replaced []editSpan
	work     int64
	err      error
	blocked  bool
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
	s.buf, s.out, s.pending, s.edits = s.buf[:0], s.out[:0], s.pending[:0], s.edits[:0]
	s.base, s.release, s.scanned, s.work = 0, 0, 0, 0
	s.state = s.e.auto.start
	s.err, s.blocked = nil, false
	clear(s.lastEnd)
}

// maxKept bounds the buffers that a freed scanner keeps.
const maxKept = 64 << 10

// Free gives s back. It must not be used afterwards, nor what Write returned.
func (s *Scanner) Free() {
	if cap(s.buf) > maxKept || cap(s.out) > maxKept {
		s.buf, s.out, s.masked = nil, nil, nil
	}
	clear(s.buf[:cap(s.buf)]) // it held somebody's data
	clear(s.out[:cap(s.out)])
	clear(s.masked[:cap(s.masked)])
	s.e, s.sink, s.view = nil, nil, view{}
	scanners.Put(s)
}

// Blocked reports whether the sink asked to stop the stream.
func (s *Scanner) Blocked() bool { return s.blocked }

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
	s.out = append(s.out[:0], r.masked...)
	shift := 0
	for _, e := range r.replace {
		s.out = slices.Replace(s.out, e.start+shift, e.end+shift, []byte(e.Tag)...)
		shift += len(e.Tag) - (e.end - e.start)
	}
	return s.out, nil
}

// released is what one write lets go: the bytes as they came, the same with
// masks applied, and what is to be replaced, in offsets of both.
type released struct {
	clean, masked  []byte
	edits, replace []editSpan
}

func (s *Scanner) write(p []byte, final bool) (released, error) {
	if s.err != nil || s.blocked {
		return released{}, s.err
	}
	s.compact()
	s.buf = append(s.buf, p...)
	s.advance(final)
	if s.err != nil || s.blocked {
		return released{}, s.err
	}
	return s.give(s.horizon(final)), nil
}

// compact drops what neither recognizers nor the reader need any more.
func (s *Scanner) compact() {
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
		s.edits[i].start -= drop
		s.edits[i].end -= drop
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
		v.buf, v.final, v.from, v.work, v.short = s.buf, final, c.at, 0, !final && c.need > len(s.buf)
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
			s.edits = append(s.edits, editSpan{m.start, m.end, ed})
		case Keep:
		}
	}
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
	s.gone = s.gone[:0]
	if len(s.edits) == 0 {
		p := s.buf[s.release:h]
		s.release = h
		return released{clean: p, masked: p}
	}
	slices.SortStableFunc(s.edits, func(a, b editSpan) int {
		if a.start != b.start {
			return a.start - b.start
		}
		return b.end - a.end
	})
	for again := true; again; {
		again = false
		for i := range s.edits {
			if e := &s.edits[i]; e.start < h && e.end > h {
				h, again = e.start, true
			}
		}
	}
	h = max(h, s.release)
	clean := s.buf[s.release:h]
	done := 0
	for done < len(s.edits) && s.edits[done].start < h {
		e := s.edits[done]
		e.start, e.end = e.start-s.release, e.end-s.release
		s.gone = append(s.gone, e)
		done++
	}
	s.edits = slices.Delete(s.edits, 0, done)
	s.release = h
	if done == 0 {
		return released{clean: clean, masked: clean}
	}
	s.masked = append(s.masked[:0], clean...)
	return released{clean: clean, masked: s.masked, edits: s.gone, replace: s.apply()}
}

// apply masks s.masked and returns the replacements. Overlapping edits with a
// Replace among them become one replacement.
func (s *Scanner) apply() []editSpan {
	s.replaced = s.replaced[:0]
	for i := 0; i < len(s.gone); {
		group := s.gone[i]
		replace, j := -1, i
		for ; j < len(s.gone) && s.gone[j].start < group.end; j++ {
			group.end = max(group.end, s.gone[j].end)
			if s.gone[j].Action == Replace && replace < 0 {
				replace = j
			}
		}
		if replace >= 0 {
			group.Edit = s.gone[replace].Edit
			s.replaced = append(s.replaced, group)
		} else {
			for _, e := range s.gone[i:j] {
				MaskBytes(s.masked[e.start:e.end], e.Edit)
			}
		}
		i = j
	}
	return s.replaced
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
