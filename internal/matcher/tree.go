package matcher

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"sort"
	"strconv"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// OnMatch is what happens on a match: exactly one of Action and Tree is set.
type OnMatch struct {
	// Action is the name of a filter chain.
	Action string
	Tree   *TreeSpec
}

// TreeSpec configures a Tree: xds.type.matcher.v3.Matcher. Exactly one of
// List, Exact, Prefix and IP is set, except that a spec with OnNoMatch only is
// allowed, too.
type TreeSpec struct {
	// List is matcher_list: the first entry whose predicate holds, and which
	// leads to an action, decides.
	List []FieldMatch
	// Input belongs to Exact, Prefix and IP.
	Input Input
	// Exact is exact_match_map.
	Exact map[string]OnMatch
	// Prefix is prefix_match_map: the longest prefix that leads to an action.
	Prefix map[string]OnMatch
	// IP is the custom IPMatcher: the most specific range that contains the
	// input and leads to an action; among equals the first.
	IP        []IPRange
	OnNoMatch *OnMatch
}

// FieldMatch is one entry of a matcher_list.
type FieldMatch struct {
	Predicate Predicate
	OnMatch   OnMatch
}

// Predicate is xds.type.matcher.v3.Matcher.MatcherList.Predicate: exactly one
// of And, Or, Not and Value is set.
type Predicate struct {
	And, Or []Predicate
	Not     *Predicate
	Input   Input
	Value   *String
	// IPs, if not nil, is used instead of Value: a CIDR matcher on the input.
	IPs *CIDRSet
}

// IPRange is one range matcher of an IPMatcher.
type IPRange struct {
	Ranges  []netip.Prefix
	OnMatch OnMatch
	// Exclusive ranges match only if they are the most specific ones.
	Exclusive bool
}

const maxTreeDepth = 64

// Tree is xDS's unified matcher over connection inputs, whose action is the
// name of a filter chain. Where a branch that matched leads to no action, the
// search goes on as if it had not, as Envoy does.
type Tree struct {
	root    *node
	actions []string
}

// node is one compiled matcher, or a leaf if action is set.
type node struct {
	action    string
	leaf      bool
	list      []listEntry
	input     Input
	exact     map[string]*node
	prefixes  []prefixEntry // longest first
	ips       []ipSpan      // sorted, disjoint
	isIP      bool
	onNoMatch *node
}

type listEntry struct {
	pred func(c *streaminfo.Conn) bool
	then *node
}

type prefixEntry struct {
	prefix string
	then   *node
}

type ipSpan struct {
	addrRange
	then []ipCandidate // most specific first
}

type ipCandidate struct {
	then      *node
	exclusive bool
}

// CompileTree compiles spec.
func CompileTree(spec *TreeSpec) (*Tree, error) {
	t := &Tree{}
	root, err := t.compile(spec, 0)
	if err != nil {
		return nil, err
	}
	t.root = root
	slices.Sort(t.actions)
	t.actions = slices.Compact(t.actions)
	return t, nil
}

// Actions returns the names of all actions, sorted.
func (t *Tree) Actions() []string { return t.actions }

// Match returns the action for c, and false if none applies.
func (t *Tree) Match(c *streaminfo.Conn) (action string, ok bool) {
	if n := t.root.match(c); n != nil {
		return n.action, true
	}
	return "", false
}

// Destinations lists, for each action that depends on them, one destination
// address and port with which it may be reached; other inputs may decide, too.
// The order is that of addresses.
func (t *Tree) Destinations() iter.Seq2[string, netip.AddrPort] {
	return func(yield func(string, netip.AddrPort) bool) { t.root.destinations(netip.Addr{}, 0, yield) }
}

func (n *node) destinations(a netip.Addr, port uint16, yield func(string, netip.AddrPort) bool) bool {
	if n == nil {
		return true
	}
	if n.leaf {
		return !a.IsValid() || port == 0 || yield(n.action, netip.AddrPortFrom(a, port))
	}
	for _, l := range n.list {
		if !l.then.destinations(a, port, yield) {
			return false
		}
	}
	for i := range n.ips {
		at := a
		if n.input.Kind == InputDestinationIP {
			at = n.ips[i].from
		}
		for _, c := range n.ips[i].then {
			if !c.then.destinations(at, port, yield) {
				return false
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(n.exact)) {
		to := port
		if n.input.Kind == InputDestinationPort {
			v, err := strconv.ParseUint(key, 10, 16)
			if err != nil {
				continue
			}
			to = uint16(v)
		}
		if !n.exact[key].destinations(a, to, yield) {
			return false
		}
	}
	for _, p := range n.prefixes {
		if !p.then.destinations(a, port, yield) {
			return false
		}
	}
	return n.onNoMatch.destinations(a, port, yield)
}

func (t *Tree) onMatch(o OnMatch, depth int) (*node, error) {
	switch {
	case o.Tree != nil && o.Action != "":
		return nil, errors.New("on_match: both matcher and action are set")
	case o.Tree != nil:
		return t.compile(o.Tree, depth+1)
	case o.Action == "":
		return nil, errors.New("on_match: neither matcher nor action is set")
	}
	t.actions = append(t.actions, o.Action)
	return &node{leaf: true, action: o.Action}, nil
}

func (t *Tree) compile(s *TreeSpec, depth int) (*node, error) {
	if depth > maxTreeDepth {
		return nil, fmt.Errorf("matcher: nested more than %d deep", maxTreeDepth)
	}
	n := &node{input: s.Input}
	var err error
	if s.OnNoMatch != nil {
		if n.onNoMatch, err = t.onMatch(*s.OnNoMatch, depth); err != nil {
			return nil, fmt.Errorf("on_no_match: %w", err)
		}
	}
	kinds := 0
	for _, set := range []bool{s.List != nil, s.Exact != nil, s.Prefix != nil, s.IP != nil} {
		if set {
			kinds++
		}
	}
	switch {
	case kinds > 1:
		return nil, errors.New("matcher: more than one of matcher_list, exact_match_map, prefix_match_map and custom_match is set")
	case kinds == 0 && s.OnNoMatch == nil:
		return nil, errors.New("matcher: it has neither branches nor on_no_match")
	case s.List != nil:
		err = t.compileList(n, s, depth)
	case kinds == 1 && s.Input.Kind == 0:
		return nil, errors.New("matcher_tree: input: unknown or missing")
	case s.Exact != nil:
		err = t.compileExact(n, s, depth)
	case s.Prefix != nil:
		err = t.compilePrefix(n, s, depth)
	case s.IP != nil:
		err = t.compileIP(n, s, depth)
	}
	return n, err
}

func (t *Tree) compileList(n *node, s *TreeSpec, depth int) error {
	for i := range s.List {
		pred, err := compilePredicate(&s.List[i].Predicate, 0)
		if err != nil {
			return fmt.Errorf("matchers[%d]: predicate: %w", i, err)
		}
		then, err := t.onMatch(s.List[i].OnMatch, depth)
		if err != nil {
			return fmt.Errorf("matchers[%d]: %w", i, err)
		}
		n.list = append(n.list, listEntry{pred, then})
	}
	return nil
}

func (t *Tree) compileExact(n *node, s *TreeSpec, depth int) error {
	n.exact = make(map[string]*node, len(s.Exact))
	for _, k := range sortedKeys(s.Exact) {
		then, err := t.onMatch(s.Exact[k], depth)
		if err != nil {
			return fmt.Errorf("exact_match_map[%q]: %w", k, err)
		}
		n.exact[k] = then
	}
	return nil
}

func (t *Tree) compilePrefix(n *node, s *TreeSpec, depth int) error {
	for _, k := range sortedKeys(s.Prefix) {
		then, err := t.onMatch(s.Prefix[k], depth)
		if err != nil {
			return fmt.Errorf("prefix_match_map[%q]: %w", k, err)
		}
		n.prefixes = append(n.prefixes, prefixEntry{k, then})
	}
	slices.SortStableFunc(n.prefixes, func(a, b prefixEntry) int { return len(b.prefix) - len(a.prefix) })
	return nil
}

func sortedKeys(m map[string]OnMatch) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func compilePredicate(p *Predicate, depth int) (func(*streaminfo.Conn) bool, error) {
	if depth > maxTreeDepth {
		return nil, fmt.Errorf("nested more than %d deep", maxTreeDepth)
	}
	switch {
	case p.Not != nil:
		f, err := compilePredicate(p.Not, depth+1)
		if err != nil {
			return nil, fmt.Errorf("not_matcher: %w", err)
		}
		return func(c *streaminfo.Conn) bool { return !f(c) }, nil
	case len(p.And) > 0:
		fs, err := compilePredicates(p.And, depth)
		return func(c *streaminfo.Conn) bool {
			return !slices.ContainsFunc(fs, func(f func(*streaminfo.Conn) bool) bool { return !f(c) })
		}, err
	case len(p.Or) > 0:
		fs, err := compilePredicates(p.Or, depth)
		return func(c *streaminfo.Conn) bool {
			return slices.ContainsFunc(fs, func(f func(*streaminfo.Conn) bool) bool { return f(c) })
		}, err
	case p.Input.Kind == 0:
		return nil, errors.New("input: unknown or missing")
	case p.IPs != nil:
		in, set := p.Input, p.IPs
		return func(c *streaminfo.Conn) bool { a, ok := in.addr(c); return ok && set.Contains(a) }, nil
	case p.Value != nil:
		in, str := p.Input, *p.Value
		return func(c *streaminfo.Conn) bool {
			var buf [128]byte
			b, ok := in.append(buf[:0], c)
			return ok && str.Match(string(b))
		}, nil
	}
	return nil, errors.New("single_predicate: no value to match")
}

func compilePredicates(ps []Predicate, depth int) ([]func(*streaminfo.Conn) bool, error) {
	fs := make([]func(*streaminfo.Conn) bool, len(ps))
	for i := range ps {
		f, err := compilePredicate(&ps[i], depth+1)
		if err != nil {
			return nil, fmt.Errorf("predicate[%d]: %w", i, err)
		}
		fs[i] = f
	}
	return fs, nil
}

// match returns the leaf that n leads to, nil if none.
func (n *node) match(c *streaminfo.Conn) *node {
	if n.leaf {
		return n
	}
	if m := n.branch(c); m != nil {
		return m
	}
	if n.onNoMatch != nil {
		return n.onNoMatch.match(c)
	}
	return nil
}

//nolint:gocognit // one case for each kind of input
func (n *node) branch(c *streaminfo.Conn) *node {
	switch {
	case n.list != nil:
		for i := range n.list {
			if n.list[i].pred(c) {
				if m := n.list[i].then.match(c); m != nil {
					return m
				}
			}
		}
	case n.isIP:
		a, ok := n.input.addr(c)
		if !ok {
			return nil
		}
		for i, cand := range n.lookupIP(a.WithZone("")) {
			if i > 0 && cand.exclusive {
				continue
			}
			if m := cand.then.match(c); m != nil {
				return m
			}
		}
	case n.exact != nil || n.prefixes != nil:
		var buf [128]byte
		b, ok := n.input.append(buf[:0], c)
		if !ok {
			return nil
		}
		if n.exact != nil {
			if then := n.exact[string(b)]; then != nil {
				return then.match(c)
			}
			return nil
		}
		for i := range n.prefixes {
			if p := n.prefixes[i].prefix; len(b) >= len(p) && string(b[:len(p)]) == p {
				if m := n.prefixes[i].then.match(c); m != nil {
					return m
				}
			}
		}
	}
	return nil
}

func (n *node) lookupIP(a netip.Addr) []ipCandidate {
	i := sort.Search(len(n.ips), func(i int) bool { return a.Less(n.ips[i].from) })
	if i == 0 || n.ips[i-1].to.Less(a) {
		return nil
	}
	return n.ips[i-1].then
}
