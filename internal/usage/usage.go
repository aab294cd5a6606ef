// Package usage tells when the last user of something that was replaced has
// gone: the filters of a former configuration, say, under streams that go on.
package usage

import (
	"math/rand/v2"
	"sync/atomic"
)

// cells spread a Count that is contended.
const cells = 16

type cell struct {
	n atomic.Int64
	_ [56]byte // a cache line each
}

// Count counts who uses a thing. It takes 32 bytes until two users collide on it,
// then a kilobyte more. The zero Count is ready; it is safe for concurrent use.
type Count struct {
	base   atomic.Int64
	spread atomic.Pointer[[cells]cell]
	unused atomic.Pointer[func()] // see Retire
	told   atomic.Bool
}

// Ticket is what Undo needs of an Enter.
type Ticket uint8

// inBase is the Ticket of who was counted before there were cells.
const inBase = Ticket(cells)

// Enter counts a user. Who takes a thing from where it may be replaced looks again
// after Enter; if it was replaced meanwhile, Undo follows, and the user takes what
// is there now.
func (c *Count) Enter() Ticket { return c.add(1) }

// Leave ends a use. The last one of a retired thing calls what Retire was given.
func (c *Count) Leave() {
	c.add(-1)
	c.tell()
}

// Undo takes an Enter back.
func (c *Count) Undo(t Ticket) {
	// Where it was counted: who sums up meanwhile must not see half of it.
	if t == inBase {
		c.base.Add(-1)
	} else {
		c.spread.Load()[t].n.Add(-1)
	}
	c.tell()
}

// Retire has f called once, as soon as nobody uses the thing: at once, or by the
// last user. It may be called once, after the thing was replaced: who enters from
// then on undoes that. f must not block.
func (c *Count) Retire(f func()) {
	c.unused.Store(&f)
	c.tell()
}

func (c *Count) add(n int64) Ticket {
	if s := c.spread.Load(); s != nil {
		i := rand.Uint32() % cells
		s[i].n.Add(n)
		return Ticket(i)
	}
	old := c.base.Load()
	if !c.base.CompareAndSwap(old, old+n) {
		c.base.Add(n)
		c.spread.CompareAndSwap(nil, new([cells]cell))
	}
	return inBase
}

// tell calls what Retire was given if nobody is left.
func (c *Count) tell() {
	f := c.unused.Load()
	if f != nil && c.users() == 0 && c.told.CompareAndSwap(false, true) {
		(*f)()
	}
}

// users is, of a retired thing, never less than how many use it: all that will
// stay have been counted. Cells come first, as who is counted before there were any
// leaves by them.
func (c *Count) users() int64 {
	var n int64
	if s := c.spread.Load(); s != nil {
		for i := range s {
			n += s[i].n.Load()
		}
	}
	return n + c.base.Load()
}
