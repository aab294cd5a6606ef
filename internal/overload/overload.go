// Package overload protects a process whose memory is nearly used up: new
// connections are refused first, then new requests, so that what is open can go
// on. It stands for Envoy's overload manager with the monitor fixed_heap and the
// actions reject_incoming_connections and stop_accepting_requests.
package overload

import (
	"context"
	"log/slog"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// The shares of the limit at which something is refused, and below which it is
// not any more. The collector needs room: near the limit it runs all the time.
const (
	refuseConnections = 0.80
	refuseRequests    = 0.95
	relief            = 0.05
)

const (
	period = 100 * time.Millisecond
	// soon and late are how often garbage is collected, if nothing else makes the
	// collector run, while what was allocated since the last time would matter,
	// and while something is refused: what is in use is known only then.
	soon, late = 200 * time.Millisecond, time.Second
)

// Options are what a Monitor is made from.
type Options struct {
	// Limit is the memory that the process may use, in bytes; 0 is GOMEMLIMIT,
	// and without that there is no limit.
	Limit uint64
	// Used, if not nil, replaces what the Go runtime says is in use, in bytes.
	Used   func() uint64
	Logger *slog.Logger
	// Stats is the scope "envoy_overload_"; may be nil.
	Stats *stats.Scope
}

// Monitor looks at the memory in use. All methods may be called on a nil
// Monitor, which refuses nothing, and by any goroutine.
type Monitor struct {
	opt         Options
	connections atomic.Bool
	requests    atomic.Bool

	pressure, cxActive, rqActive *stats.Gauge
}

// New returns a Monitor, nil if memory is not limited. Run drives it.
func New(o Options) *Monitor {
	if o.Limit == 0 {
		if n := debug.SetMemoryLimit(-1); n > 0 && n < math.MaxInt64 {
			o.Limit = uint64(n)
		}
	}
	if o.Limit == 0 {
		return nil
	}
	m := &Monitor{opt: o}
	if o.Stats != nil {
		m.pressure = o.Stats.Gauge("envoy_resource_monitors_fixed_heap_pressure")
		m.cxActive = o.Stats.Gauge("envoy_overload_actions_reject_incoming_connections_active")
		m.rqActive = o.Stats.Gauge("envoy_overload_actions_stop_accepting_requests_active")
	}
	return m
}

// RefusesConnections tells whether new connections, and streams that stand for
// one, are to be refused.
func (m *Monitor) RefusesConnections() bool { return m != nil && m.connections.Load() }

// RefusesRequests tells whether new requests are to be answered 503.
func (m *Monitor) RefusesRequests() bool { return m != nil && m.requests.Load() }

// Run looks at the memory until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	if m == nil {
		return
	}
	read := m.opt.Used
	if read == nil {
		r := reader{limit: m.opt.Limit}
		r.init()
		read = func() uint64 { return r.fresh(m.connections.Load()) }
	}
	t := time.NewTicker(period)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			m.look(read())
		}
	}
}

// look takes a new reading.
func (m *Monitor) look(used uint64) {
	share := float64(used) / float64(m.opt.Limit)
	if m.pressure != nil {
		m.pressure.Set(int64(100 * share))
	}
	m.set(&m.connections, m.cxActive, share, refuseConnections, used, "memory is nearly used up: new connections are refused, open ones go on; raise GOMEMLIMIT and the container's limit, or run more replicas", "memory is free again: new connections are accepted")
	m.set(&m.requests, m.rqActive, share, refuseRequests, used, "memory is used up: new requests are answered 503, those in flight go on", "new requests are served again")
}

func (m *Monitor) set(state *atomic.Bool, g *stats.Gauge, share, limit float64, used uint64, begins, ends string) {
	was := state.Load()
	is := share >= limit || was && share >= limit-relief
	if is == was {
		return
	}
	state.Store(is)
	if g != nil {
		g.Set(map[bool]int64{true: 1}[is])
	}
	if m.opt.Logger == nil {
		return
	}
	if is {
		m.opt.Logger.Error(begins, "used_bytes", used, "limit_bytes", m.opt.Limit)
	} else {
		m.opt.Logger.Info(ends, "used_bytes", used, "limit_bytes", m.opt.Limit)
	}
}

// reader asks the Go runtime.
type reader struct {
	limit   uint64
	samples []metrics.Sample
	cycles  uint64
	since   time.Time // of the last collection
}

// names are what is read. What the limit is about is total without released;
// objects are also those that are garbage, live those of the last collection.
var names = [...]string{
	"/memory/classes/total:bytes", "/memory/classes/heap/released:bytes", "/memory/classes/heap/free:bytes",
	"/memory/classes/heap/objects:bytes", "/gc/heap/live:bytes", "/gc/cycles/total:gc-cycles",
}

func (r *reader) init() {
	for _, n := range names {
		r.samples = append(r.samples, metrics.Sample{Name: n})
	}
}

func (r *reader) value(i int) uint64 {
	if v := r.samples[i].Value; v.Kind() == metrics.KindUint64 {
		return v.Uint64()
	}
	return 0
}

// fresh is used, after a collection if the last one is too long ago to tell.
// The collector by itself waits until the heap has doubled, or the limit is met.
func (r *reader) fresh(refusing bool) uint64 {
	used := r.used()
	if n := r.value(5); n != r.cycles || r.since.IsZero() {
		r.cycles, r.since = n, time.Now()
	}
	taken := r.value(0) - r.value(1) - r.value(2)
	age := time.Since(r.since)
	if age >= soon && float64(taken) >= refuseConnections*float64(r.limit) && float64(taken-min(taken, used)) >= relief*float64(r.limit) || refusing && age >= late {
		runtime.GC()
		used = r.used()
		r.cycles, r.since = r.value(5), time.Now()
	}
	return used
}

// used is what the process can't give back: live objects and everything that is
// no heap.
func (r *reader) used() uint64 {
	metrics.Read(r.samples)
	other := int64(r.value(0)) - int64(r.value(1)) - int64(r.value(2)) - int64(r.value(3))
	return r.value(4) + uint64(max(0, other))
}
