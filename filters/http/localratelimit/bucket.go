package localratelimit

import (
	"sync"
	"time"
)

// bucket is a token bucket that is filled step by step: every interval Fill
// tokens, at most Max.
type bucket struct {
	c      Bucket
	mu     sync.Mutex
	tokens uint32
	filled time.Time // when the last step was added
}

func newBucket(c Bucket, now time.Time) *bucket { return &bucket{c: c, tokens: c.Max, filled: now} }

// take takes n tokens, or none if there are fewer. As with Envoy nobody passes
// by taking none.
func (b *bucket) take(n uint64, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now)
	if n == 0 || uint64(b.tokens) < n {
		return false
	}
	b.tokens -= uint32(n)
	return true
}

// give puts n tokens back, as many as there is room for.
func (b *bucket) give(n uint64, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now)
	b.tokens += uint32(min(n, uint64(b.c.Max-b.tokens)))
}

// state returns how many tokens there are, and when the next ones come.
func (b *bucket) state(now time.Time) (left uint32, next time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now)
	return b.tokens, b.filled.Add(b.c.Interval).Sub(now)
}

// clone returns a bucket that goes on by itself.
func (b *bucket) clone() *bucket {
	b.mu.Lock()
	defer b.mu.Unlock()
	return &bucket{c: b.c, tokens: b.tokens, filled: b.filled}
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
