package authz

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Input is what a decision is made on. It is passed by value; nothing of it is
// kept.
type Input struct {
	Info *streaminfo.Info
	// Request is nil for a TCP connection.
	Request *message.Header
	// Route is the metadata of the selected route, nil if there is none.
	Route *streaminfo.Metadata
}

// match reports whether a rule holds. It is immutable and does not allocate,
// except to join a repeated header.
type match func(in Input) bool

func always(Input) bool { return true }
func never(Input) bool  { return false }

// compile builds r. doubt is the answer for what cannot be known: false where
// a match grants, true where it refuses.
func compile(r *Rule, doubt bool) (match, error) {
	switch r.Kind {
	case KindAny:
		return always, nil
	case KindAnd:
		return compileAll(r.Rules, doubt, true)
	case KindOr:
		return compileAll(r.Rules, doubt, false)
	case KindNot:
		if len(r.Rules) != 1 {
			return nil, errors.New("not without a rule")
		}
		m, err := compile(&r.Rules[0], !doubt)
		if err != nil {
			return nil, err
		}
		return func(in Input) bool { return !m(in) }, nil
	case KindHeader:
		return compileHeader(&r.Header, doubt)
	case KindPath:
		return compilePath(r)
	case KindTemplate:
		return compileTemplate(r)
	case KindPort:
		return compilePort(r, doubt), nil
	case KindDestinationIP, KindSourceIP, KindDirectRemoteIP, KindRemoteIP:
		return compileIP(r, doubt)
	case KindServerName:
		s, err := newString(r.String)
		if err != nil {
			return nil, err
		}
		return func(in Input) bool { return s.Match(in.Info.Conn.RequestedServerName) }, nil
	case KindMetadata:
		return compileMetadata(&r.Metadata)
	case KindFilterState:
		return compileFilterState(r, doubt)
	case KindAuthenticated:
		return compileAuthenticated(r, doubt)
	}
	return nil, fmt.Errorf("rule kind %d is not supported", r.Kind)
}

// compileAll joins rules by and (all) or by or.
func compileAll(rules []Rule, doubt, all bool) (match, error) {
	ms := make([]match, len(rules))
	for i := range rules {
		m, err := compile(&rules[i], doubt)
		if err != nil {
			return nil, err
		}
		ms[i] = m
	}
	switch {
	case len(ms) == 0 && all:
		return always, nil
	case len(ms) == 0:
		return never, nil
	case len(ms) == 1:
		return ms[0], nil
	case len(ms) == 2 && all:
		a, b := ms[0], ms[1]
		return func(in Input) bool { return a(in) && b(in) }, nil
	case all:
		return func(in Input) bool {
			for _, m := range ms {
				if !m(in) {
					return false
				}
			}
			return true
		}, nil
	}
	return func(in Input) bool {
		for _, m := range ms {
			if m(in) {
				return true
			}
		}
		return false
	}, nil
}

func newString(s String) (matcher.String, error) {
	return matcher.NewString(s.Kind, s.Text, s.IgnoreCase)
}

// PathOnly returns path without query and fragment.
func PathOnly(path string) string {
	if i := strings.IndexAny(path, "?#"); i >= 0 {
		return path[:i]
	}
	return path
}

func requestPath(in Input) (string, bool) {
	if in.Request == nil {
		return "", false
	}
	p, ok := in.Request.Lookup(message.Path)
	return PathOnly(p), ok
}

func compilePath(r *Rule) (match, error) {
	s, err := newString(r.String)
	if err != nil {
		return nil, err
	}
	return func(in Input) bool {
		p, ok := requestPath(in)
		return ok && s.Match(p)
	}, nil
}

func compileTemplate(r *Rule) (match, error) {
	t := r.Template
	if t == nil {
		return nil, errors.New("uri_template without a template")
	}
	return func(in Input) bool {
		p, ok := requestPath(in)
		return ok && t.Match(p)
	}, nil
}

func compilePort(r *Rule, doubt bool) match {
	start, end := r.PortStart, r.PortEnd
	return func(in Input) bool {
		c := in.Info.Conn
		if !c.Local.Addr().IsValid() {
			return doubt
		}
		p := uint32(c.Local.Port())
		return start <= p && p < end
	}
}

func compileIP(r *Rule, doubt bool) (match, error) {
	if !r.Prefix.IsValid() {
		return nil, errors.New("invalid address range")
	}
	prefix := r.Prefix
	var addr func(c *streaminfo.Conn) netip.Addr
	switch r.Kind {
	case KindDestinationIP:
		addr = func(c *streaminfo.Conn) netip.Addr { return c.Local.Addr() }
	case KindRemoteIP:
		addr = func(c *streaminfo.Conn) netip.Addr { return c.Remote.Addr() }
	case KindDirectRemoteIP:
		addr = func(c *streaminfo.Conn) netip.Addr { return c.DirectRemote.Addr() }
	default:
		return compileSourceIP(prefix, doubt), nil
	}
	return func(in Input) bool { return contains(prefix, addr(in.Info.Conn), doubt) }, nil
}

func contains(p netip.Prefix, a netip.Addr, doubt bool) bool {
	if !a.IsValid() {
		return doubt
	}
	return p.Contains(plain(a))
}

// compileSourceIP matches the connection's remote address. On an HTTP stream
// Conn.Remote may come from x-forwarded-for, so a grant needs the socket's
// peer to match too, and a refusal is content with either.
func compileSourceIP(p netip.Prefix, doubt bool) match {
	return func(in Input) bool {
		c := in.Info.Conn
		remote, direct := contains(p, c.Remote.Addr(), doubt), contains(p, c.DirectRemote.Addr(), doubt)
		if doubt {
			return remote || direct
		}
		return remote && direct
	}
}

// plain removes what would keep an address from comparing equal.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// filterState returns an object of the stream or its connection.
func filterState(in Input, key string) streaminfo.Object {
	if o := in.Info.FilterState.Get(key); o != nil {
		return o
	}
	return in.Info.Conn.FilterState.Get(key)
}

func objectString(o streaminfo.Object) string {
	if s, ok := o.(streaminfo.String); ok {
		return string(s)
	}
	return o.Serialize()
}

func compileFilterState(r *Rule, doubt bool) (match, error) {
	key := r.Key
	if r.Prefixes != nil {
		return compileFilterStateAddress(r, doubt), nil
	}
	s, err := newString(r.String)
	if err != nil {
		return nil, err
	}
	return func(in Input) bool {
		o := filterState(in, key)
		return o != nil && s.Match(objectString(o))
	}, nil
}

func compileFilterStateAddress(r *Rule, doubt bool) match {
	key, prefixes, invert := r.Key, r.Prefixes, r.InvertPrefixes
	return func(in Input) bool {
		o := filterState(in, key)
		if o == nil {
			return false
		}
		text := objectString(o)
		a, err := netip.ParseAddr(text)
		if err != nil {
			ap, err := netip.ParseAddrPort(text)
			if err != nil {
				return doubt
			}
			a = ap.Addr()
		}
		a = plain(a)
		for _, p := range prefixes {
			if p.Contains(a) {
				return !invert
			}
		}
		return invert
	}
}

func compileAuthenticated(r *Rule, doubt bool) (match, error) {
	if r.AnyName {
		return func(in Input) bool { return in.Info.Conn.TLS != nil }, nil
	}
	s, err := newString(r.String)
	if err != nil {
		return nil, err
	}
	return func(in Input) bool {
		t := in.Info.Conn.TLS
		if t == nil {
			return false
		}
		if slices.ContainsFunc(t.Peer.URISANs, s.Match) {
			return true
		}
		if len(t.Peer.URISANs) > 0 && !doubt {
			return false
		}
		if slices.ContainsFunc(t.Peer.DNSSANs, s.Match) {
			return true
		}
		if len(t.Peer.DNSSANs) > 0 && !doubt {
			return false
		}
		return s.Match(t.Peer.Subject)
	}, nil
}
