// Package adaptiveconcurrency is the adaptive_concurrency HTTP filter: it finds
// out how many requests may be in flight before they begin to wait for each
// other, and answers what is more.
package adaptiveconcurrency

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Factory makes adaptive_concurrency filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// gauges tell what the controller thinks.
type gauges struct {
	burst, limit, gradient, measuring, minRTT, sampleRTT *stats.Gauge
}

// Compile implements filters.HTTPFactory.
func (Factory) Compile(env *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	c, ok := base.(*Config)
	if !ok || override != nil {
		return nil, fmt.Errorf("adaptive_concurrency: configuration is a %T, override a %T", base, override)
	}
	if c.Disabled {
		return nil, nil //nolint:nilnil // nothing to do
	}
	f := &filter{status: c.Status, start: time.Now()}
	var g gauges
	if env != nil {
		gauge := func(name string) *stats.Gauge {
			return env.HTTPStats.Gauge("envoy_http_adaptive_concurrency_gradient_controller_" + name)
		}
		f.blocked = env.HTTPStats.Counter("envoy_http_adaptive_concurrency_gradient_controller_rq_blocked")
		g = gauges{gauge("burst_queue_size"), gauge("concurrency_limit"), gauge("gradient"), gauge("min_rtt_calculation_active"), gauge("min_rtt_msecs"), gauge("sample_rtt_msecs")}
	}
	f.x = newGradient(c.Gradient, g)
	return f, nil
}

type filter struct {
	status  int
	start   time.Time
	x       *gradient
	blocked *stats.Counter
	// calm is until when requests don't let others go first.
	calm atomic.Int64
}

func (f *filter) now() time.Duration { return time.Since(f.start) }

const details = "reached_concurrency_limit"

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	began := f.now()
	if !f.x.admit(began) {
		f.blocked.Inc()
		s.Info.Limit = *f.x.text.Load()
		return s.Deny(f.status, "reached concurrency limit", details, 0,
			streaminfo.Decision{Filter: "adaptive_concurrency", Reason: "concurrency_limit"}), nil
	}
	t := ticket{f: f, began: began}
	defer t.drop()
	f.letOthersIn(began)
	r, err := next.Do(s)
	switch {
	case err != nil || r == nil:
	case r.Tunnel != nil || complete(r):
		t.done()
	default:
		r.Body = &body{Body: r.Body, t: t}
		t.f = nil // is the body's now
	}
	return r, err
}

const (
	// queued is how long a request that lets others go first has to wait if there are any
	// worth counting; if it does not, nobody does for a while.
	queued   = 50 * time.Microsecond
	calmTime = 500 * time.Microsecond
)

// letOthersIn makes requests count that have arrived and did not get a processor
// yet. A request that needs the processor alone would have done with it before the
// next is looked at, so that there would be one at any time, however long the queue.
func (f *filter) letOthersIn(began time.Duration) {
	if int64(began) < f.calm.Load() {
		return
	}
	runtime.Gosched()
	if now := f.now(); now-began < queued {
		f.calm.Store(int64(now + calmTime))
	}
}

// complete tells whether all of the response is here.
func complete(r *filters.Response) bool {
	if r.Body == message.NoBody {
		return true
	}
	_, last := r.Body.Ready()
	return last
}

// ticket is held by a request that was counted in.
type ticket struct {
	f     *filter // nil: given back, or to somebody else
	began time.Duration
}

// done gives it back with the latency.
func (t *ticket) done() {
	if f := t.f; f != nil {
		t.f = nil
		f.x.done(t.began, f.now())
	}
}

// drop gives it back, if that was not done: there is no latency.
func (t *ticket) drop() {
	if f := t.f; f != nil {
		t.f = nil
		f.x.cancelled()
	}
}

// body is a response that is not complete yet.
type body struct {
	message.Body
	t ticket
}

// Next implements message.Body.
func (b *body) Next() ([]byte, bool, error) {
	p, last, err := b.Body.Next()
	if last && err == nil {
		b.t.done()
	}
	return p, last, err
}

// Close implements message.Body.
func (b *body) Close() {
	b.t.drop()
	b.Body.Close()
}

// Explain says how many there are now; what there will be is another question.
func (f *filter) Explain(*filters.Stream) filters.Explanation {
	return filters.Explanation{
		Verdict: filters.VerdictUnknown,
		Text:    []string{fmt.Sprintf("%d requests are in flight, the limit is %s", f.x.outstanding.Load(), *f.x.text.Load())},
	}
}
