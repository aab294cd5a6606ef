package proxy_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
)

// metric reads a value from the admin interface.
func metric(t *testing.T, admin int, name string) string {
	t.Helper()
	_, body := fetch(t, fmt.Sprintf("http://127.0.0.1:%d/stats/prometheus", admin))
	for line := range strings.Lines(body) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	return fetchBy(t, &http.Transport{DisableKeepAlives: true}, url)
}

// fetchBy is fetch by a transport that keeps no connections.
func fetchBy(t *testing.T, tr *http.Transport, url string) (int, string) {
	t.Helper()
	c := &http.Client{Transport: tr, Timeout: 20 * time.Second}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func withAdmin(doc string, admin int) string {
	return fmt.Sprintf("admin: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}\n", admin) + doc
}

func TestWithoutAControlPlaneTheStartWaitsAndSaysForWhat(t *testing.T) {
	cp := xdstest.New(t, xdstest.Options{})
	addr := cp.Addr()
	cp.Close()
	admin, port := freePort(t), freePort(t)
	p, log := launch(t, withAdmin(fmt.Sprintf(staticYAML, port, portOf(cp), ""), admin))
	ready := fmt.Sprintf("http://127.0.0.1:%d/ready", admin)
	eventually(t, "/ready says why", func() bool {
		status, body := fetch(t, ready)
		return status == 503 && strings.HasPrefix(body, "INITIALIZING\n") && strings.Contains(body, "no configuration from the control plane "+addr+" yet: ") && strings.Contains(body, "connection refused")
	})
	eventually(t, "the log says so, too", func() bool { // a moment later than /ready
		l := log.String()
		return strings.Contains(l, "xds stream ended") && strings.Contains(l, addr) && strings.Contains(l, "retry_in")
	})
	if err := cp.Restart(); err != nil {
		t.Fatal(err)
	}
	serve(t, cp, fmt.Sprintf(edgeRoutes, "direct_response: {status: 200, body: {inline_string: one}}"))
	eventually(t, "ready", func() bool { return p.Ready() == nil })
	if status, body := fetch(t, ready); status != 200 || body != "LIVE\n" {
		t.Errorf("/ready: %d %q", status, body)
	}
	if status, body := request(t, port, "/"); status != 200 || body != "one" {
		t.Errorf("%d %q", status, body)
	}
}

func TestAControlPlaneThatIsLostCostsNoTraffic(t *testing.T) {
	cp := xdstest.New(t, xdstest.Options{})
	serve(t, cp, fmt.Sprintf(edgeRoutes, "direct_response: {status: 200, body: {inline_string: one}}"))
	admin, port := freePort(t), freePort(t)
	p, log := launch(t, withAdmin(fmt.Sprintf(staticYAML, port, portOf(cp), ""), admin))
	eventually(t, "ready", func() bool { return p.Ready() == nil })
	open := dial(t, port)
	defer open.Close()
	serves := func(when string) {
		t.Helper()
		if s, body := open.get("/"); s != 200 || body != "one" {
			t.Errorf("%s: the open connection: %d %q", when, s, body)
		}
		if s, body := request(t, port, "/"); s != 200 || body != "one" {
			t.Errorf("%s: a new connection: %d %q", when, s, body)
		}
	}
	serves("before")
	if v := metric(t, admin, "fairlead_xds_connected"); v != "1" {
		t.Errorf("fairlead_xds_connected is %q", v)
	}
	since := func(name string) float64 { // how long ago
		at, err := strconv.ParseFloat(metric(t, admin, name), 64)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return float64(time.Now().Unix()) - at
	}
	if d := since("fairlead_xds_last_response_timestamp_seconds"); d < 0 || d > 30 {
		t.Errorf("the last response was %v s ago", d)
	}
	if v := metric(t, admin, "fairlead_xds_disconnected_since_timestamp_seconds"); v != "0" {
		t.Errorf("disconnected since %q", v)
	}
	cp.Close()
	lost := time.Now()
	eventually(t, "the metric", func() bool { return metric(t, admin, "fairlead_xds_connected") == "0" })
	first := metric(t, admin, "fairlead_xds_disconnected_since_timestamp_seconds")
	if d := since("fairlead_xds_disconnected_since_timestamp_seconds"); d < 0 || d > 30 {
		t.Errorf("the control plane is gone for %v s", d)
	}
	for time.Since(lost) < 1500*time.Millisecond {
		serves("without control plane")
		time.Sleep(50 * time.Millisecond)
	}
	if now := metric(t, admin, "fairlead_xds_disconnected_since_timestamp_seconds"); now != first {
		t.Errorf("a failed attempt moves the begin of the outage: %s, %s", first, now)
	}
	ends := func() int { return strings.Count(log.String(), "xds stream ended") }
	eventually(t, "another attempt", func() bool { return ends() >= 2 })
	n, most := ends(), 2 // the stream that was lost, and an attempt at once
	for pause, at := 250*time.Millisecond, 250*time.Millisecond; at < time.Since(lost); at += pause {
		pause, most = 2*pause, most+1 // the pauses are at least 250 ms, 500 ms, 1 s …
	}
	if n > most {
		t.Errorf("%d attempts in %v", n, time.Since(lost))
	}
	if p.Ready() != nil {
		t.Errorf("not ready: %v", p.Ready())
	}
	if err := cp.Restart(); err != nil {
		t.Fatal(err)
	}
	serve(t, cp, fmt.Sprintf(edgeRoutes, "direct_response: {status: 200, body: {inline_string: two}}"))
	eventually(t, "the new routes", func() bool { _, body := open.get("/"); return body == "two" })
	if v := metric(t, admin, "fairlead_xds_connected"); v != "1" {
		t.Errorf("fairlead_xds_connected is %q", v)
	}
	if v := metric(t, admin, "fairlead_xds_disconnected_since_timestamp_seconds"); v != "0" {
		t.Errorf("disconnected since %q", v)
	}
	if v := metric(t, admin, "fairlead_xds_streams_total"); v != "2" {
		t.Errorf("fairlead_xds_streams_total is %q", v)
	}
}

// peersYAML has a listener with the certificate %[3]s, one that demands client
// certificates, and a cluster that verifies its server.
const peersYAML = `
static_resources:
  listeners:
  - name: mutual
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    access_log: [{name: f, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: %[4]s/log, log_format: {text_format_source: {inline_string: "%%FILTER_CHAIN_NAME%% %%DOWNSTREAM_TRANSPORT_FAILURE_REASON%%\n"}}}}]
    filter_chains:
    - name: mutual
      transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: true, common_tls_context: {
        tls_certificates: [{certificate_chain: {filename: %[4]s/good.pem}, private_key: {filename: %[4]s/good-key.pem}}], validation_context: {trusted_ca: {filename: %[4]s/ca.pem}}}}}
      filters: &http
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: x
          access_log: [{name: f, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: %[4]s/log, log_format: {text_format_source: {inline_string: "%%RESPONSE_CODE%% %%RESPONSE_FLAGS%% %%RESPONSE_CODE_DETAILS%% %%UPSTREAM_TRANSPORT_FAILURE_REASON%%\n"}}}}]
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /origin}, route: {cluster: origin}}, {match: {prefix: /}, direct_response: {status: 200, body: {inline_string: ok}}}]}]}
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
  - name: old
    address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}
    access_log: [{name: f, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: %[4]s/log, log_format: {text_format_source: {inline_string: "%%FILTER_CHAIN_NAME%% %%DOWNSTREAM_TRANSPORT_FAILURE_REASON%%\n"}}}}]
    filter_chains:
    - name: old
      transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {
        tls_certificates: [{certificate_chain: {filename: %[4]s/old.pem}, private_key: {filename: %[4]s/old-key.pem}}]}}}
      filters: *http
  clusters:
  - name: origin
    type: STATIC
    load_assignment: {cluster_name: origin, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[3]s}}}}]}]}
    transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {validation_context: {trusted_ca: {filename: %[4]s/ca.pem}}}}}
`

func TestExpiredCertificatesAreRefusedAndNamed(t *testing.T) {
	dir := t.TempDir()
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	certs := map[string]tls.Certificate{}
	for name, l := range map[string]identity.Leaf{
		"good": {DNSNames: []string{"a.example"}},
		"old":  {DNSNames: []string{"a.example"}, NotBefore: longAgo, NotAfter: longAgo.Add(time.Hour)},
	} {
		chain, key := pair(t, ca, l)
		if certs[name], err = tls.X509KeyPair([]byte(chain), []byte(key)); err != nil {
			t.Fatal(err)
		}
		for file, s := range map[string]string{name + ".pem": chain, name + "-key.pem": key, "ca.pem": string(ca.RootsPEM())} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(s), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	origin := httptest.NewUnstartedServer(http.NotFoundHandler())
	origin.TLS = &tls.Config{Certificates: []tls.Certificate{certs["old"]}}
	origin.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	origin.StartTLS()
	defer origin.Close()
	mutual, old := freePort(t), freePort(t)
	p, log := launch(t, fmt.Sprintf(peersYAML, mutual, old, strings.TrimPrefix(origin.URL, "https://127.0.0.1:"), dir))
	eventually(t, "ready", func() bool { return p.Ready() == nil })
	if l := log.String(); !strings.Contains(l, "old.pem") || !strings.Contains(l, "expired at 2020-01-01T01:00:00Z") {
		t.Errorf("the start says nothing of the certificate:\n%s", l)
	}
	// get makes a connection with a client certificate and sends one request.
	get := func(port int, cert, path string) (int, string) {
		cfg := &tls.Config{RootCAs: ca.Roots(), ServerName: "a.example"}
		if cert != "" {
			cfg.Certificates = []tls.Certificate{certs[cert]}
		}
		return fetchBy(t, &http.Transport{DisableKeepAlives: true, TLSClientConfig: cfg}, fmt.Sprintf("https://127.0.0.1:%d%s", port, path))
	}
	var lines [][]string
	for _, c := range []struct {
		name       string
		port       int
		cert, path string
		status     int
		log        []string
	}{
		{"a good client", mutual, "good", "/", 200, []string{"200 - direct_response"}},
		{"an expired client", mutual, "old", "/", 0, []string{"mutual ", "certificate of the peer (a.example): it expired at 2020-01-01T01:00:00Z"}},
		{"an expired server upstream", mutual, "good", "/origin", 503, []string{"503 UF upstream_reset_before_response_started{remote_connection_failure|TLS_error:", "it_expired_at_2020-01-01T01:00:00Z"}},
		{"our own expired certificate", old, "", "/", 0, []string{"old ", "our own certificate expired at 2020-01-01T01:00:00Z (secret " + dir + "/old.pem"}},
		{"the good client again", mutual, "good", "/", 200, []string{"200 - direct_response"}},
	} {
		if status, body := get(c.port, c.cert, c.path); status != c.status {
			t.Errorf("%s: %d %q", c.name, status, body)
		}
		lines = append(lines, c.log)
	}
	for _, parts := range lines {
		eventually(t, fmt.Sprintf("%q in the access log", parts), func() bool { return logged(filepath.Join(dir, "log"), parts) })
	}
}

// logged tells whether a line of file holds all of parts.
func logged(file string, parts []string) bool {
	b, _ := os.ReadFile(file)
	for line := range strings.Lines(string(b)) {
		n := 0
		for _, p := range parts {
			if strings.Contains(line, p) {
				n++
			}
		}
		if n == len(parts) {
			return true
		}
	}
	return false
}

// bodyYAML has a policy that reads bodies of at most 1 KiB.
const bodyYAML = `
static_resources:
  listeners:
  - name: edge
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: x
          access_log:
          - {name: f, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: %[3]s/log, log_format: {text_format_source: {inline_string: "%%REQ(:PATH)%% %%PROTOCOL%% %%RESPONSE_CODE%% %%RESPONSE_FLAGS%% %%RESPONSE_CODE_DETAILS%%\n"}}}}
          - {name: g, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: %[3]s/none, log_format: {text_format_source: {inline_string: "%%NO_SUCH_OPERATOR%%\n"}}}}
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: origin}}]}]}
          http_filters:
          - {name: rego, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/fairlead.rego.v1.Config, value: {timeout: 10s, max_request_bytes: 1024, policy: {sources: [{inline_string: "package envoy.authz\ndefault allow := false\nallow if input.attributes.request.http.method == \"GET\"\nallow if input.parsed_body.ok\n"}]}}}}
          - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - {name: origin, type: STATIC, load_assignment: {cluster_name: origin, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]s}}}}]}]}}
`

func TestABodyOverTheLimitCostsOnlyItsRequest(t *testing.T) {
	second := make(chan struct{})
	var posts atomic.Int32
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			posts.Add(1)
		}
		_, _ = io.WriteString(w, "first ")
		if r.URL.Path == "/slow" {
			_ = http.NewResponseController(w).Flush()
			<-second
		}
		_, _ = io.WriteString(w, "second")
	}))
	defer origin.Close()
	dir, port := t.TempDir(), freePort(t)
	p, _ := launch(t, fmt.Sprintf(bodyYAML, port, strings.TrimPrefix(origin.URL, "http://127.0.0.1:"), dir))
	eventually(t, "ready", func() bool { return p.Ready() == nil })
	base := fmt.Sprintf("http://127.0.0.1:%d", port)
	big := strings.Repeat("x", 100_000)

	var dials atomic.Int32
	h2 := &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
	defer h2.CloseIdleConnections()
	h1 := &http.Transport{}
	defer h1.CloseIdleConnections()
	do := func(rt http.RoundTripper, method, path string, body io.Reader) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, base+path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("content-type", "application/json")
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	slow := do(h2, http.MethodGet, "/slow", nil) // a neighbour that is under way
	for _, c := range []struct {
		name string
		rt   http.RoundTripper
		path string
		body io.Reader
	}{
		{"HTTP/1.1 with a length", h1, "/h1", strings.NewReader(big)},
		{"HTTP/1.1 in chunks", h1, "/h1-chunks", io.MultiReader(strings.NewReader(big))},
		{"HTTP/2 with a length", h2, "/h2", strings.NewReader(big)},
		{"HTTP/2 without", h2, "/h2-open", io.MultiReader(strings.NewReader(big))},
	} {
		if resp := do(c.rt, http.MethodPost, c.path, c.body); resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: %d", c.name, resp.StatusCode)
		}
		if resp := do(c.rt, http.MethodPost, "/after", strings.NewReader(`{"ok": true}`)); resp.StatusCode != http.StatusOK {
			t.Errorf("%s: the next request: %d", c.name, resp.StatusCode)
		}
	}
	close(second)
	if b, err := io.ReadAll(slow.Body); err != nil || string(b) != "first second" {
		t.Errorf("the neighbour: %q, %v", b, err)
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("HTTP/2 needed %d connections", n)
	}
	if n := posts.Load(); n != 4 {
		t.Errorf("%d requests arrived, want the four small ones", n)
	}
	for _, path := range []string{"/h1 HTTP/1.1 413 ", "/h1-chunks HTTP/1.1 413 ", "/h2 HTTP/2 413 ", "/h2-open HTTP/2 413 "} {
		eventually(t, path+"in the access log", func() bool { return logged(filepath.Join(dir, "log"), []string{path, "rego_denied{body_too_large}"}) })
	}
	if b, err := os.ReadFile(filepath.Join(dir, "none")); err == nil && len(b) > 0 {
		t.Errorf("a log whose format can't be executed is written: %s", b)
	}
}
