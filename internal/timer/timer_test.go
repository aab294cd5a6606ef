package timer

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestATimerFiresOnceAndNotEarly(t *testing.T) {
	for _, d := range []time.Duration{1, time.Millisecond, 9 * time.Millisecond, 10 * time.Millisecond, 55 * time.Millisecond} {
		var tm Timer
		start := time.Now()
		fired := make(chan time.Duration, 2)
		tm.Arm(d, func() { fired <- time.Since(start) })
		if got := <-fired; got < d {
			t.Errorf("armed for %v, fired after %v", d, got)
		}
		if tm.Stop() {
			t.Error("a timer that has run can't be stopped")
		}
		time.Sleep(25 * time.Millisecond)
		if len(fired) != 0 {
			t.Error("fired twice")
		}
	}
}

func TestAStoppedTimerDoesNotFire(t *testing.T) {
	var tm Timer
	if tm.Stop() {
		t.Error("the zero Timer is stopped")
	}
	var n atomic.Int32
	tm.Arm(20*time.Millisecond, func() { n.Add(1) })
	if !tm.Stop() {
		t.Error("stop: want true")
	}
	if tm.Stop() {
		t.Error("stopped twice: want false")
	}
	tm.Arm(20*time.Millisecond, func() { n.Add(1) })
	tm.Arm(0, nil)
	time.Sleep(60 * time.Millisecond)
	if n.Load() != 0 {
		t.Error("fired")
	}
}

func TestArmReplacesTheSchedule(t *testing.T) {
	var tm Timer
	ch := make(chan int, 2)
	tm.Arm(20*time.Millisecond, func() { ch <- 1 })
	tm.Arm(40*time.Millisecond, func() { ch <- 2 })
	if got := <-ch; got != 2 {
		t.Errorf("got %d", got)
	}
	tm.Arm(time.Hour, func() { ch <- 3 })
	tm.Arm(20*time.Millisecond, func() { ch <- 4 })
	if got := <-ch; got != 4 {
		t.Errorf("got %d", got)
	}
}

func TestArmAndStopDoNotAllocate(t *testing.T) {
	var tm Timer
	f := func() {}
	tm.Arm(time.Hour, f)
	if n := testing.AllocsPerRun(1000, func() {
		tm.Arm(15*time.Second, f)
		tm.Stop()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// The wheel itself, on a fake clock: every level, never early, at most one
// tick after the boundary.
func TestTheWheelIsNeverEarlyAndAtMostTwoTicksLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := wheel{base: time.Now()}
		r := rand.New(rand.NewPCG(1, 2))
		const n = 3000
		var fired, stopped atomic.Int32
		ts := make([]state, n)
		for i := range ts {
			d := time.Duration(r.Int64N(int64(1) << (20 + r.IntN(32))))
			start := time.Now()
			w.arm(&ts[i], start.Sub(w.base), d+1, func() {
				late := time.Since(start) - d - 1
				if late < 0 || late > 2*tick {
					t.Errorf("armed for %v: late by %v", d, late)
				}
				fired.Add(1)
			})
			if i%7 == 0 && w.stop(&ts[i]) {
				stopped.Add(1)
			}
			if i%50 == 0 {
				time.Sleep(time.Duration(r.Int64N(int64(time.Minute))))
			}
		}
		time.Sleep(120 * 24 * time.Hour)
		synctest.Wait()
		if f, s := fired.Load(), stopped.Load(); f+s != n || w.count != 0 {
			t.Errorf("fired %d, stopped %d of %d; %d left", f, s, n, w.count)
		}
		w.mu.Lock()
		if w.wake != 0 {
			t.Error("the runtime timer is set while nothing is armed")
		}
		w.mu.Unlock()
	})
}

func TestTimersWorkInBubblesAndOutsideAtTheSameTime(t *testing.T) {
	var out Timer
	ch := make(chan struct{})
	out.Arm(50*time.Millisecond, func() { close(ch) })
	synctest.Test(t, func(t *testing.T) {
		var a, b Timer
		start := time.Now()
		var at time.Duration
		a.Arm(15*time.Second, func() { at = time.Since(start) })
		b.Arm(15*time.Second, func() { t.Error("stopped") })
		if !b.Stop() {
			t.Error("stop: want true")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if at < 15*time.Second || at > 15*time.Second+2*tick {
			t.Errorf("fired after %v", at)
		}
		if a.Stop() {
			t.Error("has run: want false")
		}
		a.Arm(time.Second, func() { at = time.Since(start) })
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if at < 61*time.Second {
			t.Errorf("fired after %v", at)
		}
	})
	<-ch
}

func TestConcurrentArmAndStopLoseNothing(t *testing.T) {
	var wg sync.WaitGroup
	var fired, prevented, armed atomic.Int64
	const goroutines = 8
	all := make(chan *[32]Timer, goroutines)
	for g := range goroutines {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			var ts [32]Timer
			for range 2000 {
				tm := &ts[r.IntN(len(ts))]
				if tm.Stop() {
					prevented.Add(1)
				}
				tm.Arm(time.Duration(1+r.IntN(30))*time.Millisecond, func() { fired.Add(1) })
				armed.Add(1)
			}
			all <- &ts
		})
	}
	wg.Wait()
	// However late a busy machine makes them, each timer either fires or was
	// prevented from it.
	deadline := time.Now().Add(20 * time.Second)
	for fired.Load()+prevented.Load() != armed.Load() && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if f, p, a := fired.Load(), prevented.Load(), armed.Load(); f+p != a {
		t.Errorf("fired %d + prevented %d != armed %d", f, p, a)
	}
	for range goroutines {
		for i, ts := 0, <-all; i < len(ts); i++ {
			if ts[i].Stop() {
				t.Error("still armed")
			}
		}
	}
}

func BenchmarkArmStop(b *testing.B) {
	var tm Timer
	f := func() {}
	b.ReportAllocs()
	for b.Loop() {
		tm.Arm(15*time.Second, f)
		tm.Stop()
	}
}
