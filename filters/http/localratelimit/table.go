package localratelimit

import (
	"sync"
	"sync/atomic"
	"time"
)

// place is where a limiter counts: filters of equal configuration are one
// object, but each filter chain, and each route with a configuration of its
// own, has a limit of its own.
type place struct {
	listener, chain, vhost, route string
	connection                    uint64
}

// table holds the limiters of one configuration. It outlives snapshots.
type table struct {
	rules *rules
	mu    sync.RWMutex
	m     map[place]*limiter
	// used counts the buckets of m.
	used *atomic.Int64
}

// maxBuckets bounds the buckets of one configuration; only limits per connection
// or per value come near it. Connections then begin anew, and values take the
// place of others.
const maxBuckets = 16 << 10

// clone returns what is at p now, to try things on.
func (t *table) clone(p place, now time.Time) *limiter {
	t.mu.RLock()
	l := t.m[p]
	t.mu.RUnlock()
	if l == nil {
		return newLimiter(t.rules, new(atomic.Int64), now)
	}
	return l.clone()
}

func (t *table) get(p place, now time.Time) *limiter {
	t.mu.RLock()
	l := t.m[p]
	t.mu.RUnlock()
	if l != nil {
		return l
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if l = t.m[p]; l == nil {
		n := int64(t.rules.buckets())
		if t.m == nil || t.used.Load()+n > maxBuckets {
			t.m, t.used = map[place]*limiter{}, new(atomic.Int64)
		}
		t.used.Add(n)
		l = newLimiter(t.rules, t.used, now)
		t.m[p] = l
	}
	return l
}
