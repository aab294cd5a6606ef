package timer

import (
	"sync"
	"sync/atomic"
	"time"
)

// Lazy is a Timer for what is armed and stopped all the time and hardly ever
// fires: a request's timeouts. Arm and Stop note the deadline; the wheel keeps
// an entry behind it that looks at the deadline now and then, and leaves some
// time after the last Stop. The zero Lazy is stopped. Any goroutine may call its
// methods; if two call ArmAt at once, it should be for about the same time.
type Lazy struct {
	deadline atomic.Int64 // since origin; 0: stopped
	entered  atomic.Bool  // the wheel has an entry, or look is deciding about one
	fired    atomic.Bool  // see Fired
	next     atomic.Int64 // when the entry looks, since origin

	mu       sync.Mutex // of making the entry: next is when t fires
	t        Timer
	f, check func()
}

const (
	// lazyCheck is how soon the entry looks after it was made, lazyPart the part
	// of the remaining time that it waits after that.
	lazyCheck = 2 * time.Second
	lazyPart  = 8
)

// ArmAt schedules f once after now, a reading of the clock that the caller has,
// plus d, replacing an earlier schedule. d <= 0 stops the timer. The f of the
// first call counts: it must be the same in all.
func (l *Lazy) ArmAt(now time.Time, d time.Duration, f func()) {
	if d <= 0 {
		l.Stop()
		return
	}
	since := now.Sub(origin)
	at := int64(since + d)
	if at == 0 {
		at = 1
	}
	l.deadline.Store(at)
	if (l.entered.Load() || l.entered.Swap(true)) && at >= l.next.Load() {
		return // it looks in time, or is just looking and will look again
	}
	l.enter(since, min(d, lazyCheck), f)
}

// enter makes the entry look after d.
func (l *Lazy) enter(now, d time.Duration, f func()) {
	l.mu.Lock()
	if l.check == nil {
		l.f, l.check = f, l.look
	}
	l.next.Store(int64(now + d))
	l.t.arm(now, d, l.check)
	l.mu.Unlock()
}

// Stop cancels the schedule. It reports whether the callback was prevented;
// false means that it never was armed, has run, or is running.
func (l *Lazy) Stop() bool {
	return l.deadline.Load() != 0 && l.deadline.Swap(0) != 0
}

// Fired reports, after Stop, whether the callback of any schedule has ever been
// taken to be run: it may be running now. What owns the timer must then not
// be given to somebody else.
func (l *Lazy) Fired() bool { return l.fired.Load() }

// look runs on the wheel's goroutine. Whoever changes the deadline does so
// before looking at the entry; look changes the entry before it looks at the
// deadline again: one of the two sees the other.
func (l *Lazy) look() {
	for {
		at := l.deadline.Load()
		now := time.Since(origin)
		rest := time.Duration(at) - now
		switch {
		case at == 0:
			l.entered.Store(false)
			if l.deadline.Load() == 0 || l.entered.Swap(true) {
				return
			}
		case rest > 0:
			l.enter(now, min(rest, max(lazyCheck, rest/lazyPart)), nil)
			if l.deadline.Load() == at {
				return
			}
		case l.take(at):
			l.entered.Store(false)
			if l.deadline.Load() != 0 && !l.entered.Swap(true) {
				l.enter(now, 1, nil)
			}
			l.f()
			return
		}
	}
}

// take is true if the schedule that ends at this time still counts. Who finds it
// gone in Stop sees it fired.
func (l *Lazy) take(at int64) bool {
	l.fired.Store(true)
	return l.deadline.CompareAndSwap(at, 0)
}
