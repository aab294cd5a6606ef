package upstream

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy/upstream/lb"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Cluster is a running cluster. It stays usable for streams that hold it after
// it was removed. It is safe for concurrent use.
type Cluster struct {
	m    *Manager
	spec *xdsresource.Cluster

	breakers [2]breaker
	detector *detector // nil without outlier detection
	st       atomic.Pointer[clusterStats]
	tls      []socketTLS

	filters    []filters.UpstreamFilter
	filtersErr error // one can't be executed

	set  atomic.Pointer[hostSet]
	drop atomic.Pointer[[]float64]

	// mu serialises changes of the host set.
	mu         sync.Mutex
	assignment *xdsresource.ClusterLoadAssignment
	closed     bool
	warmTimer  *time.Timer // guarded by Manager.mu

	// ctx ends with the cluster; dials and resolutions stop then.
	ctx    context.Context //nolint:containedctx // the life of the cluster's own background work
	cancel context.CancelFunc

	dns     *resolver     // STRICT_DNS, LOGICAL_DNS
	dynamic *dynamicHosts // ORIGINAL_DST, dynamic_forward_proxy
}

// hostSet is one immutable state of a cluster's hosts.
type hostSet struct {
	hosts                      []*Host
	localities                 []lb.Locality
	localityOf                 []int
	overprovisioning           uint32
	lb                         *lb.Set
	byAddress                  map[netip.AddrPort]*Host // only for override_host
	healthy, degraded, present int
}

// Name returns the configured name.
func (c *Cluster) Name() string { return c.spec.Name }

// Spec returns the configuration; it is read-only.
func (c *Cluster) Spec() *xdsresource.Cluster { return c.spec }

// StatName is alt_stat_name, or the name: %UPSTREAM_CLUSTER%.
func (c *Cluster) StatName() string { return statName(c.spec) }

func statName(spec *xdsresource.Cluster) string {
	if spec.AltStatName != "" {
		return spec.AltStatName
	}
	return spec.Name
}

func (c *Cluster) stats() *clusterStats {
	if s := c.st.Load(); s != nil {
		return s
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.st.Load(); s != nil {
		return s
	}
	s := newClusterStats(c.m.opt.Stats, c.StatName())
	c.st.Store(s)
	if c.closed {
		return s // the series are its successor's
	}
	hs := c.set.Load()
	c.membership(s, hs)
	if hs.present > 0 { // they came before somebody counted
		s.membershipChange.Inc()
	}
	return s
}

// endStats returns the scope of the metrics of a cluster that was removed. If nobody
// has counted so far, nobody will: that would bring them back.
func (c *Cluster) endStats() *stats.Scope {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.st.Load(); s != nil {
		return s.scope
	}
	c.st.Store(uncounted)
	return statsScope(c.m.opt.Stats, c.StatName()) // a former version may have counted
}

func (c *Cluster) membership(s *clusterStats, hs *hostSet) {
	if s == nil {
		return
	}
	s.membershipTotal.Set(int64(hs.present))
	s.membershipHealthy.Set(int64(hs.healthy))
	s.membershipDeg.Set(int64(hs.degraded))
}

func (c *Cluster) breaker(high bool) *breaker {
	if high {
		return &c.breakers[1]
	}
	return &c.breakers[0]
}

func (c *Cluster) hosts() []*Host { return c.set.Load().hosts }

// allHosts includes those learned from traffic.
func (c *Cluster) allHosts() []*Host {
	if c.dynamic != nil {
		return c.dynamic.hosts()
	}
	return c.hosts()
}

func (c *Cluster) hostCount() int {
	if c.dynamic != nil {
		return c.dynamic.count()
	}
	return len(c.hosts())
}

// Pick chooses a host. The error is ErrNoHealthyHost or names the cause.
func (c *Cluster) Pick(p *PickContext) (*Host, error) {
	if c.spec.Broken != "" {
		return nil, &BrokenError{c.spec.Name, c.spec.Broken}
	}
	if c.dynamic != nil {
		return c.dynamic.pick(p)
	}
	hs := c.set.Load()
	if hs.byAddress != nil {
		if h := c.override(hs, p); h != nil {
			return h, nil
		}
	}
	r := lb.Request{Hash: p.Hash, HasHash: p.HasHash, SkipPriorities: p.SkipPriorities}
	var h *Host
	for r.Attempt = 0; ; r.Attempt++ {
		i := hs.lb.Pick(&r)
		if i < 0 {
			if hs.lb.Refusing() {
				c.stats().lbPanic.Inc()
			}
			c.stats().cxNoneHealthy.Inc()
			return nil, ErrNoHealthyHost
		}
		h = hs.hosts[i]
		if p.Avoid == nil || r.Attempt >= p.Attempts || !p.Avoid(h) {
			break
		}
	}
	if hs.lb.Panicking(int(h.Priority)) {
		c.stats().lbPanic.Inc()
	}
	return h, nil
}

// override returns the host that the request names (override_host), nil if it
// names none that may take traffic.
func (c *Cluster) override(hs *hostSet, p *PickContext) *Host {
	if p.Stream == nil {
		return nil
	}
	list := p.Stream.Request.Get(c.spec.LB.OverrideHostHeader)
	for list != "" {
		var item string
		item, list, _ = strings.Cut(list, ",")
		a, err := netip.ParseAddrPort(strings.TrimSpace(item))
		if err != nil {
			continue
		}
		if h := hs.byAddress[a]; h != nil && healthOf(h) != lb.Unhealthy && (p.Avoid == nil || !p.Avoid(h)) {
			return h
		}
	}
	return nil
}

// Dropped reports whether drop_overload takes this request, which it counts,
// and whether it takes all.
func (c *Cluster) Dropped() (dropped, all bool) {
	ds := c.drop.Load()
	if ds == nil {
		return false, false
	}
	for _, share := range *ds {
		if rand.Float64() < share {
			c.stats().rqDropOverload.Inc()
			return true, share >= 1
		}
	}
	return false, false
}

func healthOf(h *Host) lb.Health {
	switch {
	case h.st.outlier.ejected.Load():
		return lb.Unhealthy
	case h.Endpoint.Health == xdsresource.HealthUnhealthy, h.Endpoint.Health == xdsresource.HealthDraining:
		return lb.Unhealthy
	case h.Endpoint.Health == xdsresource.HealthDegraded:
		return lb.Degraded
	}
	return lb.Healthy
}

// update installs a, keeping the hosts that are still there. The caller holds
// no lock.
func (c *Cluster) update(a *xdsresource.ClusterLoadAssignment) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.assignment = a
	old := c.set.Load()
	hs := &hostSet{overprovisioning: a.OverprovisioningFactor}
	prev := make(map[hostKey]*Host, len(old.hosts))
	for _, h := range old.hosts {
		prev[h.st.key] = h
	}
	seen := make(map[hostKey]bool, len(old.hosts))
	for li := range a.Localities {
		l := &a.Localities[li]
		hs.localities = append(hs.localities, lb.Locality{Weight: l.Weight})
		for ei := range l.Endpoints {
			e := &l.Endpoints[ei]
			k := keyOf(e)
			if seen[k] {
				continue // Envoy keeps the first of duplicates, too
			}
			seen[k] = true
			hs.hosts = append(hs.hosts, c.newHost(e, l, prev[k]))
			hs.localityOf = append(hs.localityOf, li)
		}
	}
	var gone []*Host
	kept := make(map[*hostState]bool, len(hs.hosts))
	for _, h := range hs.hosts {
		kept[h.st] = true
	}
	for _, h := range old.hosts {
		if !kept[h.st] {
			gone = append(gone, h)
		}
	}
	var drop *[]float64
	if len(a.DropOverloads) > 0 {
		drop = &a.DropOverloads
	}
	c.drop.Store(drop)
	c.compile(hs)
	c.mu.Unlock()
	if s := c.st.Load(); s != nil {
		s.updateSuccess.Inc()
		if len(gone) > 0 || len(hs.hosts) != len(old.hosts) {
			s.membershipChange.Inc()
		}
	}
	for _, h := range gone {
		if c.detector != nil {
			c.detector.forget(h)
		}
		h.st.drain()
	}
	if stay := len(old.hosts) - len(gone); c.spec.LB.RenewOnChange && (len(gone) > 0 || len(hs.hosts) > stay) {
		for _, h := range hs.hosts {
			h.st.eachPool((*pool).renew)
		}
	}
}

// rebuild compiles the host set again after health changed.
func (c *Cluster) rebuild() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dynamic != nil || c.closed {
		return // hosts are picked by address; an ejected one is refused there
	}
	old := c.set.Load()
	c.compile(&hostSet{hosts: old.hosts, localities: old.localities, localityOf: old.localityOf, overprovisioning: old.overprovisioning})
}

// compile fills hs.lb and publishes hs. The caller holds c.mu.
func (c *Cluster) compile(hs *hostSet) {
	s := &c.spec.LB
	cfg := &lb.Config{
		Policy: policies[s.Policy], PanicThreshold: s.PanicThreshold, FailOnPanic: s.FailOnPanic, OverprovisioningFactor: hs.overprovisioning,
		LocalityWeighted: s.LocalityWeighted, ChoiceCount: int(s.ChoiceCount), ActiveRequestBias: s.ActiveRequestBias,
		RingMin: s.RingMin, RingMax: s.RingMax, MaglevSize: s.MaglevTableSize,
		SlowStart: s.SlowStartWindow, SlowStartAggression: s.SlowStartAggression, SlowStartMinWeight: s.SlowStartMinWeight,
	}
	in := make([]lb.Host, len(hs.hosts))
	for i, h := range hs.hosts {
		in[i] = lb.Host{
			Weight: h.Endpoint.Weight, Health: healthOf(h), Priority: h.Priority, Locality: hs.localityOf[i],
			HashKey: h.name, Active: &h.st.rqActive, Since: h.st.since,
		}
		if s.UseHostnameForHashing && h.Endpoint.DisplayHost != "" {
			in[i].HashKey = h.Endpoint.DisplayHost
		}
		switch in[i].Health {
		case lb.Healthy:
			hs.healthy++
		case lb.Degraded:
			hs.degraded++
		case lb.Unhealthy:
		}
	}
	hs.present = len(hs.hosts)
	hs.lb = lb.New(cfg, in, hs.localities)
	if s.OverrideHostHeader != "" {
		hs.byAddress = make(map[netip.AddrPort]*Host, len(hs.hosts))
		for _, h := range hs.hosts {
			hs.byAddress[h.st.address] = h
		}
	}
	c.set.Store(hs)
	c.membership(c.st.Load(), hs)
}

var policies = [...]lb.Policy{
	xdsresource.LBRoundRobin: lb.RoundRobin, xdsresource.LBLeastRequest: lb.LeastRequest, xdsresource.LBRandom: lb.Random,
	xdsresource.LBRingHash: lb.RingHash, xdsresource.LBMaglev: lb.Maglev, xdsresource.LBClusterProvided: lb.RoundRobin,
}

// close drains the cluster: streams in flight end by themselves. The caller holds
// Manager.mu.
func (c *Cluster) close() {
	if c.warmTimer != nil {
		c.warmTimer.Stop()
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	c.mu.Unlock()
	if c.detector != nil {
		c.detector.close()
	}
	if c.dns != nil {
		c.dns.close()
	}
	if c.dynamic != nil {
		c.dynamic.close()
	}
	for _, h := range c.hosts() {
		h.st.drain()
	}
	if s := c.st.Load(); s != nil {
		s.membershipTotal.Set(0)
		s.membershipHealthy.Set(0)
		s.membershipDeg.Set(0)
	}
}

// Status records the HTTP status (for gRPC, what its grpc-status stands for)
// of a response from h, for outlier detection.
func (c *Cluster) Status(h *Host, status int) {
	if status >= 500 {
		h.st.rqError.Add(1)
	} else {
		h.st.rqSuccess.Add(1)
	}
	if c.detector != nil {
		c.detector.localOrigin(h, 0)
		c.detector.status(h, status)
	}
}

// Failure is what this side saw fail.
type Failure uint8

// Failures. A timeout counts as 504, the others as 503 unless
// split_external_local_origin_errors is set.
const (
	FailureConnect Failure = iota
	FailureReset
	FailureTimeout
)

// Failed records a failure of h that is no response.
func (c *Cluster) Failed(h *Host, f Failure) {
	h.st.rqError.Add(1)
	code := 503
	if f == FailureTimeout {
		code = 504
		h.st.rqTimeout.Add(1)
	}
	if c.detector != nil {
		c.detector.localOrigin(h, code)
	}
}
