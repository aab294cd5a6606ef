package abuse

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// overloader asks at a rate, however fast the answers come: each request has a
// connection that nobody else waits on.
type overloader struct {
	port    int
	mu      sync.Mutex
	idle    []*asker
	open    int
	took    []time.Duration
	good    atomic.Int64
	bad     atomic.Int64
	dropped atomic.Int64 // no connection was free, and there were maxConns
}

const (
	maxConns = 1000
	// inTime is when an answer is still of use.
	inTime = time.Second
)

func (o *overloader) take() *asker {
	o.mu.Lock()
	if n := len(o.idle); n > 0 {
		a := o.idle[n-1]
		o.idle = o.idle[:n-1]
		o.mu.Unlock()
		return a
	}
	if o.open == maxConns {
		o.mu.Unlock()
		return nil
	}
	o.open++
	o.mu.Unlock()
	c, err := net.DialTimeout("tcp", running.Address(o.port), inTime)
	if err != nil {
		o.mu.Lock()
		o.open--
		o.mu.Unlock()
		return nil
	}
	return &asker{c, bufio.NewReader(c)}
}

func (o *overloader) one() {
	began := time.Now()
	a := o.take()
	if a == nil {
		o.dropped.Add(1)
		return
	}
	status := a.ask("/policy/heavy", 5*time.Second)
	d := time.Since(began)
	o.mu.Lock()
	defer o.mu.Unlock()
	if status == 0 {
		_ = a.c.Close()
		o.open--
	} else {
		o.idle = append(o.idle, a)
	}
	if status != 200 || d > inTime {
		o.bad.Add(1)
		return
	}
	o.good.Add(1)
	o.took = append(o.took, d)
}

// run offers rate requests a second for d and returns how many were answered in time
// a second, and the 99th percentile of their times.
func (o *overloader) run(rate float64, d time.Duration) (goodput float64, p99 time.Duration) {
	o.took = nil
	o.good.Store(0)
	o.bad.Store(0)
	o.dropped.Store(0)
	var wg sync.WaitGroup
	began := time.Now()
	for sent := 0; time.Since(began) < d; time.Sleep(time.Millisecond) {
		for due := int(time.Since(began).Seconds() * rate); sent < due; sent++ {
			wg.Go(o.one)
		}
	}
	goodput = float64(o.good.Load()) / time.Since(began).Seconds()
	wg.Wait()
	if len(o.took) > 0 {
		slices.Sort(o.took)
		p99 = o.took[len(o.took)*99/100]
	}
	return goodput, p99
}

// closed is the most that so many connections, each of which waits for its answer,
// get a second.
func (o *overloader) closed(conns int, d time.Duration) float64 {
	var wg sync.WaitGroup
	var n atomic.Int64
	for range conns {
		wg.Go(func() {
			for began := time.Now(); time.Since(began) < d; {
				o.one()
				n.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(n.Load()) / d.Seconds()
}

// limiter admits so many requests a second.
const limiter = `{name: limit, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: limit,
  token_bucket: {max_tokens: %[1]d, tokens_per_fill: %[1]d, fill_interval: 0.05s}, filter_enabled: {default_value: {numerator: 100}}, filter_enforced: {default_value: {numerator: 100}}}},`

// What is offered twice as much as it can take, on one processor, goes on doing what
// it can, and with a limit of what it can also in time. It measures, so it runs only
// where $OVERLOAD says how long (60s).
func TestOverloadIsNoCollapse(t *testing.T) {
	d, err := time.ParseDuration(os.Getenv("OVERLOAD"))
	if err != nil {
		t.Skip("it measures: OVERLOAD=60s")
	}
	t.Setenv("GOMAXPROCS", "1") // of the process that is started
	free := newInputVictim(t)
	o := &overloader{port: free.h1}
	o.closed(32, time.Second) // warm
	peak := o.closed(32, 5*time.Second)
	_, calm := o.run(0.8*peak, 5*time.Second)
	t.Logf("peak %.0f requests/s, p99 %v at 80 %%", peak, calm.Round(100*time.Microsecond))
	whole, recovered1, grown1 := overload(t, "without a limit", free.pid, free.h1, peak, d)
	v := newInputVictim(t, fmt.Sprintf(limiter, max(int(0.95*peak*0.05), 1)))
	goodput, recovered, grown := overload(t, "with a limit", v.pid, v.h1, peak, d)
	if whole < 0.9*peak || max(recovered1, recovered) > 2*time.Second || max(grown1, grown) > maxRSS {
		t.Errorf("goodput %.0f of %.0f, fast again after %v and %v, %d and %d bytes more", whole, peak, recovered1, recovered, grown1, grown)
	}
	if goodput < 0.8*peak { // of the 95 % that are admitted
		t.Errorf("with a limit goodput is %.0f of %.0f", goodput, peak)
	}
}

func overload(t *testing.T, what string, pid, port int, peak float64, d time.Duration) (goodput float64, recovered time.Duration, grown int64) {
	t.Helper()
	v := &victim{t: t, pid: pid}
	o := &overloader{port: port}
	o.closed(32, time.Second)
	_, rss0 := v.usage()
	goodput, p99 := o.run(2*peak, d)
	_, rss1 := v.usage()
	ended := time.Now()
	a := dialAsker(t, port)
	for fast := 0; fast < 5 && recovered < 10*time.Second; time.Sleep(10 * time.Millisecond) {
		began := time.Now()
		if a.ask("/policy/heavy", 5*time.Second) == 200 && time.Since(began) < 20*time.Millisecond {
			fast++
		} else {
			fast = 0
		}
		recovered = time.Since(ended)
	}
	t.Logf("%s, offered %.0f/s for %v: %.0f/s in time (%.0f %% of the peak), p99 %v, %d late or refused, %d without a connection, memory %+.1f MiB, fast again after %v",
		what, 2*peak, d, goodput, 100*goodput/peak, p99.Round(100*time.Microsecond), o.bad.Load(), o.dropped.Load(), float64(rss1-rss0)/(1<<20), recovered.Round(time.Millisecond))
	return goodput, recovered, rss1 - rss0
}
