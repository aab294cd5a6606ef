package proxy_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// answerer is an origin that allocates nothing for a request.
func answerer(t *testing.T) (port int) {
	t.Helper()
	l, err := netio.Listen(netip.MustParseAddrPort("127.0.0.1:0"), netio.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	answer := []byte("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				buf := make([]byte, 4096)
				for n := 0; ; {
					m, err := c.Read(buf[n:])
					if err != nil {
						return
					}
					if n += m; !bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
						continue
					}
					n = 0
					if _, err := c.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	return int(l.Addr().Port())
}

// allocations sends requests over c one after another and returns how many
// objects the whole process allocated for each.
func allocations(t *testing.T, c netio.Conn, request string, n int) float64 {
	t.Helper()
	out, buf := []byte(request), make([]byte, 4096)
	send := func() {
		if _, err := c.Write(out); err != nil {
			t.Fatal(err)
		}
		for n := 0; ; {
			m, err := c.Read(buf[n:])
			if err != nil {
				t.Fatal(err)
			}
			if n += m; bytes.HasSuffix(buf[:n], []byte("hello")) {
				if !bytes.HasPrefix(buf, []byte("HTTP/1.1 200")) {
					t.Fatalf("got %q", buf[:n])
				}
				return
			}
		}
	}
	for range n / 4 {
		send()
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		send()
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / float64(n)
}

const allocHCM = `
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: x
          normalize_path: true
          access_log:
          - name: envoy.access_loggers.file
            typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: %[4]s}
          http_filters:
          - name: envoy.filters.http.rbac
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules: {policies: {p: {permissions: [{url_path: {path: {prefix: /api}}}], principals: [{any: true}]}}}
          - name: istio.stats
            typed_config: {"@type": type.googleapis.com/stats.PluginConfig}
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /}
                request_headers_to_add: [{header: {key: x-via, value: "%%DOWNSTREAM_LOCAL_ADDRESS%%"}}]
                route:
                  timeout: 15s
                  retry_policy: {retry_on: connect-failure, num_retries: 2}
                  weighted_clusters: {clusters: [{name: app, weight: 90}, {name: app, weight: 10}]}`

// allocYAML has plaintext and HBONE listeners with all that a usual request
// passes.
const allocYAML = `
static_resources:
  listeners:
  - name: h1
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains:
    - filters:` + allocHCM + `
  - name: main_internal
    internal_listener: {}
    filter_chains:
    - filters:` + allocHCM + `
  - name: connect_terminate
    address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: connect_terminate
          http2_protocol_options: {allow_connect: true}
          upgrade_configs: [{upgrade_type: CONNECT}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: default
              domains: ["*"]
              routes:
              - match: {connect_matcher: {}}
                route: {cluster: main_internal, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}
      transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            alpn_protocols: [h2]
            tls_certificate_sds_secret_configs: [{name: default, sds_config: {api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}}}]
            validation_context_sds_secret_config: {name: ROOTCA, sds_config: {api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}}}
  clusters:
  - name: main_internal
    type: STATIC
    load_assignment: {cluster_name: main_internal, endpoints: [{lb_endpoints: [{endpoint: {address: {envoy_internal_address: {server_listener_name: main_internal}}}}]}]}
  - name: app
    type: STATIC
    load_assignment: {cluster_name: app, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[3]d}}}}]}]}
`

// TestARequestAllocatesAtMostTwoObjects holds the whole process, client and
// origin included, to two objects a request on a kept connection, with RBAC,
// Istio's metrics, header edits, a retry policy and an access log.
func TestARequestAllocatesAtMostTwoObjects(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	ca, src := devCA(t)
	h1, hbone := freePort(t), freePort(t)
	log := strconv.Quote(filepath.Join(t.TempDir(), "access.log"))
	startProxy(t, fmt.Sprintf(allocYAML, h1, hbone, answerer(t), log), src)
	const request = "GET /api/items HTTP/1.1\r\nhost: reviews.app.svc.cluster.local\r\nuser-agent: test\r\naccept: */*\r\n\r\n"
	plain, err := netio.Dial(context.Background(), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(h1)), netio.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	tunnelled, cl := tunnel(t, ca, "spiffe://cluster.local/ns/app/sa/client", hbone, "10.1.2.3:9080")
	defer cl.Close(netio.ErrClosed)
	for _, tc := range []struct {
		name string
		c    netio.Conn
		max  float64
	}{
		{"HTTP/1.1", plain, 0.2},
		// crypto/tls makes one for each record that it reads: the client's too.
		{"HBONE", tunnelled, 2.2},
	} {
		got := allocations(t, tc.c, request, 2000)
		t.Logf("%s: %.2f objects a request", tc.name, got)
		if got > tc.max {
			t.Errorf("%s: %.2f objects a request, want at most %v", tc.name, got, tc.max)
		}
	}
}
