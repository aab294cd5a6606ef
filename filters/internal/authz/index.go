package authz

import (
	"net/netip"
	"sort"
	"strings"
	"unsafe"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// An index maps what policies name (a principal, a path, a claim) to the few
// policies that could match. For each policy one attribute is chosen that must
// have one of some known values (terms) if the policy is to match; policies
// without such an attribute are looked at every time.
type index struct {
	always []int32
	attrs  []attrIndex
}

type attrKind uint8

const (
	attrFilterState attrKind = iota + 1
	attrPath
	attrHeader // pseudo-headers, which never repeat
	attrServerName
	attrCertificate
	attrField    // any other header
	attrMetadata // a string, or a list that has one
	attrPort
	attrDestinationIP
	attrSourceIP
	attrDirectRemoteIP
	attrRemoteIP
)

type attr struct {
	kind attrKind
	key  string
	fold bool // compare in lower case
}

type termKind uint8

const (
	termExact termKind = iota + 1
	termPrefix
	termSuffix
	// termNamespace is the regex ".*/ns/X/.*" that istiod writes for a
	// namespace, as a contained "/ns/X/".
	termNamespace
	termPort
	termNet
)

type term struct {
	kind termKind
	text string
	port uint32
	net  netip.Prefix
}

// options are the attributes by which a rule can be found. A nil map means
// that there is none; impossible rules never match.
type options struct {
	m          map[attr][]term
	impossible bool
}

type attrIndex struct {
	attr
	exact, namespace map[string][]int32
	prefix, suffix   []byLength
	ports            map[uint32][]int32
	nets             []byBits
	// all are for what refuses when the address is not known; nil without doubt.
	all  []int32
	from *Metadata // of attrMetadata
}

// byLength holds the policies of all prefixes (or suffixes) of one length.
type byLength struct {
	n int
	m map[string][]int32
}

const maxTerms = 4096 // a single policy with more is looked at every time

func newIndex(rules *Rules, doubt bool) *index {
	all := make([]options, len(rules.Policies))
	weight := map[attr]map[term]int{}
	from := map[attr]*Metadata{}
	for i := range rules.Policies {
		p := &rules.Policies[i]
		all[i] = both(anyOf(p.Permissions, doubt, from), anyOf(p.Principals, doubt, from))
		for a, terms := range all[i].m {
			if weight[a] == nil {
				weight[a] = map[term]int{}
			}
			for _, t := range terms {
				weight[a][t]++
			}
		}
	}
	x := &index{}
	byAttr := map[attr]*attrIndex{}
	for i := range all {
		if all[i].impossible {
			continue
		}
		a, ok := cheapest(all[i].m, weight)
		if !ok {
			x.always = append(x.always, int32(i))
			continue
		}
		ai := byAttr[a]
		if ai == nil {
			ai = &attrIndex{attr: a, exact: map[string][]int32{}, namespace: map[string][]int32{}, ports: map[uint32][]int32{}, from: from[a]}
			byAttr[a] = ai
		}
		for _, t := range all[i].m[a] {
			ai.add(t, int32(i))
		}
		if doubt && a.kind >= attrPort {
			ai.all = append(ai.all, int32(i))
		}
	}
	for _, ai := range byAttr {
		sort.Slice(ai.prefix, func(i, j int) bool { return ai.prefix[i].n < ai.prefix[j].n })
		sort.Slice(ai.suffix, func(i, j int) bool { return ai.suffix[i].n < ai.suffix[j].n })
		x.attrs = append(x.attrs, *ai)
	}
	sort.Slice(x.attrs, func(i, j int) bool { return less(x.attrs[i].attr, x.attrs[j].attr) })
	return x
}

// cheapest chooses the attribute whose terms are shared with the fewest other
// policies.
func cheapest(m map[attr][]term, weight map[attr]map[term]int) (attr, bool) {
	var best attr
	bestCost := -1
	for a, terms := range m {
		if len(terms) > maxTerms {
			continue
		}
		cost := 0
		for _, t := range terms {
			cost += weight[a][t]
		}
		if bestCost < 0 || cost < bestCost || cost == bestCost && less(a, best) {
			best, bestCost = a, cost
		}
	}
	return best, bestCost >= 0
}

func less(a, b attr) bool {
	if a.kind != b.kind {
		return a.kind < b.kind
	}
	return a.key < b.key
}

func (ai *attrIndex) add(t term, policy int32) {
	switch t.kind {
	case termExact:
		insert(ai.exact, t.text, policy)
	case termNamespace:
		insert(ai.namespace, t.text, policy)
	case termPrefix:
		ai.prefix = addByLength(ai.prefix, t.text, policy)
	case termSuffix:
		ai.suffix = addByLength(ai.suffix, t.text, policy)
	case termPort:
		insert(ai.ports, t.port, policy)
	case termNet:
		ai.nets = addByBits(ai.nets, t.net, policy)
	}
}

// insert keeps each list sorted and free of duplicates: policies come in order.
func insert[K comparable](m map[K][]int32, key K, policy int32) {
	l := m[key]
	if len(l) > 0 && l[len(l)-1] == policy {
		return
	}
	m[key] = append(l, policy)
}

func addByLength(l []byLength, text string, policy int32) []byLength {
	for i := range l {
		if l[i].n == len(text) {
			insert(l[i].m, text, policy)
			return l
		}
	}
	return append(l, byLength{len(text), map[string][]int32{text: {policy}}})
}

// first returns the first policy of e that matches, -1 if there is none.
func (x *index) first(e *Engine, in Input) int {
	s := search{e: e, best: int32(len(e.policies))}
	s.try(x.always, in)
	for i := range x.attrs {
		x.attrs[i].search(&s, in)
	}
	if int(s.best) == len(e.policies) {
		return -1
	}
	return int(s.best)
}

type search struct {
	e    *Engine
	best int32
}

// try looks for a better match in a sorted list.
func (s *search) try(list []int32, in Input) {
	for _, i := range list {
		if i >= s.best {
			return
		}
		if s.e.matches(int(i), in) {
			s.best = i
			return
		}
	}
}

func (ai *attrIndex) search(s *search, in Input) {
	switch ai.kind {
	case attrFilterState:
		if o := filterState(in, ai.key); o != nil {
			ai.value(s, in, objectString(o))
		}
	case attrPath:
		if p, ok := requestPath(in); ok {
			ai.value(s, in, p)
		}
	case attrHeader:
		if v, ok := lookup(in.Request, ai.key); ok {
			ai.value(s, in, v)
		}
	case attrServerName:
		ai.value(s, in, in.Info.Conn.RequestedServerName)
	case attrCertificate:
		t := in.Info.Conn.TLS
		if t == nil {
			return
		}
		for _, n := range t.Peer.URISANs {
			ai.value(s, in, n)
		}
		for _, n := range t.Peer.DNSSANs {
			ai.value(s, in, n)
		}
		ai.value(s, in, t.Peer.Subject)
	case attrField:
		ai.field(s, in)
	case attrMetadata:
		ai.metadata(s, in)
	case attrPort:
		ai.port(s, in)
	default:
		ai.address(s, in)
	}
}

func (ai *attrIndex) value(s *search, in Input, v string) {
	if ai.fold {
		var buf [256]byte
		v = lowerASCII(buf[:0], v)
	}
	if len(ai.exact) > 0 {
		s.try(ai.exact[v], in)
	}
	for i := range ai.prefix {
		l := &ai.prefix[i]
		if l.n > len(v) {
			break
		}
		s.try(l.m[v[:l.n]], in)
	}
	for i := range ai.suffix {
		l := &ai.suffix[i]
		if l.n > len(v) {
			break
		}
		s.try(l.m[v[len(v)-l.n:]], in)
	}
	if len(ai.namespace) == 0 {
		return
	}
	for rest := v; ; {
		_, after, ok := strings.Cut(rest, "/ns/")
		if !ok {
			return
		}
		ns, _, ok := strings.Cut(after, "/")
		if !ok {
			return
		}
		s.try(ai.namespace[ns], in)
		// "/ns/ns/x": the slash that ends one candidate may begin the next.
		rest = rest[len(rest)-len(after)-1:]
	}
}

// lowerASCII returns v with ASCII letters in lower case, as matcher.String
// compares. The result may lie in buf.
func lowerASCII(buf []byte, v string) string {
	i := 0
	for i < len(v) && (v[i] < 'A' || v[i] > 'Z') {
		i++
	}
	if i == len(v) {
		return v
	}
	buf = append(buf, v...)
	for ; i < len(buf); i++ {
		if c := buf[i]; 'A' <= c && c <= 'Z' {
			buf[i] = c + 'a' - 'A'
		}
	}
	return unsafe.String(unsafe.SliceData(buf), len(buf))
}

// anyOf returns the options of an "or".
func anyOf(rules []Rule, doubt bool, from map[attr]*Metadata) options {
	out := options{impossible: true}
	for i := range rules {
		out = either(out, optionsOf(&rules[i], doubt, from))
	}
	return out
}

// both returns the options of an "and" of two.
func both(a, b options) options {
	if a.impossible || b.impossible {
		return options{impossible: true}
	}
	m := map[attr][]term{}
	for _, o := range []options{a, b} {
		for at, terms := range o.m {
			if have, ok := m[at]; !ok || len(terms) < len(have) {
				m[at] = terms
			}
		}
	}
	return options{m: m}
}

// optionsOf returns the options of r; from takes where metadata is found.
func optionsOf(r *Rule, doubt bool, from map[attr]*Metadata) options {
	switch r.Kind {
	case KindAnd:
		out := options{m: map[attr][]term{}}
		for i := range r.Rules {
			out = both(out, optionsOf(&r.Rules[i], doubt, from))
		}
		return out
	case KindOr:
		return anyOf(r.Rules, doubt, from)
	case KindPath:
		return stringOption(attr{kind: attrPath}, r.String)
	case KindServerName:
		return stringOption(attr{kind: attrServerName}, r.String)
	case KindFilterState:
		if r.Prefixes == nil {
			return stringOption(attr{kind: attrFilterState, key: r.Key}, r.String)
		}
	case KindAuthenticated:
		if !r.AnyName {
			return stringOption(attr{kind: attrCertificate}, r.String)
		}
	case KindHeader:
		h := &r.Header
		if h.Kind != HeaderString || h.Invert || h.TreatMissingAsEmpty {
			break
		}
		if single(h.Name) {
			return stringOption(attr{kind: attrHeader, key: h.Name}, h.String)
		}
		return stringOption(attr{kind: attrField, key: h.Name}, h.String)
	case KindMetadata:
		return metadataOption(&r.Metadata, from)
	case KindPort:
		return portOption(r)
	case KindDestinationIP, KindSourceIP, KindDirectRemoteIP, KindRemoteIP:
		return netOption(r)
	default:
	}
	return options{}
}

func single(name string) bool {
	return name == message.Method || name == message.Authority || name == message.Path || name == message.Scheme
}

func stringOption(a attr, s String) options {
	t := term{text: s.Text}
	switch s.Kind {
	case matcher.Exact:
		t.kind = termExact
	case matcher.Prefix:
		t.kind = termPrefix
	case matcher.Suffix:
		t.kind = termSuffix
	case matcher.Regex:
		ns, ok := namespaceRegex(s.Text)
		if !ok {
			return options{}
		}
		return options{m: map[attr][]term{a: {{kind: termNamespace, text: ns}}}}
	default:
		return options{}
	}
	if s.IgnoreCase {
		a.fold, t.text = true, lowerASCII(nil, t.text)
	}
	return options{m: map[attr][]term{a: {t}}}
}

// namespaceRegex recognises ".*/ns/X/.*" where X is literal.
func namespaceRegex(src string) (ns string, ok bool) {
	ns, ok = strings.CutPrefix(src, ".*/ns/")
	if !ok {
		return "", false
	}
	ns, ok = strings.CutSuffix(ns, "/.*")
	if !ok || ns == "" {
		return "", false
	}
	for i := range len(ns) {
		c := ns[i]
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return "", false
		}
	}
	return ns, true
}
