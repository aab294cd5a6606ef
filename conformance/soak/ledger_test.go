package soak

import (
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ledger counts what was asked and what went wrong.
type ledger struct {
	kinds    [kinds]atomic.Int64
	failed   atomic.Int64
	repeated atomic.Int64 // streams that the server had refused or never seen
	attacks  atomic.Int64
	denied   atomic.Int64 // requests that were to be refused, and were
	retried  atomic.Int64 // answers that took more than one attempt, by the origin's count

	out      *printer
	mu       sync.Mutex
	causes   map[string]int
	first    []string
	versions map[string]bool
}

// A kind is what is asked.
type kind int

const (
	http1 kind = iota
	http2Kind
	grpcKind
	tunnelKind
	kinds
)

var kindNames = [kinds]string{"HTTP/1", "HTTP/2", "gRPC", "tunnel"}

func newLedger(out *printer) *ledger {
	return &ledger{out: out, causes: map[string]int{}, versions: map[string]bool{}}
}

func (l *ledger) requests() (n int64) {
	for i := range l.kinds {
		n += l.kinds[i].Load()
	}
	return n
}

var digits = regexp.MustCompile(`[0-9]+`)

// fail records a failure. What differs in numbers only is one cause.
func (l *ledger) fail(what string, err error) {
	l.failed.Add(1)
	s := what + ": " + err.Error()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.causes[digits.ReplaceAllString(s, "#")]++
	if len(l.first) < 100 {
		l.first = append(l.first, time.Now().UTC().Format("15:04:05.000 ")+s)
		l.out.printf("FAILED %s", l.first[len(l.first)-1])
	}
}

func (l *ledger) saw(version string) {
	l.mu.Lock()
	l.versions[version] = true
	l.mu.Unlock()
}

// report lists causes, the most frequent first.
func (l *ledger) report() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, c := range slices.SortedFunc(maps.Keys(l.causes), func(a, b string) int { return l.causes[b] - l.causes[a] }) {
		out = append(out, fmt.Sprintf("%d × %s", l.causes[c], c))
	}
	if len(l.first) > 0 {
		out = append(out, "the first:")
		out = append(out, l.first...)
	}
	return out
}

// sample is the state at a moment.
type sample struct {
	at         time.Duration // since the run began
	generation int           // of the process
	requests   int64
	failed     int64
	rss        int64 // bytes
	heap       int64 // bytes, live
	goroutines int
	files      int
	cpu        time.Duration // of the process since it began
}

const tableHead = "    time  gen   requests  failed    RSS MiB   heap MiB  goroutines  files  cpu s\n"

func (s sample) String() string {
	return fmt.Sprintf("%8s %4d %10d %7d %10.1f %10.1f %11d %6d %6.1f\n", s.at.Round(time.Second), s.generation, s.requests, s.failed,
		float64(s.rss)/(1<<20), float64(s.heap)/(1<<20), s.goroutines, s.files, s.cpu.Seconds())
}

// samples are those of a run.
type samples []sample

// slope is that of a linear fit through RSS, in MiB an hour.
func (ss samples) slope() float64 {
	var n, sx, sy, sxx, sxy float64
	for _, s := range ss {
		x, y := s.at.Hours(), float64(s.rss)/(1<<20)
		n++
		sx += x
		sy += y
		sxx += x * x
		sxy += x * y
	}
	d := n*sxx - sx*sx
	if n < 2 || d == 0 {
		return 0
	}
	return (n*sxy - sx*sy) / d
}

// after returns the samples of a generation from its moment d on.
func (ss samples) after(generation int, d time.Duration) samples {
	var out samples
	for _, s := range ss {
		if s.generation != generation {
			continue
		}
		if len(out) == 0 {
			d += s.at
		}
		out = append(out, s)
	}
	return slices.DeleteFunc(out, func(s sample) bool { return s.at < d })
}

// longest is the generation with the most samples.
func (ss samples) longest() (generation int) {
	count := map[int]int{}
	for _, s := range ss {
		count[s.generation]++
		if count[s.generation] > count[generation] {
			generation = s.generation
		}
	}
	return generation
}

// printer writes lines to several writers; a nil one is left out.
type printer struct {
	mu  sync.Mutex
	out []io.Writer
}

func (p *printer) printf(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	if !strings.HasSuffix(s, "\n") {
		s += "\n"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.out {
		_, _ = io.WriteString(w, s)
	}
}
