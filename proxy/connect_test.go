package proxy_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/hbonetest"
	"github.com/fairlead-mesh/fairlead/internal/identity"
)

// rawPeer speaks HBONE to a waypoint with frames of its own.
func rawPeer(t *testing.T, ca *identity.DevCA, id string, port int) *hbonetest.Peer {
	t.Helper()
	spiffe, err := identity.ParseID(id)
	if err != nil {
		t.Fatal(err)
	}
	src, err := ca.Source(spiffe)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", fmt.Sprint("127.0.0.1:", port), &tls.Config{Certificates: []tls.Certificate{*src.Certificate()}, InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	return hbonetest.New(t, c)
}

// outcome is what a stream came to: the status of its head, what came behind it
// if that was anything, "reset", or "gone".
func outcomeOf(p *hbonetest.Peer, stream uint32) string {
	a, err := p.Wait(stream, 5*time.Second, hbonetest.Over)
	switch {
	case a.Status == "" && err != nil:
		return "gone"
	case a.Status == "":
		return "reset"
	case len(a.Data) > 0:
		line, _, _ := strings.Cut(string(a.Data), "\r\n")
		return a.Status + " " + line
	}
	return a.Status
}

// countingOrigin counts the requests that reach it.
func countingOrigin(t *testing.T) (port string, n *atomic.Int32) {
	t.Helper()
	n = &atomic.Int32{}
	o := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		_, _ = io.WriteString(w, "app "+r.Method+" "+r.URL.Path)
	}))
	t.Cleanup(o.Close)
	return urlPort(o.URL), n
}

// Whatever a peer asks a waypoint for on port 15008 that is not a tunnel to what
// the waypoint serves, nobody is asked for it.
func TestAPeerOnlyGetsToWhatTheWaypointServes(t *testing.T) {
	ca, src := devCA(t)
	oport, asked := countingOrigin(t)
	port := freePort(t)
	startProxy(t, fmt.Sprintf(waypointYAML, port, oport), src)
	const inner = "GET /open HTTP/1.1\r\nhost: reviews\r\n\r\n"
	connect := func(authority string, more ...string) []string {
		return append([]string{":method", "CONNECT", ":authority", authority}, more...)
	}
	plain := func(method string) []string {
		return []string{":method", method, ":scheme", "http", ":authority", "10.1.2.3:9080", ":path", "/open"}
	}
	cases := []struct {
		name, want string
		fields     []string
	}{
		{"GET", "404", plain("GET")},
		{"POST", "404", plain("POST")},
		{"CONNECT with a path", "reset", connect("10.1.2.3:9080", ":path", "/")},
		{"CONNECT with a scheme", "reset", connect("10.1.2.3:9080", ":scheme", "http")},
		{"CONNECT without an authority", "reset", []string{":method", "CONNECT"}},
		{"an authority of nothing", "reset", connect("")},
		{"user information", "reset", connect("u@10.1.2.3:9080")},
		{"a line break", "reset", connect("10.1.2.3:9080\r\nx: y")},
		{"port 65536", "reset", connect("10.1.2.3:65536")},
		{"no port", "200", connect("10.1.2.3")},
		{"port 0", "200", connect("10.1.2.3:0")},
		{"another port", "200", connect("10.1.2.3:9081")},
		{"a name of 300 bytes", "200", connect(strings.Repeat("h", 300) + ":9081")},
		{"the administrator", "200", connect("127.0.0.1:15000")},
		{"metadata of a cloud", "200", connect("169.254.169.254:80")},
		{"the own port 15008", "200", connect("10.1.2.3:15008")},
		{"the own port 15006", "200", connect("10.1.2.3:15006")},
		{"the own port 15001", "200", connect("10.1.2.3:15001")},
		{"the own port 15020", "200", connect("10.1.2.3:15020")},
		{"the own port 15090", "200", connect("10.1.2.3:15090")},
	}
	if len(cases) != 20 {
		t.Errorf("%d cases, want 20", len(cases))
	}
	for _, c := range cases {
		p := rawPeer(t, ca, clientID, port)
		p.Head(1, false, c.fields...)
		_ = p.Data(1, true, []byte(inner))
		if got := outcomeOf(p, 1); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the application was asked %d times", n)
	}
	p := rawPeer(t, ca, clientID, port)
	p.Connect(1, "10.1.2.3:9080")
	_ = p.Data(1, true, []byte(inner))
	if got := outcomeOf(p, 1); got != "200 HTTP/1.1 200 OK" || asked.Load() != 1 {
		t.Errorf("a good one: %s", got)
	}
}

// What a peer says in the head of its CONNECT does not make it somebody else, and
// what it sends before the answer is never read as a request of the outer
// connection.
func TestAPeerIsWhoItsCertificateSays(t *testing.T) {
	ca, src := devCA(t)
	oport, asked := countingOrigin(t)
	port := freePort(t)
	startProxy(t, fmt.Sprintf(waypointYAML, port, oport), src)
	p := rawPeer(t, ca, "spiffe://cluster.local/ns/app/sa/stranger", port)
	const inner = "GET /open HTTP/1.1\r\nhost: reviews\r\n\r\n"
	for i, claim := range [][]string{
		{},
		{"x-istio-source", "waypoint"},
		{"x-istio-source", "gateway"},
		{"x-forwarded-network", "n"},
		{"x-forwarded-client-cert", "URI=" + clientID},
		{"x-envoy-peer-metadata", "x"},
		{"baggage", "k8s.namespace.name=app,service.name=client"},
		{"baggage", strings.Repeat("a=b,", 2000)},
		{"baggage", "\xff=\xfe"},
		{"forwarded", "for=" + strings.Repeat("\\\"", 2000)},
		{"io.istio.peer_principal", clientID},
		{"x-envoy-internal", "true"},
	} {
		id := uint32(2*i + 1)
		p.Connect(id, "10.1.2.3:9080", claim...)
		_ = p.Data(id, true, []byte(inner))
		if got := outcomeOf(p, id); got != "200 HTTP/1.1 403 Forbidden" {
			t.Errorf("with %.50q: %s", claim, got)
		}
	}
	// A refused CONNECT with frames and requests as its data.
	smuggled := []byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00" + inner + "CONNECT 10.1.2.3:9080 HTTP/1.1\r\n\r\n")
	for i, fields := range [][]string{{":method", "CONNECT", ":authority", "10.1.2.3:9081"}, {":method", "CONNECT", ":authority", "10.1.2.3"}, {":method", "POST", ":scheme", "http", ":authority", "a", ":path", "/open"}} {
		id := uint32(101 + 2*i)
		p.Head(id, false, fields...)
		_ = p.Data(id, false, smuggled)
		_ = p.Data(id, true, smuggled)
		if got := outcomeOf(p, id); got != "200" && got != "404" && got != "503" {
			t.Errorf("%q: %s", fields, got)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the application was asked %d times", n)
	}
	p.Connect(201, "10.1.2.3:9080")
	_ = p.Data(201, true, []byte(inner))
	if got := outcomeOf(p, 201); got != "200 HTTP/1.1 403 Forbidden" {
		t.Errorf("the connection afterwards: %s", got)
	}
}

// Listeners whose requests come back to themselves, over HTTP, as bytes, and by way
// of a socket: circuit breakers and timeouts end the request, another one leaves no
// more behind, and others are served meanwhile.
func TestConfigurationsThatLeadBackToThemselves(t *testing.T) {
	const loops = `
static_resources:
  listeners:
  - name: edge
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: edge, route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [
        {match: {prefix: /http}, route: {cluster: http, timeout: 0.5s}}, {match: {prefix: /tcp}, route: {cluster: tcp, timeout: 0.5s}}, {match: {prefix: /self}, route: {cluster: self, timeout: 0.5s}},
        {match: {prefix: /}, direct_response: {status: 200, body: {inline_string: ok}}}]}]},
      http_filters: &filters [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
  - name: http
    internal_listener: {}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: http, route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: http, timeout: 0.5s}}]}]}, http_filters: *filters}}]}]
  - name: tcp
    internal_listener: {}
    filter_chains: [{filters: [{name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: tcp}}]}]
  clusters:
  - {name: http, type: STATIC, load_assignment: {cluster_name: http, endpoints: [{lb_endpoints: [{endpoint: {address: {envoy_internal_address: {server_listener_name: http}}}}]}]}}
  - {name: tcp, type: STATIC, load_assignment: {cluster_name: tcp, endpoints: [{lb_endpoints: [{endpoint: {address: {envoy_internal_address: {server_listener_name: tcp}}}}]}]}}
  - {name: self, type: STATIC, load_assignment: {cluster_name: self, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}}}]}]}}
`
	_, src := devCA(t)
	port := freePort(t)
	startProxy(t, fmt.Sprintf(loops, port), src)
	if status, _ := request(t, port, "/"); status != 200 {
		t.Fatalf("a first request: %d", status)
	}
	first := 0
	for i, path := range []string{"/http", "/tcp", "/self", "/http", "/tcp", "/self"} {
		meanwhile := make(chan int, 1)
		go func() {
			time.Sleep(100 * time.Millisecond)
			status, _ := request(t, port, "/")
			meanwhile <- status
		}()
		began := time.Now()
		status, _ := request(t, port, path)
		t.Logf("%s: %d after %v, %d goroutines", path, status, time.Since(began).Round(time.Millisecond), runtime.NumGoroutine())
		if status != 503 && status != 504 {
			t.Errorf("%s: %d", path, status)
		}
		if s := <-meanwhile; s != 200 {
			t.Errorf("%s: another request meanwhile got %d", path, s)
		}
		if i == 2 {
			first = runtime.NumGoroutine()
		}
	}
	// The 1,024 connections that a cluster may have are kept for the next ones.
	eventually(t, "no more goroutines than after the first ones", func() bool { return runtime.NumGoroutine() < first+100 })
}

// A policy that changes is in force for old connections too: at once, or, if it is
// part of a listener, after one more request, with which the connection ends, as in
// Envoy.
func TestANewPolicyReachesOpenConnections(t *testing.T) {
	inline := strings.NewReplacer("{name: policy, config_discovery: {config_source: {ads: {}}, type_urls: [type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC]}}",
		`{name: policy, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {policies: {p: {permissions: [{any: true}], principals: [{any: true}]}}}}}`)
	for name, doc := range map[string]string{"by extension": pushedYAML, "in its listener": inline.Replace(pushedYAML)} {
		t.Run(name, func(t *testing.T) {
			w := newPushed(t)
			former := w.p.Server().Snapshot().Resources.Listeners["edge"]
			w.set(doc)
			if doc != pushedYAML {
				eventually(t, "the policy is in the listener", func() bool { return w.p.Server().Snapshot().Resources.Listeners["edge"] != former })
			}
			open, err := w.dial()
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()
			w.serves(open, "before")
			w.set(strings.Replace(doc, "principals: [{any: true}]", "principals: [{not_id: {any: true}}]", 1))
			began, passed := time.Now(), 0
			for status := 200; status == 200 && time.Since(began) < 20*time.Second; {
				denies := w.denies() // before: a push that comes in between counts for the next one
				if status, _ = open.get("/open"); status == 200 && denies {
					passed++
				}
			}
			t.Logf("refused or closed after %v, %d more requests", time.Since(began).Round(time.Millisecond), passed)
			if d := time.Since(began); d > 20*time.Second || passed > 1 {
				t.Errorf("the open connection passes %d more requests, for %v", passed, d)
			}
			eventually(t, "a new connection is refused", w.denies)
		})
	}
}

// denies says whether a new connection's request is refused.
func (w *pushed) denies() bool {
	c, err := w.dial()
	if err != nil {
		return false
	}
	defer c.Close()
	status, _ := c.get("/new")
	return status == 403
}
