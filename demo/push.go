package demo

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// load counts what a load on a path sees.
type load struct {
	total, failed, stale atomic.Int64
	pushed, first        atomic.Int64 // in nanoseconds since begin; 0: not yet
	begin                time.Time
	fault                atomic.Pointer[string]
}

// run sends requests one after another until stop is closed.
func (l *load) run(ctx context.Context, m *mesh, check string, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		// Whoever begins after the first answer by the new route must get the
		// new route.
		changed := l.first.Load() != 0
		a, err := m.client.send(ctx, check, reviewsURL+"/live", "")
		l.total.Add(1)
		switch {
		case err == nil && a.status == http.StatusOK && a.body == "reviews v2" && l.pushed.Load() != 0:
			l.first.CompareAndSwap(0, int64(time.Since(l.begin)))
		case err == nil && a.status == http.StatusOK && a.body == "reviews v1":
			if changed {
				l.stale.Add(1)
			}
		default:
			text := fmt.Sprint(err)
			if a != nil {
				text = fmt.Sprintf("%d %s", a.status, a.body)
			}
			l.fault.CompareAndSwap(nil, &text)
			l.failed.Add(1)
		}
	}
}

func checkPush(ctx context.Context, m *mesh, check string) (string, bool, error) {
	s, err := m.snapshot("waypoint.yaml", map[string]string{"LIVE": "reviews-v2"})
	if err != nil {
		return "", false, err
	}
	l := &load{begin: time.Now()}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { l.run(ctx, m, check, stop) })
	}
	eventually(ctx, func() bool { return l.total.Load() >= 200 })
	l.pushed.Store(int64(time.Since(l.begin)))
	if err = m.control.cache.SetSnapshot(ctx, "waypoint", s); err == nil {
		eventually(ctx, func() bool { return l.first.Load() != 0 })
		n := l.total.Load()
		eventually(ctx, func() bool { return l.total.Load() >= n+200 })
	}
	close(stop)
	wg.Wait()
	if err != nil {
		return "", false, err
	}
	first, failed, stale := l.first.Load(), l.failed.Load(), l.stale.Load()
	if first == 0 {
		return fmt.Sprintf("no change in 5 s; %d of %d failed", failed, l.total.Load()), false, nil
	}
	seen := fmt.Sprintf("v2 after %.1f ms; %d of %d failed", float64(first-l.pushed.Load())/1e6, failed, l.total.Load())
	if f := l.fault.Load(); f != nil {
		seen += ": " + *f
	}
	if stale > 0 {
		seen += fmt.Sprintf(", %d by the old route afterwards", stale)
	}
	return seen, failed == 0 && stale == 0, nil
}
