// Package load sends requests to a proxy and times them: closed loop (each
// stream sends when its answer is there) or paced (each stream has a timetable,
// and latency counts from when a request was due, so that a slow proxy can't
// hide what it delayed).
package load

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Exchanger does one request at a time.
type Exchanger interface {
	// Exchange sends a request and returns when the whole answer is there and
	// was found right. After an error the Exchanger is of no further use.
	Exchange() error
	Close()
}

// Result is what one run saw.
type Result struct {
	Requests, Errors uint64
	// FirstError tells one of the errors, "" without.
	FirstError string
	Elapsed    time.Duration
	// Latency is in nanoseconds.
	Latency *hdrhistogram.Histogram
}

// Generator holds open streams, so that a run measures requests and not
// handshakes.
type Generator struct {
	streams []Exchanger
	rate    float64
}

// Latencies from 1 µs to 60 s, with three digits.
func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(int64(time.Microsecond), int64(time.Minute), 3)
}

// New returns a generator that uses the streams at once. rate is the number of
// requests a second over all of them; 0: closed loop.
func New(streams []Exchanger, rate float64) *Generator { return &Generator{streams, rate} }

// Close closes the streams.
func (g *Generator) Close() {
	for _, s := range g.streams {
		s.Close()
	}
}

// Run sends for d and waits for the last answers, but not for ever: it closes
// streams that have none after 10 s. A stream that fails stops; its generator is
// of no further use.
func (g *Generator) Run(d time.Duration) Result {
	var stop atomic.Bool
	t := time.AfterFunc(d, func() { stop.Store(true) })
	defer t.Stop()
	late := time.AfterFunc(d+patience, g.Close)
	defer late.Stop()
	workers := make([]worker, len(g.streams))
	n := time.Duration(len(g.streams))
	start := time.Now()
	var wg sync.WaitGroup
	for i, s := range g.streams {
		w := &workers[i]
		w.s, w.stop, w.latency = s, &stop, newHistogram()
		if g.rate > 0 {
			w.gap = time.Duration(float64(n) / g.rate * float64(time.Second))
			w.due = start.Add(w.gap * time.Duration(i) / n)
		}
		wg.Go(w.run)
	}
	wg.Wait()
	res := Result{Elapsed: time.Since(start), Latency: newHistogram()}
	for i := range workers {
		w := &workers[i]
		res.Requests += w.requests
		res.Latency.Merge(w.latency)
		if w.err != nil {
			res.Errors++
			res.FirstError = w.err.Error()
		}
	}
	return res
}

// worker drives one stream.
type worker struct {
	s        Exchanger
	stop     *atomic.Bool
	gap      time.Duration
	due      time.Time
	requests uint64
	latency  *hdrhistogram.Histogram
	err      error
}

func (w *worker) run() {
	for !w.stop.Load() {
		begin := time.Now()
		if w.gap > 0 {
			time.Sleep(w.due.Sub(begin))
			begin = w.due
			w.due = w.due.Add(w.gap)
		}
		if w.err = w.s.Exchange(); w.err != nil {
			return
		}
		w.requests++
		_ = w.latency.RecordValue(min(int64(time.Since(begin)), int64(time.Minute)))
	}
}
