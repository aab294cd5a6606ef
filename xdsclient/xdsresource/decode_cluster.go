package xdsresource

import (
	"math/bits"
	"time"

	clusterv3pb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	dnsclusterv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	dfpv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

// Envoy's defaults.
const (
	defaultConnectTimeout  = 5 * time.Second
	defaultCleanupInterval = 5 * time.Second
)

func (s *scope) cluster(m *clusterv3pb.Cluster) *Cluster {
	mark := len(s.closed)
	s.classify(m)
	c := &Cluster{
		Resource:        Resource{Name: m.GetName()},
		AltStatName:     m.GetAltStatName(),
		ConnectTimeout:  s.duration("connect_timeout", m.GetConnectTimeout(), defaultConnectTimeout),
		Metadata:        s.metadata(m.GetMetadata()),
		CleanupInterval: s.duration("cleanup_interval", m.GetCleanupInterval(), defaultCleanupInterval),
	}
	s.discoveryType(c, m)
	s.endpoints(c, m)
	c.LB = s.lb(c, m)
	c.HTTP = s.upstreamHTTP(m)
	c.MaxRequestsPerConnection = c.HTTP.MaxRequestsPerConnection
	c.Breakers = s.breakers(m.GetCircuitBreakers())
	if m.GetOutlierDetection() != nil {
		s.push("outlier_detection")
		c.Outlier = s.outlier(m.GetOutlierDetection())
		s.pop()
	}
	s.originalDst(c, m)
	s.dns(c, m)
	s.upstreamSockets(c, m)
	if c.Discovery == DiscoveryDynamicForwardProxy {
		// As in Envoy; whatever the socket is wrapped in.
		if c.DNS.Port = 80; c.TransportSocket.TLS != nil {
			c.DNS.Port = defaultDFPPort
		}
	}
	if k := m.GetUpstreamConnectionOptions().GetTcpKeepalive(); k != nil {
		c.TCPKeepalive = &TCPKeepalive{
			Probes: k.GetKeepaliveProbes().GetValue(), Time: k.GetKeepaliveTime().GetValue(), Interval: k.GetKeepaliveInterval().GetValue(),
		}
	}
	if a := m.GetUpstreamBindConfig().GetSourceAddress(); a != nil {
		c.BindSource = s.addrPort("upstream_bind_config.source_address", a, "")
	}
	s.upstreamFilters(c, m)
	c.Broken = s.takeClosed(mark)
	return c
}

// upstreamFilters decodes the filters of upstream connections. One that can't be
// executed could be there to protect something.
func (s *scope) upstreamFilters(c *Cluster, m *clusterv3pb.Cluster) {
	for i, f := range m.GetFilters() {
		s.pushIndex("filters", i)
		tc := s.plugin(f.GetName(), f.GetTypedConfig(), upstreamPlugin)
		if tc.Unknown != "" {
			s.unsupported("", "upstream network filter %q can't be executed: %s", f.GetName(), tc.Unknown)
		}
		c.Filters = append(c.Filters, tc)
		s.pop()
	}
}

func (s *scope) discoveryType(c *Cluster, m *clusterv3pb.Cluster) {
	switch t := m.GetClusterDiscoveryType().(type) {
	case nil:
	case *clusterv3pb.Cluster_Type:
		switch t.Type {
		case clusterv3pb.Cluster_STATIC:
		case clusterv3pb.Cluster_STRICT_DNS:
			c.Discovery = DiscoveryStrictDNS
		case clusterv3pb.Cluster_LOGICAL_DNS:
			c.Discovery = DiscoveryLogicalDNS
		case clusterv3pb.Cluster_EDS:
			c.Discovery = DiscoveryEDS
		case clusterv3pb.Cluster_ORIGINAL_DST:
			c.Discovery = DiscoveryOriginalDst
		default:
			s.errorf("type", "unknown value %d", t.Type)
		}
	case *clusterv3pb.Cluster_ClusterType:
		s.push("cluster_type.typed_config")
		s.clusterType(c, t.ClusterType)
		s.pop()
	}
}

func (s *scope) clusterType(c *Cluster, t *clusterv3pb.Cluster_CustomClusterType) {
	var dfp dfpv3pb.ClusterConfig
	var named dnsclusterv3pb.DnsCluster
	switch {
	case s.unpackStruct(t.GetTypedConfig(), &dfp):
		s.classify(&dfp)
		c.Discovery = DiscoveryDynamicForwardProxy
	case s.unpackStruct(t.GetTypedConfig(), &named):
		s.classify(&named)
		c.Discovery = DiscoveryStrictDNS
		if named.GetAllAddressesInSingleEndpoint() {
			c.Discovery = DiscoveryLogicalDNS
		}
	default:
		s.unsupported("", "cluster type %q is not supported", t.GetName())
	}
}

func (s *scope) endpoints(c *Cluster, m *clusterv3pb.Cluster) {
	la := m.GetLoadAssignment()
	switch c.Discovery {
	case DiscoveryEDS:
		if m.GetEdsClusterConfig() == nil {
			s.errorf("eds_cluster_config", "is missing, but type is EDS")
		}
		c.EDSServiceName = m.GetEdsClusterConfig().GetServiceName()
		c.EDSSource = s.configSource("eds_cluster_config.eds_config", m.GetEdsClusterConfig().GetEdsConfig())
		return
	case DiscoveryOriginalDst, DiscoveryDynamicForwardProxy:
		if la != nil {
			s.errorf("load_assignment", "a cluster of this type finds its endpoints by itself")
		}
		return
	case DiscoveryStatic, DiscoveryStrictDNS, DiscoveryLogicalDNS:
	}
	if m.GetEdsClusterConfig() != nil {
		s.errorf("eds_cluster_config", "is set, but type is not EDS")
	}
	if la == nil {
		c.Assignment = &ClusterLoadAssignment{Resource: Resource{Name: c.Name}, OverprovisioningFactor: defaultOverprovisioning}
		return
	}
	s.push("load_assignment")
	defer s.pop()
	c.Assignment = s.assignment(la, c.Discovery == DiscoveryStatic)
	c.Assignment.Digest = digest(la)
	if c.Discovery == DiscoveryLogicalDNS && (len(c.Assignment.Localities) != 1 || len(c.Assignment.Localities[0].Endpoints) != 1) {
		s.errorf("endpoints", "a LOGICAL_DNS cluster must have one locality with one endpoint")
	}
}

func (s *scope) originalDst(c *Cluster, m *clusterv3pb.Cluster) {
	o := m.GetOriginalDstLbConfig()
	if o == nil {
		return
	}
	s.push("original_dst_lb_config")
	defer s.pop()
	if c.Discovery != DiscoveryOriginalDst {
		s.ignore("", "type is not ORIGINAL_DST")
		return
	}
	c.OriginalDst = OriginalDst{UseHTTPHeader: o.GetUseHttpHeader(), HTTPHeader: o.GetHttpHeaderName(), PortOverride: o.GetUpstreamPortOverride().GetValue()}
	if c.OriginalDst.PortOverride > 65535 {
		s.errorf("upstream_port_override", "must be at most 65535")
	}
	if c.OriginalDst.UseHTTPHeader && c.OriginalDst.HTTPHeader == "" {
		c.OriginalDst.HTTPHeader = "x-envoy-original-dst-host"
	}
	if k := o.GetMetadataKey(); k != nil {
		var err error
		c.OriginalDst.MetadataNS, c.OriginalDst.MetadataPath, err = matcher.MetadataKeyFromProto(k)
		s.matcherErr("metadata_key", err)
	}
}

func (s *scope) breakers(m *clusterv3pb.CircuitBreakers) [2]CircuitBreaker {
	def := CircuitBreaker{MaxConnections: 1024, MaxPendingRequests: 1024, MaxRequests: 1024, MaxRetries: 3}
	out := [2]CircuitBreaker{def, def}
	for i, t := range m.GetThresholds() {
		s.pushIndex("circuit_breakers.thresholds", i)
		b := CircuitBreaker{
			MaxConnections:     u32(t.GetMaxConnections(), def.MaxConnections),
			MaxPendingRequests: u32(t.GetMaxPendingRequests(), def.MaxPendingRequests),
			MaxRequests:        u32(t.GetMaxRequests(), def.MaxRequests),
			MaxRetries:         u32(t.GetMaxRetries(), def.MaxRetries),
		}
		if r := t.GetRetryBudget(); r != nil {
			b.RetryBudget = &RetryBudget{Percent: percent(r.GetBudgetPercent(), 20), MinRetryConcurrency: u32(r.GetMinRetryConcurrency(), 3)}
		}
		switch t.GetPriority() {
		case corev3pb.RoutingPriority_DEFAULT:
			out[0] = b
		case corev3pb.RoutingPriority_HIGH:
			out[1] = b
		default:
			s.errorf("priority", "unknown value %d", t.GetPriority())
		}
		s.pop()
	}
	return out
}

func (s *scope) outlier(m *clusterv3pb.OutlierDetection) *OutlierDetection {
	o := &OutlierDetection{
		Consecutive5xx:                         u32(m.GetConsecutive_5Xx(), 5),
		ConsecutiveGatewayFailure:              u32(m.GetConsecutiveGatewayFailure(), 5),
		ConsecutiveLocalOriginFailure:          u32(m.GetConsecutiveLocalOriginFailure(), 5),
		EnforcingConsecutive5xx:                u32(m.GetEnforcingConsecutive_5Xx(), 100),
		EnforcingConsecutiveGatewayFailure:     u32(m.GetEnforcingConsecutiveGatewayFailure(), 0),
		EnforcingConsecutiveLocalOriginFailure: u32(m.GetEnforcingConsecutiveLocalOriginFailure(), 100),
		Interval:                               s.duration("interval", m.GetInterval(), 10*time.Second),
		BaseEjectionTime:                       s.duration("base_ejection_time", m.GetBaseEjectionTime(), 30*time.Second),
		MaxEjectionTimeJitter:                  s.duration("max_ejection_time_jitter", m.GetMaxEjectionTimeJitter(), 0),
		MaxEjectionPercent:                     u32(m.GetMaxEjectionPercent(), 10),
		SplitExternalLocalOrigin:               m.GetSplitExternalLocalOriginErrors(),
		EnforcingSuccessRate:                   u32(m.GetEnforcingSuccessRate(), 100),
		SuccessRateMinimumHosts:                u32(m.GetSuccessRateMinimumHosts(), 5),
		SuccessRateRequestVolume:               u32(m.GetSuccessRateRequestVolume(), 100),
		SuccessRateStdevFactor:                 u32(m.GetSuccessRateStdevFactor(), 1900),
		EnforcingFailurePercentage:             u32(m.GetEnforcingFailurePercentage(), 0),
		FailurePercentageThreshold:             u32(m.GetFailurePercentageThreshold(), 85),
		FailurePercentageMinimumHosts:          u32(m.GetFailurePercentageMinimumHosts(), 5),
		FailurePercentageRequestVolume:         u32(m.GetFailurePercentageRequestVolume(), 50),
		AlwaysEjectOneHost:                     m.GetAlwaysEjectOneHost().GetValue(),
	}
	o.MaxEjectionTime = s.duration("max_ejection_time", m.GetMaxEjectionTime(), max(300*time.Second, o.BaseEjectionTime))
	if o.MaxEjectionTime < o.BaseEjectionTime {
		s.errorf("max_ejection_time", "must be at least base_ejection_time")
	}
	return o
}

// upstreamSockets decodes the transport socket and its alternatives.
func (s *scope) upstreamSockets(c *Cluster, m *clusterv3pb.Cluster) {
	if ts := m.GetTransportSocket(); ts != nil {
		s.push("transport_socket")
		c.TransportSocket = s.upstreamSocket(ts)
		s.pop()
	}
	c.Matches = mapEach(m.GetTransportSocketMatches(), func(i int, tm *clusterv3pb.Cluster_TransportSocketMatch) TransportSocketMatch {
		s.pushIndex("transport_socket_matches", i)
		defer s.pop()
		s.push("transport_socket")
		defer s.pop()
		return TransportSocketMatch{Match: structMap(tm.GetMatch()), Socket: s.upstreamSocket(tm.GetTransportSocket())}
	})
}

// isPrime reports whether n is prime; Maglev tables must be.
func isPrime(n uint64) bool {
	if n < 2 || n%2 == 0 {
		return n == 2
	}
	limit := uint64(1) << ((bits.Len64(n) + 1) / 2)
	for d := uint64(3); d <= limit && d*d <= n; d += 2 {
		if n%d == 0 {
			return false
		}
	}
	return true
}
