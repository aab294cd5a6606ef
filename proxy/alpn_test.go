package proxy_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// tlsOrigin is an HTTPS server that speaks HTTP/1.1 and HTTP/2 and notes what
// clients offered by ALPN.
type tlsOrigin struct {
	port int
	mu   sync.Mutex
	saw  []string
}

func newTLSOrigin(t *testing.T) *tlsOrigin {
	t.Helper()
	o := &tlsOrigin{}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Proto, r.TLS.NegotiatedProtocol)
	}))
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{NextProtos: []string{"h2", "http/1.1"}, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.saw = append(o.saw, strings.Join(h.SupportedProtos, ","))
		return nil, nil //nolint:nilnil // keep the configuration
	}}
	s.StartTLS()
	t.Cleanup(s.Close)
	o.port = s.Listener.Addr().(*net.TCPAddr).Port
	return o
}

// offers returns what the connections since the last call offered, sorted.
func (o *tlsOrigin) offers() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	saw := o.saw
	o.saw = nil
	slices.Sort(saw)
	return saw
}

// tlsCluster is a cluster to o as istiod writes it for sidecars; more may hold
// further fields.
func (w *world) tlsCluster(name string, o *tlsOrigin, more string) {
	w.t.Helper()
	w.res.Clusters[name] = decode[*xdsresource.Cluster](w.t, xdsresource.ClusterType, fmt.Sprintf(`{name: %[1]s, type: STATIC, %[3]s
  load_assignment: {cluster_name: %[1]s, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}}}]}]},
  transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {alpn_protocols: [istio-peer-exchange, istio]}}}}`, name, o.port, more))
}

func httpVersion(field string) string {
	return `typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, ` + field + `}},`
}

const alpnFilter = `{name: istio.alpn, typed_config: {"@type": type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig, alpn_override: [
  {upstream_protocol: HTTP10, alpn_override: [istio-http/1.0, istio, http/1.0]},
  {upstream_protocol: HTTP11, alpn_override: [istio-http/1.1, istio, http/1.1]},
  {upstream_protocol: HTTP2, alpn_override: [istio-h2, istio, h2]}]}},`

// TestUpstreamTLSOffersWhatTheALPNFilterSays sends requests to HTTPS servers,
// through listeners with and without the filter. What the filter demands goes
// before what the cluster says, and connections that offered something else are
// not used.
func TestUpstreamTLSOffersWhatTheALPNFilterSays(t *testing.T) {
	const one, two, plain = "istio-http/1.1,istio,http/1.1", "istio-h2,istio,h2", "istio-peer-exchange,istio"
	w := newWorld(t)
	o := newTLSOrigin(t)
	w.tlsCluster("h1", o, "")
	w.tlsCluster("h2", o, httpVersion(`explicit_http_config: {http2_protocol_options: {}}`))
	w.tlsCluster("auto", o, httpVersion(`auto_config: {}`))
	w.tlsCluster("downstream", o, httpVersion(`use_downstream_protocol_config: {http_protocol_options: {}, http2_protocol_options: {}}`))
	w.tlsCluster("own", o, `metadata: {filter_metadata: {istio: {alpn_override: "false"}}},`)
	var routes []string
	for _, c := range []string{"h1", "h2", "auto", "downstream", "own"} {
		routes = append(routes, fmt.Sprintf(`{match: {prefix: /%[1]s}, route: {cluster: %[1]s}}`, c))
	}
	table := `route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [` + strings.Join(routes, ", ") + `]}]}`
	mesh, bare := freePort(t), freePort(t)
	w.listen("mesh", mesh, "", chainYAML("mesh", "{}", alpnFilter, table))
	w.listen("bare", bare, "", chainYAML("bare", "{}", "", table))
	w.mustApply()
	// A server that speaks none of the names refuses the client.
	if code, _ := request(t, bare, "/h1"); code != 503 || !slices.Contains(o.offers(), plain) {
		t.Errorf("without the filter: status %d", code)
	}
	for _, tc := range []struct{ path, answer, offer string }{
		{"/h1", "HTTP/1.1 http/1.1", one},
		{"/h2", "HTTP/2.0 h2", two},
		{"/auto", "HTTP/2.0 h2", two},
		{"/downstream", "HTTP/1.1 http/1.1", one},
	} {
		if code, body := request(t, mesh, tc.path); code != 200 || body != tc.answer {
			t.Errorf("%s: %d %q, want %q", tc.path, code, body, tc.answer)
		}
		if got := o.offers(); !slices.Equal(got, []string{tc.offer}) {
			t.Errorf("%s: offered %q, want %q", tc.path, got, tc.offer)
		}
		// The connection that is there is not for requests that demand nothing.
		if code, _ := request(t, bare, tc.path); code != 503 {
			t.Errorf("%s without the filter: status %d", tc.path, code)
		}
		if got := o.offers(); !slices.Contains(got, plain) {
			t.Errorf("%s without the filter: offered %q", tc.path, got)
		}
	}
	if code, _ := request(t, mesh, "/own"); code != 503 || !slices.Contains(o.offers(), plain) {
		t.Errorf("a cluster that says no: status %d", code)
	}
}
