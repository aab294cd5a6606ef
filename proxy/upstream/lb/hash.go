package lb

import (
	"math"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// ring is ketama consistent hashing.
type ring struct {
	hash []uint64
	host []int32
}

// newRing builds the ring as Envoy's RingHashLoadBalancer: every host gets
// points in proportion to its weight, at least RingMin and at most RingMax in
// total, at xxHash64("key_n").
func newRing(cfg *Config, hosts []Host, idx []int32, w []float64) *ring {
	sum, least := 0.0, math.MaxFloat64
	for _, x := range w {
		sum += x
	}
	norm := make([]float64, len(w))
	for k, x := range w {
		norm[k] = x / sum
		least = min(least, norm[k])
	}
	lo, hi := cfg.RingMin, cfg.RingMax
	if lo == 0 {
		lo = 1024
	}
	if hi == 0 {
		hi = 8 << 20
	}
	scale := min(math.Ceil(least*float64(lo))/least, float64(hi))
	type point struct {
		hash uint64
		host int32
	}
	points := make([]point, 0, int(math.Ceil(scale)))
	var key []byte
	current, target := 0.0, 0.0
	for k, i := range idx {
		key = append(append(key[:0], hosts[i].HashKey...), '_')
		n := len(key)
		target += scale * norm[k]
		for c := 0; current < target; c++ {
			key = strconv.AppendInt(key[:n], int64(c), 10)
			points = append(points, point{xxhash.Sum64(key), i})
			current++
		}
	}
	slices.SortFunc(points, func(a, b point) int {
		switch {
		case a.hash < b.hash:
			return -1
		case a.hash > b.hash:
			return 1
		}
		return int(a.host - b.host)
	})
	r := &ring{make([]uint64, len(points)), make([]int32, len(points))}
	for k, p := range points {
		r.hash[k], r.host[k] = p.hash, p.host
	}
	return r
}

func (r *ring) pick(h uint64, attempt int) int {
	lo, hi := 0, len(r.hash)
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if r.hash[m] < h {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return int(r.host[(lo+attempt)%len(r.host)])
}

// maglev is Google's Maglev hashing.
type maglev struct{ table []int32 }

func newMaglev(cfg *Config, hosts []Host, idx []int32, w []float64) *maglev {
	size := cfg.MaglevSize
	if size == 0 {
		size = 65537
	}
	type entry struct {
		offset, skip, next uint64
		weight, target     float64
	}
	top, sum := 0.0, 0.0
	for _, x := range w {
		sum += x
	}
	es := make([]entry, len(idx))
	for k, i := range idx {
		d := xxhash.NewWithSeed(1)
		_, _ = d.WriteString(hosts[i].HashKey)
		es[k] = entry{offset: xxhash.Sum64String(hosts[i].HashKey) % size, skip: d.Sum64()%(size-1) + 1, weight: w[k] / sum}
		top = max(top, es[k].weight)
	}
	m := &maglev{make([]int32, size)}
	for i := range m.table {
		m.table[i] = -1
	}
	filled := uint64(0)
	for round := 1.0; filled < size; round++ {
		for k := range es {
			e := &es[k]
			if round*e.weight < e.target {
				continue
			}
			e.target += top
			c := (e.offset + e.skip*e.next) % size
			for m.table[c] >= 0 {
				e.next++
				c = (e.offset + e.skip*e.next) % size
			}
			m.table[c] = idx[k]
			e.next++
			if filled++; filled == size {
				break
			}
		}
	}
	return m
}

func (m *maglev) pick(h uint64, attempt int) int {
	if attempt > 0 {
		h ^= ^uint64(0) - uint64(attempt) + 1
	}
	return int(m.table[h%uint64(len(m.table))])
}
