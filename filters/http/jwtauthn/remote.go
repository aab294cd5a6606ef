package jwtauthn

import (
	"context"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// remote fetches keys when a token needs them and keeps them until they
// expire. Requests that need keys at the same time share one fetch.
type remote struct {
	c         *Remote
	upstreams filters.Upstreams
	good, bad *stats.Counter

	fetching sync.Mutex // held during a fetch
	mu       sync.Mutex // guards what follows
	keys     *keySet
	expires  time.Time
	tried    time.Time // last fetch, whatever came of it
}

const (
	// retryAfter is the least time between two fetches: after a failure, and
	// for tokens that name an unknown key.
	retryAfter = 5 * time.Second
)

type remoteKey struct{ cluster, scheme, authority, path string }

// get returns the keys. If they don't include the one that t names, they are
// fetched again, but not more often than retryAfter.
func (r *remote) get(s *filters.Stream, t *token) (*keySet, status) {
	keys, fresh, fetch := r.state(t)
	if !fetch {
		if !fresh {
			return nil, fetchFails
		}
		return keys, ok
	}
	r.fetching.Lock()
	defer r.fetching.Unlock()
	if keys, fresh, fetch = r.state(t); fetch { // nobody has done it meanwhile
		r.fetch(s.Context())
		keys, fresh, _ = r.state(t)
	}
	if !fresh {
		return nil, fetchFails
	}
	return keys, ok
}

func (r *remote) state(t *token) (keys *keySet, fresh, fetch bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	fresh = r.keys != nil && now.Before(r.expires)
	fetch = (!fresh || !r.keys.has(t.kid)) && now.Sub(r.tried) >= retryAfter
	return r.keys, fresh, fetch
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

func (r *remote) fetch(ctx context.Context) {
	var h message.Header
	h.Add(message.Method, "GET")
	h.Add(message.Scheme, r.c.Scheme)
	h.Add(message.Authority, r.c.Authority)
	h.Add(message.Path, r.c.Path)
	resp, err := r.upstreams.RoundTrip(ctx, r.c.Cluster, &filters.Callout{Header: h, Timeout: r.c.Timeout}, maxJWKS)
	var keys *keySet
	if err == nil && resp.Status == 200 {
		if keys, _, err = parseKeys(resp.Body); err != nil {
			keys = nil
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tried = time.Now()
	if keys == nil {
		r.bad.Inc()
		return
	}
	r.good.Inc()
	r.keys, r.expires = keys, r.tried.Add(r.c.CacheDuration)
}
