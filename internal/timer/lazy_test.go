package timer

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestALazyTimerFiresOnceInTimeAndNotAfterStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, d := range []time.Duration{1, time.Millisecond, time.Second, lazyCheck, 15 * time.Second, 5 * time.Minute, 25 * time.Hour} {
			var l Lazy
			var fired []time.Duration
			start := time.Now()
			f := func() { fired = append(fired, time.Since(start)) }
			l.ArmAt(start, d, f)
			time.Sleep(d + 2*tick)
			synctest.Wait()
			if len(fired) != 1 || fired[0] < d {
				t.Errorf("armed for %v, fired after %v", d, fired)
			}
			if l.Stop() {
				t.Error("a timer that has run can't be stopped")
			}
			l.ArmAt(time.Now(), d, f)
			if !l.Stop() || l.Stop() {
				t.Error("stop: want true, once")
			}
			time.Sleep(2*d + time.Minute)
			synctest.Wait()
			if len(fired) != 1 {
				t.Errorf("armed for %v and stopped: fired after %v", d, fired)
			}
			if l.entered.Load() {
				t.Error("a stopped timer is still in the wheel")
			}
		}
	})
}

// Whatever was armed and stopped before, the last schedule counts.
func TestALazyTimerKeepsItsLastSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		var l Lazy
		var fired atomic.Int32
		f := func() { fired.Add(1) }
		for i := range 2000 {
			fired.Store(0)
			for range r.IntN(4) {
				l.ArmAt(time.Now(), time.Duration(r.Int64N(int64(time.Hour))), f)
				if r.IntN(2) == 0 {
					l.Stop()
				}
				time.Sleep(time.Duration(r.Int64N(int64(10 * time.Second))))
			}
			synctest.Wait()
			fired.Store(0)
			d := time.Duration(1 + r.Int64N(int64(time.Second)<<r.IntN(10)))
			l.ArmAt(time.Now(), d, f)
			time.Sleep(d - 1)
			synctest.Wait()
			if fired.Load() != 0 {
				t.Fatalf("%d: armed for %v, fired early", i, d)
			}
			time.Sleep(2 * tick)
			synctest.Wait()
			if fired.Load() != 1 {
				t.Fatalf("%d: armed for %v, fired %d times", i, d, fired.Load())
			}
		}
	})
}

func TestConcurrentLazyTimersLoseNothing(t *testing.T) {
	var wg sync.WaitGroup
	var fired, prevented, armed atomic.Int64
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			var ls [16]Lazy
			f := func() { fired.Add(1) }
			for range 1000 {
				l := &ls[r.IntN(len(ls))]
				if l.Stop() {
					prevented.Add(1)
				}
				l.ArmAt(time.Now(), time.Duration(1+r.IntN(20))*time.Millisecond, f)
				armed.Add(1)
				if r.IntN(50) == 0 {
					time.Sleep(time.Millisecond)
				}
			}
			deadline := time.Now().Add(20 * time.Second)
			for i := range ls {
				for ls[i].deadline.Load() != 0 && time.Now().Before(deadline) {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
	deadline := time.Now().Add(20 * time.Second)
	for fired.Load()+prevented.Load() != armed.Load() && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond) // a callback may be on its way
	}
	if f, p, a := fired.Load(), prevented.Load(), armed.Load(); f+p != a {
		t.Errorf("fired %d + prevented %d != armed %d", f, p, a)
	}
}

func BenchmarkLazyArmStop(b *testing.B) {
	var l Lazy
	f := func() {}
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		l.ArmAt(now, 15*time.Second, f)
		l.Stop()
	}
}

// Who stops a timer, and finds that it has not fired, may give it to somebody else.
func TestFiredTellsWhetherACallbackMayRun(t *testing.T) {
	type kind interface {
		ArmAt(now time.Time, d time.Duration, f func())
		Stop() bool
		Fired() bool
	}
	check := func(t *testing.T, l kind) {
		ran := make(chan struct{}, 2)
		goOn := make(chan struct{})
		f := func() { ran <- struct{}{}; <-goOn }
		l.ArmAt(time.Now(), time.Hour, f)
		if !l.Stop() || l.Fired() {
			t.Error("fired before its time")
		}
		l.ArmAt(time.Now(), time.Millisecond, f)
		<-ran
		if l.Stop() || !l.Fired() {
			t.Error("its callback runs, and it has not fired")
		}
		l.ArmAt(time.Now(), time.Hour, f)
		if !l.Stop() || !l.Fired() {
			t.Error("a former callback still runs, and it has not fired")
		}
		close(goOn)
	}
	for name, l := range map[string]func() kind{"timer": func() kind { return new(Timer) }, "lazy": func() kind { return new(Lazy) }} {
		t.Run(name, func(t *testing.T) { check(t, l()) })
		t.Run(name+" in a bubble", func(t *testing.T) { synctest.Test(t, func(t *testing.T) { check(t, l()) }) })
	}
}

// The two directions of a stream arm its idle timer.
func TestTwoGoroutinesMayArm(t *testing.T) {
	var l Lazy
	fired := make(chan struct{}, 1)
	f := func() {
		select {
		case fired <- struct{}{}:
		default:
		}
	}
	for range 3 {
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for range 1000 {
					l.ArmAt(time.Now(), 20*time.Millisecond, f)
				}
			})
		}
		wg.Wait()
		l.ArmAt(time.Now(), 20*time.Millisecond, f)
		select {
		case <-fired:
		case <-time.After(10 * time.Second):
			t.Fatal("it does not fire")
		}
		l.Stop()
		l.ArmAt(time.Now(), time.Millisecond, f)
	}
}
