package lb

import "time"

// picker chooses one host of a fixed list. h is the request's hash or a random
// number.
type picker interface {
	pick(h uint64, attempt int) int
}

// source is a list of hosts of one level and health class. If locality
// weighting applies, byLocality holds a picker for each locality and weights
// schedules them; else hosts is used.
type source struct {
	hosts      picker
	weights    *edf
	byLocality []picker
}

func (s *source) pick(h uint64, attempt int) int {
	if s.weights != nil {
		return s.byLocality[s.weights.next()].pick(h, attempt)
	}
	if s.hosts == nil {
		return -1
	}
	return s.hosts.pick(h, attempt)
}

type builder struct {
	cfg        *Config
	hosts      []Host
	localities []Locality
}

// level compiles the sources that l's loads make reachable.
func (b *builder) level(l *level, idx []int32) {
	if len(idx) == 0 {
		return
	}
	if l.panicking {
		l.all.hosts = b.picker(idx, nil)
		return
	}
	if l.nHealthy > 0 {
		b.source(&l.healthy, idx, Healthy)
	}
	if l.nDegraded > 0 {
		b.source(&l.degraded, idx, Degraded)
	}
}

func (b *builder) source(s *source, idx []int32, h Health) {
	var members []int32
	for _, i := range idx {
		if b.hosts[i].Health == h {
			members = append(members, i)
		}
	}
	if !b.cfg.LocalityWeighted {
		s.hosts = b.picker(members, nil)
		return
	}
	groups, weights := b.localityWeights(idx, members)
	switch len(groups) {
	case 0:
		return // every locality with hosts has weight 0: nothing to pick
	case 1:
		s.hosts = b.picker(groups[0], nil)
		return
	}
	if b.cfg.Policy == RingHash || b.cfg.Policy == Maglev {
		s.hosts = b.hashed(groups, weights)
		return
	}
	for _, g := range groups {
		s.byLocality = append(s.byLocality, b.picker(g, nil))
	}
	s.weights = newEDF(len(groups), func(i int) float64 { return weights[i] })
}

// localityWeights groups members by locality, with Envoy's effective weights:
// a locality's weight reduced by its availability, overprovisioned.
func (b *builder) localityWeights(idx, members []int32) (groups [][]int32, weights []float64) {
	n := make([]int, len(b.localities))
	for _, i := range idx {
		n[b.hosts[i].Locality]++
	}
	by := make([][]int32, len(b.localities))
	for _, i := range members {
		by[b.hosts[i].Locality] = append(by[b.hosts[i].Locality], i)
	}
	factor := float64(b.cfg.OverprovisioningFactor) / 100
	if factor == 0 {
		factor = 1.4
	}
	for l, g := range by {
		if len(g) == 0 || b.localities[l].Weight == 0 {
			continue
		}
		avail := min(1, factor*float64(len(g))/float64(n[l]))
		groups = append(groups, g)
		weights = append(weights, float64(b.localities[l].Weight)*avail)
	}
	return groups, weights
}

// hashed builds one ring over groups whose hosts' weights are scaled so that
// each group gets its share.
func (b *builder) hashed(groups [][]int32, weights []float64) picker {
	var idx []int32
	var w []float64
	for g, members := range groups {
		sum := 0.0
		for _, i := range members {
			sum += b.weight(i)
		}
		for _, i := range members {
			idx = append(idx, i)
			w = append(w, weights[g]*b.weight(i)/sum)
		}
	}
	return b.picker(idx, w)
}

func (b *builder) weight(i int32) float64 { return float64(max(b.hosts[i].Weight, 1)) }

// picker compiles the policy for idx. w overrides the hosts' weights.
func (b *builder) picker(idx []int32, w []float64) picker {
	if len(idx) == 1 {
		return single(idx[0])
	}
	if w == nil {
		w = make([]float64, len(idx))
		for k, i := range idx {
			w[k] = b.weight(i)
		}
	}
	switch b.cfg.Policy {
	case RingHash:
		return newRing(b.cfg, b.hosts, idx, w)
	case Maglev:
		return newMaglev(b.cfg, b.hosts, idx, w)
	case Random:
		return randomPicker(idx) // ignores weights, as Envoy's does
	case LeastRequest:
		return b.leastRequest(idx, w)
	case RoundRobin:
	}
	if equal(w) && !b.warming(idx) {
		return newRotation(idx)
	}
	return b.scheduled(idx, w, false)
}

func equal(w []float64) bool {
	for _, x := range w {
		if x != w[0] {
			return false
		}
	}
	return true
}

// warming reports whether slow start applies to one of idx now.
func (b *builder) warming(idx []int32) bool {
	if b.cfg.SlowStart <= 0 {
		return false
	}
	now := b.now()
	for _, i := range idx {
		if now.Sub(b.hosts[i].Since) < b.cfg.SlowStart {
			return true
		}
	}
	return false
}

func (b *builder) now() time.Time {
	if b.cfg.Now != nil {
		return b.cfg.Now()
	}
	return time.Now()
}
