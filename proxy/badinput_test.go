package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/proxy"
)

// pushedYAML is a world that comes over ADS entirely: a TLS listener with SDS, a
// policy by ECDS, routes by RDS, a cluster with EDS.
const pushedYAML = `
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: edge
  address: {socket_address: {address: 127.0.0.1, port_value: ${PORT}}}
  filter_chains:
  - transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
        common_tls_context: {tls_certificate_sds_secret_configs: [{name: cert, sds_config: {ads: {}}}]}
    filters:
    - name: http
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: edge
        rds: {route_config_name: routes, config_source: {ads: {}}}
        http_filters:
        - {name: policy, config_discovery: {config_source: {ads: {}}, type_urls: [type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC]}}
        - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
- "@type": type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig
  name: policy
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {policies: {p: {permissions: [{any: true}], principals: [{any: true}]}}}}
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: routes
  virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: app}}]}]
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: app
  type: EDS
  eds_cluster_config: {eds_config: {ads: {}}}
- "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: app
  endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: ${ORIGIN}}}}}]}]
- "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: cert
  tls_certificate: {certificate_chain: {inline_string: ${CHAIN}}, private_key: {inline_string: ${KEY}}}
`

// another is a further listener; %s is a filter.
const another = `
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: another
  address: {socket_address: {address: 127.0.0.1, port_value: %d}}
  enable_reuse_port: false
  filter_chains: [{filters: [%s]}]
`

const tcpToApp = `{name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: app}}`

// syncLog is a log that is read while it is written.
type syncLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *syncLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *syncLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// launch runs a bootstrap until the test ends, without waiting.
func launch(t *testing.T, doc string) (*proxy.Process, *syncLog) {
	t.Helper()
	log := &syncLog{}
	p, err := proxy.FromBootstrap([]byte(doc), proxy.ProcessOptions{Registry: builtin.Registry(), DrainTime: 100 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return p, log
}

// pair issues a certificate and returns it with its key in PEM.
func pair(t *testing.T, ca *identity.DevCA, l identity.Leaf) (chain, key string) {
	t.Helper()
	crt, err := ca.Issue(l)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(crt.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(identity.EncodeCertificates(crt.Certificate...)), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

var longAgo = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// pushed is a proxy whose configuration comes from a control plane.
type pushed struct {
	t    *testing.T
	cp   *xdstest.Server
	p    *proxy.Process
	ca   *identity.DevCA
	port int
	vars map[string]string
	log  *syncLog
}

func newPushed(t *testing.T) *pushed {
	t.Helper()
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "app "+r.URL.Path) }))
	t.Cleanup(origin.Close)
	w := &pushed{t: t, ca: ca, port: freePort(t), cp: xdstest.New(t, xdstest.Options{})}
	chain, key := pair(t, ca, identity.Leaf{DNSNames: []string{"edge.example"}})
	w.vars = map[string]string{"PORT": fmt.Sprint(w.port), "ORIGIN": strings.TrimPrefix(origin.URL, "http://127.0.0.1:"), "CHAIN": fmt.Sprintf("%q", chain), "KEY": fmt.Sprintf("%q", key)}
	w.set(pushedYAML)
	w.p, w.log = launch(t, fmt.Sprintf(adsBootstrap, portOf(w.cp)))
	eventually(t, "ready", func() bool { return w.p.Ready() == nil })
	eventually(t, "a first answer", func() bool { // what a view doesn't wait for may come later
		c, err := w.dial()
		if err != nil {
			return false
		}
		defer c.Close()
		s, _ := c.get("/first")
		return s == 200
	})
	return w
}

// set hands resources to the control plane.
func (w *pushed) set(doc string) {
	w.t.Helper()
	rs, err := xdstest.Load([]byte(doc), w.vars)
	if err != nil {
		w.t.Fatal(err)
	}
	w.cp.Update(rs, nil)
}

// edit sets the whole world with one part replaced.
func (w *pushed) edit(from, to string) {
	w.t.Helper()
	if strings.Count(pushedYAML, from) != 1 {
		w.t.Fatalf("%q is there %d times", from, strings.Count(pushedYAML, from))
	}
	w.set(strings.Replace(pushedYAML, from, to, 1))
}

func (w *pushed) dial() (*client, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", fmt.Sprintf("127.0.0.1:%d", w.port), &tls.Config{RootCAs: w.ca.Roots(), ServerName: "edge.example"})
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return &client{c, bufio.NewReader(c)}, nil
}

// serves demands that an open connection and a new one are answered.
func (w *pushed) serves(open *client, when string) {
	w.t.Helper()
	if s, body := open.get("/open"); s != 200 || body != "app /open" {
		w.t.Errorf("%s: the open connection: %d %q", when, s, body)
	}
	c, err := w.dial()
	if err != nil {
		w.t.Errorf("%s: a new connection: %v", when, err)
		return
	}
	defer c.Close()
	if s, body := c.get("/new"); s != 200 || body != "app /new" {
		w.t.Errorf("%s: a new connection: %d %q", when, s, body)
	}
}

// badPushes lists what a control plane can send that is wrong. Each is refused
// by name (a NACK), or refuses traffic in its own place and is reported, and
// what runs goes on.
var badPushes = []struct {
	name string
	push func(w *pushed)
	nack string // part of the NACK's message; "" if the resource is accepted
	diag string // part of a diagnostic, or of the log
}{
	{"a listener that is no message", func(w *pushed) { w.cp.SetBytes(xdstest.Listener, "edge", "", []byte("\xff\xff")) }, "edge: ", ""},
	{"a listener with a value out of bounds", func(w *pushed) { w.edit("stat_prefix: edge", `stat_prefix: ""`) }, "edge: filter_chains[0].filters[0].typed_config.stat_prefix: ", ""},
	{"a listener without address", func(w *pushed) {
		w.edit("  address: {socket_address: {address: 127.0.0.1, port_value: ${PORT}}}\n", "")
	}, "edge: address: ", ""},
	{"routes that contradict each other", func(w *pushed) { w.edit(`domains: ["*"]`, `domains: ["a", "A"]`) }, "routes: virtual_hosts[0].domains: only unique values", ""},
	{"a cluster that is impossible", func(w *pushed) { w.edit("type: EDS\n", "type: EDS\n  connect_timeout: 0s\n") }, "app: connect_timeout: ", ""},
	{"an endpoint with a name for an address", func(w *pushed) { w.edit("address: 127.0.0.1, port_value: ${ORIGIN}", "address: origin, port_value: 1") }, "app: endpoints[0].lb_endpoints[0].endpoint.address", ""},
	{"a secret that is no certificate", func(w *pushed) { w.edit("${CHAIN}", "x") }, "cert: tls_certificate: ", ""},
	{"a key of another certificate", func(w *pushed) {
		_, key := pair(w.t, w.ca, identity.Leaf{DNSNames: []string{"edge.example"}})
		w.edit("${KEY}", fmt.Sprintf("%q", key))
	}, "cert: tls_certificate: ", ""},
	{"a policy that can't be executed", func(w *pushed) {
		w.edit("{permissions: [{any: true}]", "{condition: {const_expr: {bool_value: true}}, permissions: [{any: true}]")
	}, "policy: ", ""},
	{"an expired certificate", func(w *pushed) {
		chain, key := pair(w.t, w.ca, identity.Leaf{DNSNames: []string{"edge.example"}, NotBefore: longAgo, NotAfter: longAgo.Add(time.Hour)})
		w.set(strings.NewReplacer("${CHAIN}", fmt.Sprintf("%q", chain), "${KEY}", fmt.Sprintf("%q", key)).Replace(pushedYAML))
	}, "", `secret \"cert\": the certificate expired at 2020-01-01T01:00:00Z`},
	{"a further listener with an unknown filter", func(w *pushed) {
		w.set(fmt.Sprintf(another, freePort(w.t), `{name: acme, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/acme.v1.Filter}}`))
	}, "", "type type.googleapis.com/acme.v1.Filter is not supported"},
	{"a further listener on a port in use", func(w *pushed) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { _ = l.Close() })
		w.set(fmt.Sprintf(another, l.Addr().(*net.TCPAddr).Port, tcpToApp))
	}, "", "listener another: bind 127.0.0.1:"},
	{"a further listener on the same port", func(w *pushed) { w.set(fmt.Sprintf(another, w.port, tcpToApp)) }, "", "that of listener edge"},
	{"a route to a missing cluster", func(w *pushed) {
		w.edit("routes: [", "routes: [{match: {prefix: /nowhere}, route: {cluster: nowhere}}, ")
	}, "", ""},
}

func TestABadPushIsNamedAndWhatRunsGoesOn(t *testing.T) {
	if len(badPushes) != 14 {
		t.Fatalf("%d cases", len(badPushes))
	}
	for _, c := range badPushes {
		t.Run(c.name, func(t *testing.T) {
			w := newPushed(t)
			open, err := w.dial()
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()
			w.serves(open, "before")
			before, since := len(w.cp.Requests()), len(w.log.String())
			c.push(w)
			var message string
			if !w.cp.Await(10*time.Second, func(rs []xdstest.Request) bool {
				for _, r := range rs[before:] {
					if r.IsNACK() {
						message = r.GetErrorDetail().GetMessage()
						return true
					}
				}
				return c.nack == "" && len(rs) > before
			}) {
				t.Fatal("no NACK")
			}
			if (message == "") != (c.nack == "") || !strings.Contains(message, c.nack) {
				t.Errorf("NACK %q, want %q", message, c.nack)
			}
			if c.diag != "" {
				eventually(t, c.diag+" in the log", func() bool { return strings.Contains(w.log.String()[since:], c.diag) })
			}
			if c.name == "a route to a missing cluster" {
				eventually(t, "503 for the route", func() bool { s, _ := open.get("/nowhere"); return s == 503 })
			}
			time.Sleep(200 * time.Millisecond) // longer than a view takes, and the drain time
			w.serves(open, "after")
			// The control plane mends it.
			w.cp.Remove(xdstest.Listener, "another")
			w.edit("stat_prefix: edge", "stat_prefix: edge")
			w.edit(`domains: ["*"]`, `domains: ["edge.example", "*"]`)
			w.serves(open, "mended")
		})
	}
}
