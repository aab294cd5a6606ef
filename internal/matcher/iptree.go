package matcher

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// ipEntry is one prefix of an IPMatcher.
type ipEntry struct {
	addrRange
	bits, index int
	cand        ipCandidate
}

// compileIP turns the ranges into disjoint spans, each with the list of ranges
// that cover it, so that a lookup is one binary search. Prefixes are either
// disjoint or nested, hence a stack of open prefixes describes each span.
func (t *Tree) compileIP(n *node, s *TreeSpec, depth int) error {
	n.isIP = true
	var es []ipEntry
	for i := range s.IP {
		r := &s.IP[i]
		then, err := t.onMatch(r.OnMatch, depth)
		if err != nil {
			return fmt.Errorf("range_matchers[%d]: %w", i, err)
		}
		for _, p := range r.Ranges {
			if p = unmapPrefix(p); !p.IsValid() {
				return fmt.Errorf("range_matchers[%d]: invalid range", i)
			}
			es = append(es, ipEntry{addrRange{p.Addr(), lastAddr(p)}, p.Bits(), i, ipCandidate{then, r.Exclusive}})
		}
	}
	// Wider prefixes first; of equal ones the last declared first, so that the
	// first declared ends on top of the stack.
	slices.SortStableFunc(es, func(a, b ipEntry) int {
		return cmp.Or(a.from.Compare(b.from), cmp.Compare(a.bits, b.bits), cmp.Compare(b.index, a.index))
	})
	b := spanBuilder{}
	for i := range es {
		b.closeBefore(es[i].from)
		b.open(&es[i])
	}
	b.closeAll()
	n.ips = b.out
	return nil
}

// spanBuilder sweeps over sorted nested ranges.
type spanBuilder struct {
	out   []ipSpan
	stack []*ipEntry
	at    netip.Addr // first address not yet covered by a span, while stack is not empty
	done  bool       // at overflowed: nothing follows
}

func (b *spanBuilder) candidates() []ipCandidate {
	cs := make([]ipCandidate, 0, len(b.stack))
	for _, e := range slices.Backward(b.stack) {
		cs = append(cs, e.cand)
	}
	return cs
}

// emit adds the span [at, to].
func (b *spanBuilder) emit(to netip.Addr) {
	if b.done || to.Less(b.at) {
		return
	}
	b.out = append(b.out, ipSpan{addrRange{b.at, to}, b.candidates()})
	b.at = to.Next()
	b.done = !b.at.IsValid()
}

// closeBefore ends the ranges that end before a.
func (b *spanBuilder) closeBefore(a netip.Addr) {
	for len(b.stack) > 0 {
		top := b.stack[len(b.stack)-1]
		if top.from.BitLen() == a.BitLen() && !top.to.Less(a) {
			return
		}
		b.emit(top.to)
		b.stack = b.stack[:len(b.stack)-1]
	}
}

func (b *spanBuilder) open(e *ipEntry) {
	if len(b.stack) > 0 && b.at.Less(e.from) {
		b.emit(e.from.Prev())
	}
	b.at, b.done = e.from, false
	b.stack = append(b.stack, e)
}

func (b *spanBuilder) closeAll() {
	for len(b.stack) > 0 {
		b.emit(b.stack[len(b.stack)-1].to)
		b.stack = b.stack[:len(b.stack)-1]
	}
}
