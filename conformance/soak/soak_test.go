package soak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// plan is what happens in a run.
type plan struct {
	length                            time.Duration
	rate                              float64
	push                              time.Duration // between two pushes; one in ten is bad
	pushes                            int           // at most, unless 0
	kills, rotations, restarts, roots int
	life                              time.Duration // of a connection
	drain                             time.Duration
	// requests is how many there must be: the run goes on until then, if at most
	// twice as long.
	requests int64
	// early says that restarts happen at the begin, but for the last, so that one
	// process lives for most of the run.
	early bool
}

// run is a run of a plan.
type run struct {
	t       *testing.T
	plan    plan
	out     *printer
	site    *site
	ledger  *ledger
	pki     *pki
	pkiMu   sync.Mutex
	control *control
	fleet   *fleet
	flapper *flapper

	mu       sync.Mutex
	current  *process
	samples  samples
	calms    []samples // of moments without attacks and pushes
	restarts int
	rotated  int
	roots    int
	began    time.Time
}

func env(name string, def float64) float64 {
	if f, err := strconv.ParseFloat(os.Getenv(name), 64); err == nil && f > 0 {
		return f
	}
	return def
}

func duration(t *testing.T, name string, def time.Duration) time.Duration {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return def
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		t.Fatalf("%s=%s: want a duration such as 20m", name, s)
	}
	return d
}

// prepare starts everything but the load.
func prepare(t *testing.T, p plan) *run {
	t.Helper()
	r := &run{t: t, plan: p, out: &printer{}}
	r.ledger = newLedger(r.out)
	if f := os.Getenv("SOAK_LOG"); f != "" {
		w, err := os.OpenFile(f, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = w.Close() })
		r.out.out = append(r.out.out, w)
	}
	var err error
	if r.pki, err = newPKI(); err != nil {
		t.Fatal(err)
	}
	alien, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	r.site = &site{pki: r.pki, ledger: r.ledger, life: p.life, edge: running.FreePort(t), hbone: running.FreePort(t)}
	if r.site.outsider, err = alien.Issue(identity.Leaf{URIs: []string{"spiffe://cluster.local/ns/app/sa/client"}}); err != nil {
		t.Fatal(err)
	}
	r.flapper = newFlapper(t)
	vars := map[string]string{
		"EDGE": strconv.Itoa(r.site.edge), "HBONE": strconv.Itoa(r.site.hbone), "FLAP": strconv.Itoa(r.flapper.port),
		"ECHO": strconv.Itoa(echoes(t)), "SECURE": strconv.Itoa(serve(t, origin(-2), r.pki.originConfig())),
	}
	for i := range origins {
		vars[fmt.Sprintf("ORIGIN%d", i)] = strconv.Itoa(serve(t, origin(i), nil))
	}
	r.control = newControl(t, vars, r.pki)
	r.fleet = newFleet(t, vars, p.drain)
	if r.current, err = r.fleet.start(); err != nil {
		t.Fatal(err)
	}
	return r
}

// go runs the plan.
func (r *run) run() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*r.plan.length)
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM) // an early end is judged, too
	defer stop()
	r.began = time.Now()
	l := startLoad(ctx, r.site, r.plan.rate)
	l.attack(r.plan.rate * 0.01)
	var wg sync.WaitGroup
	wg.Go(func() { r.pushes(ctx) })
	wg.Go(func() { r.times(ctx, r.plan.kills, 0.5, r.kill) })
	wg.Go(func() { r.times(ctx, r.plan.rotations, 0.5, r.rotate) })
	wg.Go(func() { r.times(ctx, r.plan.roots, 0, r.rotateRoot) })
	wg.Go(func() { r.takeOvers(ctx) })
	wg.Go(func() {
		r.every(ctx, max(200*time.Millisecond, min(2*time.Second, r.plan.length/100)), func() error { return r.flapper.flap() })
	})
	wg.Go(func() { r.watch(ctx) })
	wg.Go(func() {
		for r.until(ctx, r.plan.length) && r.ledger.requests() < r.plan.requests {
			time.Sleep(100 * time.Millisecond)
		}
		cancel()
	})
	wg.Go(func() { r.times(ctx, int(r.plan.length/(12*time.Minute)), 0.7, r.rest) })
	l.wait()
	wg.Wait()
	r.mu.Lock()
	last := r.current
	r.mu.Unlock()
	if err := last.retire(r.plan.drain + 5*time.Second); err != nil {
		r.t.Error(err)
	}
}

// every calls f each d until the run ends; an error is the test's.
func (r *run) every(ctx context.Context, d time.Duration, f func() error) {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := f(); err != nil {
			r.complain(err)
		}
	}
}

func (r *run) complain(err error) {
	r.t.Error(err)
	r.out.printf("%s ERROR %v", r.now(), err)
}

func (r *run) now() string { return time.Since(r.began).Round(time.Second).String() }

// until waits for a moment of the run; false means that the run is over.
func (r *run) until(ctx context.Context, at time.Duration) bool {
	t := time.NewTimer(time.Until(r.began.Add(at)))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// times calls f n times, evenly over the run.
func (r *run) times(ctx context.Context, n int, shift float64, f func(context.Context) error) {
	for i := range n {
		at := float64(i) + shift
		if n == 1 && shift == 0 {
			at = 0.4
		}
		if !r.until(ctx, time.Duration(float64(r.plan.length)*at/float64(n))) {
			return
		}
		if err := f(ctx); err != nil {
			r.complain(err)
		}
	}
}

func (r *run) pushes(ctx context.Context) {
	r.every(ctx, r.plan.push, func() error {
		made, bad := r.control.made()
		if r.site.calm.Load() || r.plan.pushes > 0 && made >= r.plan.pushes {
			return nil
		}
		if made/10 > bad { // what could not be spoilt while the control plane was away comes later
			if err := r.control.spoil(); !errors.Is(err, errDown) {
				return err
			}
		}
		return r.control.push()
	})
}

func (r *run) kill(ctx context.Context) error {
	r.control.kill()
	down := min(5*time.Second, r.plan.length/60)
	t := time.NewTimer(down)
	defer t.Stop()
	<-t.C
	r.out.printf("%s the control plane was away for %s", r.now(), down)
	return r.control.revive()
}

func (r *run) rotate(context.Context) error {
	r.pkiMu.Lock()
	defer r.pkiMu.Unlock()
	if err := r.pki.renew(); err != nil {
		return err
	}
	r.rotated++
	return r.control.certify(r.pki)
}

// rotateRoot trusts a second root, issues by it, and forgets the first when no
// connection is left that knew it.
func (r *run) rotateRoot(context.Context) error {
	r.pkiMu.Lock()
	defer r.pkiMu.Unlock() // no leaf is renewed meanwhile
	for _, step := range []struct {
		f    func() error
		wait time.Duration
	}{
		{func() error { err := r.pki.trust(); r.pki.retrust(); return err }, r.settle()},
		{r.pki.renew, 2*r.plan.life + r.settle()},
		{func() error { r.pki.distrust(); r.pki.retrust(); return nil }, r.settle()},
	} {
		if err := step.f(); err != nil {
			return err
		}
		if err := r.control.certify(r.pki); err != nil {
			return err
		}
		t := time.NewTimer(step.wait)
		<-t.C
		t.Stop()
	}
	r.roots++
	r.out.printf("%s the root was replaced", r.now())
	return nil
}

// settle is how long a push may take.
func (r *run) settle() time.Duration {
	return max(2*time.Second, min(10*time.Second, r.plan.length/30))
}

func (r *run) takeOvers(ctx context.Context) {
	n := r.plan.restarts
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range n {
		at := float64(r.plan.length) * (float64(i) + 0.5) / float64(n)
		if r.plan.early {
			at = float64(r.plan.length) * 0.08 * (float64(i) + 0.5) / float64(n)
			if i == n-1 {
				at = float64(r.plan.length) * 0.97
			}
		}
		if !r.until(ctx, time.Duration(at)) {
			return
		}
		if !r.takeOver(&wg) {
			return
		}
	}
}

// takeOver starts a process on the same ports and lets the one there is end, which
// wg waits for.
func (r *run) takeOver(wg *sync.WaitGroup) bool {
	r.control.calm.Lock()
	next, err := r.fleet.start()
	r.control.calm.Unlock()
	if err != nil {
		r.complain(err)
		return false
	}
	r.mu.Lock()
	old := r.current
	r.current = next
	r.restarts++
	r.mu.Unlock()
	r.out.printf("%s process %d takes over", r.now(), next.generation)
	wg.Go(func() {
		if err := old.retire(r.plan.drain + 5*time.Second); err != nil {
			r.complain(err)
		}
		r.out.printf("%s process %d has ended", r.now(), old.generation)
	})
	return true
}

// watch measures.
func (r *run) watch(ctx context.Context) {
	r.out.printf("%s", tableHead)
	r.every(ctx, min(10*time.Second, r.plan.length/12), func() error {
		r.mu.Lock()
		p := r.current
		r.mu.Unlock()
		s := sample{at: time.Since(r.began), requests: r.ledger.requests(), failed: r.ledger.failed.Load()}
		if err := p.look(&s); err != nil {
			return err
		}
		r.mu.Lock()
		r.samples = append(r.samples, s)
		r.mu.Unlock()
		r.out.printf("%s", s)
		return nil
	})
}

// judge compares with what was promised.
func (r *run) judge() {
	t, l := r.t, r.ledger
	var b bytes.Buffer
	r.out.out = append(r.out.out, &b)
	for i := range l.kinds {
		r.out.printf("%-8s %d", kindNames[i], l.kinds[i].Load())
	}
	c := r.control
	took := time.Since(r.began)
	r.out.printf("requests %d (%.0f a second), failed %d, asked again as the protocol says %d, refused by policy %d, attacks %d", l.requests(), float64(l.requests())/took.Seconds(), l.failed.Load(), l.repeated.Load(), l.denied.Load(), l.attacks.Load())
	r.out.printf("pushes %d, bad %d, NACKs %d, versions seen %d; control plane killed %d; certificates rotated %d, roots %d; processes %d", c.pushes, c.bad, c.refused, len(l.versions), c.kills, r.rotated, r.roots, r.restarts+1)
	r.out.printf("the endpoint that flaps answered %d, said 503 %d, reset %d", r.flapper.hits[flapAnswers].Load(), r.flapper.hits[flapUnavailable].Load(), r.flapper.hits[flapResets].Load())
	if l.failed.Load() > 0 {
		for _, s := range l.report() {
			r.out.printf("FAILED %s", s)
		}
		t.Errorf("%d of %d requests failed", l.failed.Load(), l.requests())
	}
	for _, w := range c.wrong {
		r.out.printf("WRONG %s", w)
		t.Error(w)
	}
	if l.denied.Load() == 0 || l.attacks.Load() == 0 {
		t.Errorf("%d requests were refused by policy, %d attacks: want some", l.denied.Load(), l.attacks.Load())
	}
	if c.refused < c.bad || c.bad == 0 {
		t.Errorf("%d NACKs for %d bad pushes", c.refused, c.bad)
	}
	if want := max(float64(r.plan.requests), 0.4*r.plan.rate*time.Since(r.began).Seconds()); float64(l.requests()) < want {
		t.Errorf("%d requests, want %.0f: the run was too slow to say something", l.requests(), want)
	}
	r.trends()
	t.Log("\n" + b.String())
}

func TestNothingFailsWhileEverythingChanges(t *testing.T) {
	length := duration(t, "SOAK", time.Minute)
	r := prepare(t, plan{
		length: length, rate: env("SOAK_RATE", 1000), push: duration(t, "SOAK_PUSH", time.Second),
		kills: int(max(3, length/(5*time.Minute))), rotations: int(max(5, length/time.Minute)), restarts: int(max(3, min(4, length/(10*time.Minute)))), roots: 1,
		life: max(3*time.Second, min(20*time.Second, length/20)), drain: max(10*time.Second, min(time.Minute, length/5)), early: length >= 30*time.Minute,
	})
	r.run()
	r.judge()
}

// Row 6 of the goals: so much in one run, and no request that fails.
func TestAMillionRequestsWhileEverythingChanges(t *testing.T) {
	if os.Getenv("SOAK_MILLION") == "" {
		t.Skip("takes 20 minutes; make soak-million")
	}
	r := prepare(t, plan{
		length: 20 * time.Minute, rate: env("SOAK_RATE", 1000), requests: 1_000_000, push: time.Second, pushes: 1002,
		kills: 10, rotations: 60, restarts: 3, roots: 1, life: 20 * time.Second, drain: time.Minute,
	})
	r.run()
	r.judge()
	if c := r.control; c.pushes < 1000 || c.bad < 100 || c.kills < 10 || r.rotated < 60 || r.roots < 1 || r.restarts < 3 {
		t.Errorf("%d pushes, %d bad, %d kills, %d rotations, %d roots, %d restarts: want 1000, 100, 10, 60, 1, 3", c.pushes, c.bad, c.kills, r.rotated, r.roots, r.restarts)
	}
}
