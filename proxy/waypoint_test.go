package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/transport/h2"
)

// waypointYAML has istiod's shape: connect_terminate hands CONNECT streams to
// main_internal, whose chain is chosen by destination, and which routes to a
// plaintext endpoint.
const waypointYAML = `
static_resources:
  listeners:
  - name: connect_terminate
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    filter_chains:
    - name: default
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: connect_terminate
          http2_protocol_options: {allow_connect: true}
          upgrade_configs: [{upgrade_type: CONNECT}]
          http_filters:
          - name: connect_authority
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config
              on_request_headers:
              - {object_key: envoy.filters.listener.original_dst.local_ip, format_string: {text_format_source: {inline_string: "%%REQ(:AUTHORITY)%%"}}, shared_with_upstream: ONCE}
              - {object_key: envoy.filters.listener.original_dst.remote_ip, format_string: {text_format_source: {inline_string: "%%DOWNSTREAM_REMOTE_ADDRESS%%"}}, shared_with_upstream: ONCE}
              - {object_key: io.istio.peer_principal, factory_key: envoy.string, format_string: {text_format_source: {inline_string: "%%DOWNSTREAM_PEER_URI_SAN%%"}}, shared_with_upstream: ONCE}
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
            tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
            tls_certificate_sds_secret_configs: [{name: default, sds_config: {api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}}}]
            combined_validation_context:
              default_validation_context: {match_typed_subject_alt_names: [{san_type: URI, matcher: {prefix: "spiffe://cluster.local/"}}]}
              validation_context_sds_secret_config: {name: ROOTCA, sds_config: {api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}}}
  - name: main_internal
    internal_listener: {}
    listener_filters:
    - name: envoy.filters.listener.original_dst
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}
    filter_chain_matcher:
      matcher_tree:
        input: {name: port, typed_config: {"@type": type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput}}
        exact_match_map:
          map:
            "9080": {action: {name: http, typed_config: {"@type": type.googleapis.com/google.protobuf.StringValue, value: http}}}
    filter_chains:
    - name: http
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: inbound
          normalize_path: true
          server_name: istio-envoy
          http_filters:
          - name: envoy.filters.http.rbac
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules:
                policies:
                  "ns[app]-policy[allow]-rule[0]":
                    permissions: [{or_rules: {rules: [{url_path: {path: {prefix: /open}}}, {url_path: {path: {prefix: /mask}}}]}}]
                    principals: [{filter_state: {key: io.istio.peer_principal, string_match: {exact: "spiffe://cluster.local/ns/app/sa/client"}}}]
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /}
                route: {cluster: app}
  clusters:
  - name: main_internal
    type: STATIC
    load_assignment: {cluster_name: main_internal, endpoints: [{lb_endpoints: [{endpoint: {address: {envoy_internal_address: {server_listener_name: main_internal}}}}]}]}
    transport_socket:
      name: internal_upstream
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport
        transport_socket: {name: raw, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}
  - name: app
    type: STATIC
    load_assignment: {cluster_name: app, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %s}}}}]}]}
`

// freePort returns a port of 127.0.0.1 that was free a moment ago.
func freePort(t *testing.T) int { return freePorts(t, 1)[0] }

func freePorts(t *testing.T, n int) []int { t.Helper(); return proxy.FreePorts(t, n) }

// startProxy runs a bootstrap until the test ends.
func startProxy(t *testing.T, doc string, id identity.Source) *proxy.Process {
	t.Helper()
	return startProxyWith(t, doc, proxy.ProcessOptions{Registry: builtin.Registry(), Identity: id})
}

func startProxyWith(t testing.TB, doc string, o proxy.ProcessOptions) *proxy.Process {
	t.Helper()
	ready := make(chan struct{})
	o.Names, o.DrainTime, o.OnReady = testNames, 100*time.Millisecond, func() { close(ready) }
	p, err := proxy.FromBootstrap([]byte(doc), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	case <-time.After(10 * time.Second):
		t.Fatal("the proxy does not become ready")
	}
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the proxy does not end")
		}
	})
	return p
}

// tunnel opens a CONNECT stream through HBONE as the workload id.
func tunnel(t *testing.T, ca *identity.DevCA, id string, port int, authority string) (netio.Conn, transport.ClientConn) {
	t.Helper()
	c, cl, err := tryTunnel(t, ca, id, port, authority)
	if err != nil {
		t.Fatal(err)
	}
	return c, cl
}

// tryTunnel is tunnel; the error is that of the CONNECT.
func tryTunnel(t *testing.T, ca *identity.DevCA, id string, port int, authority string) (netio.Conn, transport.ClientConn, error) {
	t.Helper()
	spiffe, err := identity.ParseID(id)
	if err != nil {
		t.Fatal(err)
	}
	src, err := ca.Source(spiffe)
	if err != nil {
		t.Fatal(err)
	}
	cl, err := hboneClient(t, src.Certificate(), port)
	if err != nil {
		t.Fatal(err)
	}
	st, err := cl.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	c, err := connectStream(st, authority)
	return c, cl, err
}

// hboneClient connects to port with a certificate.
func hboneClient(t *testing.T, cert *tls.Certificate, port int) (transport.ClientConn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := netio.Dial(ctx, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)), netio.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tc, err := netio.ClientTLS(ctx, c, &tls.Config{
		Certificates: []tls.Certificate{*cert}, InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13,
	})
	if err != nil {
		return nil, err
	}
	return h2.NewClient(tc, &transport.ClientConfig{})
}

// get sends one request through a tunnelled connection.
func get(t *testing.T, c netio.Conn, br *bufio.Reader, path string) (int, string) {
	t.Helper()
	if _, err := c.Write([]byte("GET " + path + " HTTP/1.1\r\nhost: reviews\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestWaypointServesHBONEByIdentity(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Method, r.URL.Path)
	}))
	defer origin.Close()
	ca, src := devCA(t)
	port := freePort(t)
	_, oport, _ := net.SplitHostPort(strings.TrimPrefix(origin.URL, "http://"))
	startProxy(t, fmt.Sprintf(waypointYAML, port, oport), src)

	c, cl := tunnel(t, ca, "spiffe://cluster.local/ns/app/sa/client", port, "10.1.2.3:9080")
	defer cl.Close(netio.ErrClosed)
	br := bufio.NewReader(c)
	for range 3 {
		if status, body := get(t, c, br, "/open/../open/x"); status != 200 || body != "GET /open/x" {
			t.Fatalf("got %d %q", status, body)
		}
	}
	if status, body := get(t, c, br, "/open/../secret"); status != 403 || body != "RBAC: access denied" {
		t.Errorf("a path that leaves the allowed prefix: got %d %q", status, body)
	}
	_ = c.Close()

	other, cl2 := tunnel(t, ca, "spiffe://cluster.local/ns/app/sa/stranger", port, "10.1.2.3:9080")
	defer cl2.Close(netio.ErrClosed)
	if status, _ := get(t, other, bufio.NewReader(other), "/open"); status != 403 {
		t.Errorf("another identity got %d", status)
	}
	_ = other.Close()
}
