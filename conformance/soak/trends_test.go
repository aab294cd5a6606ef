package soak

import (
	"context"
	"math"
	"time"
)

// rest is a moment that can be compared with others: the load goes on, what
// disturbs it does not.
func (r *run) rest(context.Context) error {
	r.site.calm.Store(true)
	defer r.site.calm.Store(false)
	r.mu.Lock()
	p := r.current
	r.mu.Unlock()
	t := time.NewTicker(time.Second)
	defer t.Stop()
	var ss samples
	for i := range 80 {
		<-t.C
		if i < 50 { // what went on before comes to rest
			continue
		}
		s := sample{at: time.Since(r.began)}
		if err := p.look(&s); err != nil {
			return err
		}
		ss = append(ss, s)
	}
	r.mu.Lock()
	r.calms = append(r.calms, ss)
	r.mu.Unlock()
	for _, m := range measures {
		mean, se := ss.mean(m.f)
		r.out.printf("%s calm, process %d: %s %.1f ± %.1f", r.now(), p.generation, m.name, mean, se)
	}
	return nil
}

// measures are what must not grow.
var measures = []struct {
	name string
	f    func(sample) float64
	// bounded says that calm moments must be equal.
	bounded bool
}{
	{"goroutines", func(s sample) float64 { return float64(s.goroutines) }, true},
	{"files", func(s sample) float64 { return float64(s.files) }, true},
	{"RSS, MiB", func(s sample) float64 { return float64(s.rss) / (1 << 20) }, false},
	{"heap, MiB", func(s sample) float64 { return float64(s.heap) / (1 << 20) }, false},
}

// mean is that of f, with its standard error.
func (ss samples) mean(f func(sample) float64) (mean, se float64) {
	n := float64(len(ss))
	for _, s := range ss {
		mean += f(s) / n
	}
	for _, s := range ss {
		se += (f(s) - mean) * (f(s) - mean) / n
	}
	return mean, math.Sqrt(se / n)
}

// trends looks at memory, goroutines and files of the process that lived longest.
func (r *run) trends() {
	g := r.samples.longest()
	warm := min(10*time.Minute, r.plan.length/4)
	ss := r.samples.after(g, warm)
	if len(ss) < 2 {
		return
	}
	span := ss[len(ss)-1].at - ss[0].at
	slope := ss.slope()
	r.out.printf("process %d after its first %s, for %s: RSS %+.2f MiB an hour", g, warm, span.Round(time.Second), slope)
	if span >= 30*time.Minute && slope > 1 {
		r.t.Errorf("RSS grows by %.2f MiB an hour, want at most 1", slope)
	}
	var calms []samples
	for _, c := range r.calms {
		if c[0].generation == g && c[0].at >= ss[0].at {
			calms = append(calms, c)
		}
	}
	if len(calms) < 2 {
		return
	}
	for _, m := range measures {
		a, da := calms[0].mean(m.f)
		b, db := calms[len(calms)-1].mean(m.f)
		r.out.printf("calm: %s %.1f, then %.1f (%+.1f %%)", m.name, a, b, 100*(b-a)/a)
		// Requests in flight come and go: what chance does is no difference.
		if m.bounded && math.Abs(b-a) > max(0.02*a, 3*math.Hypot(da, db)) {
			r.t.Errorf("%s: %.1f became %.1f, want at most 2 %% of difference", m.name, a, b)
		}
	}
}
