package abuse

import (
	"os"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// adaptive finds out how many requests may be in flight, 32 at most.
const adaptive = `{name: adaptive, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency,
  gradient_controller_config: {concurrency_limit_params: {concurrency_update_interval: 0.1s, max_concurrency_limit: 32}, min_rtt_calc_params: {interval: 60s, request_count: 50}}}},`

// What is offered twice as much as it can take, on one processor, goes on doing what
// it can. With adaptive_concurrency it does so in time: what is too much is refused,
// and the rest waits hardly longer than before. It measures, so it runs only where
// $OVERLOAD says how long (60s).
func TestOverloadIsNoCollapse(t *testing.T) {
	d, err := time.ParseDuration(os.Getenv("OVERLOAD"))
	if err != nil {
		t.Skip("it measures: OVERLOAD=60s")
	}
	if runtime.NumCPU() < 2 {
		t.Skip("it needs a processor for what asks, and another for what is asked")
	}
	t.Setenv("GOMAXPROCS", "1") // of the processes that are started
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer debug.SetGCPercent(debug.SetGCPercent(1000))
	pin(t, 0, 1)
	free, limited := newSubject(t), newSubject(t, adaptive)
	short := max(d/6, 2*time.Second)
	peak := free.peak(short)
	free.overload("without a limit", peak, short, short)
	calm, o, r := limited.overload("with adaptive_concurrency", peak, short, d)
	peak = (peak + free.peak(short)) / 2
	t.Logf("goodput %.0f %% of the peak, p99 %.1f times that at 80 %%, memory %+.1f MiB, as before after %s",
		100*o.goodput/peak, float64(o.p99)/float64(calm.p99), float64(r.grown)/(1<<20), r.recovered)
	if late := max(o.lateness, calm.lateness); late > 5*time.Millisecond {
		t.Skipf("these figures tell nothing: what asks was late itself, by %s", late)
	}
	if o.goodput < 0.9*peak || o.p99 > 3*calm.p99 || r.grown > maxRSS || r.recovered > 2*time.Second {
		t.Error("want 90 %, 3 times, 32 MiB and 2s")
	}
	if calm.refused > calm.good/20 {
		t.Errorf("at 80 %% %d requests were refused and %d served", calm.refused, calm.good)
	}
}

// subject is a process that is offered too much.
type subject struct {
	*victim
	g *generator
}

// newSubject starts a process with one processor of its own.
func newSubject(t *testing.T, filters ...string) *subject {
	t.Helper()
	v := newInputVictim(t, filters...)
	pin(t, v.pid, 0)
	s := &subject{v.victim, newGenerator(t, v.h1, "/policy/heavy")}
	s.g.run(0, 3, time.Second) // warm
	return s
}

// peak is the most that 32 connections get a second.
func (s *subject) peak(d time.Duration) float64 {
	s.t.Helper()
	before, _ := s.usage()
	o := s.g.run(0, 32, d)
	after, _ := s.usage()
	s.t.Logf("peak: %s; %s of the processor a request", o, ((after - before) / time.Duration(max(o.good, 1))).Round(time.Microsecond))
	return o.goodput
}

// after is what an overload leaves.
type after struct {
	grown     int64         // resident memory
	recovered time.Duration // when it was as before again
}

// overload offers 80 % of peak, then twice the peak, then 80 % again.
func (s *subject) overload(what string, peak float64, short, d time.Duration) (calm, o *outcome, r after) {
	s.t.Helper()
	calm = s.g.run(0.8*peak, 0, short)
	s.t.Logf("%s, 80 %%: %s", what, calm)
	_, rss0 := s.usage()
	o = s.g.run(2*peak, 0, d)
	_, rss1 := s.usage()
	s.t.Logf("%s, 200 %%: %s", what, o)
	then := s.g.run(0.8*peak, 0, max(short, 4*time.Second))
	s.t.Logf("%s, 80 %% again: %s", what, then)
	return calm, o, after{rss1 - rss0, then.settled(3 * calm.p99)}
}

// slice is how exactly settled tells.
const slice = 250 * time.Millisecond

// settled is when, for the first time, not one in twenty requests was refused, or
// took longer than limit.
func (o *outcome) settled(limit time.Duration) time.Duration {
	for from := time.Duration(0); from+slice <= o.d; from += slice {
		good, all := 0, 0
		for _, a := range o.answers {
			if a.due < from || a.due >= from+slice {
				continue
			}
			if all++; a.status == 200 && a.took <= limit {
				good++
			}
		}
		if all > 0 && 20*(all-good) <= all {
			return from + slice
		}
	}
	return o.d
}
