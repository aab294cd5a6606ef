package matcher

import (
	"errors"
	"net/netip"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// FilterState matches a filter-state object:
// envoy.type.matcher.v3.FilterStateMatcher. The zero FilterState matches
// nothing.
type FilterState struct {
	key   string
	str   *String
	cidrs *CIDRSet
}

// NewFilterState compiles a matcher of the serialized object under key.
func NewFilterState(key string, s String) (FilterState, error) {
	if key == "" {
		return FilterState{}, errors.New("key: a filter state matcher needs a key")
	}
	return FilterState{key: key, str: &s}, nil
}

// NewFilterStateAddress compiles a matcher of an address object under key
// ("ip" or "ip:port" when serialized).
func NewFilterStateAddress(key string, set *CIDRSet) (FilterState, error) {
	if key == "" {
		return FilterState{}, errors.New("key: a filter state matcher needs a key")
	}
	return FilterState{key: key, cidrs: set}, nil
}

// Match reports whether fs matches.
func (m *FilterState) Match(fs *streaminfo.FilterState) bool {
	if fs == nil {
		return false
	}
	o := fs.Get(m.key)
	if o == nil {
		return false
	}
	switch {
	case m.str != nil:
		return m.str.Match(o.Serialize())
	case m.cidrs != nil:
		a, ok := parseAddr(o.Serialize())
		return ok && m.cidrs.Contains(a)
	}
	return false
}

// parseAddr parses "ip" or "ip:port".
func parseAddr(s string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Unmap(), true
	}
	ap, err := netip.ParseAddrPort(s)
	return ap.Addr().Unmap(), err == nil
}
