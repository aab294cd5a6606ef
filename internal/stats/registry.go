package stats

import (
	"io"
	"sync"
	"sync/atomic"
)

type value struct{ a atomic.Int64 }

func (v *value) add(n int64)   { v.a.Add(n) }
func (v *value) load() int64   { return v.a.Load() }
func (v *value) store(n int64) { v.a.Store(n) }

type histogram struct{}

func (h *histogram) observe(float64) {}

// Registry is the set of all metrics of a process. The zero Registry is empty
// and ready.
type Registry struct {
	mu sync.Mutex
	m  map[string]any
}

// Scope returns the root scope of r with the given labels on every series.
func (r *Registry) Scope(prefix string, labels ...Label) *Scope {
	return &Scope{r: r, prefix: prefix, labels: labels}
}

// Scope returns a scope below s: its prefix appended, its labels added.
func (s *Scope) Scope(prefix string, labels ...Label) *Scope {
	if s == nil {
		return nil
	}
	return &Scope{r: s.r, prefix: s.prefix + prefix, labels: append(s.labels[:len(s.labels):len(s.labels)], labels...)}
}

// Counter returns the counter called name below s.
func (s *Scope) Counter(name string, labels ...Label) *Counter { return nil }

// Gauge returns the gauge called name below s.
func (s *Scope) Gauge(name string, labels ...Label) *Gauge { return nil }

// Histogram returns the histogram called name below s; nil buckets mean
// Envoy's default bounds (0.5 ms to 3,600,000 ms).
func (s *Scope) Histogram(name string, buckets []float64, labels ...Label) *Histogram { return nil }

// WritePrometheus writes all metrics in the text exposition format 0.0.4,
// families sorted by name.
func (r *Registry) WritePrometheus(w io.Writer) error { return nil }
