// Package stats holds the process's metrics: Envoy-named counters, gauges and
// histograms for operators, and labelled families (Istio's standard metrics)
// for dashboards. Handles are taken while configuration is compiled and never
// looked up while a request is served. Exposition is Prometheus text.
package stats

import "time"

// Counter only goes up. A nil *Counter discards. Safe for concurrent use.
type Counter struct{ v value }

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
type Gauge struct{ v value }

// Add adds n, which may be negative.
func (g *Gauge) Add(n int64) {
	if g != nil {
		g.v.add(n)
	}
}

// Set replaces the value.
func (g *Gauge) Set(n int64) {
	if g != nil {
		g.v.store(n)
	}
}

// Value returns the current value.
func (g *Gauge) Value() int64 {
	if g == nil {
		return 0
	}
	return g.v.load()
}

// Histogram counts observations in fixed buckets. A nil *Histogram discards.
type Histogram struct{ h *histogram }

// Observe records v, in the unit that the metric's name states.
func (h *Histogram) Observe(v float64) {
	if h != nil {
		h.h.observe(v)
	}
}

// ObserveMillis records a duration in milliseconds.
func (h *Histogram) ObserveMillis(d time.Duration) {
	if h != nil {
		h.h.observe(float64(d) / float64(time.Millisecond))
	}
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
}
