package xdsresource

import (
	"math"
	"time"

	listenerv3pb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	typev3pb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

const defaultTCPIdleTimeout = time.Hour

// networkFilter decodes one network filter. The filters that own connections
// are decoded here, the others by their factories.
func (s *scope) networkFilter(f *listenerv3pb.Filter) NetworkFilter {
	out := NetworkFilter{TypedConfig: TypedConfig{Name: f.GetName()}}
	if d := f.GetConfigDiscovery(); d != nil {
		out.ConfigDiscovery = s.discovery(f.GetName(), d, networkPlugin)
		return out
	}
	a := f.GetTypedConfig()
	if a == nil {
		s.errorf("typed_config", "is missing")
		return out
	}
	inner, err := unwrapStruct(a)
	if err != nil {
		s.reject("typed_config", err)
		return out
	}
	var hcm hcmv3pb.HttpConnectionManager
	var tcp tcpproxyv3pb.TcpProxy
	core := isType(inner, &hcm) || isType(inner, &tcp)
	if !core {
		out.TypedConfig = s.plugin(f.GetName(), a, networkPlugin)
		return out
	}
	out.TypeURL, out.Digest = inner.GetTypeUrl(), hash(inner.GetTypeUrl(), inner.GetValue())
	s.push("typed_config")
	defer s.pop()
	switch {
	case s.unpack(inner, &hcm):
		out.HCM = s.connectionManager(&hcm)
	case s.unpack(inner, &tcp):
		out.TCPProxy = s.tcpProxy(&tcp)
	}
	return out
}

func (s *scope) tcpProxy(m *tcpproxyv3pb.TcpProxy) *TCPProxy {
	s.classify(m)
	t := &TCPProxy{
		StatPrefix:            m.GetStatPrefix(),
		Cluster:               m.GetCluster(),
		IdleTimeout:           s.duration("idle_timeout", m.GetIdleTimeout(), defaultTCPIdleTimeout),
		MaxConnectionDuration: s.duration("max_downstream_connection_duration", m.GetMaxDownstreamConnectionDuration(), 0),
		AccessLogs:            s.accessLogs("access_log", m.GetAccessLog()),
		MaxConnectAttempts:    u32(m.GetMaxConnectAttempts(), 1),
		AccessLogFlushInterval: s.duration("access_log_flush_interval",
			m.GetAccessLogFlushInterval(), 0),
		FlushOnConnected: m.GetFlushAccessLogOnConnected(),
	}
	if o := m.GetAccessLogOptions(); o != nil {
		t.AccessLogFlushInterval = s.duration("access_log_options.access_log_flush_interval", o.GetAccessLogFlushInterval(), 0)
		t.FlushOnConnected = o.GetFlushAccessLogOnConnected()
	}
	var total uint64
	for i, c := range m.GetWeightedClusters().GetClusters() {
		s.pushIndex("weighted_clusters.clusters", i)
		t.Weighted = append(t.Weighted, WeightedTCPCluster{
			Name: c.GetName(), Weight: c.GetWeight(),
		})
		s.pop()
		total += uint64(c.GetWeight())
	}
	if total > math.MaxUint32 {
		s.errorf("weighted_clusters", "the sum of weights must be at most %d", uint32(math.MaxUint32))
	}
	for i, h := range m.GetHashPolicy() {
		switch p := h.GetPolicySpecifier().(type) {
		case *typev3pb.HashPolicy_SourceIp_:
			t.HashSourceIP = true
		case *typev3pb.HashPolicy_FilterState_:
			t.HashFilterStateKey = p.FilterState.GetKey()
		default:
			s.pushIndex("hash_policy", i)
			s.ignore("", "this source of a hash is not supported; hosts are chosen without it")
			s.pop()
		}
	}
	if tc := m.GetTunnelingConfig(); tc != nil {
		s.push("tunneling_config")
		t.Tunneling = s.tunneling(tc)
		s.pop()
	}
	return t
}

func (s *scope) tunneling(m *tcpproxyv3pb.TcpProxy_TunnelingConfig) *Tunneling {
	t := &Tunneling{
		Hostname:                 s.format("hostname", m.GetHostname()),
		UsePost:                  m.GetUsePost(),
		Headers:                  s.headersToAdd("headers_to_add", m.GetHeadersToAdd()),
		PropagateResponseHeaders: m.GetPropagateResponseHeaders(),
	}
	if m.GetPostPath() != "" {
		if !m.GetUsePost() {
			s.errorf("post_path", "can't be set when post method isn't used")
		}
		t.PostPath = s.format("post_path", m.GetPostPath())
	}
	s.formatters(m.GetFormatters())
	return t
}
