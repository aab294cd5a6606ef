package routing

import (
	"slices"
	"strings"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

const (
	// minIndexed is how many routes a virtual host needs to be indexed; fewer
	// are scanned.
	minIndexed = 8
	// maxLists bounds the candidate lists of one lookup; a path with more
	// nested prefixes is scanned.
	maxLists = 32
)

// routeIndex narrows the routes of a virtual host to those whose path can
// match, keeping their order: candidates come from an exact map, a trie of
// prefixes, and a list of all routes that match otherwise.
type routeIndex struct {
	exact  map[string][]int32
	prefix *trieNode
	other  []int32
}

// trieNode is a node of a radix trie over prefixes.
type trieNode struct {
	label    string
	routes   []int32 // routes whose prefix ends here, ascending
	children []*trieNode
}

func indexRoutes(routes []entry) *routeIndex {
	if len(routes) < minIndexed {
		return nil
	}
	x := &routeIndex{exact: map[string][]int32{}, prefix: &trieNode{}}
	for i := range routes {
		spec, n := routes[i].match.spec, int32(i)
		switch {
		case spec.Kind == xdsresource.PathExact && !spec.IgnoreCase:
			x.exact[spec.Path] = append(x.exact[spec.Path], n)
		case (spec.Kind == xdsresource.PathPrefix || spec.Kind == xdsresource.PathSeparatedPrefix) && !spec.IgnoreCase:
			x.prefix.insert(spec.Path, n)
		default:
			x.other = append(x.other, n)
		}
	}
	return x
}

func (t *trieNode) insert(key string, route int32) {
	if key == "" {
		t.routes = append(t.routes, route)
		return
	}
	i, found := t.child(key[0])
	if !found {
		t.children = slices.Insert(t.children, i, &trieNode{label: key, routes: []int32{route}})
		return
	}
	c := t.children[i]
	n := commonPrefix(c.label, key)
	if n < len(c.label) {
		low := &trieNode{label: c.label[n:], routes: c.routes, children: c.children}
		*c = trieNode{label: c.label[:n], children: []*trieNode{low}}
	}
	c.insert(key[n:], route)
}

// child returns the position of the child that starts with b.
func (t *trieNode) child(b byte) (int, bool) {
	return slices.BinarySearchFunc(t.children, b, func(c *trieNode, b byte) int { return int(c.label[0]) - int(b) })
}

func commonPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// find returns the first entry that matches q, which has a path.
func (x *routeIndex) find(routes []entry, q *request) *entry {
	var lists [maxLists][]int32
	n := 0
	if l := x.exact[q.path]; len(l) > 0 {
		lists[n] = l
		n++
	}
	if len(x.other) > 0 {
		lists[n] = x.other
		n++
	}
	t, rest := x.prefix, q.path
	for {
		if len(t.routes) > 0 {
			if n == maxLists {
				return scan(routes, q)
			}
			lists[n] = t.routes
			n++
		}
		if rest == "" {
			break
		}
		i, found := t.child(rest[0])
		if !found || !strings.HasPrefix(rest, t.children[i].label) {
			break
		}
		t = t.children[i]
		rest = rest[len(t.label):]
	}
	for {
		best := -1
		for i := range n {
			if len(lists[i]) > 0 && (best < 0 || lists[i][0] < lists[best][0]) {
				best = i
			}
		}
		if best < 0 {
			return nil
		}
		e := &routes[lists[best][0]]
		if e.match.matches(q) {
			return e
		}
		lists[best] = lists[best][1:]
	}
}

func scan(routes []entry, q *request) *entry {
	for i := range routes {
		if routes[i].match.matches(q) {
			return &routes[i]
		}
	}
	return nil
}
