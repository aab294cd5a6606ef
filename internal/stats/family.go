package stats

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
)

// CounterFamily is a counter with labels whose values come from traffic. With
// is for the first use of a combination; keep the handle, or a Cache of
// handles. A nil family gives nil handles.
type CounterFamily struct{ labelled }

// GaugeFamily is a gauge with labels whose values come from traffic.
type GaugeFamily struct{ labelled }

// HistogramFamily is a histogram with labels whose values come from traffic.
type HistogramFamily struct{ labelled }

type labelled struct {
	s      *Scope
	f      *family
	labels []string
}

func (s *Scope) labelled(name, help string, k kind, buckets []float64, labels []string) labelled {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	f := s.r.family(metricName(s.prefix+name), k, buckets, true)
	if f == nil {
		panic(fmt.Sprintf("stats: %s is in use as another kind of metric", s.prefix+name))
	}
	if help != "" {
		f.help = help
	}
	return labelled{s: s, f: f, labels: labels}
}

// CounterFamily returns the family called name below s.
func (s *Scope) CounterFamily(name, help string, labels ...string) *CounterFamily {
	if s == nil {
		return nil
	}
	return &CounterFamily{s.labelled(name, help, counterKind, nil, labels)}
}

// GaugeFamily returns the family called name below s.
func (s *Scope) GaugeFamily(name, help string, labels ...string) *GaugeFamily {
	if s == nil {
		return nil
	}
	return &GaugeFamily{s.labelled(name, help, gaugeKind, nil, labels)}
}

// HistogramFamily returns the family called name below s; nil buckets mean
// Envoy's.
func (s *Scope) HistogramFamily(name, help string, buckets []float64, labels ...string) *HistogramFamily {
	if s == nil {
		return nil
	}
	return &HistogramFamily{s.labelled(name, help, histogramKind, buckets, labels)}
}

// With returns the counter with the given label values, in the order of the
// family's labels.
func (f *CounterFamily) With(values ...string) *Counter {
	if f == nil {
		return nil
	}
	return with(&f.labelled, values, func(*family) *Counter { return new(Counter) })
}

// With returns the gauge with the given label values.
func (f *GaugeFamily) With(values ...string) *Gauge {
	if f == nil {
		return nil
	}
	return with(&f.labelled, values, func(*family) *Gauge { return new(Gauge) })
}

// With returns the histogram with the given label values.
func (f *HistogramFamily) With(values ...string) *Histogram {
	if f == nil {
		return nil
	}
	return with(&f.labelled, values, func(f *family) *Histogram { return &Histogram{bounds: f.bounds} })
}

func with[M any](l *labelled, values []string, create func(*family) *M) *M {
	if len(values) != len(l.labels) {
		panic(fmt.Sprintf("stats: %s has %d labels, got %d values", l.f.name, len(l.labels), len(values)))
	}
	ls := labelsOf(l, values)
	r := l.s.r
	r.mu.Lock()
	defer r.mu.Unlock()
	return handle(r, l.f, r.set(mergeLabels(l.s.labels, ls)), create)
}

func labelsOf(l *labelled, values []string) []Label {
	ls := make([]Label, len(values))
	for i, v := range values {
		ls[i] = Label{l.labels[i], v}
	}
	return ls
}

// Cache finds handles by a key of integers, for example the dense IDs of two
// peers and a response code. Reading takes no lock and allocates nothing. The
// zero Cache is ready; it is safe for concurrent use.
type Cache[K comparable, V any] struct {
	// Max bounds the number of entries, 16,384 if 0; a full cache starts
	// again. It must be set before use.
	Max int
	// Own, if not nil, returns a key that may be kept for one whose parts are
	// borrowed, such as strings of a request.
	Own func(K) K

	read   atomic.Pointer[map[K]*V] // never modified
	mu     sync.Mutex
	fresh  map[K]*V // not in read yet
	misses int      // finds in fresh since the last merge
}

const defaultCacheSize = 1 << 14

// Get returns the value under k, made by create on first use. create runs
// under the cache's lock and must not use the cache.
func (c *Cache[K, V]) Get(k K, create func(K) *V) *V {
	if m := c.read.Load(); m != nil {
		if v := (*m)[k]; v != nil {
			return v
		}
	}
	return c.slow(k, create)
}

func (c *Cache[K, V]) slow(k K, create func(K) *V) *V {
	c.mu.Lock()
	defer c.mu.Unlock()
	var read map[K]*V
	if m := c.read.Load(); m != nil {
		read = *m
	}
	if v := read[k]; v != nil {
		return v
	}
	v := c.fresh[k]
	if v == nil {
		if c.Own != nil {
			k = c.Own(k)
		}
		v = create(k)
		limit := c.Max
		if limit <= 0 {
			limit = defaultCacheSize
		}
		if len(read)+len(c.fresh) >= limit {
			c.read.Store(nil)
			read, c.fresh = nil, nil
		}
		if c.fresh == nil {
			c.fresh = map[K]*V{}
		}
		c.fresh[k] = v
	}
	// Merging costs a copy; it is worth it once fresh entries were asked for
	// as often as there are entries.
	if c.misses++; c.misses > len(c.fresh) {
		merged := make(map[K]*V, len(read)+len(c.fresh))
		maps.Copy(merged, read)
		maps.Copy(merged, c.fresh)
		c.read.Store(&merged)
		c.fresh, c.misses = nil, 0
	}
	return v
}

// Clear empties the cache.
func (c *Cache[K, V]) Clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read.Store(nil)
	c.fresh, c.misses = nil, 0
}
