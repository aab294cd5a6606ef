// Package timer provides coarse timers for the data path. A request arms and
// stops several of them; runtime timers and per-I/O deadlines would cost more
// than the work they guard, so all timers of a process share sharded wheels
// with a resolution of about 10 ms. A timer never fires early, and fires at
// most two ticks late plus scheduling.
package timer

import "time"

// Timer is one timer, embedded in what it guards. The zero Timer is stopped.
// Arm and Stop may be called by any goroutine. The callback runs on the
// wheel's goroutine and must not block: it sets a cause and wakes somebody.
type Timer struct {
	state
}

// Arm schedules f once after d, replacing an earlier schedule. d <= 0 stops
// the timer. f should be a method value kept by the owner, so that arming does
// not allocate.
func (t *Timer) Arm(d time.Duration, f func()) { t.arm(time.Since(origin), d, f) }

// ArmAt is Arm for a caller that has just read the clock, which is most of the
// price: the timer fires d after now. A now in the past makes it fire earlier.
func (t *Timer) ArmAt(now time.Time, d time.Duration, f func()) { t.arm(now.Sub(origin), d, f) }

// Stop cancels the schedule. It reports whether the callback was prevented;
// false means that it never was armed, has run, or is running.
func (t *Timer) Stop() bool { return t.stop() }

// Fired reports, after Stop, whether the callback of any schedule has ever been
// taken to be run: it may be running now. What owns the timer must then not
// be given to somebody else.
func (t *Timer) Fired() bool { return t.live.Load()&fired != 0 }
