// Package lb picks hosts out of an immutable set. It knows weights, health,
// localities and priorities, and nothing of connections: a change of any of
// these makes a new Set. Picking takes no allocation and is safe for
// concurrent use.
//
// The arithmetic follows Envoy's load balancers: priorities with the
// overprovisioning factor, panic mode, locality weights, EDF scheduling for
// weights, power of two choices, ketama ring and Maglev.
package lb

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"
)

// Policy is a load-balancing algorithm.
type Policy uint8

// The algorithms.
const (
	RoundRobin Policy = iota
	LeastRequest
	Random
	RingHash
	Maglev
)

// Health is how far a host may take traffic.
type Health uint8

// Health states. Degraded hosts take traffic only as far as the healthy ones
// of all priorities don't suffice.
const (
	Healthy Health = iota
	Degraded
	Unhealthy
)

// Host is what an algorithm sees of one host. Its position in the slice given
// to New is its name.
type Host struct {
	// Weight is relative to the other hosts of the set; 0 counts as 1.
	Weight   uint32
	Health   Health
	Priority uint32
	// Locality is an index into the localities given to New.
	Locality int
	// HashKey places the host on a ring; it should be its address.
	HashKey string
	// Active counts requests in flight, for LeastRequest; nil counts as 0.
	Active *atomic.Int64
	// Since is when the host began to take traffic, for slow start. The zero
	// Time is long ago.
	Since time.Time
}

// Locality is a group of hosts of one priority.
type Locality struct {
	// Weight is relative to the other localities of the priority; 0 takes no
	// traffic when balancing is locality weighted.
	Weight uint32
}

// Config are the parameters of a Set. The zero Config is round robin with
// Envoy's defaults except that panic mode is off.
type Config struct {
	Policy Policy
	// PanicThreshold is a percentage; 0 disables panic mode.
	PanicThreshold float64
	// FailOnPanic picks no host of a priority in panic mode; RingHash and Maglev
	// don't know it.
	FailOnPanic bool
	// OverprovisioningFactor is a percentage; 0 means 140.
	OverprovisioningFactor uint32
	// LocalityWeighted chooses a locality by weight first.
	LocalityWeighted bool
	// ChoiceCount is how many random hosts LeastRequest compares; 0 means 2.
	ChoiceCount int
	// ActiveRequestBias is the exponent by which active requests reduce the
	// weight of a host, if weights differ. 0 ignores them.
	ActiveRequestBias float64
	// RingMin and RingMax bound a ring; 0 means 1024 and 8 Mi. MaglevSize is
	// a prime; 0 means 65537.
	RingMin, RingMax, MaglevSize uint64
	// SlowStart is the window in which a new host gets a growing share; 0 is
	// off. Aggression 0 means 1, MinWeight (a percentage) 0 means 10.
	SlowStart                               time.Duration
	SlowStartAggression, SlowStartMinWeight float64
	// Now is the clock of slow start; nil means time.Now.
	Now func() time.Time
}

// Request is what one pick depends on.
type Request struct {
	// Hash decides with RingHash and Maglev if HasHash, else chance does.
	Hash    uint64
	HasHash bool
	// Attempt counts further picks for the same request (retries that must
	// avoid a host); hashing algorithms then move on.
	Attempt int
	// SkipPriorities is a bit mask of priorities to avoid; it is ignored if
	// nothing else is left.
	SkipPriorities uint64
}

// Set is an immutable set of hosts, compiled for picking.
type Set struct {
	levels []level
	// total is false if loads don't add up to 100 because no host is usable.
	empty bool
}

// level is one priority.
type level struct {
	healthy, degraded, all    source
	nHealthy, nDegraded, n    int
	availability, degAvail    uint32 // percentages, overprovisioned
	healthyLoad, degradedLoad uint32 // percentages of all traffic
	panicking, refusing       bool
}

// New compiles a set. hosts and localities are not kept, except Host.Active.
func New(cfg *Config, hosts []Host, localities []Locality) *Set {
	s := &Set{}
	for i := range hosts {
		for int(hosts[i].Priority) >= len(s.levels) {
			if len(s.levels) == maxPriorities {
				break
			}
			s.levels = append(s.levels, level{})
		}
	}
	byLevel := make([][]int32, len(s.levels))
	for i := range hosts {
		p := min(int(hosts[i].Priority), maxPriorities-1)
		byLevel[p] = append(byLevel[p], int32(i))
	}
	for p := range s.levels {
		l := &s.levels[p]
		l.n = len(byLevel[p])
		for _, i := range byLevel[p] {
			switch hosts[i].Health {
			case Healthy:
				l.nHealthy++
			case Degraded:
				l.nDegraded++
			case Unhealthy:
			}
		}
	}
	s.spread(cfg)
	b := &builder{cfg: cfg, hosts: hosts, localities: localities}
	for p := range s.levels {
		b.level(&s.levels[p], byLevel[p])
	}
	return s
}

// maxPriorities is Envoy's highest priority (128) plus one, bounded by the
// bits of Request.SkipPriorities.
const maxPriorities = 64

// Panicking reports whether priority p ignores health.
func (s *Set) Panicking(p int) bool { return p < len(s.levels) && s.levels[p].panicking }

// Refusing reports whether a priority in panic mode takes no traffic.
func (s *Set) Refusing() bool {
	return s != nil && slices.ContainsFunc(s.levels, func(l level) bool { return l.refusing })
}

// Load returns the percentages of traffic that go to the healthy and the
// degraded hosts of priority p.
func (s *Set) Load(p int) (healthy, degraded uint32) {
	if p >= len(s.levels) {
		return 0, 0
	}
	return s.levels[p].healthyLoad, s.levels[p].degradedLoad
}

// Pick returns the position of the chosen host, or -1 if no host may take
// traffic.
func (s *Set) Pick(r *Request) int {
	if s == nil || len(s.levels) == 0 || s.empty {
		return -1
	}
	h := r.Hash
	if !r.HasHash {
		h = rand.Uint64()
	}
	src := s.choose(h, r.SkipPriorities)
	if src == nil {
		return -1
	}
	return src.pick(h, r.Attempt)
}

// choose picks priority and health class by h.
func (s *Set) choose(h, skip uint64) *source {
	if len(s.levels) == 1 && s.levels[0].degradedLoad == 0 {
		return s.levels[0].source(false)
	}
	if skip != 0 {
		if src := s.chooseOther(h, skip); src != nil {
			return src
		}
	}
	x := uint32(h%100) + 1
	sum := uint32(0)
	for p := range s.levels {
		if sum += s.levels[p].healthyLoad; x <= sum {
			return s.levels[p].source(false)
		}
	}
	for p := range s.levels {
		if sum += s.levels[p].degradedLoad; x <= sum {
			return s.levels[p].source(true)
		}
	}
	return nil
}

// chooseOther chooses among the priorities that are not in skip, by their
// availability as if the others did not exist.
func (s *Set) chooseOther(h, skip uint64) *source {
	total := uint32(0)
	for p := range s.levels {
		if skip&(1<<p) == 0 {
			total += s.levels[p].availability
		}
	}
	if total == 0 {
		return nil
	}
	x, left := uint32(h%uint64(min(total, 100))), min(total, 100)
	for p := range s.levels {
		if skip&(1<<p) != 0 {
			continue
		}
		n := min(left, s.levels[p].availability)
		if x < n {
			return s.levels[p].source(false)
		}
		x, left = x-n, left-n
	}
	return nil
}

func (l *level) source(degraded bool) *source {
	switch {
	case l.refusing:
		return nil
	case l.panicking:
		return &l.all
	case degraded:
		return &l.degraded
	}
	return &l.healthy
}

// spread computes availability, loads and panic of all levels as Envoy's
// LoadBalancerBase does.
func (s *Set) spread(cfg *Config) {
	if len(s.levels) == 0 {
		return
	}
	factor := cfg.OverprovisioningFactor
	if factor == 0 {
		factor = 140
	}
	sum := uint32(0)
	for p := range s.levels {
		l := &s.levels[p]
		if l.n > 0 {
			l.availability = uint32(min(100, uint64(factor)*uint64(l.nHealthy)/uint64(l.n)))
			l.degAvail = uint32(min(100, uint64(factor)*uint64(l.nDegraded)/uint64(l.n)))
		}
		sum = min(100, sum+l.availability+l.degAvail)
	}
	if sum == 0 && cfg.PanicThreshold <= 0 {
		s.empty = true
		return
	}
	if sum > 0 {
		s.distribute(sum)
	}
	all := true
	for p := range s.levels {
		l := &s.levels[p]
		l.panicking = sum < 100 && 100*float64(l.nHealthy+l.nDegraded) < cfg.PanicThreshold*float64(max(l.n, 1))
		l.refusing = l.panicking && cfg.FailOnPanic && cfg.Policy != RingHash && cfg.Policy != Maglev
		all = all && l.panicking
	}
	if all {
		s.distributeByHosts()
	}
}

// distribute gives each level its share: healthy hosts of all levels in order,
// then degraded ones; what rounding leaves goes to the first level with load.
func (s *Set) distribute(sum uint32) {
	left := uint32(100)
	for p := range s.levels {
		n := min(left, s.levels[p].availability*100/sum)
		s.levels[p].healthyLoad, left = n, left-n
	}
	for p := range s.levels {
		n := min(left, s.levels[p].degAvail*100/sum)
		s.levels[p].degradedLoad, left = n, left-n
	}
	if left == 0 {
		return
	}
	for p := range s.levels {
		if s.levels[p].availability > 0 {
			s.levels[p].healthyLoad += left
			return
		}
	}
	for p := range s.levels {
		if s.levels[p].degAvail > 0 {
			s.levels[p].degradedLoad += left
			return
		}
	}
}

// distributeByHosts spreads traffic by the number of hosts when every level is
// in panic mode.
func (s *Set) distributeByHosts() {
	total := 0
	for p := range s.levels {
		total += s.levels[p].n
	}
	if total == 0 {
		s.empty = true
		return
	}
	left, first := uint32(100), -1
	for p := range s.levels {
		l := &s.levels[p]
		l.healthyLoad, l.degradedLoad = uint32(100*l.n/total), 0
		left -= l.healthyLoad
		if first < 0 && l.n > 0 {
			first = p
		}
	}
	s.levels[first].healthyLoad += left
}
