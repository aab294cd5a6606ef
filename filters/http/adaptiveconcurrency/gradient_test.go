package adaptiveconcurrency

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// defaults are Envoy's, with a minimum of the next five requests.
func defaults() Gradient {
	return Gradient{
		Percentile: 0.5, Update: 100 * time.Millisecond, Min: 3, Max: 1000,
		Interval: time.Minute, Requests: 5, Probe: 3, Buffer: 0.25,
	}
}

// passage lets n requests pass that take d each, one after the other, and returns the
// time.
func passage(t *testing.T, x *gradient, now time.Duration, n int, d time.Duration) time.Duration {
	t.Helper()
	for range n {
		if !x.admit(now) {
			t.Fatalf("a request alone is refused, limit %d, %d in flight", x.limit.Load(), x.outstanding.Load())
		}
		x.done(now, now+d)
		now += d
	}
	return now
}

// admitted is how many of n requests at once are let in.
func admitted(x *gradient, now time.Duration, n int) (in int) {
	for range n {
		if x.admit(now) {
			in++
		}
	}
	return in
}

// windows lets that many windows pass, with two requests at once that take d.
func windows(t *testing.T, x *gradient, now time.Duration, n int, d time.Duration) time.Duration {
	t.Helper()
	for range n {
		if admitted(x, now, 2) < 2 {
			t.Fatalf("two requests are refused, limit %d", x.limit.Load())
		}
		x.done(now, now+d)
		x.done(now, now+d)
		now += d + x.c.Update
		if x.admit(now) { // closes the window
			x.cancelled()
		}
	}
	return now
}

// The limits are those that Envoy 1.40 comes to from the same latencies.
func TestTheLimitMovesAsEnvoys(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name    string
		change  func(*Gradient)
		first   int64
		sampled []time.Duration // a window each
		limits  []int64
	}{
		{"twice as fast as before, or faster", func(*Gradient) {}, 3, []time.Duration{ms, ms, ms}, []int64{8, 20, 46}},
		{"as fast as before, with the buffer", func(*Gradient) {}, 3, []time.Duration{10 * ms, 10 * ms}, []int64{5, 8}},
		{"as fast as before, without", func(g *Gradient) { g.Buffer = 0 }, 3, []time.Duration{10 * ms, 10 * ms}, []int64{4, 6}},
		{"slower", func(g *Gradient) { g.Buffer = 0 }, 3, []time.Duration{ms, ms, ms, 20 * ms, 20 * ms, 20 * ms}, []int64{8, 20, 46, 28, 18, 12}},
		{"far slower is half as much", func(g *Gradient) { g.Buffer = 0 }, 3, []time.Duration{ms, ms, ms, time.Second}, []int64{8, 20, 46, 27}},
		{"no more than the most", func(g *Gradient) { g.Max = 30 }, 3, []time.Duration{ms, ms, ms}, []int64{8, 20, 30}},
		{"no less than the least", func(g *Gradient) { g.Min = 10 }, 3, []time.Duration{10 * ms, time.Second}, []int64{10, 10}},
		{"the least may be less than what is allowed while measuring", func(g *Gradient) { g.Min = 1 }, 3, []time.Duration{time.Second, time.Second}, []int64{2, 2}},
		{"the least counts where it is more than the most", func(g *Gradient) { g.Min, g.Max = 10, 2 }, 3, []time.Duration{ms}, []int64{10}},
		{"the most is less than the default of the least", func(g *Gradient) { g.Max = 2 }, 3, []time.Duration{ms}, []int64{3}},
		{"a fixed minimum", func(g *Gradient) { g.Fixed = 5 * ms }, 3, []time.Duration{ms, ms}, []int64{8, 20}},
		{"a fixed minimum, from the least on", func(g *Gradient) { g.Fixed, g.Min = 5*ms, 10 }, 10, []time.Duration{ms}, []int64{24}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := defaults()
			c.change(&g)
			x := newGradient(g, gauges{})
			if n := x.limit.Load(); n != c.first || x.measuring != (g.Fixed == 0) {
				t.Fatalf("the limit is %d in the beginning, measuring: %t", n, x.measuring)
			}
			now := time.Duration(0)
			if x.measuring {
				now = passage(t, x, now, 5, 10*ms)
			}
			for i, d := range c.sampled {
				if now = windows(t, x, now, 1, d); x.limit.Load() != c.limits[i] {
					t.Errorf("window %d: the limit is %d, want %d", i, x.limit.Load(), c.limits[i])
				}
			}
		})
	}
}

func TestTheMinimumIsMeasuredAgain(t *testing.T) {
	r := &stats.Registry{}
	sc := r.Scope("")
	g := gauges{measuring: sc.Gauge("measuring"), minRTT: sc.Gauge("min"), limit: sc.Gauge("limit"), sampleRTT: sc.Gauge("sample"), gradient: sc.Gauge("gradient"), burst: sc.Gauge("burst")}
	x := newGradient(defaults(), g)
	now := passage(t, x, 0, 5, 10*time.Millisecond)
	if g.measuring.Value() != 0 || g.minRTT.Value() != 10 {
		t.Fatalf("measuring %d, minimum %d ms", g.measuring.Value(), g.minRTT.Value())
	}
	now = windows(t, x, now, 3, time.Millisecond)
	if x.limit.Load() != 46 || g.limit.Value() != 46 || g.sampleRTT.Value() != 1 || g.gradient.Value() != 2000 || g.burst.Value() != 6 {
		t.Fatalf("limit %d (%d), sample %d ms, gradient %d, burst %d", x.limit.Load(), g.limit.Value(), g.sampleRTT.Value(), g.gradient.Value(), g.burst.Value())
	}
	if !x.admit(now) { // it will see both times
		t.Fatal("refused")
	}
	began := now
	now += time.Minute
	if admitted(x, now, 4) != 2 {
		t.Error("while the minimum is measured three requests are in flight, no more and no fewer")
	}
	if g.measuring.Value() != 1 || g.limit.Value() != 3 {
		t.Errorf("measuring %d, limit %d", g.measuring.Value(), g.limit.Value())
	}
	x.done(began, now)
	x.cancelled()
	x.cancelled()
	if x.hist.n != 0 {
		t.Error("a request that began before counts")
	}
	now = passage(t, x, now, 5, 20*time.Millisecond)
	if g.measuring.Value() != 0 || g.minRTT.Value() != 20 || x.limit.Load() != 46 {
		t.Errorf("measuring %d, minimum %d ms, limit %d", g.measuring.Value(), g.minRTT.Value(), x.limit.Load())
	}
	if next := x.measureAt - now; next != time.Minute {
		t.Errorf("the next is in %s", next)
	}
}

func TestJitterPutsTheNextMeasurementOff(t *testing.T) {
	c := defaults()
	c.Jitter = 0.15
	seen := map[time.Duration]bool{}
	for range 50 {
		x := newGradient(c, gauges{})
		now := passage(t, x, 0, 5, time.Millisecond)
		next := x.measureAt - now
		if next < time.Minute || next > 69*time.Second {
			t.Fatalf("the next is in %s", next)
		}
		seen[next] = true
	}
	if len(seen) < 2 {
		t.Error("it is always the same")
	}
}

func TestALimitThatStaysTheLeastIsMeasuredAgain(t *testing.T) {
	for _, fixed := range []time.Duration{0, time.Millisecond} {
		c := defaults()
		c.Fixed = fixed
		x := newGradient(c, gauges{})
		now := time.Duration(0)
		if fixed == 0 {
			now = passage(t, x, now, 5, time.Millisecond)
		}
		for i := range 5 {
			if now = windows(t, x, now, 1, time.Second); x.measuring {
				t.Fatalf("fixed %s: measured again after %d windows", fixed, i+1)
			}
		}
		now += time.Millisecond
		if x.admit(now); x.measuring != (fixed == 0) {
			t.Errorf("fixed %s: measuring %t", fixed, x.measuring)
		}
	}
}

func TestAWindowWithoutRequestsChangesNothing(t *testing.T) {
	x := newGradient(defaults(), gauges{})
	now := windows(t, x, passage(t, x, 0, 5, time.Millisecond), 2, time.Millisecond)
	limit := x.limit.Load()
	for range 10 {
		now += time.Second
		if x.admit(now) {
			x.cancelled()
		}
	}
	if x.limit.Load() != limit {
		t.Errorf("the limit went from %d to %d", limit, x.limit.Load())
	}
}

func TestNoMoreThanTheLimitAreAdmittedAtOnce(t *testing.T) {
	c := defaults()
	c.Fixed, c.Min, c.Max = time.Hour, 7, 7
	x := newGradient(c, gauges{})
	var most, now atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 1000 {
				if at := time.Duration(now.Add(1)); x.admit(at) {
					if n := x.outstanding.Load(); n > most.Load() {
						most.Store(n)
					}
					x.done(at, time.Duration(now.Add(1)))
				}
			}
		})
	}
	wg.Wait()
	if most.Load() > 7 || x.outstanding.Load() != 0 {
		t.Errorf("%d at once, %d are left", most.Load(), x.outstanding.Load())
	}
}

func TestQuantilesAreExactToTwoDigits(t *testing.T) {
	for range 200 {
		var h histogram
		all := make([]time.Duration, 1+rand.IntN(500))
		for i := range all {
			all[i] = time.Duration(1+rand.IntN(1<<rand.IntN(33))) * time.Microsecond
			h.add(all[i])
		}
		slices.Sort(all)
		for _, q := range []float64{0, 0.5, 0.9, 0.99, 1} {
			want := all[max(int(q*float64(len(all))+0.999999)-1, 0)]
			if got := h.quantile(q); float64(got) < 0.89*float64(want) || float64(got) > 1.11*float64(want) {
				t.Fatalf("%g of %d: %s, want %s", q, len(all), got, want)
			}
		}
	}
	var h histogram
	if h.quantile(0.5) != 0 {
		t.Error("nothing has a quantile")
	}
	h.add(0)
	h.add(1000 * time.Hour)
	if a, b := h.quantile(0), h.quantile(1); a != time.Microsecond || b < 9000*time.Second {
		t.Errorf("%s, %s", a, b)
	}
	if h.reset(); h.quantile(1) != 0 {
		t.Error("what was forgotten counts")
	}
}
