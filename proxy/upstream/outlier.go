package upstream

import (
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// monitor is the outlier state of one host.
type monitor struct {
	consecutive5xx, gateway, local atomic.Uint32
	ok, all                        atomic.Uint32
	ejected                        atomic.Bool
	rate                           atomic.Int64 // success rate in 1/100 percent of the last interval, -1 unknown

	// Guarded by detector.mu.
	lastEjected time.Time
	backoff     uint32
	jitter      time.Duration
}

// detector ejects hosts that misbehave (Envoy's outlier detection).
type detector struct {
	c    *Cluster
	spec *xdsresource.OutlierDetection

	mu     sync.Mutex
	active int
	timer  *time.Timer // nil before start
	closed bool
}

// start begins the intervals, once the cluster is complete.
func (d *detector) start() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.timer = time.AfterFunc(d.spec.Interval, d.tick)
	}
}

// close ends ejections. The hosts that are out no longer count as such.
func (d *detector) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	d.closed = true
	if d.timer != nil {
		d.timer.Stop()
	}
	if d.active != 0 {
		d.c.stats().outlier.active.Add(-int64(d.active))
		d.active = 0
	}
}

// status takes an HTTP status, or the one that stands for a local-origin
// failure.
func (d *detector) status(h *Host, code int) {
	m := &h.st.outlier
	m.all.Add(1)
	if code < 500 {
		m.ok.Add(1)
		if m.consecutive5xx.Load() != 0 {
			m.consecutive5xx.Store(0)
		}
		if m.gateway.Load() != 0 {
			m.gateway.Store(0)
		}
		return
	}
	s := &d.c.stats().outlier
	if code == 502 || code == 503 || code == 504 {
		if n := m.gateway.Add(1); n == d.spec.ConsecutiveGatewayFailure {
			m.gateway.Store(0)
			d.eject(h, d.spec.EnforcingConsecutiveGatewayFailure, s.gateway)
		}
	} else {
		m.gateway.Store(0)
	}
	if n := m.consecutive5xx.Add(1); n == d.spec.Consecutive5xx {
		m.consecutive5xx.Store(0)
		d.eject(h, d.spec.EnforcingConsecutive5xx, s.consecutive5xx)
	}
}

// localOrigin takes the outcome of what this side observed: 0 is success, else
// the status that stands for the failure.
func (d *detector) localOrigin(h *Host, code int) {
	if !d.spec.SplitExternalLocalOrigin {
		if code != 0 {
			d.status(h, code)
		}
		return
	}
	m := &h.st.outlier
	if code == 0 {
		m.local.Store(0)
		return
	}
	if n := m.local.Add(1); n == d.spec.ConsecutiveLocalOriginFailure {
		m.local.Store(0)
		d.eject(h, d.spec.EnforcingConsecutiveLocalOriginFailure, d.c.stats().outlier.local)
	}
}

// eject takes h out of load balancing if enforcing (a percentage) and
// max_ejection_percent allow it.
func (d *detector) eject(h *Host, enforcing uint32, counter *stats.Counter) {
	if enforcing < 100 && rand.Uint32N(100) >= enforcing {
		return
	}
	d.mu.Lock()
	m := &h.st.outlier
	if d.closed || h.st.removed.Load() || m.ejected.Load() {
		d.mu.Unlock()
		return
	}
	s := &d.c.stats().outlier
	share := 100 * float64(d.active+1) / float64(max(1, d.c.hostCount()))
	if share > float64(min(100, d.spec.MaxEjectionPercent)) && (!d.spec.AlwaysEjectOneHost || d.active != 0) {
		d.mu.Unlock()
		s.overflow.Inc()
		return
	}
	d.active++
	m.lastEjected = time.Now()
	if time.Duration(m.backoff)*d.spec.BaseEjectionTime < d.maxTime()+d.spec.BaseEjectionTime {
		m.backoff++
	}
	m.jitter = 0
	if d.spec.MaxEjectionTimeJitter > 0 {
		m.jitter = rand.N(d.spec.MaxEjectionTimeJitter + 1)
	}
	m.ejected.Store(true)
	s.active.Add(1)
	d.mu.Unlock()
	s.total.Inc()
	counter.Inc()
	d.c.m.log.Info("host ejected", "cluster", d.c.spec.Name, "host", h.name)
	d.c.rebuild()
}

func (d *detector) maxTime() time.Duration {
	return max(d.spec.MaxEjectionTime, d.spec.BaseEjectionTime)
}

// tick runs each interval: hosts come back when their time is over, and rates
// are judged.
func (d *detector) tick() {
	hosts := d.c.allHosts()
	now := time.Now()
	changed := false
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return
	}
	for _, h := range hosts {
		m := &h.st.outlier
		if !m.ejected.Load() {
			if m.backoff > 0 {
				m.backoff--
			}
			continue
		}
		if now.Sub(m.lastEjected) < min(time.Duration(m.backoff)*d.spec.BaseEjectionTime, d.maxTime())+m.jitter {
			continue
		}
		m.ejected.Store(false)
		m.consecutive5xx.Store(0)
		m.gateway.Store(0)
		m.local.Store(0)
		d.active--
		changed = true
		d.c.stats().outlier.active.Add(-1)
		d.c.m.log.Info("ejected host is back", "cluster", d.c.spec.Name, "host", h.name)
	}
	d.timer.Reset(d.spec.Interval)
	d.mu.Unlock()
	if changed {
		d.c.rebuild()
	}
	d.judge(hosts)
}

// forget takes a removed host out of the count of ejected ones; it is not ejected
// any more.
func (d *detector) forget(h *Host) {
	d.mu.Lock()
	defer d.mu.Unlock()
	h.st.removed.Store(true)
	if !d.closed && h.st.outlier.ejected.Swap(false) {
		d.active--
		d.c.stats().outlier.active.Add(-1)
	}
}

// judge ejects by success rate and failure percentage of the last interval.
func (d *detector) judge(hosts []*Host) {
	type sample struct {
		h       *Host
		percent float64
		volume  uint32
	}
	var all []sample
	for _, h := range hosts {
		m := &h.st.outlier
		n, ok := m.all.Swap(0), m.ok.Swap(0)
		m.rate.Store(-1)
		if n == 0 || m.ejected.Load() {
			continue
		}
		p := 100 * float64(ok) / float64(n)
		all = append(all, sample{h, p, n})
		if n >= d.spec.SuccessRateRequestVolume {
			m.rate.Store(int64(100 * p))
		}
	}
	s := &d.c.stats().outlier
	var valid []sample
	for _, x := range all {
		if d.spec.SuccessRateRequestVolume > 0 && x.volume >= d.spec.SuccessRateRequestVolume {
			valid = append(valid, x)
		}
	}
	if len(valid) > 0 && len(valid) >= int(d.spec.SuccessRateMinimumHosts) && d.spec.EnforcingSuccessRate > 0 {
		mean, dev := 0.0, 0.0
		for _, x := range valid {
			mean += x.percent / float64(len(valid))
		}
		for _, x := range valid {
			dev += (x.percent - mean) * (x.percent - mean) / float64(len(valid))
		}
		threshold := mean - math.Sqrt(dev)*float64(d.spec.SuccessRateStdevFactor)/1000
		for _, x := range valid {
			if x.percent < threshold {
				d.eject(x.h, d.spec.EnforcingSuccessRate, s.successRate)
			}
		}
	}
	if d.spec.EnforcingFailurePercentage == 0 {
		return
	}
	valid = valid[:0]
	for _, x := range all {
		if x.volume >= d.spec.FailurePercentageRequestVolume {
			valid = append(valid, x)
		}
	}
	if len(valid) < int(d.spec.FailurePercentageMinimumHosts) {
		return
	}
	for _, x := range valid {
		if 100-x.percent >= float64(d.spec.FailurePercentageThreshold) {
			d.eject(x.h, d.spec.EnforcingFailurePercentage, s.failurePct)
		}
	}
}
