package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/identity"
)

const operatorYAML = `
node: {id: me, cluster: us}
static_resources:
  listeners:
  - name: in
    address: {socket_address: {address: "::", port_value: %d}}
    traffic_direction: INBOUND
    tcp_fast_open_queue_length: 3
    filter_chains: [{filters: [{name: hcm, typed_config: {
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: x,
      route_config: {virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}]},
      http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
  - name: out
    address: {socket_address: {address: "::", port_value: %d, ipv4_compat: true}}
    traffic_direction: OUTBOUND
    filter_chains: [{filters: [{name: tcp, typed_config: {
      "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: y, cluster: one}}]}]
  clusters:
  - name: one
    type: STATIC
    load_assignment: {cluster_name: one, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9}}}}]}]}
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          tls_certificate_sds_secret_configs: [{name: default, sds_config: {api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}}}]
`

// operated runs operatorYAML; ports are those of the listeners in and out.
func operated(t *testing.T) (admin *httptest.Server, p *Process, ports [2]int) {
	t.Helper()
	if l, err := net.Listen("tcp6", "[::1]:0"); err != nil {
		t.Skip("no IPv6:", err)
	} else {
		_ = l.Close()
	}
	copy(ports[:], FreePorts(t, len(ports)))
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	id, err := ca.Source(identity.ID{TrustDomain: "cluster.local", Namespace: "app", ServiceAccount: "gate"})
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	p, err = FromBootstrap(fmt.Appendf(nil, operatorYAML, ports[0], ports[1]), ProcessOptions{Registry: builtin.Registry(), Identity: id, Version: "1.2.3", OnReady: func() { close(ready) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	<-ready
	admin = httptest.NewServer(p.adminHandler())
	t.Cleanup(func() {
		admin.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return admin, p, ports
}

func TestEachAdminEndpointTellsOfWhatRuns(t *testing.T) {
	admin, _, ports := operated(t)
	for path, want := range map[string][]string{
		"/ready":                         {"LIVE"},
		"/server_info":                   {`"version": "fairlead/1.2.3"`, `"state": "LIVE"`, `"id": "me"`},
		"/config_dump":                   {"BootstrapConfigDump", "envoy.admin.v3.ListenersConfigDump", "envoy.admin.v3.ClustersConfigDump", `"stat_prefix": "x"`},
		"/clusters":                      {"one::127.0.0.1:9::health_flags::healthy", "one::added_via_api::false"},
		"/listeners":                     {fmt.Sprintf("in::[::]:%d", ports[0]), fmt.Sprintf("out::[::]:%d", ports[1])},
		"/listeners?format=json":         {`"name": "in"`},
		"/certs":                         {"spiffe://cluster.local/ns/app/sa/gate", "days_until_expiration"},
		"/stats/prometheus":              {"fairlead_config_live 1", "# TYPE envoy_http_downstream_rq_total counter", "envoy_server_days_until_first_cert_expiring ", `fairlead_certificate_expiration_unix_time_seconds{envoy_tls_certificate="default"} 1`},
		"/debug/unsupported":             {"tcp_fast_open_queue_length", "TCP fast open is not offered"},
		"/debug/pprof/goroutine?debug=1": {"goroutine profile: total"},
	} {
		resp, err := http.Get(admin.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d, %v", path, resp.StatusCode, err)
		}
		for _, w := range want {
			if !strings.Contains(string(b), w) {
				t.Errorf("%s: %q is missing in\n%.2000s", path, w, b)
			}
		}
	}
}

func TestDrainingInboundListenersLeavesOthers(t *testing.T) {
	admin, p, ports := operated(t)
	resp, err := http.Post(admin.URL+"/drain_listeners?inboundonly", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if _, err := net.Dial("tcp6", fmt.Sprintf("[::1]:%d", ports[0])); err == nil {
		t.Error("the inbound listener accepts")
	}
	if c, err := net.Dial("tcp6", fmt.Sprintf("[::1]:%d", ports[1])); err != nil {
		t.Error("the outbound listener:", err)
	} else {
		_ = c.Close()
	}
	if err := p.Ready(); err == nil {
		t.Error("ready while it drains")
	}
}

func TestTheIPv6WildcardTakesIPv4OnlyIfAskedTo(t *testing.T) {
	_, _, ports := operated(t)
	var got []bool
	for _, port := range ports {
		c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if got = append(got, err == nil); err == nil {
			_ = c.Close()
		}
	}
	if !slices.Equal(got, []bool{false, true}) {
		t.Errorf("accepts IPv4 without and with ipv4_compat: %t", got)
	}
}

func TestARunningProxyExplains(t *testing.T) {
	srv, _, ports := operated(t)
	ask := func(query, body string) (int, string) {
		resp, err := http.Post(srv.URL+"/debug/explain"+query, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	for _, c := range []struct {
		query, body string
		status      int
		want        string
	}{
		{"", fmt.Sprintf(`{"destination": "[::1]:%d"}`, ports[0]), 200, `"outcome": "answer"`},
		{"?format=text", fmt.Sprintf(`{"destination": "[::1]:%d"}`, ports[0]), 200, "ANSWERED by router with 200 (direct_response)\n"},
		{"?format=text", fmt.Sprintf(`{"destination": "[::1]:%d"}`, ports[1]), 200, "endpoint: 127.0.0.1:9, healthy, weight 1\n"},
		{"", `{"destination": "[::1]:1"}`, 400, "several listeners could take the request"},
		{"", `{"dest": "[::1]:1"}`, 400, "unknown field"},
		{"", `{} {}`, 400, "behind the question"},
		{"", `{"body": "` + strings.Repeat("x", 2<<20) + `"}`, 413, "too large"},
	} {
		if status, got := ask(c.query, c.body); status != c.status || !strings.Contains(got, c.want) {
			t.Errorf("%.60s: %d %s", c.body, status, got)
		}
	}
	resp, err := http.Get(srv.URL + "/debug/explain")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", resp.StatusCode)
	}
}
