package dlp

import (
	"encoding/binary"
	"errors"
	"slices"
)

// set is a set of byte values.
type set [4]uint64

func (s *set) add(c byte)      { s[c>>6] |= 1 << (c & 63) }
func (s *set) has(c byte) bool { return s[c>>6]&(1<<(c&63)) != 0 }

func (s *set) addRange(lo, hi byte) {
	for c := int(lo); c <= int(hi); c++ {
		s.add(byte(c))
	}
}

func (s *set) or(o set) {
	for i := range s {
		s[i] |= o[i]
	}
}

func (s *set) len() int {
	n := 0
	for c := range 256 {
		if s.has(byte(c)) {
			n++
		}
	}
	return n
}

// classOf makes a set of a bracket-like description: "0-9a-f_".
func classOf(desc string) set {
	var s set
	for i := 0; i < len(desc); i++ {
		if i+2 < len(desc) && desc[i+1] == '-' {
			s.addRange(desc[i], desc[i+2])
			i += 2
			continue
		}
		s.add(desc[i])
	}
	return s
}

// exactly is the sequence of the bytes of s.
func exactly(s string) []set {
	out := make([]set, len(s))
	for i := range len(s) {
		out[i].add(s[i])
	}
	return out
}

// folded is the sequence of the bytes of s in either ASCII case.
func folded(s string) []set {
	out := exactly(s)
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z':
			out[i].add(c - 'a' + 'A')
		case 'A' <= c && c <= 'Z':
			out[i].add(c - 'A' + 'a')
		}
	}
	return out
}

// maxStates bounds the automaton.
const maxStates = 1 << 16

// automaton is an Aho-Corasick automaton over sequences of byte sets, as a
// complete transition table. A state whose number is at least hits ends one or
// more patterns.
type automaton struct {
	class  [256]uint8
	stride uint32
	hits   uint32   // first state with output, times stride
	start  uint32   // after a line break
	next   []uint32 // state*stride+class → state*stride
	depth  []uint8  // by state: length of the longest pattern prefix that ends here
	out    [][]uint32
}

// pos is a partial match: the first i sets of pattern p matched.
type pos struct {
	p uint32
	i uint8
}

// leadSize tells the sets that stand for a boundary: a pattern whose first set
// has more bytes than that begins behind it.
const leadSize = 180

// behind returns 1 if p begins with a boundary, else 0.
func behind(p []set) int { return btoi(p[0].len() > leadSize) }

// newAutomaton builds the table by subset construction: byte sets may overlap,
// so that failure links alone would not do.
func newAutomaton(pats [][]set) (*automaton, error) {
	a := &automaton{}
	reps := a.classes(pats)
	a.stride = uint32(len(reps))
	b := subsets{pats: pats, first: make([][]pos, len(reps)), bucket: make([][]pos, len(reps)), ids: map[string]uint32{}}
	b.prepare(reps)
	if _, err := b.id(); err != nil { // the start: nothing matched
		return nil, err
	}
	for s := 0; s < len(b.states); s++ { //nolint:intrange // it grows on the way
		for _, q := range b.states[s].active {
			for _, c := range b.at[q.p][q.i] {
				b.bucket[c] = append(b.bucket[c], pos{q.p, q.i + 1})
			}
		}
		for c := range reps {
			if s > 0 && len(b.bucket[c]) == 0 { // as from the start
				b.next = append(b.next, b.next[c])
				continue
			}
			b.step(c)
			b.bucket[c] = b.bucket[c][:0]
			id, err := b.id()
			if err != nil {
				return nil, err
			}
			b.next = append(b.next, id)
		}
	}
	a.table(&b)
	return a, nil
}

// subset is a state: the partial matches, and the patterns that end.
type subset struct {
	active []pos
	out    []uint32
}

// subsets is a construction under way.
type subsets struct {
	pats   [][]set
	at     [][][]uint8 // by pattern and index: the classes of the set there
	first  [][]pos     // by class: the patterns that begin with it
	bucket [][]pos     // by class: the partial matches of a state that go on with it
	states []subset
	ids    map[string]uint32
	next   []uint32
	now    subset // the state that is being made
	key    []byte
}

// prepare finds the classes of every set.
func (b *subsets) prepare(reps []byte) {
	classes := map[set][]uint8{}
	for p := range b.pats {
		b.at = append(b.at, make([][]uint8, len(b.pats[p])))
		for i, s := range b.pats[p] {
			if classes[s] == nil {
				for c, r := range reps {
					if s.has(r) {
						classes[s] = append(classes[s], uint8(c))
					}
				}
			}
			b.at[p][i] = classes[s]
		}
		for _, c := range b.at[p][0] {
			b.first[c] = append(b.first[c], pos{uint32(p), 1})
		}
	}
}

// step makes b.now the state that class c leads to. Partial matches are kept in
// order, by pattern and length.
func (b *subsets) step(c int) {
	b.now.active, b.now.out = b.now.active[:0], b.now.out[:0]
	add := func(q pos) {
		if int(q.i) == len(b.pats[q.p]) {
			b.now.out = append(b.now.out, q.p)
		} else {
			b.now.active = append(b.now.active, q)
		}
	}
	begin := b.first[c]
	for _, q := range b.bucket[c] {
		for len(begin) > 0 && begin[0].p <= q.p {
			add(begin[0])
			begin = begin[1:]
		}
		add(q)
	}
	for _, q := range begin {
		add(q)
	}
}

// id returns the number of b.now, which it keeps if it is new.
func (b *subsets) id() (uint32, error) {
	b.key = b.key[:0]
	for _, q := range b.now.active {
		b.key = binary.AppendUvarint(append(b.key, q.i), uint64(q.p))
	}
	if len(b.now.out) > 0 {
		b.key = append(b.key, 0)
		for _, p := range b.now.out {
			b.key = binary.AppendUvarint(b.key, uint64(p))
		}
	}
	id, ok := b.ids[string(b.key)]
	if !ok {
		id = uint32(len(b.states))
		if id >= maxStates {
			return 0, errors.New("patterns are too many or too similar: the automaton would exceed 65536 states")
		}
		b.ids[string(b.key)] = id
		b.states = append(b.states, subset{slices.Clone(b.now.active), slices.Clone(b.now.out)})
	}
	return id, nil
}

// table fills a from b. States with output come last, so that one comparison
// tells.
func (a *automaton) table(b *subsets) {
	order := make([]uint32, 0, len(b.states))
	for s := range b.states {
		if len(b.states[s].out) == 0 {
			order = append(order, uint32(s))
		}
	}
	quiet := len(order)
	for s := range b.states {
		if len(b.states[s].out) > 0 {
			order = append(order, uint32(s))
		}
	}
	rank := make([]uint32, len(b.states))
	for r, s := range order {
		rank[s] = uint32(r)
	}
	a.hits = uint32(quiet) * a.stride
	// Before the stream is a boundary.
	a.start = rank[b.next[a.class['\n']]] * a.stride
	a.next = make([]uint32, len(b.next))
	a.depth = make([]uint8, len(b.states))
	a.out = make([][]uint32, len(b.states)-quiet)
	for r, s := range order {
		for c := range a.stride {
			a.next[uint32(r)*a.stride+c] = rank[b.next[s*a.stride+c]] * a.stride
		}
		for _, q := range b.states[s].active {
			a.depth[r] = max(a.depth[r], q.i-uint8(behind(b.pats[q.p])))
		}
		if r >= quiet {
			a.out[r-quiet] = b.states[s].out
		}
	}
}

// classes fills a.class and returns one byte of each class: bytes that no set
// tells apart are one class.
func (a *automaton) classes(pats [][]set) []byte {
	seen := map[set]bool{}
	var distinct []set
	for _, p := range pats {
		for _, s := range p {
			if !seen[s] {
				seen[s] = true
				distinct = append(distinct, s)
			}
		}
	}
	sig := map[string]uint8{}
	var reps []byte
	buf := make([]byte, (len(distinct)+7)/8)
	for c := range 256 {
		clear(buf)
		for i := range distinct {
			if distinct[i].has(byte(c)) {
				buf[i/8] |= 1 << (i % 8)
			}
		}
		id, ok := sig[string(buf)]
		if !ok {
			id = uint8(len(reps))
			sig[string(buf)] = id
			reps = append(reps, byte(c))
		}
		a.class[c] = id
	}
	return reps
}

// run advances from state s over b until a pattern ends or b does. It returns
// the new state and how many bytes were consumed; a state of at least a.hits
// says that patterns ended with the last consumed byte.
func (a *automaton) run(s uint32, b []byte) (uint32, int) {
	next, hits := a.next, a.hits
	for i, c := range b {
		s = next[s+uint32(a.class[c])]
		if s >= hits {
			return s, i + 1
		}
	}
	return s, len(b)
}

// ended returns the patterns that end in state s, which is at least a.hits.
func (a *automaton) ended(s uint32) []uint32 { return a.out[(s-a.hits)/a.stride] }

// held returns the length of the longest proper prefix of a pattern that ends
// in state s.
func (a *automaton) held(s uint32) int { return int(a.depth[s/a.stride]) }
