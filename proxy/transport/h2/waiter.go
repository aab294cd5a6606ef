package h2

import "sync"

// waiter is where goroutines wait for a stream. It is small while nobody does; the
// lock that guards it is the same for all calls, until drop.
type waiter struct {
	c *sync.Cond
	n int // goroutines
}

var conds = sync.Pool{New: func() any { return new(sync.Cond) }}

// wait blocks until wake is called; l, which is held, is released meanwhile. The
// last to leave gives back what was needed for it, if tidy.
func (w *waiter) wait(l sync.Locker, tidy bool) {
	if w.c == nil {
		w.c = conds.Get().(*sync.Cond) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	}
	if w.n == 0 {
		w.c.L = l
	}
	w.n++
	w.c.Wait()
	w.n--
	if tidy {
		w.drop()
	}
}

// wake wakes them all. The lock is held.
func (w *waiter) wake() {
	if w.n > 0 {
		w.c.Broadcast()
	}
}

// drop makes w small unless somebody waits. The lock is held.
func (w *waiter) drop() {
	if w.n > 0 || w.c == nil {
		return
	}
	w.c.L = nil
	conds.Put(w.c)
	w.c = nil
}

// waitRead waits for input. s.mu is held.
func (s *stream) waitRead() { s.rwake.wait(&s.mu, s.x == nil) }

// protocol is that of an extended CONNECT whose head is being handled.
func (s *stream) protocol() string {
	if s.x == nil {
		return ""
	}
	return s.x.protocol
}
