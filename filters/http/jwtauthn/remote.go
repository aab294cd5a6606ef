package jwtauthn

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// remote fetches keys and keeps them until they expire. A fetch belongs to
// nobody: requests that need its keys wait for it together, those that come
// while the keys are still good don't wait.
type remote struct {
	c         *Remote
	upstreams filters.Upstreams
	log       *slog.Logger // nil discards
	good, bad *stats.Counter

	ctx    context.Context //nolint:containedctx // of the fetches, ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex // guards what follows
	keys     *keySet
	expires  time.Time
	refresh  time.Time     // when they are fetched again ahead of that
	next     time.Time     // no fetch before
	fetching chan struct{} // closed when the fetch under way ends, nil without
	closed   bool
}

const (
	// retryAfter is the least time between two fetches for tokens that name an
	// unknown key.
	retryAfter = 5 * time.Second
	// failedAfter is the least time between a failed fetch and the next.
	failedAfter = time.Second
	// ahead is how long before they expire keys are fetched again, at most.
	ahead = 5 * time.Second
)

// remoteKey identifies keys that outlive a change of configuration.
type remoteKey struct {
	cluster, scheme, authority, path string
	timeout, cache, failed           time.Duration
	async                            bool
	retry                            filters.Retry
}

func (c *Remote) key() remoteKey {
	k := remoteKey{c.Cluster, c.Scheme, c.Authority, c.Path, c.Timeout, c.CacheDuration, c.FailedRefetch, c.Async, filters.Retry{}}
	if c.Retry != nil {
		k.retry = *c.Retry
	}
	return k
}

// newRemote returns keys that are fetched in the background if c wants that.
// They must be closed.
func newRemote(c *Remote, u filters.Upstreams, log *slog.Logger, good, bad *stats.Counter) *remote {
	r := &remote{c: c, upstreams: u, log: log, good: good, bad: bad}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	if c.Async {
		r.wg.Go(r.run)
	}
	return r
}

// Close ends fetches; later ones fail. It implements io.Closer.
func (r *remote) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.wg.Wait()
	return nil
}

// run fetches at once, and again before the keys expire or after a failure.
func (r *remote) run() {
	for r.ctx.Err() == nil {
		r.mu.Lock()
		done := r.start()
		r.mu.Unlock()
		select {
		case <-done:
		case <-r.ctx.Done():
			return
		}
		r.mu.Lock()
		due := r.refresh
		if due.Before(r.next) {
			due = r.next
		}
		r.mu.Unlock()
		timer := time.NewTimer(time.Until(due))
		select {
		case <-timer.C:
		case <-r.ctx.Done():
			timer.Stop()
			return
		}
	}
}

// get returns the keys. It waits for a fetch if they are expired or don't
// include the one that t names.
func (r *remote) get(s *filters.Stream, t *token) (*keySet, status) {
	keys, wait := r.state(t)
	if wait != nil {
		select {
		case <-wait:
		case <-s.Context().Done():
			return nil, fetchFails
		}
		r.mu.Lock()
		keys = r.fresh()
		r.mu.Unlock()
	}
	if keys == nil {
		return nil, fetchFails
	}
	return keys, ok
}

// fresh returns the keys unless they are expired. r.mu is held.
func (r *remote) fresh() *keySet {
	if r.keys != nil && time.Now().Before(r.expires) {
		return r.keys
	}
	return nil
}

// state returns the keys, nil if there are none that are good, and starts a
// fetch if one is due. wait is what to wait for, nil for nothing.
func (r *remote) state(t *token) (keys *keySet, wait <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	keys = r.fresh()
	lacking := keys == nil || !keys.has(t.kid)
	now := time.Now()
	if (lacking || !now.Before(r.refresh)) && !now.Before(r.next) {
		r.start()
	}
	if lacking && r.fetching != nil {
		return keys, r.fetching
	}
	return keys, nil
}

// peek returns what state does, and whether get would wait for a fetch; none is
// started.
func (r *remote) peek(t *token) (keys *keySet, fetch bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	keys = r.fresh()
	lacking := keys == nil || !keys.has(t.kid)
	return keys, lacking && (r.fetching != nil || !time.Now().Before(r.next))
}

// has reports whether a key of that name, or without a name, is in the set.
func (s *keySet) has(kid string) bool {
	if kid == "" {
		return true
	}
	for i := range s.keys {
		if s.keys[i].id == "" || s.keys[i].id == kid {
			return true
		}
	}
	return false
}

// start makes sure that a fetch is under way, unless r is closed. r.mu is held.
func (r *remote) start() <-chan struct{} {
	if r.fetching == nil && !r.closed {
		done := make(chan struct{})
		r.fetching = done
		r.wg.Go(func() {
			keys, err := r.fetch()
			r.finish(keys, err)
			close(done)
		})
	}
	return r.fetching
}

func (r *remote) fetch() (*keySet, error) {
	c := &filters.Callout{Timeout: r.c.Timeout, Retry: r.c.Retry}
	c.Header.Add(message.Method, "GET")
	c.Header.Add(message.Scheme, r.c.Scheme)
	c.Header.Add(message.Authority, r.c.Authority)
	c.Header.Add(message.Path, r.c.Path)
	resp, err := r.upstreams.RoundTrip(r.ctx, r.c.Cluster, c, maxJWKS)
	if err != nil {
		return nil, err
	}
	if resp.Status != 200 {
		return nil, fmt.Errorf("the answer has status %d", resp.Status)
	}
	keys, _, err := parseKeys(resp.Body)
	return keys, err
}

// finish takes the result of a fetch. Keys that were good stay so until they
// expire, whatever happens.
func (r *remote) finish(keys *keySet, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fetching = nil
	now := time.Now()
	if err != nil {
		r.bad.Inc()
		r.next = now.Add(failedAfter)
		if r.c.Async {
			r.next = now.Add(r.c.FailedRefetch)
		}
		if r.log != nil && r.ctx.Err() == nil {
			r.log.Warn("fetching jwks failed", "cluster", r.c.Cluster, "uri", r.c.Scheme+"://"+r.c.Authority+r.c.Path, "error", err)
		}
		return
	}
	r.good.Inc()
	r.keys, r.expires, r.next = keys, now.Add(r.c.CacheDuration), now.Add(retryAfter)
	r.refresh = r.expires.Add(-min(ahead, r.c.CacheDuration/10))
}
