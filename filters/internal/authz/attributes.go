package authz

import (
	"net/netip"
	"slices"
	"strings"
)

// byBits holds the policies of all address ranges of one length.
type byBits struct {
	bits int
	v4   bool
	m    map[netip.Prefix][]int32
}

func addByBits(l []byBits, p netip.Prefix, policy int32) []byBits {
	for i := range l {
		if l[i].bits == p.Bits() && l[i].v4 == p.Addr().Is4() {
			insert(l[i].m, p, policy)
			return l
		}
	}
	return append(l, byBits{p.Bits(), p.Addr().Is4(), map[netip.Prefix][]int32{p: {policy}}})
}

// field searches by every value that a match of a repeated header may look at.
func (ai *attrIndex) field(s *search, in Input) {
	h := in.Request
	if h == nil {
		return
	}
	n := 0
	for i := range h.Len() {
		f := h.At(i)
		if f.Name != ai.key {
			continue
		}
		n++
		ai.value(s, in, f.Value)
		if strings.IndexByte(f.Value, ',') < 0 {
			continue
		}
		for e := range strings.SplitSeq(f.Value, ",") {
			ai.value(s, in, strings.Trim(e, " \t"))
		}
	}
	if n > 1 {
		joined, _ := h.Joined(ai.key)
		ai.value(s, in, joined)
	}
}

func (ai *attrIndex) metadata(s *search, in Input) {
	var v any
	if !ai.from.Route {
		v, _ = dynamic(in, ai.from.Namespace, ai.from.Path)
	} else if in.Route != nil {
		v, _ = in.Route.Lookup(ai.from.Namespace, ai.from.Path...)
	}
	switch v := v.(type) {
	case string:
		ai.value(s, in, v)
	case []any:
		for _, e := range v {
			if text, ok := e.(string); ok {
				ai.value(s, in, text)
			}
		}
	}
}

func (ai *attrIndex) port(s *search, in Input) {
	local := in.Info.Conn.Local
	if !local.Addr().IsValid() {
		s.try(ai.all, in)
		return
	}
	s.try(ai.ports[uint32(local.Port())], in)
}

func (ai *attrIndex) address(s *search, in Input) {
	c := in.Info.Conn
	switch ai.kind {
	case attrDestinationIP:
		ai.within(s, in, c.Local.Addr())
	case attrRemoteIP:
		ai.within(s, in, c.Remote.Addr())
	case attrDirectRemoteIP:
		ai.within(s, in, c.DirectRemote.Addr())
	default: // either may decide, see compileSourceIP
		ai.within(s, in, c.Remote.Addr())
		ai.within(s, in, c.DirectRemote.Addr())
	}
}

func (ai *attrIndex) within(s *search, in Input, a netip.Addr) {
	if !a.IsValid() {
		s.try(ai.all, in)
		return
	}
	a = plain(a)
	for i := range ai.nets {
		if l := &ai.nets[i]; l.v4 == a.Is4() {
			s.try(l.m[netip.PrefixFrom(a, l.bits).Masked()], in)
		}
	}
}

// metadataOption finds policies by a string in metadata, or in a list there.
func metadataOption(m *Metadata, from map[attr]*Metadata) options {
	if m.Invert {
		return options{}
	}
	a := attr{kind: attrMetadata, key: m.Namespace + "\x00" + strings.Join(m.Path, "\x00")}
	if m.Route {
		a.key += "\x00\x00"
	}
	o := valueOption(a, &m.Value, false)
	for a := range o.m {
		from[a] = m
	}
	return o
}

func valueOption(a attr, v *Value, inList bool) options {
	switch v.Kind {
	case ValueString:
		return stringOption(a, v.String)
	case ValueOneOf:
		if !inList { // lists of lists are not searched
			return valueOption(a, &v.Values[0], true)
		}
	case ValueOr:
		out := options{impossible: true}
		for i := range v.Values {
			out = either(out, valueOption(a, &v.Values[i], inList))
		}
		return out
	default:
	}
	return options{}
}

// either returns the options of an "or" of two.
func either(a, b options) options {
	switch {
	case b.impossible:
		return a
	case a.impossible:
		return b
	}
	joined := map[attr][]term{}
	for at, terms := range a.m {
		if more, ok := b.m[at]; ok {
			joined[at] = append(slices.Clip(terms), more...)
		}
	}
	return options{m: joined}
}

const maxPorts = 64 // a longer range is no option

func portOption(r *Rule) options {
	if r.PortEnd-r.PortStart > maxPorts {
		return options{}
	}
	var terms []term
	for p := r.PortStart; p < r.PortEnd; p++ {
		terms = append(terms, term{kind: termPort, port: p})
	}
	return options{m: map[attr][]term{{kind: attrPort}: terms}}
}

func netOption(r *Rule) options {
	kind := map[Kind]attrKind{KindDestinationIP: attrDestinationIP, KindSourceIP: attrSourceIP, KindDirectRemoteIP: attrDirectRemoteIP, KindRemoteIP: attrRemoteIP}[r.Kind]
	return options{m: map[attr][]term{{kind: kind}: {{kind: termNet, net: r.Prefix.Masked()}}}}
}
