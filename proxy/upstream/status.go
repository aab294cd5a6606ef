package upstream

import (
	"sort"

	"github.com/fairlead-mesh/fairlead/proxy/upstream/lb"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// ClusterStatus is a snapshot of one cluster for /clusters.
type ClusterStatus struct {
	Name, ObservabilityName string
	// Warming clusters don't serve yet. Broken says why the cluster can't.
	Warming bool
	Broken  string
	// Breakers are the DEFAULT and HIGH thresholds and what is taken now.
	Breakers        [2]BreakerStatus
	OutlierDetected bool // outlier detection is configured
	Hosts           []HostStatus
}

// BreakerStatus is one priority's circuit breaker.
type BreakerStatus struct {
	MaxConnections, MaxPending, MaxRequests, MaxRetries uint32
	Connections, Pending, Requests, Retries             int64
}

// HostStatus is one host.
type HostStatus struct {
	// Address is "ip:port" or "envoy://listener/endpoint"; Hostname the
	// configured or resolved host name.
	Address, Hostname                      string
	CxActive, RqActive, RqPending          int64
	CxTotal, CxConnectFail                 uint64
	RqTotal, RqSuccess, RqError, RqTimeout uint64
	Health                                 string // Envoy's health_flags, "healthy" if none
	Weight, Priority                       uint32
	Region, Zone, SubZone                  string
	SuccessRate                            float64 // -1: unknown
}

// Clusters returns a snapshot of all clusters, sorted by name.
func (m *Manager) Clusters() []ClusterStatus {
	m.mu.Lock()
	var all []*Cluster
	warming := map[*Cluster]bool{}
	for c := range m.each {
		all = append(all, c)
	}
	for _, c := range m.warming {
		all = append(all, c)
		warming[c] = true
	}
	m.mu.Unlock()
	out := make([]ClusterStatus, 0, len(all))
	for _, c := range all {
		out = append(out, c.status(warming[c]))
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

func (c *Cluster) status(warming bool) ClusterStatus {
	s := ClusterStatus{
		Name: c.spec.Name, ObservabilityName: c.StatName(), Warming: warming, Broken: c.spec.Broken,
		OutlierDetected: c.detector != nil,
	}
	for i := range c.breakers {
		b, conf := &c.breakers[i], &c.spec.Breakers[i]
		s.Breakers[i] = BreakerStatus{
			MaxConnections: conf.MaxConnections, MaxPending: conf.MaxPendingRequests, MaxRequests: conf.MaxRequests, MaxRetries: conf.MaxRetries,
			Connections: b.connections.n.Load(), Pending: b.pending.n.Load(), Requests: b.requests.n.Load(), Retries: b.retries.n.Load(),
		}
	}
	hosts := c.allHosts()
	if c.dynamic != nil {
		sort.Slice(hosts, func(i, j int) bool { return hosts[i].name < hosts[j].name })
	}
	for _, h := range hosts {
		s.Hosts = append(s.Hosts, h.status())
	}
	return s
}

func (h *Host) status() HostStatus {
	st := h.st
	s := HostStatus{
		Address: h.name, Hostname: h.Endpoint.DisplayHost,
		CxActive: st.cxActive.Load(), RqActive: st.rqActive.Load(), RqPending: st.pending.Load(),
		CxTotal: st.cxTotal.Load(), CxConnectFail: st.cxFail.Load(),
		RqTotal: st.rqTotal.Load(), RqSuccess: st.rqSuccess.Load(), RqError: st.rqError.Load(), RqTimeout: st.rqTimeout.Load(),
		Health: h.healthFlags(), Weight: max(1, h.Endpoint.Weight), Priority: h.Priority,
		Region: h.region, Zone: h.zone, SubZone: h.subZone, SuccessRate: -1,
	}
	if r := st.outlier.rate.Load(); r >= 0 {
		s.SuccessRate = float64(r) / 100
	}
	return s
}

// healthFlags renders Envoy's health flags.
func (h *Host) healthFlags() string {
	out := ""
	if h.st.outlier.ejected.Load() {
		out += "/failed_outlier_check"
	}
	switch h.Endpoint.Health {
	case xdsresource.HealthUnhealthy:
		out += "/failed_eds_health"
	case xdsresource.HealthDraining:
		out += "/eds_status_draining"
	case xdsresource.HealthDegraded:
		out += "/degraded_eds_health"
	case xdsresource.HealthUnknown, xdsresource.HealthHealthy:
	}
	if out == "" {
		return "healthy"
	}
	return out
}

// Healthy reports whether h may take traffic at all.
func (h *Host) Healthy() bool { return healthOf(h) != lb.Unhealthy }
