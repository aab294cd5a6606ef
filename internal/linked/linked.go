// Package linked provides a list whose links are part of its elements: to be in it
// costs an element two pointers and no allocation, and it leaves in constant time.
//
// A list has no lock of its own: what guards it mostly guards more. Nothing that
// may block, or take the element out, belongs below that lock; so whoever has to
// judge all elements takes a Snapshot of them, and asks Linked, with the lock held
// again, before each.
package linked

import "iter"

// Node is what an element of type T embeds, by value, to be in one list at a time.
// The zero value is in none. An element that is in a list must not be copied.
type Node[T any] struct {
	// next and prev make a ring of the elements; nil in no list.
	next, prev *T
}

// Linked reports whether the element is in a list. It wants the lock of that list.
func (n *Node[T]) Linked() bool { return n.next != nil }

func (n *Node[T]) node() *Node[T] { return n }

// element is a pointer to a T that embeds Node[T].
type element[T any] interface {
	*T
	node() *Node[T]
}

// List is a list of elements *T, written List[T, *T]. The zero value is empty. Its
// owner guards it, and its elements' nodes.
type List[T any, P element[T]] struct {
	first P
	n     int
}

// Len is the number of elements.
func (l *List[T, P]) Len() int { return l.n }

// Front is the first element, nil if there is none.
func (l *List[T, P]) Front() P { return l.first }

// PushFront makes e, which must be in no list, the first.
func (l *List[T, P]) PushFront(e P) {
	l.PushBack(e)
	l.first = e
}

// PushBack makes e, which must be in no list, the last.
func (l *List[T, P]) PushBack(e P) {
	n := e.node()
	if n.Linked() {
		panic("linked: the element is in a list already")
	}
	if l.first == nil {
		l.first = e
		n.next, n.prev = e, e
	} else {
		first := l.first.node()
		n.next, n.prev = l.first, first.prev
		P(first.prev).node().next = e
		first.prev = e
	}
	l.n++
}

// Remove takes e out and reports whether it was in. It must not be in another list.
func (l *List[T, P]) Remove(e P) bool {
	n := e.node()
	if !n.Linked() {
		return false
	}
	if l.n--; l.n == 0 {
		l.first = nil
	} else {
		P(n.prev).node().next, P(n.next).node().prev = n.next, n.prev
		if l.first == e {
			l.first = n.next
		}
	}
	n.next, n.prev = nil, nil
	return true
}

// PopFront takes the first element out; nil if there is none.
func (l *List[T, P]) PopFront() P {
	e := l.first
	if e != nil {
		l.Remove(e)
	}
	return e
}

// All ranges over the elements, front to back. The list must not change meanwhile.
func (l *List[T, P]) All() iter.Seq[P] {
	return func(yield func(P) bool) {
		for e, i := l.first, 0; i < l.n; e, i = P(e.node().next), i+1 {
			if !yield(e) {
				return
			}
		}
	}
}

// Snapshot returns the elements, front to back, in a slice that is the caller's.
func (l *List[T, P]) Snapshot() []P {
	out := make([]P, 0, l.n)
	for e := range l.All() {
		out = append(out, e)
	}
	return out
}
