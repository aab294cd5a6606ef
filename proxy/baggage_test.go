package proxy_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// baggageYAML is hopYAML as istiod writes it with AMBIENT_ENABLE_BAGGAGE.
var baggageYAML = strings.NewReplacer(
	`          http_filters:
`, `          http_filters:
          - name: waypoint_upstream_peer_metadata
            typed_config:
              "@type": type.googleapis.com/udpa.type.v1.TypedStruct
              type_url: type.googleapis.com/io.istio.http.peer_metadata.Config
              value: {upstream_discovery: [{workload_discovery: {}}, {upstream_filter_state: {peer_metadata_key: upstream_peer}}]}
`,
	`"edge %%REQ(:PATH)%% `, `"edge %%REQ(:PATH)%% %%FILTER_STATE(upstream_peer_obj:FIELD:workload)%%/%%FILTER_STATE(upstream_peer_obj:FIELD:namespace)%% `,
	`    - filters:
      - name: envoy.filters.network.tcp_proxy
`, `    - filters:
      - name: upstream_hbone_peer_metadata
        typed_config:
          "@type": type.googleapis.com/udpa.type.v1.TypedStruct
          type_url: type.googleapis.com/envoy.extensions.network_filters.peer_metadata.Config
          value: {baggage_key: io.istio.baggage}
      - name: envoy.filters.network.tcp_proxy
`,
	`tunneling_config: {hostname`, `tunneling_config: {propagate_response_headers: true, headers_to_add: [{header: {key: baggage, value: "%%FILTER_STATE(io.istio.baggage:PLAIN)%%"}}], hostname`,
	`  - name: pod
`, `  - name: pod
    filters:
    - name: upstream_hbone_peer_metadata
      typed_config:
        "@type": type.googleapis.com/udpa.type.v1.TypedStruct
        type_url: type.googleapis.com/envoy.extensions.network_filters.peer_metadata.UpstreamConfig
`).Replace(hopYAML)

// TestTheTunnelsAnswerSaysWhoUpstreamIs opens tunnels whose answers have baggage,
// through internal listeners that are called and through those that copy bytes.
func TestTheTunnelsAnswerSaysWhoUpstreamIs(t *testing.T) {
	for _, tc := range []struct{ name, listenerFilter, baggage, want string }{
		{"called", "", "k8s.deployment.name=reviews,k8s.namespace.name=app", "reviews/app"},
		{"copying", inspector, "k8s.deployment.name=reviews,k8s.namespace.name=app", "reviews/app"},
		{"without baggage", "", "", "-/-"},
	} {
		srv := newTunnelServer(t)
		srv.baggage = tc.baggage
		port, log := freePort(t), filepath.Join(t.TempDir(), "log")
		doc := fmt.Sprintf(strings.Replace(baggageYAML, "idle_timeout: 2s", "idle_timeout: 60s", 1), port, srv.port, tc.listenerFilter, log, "")
		p, _ := launch(t, strings.Replace(doc, "static_resources:", "node: {id: sidecar~1, metadata: {NAMESPACE: ns, WORKLOAD_NAME: gw, CLUSTER_ID: c1}}\nstatic_resources:", 1))
		eventually(t, "ready", func() bool { return p.Ready() == nil })
		waitAccepts(t, port)
		c := &http.Client{Timeout: 10 * time.Second}
		for range 2 { // the second on the connection that is there
			resp, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/ok", port))
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
		}
		c.CloseIdleConnections()
		line := "edge /ok " + tc.want + " 200"
		within(t, tc.name+": logged", func() bool {
			b, _ := os.ReadFile(log)
			return strings.Count(string(b), line) == 2
		})
		srv.mu.Lock()
		for _, told := range srv.told {
			if !strings.Contains(told, "k8s.namespace.name=ns") || !strings.Contains(told, "k8s.cluster.name=c1") {
				t.Errorf("%s: the tunnel was told %q", tc.name, told)
			}
		}
		srv.mu.Unlock()
	}
}
