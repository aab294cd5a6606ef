package lb

import (
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// edf is an earliest-deadline-first schedule: entry i comes up in proportion
// to weight(i), which is asked again each time.
type edf struct {
	weight func(i int) float64

	mu   sync.Mutex
	heap []deadline
}

type deadline struct {
	at float64
	i  int32
}

// newEDF schedules entries 0 to n-1. The phases are random, so that many
// proxies don't all start with the same host.
func newEDF(n int, weight func(i int) float64) *edf {
	e := &edf{weight: weight, heap: make([]deadline, n)}
	for i := range e.heap {
		e.heap[i] = deadline{rand.Float64() / floor(weight(i)), int32(i)}
	}
	for i := n/2 - 1; i >= 0; i-- {
		e.down(i)
	}
	return e
}

// floor keeps a weight from being so small that its host is never picked
// again.
func floor(w float64) float64 { return max(w, 1e-6) }

func (e *edf) next() int {
	e.mu.Lock()
	top := &e.heap[0]
	i := int(top.i)
	top.at += 1 / floor(e.weight(i))
	e.down(0)
	e.mu.Unlock()
	return i
}

func (e *edf) down(i int) {
	h := e.heap
	for {
		c := 2*i + 1
		if c >= len(h) {
			return
		}
		if c+1 < len(h) && h[c+1].at < h[c].at {
			c++
		}
		if h[i].at <= h[c].at {
			return
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
}

// single picks the only host.
type single int32

func (s single) pick(uint64, int) int { return int(s) }

// rotation is round robin over equal weights.
type rotation struct {
	idx  []int32
	next atomic.Uint64
}

func newRotation(idx []int32) *rotation {
	r := &rotation{idx: idx}
	r.next.Store(rand.Uint64N(uint64(len(idx))))
	return r
}

func (r *rotation) pick(uint64, int) int {
	return int(r.idx[r.next.Add(1)%uint64(len(r.idx))])
}

type randomPicker []int32

func (r randomPicker) pick(uint64, int) int { return int(r[rand.IntN(len(r))]) }

// scheduled picks by weight.
type scheduled struct {
	idx []int32
	edf *edf
}

func (s *scheduled) pick(uint64, int) int { return int(s.idx[s.edf.next()]) }

// scheduled compiles an EDF schedule over idx whose weights are reduced by
// slow start and, if loaded, by active requests.
func (b *builder) scheduled(idx []int32, w []float64, loaded bool) *scheduled {
	active := make([]*atomic.Int64, len(idx))
	since := make([]time.Time, len(idx))
	for k, i := range idx {
		active[k], since[k] = b.hosts[i].Active, b.hosts[i].Since
	}
	warming, bias := b.warming(idx), b.cfg.ActiveRequestBias
	slow := newSlowStart(b)
	weight := func(k int) float64 {
		x := w[k]
		if loaded && active[k] != nil {
			if n := float64(active[k].Load() + 1); bias == 1 {
				x /= n
			} else {
				x /= math.Pow(n, bias)
			}
		}
		if warming {
			x *= slow.factor(since[k])
		}
		return x
	}
	return &scheduled{idx: idx, edf: newEDF(len(idx), weight)}
}

type slowStart struct {
	window          time.Duration
	exponent, least float64
	now             func() time.Time
}

func newSlowStart(b *builder) slowStart {
	s := slowStart{window: b.cfg.SlowStart, exponent: 1, least: 0.1, now: b.now}
	if b.cfg.SlowStartAggression > 0 {
		s.exponent = 1 / b.cfg.SlowStartAggression
	}
	if b.cfg.SlowStartMinWeight > 0 {
		s.least = b.cfg.SlowStartMinWeight / 100
	}
	return s
}

// factor is Envoy's applySlowStartFactor: a new host's share grows with its
// age to the power of 1/aggression, from the least share on.
func (s *slowStart) factor(since time.Time) float64 {
	age := s.now().Sub(since)
	if age >= s.window {
		return 1
	}
	f := max(age.Seconds(), 0.001) / s.window.Seconds()
	return max(s.least, math.Pow(f, s.exponent))
}

// fewest is power of n choices.
type fewest struct {
	idx     []int32
	active  []*atomic.Int64
	choices int
}

func (f *fewest) pick(uint64, int) int {
	best := rand.IntN(len(f.idx))
	for range f.choices - 1 {
		k := rand.IntN(len(f.idx))
		if f.active[k] != nil && f.active[best] != nil && f.active[k].Load() < f.active[best].Load() {
			best = k
		}
	}
	return int(f.idx[best])
}

func (b *builder) leastRequest(idx []int32, w []float64) picker {
	if !equal(w) || b.warming(idx) {
		return b.scheduled(idx, w, b.cfg.ActiveRequestBias > 0)
	}
	f := &fewest{idx: idx, active: make([]*atomic.Int64, len(idx)), choices: b.cfg.ChoiceCount}
	if f.choices < 2 {
		f.choices = 2
	}
	for k, i := range idx {
		f.active[k] = b.hosts[i].Active
	}
	return f
}
