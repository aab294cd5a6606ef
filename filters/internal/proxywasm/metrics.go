package proxywasm

import (
	"math"
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// Kinds of metrics, which are the low bits of their identifiers.
const (
	counterMetric = iota
	gaugeMetric
	histogramMetric
	metricKinds

	metricStep = 4
)

// metricTable holds the metrics that a guest defined, of each kind by the order
// of their definition.
type metricTable struct {
	counters   []*stats.Counter
	gauges     []*stats.Gauge
	histograms []*stats.Histogram
	names      map[string]uint32 // kind and name
}

// reserved begin names of metrics that are the proxy's own.
var reserved = []string{"envoy_", "fairlead_", "go_", "process_"}

// defineMetric makes a metric. The name is shown as it is, without Envoy's prefix
// "wasmcustom", which is how Envoy shows it to Prometheus.
func (v *vm) defineMetric(a []uint64) Status {
	b, ok := v.read(a[1], a[2])
	if !ok {
		return StatusInvalidMemoryAccess
	}
	kind, name := uint32(a[0]), string(b)
	if kind >= metricKinds || name == "" || len(name) > 1<<10 {
		return StatusBadArgument
	}
	for _, p := range reserved {
		if strings.HasPrefix(strings.ReplaceAll(name, ".", "_"), p) {
			return StatusBadArgument
		}
	}
	t := &v.metrics
	k := string(rune('0'+kind)) + name
	id, there := t.names[k]
	if !there {
		if len(t.names) >= maxMetrics {
			return StatusInternalFailure
		}
		if t.names == nil {
			t.names = map[string]uint32{}
		}
		id = t.define(v.pool.env.Stats, kind, name)
		t.names[k] = id
	}
	if !v.put(a[3], id) {
		return StatusInvalidMemoryAccess
	}
	return StatusOK
}

func (t *metricTable) define(s *stats.Scope, kind uint32, name string) uint32 {
	var n int
	switch kind {
	case counterMetric:
		t.counters = append(t.counters, or(s.Counter(name)))
		n = len(t.counters)
	case gaugeMetric:
		t.gauges = append(t.gauges, or(s.Gauge(name)))
		n = len(t.gauges)
	default:
		t.histograms = append(t.histograms, or(s.Histogram(name, nil)))
		n = len(t.histograms)
	}
	return uint32(n)*metricStep + kind
}

// or is m, or one that nobody sees.
func or[M any](m *M) *M {
	if m == nil {
		m = new(M)
	}
	return m
}

// at finds a metric by its identifier.
func at[M any](list []*M, id uint32) *M {
	if n := id / metricStep; n > 0 && int(n) <= len(list) {
		return list[n-1]
	}
	return nil
}

func (v *vm) incrementMetric(a []uint64) Status {
	id, by := uint32(a[0]), int64(a[1])
	switch id % metricStep {
	case counterMetric:
		c := at(v.metrics.counters, id)
		switch {
		case c == nil:
			return StatusNotFound
		case by <= 0:
			return StatusBadArgument
		}
		c.Add(uint64(by))
		return StatusOK
	case gaugeMetric:
		g := at(v.metrics.gauges, id)
		if g == nil {
			return StatusNotFound
		}
		g.Add(by)
		return StatusOK
	}
	return StatusBadArgument
}

func (v *vm) recordMetric(a []uint64) Status {
	id, value := uint32(a[0]), a[1]
	switch id % metricStep {
	case counterMetric:
		if c := at(v.metrics.counters, id); c != nil {
			c.Add(value)
			return StatusOK
		}
	case gaugeMetric:
		if g := at(v.metrics.gauges, id); g != nil {
			g.Set(int64(min(value, math.MaxInt64)))
			return StatusOK
		}
	case histogramMetric:
		if h := at(v.metrics.histograms, id); h != nil {
			h.Observe(float64(value))
			return StatusOK
		}
	}
	return StatusNotFound
}

func (v *vm) getMetric(a []uint64) Status {
	id := uint32(a[0])
	var value uint64
	switch id % metricStep {
	case counterMetric:
		c := at(v.metrics.counters, id)
		if c == nil {
			return StatusNotFound
		}
		value = c.Value()
	case gaugeMetric:
		g := at(v.metrics.gauges, id)
		if g == nil {
			return StatusNotFound
		}
		value = uint64(g.Value())
	default:
		return StatusBadArgument
	}
	if !v.mem.WriteUint64Le(uint32(a[1]), value) {
		return StatusInvalidMemoryAccess
	}
	return StatusOK
}
