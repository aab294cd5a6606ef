package proxy_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
)

// nameServer answers over TCP as slowNames does, at once; it returns its port.
func nameServer(t *testing.T) int {
	t.Helper()
	return tcpServer(t, func(c net.Conn, over <-chan struct{}) {
		for answerName(c, 0, over) == nil {
		}
	})
}

// The name server is that of the bootstrap, or of the cluster.
func TestTheConfiguredNameServerIsAsked(t *testing.T) {
	own := fmt.Sprintf(`typed_dns_resolver_config: {name: cares, typed_config: {"@type": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig,
  resolvers: [{socket_address: {address: 127.0.0.1, port_value: %d}}], dns_resolver_options: {use_tcp_for_dns_lookups: true, no_default_search_domain: true}}}`, nameServer(t))
	for _, of := range []string{"bootstrap", "cluster"} {
		t.Run(of, func(t *testing.T) {
			port := freePort(t)
			doc := fmt.Sprintf(`
static_resources:
  listeners:
  - name: edge
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: edge,
      route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: named}}]}]},
      http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
  clusters:
  - name: named
    type: STRICT_DNS
    dns_lookup_family: V4_ONLY
    load_assignment: {cluster_name: named, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: app.example, port_value: %s}}}}]}]}
`, port, originOf(t, "app"))
			if of == "cluster" {
				doc += "    " + strings.ReplaceAll(own, "\n", "\n    ")
			} else {
				doc += own
			}
			startProxy(t, doc, nil)
			if s, body := request(t, port, "/"); s != 200 || body != "app" {
				t.Errorf("%d %q", s, body)
			}
		})
	}
}
