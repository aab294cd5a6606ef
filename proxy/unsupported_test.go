package proxy

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
)

const unsupportedYAML = `
static_resources:
  listeners:
  - name: web
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: x
          tracing:
            provider:
              name: zipkin
              typed_config: {"@type": type.googleapis.com/envoy.config.trace.v3.ZipkinConfig, collector_cluster: one, collector_endpoint: /api/v2/spans, collector_endpoint_version: HTTP_JSON}
          access_log:
          - name: als
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig
              common_config: {log_name: http_envoy_accesslog, transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: one}}}
          http_filters:
          - name: lua
            is_optional: true
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua, default_source_code: {inline_string: "function envoy_on_request(h) end"}}
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 204}}]}]}
  - name: db
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: y
          cluster: one
          access_log:
          - name: als
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig
              common_config: {log_name: tcp_envoy_accesslog, transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: one}}}
  clusters:
  - {name: one, type: STATIC, load_assignment: {cluster_name: one, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9}}}}]}]}}
`

// What telemetry istiod may ask for and isn't executed must not be missed in
// silence: the report names it and where it was asked for.
func TestTelemetryThatIsNotExecutedIsReported(t *testing.T) {
	ready := make(chan struct{})
	p, err := FromBootstrap([]byte(unsupportedYAML), ProcessOptions{Registry: builtin.Registry(), OnReady: func() { close(ready) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	<-ready
	rec := httptest.NewRecorder()
	p.adminHandler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/debug/unsupported", nil))
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	var found []struct{ Resource, Path, Message string }
	if err := json.Unmarshal(rec.Body.Bytes(), &found); err != nil {
		t.Fatalf("%v in %s", err, rec.Body)
	}
	for _, want := range [][3]string{
		{"listener web", "tracing.provider", "ZipkinConfig"},
		{"listener web", "access_log", "HttpGrpcAccessLogConfig"},
		{"listener web", "http_filters", "Lua"},
		{"listener db", "access_log", "TcpGrpcAccessLogConfig"},
	} {
		ok := false
		for _, f := range found {
			ok = ok || strings.HasPrefix(f.Resource, want[0]) && strings.Contains(f.Path, want[1]) && strings.Contains(f.Message, want[2])
		}
		if !ok {
			t.Errorf("nothing says that %s of %s is not executed (%s): %s", want[1], want[0], want[2], rec.Body)
		}
	}
}
