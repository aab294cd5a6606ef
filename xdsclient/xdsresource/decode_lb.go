package xdsresource

import (
	clusterv3pb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	lbcommonv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/common/v3"
	leastrequestv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	maglevv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/maglev/v3"
	overridehostv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/override_host/v3"
	randomv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/random/v3"
	ringhashv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/ring_hash/v3"
	roundrobinv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/round_robin/v3"
	typev3pb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	defaultRingMin     = 1024
	defaultRingMax     = 8 << 20
	defaultMaglevTable = 65537
	maxMaglevTable     = 5_000_011
)

func (s *scope) lb(c *Cluster, m *clusterv3pb.Cluster) LB {
	lb := LB{
		ChoiceCount: 2, ActiveRequestBias: 1, RingMin: defaultRingMin, RingMax: defaultRingMax, MaglevTableSize: defaultMaglevTable,
		SlowStartAggression: 1, SlowStartMinWeight: 10,
		PanicThreshold:        percent(m.GetCommonLbConfig().GetHealthyPanicThreshold(), 50),
		LocalityWeighted:      m.GetCommonLbConfig().GetLocalityWeightedLbConfig() != nil,
		RenewOnChange:         m.GetCommonLbConfig().GetCloseConnectionsOnHostSetChange(),
		UseHostnameForHashing: m.GetCommonLbConfig().GetConsistentHashingLbConfig().GetUseHostnameForHashing(),
	}
	if m.GetLoadBalancingPolicy() == nil {
		lb.FailOnPanic = m.GetCommonLbConfig().GetZoneAwareLbConfig().GetFailTrafficOnPanic()
	}
	policy := m.GetLbPolicy()
	if m.GetLoadBalancingPolicy() != nil {
		policy = clusterv3pb.Cluster_LOAD_BALANCING_POLICY_CONFIG
	}
	switch policy {
	case clusterv3pb.Cluster_ROUND_ROBIN:
		s.slowStart(&lb, "round_robin_lb_config", m.GetRoundRobinLbConfig().GetSlowStartConfig())
	case clusterv3pb.Cluster_LEAST_REQUEST:
		r := m.GetLeastRequestLbConfig()
		s.leastRequest(&lb, r.GetChoiceCount().GetValue(), r.GetActiveRequestBias())
		s.slowStart(&lb, "least_request_lb_config", r.GetSlowStartConfig())
	case clusterv3pb.Cluster_RANDOM:
		lb.Policy = LBRandom
	case clusterv3pb.Cluster_RING_HASH:
		r := m.GetRingHashLbConfig()
		lb.Policy = LBRingHash
		if v := r.GetMinimumRingSize(); v != nil {
			lb.RingMin = v.GetValue()
		}
		if v := r.GetMaximumRingSize(); v != nil {
			lb.RingMax = v.GetValue()
		}
		s.ring(&lb, "ring_hash_lb_config")
	case clusterv3pb.Cluster_MAGLEV:
		lb.Policy = LBMaglev
		if v := m.GetMaglevLbConfig().GetTableSize(); v != nil {
			lb.MaglevTableSize = v.GetValue()
		}
		s.maglev(&lb, "maglev_lb_config.table_size")
	case clusterv3pb.Cluster_CLUSTER_PROVIDED:
		lb.Policy = LBClusterProvided
	case clusterv3pb.Cluster_LOAD_BALANCING_POLICY_CONFIG:
		s.push("load_balancing_policy")
		s.lbPolicies(&lb, m.GetLoadBalancingPolicy(), 0)
		s.pop()
	default:
		s.errorf("lb_policy", "unknown value %d", policy)
	}
	provided := c.Discovery == DiscoveryOriginalDst || c.Discovery == DiscoveryDynamicForwardProxy
	if provided != (lb.Policy == LBClusterProvided) && policy != clusterv3pb.Cluster_LOAD_BALANCING_POLICY_CONFIG {
		s.errorf("lb_policy", "CLUSTER_PROVIDED belongs to the types ORIGINAL_DST and dynamic_forward_proxy, and to them only")
	}
	if provided {
		lb.Policy = LBClusterProvided
	}
	return lb
}

func (s *scope) leastRequest(lb *LB, choices uint32, bias *corev3pb.RuntimeDouble) {
	lb.Policy = LBLeastRequest
	if choices > 0 {
		lb.ChoiceCount = choices
	}
	if bias != nil {
		lb.ActiveRequestBias = bias.GetDefaultValue()
	}
	if lb.ActiveRequestBias < 0 {
		lb.ActiveRequestBias = 1 // as Envoy
	}
}

func (s *scope) ring(lb *LB, field string) {
	if lb.RingMin > lb.RingMax {
		s.errorf(field, "minimum_ring_size (%d) > maximum_ring_size (%d)", lb.RingMin, lb.RingMax)
	}
	if lb.RingMax > defaultRingMax {
		s.errorf(field+".maximum_ring_size", "must be at most %d", uint64(defaultRingMax))
	}
}

func (s *scope) maglev(lb *LB, field string) {
	if lb.MaglevTableSize > maxMaglevTable || !isPrime(lb.MaglevTableSize) {
		s.errorf(field, "%d is not a prime of at most %d", lb.MaglevTableSize, maxMaglevTable)
	}
}

// slowStartConfig is what both forms of slow start have.
type slowStartConfig interface {
	GetSlowStartWindow() *durationpb.Duration
	GetAggression() *corev3pb.RuntimeDouble
	GetMinWeightPercent() *typev3pb.Percent
}

func (s *scope) slowStart(lb *LB, field string, c slowStartConfig) {
	lb.SlowStartWindow = s.duration(field+".slow_start_config.slow_start_window", c.GetSlowStartWindow(), 0)
	if a := c.GetAggression(); a != nil {
		lb.SlowStartAggression = a.GetDefaultValue()
		if lb.SlowStartAggression <= 0 {
			lb.SlowStartAggression = 1
			s.ignore(field+".slow_start_config.aggression", "must be greater than 0; 1 is used")
		}
	}
	lb.SlowStartMinWeight = percent(c.GetMinWeightPercent(), 10)
}

// lbPolicies takes the first policy that is known, as Envoy does.
func (s *scope) lbPolicies(lb *LB, m *clusterv3pb.LoadBalancingPolicy, depth int) {
	for i, p := range m.GetPolicies() {
		s.pushIndex("policies", i)
		s.push("typed_extension_config.typed_config")
		known := s.lbExtension(lb, p.GetTypedExtensionConfig(), depth)
		s.pop()
		s.pop()
		if known {
			return
		}
	}
	s.unsupported("policies", "none of the policies is supported")
}

func (s *scope) lbExtension(lb *LB, m *corev3pb.TypedExtensionConfig, depth int) bool {
	a, err := unwrapStruct(m.GetTypedConfig())
	if err != nil {
		s.reject("", err)
		return true
	}
	var rr roundrobinv3pb.RoundRobin
	var lr leastrequestv3pb.LeastRequest
	var rnd randomv3pb.Random
	var ring ringhashv3pb.RingHash
	var maglev maglevv3pb.Maglev
	var over overridehostv3pb.OverrideHost
	switch {
	case s.unpack(a, &rr):
		s.classify(&rr)
		s.slowStart(lb, "", rr.GetSlowStartConfig())
		lb.Policy = LBRoundRobin
		s.localityConfig(lb, rr.GetLocalityLbConfig())
	case s.unpack(a, &lr):
		s.classify(&lr)
		s.leastRequest(lb, lr.GetChoiceCount().GetValue(), lr.GetActiveRequestBias())
		s.slowStart(lb, "", lr.GetSlowStartConfig())
		s.localityConfig(lb, lr.GetLocalityLbConfig())
	case s.unpack(a, &rnd):
		s.classify(&rnd)
		lb.Policy = LBRandom
		s.localityConfig(lb, rnd.GetLocalityLbConfig())
	case s.unpack(a, &ring):
		s.classify(&ring)
		lb.Policy = LBRingHash
		if v := ring.GetMinimumRingSize(); v != nil {
			lb.RingMin = v.GetValue()
		}
		if v := ring.GetMaximumRingSize(); v != nil {
			lb.RingMax = v.GetValue()
		}
		lb.UseHostnameForHashing = ring.GetConsistentHashingLbConfig().GetUseHostnameForHashing()
		lb.LocalityWeighted = lb.LocalityWeighted || ring.GetLocalityWeightedLbConfig() != nil
		s.ring(lb, "")
	case s.unpack(a, &maglev):
		s.classify(&maglev)
		lb.Policy = LBMaglev
		if v := maglev.GetTableSize(); v != nil {
			lb.MaglevTableSize = v.GetValue()
		}
		lb.UseHostnameForHashing = maglev.GetConsistentHashingLbConfig().GetUseHostnameForHashing()
		lb.LocalityWeighted = lb.LocalityWeighted || maglev.GetLocalityWeightedLbConfig() != nil
		s.maglev(lb, "table_size")
	case s.unpack(a, &over):
		s.classify(&over)
		return s.overrideHost(lb, &over, depth)
	default:
		return false
	}
	return true
}

func (s *scope) overrideHost(lb *LB, m *overridehostv3pb.OverrideHost, depth int) bool {
	if depth > 0 {
		s.errorf("", "override_host can't be nested")
		return true
	}
	for i, src := range m.GetOverrideHostSources() {
		if h := src.GetHeader(); h != "" && lb.OverrideHostHeader == "" {
			lb.OverrideHostHeader = h
		} else {
			s.pushIndex("override_host_sources", i)
			s.ignore("", "only the first header is looked at")
			s.pop()
		}
	}
	s.push("fallback_policy")
	s.lbPolicies(lb, m.GetFallbackPolicy(), depth+1)
	s.pop()
	return true
}

func (s *scope) localityConfig(lb *LB, m *lbcommonv3pb.LocalityLbConfig) {
	lb.LocalityWeighted = lb.LocalityWeighted || m.GetLocalityWeightedLbConfig() != nil
	lb.FailOnPanic = m.GetZoneAwareLbConfig().GetFailTrafficOnPanic()
}
