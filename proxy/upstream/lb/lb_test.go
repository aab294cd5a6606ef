package lb

import (
	"math"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func hosts(weights ...uint32) []Host {
	hs := make([]Host, len(weights))
	for i, w := range weights {
		hs[i] = Host{Weight: w, HashKey: "10.0.0." + strconv.Itoa(i) + ":80", Active: new(atomic.Int64)}
	}
	return hs
}

// shares picks n times and returns each host's share.
func shares(s *Set, hosts, n int) []float64 {
	count := make([]float64, hosts)
	r := Request{}
	for range n {
		if i := s.Pick(&r); i >= 0 {
			count[i]++
		}
	}
	for i := range count {
		count[i] /= float64(n)
	}
	return count
}

func near(t *testing.T, got, want []float64, tolerance float64) {
	t.Helper()
	for i := range want {
		if math.Abs(got[i]-want[i]) > tolerance {
			t.Errorf("shares = %.3f, want %.3f within %.3f", got, want, tolerance)
			return
		}
	}
}

func TestSharesFollowPolicyWeightsHealthAndLocality(t *testing.T) {
	mod := func(hs []Host, f func(i int, h *Host)) []Host {
		for i := range hs {
			f(i, &hs[i])
		}
		return hs
	}
	prio := func(ps ...uint32) func(int, *Host) { return func(i int, h *Host) { h.Priority = ps[i] } }
	health := func(s ...Health) func(int, *Host) { return func(i int, h *Host) { h.Health = s[i] } }
	local := func(ls ...int) func(int, *Host) { return func(i int, h *Host) { h.Locality = ls[i] } }
	one := []Locality{{1}}
	cases := []struct {
		name  string
		cfg   Config
		hosts []Host
		loc   []Locality
		want  []float64
		tol   float64
	}{
		{"round robin is exact", Config{}, hosts(1, 1, 1, 1), one, []float64{.25, .25, .25, .25}, 0.0005},
		{"weighted round robin follows weights", Config{}, hosts(1, 2, 7), one, []float64{.1, .2, .7}, 0.001},
		{"random is uniform and ignores weights", Config{Policy: Random}, hosts(1, 5), one, []float64{.5, .5}, 0.02},
		{"least request without load is uniform", Config{Policy: LeastRequest}, hosts(1, 1, 1), one, []float64{.333, .333, .333}, 0.02},
		{"weighted least request without load follows weights", Config{Policy: LeastRequest, ActiveRequestBias: 1}, hosts(3, 1), one, []float64{.75, .25}, 0.001},
		{"an unhealthy host gets nothing", Config{}, mod(hosts(1, 1, 1), health(Healthy, Unhealthy, Healthy)), one, []float64{.5, 0, .5}, 0.001},
		{"all unhealthy without panic mode gives nothing", Config{}, mod(hosts(1, 1), health(Unhealthy, Unhealthy)), one, []float64{0, 0}, 0},
		{"all unhealthy in panic mode uses all", Config{PanicThreshold: 50}, mod(hosts(1, 1), health(Unhealthy, Unhealthy)), one, []float64{.5, .5}, 0.001},
		{"panic mode that fails traffic", Config{PanicThreshold: 50, FailOnPanic: true}, mod(hosts(1, 1, 1), health(Healthy, Unhealthy, Unhealthy)), one, []float64{0, 0, 0}, 0},
		{"a ring knows no panic that fails", Config{Policy: RingHash, PanicThreshold: 50, FailOnPanic: true}, mod(hosts(1, 1), health(Unhealthy, Unhealthy)), one, []float64{.5, .5}, 0.1},
		{"above the threshold traffic goes on", Config{PanicThreshold: 30, FailOnPanic: true}, mod(hosts(1, 1, 1), health(Healthy, Unhealthy, Unhealthy)), one, []float64{1, 0, 0}, 0},
		{"panic mode below the threshold", Config{PanicThreshold: 50}, mod(hosts(1, 1, 1), health(Healthy, Unhealthy, Unhealthy)), one, []float64{.333, .333, .333}, 0.001},
		{"priority 1 is idle while priority 0 suffices", Config{}, mod(hosts(1, 1), prio(0, 1)), one, []float64{1, 0}, 0},
		// 2 of 4 healthy: 1.4 * 50 = 70 % stay, 30 % go to priority 1.
		{"overprovisioning spills to the next priority", Config{}, mod(mod(hosts(1, 1, 1, 1, 1), prio(0, 0, 0, 0, 1)), health(Healthy, Healthy, Unhealthy, Unhealthy, Healthy)), one, []float64{.35, .35, 0, 0, .30}, 0.02},
		// 4 of 5 healthy: 112 % of what is needed.
		{"overprovisioning hides one dead host of five", Config{}, mod(mod(hosts(1, 1, 1, 1, 1, 1), prio(0, 0, 0, 0, 0, 1)), health(Healthy, Healthy, Healthy, Healthy, Unhealthy, Healthy)), one, []float64{.25, .25, .25, .25, 0, 0}, 0.001},
		{"degraded hosts take what healthy ones cannot", Config{}, mod(hosts(1, 1), health(Healthy, Degraded)), one, []float64{.7, .3}, 0.02},
		{"degraded hosts rest while healthy ones suffice", Config{}, mod(hosts(1, 1, 1, 1), health(Healthy, Healthy, Healthy, Degraded)), one, []float64{.333, .333, .333, 0}, 0.001},
		{"locality weights divide before hosts do", Config{LocalityWeighted: true}, mod(hosts(1, 1, 1), local(0, 1, 1)), []Locality{{1}, {1}}, []float64{.5, .25, .25}, 0.002},
		{"a locality of weight 0 gets nothing", Config{LocalityWeighted: true}, mod(hosts(1, 1), local(0, 1)), []Locality{{0}, {3}}, []float64{0, 1}, 0},
		// Half of locality 0 is down: its weight 1 counts 1.4 * 0.5 = 0.7.
		{"a locality loses weight with its hosts", Config{LocalityWeighted: true}, mod(mod(hosts(1, 1, 1), local(0, 0, 1)), health(Healthy, Unhealthy, Healthy)), []Locality{{1}, {1}}, []float64{.7 / 1.7, 0, 1 / 1.7}, 0.002},
		{"locality weights are ignored unless configured", Config{}, mod(hosts(1, 1), local(0, 1)), []Locality{{1}, {9}}, []float64{.5, .5}, 0.001},
		{"ring hash without a hash spreads by weight", Config{Policy: RingHash, RingMin: 4096}, hosts(1, 3), one, []float64{.25, .75}, 0.05},
		{"maglev without a hash spreads by weight", Config{Policy: Maglev}, hosts(1, 3), one, []float64{.25, .75}, 0.02},
		{"ring hash honours locality weights", Config{Policy: RingHash, LocalityWeighted: true, RingMin: 4096}, mod(hosts(1, 1, 1), local(0, 1, 1)), []Locality{{1}, {1}}, []float64{.5, .25, .25}, 0.05},
	}
	if len(cases) != 24 {
		t.Errorf("%d cases", len(cases))
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			near(t, shares(New(&c.cfg, c.hosts, c.loc), len(c.hosts), 20000), c.want, c.tol)
		})
	}
}

func TestLeastRequestPrefersTheIdleHost(t *testing.T) {
	hs := hosts(1, 1)
	hs[0].Active.Store(100)
	// Host 0 is chosen only if both draws hit it: 1/4.
	near(t, shares(New(&Config{Policy: LeastRequest}, hs, []Locality{{1}}), 2, 20000), []float64{.25, .75}, 0.02)
	// Weighted: the bias divides the weight by active+1.
	hs = hosts(2, 1)
	hs[0].Active.Store(3)
	near(t, shares(New(&Config{Policy: LeastRequest, ActiveRequestBias: 1}, hs, []Locality{{1}}), 2, 20000), []float64{1. / 3, 2. / 3}, 0.01)
}

func TestSlowStartGrowsTheShareOfANewHost(t *testing.T) {
	now := time.Unix(1000, 0)
	hs := hosts(1, 1)
	hs[1].Since = now
	s := New(&Config{SlowStart: 100 * time.Second, Now: func() time.Time { return now }}, hs, []Locality{{1}})
	near(t, shares(s, 2, 20000), []float64{1 / 1.1, .1 / 1.1}, 0.01)
	now = now.Add(50 * time.Second)
	near(t, shares(s, 2, 20000), []float64{1 / 1.5, .5 / 1.5}, 0.01)
	now = now.Add(50 * time.Second)
	near(t, shares(s, 2, 20000), []float64{.5, .5}, 0.01)
}

func TestConsistentHashingIsStableAndMovesLittle(t *testing.T) {
	for _, p := range []Policy{RingHash, Maglev} {
		hs := hosts(1, 1, 1, 1, 1)
		a := New(&Config{Policy: p}, hs, []Locality{{1}})
		b := New(&Config{Policy: p}, hs[:4], []Locality{{1}})
		moved, n := 0, 10000
		for range n {
			r := Request{Hash: rand.Uint64(), HasHash: true}
			i, again, j := a.Pick(&r), a.Pick(&r), b.Pick(&r)
			if i != again {
				t.Fatal("the same hash gave two hosts")
			}
			if i != 4 && i != j {
				moved++
			}
		}
		if moved > n/8 { // naive modulo would move three quarters
			t.Errorf("policy %d: %d of %d keys moved though their host stayed", p, moved, n)
		}
		r := Request{Hash: 1, HasHash: true}
		first := a.Pick(&r)
		for r.Attempt = 1; r.Attempt < 50 && a.Pick(&r) == first; r.Attempt++ {
		}
		if r.Attempt == 50 {
			t.Errorf("policy %d: attempts never move on", p)
		}
	}
}

func TestSkippedPrioritiesAreAvoidedUntilNoneIsLeft(t *testing.T) {
	hs := hosts(1, 1)
	hs[1].Priority = 1
	s := New(&Config{}, hs, []Locality{{1}})
	for mask, want := range map[uint64]int{0: 0, 1: 1, 3: 0} {
		if got := s.Pick(&Request{SkipPriorities: mask}); got != want {
			t.Errorf("skip %b: picked %d, want %d", mask, got, want)
		}
	}
}

func TestLoadsAddUpToOneHundred(t *testing.T) {
	for range 2000 {
		n := rand.IntN(12)
		hs := make([]Host, n)
		usable := false
		for i := range hs {
			hs[i] = Host{Priority: rand.Uint32N(4), Health: Health(rand.IntN(3)), Weight: rand.Uint32N(5), HashKey: strconv.Itoa(i)}
			usable = usable || hs[i].Health != Unhealthy
		}
		threshold := float64(rand.IntN(3) * 50)
		s := New(&Config{PanicThreshold: threshold}, hs, []Locality{{1}})
		if n == 0 || (!usable && threshold == 0) {
			if s.Pick(&Request{}) != -1 {
				t.Fatal("picked from nothing")
			}
			continue
		}
		sum := uint32(0)
		for p := range 4 {
			h, d := s.Load(p)
			sum += h + d
		}
		if sum != 100 {
			t.Fatalf("loads add up to %d: %+v threshold %v", sum, hs, threshold)
		}
		for h := range uint64(100) {
			i := s.Pick(&Request{Hash: h, HasHash: true})
			if i < 0 || (hs[i].Health == Unhealthy && !s.Panicking(int(hs[i].Priority))) {
				t.Fatalf("hash %d picked %d of %+v threshold %v", h, i, hs, threshold)
			}
		}
	}
}

func TestPickDoesNotAllocate(t *testing.T) {
	for _, c := range []Config{{}, {Policy: LeastRequest, ActiveRequestBias: 1}, {Policy: Random}, {Policy: RingHash}, {Policy: Maglev}, {LocalityWeighted: true}} {
		for _, hs := range [][]Host{hosts(1, 1, 1), hosts(1, 2, 3)} {
			hs[2].Locality = 1
			s := New(&c, hs, []Locality{{1}, {2}})
			r := Request{}
			if n := testing.AllocsPerRun(1000, func() { s.Pick(&r) }); n != 0 {
				t.Errorf("%+v: %v allocations a pick", c, n)
			}
		}
	}
}

func TestPickIsSafeForConcurrentUse(t *testing.T) {
	hs := hosts(1, 2, 3)
	s := New(&Config{Policy: LeastRequest, ActiveRequestBias: 1}, hs, []Locality{{1}})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				i := s.Pick(&Request{})
				hs[i].Active.Add(1)
				hs[i].Active.Add(-1)
			}
		})
	}
	wg.Wait()
}

func BenchmarkPick(b *testing.B) {
	for name, c := range map[string]Config{"round_robin": {}, "least_request": {Policy: LeastRequest}, "ring": {Policy: RingHash}, "maglev": {Policy: Maglev}} {
		b.Run(name, func(b *testing.B) {
			s := New(&c, hosts(1, 1, 1, 1, 1, 1, 1, 1), []Locality{{1}})
			for b.Loop() {
				s.Pick(&Request{})
			}
		})
	}
	b.Run("weighted", func(b *testing.B) {
		s := New(&Config{}, hosts(1, 2, 3, 4, 5, 6, 7, 8), []Locality{{1}})
		for b.Loop() {
			s.Pick(&Request{})
		}
	})
}
