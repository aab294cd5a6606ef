package adaptiveconcurrency

import "time"

// histogram counts latencies by their first two digits in microseconds, as
// Envoy's does. The zero histogram is empty.
type histogram struct {
	n       uint64
	buckets [decades * perDecade]uint32
}

const (
	// perDecade are the buckets 1.0 to 9.9.
	perDecade = 90
	// decades: the last holds what takes 1,000 to 10,000 seconds, or longer.
	decades = 10
)

func (h *histogram) reset() {
	if h.n > 0 {
		*h = histogram{}
	}
}

func (h *histogram) add(d time.Duration) {
	h.n++
	h.buckets[bucket(d)]++
}

// bucket is the index of d; what is shorter than a microsecond goes with it.
func bucket(d time.Duration) int {
	v := 10 * max(d.Microseconds(), 1) // tenths of the decade's unit
	i := 0
	for ; v >= 100; i += perDecade {
		v /= 10
	}
	return min(i+int(v)-10, decades*perDecade-1)
}

// quantile is the latency that the share q of them don't exceed, 0 if there are none.
// Within a bucket they are taken for evenly spread.
func (h *histogram) quantile(q float64) time.Duration {
	want, seen := q*float64(h.n), 0.0
	left, width := 1.0, 0.1
	for i := range h.buckets {
		if i > 0 && i%perDecade == 0 {
			left, width = 10*width*10, 10*width
		}
		if n := float64(h.buckets[i]); n > 0 && seen+n >= want {
			return time.Duration((left + width*max(want-seen, 0)/n) * float64(time.Microsecond))
		} else {
			seen += n
		}
		left += width
	}
	return 0
}
