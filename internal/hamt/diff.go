package hamt

import "math/bits"

// Diff calls f for each key whose value differs, in no particular order; the value
// of a key that is not there is V's zero. What a and b share is passed over.
func Diff[V comparable](a, b Snapshot[V], f func(key string, was, is V)) {
	d := differ[V]{f: f}
	d.compare(kid[V]{sub: a.root}, kid[V]{sub: b.root}, 0)
}

type differ[V comparable] struct {
	f func(key string, was, is V)
}

func (d differ[V]) compare(a, b kid[V], depth uint) {
	switch {
	case a == b:
	case a.sub != nil && b.sub != nil && depth < full:
		d.nodes(a.sub, b.sub, depth)
	default:
		d.leaves(a, b)
	}
}

func (d differ[V]) nodes(a, b *node[V], depth uint) {
	i, k := 0, 0
	for left := a.bits | b.bits; left != 0; left &= left - 1 {
		bit := uint32(1) << bits.TrailingZeros32(left)
		var x, y kid[V]
		if a.bits&bit != 0 {
			x, i = a.kids[i], i+1
		}
		if b.bits&bit != 0 {
			y, k = b.kids[k], k+1
		}
		d.compare(x, y, depth+step)
	}
}

// leaves compares where at most one side has many leaves, or there is nothing to
// tell them apart by.
func (d differ[V]) leaves(a, b kid[V]) {
	var none V
	b.each(func(y *leaf[V]) bool {
		x := a.leafOf(y.key)
		switch {
		case x == nil:
			d.tell(y.key, none, y.val)
		case x != y:
			d.tell(y.key, x.val, y.val)
		}
		return true
	})
	a.each(func(x *leaf[V]) bool {
		if b.leafOf(x.key) == nil {
			d.tell(x.key, x.val, none)
		}
		return true
	})
}

func (d differ[V]) tell(key string, was, is V) {
	if was != is {
		d.f(key, was, is)
	}
}

// leafOf looks through all leaves below k.
func (k kid[V]) leafOf(key string) (l *leaf[V]) {
	k.each(func(x *leaf[V]) bool {
		if x.key == key {
			l = x
		}
		return l == nil
	})
	return l
}
