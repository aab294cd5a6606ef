package matcher

import (
	"net/netip"
	"slices"
	"sort"
)

// CIDRSet is a set of address prefixes, kept as disjoint sorted ranges: a
// lookup is a binary search. The nil CIDRSet is empty.
type CIDRSet struct{ ranges []addrRange }

type addrRange struct{ from, to netip.Addr } // inclusive

// NewCIDRSet builds the set of all addresses in one of the prefixes. Invalid
// prefixes are skipped; IPv4-mapped addresses count as IPv4.
func NewCIDRSet(prefixes []netip.Prefix) *CIDRSet {
	rs := make([]addrRange, 0, len(prefixes))
	for _, p := range prefixes {
		if p = unmapPrefix(p); p.IsValid() {
			rs = append(rs, addrRange{p.Addr(), lastAddr(p)})
		}
	}
	slices.SortFunc(rs, func(a, b addrRange) int { return a.from.Compare(b.from) })
	out := rs[:0]
	for _, r := range rs {
		if n := len(out); n > 0 && out[n-1].from.BitLen() == r.from.BitLen() && r.from.Compare(out[n-1].to) <= 0 {
			if out[n-1].to.Less(r.to) {
				out[n-1].to = r.to
			}
			continue
		}
		out = append(out, r)
	}
	return &CIDRSet{ranges: slices.Clip(out)}
}

// Contains reports whether a is in the set.
func (s *CIDRSet) Contains(a netip.Addr) bool {
	if s == nil || !a.IsValid() {
		return false
	}
	a = a.Unmap().WithZone("")
	i := sort.Search(len(s.ranges), func(i int) bool { return a.Less(s.ranges[i].from) })
	return i > 0 && a.Compare(s.ranges[i-1].to) <= 0
}

// Empty reports whether no address is in the set.
func (s *CIDRSet) Empty() bool { return s == nil || len(s.ranges) == 0 }

// unmapPrefix returns p masked, as an IPv4 prefix if it is an IPv4-mapped one.
func unmapPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// lastAddr returns the highest address of p, which is masked.
func lastAddr(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		b := p.Addr().As4()
		fillHostBits(b[:], p.Bits())
		return netip.AddrFrom4(b)
	}
	b := p.Addr().As16()
	fillHostBits(b[:], p.Bits())
	return netip.AddrFrom16(b)
}

func fillHostBits(b []byte, bits int) {
	for i := range b {
		switch n := bits - 8*i; {
		case n <= 0:
			b[i] = 0xff
		case n < 8:
			b[i] |= 0xff >> n
		}
	}
}
