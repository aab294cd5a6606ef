package rego

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// remoteBundle downloads a bundle again and again and keeps the last good one.
// All policies that name the same bundle share it; it outlives changes of a
// configuration that leave the bundle as it is.
type remoteBundle struct {
	cfg       *bundleConfig
	upstreams filters.Upstreams
	logger    *slog.Logger
	loaded    atomic.Pointer[loadedBundle]
	polling   atomic.Pointer[polling]
	cancel    context.CancelFunc
	done      sync.WaitGroup
	wake      chan struct{} // polling has changed

	good, same, bad *stats.Counter
	last            *stats.Gauge

	etag string // of loaded; belongs to the goroutine

	mu        sync.Mutex
	listeners map[chan struct{}]bool
}

type bundleKey struct{ sum [sha256.Size]byte }

// acquireRemote returns the download of c.
func acquireRemote(env *filters.Env, shared *filters.Shared, c *bundleConfig, logger *slog.Logger) (*remoteBundle, func(), error) {
	if env.Upstreams == nil {
		return nil, nil, errors.New("bundles can't be downloaded here: no clusters")
	}
	v, release, err := shared.Acquire(bundleKey{c.sum()}, func() (any, error) {
		return newRemote(env, c, logger.With("bundle", c.Name)), nil
	})
	if err != nil {
		return nil, nil, err
	}
	r, ok := v.(*remoteBundle)
	if !ok {
		panic(fmt.Sprintf("rego: %T shared under a bundle's key", v)) // programmer error: the key is private
	}
	if p := c.HTTP.Polling; *r.polling.Load() != p {
		r.polling.Store(&p)
		signal(r.wake)
	}
	return r, release, nil
}

func newRemote(env *filters.Env, c *bundleConfig, logger *slog.Logger) *remoteBundle {
	ctx, cancel := context.WithCancel(context.Background())
	name := stats.Label{Name: "bundle", Value: c.Name}
	count := func(result string) *stats.Counter {
		return env.Stats.Counter("fairlead_policy_bundle_downloads_total", name, stats.Label{Name: "result", Value: result})
	}
	r := &remoteBundle{
		cfg: c, upstreams: env.Upstreams, logger: logger, cancel: cancel,
		wake: make(chan struct{}, 1), listeners: map[chan struct{}]bool{},
		good: count("loaded"), same: count("unchanged"), bad: count("failed"),
		last: env.Stats.Gauge("fairlead_policy_bundle_last_success_timestamp_seconds", name),
	}
	p := c.HTTP.Polling
	r.polling.Store(&p)
	r.done.Go(func() { r.run(ctx) })
	return r
}

// Close ends the downloads and waits for the goroutine.
func (r *remoteBundle) Close() error {
	r.cancel()
	r.done.Wait()
	return nil
}

// listen makes r signal ch after each new content, until stop is called.
func (r *remoteBundle) listen(ch chan struct{}) (stop func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listeners[ch] = true
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.listeners, ch)
	}
}

// signal puts a token into ch, whose capacity is one, unless there is one.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (r *remoteBundle) run(ctx context.Context) {
	failures := 0
	for {
		err := r.download(ctx)
		if ctx.Err() != nil {
			return
		}
		p := r.polling.Load()
		pause := p.minDelay + time.Duration(rand.Float64()*float64(p.maxDelay-p.minDelay))
		if err != nil {
			r.bad.Inc()
			state := "the former bundle stays in force"
			if r.loaded.Load() == nil {
				state = "requests are denied until it succeeds"
			}
			r.logger.Error("rego: bundle can't be loaded; "+state, "cluster", r.cfg.HTTP.Cluster, "path", r.cfg.HTTP.Path, "error", err)
			pause = backoff(failures, p.maxDelay)
			failures++
		} else {
			failures = 0
			r.last.Set(time.Now().Unix())
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-r.wake:
			t.Stop()
		case <-t.C:
		}
	}
}

// backoff is OPA's: from 100 ms, growing by 1.6, up to longest, with a fifth
// of chance.
func backoff(failures int, longest time.Duration) time.Duration {
	d := float64(leastDelay) * math.Pow(1.6, float64(min(failures, 60)))
	d = min(d, float64(longest))
	return time.Duration(d * (0.8 + 0.4*rand.Float64()))
}

// download asks once. The tag of a content that could not be loaded is not
// kept, so that it comes again.
func (r *remoteBundle) download(ctx context.Context) error {
	h := r.cfg.HTTP
	var q message.Header
	q.Add(message.Method, "GET")
	q.Add(message.Scheme, h.Scheme)
	q.Add(message.Authority, h.Authority)
	q.Add(message.Path, h.Path)
	q.Add("user-agent", "fairlead")
	q.Add("prefer", "modes=snapshot")
	if r.etag != "" {
		q.Add("if-none-match", r.etag)
	}
	auth, ok, err := h.Credentials.header()
	if err != nil {
		return err
	}
	if ok {
		q.AddField(message.Field{Name: "authorization", Value: auth, NeverIndex: true})
	}
	a, err := r.upstreams.RoundTrip(ctx, h.Cluster, &filters.Callout{Header: q, Timeout: r.polling.Load().timeout}, r.cfg.MaxBytes)
	if err != nil {
		return err
	}
	now := r.loaded.Load()
	switch {
	case a.Status == 304 && now != nil && r.etag != "":
		r.same.Inc()
		return nil
	case a.Status != 200:
		return fmt.Errorf("the server answered %d", a.Status)
	}
	if now != nil && sha256.Sum256(a.Body) == now.sum && r.cfg.Verify == nil {
		r.etag = strings.Clone(a.Header.Get("etag"))
		r.same.Inc()
		return nil
	}
	l, err := readBundle(a.Body, r.cfg)
	if err != nil {
		return err
	}
	r.etag = strings.Clone(a.Header.Get("etag"))
	if now != nil && l.sum == now.sum {
		r.same.Inc()
		return nil
	}
	r.loaded.Store(l)
	r.good.Inc()
	r.logger.Info("rego: bundle loaded", "revision", l.revision, "bytes", len(a.Body))
	r.mu.Lock()
	defer r.mu.Unlock()
	for ch := range r.listeners {
		signal(ch)
	}
	return nil
}
