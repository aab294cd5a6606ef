package localratelimit

import (
	"cmp"
	"container/list"
	"encoding/binary"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/ratelimit"
)

// rules are what limiters of one configuration have in common. They are
// immutable.
type rules struct {
	fallback    Bucket // token_bucket; no limit if it has no interval
	always      bool
	descriptors []Descriptor
	// exact finds descriptors by the hash of their entries; wild are those that
	// have an entry without a value.
	exact map[uint64][]int
	wild  []int
	// perWild bounds the buckets of each of wild.
	perWild int
}

func newRules(c *Config) *rules {
	r := &rules{fallback: c.Bucket, always: c.AlwaysDefault, descriptors: c.Descriptors, exact: map[uint64][]int{}, perWild: c.MaxDynamic}
	for i := range c.Descriptors {
		if c.Descriptors[i].wild() {
			r.wild = append(r.wild, i)
			continue
		}
		k := hash(c.Descriptors[i].Entries)
		r.exact[k] = append(r.exact[k], i)
	}
	return r
}

// buckets is how many a limiter takes from the start; for each of wild it is
// the first that is made.
func (r *rules) buckets() int { return 1 + len(r.descriptors) }

var seed = maphash.MakeSeed()

func hash(es []ratelimit.Entry) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	var n [8]byte
	text := func(s string) {
		binary.LittleEndian.PutUint64(n[:], uint64(len(s)))
		_, _ = h.Write(n[:])
		_, _ = h.WriteString(s)
	}
	for i := range es {
		text(es[i].Key)
		text(es[i].Value)
	}
	return h.Sum64()
}

// wild tells whether d has an entry that every value matches.
func (d *Descriptor) wild() bool {
	return slices.ContainsFunc(d.Entries, func(e ratelimit.Entry) bool { return e.Value == "" })
}

// matches compares the entries one by one: there are no partial matches.
func (d *Descriptor) matches(es []ratelimit.Entry) bool {
	return slices.EqualFunc(d.Entries, es, func(c, e ratelimit.Entry) bool {
		return c.Key == e.Key && (c.Value == "" || c.Value == e.Value)
	})
}

// rate is in tokens a second.
func (c *Bucket) rate() float64 { return float64(c.Fill) / c.Interval.Seconds() }

// limiter holds the buckets of one place.
type limiter struct {
	rules    *rules
	fallback *bucket   // nil: none
	exact    []*bucket // by descriptor; nil for those of wild
	used     *atomic.Int64

	mu   sync.Mutex
	wild []values // as rules.wild
}

// values are the buckets of what values a descriptor met, those met last in
// front. They are told apart by hash: what clients send is not kept.
type values struct {
	m     map[uint64]*list.Element
	order list.List // of *value
}

type value struct {
	key uint64
	b   *bucket
}

func newLimiter(r *rules, used *atomic.Int64, now time.Time) *limiter {
	l := &limiter{rules: r, exact: make([]*bucket, len(r.descriptors)), used: used, wild: make([]values, len(r.wild))}
	if r.fallback.Interval > 0 {
		l.fallback = newBucket(r.fallback, now)
	}
	for _, is := range r.exact {
		for _, i := range is {
			l.exact[i] = newBucket(r.descriptors[i].Bucket, now)
		}
	}
	return l
}

// clone copies all buckets.
func (l *limiter) clone() *limiter {
	c := &limiter{rules: l.rules, exact: make([]*bucket, len(l.exact)), used: new(atomic.Int64), wild: make([]values, len(l.wild))}
	if l.fallback != nil {
		c.fallback = l.fallback.clone()
	}
	for i, b := range l.exact {
		if b != nil {
			c.exact[i] = b.clone()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.wild {
		for e := l.wild[i].order.Back(); e != nil; e = e.Prev() {
			v, _ := e.Value.(*value)
			c.wild[i].add(v.key, v.b.clone())
		}
	}
	return c
}

func (v *values) add(key uint64, b *bucket) {
	if v.m == nil {
		v.m = map[uint64]*list.Element{}
	}
	v.m[key] = v.order.PushFront(&value{key, b})
}

// dynamic returns the bucket of the values in es, of the n-th of rules.wild.
func (l *limiter) dynamic(n int, es []ratelimit.Entry, now time.Time) *bucket {
	key := hash(es)
	l.mu.Lock()
	defer l.mu.Unlock()
	v := &l.wild[n]
	if e := v.m[key]; e != nil {
		v.order.MoveToFront(e)
		x, _ := e.Value.(*value)
		return x.b
	}
	if have := v.order.Len(); have > 0 && !l.room(have) {
		x, _ := v.order.Remove(v.order.Back()).(*value)
		delete(v.m, x.key)
	}
	b := newBucket(l.rules.descriptors[l.rules.wild[n]].Bucket, now)
	v.add(key, b)
	return b
}

// room counts one more bucket of a value, beside have of them; the first is
// counted by rules.buckets. It returns false if that would be too many.
func (l *limiter) room(have int) bool {
	if have >= l.rules.perWild {
		return false
	}
	if l.used.Add(1) > maxBuckets {
		l.used.Add(-1)
		return false
	}
	return true
}

// match is a descriptor of the configuration that one of the request matched.
type match struct {
	b      *bucket
	d      *Descriptor
	hits   uint64
	refill bool
}

// find returns the matches of what a request yields, the slowest bucket first.
// A descriptor matches one, by values rather than without.
func (l *limiter) find(ds []ratelimit.Descriptor, now time.Time) []match {
	var out []match
	for i := range ds {
		m := match{hits: 1, refill: ds[i].Negative && ds[i].Hits != nil}
		if ds[i].Hits != nil {
			m.hits = *ds[i].Hits
		}
		for _, k := range l.rules.exact[hash(ds[i].Entries)] {
			if d := &l.rules.descriptors[k]; d.matches(ds[i].Entries) {
				m.b, m.d = l.exact[k], d
			}
		}
		for n := 0; n < len(l.rules.wild) && m.b == nil; n++ {
			if d := &l.rules.descriptors[l.rules.wild[n]]; d.matches(ds[i].Entries) {
				m.b, m.d = l.dynamic(n, ds[i].Entries, now), d
			}
		}
		if m.b != nil {
			out = append(out, m)
		}
	}
	if len(out) > 1 {
		slices.SortStableFunc(out, func(a, b match) int { return cmp.Compare(a.d.Bucket.rate(), b.d.Bucket.rate()) })
	}
	return out
}

// decision is what the buckets say of a request.
type decision struct {
	pass bool
	// shadow tells that the request passes only because the descriptor is in
	// shadow mode.
	shadow bool
	// bucket is the one that refused, or else the slowest; nil if none was asked.
	bucket *bucket
	// of is the match that bucket belongs to, -1 for token_bucket, and d its
	// descriptor, nil for token_bucket.
	of int
	d  *Descriptor
}

// decide takes the tokens of a request that yields ds. What is taken before a
// bucket refuses stays taken.
func (l *limiter) decide(ds []ratelimit.Descriptor, now time.Time) decision {
	x := decision{of: -1}
	var ms []match
	if len(ds) > 0 {
		ms = l.find(ds, now)
	}
	for i := range ms {
		m := &ms[i]
		if m.refill {
			m.b.give(m.hits, now)
			continue
		}
		if m.b.take(m.hits, now) {
			continue
		}
		if !m.d.Shadow {
			return decision{bucket: m.b, of: i, d: m.d}
		}
		if !x.shadow {
			x.shadow, x.bucket, x.of, x.d = true, m.b, i, m.d
		}
	}
	if (len(ms) == 0 || l.rules.always) && l.fallback != nil && !l.fallback.take(1, now) {
		return decision{bucket: l.fallback, of: -1}
	}
	x.pass = true
	switch {
	case x.shadow:
	case len(ms) > 0:
		x.bucket, x.of, x.d = ms[0].b, 0, ms[0].d
	default:
		x.bucket = l.fallback
	}
	return x
}

// left is how many tokens the bucket of x, which a copy of l decided, has in l.
func (l *limiter) left(x *decision, ds []ratelimit.Descriptor, now time.Time) uint32 {
	b := l.fallback
	if x.of >= 0 {
		b = l.find(ds, now)[x.of].b
	}
	n, _ := b.state(now)
	return n
}
