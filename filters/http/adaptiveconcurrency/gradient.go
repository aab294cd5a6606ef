package adaptiveconcurrency

import (
	"math"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// gradient is Envoy's gradient controller: it compares what requests take with
// what they took when there were few, and moves the limit by the ratio. There
// are no timers: what is due is done by the next request, before which nobody
// would see the difference. Times are since a start that the caller keeps. It is
// safe for concurrent use.
type gradient struct {
	c           Gradient
	g           gauges
	outstanding atomic.Int64
	limit       atomic.Int64
	// text describes the limit, for events.
	text atomic.Pointer[string]
	// due is when what passes makes a difference next.
	due atomic.Int64

	mu   sync.Mutex
	hist histogram
	// minimum is what requests take without load. While it is measured, by what
	// began at epoch or later, the limit that will hold then waits in after.
	minimum   time.Duration
	measuring bool
	epoch     time.Duration
	after     uint32
	// atLeast counts windows in a row that left the limit at its least.
	atLeast int
	// window ends at windowEnd; minimum is measured at measureAt.
	windowEnd, measureAt time.Duration
}

const never = time.Duration(math.MaxInt64)

// stuck is for how many windows in a row the limit may be the least before the
// minimum is believed to be wrong.
const stuck = 5

// newGradient returns the controller as it is at the start.
func newGradient(c Gradient, g gauges) *gradient {
	x := &gradient{c: c, g: g, windowEnd: c.Update, measureAt: never}
	if c.Fixed > 0 {
		x.minimum = c.Fixed
		g.minRTT.Set(c.Fixed.Milliseconds())
		x.set(c.Min)
	} else {
		x.limit.Store(int64(c.Probe))
		x.measure(0)
	}
	x.schedule()
	return x
}

// admit counts a request that begins at now in, or reports that there are too
// many. Each that was counted in is ended by done or cancelled.
func (x *gradient) admit(now time.Duration) bool {
	if int64(now) >= x.due.Load() {
		x.tick(now)
	}
	for {
		n := x.outstanding.Load()
		if n >= x.limit.Load() {
			return false
		}
		if x.outstanding.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// cancelled ends a request that tells nothing about latency.
func (x *gradient) cancelled() { x.outstanding.Add(-1) }

// done ends a request that began at began.
func (x *gradient) done(began, now time.Duration) {
	x.outstanding.Add(-1)
	x.mu.Lock()
	defer x.mu.Unlock()
	if began < x.epoch {
		return // it met the load of before
	}
	x.hist.add(max(now-began, 0))
	if x.measuring && x.hist.n >= uint64(x.c.Requests) {
		x.measured(now)
	}
}

// tick does what is due at now.
func (x *gradient) tick(now time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if now >= x.measureAt {
		x.measure(now)
	}
	if !x.measuring && now >= x.windowEnd {
		x.windowEnd = now + x.c.Update
		if x.hist.n > 0 {
			x.move()
		}
	}
	x.schedule()
}

func (x *gradient) schedule() {
	at := x.measureAt
	if !x.measuring {
		at = min(at, x.windowEnd)
	}
	x.due.Store(int64(at))
}

// measure begins to measure the minimum.
func (x *gradient) measure(now time.Duration) {
	x.measuring, x.measureAt, x.epoch = true, never, now
	x.g.measuring.Set(1)
	x.after = uint32(x.limit.Load())
	x.hist.reset()
	x.set(x.c.Probe)
}

// measured ends it.
func (x *gradient) measured(now time.Duration) {
	x.minimum = x.hist.quantile(x.c.Percentile)
	x.hist.reset()
	x.g.minRTT.Set(x.minimum.Milliseconds())
	x.measuring = false
	x.g.measuring.Set(0)
	x.set(x.after)
	x.measureAt = now + x.c.Interval
	if j := time.Duration(x.c.Jitter * float64(x.c.Interval)); j > 0 {
		x.measureAt += rand.N(j)
	}
	x.windowEnd = now + x.c.Update
	x.schedule()
}

// move sets the limit by what the window's requests took.
func (x *gradient) move() {
	sample := x.hist.quantile(x.c.Percentile)
	x.hist.reset()
	x.g.sampleRTT.Set(sample.Milliseconds())
	ratio := 2.0
	if sample > 0 {
		ratio = min(2, max(0.5, float64(x.minimum)*(1+x.c.Buffer)/float64(sample)))
	}
	x.g.gradient.Set(int64(1000 * ratio))
	limit := float64(x.limit.Load()) * ratio
	burst := math.Sqrt(limit)
	x.g.burst.Set(int64(burst))
	was, is := uint32(x.limit.Load()), max(x.c.Min, uint32(min(float64(x.c.Max), limit+burst)))
	x.set(is)
	if was != x.c.Min || is != x.c.Min {
		x.atLeast = 0
		return
	}
	if x.atLeast++; x.atLeast >= stuck && x.c.Fixed == 0 {
		x.atLeast = 0
		x.measureAt = 0 // at the next request
	}
}

func (x *gradient) set(limit uint32) {
	x.limit.Store(int64(limit))
	x.g.limit.Set(int64(limit))
	t := strconv.FormatUint(uint64(limit), 10) + " requests at once"
	x.text.Store(&t)
}
