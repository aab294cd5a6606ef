// Package stats holds the process's metrics: Envoy-named counters, gauges and
// histograms for operators, and labelled families (Istio's standard metrics)
// for dashboards. Handles are taken while configuration is compiled and never
// looked up while a request is served. Exposition is Prometheus text.
package stats

import (
	"math"
	"math/rand/v2"
	"sort"
	"sync/atomic"
	"time"
)

// shards is the number of cells that a contended metric is spread over, a
// power of two.
const shards = 8

// sum is a counter that is spread over padded cells once two goroutines were
// seen to collide on it: most metrics of a process never are contended, and
// stay 16 bytes.
type sum struct {
	base  atomic.Int64
	cells atomic.Pointer[[shards]cell]
}

type cell struct {
	n atomic.Int64
	_ [56]byte // a cache line each
}

func (s *sum) add(n int64) {
	if c := s.cells.Load(); c != nil {
		c[rand.Uint32()%shards].n.Add(n)
		return
	}
	old := s.base.Load()
	if s.base.CompareAndSwap(old, old+n) {
		return
	}
	s.base.Add(n)
	s.cells.CompareAndSwap(nil, new([shards]cell))
}

func (s *sum) load() int64 {
	n := s.base.Load()
	if c := s.cells.Load(); c != nil {
		for i := range c {
			n += c[i].n.Load()
		}
	}
	return n
}

// Counter only goes up. A nil *Counter discards. Safe for concurrent use.
type Counter struct{ v sum }

// Inc adds one.
func (c *Counter) Inc() { c.Add(1) }

// Add adds n.
func (c *Counter) Add(n uint64) {
	if c != nil {
		c.v.add(int64(n))
	}
}

// Value returns the current sum.
func (c *Counter) Value() uint64 {
	if c == nil {
		return 0
	}
	return uint64(c.v.load())
}

// Gauge goes up and down. A nil *Gauge discards. Safe for concurrent use.
type Gauge struct{ v atomic.Int64 }

// Add adds n, which may be negative.
func (g *Gauge) Add(n int64) {
	if g != nil {
		g.v.Add(n)
	}
}

// Set replaces the value.
func (g *Gauge) Set(n int64) {
	if g != nil {
		g.v.Store(n)
	}
}

// Value returns the current value.
func (g *Gauge) Value() int64 {
	if g == nil {
		return 0
	}
	return g.v.Load()
}

// Histogram counts observations in fixed buckets. A nil *Histogram discards.
// Safe for concurrent use.
type Histogram struct {
	bounds []float64 // ascending, without +Inf; shared
	// parts[0] is made by the first observation, the others once two
	// observations collided.
	parts [shards]atomic.Pointer[part]
	wide  atomic.Bool
}

// part is one shard of a histogram.
type part struct {
	sum    atomic.Uint64 // bits of a float64
	counts []atomic.Uint64
}

// Observe records v, in the unit that the metric's name states. NaN is
// discarded.
func (h *Histogram) Observe(v float64) {
	if h == nil || v != v {
		return
	}
	i := 0
	if h.wide.Load() {
		i = int(rand.Uint32() % shards)
	}
	p := h.parts[i].Load()
	if p == nil {
		h.parts[i].CompareAndSwap(nil, &part{counts: make([]atomic.Uint64, len(h.bounds)+1)})
		p = h.parts[i].Load()
	}
	p.counts[sort.SearchFloat64s(h.bounds, v)].Add(1)
	for tries := 0; ; tries++ {
		old := p.sum.Load()
		if p.sum.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+v)) {
			return
		}
		if tries == 0 {
			h.wide.Store(true)
		}
	}
}

// ObserveMillis records a duration in milliseconds.
func (h *Histogram) ObserveMillis(d time.Duration) {
	if h != nil {
		h.Observe(float64(d) / float64(time.Millisecond))
	}
}

// Distribution is a consistent enough copy of a histogram.
type Distribution struct {
	// Bounds are the upper bounds; Counts has one more entry, for +Inf. Counts
	// are not cumulative.
	Bounds []float64
	Counts []uint64
	Count  uint64
	Sum    float64
}

// Distribution returns what was observed so far.
func (h *Histogram) Distribution() Distribution {
	if h == nil {
		return Distribution{}
	}
	d := Distribution{Bounds: h.bounds, Counts: make([]uint64, len(h.bounds)+1)}
	for i := range h.parts {
		p := h.parts[i].Load()
		if p == nil {
			continue
		}
		for k := range p.counts {
			n := p.counts[k].Load()
			d.Counts[k] += n
			d.Count += n
		}
		d.Sum += math.Float64frombits(p.sum.Load())
	}
	return d
}

// DefaultBuckets are Envoy's default bounds, in milliseconds.
var DefaultBuckets = []float64{
	0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000,
}

// Label is one name-value pair of a series.
type Label struct{ Name, Value string }

// Scope hands out metric handles below a name prefix. The same name and labels
// give the same handle, so a recompiled configuration goes on counting where
// the old one stopped. A nil *Scope gives nil handles, which discard.
//
// Names are Prometheus names: Envoy's dotted prefixes become labels
// ("envoy_cluster_upstream_rq_total" with envoy_cluster_name). Cardinality is
// bounded for each family; beyond the bound a handle is shared by the series
// labelled "overflow".
type Scope struct {
	r      *Registry
	prefix string
	labels []Label
	set    *labelSet // of labels
	// owned, if not nil, says that Release may forget what is taken.
	owned *owned
}
