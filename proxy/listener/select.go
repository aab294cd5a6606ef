package listener

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// selector picks the filter chain for a connection: by the unified matcher, or
// by Envoy's classic FilterChainMatch.
type selector struct {
	tree   matcherTree
	byName map[string]*Chain
	all    []*Chain
	def    *Chain
}

type matcherTree interface {
	Match(ci *streaminfo.Conn) (action string, ok bool)
}

func newSelector(cfg *Config) (*selector, error) {
	s := &selector{def: cfg.Default, all: cfg.Chains}
	if cfg.Spec.FilterChainMatcher != nil {
		s.tree = cfg.Spec.FilterChainMatcher
		s.byName = map[string]*Chain{}
		for _, c := range cfg.Chains {
			if c.Name == "" {
				return nil, errors.New("filter_chain_matcher needs names on all filter chains")
			}
			s.byName[c.Name] = c
		}
	}
	return s, nil
}

// pick returns nil if no chain takes the connection.
func (s *selector) pick(ci *streaminfo.Conn) *Chain {
	if s.tree != nil {
		if name, ok := s.tree.Match(ci); ok {
			if c := s.byName[name]; c != nil {
				return c
			}
		}
		return s.def
	}
	cands := s.all
	for _, narrow := range narrowers {
		if len(cands) <= 1 && !needsCheck(cands) {
			break
		}
		cands = narrow(cands, ci)
		if len(cands) == 0 {
			return s.def
		}
	}
	if len(cands) == 0 {
		return s.def
	}
	return cands[0]
}

func needsCheck(cands []*Chain) bool { return len(cands) == 1 && cands[0].Match != nil }

// narrowers apply Envoy's criteria in its order: at each step the most specific
// value present among the candidates that matches wins, and the others drop.
var narrowers = []func([]*Chain, *streaminfo.Conn) []*Chain{
	byDestinationPort, byDestinationIP, byServerName, byTransport, byALPN, byDirectSource, bySourceType, bySourceIP, bySourcePort,
}

func match(c *Chain) *xdsresource.FilterChainMatch {
	if c.Match == nil {
		return &anyMatch
	}
	return c.Match
}

var anyMatch xdsresource.FilterChainMatch

// best keeps the candidates with the highest score; a negative score drops one.
func best(cands []*Chain, score func(m *xdsresource.FilterChainMatch) int) []*Chain {
	if len(cands) == 1 {
		if score(match(cands[0])) < 0 {
			return nil
		}
		return cands
	}
	top := -1
	var out []*Chain
	for _, c := range cands {
		switch n := score(match(c)); {
		case n < 0 || n < top:
		case n > top:
			top, out = n, append([]*Chain(nil), c)
		default:
			out = append(out, c)
		}
	}
	return out
}

func byDestinationPort(cands []*Chain, ci *streaminfo.Conn) []*Chain {
	return best(cands, func(m *xdsresource.FilterChainMatch) int {
		switch m.DestinationPort {
		case 0:
			return 0
		case uint32(ci.Local.Port()):
			return 1
		}
		return -1
	})
}

func cidrScore(ranges []netip.Prefix, a netip.Addr) int {
	if len(ranges) == 0 {
		return 0
	}
	n := -1
	for _, p := range ranges {
		if p.Contains(a.Unmap()) {
			n = max(n, p.Bits()+1)
		}
	}
	return n
}

func byDestinationIP(cands []*Chain, ci *streaminfo.Conn) []*Chain {
	return best(cands, func(m *xdsresource.FilterChainMatch) int { return cidrScore(m.PrefixRanges, ci.Local.Addr()) })
}

func byServerName(cands []*Chain, ci *streaminfo.Conn) []*Chain {
	sni := strings.ToLower(ci.RequestedServerName)
	return best(cands, func(m *xdsresource.FilterChainMatch) int {
		if len(m.ServerNames) == 0 {
			return 0
		}
		n := -1
		for _, name := range m.ServerNames {
			switch {
			case name == sni && sni != "":
				n = max(n, 1<<20)
			case strings.HasPrefix(name, "*.") && strings.HasSuffix(sni, name[1:]) && len(sni) > len(name)-1:
				n = max(n, len(name))
			}
		}
		return n
	})
}

func byTransport(cands []*Chain, ci *streaminfo.Conn) []*Chain {
	got := ci.TransportProtocol
	return best(cands, func(m *xdsresource.FilterChainMatch) int {
		switch m.TransportProtocol {
		case "":
			return 0
		case got:
			return 1
		}
		return -1
	})
}

func byALPN(cands []*Chain, ci *streaminfo.Conn) []*Chain {
	return best(cands, func(m *xdsresource.FilterChainMatch) int {
		if len(m.ApplicationProtocols) == 0 {
			return 0
		}
		for _, p := range m.ApplicationProtocols {
			if slices.Contains(ci.ApplicationProtocols, p) {
				return 1
			}
		}
		return -1
	})
}

func byDirectSource(cands []*Chain, ci *streaminfo.Conn) []*Chain {
	return best(cands, func(m *xdsresource.FilterChainMatch) int {
		return cidrScore(m.DirectSourceRanges, ci.DirectRemote.Addr())
	})
}

func bySourceType(cands []*Chain, ci *streaminfo.Conn) []*Chain {
	local := ci.Remote.Addr().IsLoopback() || ci.Remote.Addr() == ci.Local.Addr()
	return best(cands, func(m *xdsresource.FilterChainMatch) int {
		switch m.SourceType {
		case xdsresource.SourceAny:
			return 0
		case xdsresource.SourceSameIPOrLoopback:
			if local {
				return 1
			}
		case xdsresource.SourceExternal:
			if !local {
				return 1
			}
		}
		return -1
	})
}

func bySourceIP(cands []*Chain, ci *streaminfo.Conn) []*Chain {
	return best(cands, func(m *xdsresource.FilterChainMatch) int { return cidrScore(m.SourceRanges, ci.Remote.Addr()) })
}

func bySourcePort(cands []*Chain, ci *streaminfo.Conn) []*Chain {
	return best(cands, func(m *xdsresource.FilterChainMatch) int {
		if len(m.SourcePorts) == 0 {
			return 0
		}
		if slices.Contains(m.SourcePorts, uint32(ci.Remote.Port())) {
			return 1
		}
		return -1
	})
}
