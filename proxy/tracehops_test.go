package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	tracev1pb "go.opentelemetry.io/proto/otlp/trace/v1"
	"golang.org/x/net/http2"
)

// tracedHopYAML is a waypoint that is entered by a tunnel, traces, and sends what
// comes to the endpoint svc, through a tunnel of its own if that is behind
// connect_originate.
const tracedHopYAML = `
node: {id: %[1]s, cluster: %[1]s}
layered_runtime: {layers: [{name: s, static_layer: {tracing.opentelemetry.min_flush_spans: 1}}]}
static_resources:
  listeners:
  - name: connect_terminate
    address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: connect_terminate
          codec_type: HTTP2
          http2_protocol_options: {allow_connect: true}
          upgrade_configs: [{upgrade_type: CONNECT}]
          route_config: {virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {connect_matcher: {}}, route: {cluster: main_internal, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}}]}]}
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
  - name: main_internal
    internal_listener: {}
    traffic_direction: INBOUND
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: inbound
          route_config: {virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: svc}}]}]}
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
          tracing: {spawn_upstream_span: true, provider: {name: otel, typed_config: {"@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, service_name: %[1]s, grpc_service: {envoy_grpc: {cluster_name: otel}, timeout: 1s}}}}
  - name: connect_originate
    internal_listener: {}
    listener_filters:
    - name: original_dst
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: connect_originate
          cluster: connect_originate
          tunneling_config: {hostname: "%%DOWNSTREAM_LOCAL_ADDRESS%%"}
  clusters:
  - name: main_internal
    type: STATIC
    load_assignment: {cluster_name: main_internal, endpoints: [{lb_endpoints: [{endpoint: {address: {envoy_internal_address: {server_listener_name: main_internal}}}}]}]}
    transport_socket: {name: internal, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport, transport_socket: {name: raw, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}
  - name: svc
    type: STATIC
    load_assignment: {cluster_name: svc, endpoints: [{lb_endpoints: [%[3]s]}]}
    transport_socket: {name: internal, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport, passthrough_metadata: [{name: envoy.filters.listener.original_dst, kind: {host: {}}}], transport_socket: {name: raw, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}
`

// tracedHop starts one such proxy and returns the collector of its spans.
func tracedHop(t *testing.T, name string, port int, endpoint, next string) *traceCollector {
	t.Helper()
	c := &traceCollector{}
	otel := h2cServer(t, func(w http.ResponseWriter, r *http.Request) { c.ServeHTTP(w, r) })
	doc := fmt.Sprintf(tracedHopYAML, name, port, endpoint) + httpCluster("otel", otel, "http2_protocol_options: {}") + httpCluster("connect_originate", next, "http2_protocol_options: {}")
	p, _ := launch(t, doc)
	eventually(t, name+" is ready", func() bool { return p.Ready() == nil })
	return c
}

// tunnelTo opens a CONNECT stream through the proxy at port.
func tunnelTo(t *testing.T, port int, target string) net.Conn {
	t.Helper()
	tr := &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	}}
	t.Cleanup(tr.CloseIdleConnections)
	body, out := io.Pipe()
	resp, err := tr.RoundTrip((&http.Request{Method: http.MethodConnect, URL: &url.URL{Scheme: "http", Host: target}, Host: target, Header: http.Header{}, Body: body}).WithContext(t.Context()))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(err, resp)
	}
	near, far := net.Pipe()
	t.Cleanup(func() { _ = near.Close(); _ = far.Close(); _ = out.Close(); _ = resp.Body.Close() })
	go func() { _, _ = io.Copy(out, far); _ = out.Close() }()
	go func() { _, _ = io.Copy(far, resp.Body); _ = far.Close() }()
	return near
}

// TestEachHopHasItsSpans sends requests through a waypoint and an egress waypoint
// behind it: a tunnel in, a tunnel between, and plaintext out.
func TestEachHopHasItsSpans(t *testing.T) {
	up := &seenUpstream{}
	app := h2cServer(t, up.ServeHTTP)
	ports := freePorts(t, 2)
	egress := tracedHop(t, "egress", ports[1], `{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: `+app+`}}}}`, "1")
	waypoint := tracedHop(t, "waypoint", ports[0], `{endpoint: {address: {envoy_internal_address: {server_listener_name: connect_originate, endpoint_id: "10.9.9.9:9080"}}}, metadata: {filter_metadata: {envoy.filters.listener.original_dst: {local: "10.9.9.9:9080"}}}}`, fmt.Sprint(ports[1]))
	c := tunnelTo(t, ports[0], "10.8.8.8:9080")
	br := bufio.NewReader(c)
	traces := map[string]bool{}
	for i, parent := range []string{"", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", ""} { // the later ones on the connections that are there
		header := ""
		if parent != "" {
			header = "traceparent: " + parent + "\r\n"
		}
		if _, err := io.WriteString(c, "GET /plain HTTP/1.1\r\nhost: a.test\r\n"+header+"\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(err, resp)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		eventually(t, "all spans are there", func() bool { return waypoint.count() >= 2 && egress.count() >= 2 })
		above := ""
		if parent != "" {
			above = strings.Split(parent, "-")[2]
		}
		trace := ""
		for _, hop := range []*traceCollector{waypoint, egress} {
			spans := hop.take()
			if len(spans) != 2 {
				t.Fatalf("request %d: %d spans of %s", i, len(spans), hop.resource)
			}
			server, client := spans[0], spans[1]
			if server.GetKind() != tracev1pb.Span_SPAN_KIND_SERVER {
				server, client = client, server
			}
			if server.GetKind() != tracev1pb.Span_SPAN_KIND_SERVER || client.GetKind() != tracev1pb.Span_SPAN_KIND_CLIENT {
				t.Fatalf("request %d: kinds %v and %v", i, server.GetKind(), client.GetKind())
			}
			for _, s := range []*tracev1pb.Span{server, client} {
				if got := hex.EncodeToString(s.GetParentSpanId()); got != above {
					t.Errorf("request %d, %s: the parent of %s is %q, want %q", i, hop.resource, s.GetKind(), got, above)
				}
				above = hex.EncodeToString(s.GetSpanId())
				id := hex.EncodeToString(s.GetTraceId())
				if trace != "" && id != trace {
					t.Errorf("request %d, %s: trace %s, want %s", i, hop.resource, id, trace)
				}
				trace = id
			}
		}
		if parent != "" && trace != strings.Split(parent, "-")[1] {
			t.Errorf("request %d: trace %s is not the client's", i, trace)
		}
		traces[trace] = true
		seen := up.take()
		if want := "00-" + trace + "-" + above + "-01"; len(seen) != 1 || seen[0].Get("Traceparent") != want {
			t.Errorf("request %d: the application saw %q, want %q", i, seen, want)
		}
	}
	if len(traces) != 3 {
		t.Errorf("%d traces of 3 requests", len(traces))
	}
}
