package xdsresource

import (
	"errors"
	"net/netip"
	"time"

	clusterv3pb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	commondnsv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsclusterv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	dfpv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"
	dnscachev3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/common/dynamic_forward_proxy/v3"
	caresv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	getaddrinfov3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/getaddrinfo/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/dns"
)

// Envoy's defaults.
const (
	defaultDNSRefresh    = 5 * time.Second
	defaultDFPRefresh    = 60 * time.Second
	defaultDFPMinRefresh = 5 * time.Second
	defaultDFPHostTTL    = 5 * time.Minute
	defaultDFPMaxHosts   = 1024
	defaultDFPTimeout    = 5 * time.Second
	defaultDFPPort       = 443
)

// dns decodes how the names of a cluster are resolved.
func (s *scope) dns(c *Cluster, m *clusterv3pb.Cluster) {
	var dfp dfpv3pb.ClusterConfig
	var named dnsclusterv3pb.DnsCluster
	switch t := m.GetClusterType().GetTypedConfig(); {
	case c.Discovery == DiscoveryDynamicForwardProxy:
		s.unpackStruct(t, &dfp)
		s.push("cluster_type.typed_config.dns_cache_config")
		s.dnsCache(&c.DNS, dfp.GetDnsCacheConfig())
		s.pop()
	case t != nil && (c.Discovery == DiscoveryStrictDNS || c.Discovery == DiscoveryLogicalDNS):
		s.unpackStruct(t, &named)
		s.push("cluster_type.typed_config")
		s.dnsCluster(&c.DNS, &named)
		s.pop()
	default:
		d := &c.DNS
		d.Family = families[m.GetDnsLookupFamily()]
		d.RefreshRate = s.duration("dns_refresh_rate", m.GetDnsRefreshRate(), defaultDNSRefresh)
		d.Jitter = s.duration("dns_jitter", m.GetDnsJitter(), 0)
		d.RespectTTL = m.GetRespectDnsTtl()
		s.failureRate(d, m.GetDnsFailureRefreshRate())
		res := m.GetDnsResolutionConfig()
		if old := m.GetDnsResolvers(); len(old) > 0 && len(res.GetResolvers()) == 0 {
			res = &corev3pb.DnsResolutionConfig{Resolvers: old, DnsResolverOptions: res.GetDnsResolverOptions()}
		}
		d.Resolver = s.dnsResolver(m.GetTypedDnsResolverConfig(), res, m.GetUseTcpForDnsLookups())
	}
}

var families = map[clusterv3pb.Cluster_DnsLookupFamily]DNSFamily{
	clusterv3pb.Cluster_AUTO: DNSAuto, clusterv3pb.Cluster_V4_ONLY: DNSV4Only, clusterv3pb.Cluster_V6_ONLY: DNSV6Only,
	clusterv3pb.Cluster_V4_PREFERRED: DNSV4Preferred, clusterv3pb.Cluster_ALL: DNSAll,
}

var commonFamilies = map[commondnsv3pb.DnsLookupFamily]DNSFamily{
	commondnsv3pb.DnsLookupFamily_UNSPECIFIED: DNSAuto, commondnsv3pb.DnsLookupFamily_AUTO: DNSAuto,
	commondnsv3pb.DnsLookupFamily_V4_ONLY: DNSV4Only, commondnsv3pb.DnsLookupFamily_V6_ONLY: DNSV6Only,
	commondnsv3pb.DnsLookupFamily_V4_PREFERRED: DNSV4Preferred, commondnsv3pb.DnsLookupFamily_ALL: DNSAll,
}

// rate is a RefreshRate of either package.
type rate interface {
	GetBaseInterval() *durationpb.Duration
	GetMaxInterval() *durationpb.Duration
}

func (s *scope) failureRate(d *DNS, r rate) {
	if r.GetBaseInterval() == nil {
		return
	}
	d.FailureBase = s.duration("dns_failure_refresh_rate.base_interval", r.GetBaseInterval(), 0)
	d.FailureMax = s.duration("dns_failure_refresh_rate.max_interval", r.GetMaxInterval(), 10*d.FailureBase)
	if d.FailureMax < d.FailureBase {
		s.errorf("dns_failure_refresh_rate", "max_interval must be at least base_interval")
	}
}

func (s *scope) dnsCluster(d *DNS, m *dnsclusterv3pb.DnsCluster) {
	d.Family = commonFamilies[m.GetDnsLookupFamily()]
	d.RefreshRate = s.duration("dns_refresh_rate", m.GetDnsRefreshRate(), defaultDNSRefresh)
	d.Jitter = s.duration("dns_jitter", m.GetDnsJitter(), 0)
	d.RespectTTL = m.GetRespectDnsTtl()
	d.MinRefreshRate = s.duration("dns_min_refresh_rate", m.GetDnsMinRefreshRate(), 0)
	s.failureRate(d, m.GetDnsFailureRefreshRate())
	d.Resolver = s.dnsResolver(m.GetTypedDnsResolverConfig(), nil, false)
}

func (s *scope) dnsCache(d *DNS, m *dnscachev3pb.DnsCacheConfig) {
	d.Family = families[m.GetDnsLookupFamily()]
	d.RespectTTL = true // always, for what has an address
	d.RefreshRate = s.duration("dns_refresh_rate", m.GetDnsRefreshRate(), defaultDFPRefresh)
	d.MinRefreshRate = s.duration("dns_min_refresh_rate", m.GetDnsMinRefreshRate(), defaultDFPMinRefresh)
	s.failureRate(d, m.GetDnsFailureRefreshRate())
	d.Resolver = s.dnsResolver(m.GetTypedDnsResolverConfig(), m.GetDnsResolutionConfig(), m.GetUseTcpForDnsLookups())
	d.Cache = DNSCache{
		HostTTL:        s.duration("host_ttl", m.GetHostTtl(), defaultDFPHostTTL),
		MaxHosts:       u32(m.GetMaxHosts(), defaultDFPMaxHosts),
		QueryTimeout:   s.duration("dns_query_timeout", m.GetDnsQueryTimeout(), defaultDFPTimeout),
		ForgetFailures: m.GetDisableDnsRefreshOnFailure(),
	}
	for _, a := range m.GetPreresolveHostnames() {
		d.Cache.Preresolve = append(d.Cache.Preresolve, a.GetAddress())
	}
}

// dnsResolver decodes a resolver; nil is the default one. What typed says counts
// alone, as in Envoy.
func (s *scope) dnsResolver(typed *corev3pb.TypedExtensionConfig, old *corev3pb.DnsResolutionConfig, tcp bool) *dns.Config {
	if typed.GetTypedConfig().GetTypeUrl() != "" {
		s.push("typed_dns_resolver_config.typed_config")
		defer s.pop()
		return s.typedResolver(typed)
	}
	if old == nil && !tcp {
		return nil
	}
	s.push("dns_resolution_config")
	defer s.pop()
	o := old.GetDnsResolverOptions()
	return &dns.Config{Servers: s.nameServers(old.GetResolvers()), TCP: tcp || o.GetUseTcpForDnsLookups(), NoSearch: o.GetNoDefaultSearchDomain()}
}

func (s *scope) typedResolver(typed *corev3pb.TypedExtensionConfig) *dns.Config {
	var m caresv3pb.CaresDnsResolverConfig
	var sys getaddrinfov3pb.GetAddrInfoDnsResolverConfig
	switch {
	case s.unpackStruct(typed.GetTypedConfig(), &m):
		s.classify(&m)
		o := m.GetDnsResolverOptions()
		return &dns.Config{
			Servers: s.nameServers(m.GetResolvers()), Fallback: m.GetUseResolversAsFallback(),
			TCP: o.GetUseTcpForDnsLookups(), NoSearch: o.GetNoDefaultSearchDomain(),
			Timeout:  time.Duration(min(m.GetQueryTimeoutSeconds().GetValue(), 3600)) * time.Second,
			Attempts: int(min(m.GetQueryTries().GetValue(), 100)), Rotate: m.GetRotateNameservers(),
			PayloadSize: uint16(min(m.GetEdns0MaxPayloadSize().GetValue(), 4096)), Routable: m.GetFilterUnroutableFamilies(),
		}
	case s.unpackStruct(typed.GetTypedConfig(), &sys):
		s.classify(&sys)
		return &dns.Config{}
	}
	s.ignore("", "resolver "+typed.GetName()+" is not supported: the system's resolver configuration applies")
	return nil
}

func (s *scope) nameServers(as []*corev3pb.Address) []netip.AddrPort {
	return mapEach(as, func(i int, a *corev3pb.Address) netip.AddrPort {
		s.pushIndex("resolvers", i)
		defer s.pop()
		sa := a.GetSocketAddress() // of either protocol
		ip, err := netip.ParseAddr(sa.GetAddress())
		if err != nil {
			s.errorf("socket_address.address", "%q is not an IP address", sa.GetAddress())
		}
		port := s.port(sa)
		if port == 0 {
			port = 53
		}
		return netip.AddrPortFrom(ip, port)
	})
}

// DNSResolver decodes the resolver of a bootstrap; nil is the system's. The errors
// are *FieldErrors.
func DNSResolver(typed *corev3pb.TypedExtensionConfig, old *corev3pb.DnsResolutionConfig, tcp bool) (*dns.Config, []filters.Ignored, error) {
	s := &scope{}
	c := s.dnsResolver(typed, old, tcp)
	return c, s.ignored.Ignored(), errors.Join(s.errs...)
}
