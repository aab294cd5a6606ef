package localratelimit

import (
	"math"
	"sync"
	"time"
)

// bucket is a token bucket that is filled continuously, as Envoy's: Fill tokens
// over each Interval, at most Max.
type bucket struct {
	c    Bucket
	made time.Time
	mu   sync.Mutex
	// empty is when the bucket held nothing, in seconds since made: what it holds
	// is what has come since then.
	empty float64
}

func newBucket(c Bucket, now time.Time) *bucket {
	return &bucket{c: c, made: now, empty: -float64(c.Max) / c.rate()}
}

// slack is what rounding may take from a token.
const slack = 1e-6

// held returns what the bucket holds at now, in seconds since made. The caller
// holds the lock.
func (b *bucket) held(now float64) float64 {
	return min(float64(b.c.Max), max(0, (now-b.empty)*b.c.rate()))
}

// take takes n tokens, or none if there are fewer. As with Envoy nobody passes
// by taking none.
func (b *bucket) take(n uint64, now time.Time) bool {
	at := now.Sub(b.made).Seconds()
	b.mu.Lock()
	defer b.mu.Unlock()
	held := b.held(at)
	if n == 0 || held+slack < float64(n) {
		return false
	}
	b.empty = at - max(0, held-float64(n))/b.c.rate()
	return true
}

// give puts n tokens back, as many as there is room for.
func (b *bucket) give(n uint64, now time.Time) {
	at := now.Sub(b.made).Seconds()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.empty = at - min(float64(b.c.Max), b.held(at)+float64(n))/b.c.rate()
}

// state returns how many whole tokens there are, and when the next one comes if
// there is none.
func (b *bucket) state(now time.Time) (left uint32, next time.Duration) {
	at := now.Sub(b.made).Seconds()
	b.mu.Lock()
	defer b.mu.Unlock()
	held := b.held(at) + slack
	if held < 1 {
		next = time.Duration(math.Ceil((1-held)/b.c.rate()*1000)) * time.Millisecond
	}
	return uint32(min(held, float64(b.c.Max))), next
}

// clone returns a bucket that goes on by itself.
func (b *bucket) clone() *bucket {
	b.mu.Lock()
	defer b.mu.Unlock()
	return &bucket{c: b.c, made: b.made, empty: b.empty}
}
