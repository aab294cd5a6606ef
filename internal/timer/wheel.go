package timer

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

const (
	tick      = 10 * time.Millisecond
	levelBits = 6
	slots     = 1 << levelBits
	levels    = 6 // 64^6 ticks of 10 ms are 21 years
	maxTicks  = 1<<(levelBits*levels) - 1
	shards    = 8
)

// state is the intrusive list element of a Timer. Each idle connection has some:
// its size matters.
type state struct {
	next, prev *state
	f          func()
	expiry     int64         // tick
	live       atomic.Uint32 // where it is armed: spares Stop the locks
	level      int8
	slot       uint8
	armed      bool
}

// Values of state.live.
const (
	stopped uint32 = iota
	onWheel
	inBubbles

	where uint32 = 3
	fired uint32 = 4 // a bit beside them that stays: see Timer.Fired
)

// wheel is a hierarchical timer wheel without a ticking goroutine: a runtime
// timer is set to the boundary at which the next slot must be looked at, and
// to nothing while no timer is armed.
type wheel struct {
	mu       sync.Mutex
	base     time.Time
	elapsed  int64 // all slots up to this tick have been handled
	occupied [levels]uint64
	heads    [levels][slots]*state
	rt       *time.Timer
	wake     int64 // tick rt is set to, 0 if it is not set
	due      []func()
	count    int
}

var (
	origin = time.Now()
	global = newWheels(origin)
	// bubbles are the timers that were armed in synctest bubbles, which tests have
	// only.
	bubbles = struct {
		mu sync.Mutex
		m  map[*state]*time.Timer
	}{m: map[*state]*time.Timer{}}
)

func newWheels(base time.Time) *[shards]wheel {
	g := &[shards]wheel{}
	for i := range g {
		g[i].base = base
	}
	return g
}

// inBubble reports whether the caller runs in a testing/synctest bubble. Its
// fake clock counts from the year 2000 where a real monotonic clock counts
// from boot, so that the two differ by decades. A bubble can share no timer
// with the rest of the process; timers armed there are runtime timers.
func inBubble(sinceOrigin time.Duration) bool {
	const decade = 10 * 365 * 24 * time.Hour
	return sinceOrigin > decade || sinceOrigin < -decade
}

// arm schedules f; now is since origin: time.Since is half the price of time.Now,
// one clock.
func (s *state) arm(now, d time.Duration, f func()) {
	if d <= 0 {
		s.stop()
		return
	}
	if inBubble(now) {
		s.armBubble(d, f)
		return
	}
	s.wheelOf().arm(s, now, d, f)
}

// wheelOf returns the shard of s, by its address.
func (s *state) wheelOf() *wheel {
	p := uint64(uintptr(unsafe.Pointer(s)))
	return &global[p*0x9e3779b97f4a7c15>>(64-3)]
}

// set is called with the lock held that guards s.
func (s *state) set(live uint32) { s.live.Store(live | s.live.Load()&fired) }

func (s *state) stop() bool {
	switch s.live.Load() & where {
	case stopped:
		return false
	case onWheel:
		return s.wheelOf().stop(s)
	}
	bubbles.mu.Lock()
	defer bubbles.mu.Unlock()
	return s.stopBubble()
}

// stopBubble is called with bubbles.mu held.
func (s *state) stopBubble() bool {
	b := bubbles.m[s]
	delete(bubbles.m, s)
	s.set(stopped)
	if b == nil {
		return false
	}
	prevented := b.Stop()
	if !prevented {
		s.set(fired)
	}
	return prevented
}

func (s *state) armBubble(d time.Duration, f func()) {
	bubbles.mu.Lock()
	defer bubbles.mu.Unlock()
	s.stopBubble()
	bubbles.m[s] = time.AfterFunc(ceilTick(d), f)
	s.set(inBubbles)
}

func ceilTick(d time.Duration) time.Duration {
	if d > maxTicks*tick {
		d = maxTicks * tick
	}
	return (d + tick - 1) / tick * tick
}

// arm schedules s; now counts from the wheel's base.
func (w *wheel) arm(s *state, now, d time.Duration, f func()) {
	d = min(d, maxTicks/2*tick)
	w.mu.Lock()
	if s.armed {
		w.unlink(s)
	}
	if w.count == 0 {
		// Nothing is pending: the wheel may jump to the present.
		w.elapsed = max(w.elapsed, int64(now/tick))
	}
	s.f = f
	s.expiry = max(int64((now+d+tick-1)/tick), w.elapsed+1)
	s.armed = true
	s.set(onWheel)
	w.count++
	w.link(s)
	w.schedule(w.deadline(int(s.level), int(s.slot)), now)
	w.mu.Unlock()
}

func (w *wheel) stop(s *state) bool {
	w.mu.Lock()
	was := s.armed
	if was {
		w.unlink(s)
		s.armed, s.f = false, nil
		s.set(stopped)
	}
	w.mu.Unlock()
	return was
}

// link puts s in the slot of the highest group of bits in which its expiry
// differs from the present.
func (w *wheel) link(s *state) {
	diff := uint64(s.expiry ^ w.elapsed)
	level := 0
	if diff != 0 {
		level = min((bits.Len64(diff)-1)/levelBits, levels-1)
	}
	slot := int(s.expiry>>(levelBits*level)) & (slots - 1)
	s.level, s.slot = int8(level), uint8(slot)
	head := w.heads[level][slot]
	s.prev, s.next = nil, head
	if head != nil {
		head.prev = s
	}
	w.heads[level][slot] = s
	w.occupied[level] |= 1 << slot
}

func (w *wheel) unlink(s *state) {
	if s.next != nil {
		s.next.prev = s.prev
	}
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		w.heads[s.level][s.slot] = s.next
		if s.next == nil {
			w.occupied[s.level] &^= 1 << s.slot
		}
	}
	s.next, s.prev = nil, nil
	w.count--
}

// deadline returns the tick at which a slot must be handled.
func (w *wheel) deadline(level, slot int) int64 {
	shift := levelBits * level
	start := w.elapsed >> (shift + levelBits) << (shift + levelBits)
	t := start + int64(slot)<<shift
	if t < w.elapsed {
		t += 1 << (shift + levelBits)
	}
	return t
}

// next returns the slot that must be handled first.
func (w *wheel) next() (level, slot int, at int64, ok bool) {
	for l := range levels {
		occ := w.occupied[l]
		if occ == 0 {
			continue
		}
		now := int(w.elapsed>>(levelBits*l)) & (slots - 1)
		s := (bits.TrailingZeros64(bits.RotateLeft64(occ, -now)) + now) & (slots - 1)
		return l, s, w.deadline(l, s), true
	}
	return 0, 0, 0, false
}

// schedule makes sure that the runtime timer fires at tick at or before.
func (w *wheel) schedule(at int64, now time.Duration) {
	if w.wake != 0 && w.wake <= at {
		return
	}
	w.wake = max(at, 1)
	d := time.Duration(at)*tick - now
	if w.rt == nil {
		w.rt = time.AfterFunc(d, w.fire)
		return
	}
	w.rt.Reset(d)
}

// fire runs on the goroutine of the runtime timer: the wheel's goroutine.
func (w *wheel) fire() {
	w.mu.Lock()
	if w.due == nil && w.wake == 0 {
		w.mu.Unlock() // a Reset raced with an earlier run: nothing is set
		return
	}
	w.wake = 0
	due := w.due[:0]
	w.due = nil // a concurrent run, if any, uses its own
	now := time.Since(w.base)
	present := int64(now / tick)
	for {
		level, slot, at, ok := w.next()
		if !ok || at > present {
			if ok {
				w.schedule(at, now)
			}
			break
		}
		w.elapsed = max(w.elapsed, at)
		s := w.heads[level][slot]
		w.heads[level][slot] = nil
		w.occupied[level] &^= 1 << slot
		for s != nil {
			n := s.next
			s.next, s.prev = nil, nil
			if s.expiry <= w.elapsed {
				due = append(due, s.f)
				s.armed, s.f = false, nil
				s.live.Store(stopped | fired)
				w.count--
			} else {
				w.link(s)
			}
			s = n
		}
	}
	if w.count == 0 {
		w.elapsed = max(w.elapsed, present)
	}
	w.mu.Unlock()
	for _, f := range due {
		f()
	}
	clear(due)
	w.mu.Lock()
	if w.due == nil {
		w.due = due[:0]
	}
	w.mu.Unlock()
}
