// Package hamt has maps whose states cost nothing to keep: a Snapshot of a Map is
// taken in constant time and shares with later states what has not changed, and
// two Snapshots are compared in the time that their difference takes. It is a
// hash array mapped trie (Bagwell, Ideal Hash Trees, 2001).
package hamt

import (
	"hash/maphash"
	"iter"
	"math/bits"
	"slices"
)

// seed is one for all maps, so that their tries can be compared.
var seed = maphash.MakeSeed()

const (
	step = 5  // bits of a hash that choose a kid
	full = 64 // bits of a hash; nodes below have the same ones
)

// owner is who may change a node in place. Two of them have different addresses.
type owner struct{ _ byte }

type node[V any] struct {
	own  *owner
	bits uint32 // kids that there are; of no meaning below full
	kids []kid[V]
}

// kid is a node or a leaf.
type kid[V any] struct {
	sub  *node[V]
	leaf *leaf[V]
}

// leaf is never changed.
type leaf[V any] struct {
	hash uint64
	key  string
	val  V
}

// Map maps strings to values. The zero Map is empty. It is not safe for concurrent
// use; Snapshots of it are.
type Map[V any] struct {
	s   Snapshot[V]
	own *owner // nil: every node is shared with a Snapshot
}

// Snapshot is one state of a Map. It is immutable. The zero Snapshot is empty.
type Snapshot[V any] struct {
	root *node[V]
	n    int
}

// Snapshot returns the state of m, which later changes of m don't touch.
func (m *Map[V]) Snapshot() Snapshot[V] {
	m.own = nil
	return m.s
}

// Len is the number of keys.
func (m *Map[V]) Len() int { return m.s.n }

// Get returns the value of a key; ok tells whether there is one.
func (m *Map[V]) Get(key string) (v V, ok bool) { return m.s.Get(key) }

// All yields what m holds in no particular order. m must not change meanwhile.
func (m *Map[V]) All() iter.Seq2[string, V] { return m.s.All() }

// Set sets the value of a key.
func (m *Map[V]) Set(key string, v V) {
	m.edit()
	m.s.root = m.set(m.s.root, 0, &leaf[V]{maphash.String(seed, key), key, v})
}

// Delete removes a key, and reports whether it was there.
func (m *Map[V]) Delete(key string) bool {
	if _, ok := m.s.Get(key); !ok {
		return false
	}
	m.edit()
	m.s.root = m.remove(m.s.root, 0, maphash.String(seed, key), key)
	m.s.n--
	return true
}

func (m *Map[V]) edit() {
	if m.own == nil {
		m.own = new(owner)
	}
}

// mine returns a node of n's content that may be changed.
func (m *Map[V]) mine(n *node[V]) *node[V] {
	if n.own == m.own {
		return n
	}
	return &node[V]{m.own, n.bits, slices.Clone(n.kids)}
}

// slot returns the bit of a hash at a depth, and where its kid is, or would be.
func (n *node[V]) slot(hash uint64, depth uint) (bit uint32, i int) {
	bit = 1 << (hash >> depth & (1<<step - 1))
	return bit, bits.OnesCount32(n.bits & (bit - 1))
}

// alone returns a node with one leaf.
func (m *Map[V]) alone(depth uint, l *leaf[V]) *node[V] {
	n := &node[V]{own: m.own, kids: []kid[V]{{leaf: l}}}
	if depth < full {
		n.bits, _ = n.slot(l.hash, depth)
	}
	return n
}

func (m *Map[V]) set(n *node[V], depth uint, l *leaf[V]) *node[V] {
	if n == nil {
		m.s.n++
		return m.alone(depth, l)
	}
	n = m.mine(n)
	if depth >= full {
		if i := n.find(l.key); i >= 0 {
			n.kids[i].leaf = l
			return n
		}
		m.s.n++
		n.kids = append(n.kids, kid[V]{leaf: l})
		return n
	}
	bit, i := n.slot(l.hash, depth)
	if n.bits&bit == 0 {
		m.s.n++
		n.bits |= bit
		n.kids = slices.Insert(n.kids, i, kid[V]{leaf: l})
		return n
	}
	switch k := &n.kids[i]; {
	case k.sub != nil:
		k.sub = m.set(k.sub, depth+step, l)
	case k.leaf.hash == l.hash && k.leaf.key == l.key:
		k.leaf = l
	default: // two have to share the place
		*k = kid[V]{sub: m.set(m.alone(depth+step, k.leaf), depth+step, l)}
	}
	return n
}

// find looks for a key below full.
func (n *node[V]) find(key string) int {
	return slices.IndexFunc(n.kids, func(k kid[V]) bool { return k.leaf.key == key })
}

// remove removes a key that is there. It returns nil if nothing is left.
func (m *Map[V]) remove(n *node[V], depth uint, hash uint64, key string) *node[V] {
	n = m.mine(n)
	bit, i := n.slot(hash, depth)
	if depth >= full {
		bit, i = 0, n.find(key)
	}
	k := &n.kids[i]
	var sub *node[V]
	if k.sub != nil {
		sub = m.remove(k.sub, depth+step, hash, key)
	}
	switch {
	case sub == nil:
		n.bits &^= bit
		n.kids = slices.Delete(n.kids, i, i+1)
	case len(sub.kids) == 1 && sub.kids[0].leaf != nil:
		*k = sub.kids[0]
	default:
		k.sub = sub
	}
	if len(n.kids) == 0 {
		return nil
	}
	return n
}

// Len is the number of keys.
func (s Snapshot[V]) Len() int { return s.n }

// Same reports whether s and o are of one Map that did not change in between. Two
// that are not the same may be equal.
func (s Snapshot[V]) Same(o Snapshot[V]) bool { return s.root == o.root }

// Get returns the value of a key; ok tells whether there is one.
func (s Snapshot[V]) Get(key string) (v V, ok bool) {
	if s.root == nil {
		return v, false
	}
	n, hash := s.root, maphash.String(seed, key)
	for depth := uint(0); depth < full; depth += step {
		bit, i := n.slot(hash, depth)
		if n.bits&bit == 0 {
			return v, false
		}
		k := &n.kids[i]
		if l := k.leaf; l != nil {
			if l.hash == hash && l.key == key {
				return l.val, true
			}
			return v, false
		}
		n = k.sub
	}
	if i := n.find(key); i >= 0 {
		return n.kids[i].leaf.val, true
	}
	return v, false
}

// All yields what s holds in no particular order.
func (s Snapshot[V]) All() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		kid[V]{sub: s.root}.each(func(l *leaf[V]) bool { return yield(l.key, l.val) })
	}
}

// each calls f for the leaves below k until it returns false.
func (k kid[V]) each(f func(*leaf[V]) bool) bool {
	if k.leaf != nil {
		return f(k.leaf)
	}
	if k.sub != nil {
		for i := range k.sub.kids {
			if !k.sub.kids[i].each(f) {
				return false
			}
		}
	}
	return true
}
