package localratelimit

import (
	"sync"
	"time"
)

// bucket is a token bucket that is filled step by step, as Envoy's: every
// interval Fill tokens, at most Max.
type bucket struct {
	c      Bucket
	mu     sync.Mutex
	tokens uint32
	filled time.Time // when the last step was added
}

func newBucket(c Bucket, now time.Time) *bucket { return &bucket{c: c, tokens: c.Max, filled: now} }

// take takes a token. It returns how many are left and when the next ones
// come.
func (b *bucket) take(now time.Time) (ok bool, left uint32, next time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now)
	if ok = b.tokens > 0; ok {
		b.tokens--
	}
	return ok, b.tokens, b.filled.Add(b.c.Interval).Sub(now)
}

// peek returns how many tokens there are.
func (b *bucket) peek(now time.Time) uint32 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now)
	return b.tokens
}

// fill adds what is due. The caller holds the lock.
func (b *bucket) fill(now time.Time) {
	if steps := now.Sub(b.filled) / b.c.Interval; steps > 0 {
		b.filled = b.filled.Add(steps * b.c.Interval)
		added := uint64(b.c.Max)
		if uint64(steps) <= added {
			added = uint64(steps) * uint64(b.c.Fill)
		}
		b.tokens = uint32(min(uint64(b.c.Max), uint64(b.tokens)+added))
	}
}

// place is where a bucket counts: filters of equal configuration are one
// object, but each filter chain, and each route with a configuration of its
// own, has a limit of its own.
type place struct {
	listener, chain, vhost, route string
	connection                    uint64
}

// table holds the buckets of one configuration. It outlives snapshots.
type table struct {
	c  Bucket
	mu sync.RWMutex
	m  map[place]*bucket
}

// peek returns the tokens of a bucket, all of them if it was not used yet.
func (t *table) peek(p place, now time.Time) uint32 {
	t.mu.RLock()
	b := t.m[p]
	t.mu.RUnlock()
	if b == nil {
		return t.c.Max
	}
	return b.peek(now)
}

// maxBuckets bounds the buckets of one configuration; only per-connection
// limits come near it, and the oldest connections then begin anew.
const maxBuckets = 16 << 10

func (t *table) get(p place, now time.Time) *bucket {
	t.mu.RLock()
	b := t.m[p]
	t.mu.RUnlock()
	if b != nil {
		return b
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if b = t.m[p]; b == nil {
		if t.m == nil || len(t.m) >= maxBuckets {
			t.m = map[place]*bucket{}
		}
		b = newBucket(t.c, now)
		t.m[p] = b
	}
	return b
}
