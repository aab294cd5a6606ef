package xdsresource_test

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/dns"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

const (
	cares  = `{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, %}}`
	dfpOf  = `lb_policy: CLUSTER_PROVIDED, cluster_type: {name: dfp, typed_config: {"@type": type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, dns_cache_config: {name: n%}}}`
	dnsOf  = `cluster_type: {name: envoy.cluster.dns, typed_config: {"@type": type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster%}}`
	server = `{socket_address: {address: 10.0.0.53, port_value: 5353}}`
)

func fill(tmpl, v string) string { return strings.Replace(tmpl, "%", v, 1) }

func TestNameResolutionIsDecoded(t *testing.T) {
	own := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.53:5353")}
	cache := xdsresource.DNSCache{HostTTL: 5 * time.Minute, MaxHosts: 1024, QueryTimeout: 5 * time.Second}
	for _, tc := range []struct {
		name, doc string
		want      xdsresource.DNS
	}{
		{"defaults", `type: STRICT_DNS`, xdsresource.DNS{RefreshRate: 5 * time.Second}},
		{
			"all of a cluster's", `type: LOGICAL_DNS, load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: a.b, port_value: 1}}}}]}]},
dns_refresh_rate: 7s, respect_dns_ttl: true, dns_jitter: 1s, dns_failure_refresh_rate: {base_interval: 2s}, dns_lookup_family: V4_PREFERRED, dns_resolvers: [` + server + `], use_tcp_for_dns_lookups: true`,
			xdsresource.DNS{
				Family: xdsresource.DNSV4Preferred, RefreshRate: 7 * time.Second, RespectTTL: true, Jitter: time.Second,
				FailureBase: 2 * time.Second, FailureMax: 20 * time.Second, Resolver: &dns.Config{Servers: own, TCP: true},
			},
		},
		{
			"dns_resolution_config", `type: STRICT_DNS, dns_resolution_config: {resolvers: [{socket_address: {address: "::1", port_value: 0, protocol: UDP}}], dns_resolver_options: {no_default_search_domain: true}}`,
			xdsresource.DNS{RefreshRate: 5 * time.Second, Resolver: &dns.Config{Servers: []netip.AddrPort{netip.MustParseAddrPort("[::1]:53")}, NoSearch: true}},
		},
		{
			"c-ares, which counts alone", `type: STRICT_DNS, use_tcp_for_dns_lookups: true, typed_dns_resolver_config: ` + fill(cares, `resolvers: [`+server+`], use_resolvers_as_fallback: true, filter_unroutable_families: true,
query_timeout_seconds: 3, query_tries: 4, rotate_nameservers: true, edns0_max_payload_size: 4000, udp_max_queries: 100, dns_resolver_options: {use_tcp_for_dns_lookups: false, no_default_search_domain: true}`),
			xdsresource.DNS{RefreshRate: 5 * time.Second, Resolver: &dns.Config{
				Servers: own, Fallback: true, Routable: true, Timeout: 3 * time.Second, Attempts: 4, Rotate: true, PayloadSize: 4000, NoSearch: true,
			}},
		},
		{
			"getaddrinfo", `type: STRICT_DNS, typed_dns_resolver_config: {name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig}}`,
			xdsresource.DNS{RefreshRate: 5 * time.Second, Resolver: &dns.Config{}},
		},
		{"a cache's defaults", fill(dfpOf, ""), xdsresource.DNS{RefreshRate: time.Minute, RespectTTL: true, MinRefreshRate: 5 * time.Second, Port: 80, Cache: cache}},
		{
			"all of a cache's", fill(dfpOf, `, dns_lookup_family: ALL, dns_refresh_rate: 30s, dns_min_refresh_rate: 2s, host_ttl: 60s, max_hosts: 5, disable_dns_refresh_on_failure: true,
dns_failure_refresh_rate: {base_interval: 1s, max_interval: 3s}, dns_query_timeout: 0s, preresolve_hostnames: [{address: a.b, port_value: 1}], typed_dns_resolver_config: `+fill(cares, `resolvers: [`+server+`]`)),
			xdsresource.DNS{
				Family: xdsresource.DNSAll, RefreshRate: 30 * time.Second, RespectTTL: true, MinRefreshRate: 2 * time.Second, FailureBase: time.Second, FailureMax: 3 * time.Second, Port: 80,
				Resolver: &dns.Config{Servers: own}, Cache: xdsresource.DNSCache{HostTTL: time.Minute, MaxHosts: 5, ForgetFailures: true, Preresolve: []string{"a.b"}},
			},
		},
		{
			"the extension of DNS clusters", fill(dnsOf, `, dns_refresh_rate: 9s, dns_failure_refresh_rate: {base_interval: 1s, max_interval: 3s}, respect_dns_ttl: true, dns_jitter: 1s, dns_min_refresh_rate: 4s,
dns_lookup_family: V6_ONLY, typed_dns_resolver_config: `+fill(cares, `rotate_nameservers: true`)),
			xdsresource.DNS{
				Family: xdsresource.DNSV6Only, RefreshRate: 9 * time.Second, FailureBase: time.Second, FailureMax: 3 * time.Second, RespectTTL: true, Jitter: time.Second,
				MinRefreshRate: 4 * time.Second, Resolver: &dns.Config{Rotate: true},
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := cluster(t, "{name: c, "+tc.doc+"}")
			if !reflect.DeepEqual(c.DNS, tc.want) || c.Broken != "" || len(c.Ignored) != 0 {
				t.Errorf("%+v %+v, broken %q, ignored %v\nwant %+v %+v", c.DNS, c.DNS.Resolver, c.Broken, c.Ignored, tc.want, tc.want.Resolver)
			}
		})
	}
	for all, want := range map[string]xdsresource.Discovery{"": xdsresource.DiscoveryStrictDNS, ", all_addresses_in_single_endpoint: true": xdsresource.DiscoveryLogicalDNS} {
		c := cluster(t, `{name: c, load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: a.b, port_value: 1}}}}]}]}, `+fill(dnsOf, all)+"}")
		if c.Discovery != want || c.Assignment.Localities[0].Endpoints[0].HostName != "a.b" {
			t.Errorf("%q: %v", all, c.Discovery)
		}
	}
}

func TestNameResolutionThatIsNotExecutedIsReported(t *testing.T) {
	for _, tc := range []struct{ doc, want string }{
		{`type: STRICT_DNS, typed_dns_resolver_config: ` + fill(cares, `qcache_max_ttl: 5`), "typed_dns_resolver_config.typed_config.qcache_max_ttl"},
		{`type: STRICT_DNS, typed_dns_resolver_config: {name: apple, typed_config: {"@type": type.googleapis.com/acme.Resolver}}`, "typed_dns_resolver_config.typed_config"},
		{fill(dfpOf, `, dns_cache_circuit_breaker: {max_pending_requests: 5}`), "cluster_type.typed_config.dns_cache_config.dns_cache_circuit_breaker"},
	} {
		c := cluster(t, "{name: c, "+tc.doc+"}")
		if len(c.Ignored) != 1 || c.Ignored[0].Path != tc.want || c.Broken != "" {
			t.Errorf("%v, broken %q, want %s", c.Ignored, c.Broken, tc.want)
		}
	}
	for _, tc := range []struct{ doc, want string }{
		{`{name: c, type: STRICT_DNS, dns_resolvers: [{socket_address: {address: a.b, port_value: 53}}]}`, `dns_resolution_config.resolvers[0].socket_address.address: "a.b" is not an IP address`},
		{`{name: c, type: STRICT_DNS, dns_failure_refresh_rate: {base_interval: 5s, max_interval: 2s}}`, "dns_failure_refresh_rate: max_interval must be at least base_interval"},
	} {
		wantError(t, xdsresource.ClusterType, tc.doc, tc.want)
	}
}

func TestFailingTrafficOnPanicIsDecoded(t *testing.T) {
	const extension = `load_balancing_policy: {policies: [{typed_extension_config: {name: x, typed_config: {"@type": type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random,
locality_lb_config: {zone_aware_lb_config: {fail_traffic_on_panic: true, min_cluster_size: 3}}}}}]}`
	for doc, path := range map[string]string{
		`common_lb_config: {zone_aware_lb_config: {fail_traffic_on_panic: true, routing_enabled: {value: 100}}}`: "common_lb_config.zone_aware_lb_config.routing_enabled",
		extension: "load_balancing_policy.policies[0].typed_extension_config.typed_config.locality_lb_config.zone_aware_lb_config.min_cluster_size",
	} {
		c := cluster(t, "{name: c, "+doc+"}")
		if !c.LB.FailOnPanic || len(c.Ignored) != 1 || c.Ignored[0].Path != path {
			t.Errorf("%s: %v, %v", doc, c.LB.FailOnPanic, c.Ignored)
		}
	}
}

func TestRenewalOfConnectionsIsDecoded(t *testing.T) {
	if c := cluster(t, `{name: c, common_lb_config: {close_connections_on_host_set_change: true}}`); !c.LB.RenewOnChange || len(c.Ignored) != 0 {
		t.Errorf("%v, %v", c.LB.RenewOnChange, c.Ignored)
	}
}
