package dlp

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"slices"
	"unicode"
	"unicode/utf8"
)

// Bounds of an operator's regular expressions.
const (
	maxRegexSource   = 2 << 10
	maxRegexInsts    = 2000
	defaultRegexSpan = 256
	maxRegexSpan     = 4 << 10
	// maxPrefixes and maxPrefix bound the sequences by which the automaton
	// finds where a match may begin.
	maxPrefixes = 64
	maxPrefix   = 4
)

// regexRec matches an operator's regular expression, leftmost-longest, by
// simulating its automaton from where a match may begin: linear in the length
// of the match, without backtracking.
type regexRec struct {
	typ        int
	prog       *syntax.Prog
	prefixes   [][]set
	max        int
	likelihood Likelihood
	context    []string
}

func newRegex(r Regex, typ int) (*regexRec, error) {
	if r.Type == "" {
		return nil, errors.New("a type is required")
	}
	if len(r.Pattern) > maxRegexSource {
		return nil, fmt.Errorf("pattern of %d bytes exceeds the limit of %d", len(r.Pattern), maxRegexSource)
	}
	re, err := syntax.Parse(r.Pattern, syntax.Perl)
	if err != nil {
		return nil, err
	}
	re = re.Simplify()
	prog, err := syntax.Compile(re)
	if err != nil {
		return nil, err
	}
	if len(prog.Inst) > maxRegexInsts {
		return nil, fmt.Errorf("pattern compiles to %d instructions: the limit is %d", len(prog.Inst), maxRegexInsts)
	}
	rec := &regexRec{typ: typ, prog: prog, max: r.MaxLength, likelihood: r.Likelihood, context: r.Context}
	switch {
	case rec.max == 0:
		rec.max = defaultRegexSpan
	case rec.max < 0 || rec.max > maxRegexSpan:
		return nil, fmt.Errorf("max length %d is outside 1 to %d", rec.max, maxRegexSpan)
	}
	if rec.likelihood == 0 {
		rec.likelihood = Likely
	}
	var first set
	for _, p := range prefixes(re) {
		if len(p.seq) == 0 {
			return nil, errors.New("pattern may match nothing: it needs something that every match begins with")
		}
		first.or(p.seq[0])
		rec.prefixes = append(rec.prefixes, p.seq)
	}
	if first.len() > 160 {
		return nil, errors.New("pattern may begin with almost any character: begin it with what distinguishes it")
	}
	return rec, nil
}

func (r *regexRec) patterns() [][]set { return r.prefixes }

func (r *regexRec) recognize(v *view, at, _ int, emit *emitter) {
	end := r.longest(v, at)
	if end <= at {
		return
	}
	l := r.likelihood
	if v.near(at, r.context) {
		l++
	}
	emit.add(r.typ, at, end, l)
}

// longest returns the end of the longest match that begins at i, 0 if there is
// none.
func (r *regexRec) longest(v *view, at int) int {
	m := simulation{prog: r.prog}
	before, _ := v.runeBefore(at)
	end, i := 0, at
	m.seed(uint32(r.prog.Start))
	for {
		var c rune
		width := 0
		if i-at < r.max {
			c, width = v.runeAt(i)
		} else {
			// The next character matters to \b and $ only.
			c, _ = v.runeAt(i)
		}
		m.follow(syntax.EmptyOpContext(before, c))
		v.work += len(m.now)
		if m.matched {
			end = i
		}
		if c < 0 || width == 0 || v.short || !m.step(c) {
			return end
		}
		before = c
		i += width
	}
}

// runeAt decodes the character at i, -1 at the end of the stream.
func (v *view) runeAt(i int) (rune, int) {
	if !v.has(i) {
		return -1, 0
	}
	if c := v.buf[i]; c < utf8.RuneSelf {
		return rune(c), 1
	}
	for k := 1; k < utf8.UTFMax && !utf8.FullRune(v.buf[i:min(i+k, len(v.buf))]); k++ {
		if !v.has(i + k) {
			break
		}
	}
	return utf8.DecodeRune(v.buf[i:])
}

// runeBefore decodes the character that ends before i, -1 at the beginning.
func (v *view) runeBefore(i int) (rune, int) {
	if i <= 0 {
		return -1, 0
	}
	return utf8.DecodeLastRune(v.buf[max(0, i-utf8.UTFMax):i])
}

// simulation runs a syntax.Prog as a set of threads.
type simulation struct {
	prog    *syntax.Prog
	seeds   []uint32 // instructions to follow
	now     []uint32 // rune instructions reached
	matched bool
	mark    [maxRegexInsts/64 + 1]uint64
	space   [2][48]uint32 // what seeds and now begin with
}

func (m *simulation) seed(pc uint32) {
	m.seeds, m.now = append(m.space[0][:0], pc), m.space[1][:0]
}

// follow expands m.seeds through empty instructions into m.now.
func (m *simulation) follow(cond syntax.EmptyOp) {
	m.now, m.matched = m.now[:0], false
	clear(m.mark[:len(m.prog.Inst)/64+1])
	stack := m.seeds
	for len(stack) > 0 {
		pc := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if w, bit := &m.mark[pc/64], uint64(1)<<(pc%64); *w&bit != 0 {
			continue
		} else {
			*w |= bit
		}
		in := &m.prog.Inst[pc]
		switch in.Op {
		case syntax.InstAlt, syntax.InstAltMatch:
			stack = append(stack, in.Out, in.Arg)
		case syntax.InstCapture, syntax.InstNop:
			stack = append(stack, in.Out)
		case syntax.InstEmptyWidth:
			if syntax.EmptyOp(in.Arg)&^cond == 0 {
				stack = append(stack, in.Out)
			}
		case syntax.InstMatch:
			m.matched = true
		case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
			m.now = append(m.now, pc)
		case syntax.InstFail:
		}
	}
	m.seeds = stack[:0]
}

// step consumes c and reports whether any thread survives.
func (m *simulation) step(c rune) bool {
	for _, pc := range m.now {
		if in := &m.prog.Inst[pc]; in.MatchRune(c) {
			m.seeds = append(m.seeds, in.Out)
		}
	}
	return len(m.seeds) > 0
}

// prefix is a beginning of matches, as byte sets. open says that more bytes
// follow which are not described.
type prefix struct {
	seq  []set
	open bool
}

// prefixes returns sequences of which every match of re begins with one.
func prefixes(re *syntax.Regexp) []prefix {
	switch re.Op {
	case syntax.OpLiteral:
		return literalPrefix(re)
	case syntax.OpCharClass:
		return classPrefixes(re.Rune)
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return classPrefixes([]rune{0, utf8.MaxRune})
	case syntax.OpCapture:
		return prefixes(re.Sub[0])
	case syntax.OpConcat:
		out := []prefix{{}}
		for _, sub := range re.Sub {
			out = cross(out, prefixes(sub))
		}
		return out
	case syntax.OpAlternate:
		var out []prefix
		for _, sub := range re.Sub {
			out = append(out, prefixes(sub)...)
		}
		return limit(out)
	case syntax.OpStar:
		return limit(append([]prefix{{}}, opened(prefixes(re.Sub[0]))...))
	case syntax.OpPlus:
		return opened(prefixes(re.Sub[0]))
	case syntax.OpQuest:
		return limit(append([]prefix{{}}, prefixes(re.Sub[0])...))
	case syntax.OpNoMatch:
		return nil
	case syntax.OpRepeat: // Simplify has removed it
		return []prefix{{open: true}}
	default: // assertions
		return []prefix{{}}
	}
}

func opened(ps []prefix) []prefix {
	for i := range ps {
		ps[i].open = true
	}
	return ps
}

// cross appends b's sequences to a's.
func cross(a, b []prefix) []prefix {
	var out []prefix
	for _, x := range a {
		if x.open || len(x.seq) >= maxPrefix {
			x.open = true
			out = append(out, x)
			continue
		}
		for _, y := range b {
			seq := append(slices.Clone(x.seq), y.seq...)
			open := y.open
			if len(seq) > maxPrefix {
				seq, open = seq[:maxPrefix], true
			}
			out = append(out, prefix{seq, open})
		}
	}
	return limit(out)
}

// limit shortens sequences until there are few, and drops repetitions.
func limit(ps []prefix) []prefix {
	for n := maxPrefix; ; n-- {
		var out []prefix
		for _, p := range ps {
			if len(p.seq) > n {
				p.seq, p.open = p.seq[:n], true
			}
			if !slices.ContainsFunc(out, func(o prefix) bool { return o.open == p.open && slices.Equal(o.seq, p.seq) }) {
				out = append(out, p)
			}
		}
		if len(out) <= maxPrefixes {
			return out
		}
		if n == 1 { // one set for all
			var all set
			for _, p := range out {
				if len(p.seq) == 0 {
					return []prefix{{open: true}}
				}
				all.or(p.seq[0])
			}
			return []prefix{{seq: []set{all}, open: true}}
		}
	}
}

func literalPrefix(re *syntax.Regexp) []prefix {
	out := []prefix{{}}
	for _, c := range re.Rune {
		next := []prefix{{seq: exactly(string(c))}}
		if re.Flags&syntax.FoldCase != 0 {
			next = foldPrefixes(c)
		}
		out = cross(out, next)
	}
	return out
}

// foldPrefixes is c in any case, also beyond ASCII: K matches the Kelvin sign.
func foldPrefixes(c rune) []prefix {
	rs := []rune{c, c}
	for f := unicode.SimpleFold(c); f != c; f = unicode.SimpleFold(f) {
		rs = append(rs, f, f)
	}
	return classPrefixes(rs)
}

// classPrefixes is one character of the ranges rs. Beyond ASCII only the first
// byte is described.
func classPrefixes(rs []rune) []prefix {
	var ascii, lead set
	for i := 0; i+1 < len(rs); i += 2 {
		lo, hi := rs[i], rs[i+1]
		for c := lo; c <= min(hi, utf8.RuneSelf-1); c++ {
			ascii.add(byte(c))
		}
		if hi >= utf8.RuneSelf {
			lead.addRange(firstByte(max(lo, utf8.RuneSelf)), firstByte(hi))
			if hi >= utf8.RuneError && lo <= utf8.RuneError {
				lead.addRange(0x80, 0xff) // bytes that are no UTF-8 decode to U+FFFD
			}
		}
	}
	var out []prefix
	if ascii.len() > 0 {
		out = append(out, prefix{seq: []set{ascii}})
	}
	if lead.len() > 0 {
		out = append(out, prefix{seq: []set{lead}, open: true})
	}
	return out
}

func firstByte(c rune) byte {
	var b [utf8.UTFMax]byte
	utf8.EncodeRune(b[:], c)
	return b[0]
}
