package proxy_test

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func TestMain(m *testing.M) {
	// OPA starts this one when it is linked.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

var decoder = xdsresource.NewDecoder(builtin.Registry(), xdsresource.Options{})

func decode[T any](t *testing.T, typeURL, doc string) T {
	t.Helper()
	v, err := decoder.FromYAML(typeURL, []byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	r, ok := v.(T)
	if !ok {
		t.Fatalf("decoded a %T", v)
	}
	return r
}

// world is a running Server and the resources that it was given last.
type world struct {
	*proxy.Server
	t   *testing.T
	res proxy.Resources
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldWith(t, proxy.Options{Registry: builtin.Registry()})
}

func newWorldWith(t *testing.T, o proxy.Options) *world {
	t.Helper()
	if o.DrainTime == 0 {
		o.DrainTime = 50 * time.Millisecond
	}
	s, err := proxy.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return &world{Server: s, t: t, res: proxy.Resources{
		Listeners: map[string]*xdsresource.Listener{}, Clusters: map[string]*xdsresource.Cluster{},
		Routes: map[string]*xdsresource.RouteConfiguration{}, Extensions: map[string]*xdsresource.ExtensionConfig{},
	}}
}

// apply hands over copies of the maps, as each View does.
func (w *world) apply() error {
	r := proxy.Resources{Listeners: map[string]*xdsresource.Listener{}, Clusters: map[string]*xdsresource.Cluster{}, Routes: map[string]*xdsresource.RouteConfiguration{}, Extensions: map[string]*xdsresource.ExtensionConfig{}}
	maps.Copy(r.Listeners, w.res.Listeners)
	maps.Copy(r.Clusters, w.res.Clusters)
	maps.Copy(r.Routes, w.res.Routes)
	maps.Copy(r.Extensions, w.res.Extensions)
	return w.Apply(&r)
}

func (w *world) mustApply() {
	w.t.Helper()
	if err := w.apply(); err != nil {
		w.t.Fatal(err)
	}
}

const routerFilter = `{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}`

// chainYAML is a filter chain with an HTTP connection manager. more goes before
// the router; routes is a route_config or rds.
func chainYAML(name, match, more, routes string) string {
	return fmt.Sprintf(`{name: %q, filter_chain_match: %s, filters: [{name: hcm, typed_config: {
  "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
  stat_prefix: x, %s, http_filters: [%s %s]}}]}`, name, match, routes, more, routerFilter)
}

func direct(body string) string {
	return fmt.Sprintf(`route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: %q}}}]}]}`, body)
}

func (w *world) listen(name string, port int, extra string, chains ...string) {
	w.t.Helper()
	w.res.Listeners[name] = decode[*xdsresource.Listener](w.t, xdsresource.ListenerType, fmt.Sprintf(
		`{name: %s, address: {socket_address: {address: 127.0.0.1, port_value: %d}}, %s filter_chains: [%s]}`, name, port, extra, strings.Join(chains, ", ")))
}

// request sends one request on a new connection; status 0 means that the
// connection was closed.
func request(t *testing.T, port int, path string) (int, string) {
	t.Helper()
	c, err := connect(t, port)
	if errors.Is(err, syscall.ECONNRESET) { // closed before connect returned
		return 0, err.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.get(path)
}

type client struct {
	net.Conn
	br *bufio.Reader
}

func connect(t *testing.T, port int) (*client, error) {
	t.Helper()
	c, err := (&net.Dialer{Timeout: 20 * time.Second}).DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return &client{c, bufio.NewReader(c)}, nil
}

func dial(t *testing.T, port int) *client {
	t.Helper()
	c, err := connect(t, port)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *client) get(path string) (int, string) {
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nhost: a\r\n\r\n", path); err != nil {
		return 0, err.Error()
	}
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b := make([]byte, 256)
	n, _ := resp.Body.Read(b)
	return resp.StatusCode, string(b[:n])
}

func (w *world) diagnosed(severity, text string) bool {
	return slices.ContainsFunc(w.Snapshot().Diagnostics, func(d proxy.Diagnostic) bool {
		return d.Severity == severity && strings.Contains(d.String(), text)
	})
}

const unknownFilter = `{"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/acme.v1.Unknown, value: {a: b}}`

// failClosed: what can't be executed refuses traffic where it stands, and says
// so. status 0 is a closed connection.
var failClosed = []struct {
	name        string
	extra, more string // listener fields, HTTP filters before the router
	network     string // network filters before the connection manager
	status      int
	severity    string
	diag        string
}{
	{"an unknown HTTP filter answers 403", "", `{name: acme, typed_config: ` + unknownFilter + `},`, "", 403, "error", "acme"},
	{"an optional one is left out", "", `{name: acme, is_optional: true, typed_config: ` + unknownFilter + `},`, "", 200, "warning", "acme"},
	{"a known filter whose policy can't be executed answers 403", "", `{name: rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {policies: {p: {permissions: [{any: true}], principals: [{any: true}], condition: {const_expr: {bool_value: true}}}}}}},`, "", 403, "error", "rbac"},
	{"a policy that doesn't compile answers 403", "", `{name: rego, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/fairlead.rego.v1.Config, value: {timeout: 10s, policy: {sources: [{inline_string: "package x\nallow if {"}]}}}},`, "", 403, "error", "rego"},
	{"an ECDS filter that has not arrived answers 500", "", `{name: late, config_discovery: {config_source: {ads: {}}, type_urls: [type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC]}},`, "", 500, "error", "late"},
	{"an unknown network filter closes the connection", "", "", `{name: acme, typed_config: ` + unknownFilter + `},`, 0, "error", "acme"},
	{"an unknown listener filter closes the connection", `listener_filters: [{name: acme, typed_config: ` + unknownFilter + `}],`, "", "", 0, "error", "acme"},
	{"a policy that compiles decides", "", `{name: rego, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/fairlead.rego.v1.Config, value: {timeout: 10s, policy: {sources: [{inline_string: "package envoy.authz\nallow := true"}]}}}},`, "", 200, "", ""},
	{"a disabled filter is not asked", "", `{name: acme, disabled: true, typed_config: ` + unknownFilter + `},`, "", 200, "", ""},
}

func TestWhatCannotBeExecutedFailsClosed(t *testing.T) {
	if len(failClosed) != 9 {
		t.Fatalf("%d cases, want 9", len(failClosed))
	}
	for _, c := range failClosed {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			port, other := freePort(t), freePort(t)
			chain := chainYAML("c", "{}", c.more, direct("ok"))
			chain = strings.Replace(chain, "filters: [{name: hcm", "filters: ["+c.network+"{name: hcm", 1)
			w.listen("l", port, c.extra, chain)
			w.listen("other", other, "", chainYAML("c", "{}", "", direct("other")))
			w.mustApply()
			if status, body := request(t, port, "/"); status != c.status {
				t.Errorf("got %d %q, want %d", status, body, c.status)
			}
			if status, body := request(t, other, "/"); status != 200 || body != "other" {
				t.Errorf("the other listener suffers: %d %q", status, body)
			}
			if c.diag != "" && !w.diagnosed(c.severity, c.diag) {
				t.Errorf("no %s that names %q in %v", c.severity, c.diag, w.Snapshot().Diagnostics)
			}
		})
	}
}

func TestAPushChangesWhatItNamesAndNothingElse(t *testing.T) {
	w := newWorld(t)
	port := freePort(t)
	// Two chains, told apart by the client's port range: loopback for the first.
	local := func(body string) string {
		return chainYAML("local", "{source_type: SAME_IP_OR_LOOPBACK}", "", "server_name: "+body+", "+direct(body))
	}
	outside := func(body string) string {
		return chainYAML("outside", "{source_type: EXTERNAL}", "", "server_name: "+body+", "+direct(body))
	}
	w.listen("l", port, "", local("one"), outside("one"))
	w.mustApply()
	chains := func() []any {
		var out []any
		for _, c := range w.Listener("l").Config().Chains {
			out = append(out, c)
		}
		return out
	}
	first := chains()
	c := dial(t, port)
	defer c.Close()
	if status, body := c.get("/"); status != 200 || body != "one" {
		t.Fatal(status, body)
	}
	w.listen("l", port, "", local("one"), outside("one")) // the same bytes again
	w.mustApply()
	if got := chains(); !slices.Equal(got, first) {
		t.Error("an equal push replaced chains")
	}
	w.listen("l", port, "", local("one"), outside("two"))
	w.mustApply()
	got := chains()
	if got[0] != first[0] || got[1] == first[1] {
		t.Error("exactly the second chain should be new")
	}
	time.Sleep(150 * time.Millisecond) // longer than the drain time
	if status, body := c.get("/"); status != 200 || body != "one" {
		t.Errorf("a connection of the chain that stayed: %d %q", status, body)
	}
	w.listen("l", port, "", local("three"), outside("two"))
	w.mustApply()
	if status, body := request(t, port, "/"); status != 200 || body != "three" {
		t.Errorf("a new connection: %d %q", status, body)
	}
	if status, body := c.get("/"); status != 0 && body != "one" {
		t.Errorf("a connection of the replaced chain: %d %q", status, body)
	}
	delete(w.res.Listeners, "l")
	w.mustApply()
	if d, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		_ = d.Close()
		t.Error("the removed listener still accepts")
	}
}

// istiod sends a waypoint's routes inside its listeners: a change of one must
// not cost the connections of the whole service.
func TestInlineRoutesChangeUnderTheirConnections(t *testing.T) {
	w := newWorld(t)
	port := freePort(t)
	push := func(table string) {
		t.Helper()
		w.listen("l", port, "", chainYAML("c", "{}", `{name: rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC}},`, "route_config: "+table))
		w.mustApply()
	}
	push(routes("one", ""))
	chain := w.Listener("l").Config().Chains[0]
	c := dial(t, port)
	defer c.Close()
	for _, body := range []string{"one", "two", "three"} {
		push(routes(body, ""))
		if status, got := c.get("/"); status != 200 || got != body {
			t.Errorf("%s: %d %q", body, status, got)
		}
		if status, got := request(t, port, "/"); status != 200 || got != body {
			t.Errorf("%s on a new connection: %d %q", body, status, got)
		}
		time.Sleep(120 * time.Millisecond) // longer than the drain time
	}
	push(routes("four", `rbac: `+unknownFilter))
	if status, got := c.get("/"); status != 403 || !w.diagnosed("error", "rbac") {
		t.Errorf("with a policy that can't be executed: %d %q, %v", status, got, w.Snapshot().Diagnostics)
	}
	push(routes("five", ""))
	if status, got := c.get("/"); status != 200 || got != "five" || w.diagnosed("error", "") {
		t.Errorf("after it was mended: %d %q, %v", status, got, w.Snapshot().Diagnostics)
	}
	if w.Listener("l").Config().Chains[0] != chain {
		t.Error("the chain was replaced")
	}
}

func routes(body, override string) string {
	return fmt.Sprintf(`{name: rt, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: %q}}, typed_per_filter_config: {%s}}]}]}`, body, override)
}

func TestTheConfigurationOfAListenerFilterArrivesLater(t *testing.T) {
	w := newWorld(t)
	port := freePort(t)
	listen := func() {
		w.listen("l", port, `listener_filters: [{name: ext, config_discovery: {config_source: {ads: {}}, type_urls: [type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol]}}],`,
			chainYAML("c", "{}", "", direct("ok")))
		w.mustApply()
	}
	listen()
	if status, _ := request(t, port, "/"); status != 0 || !w.diagnosed("error", "ext") {
		t.Errorf("without its filter's configuration: %d, %v", status, w.Snapshot().Diagnostics)
	}
	for _, c := range []struct {
		config string
		status int
	}{
		{"allow_requests_without_proxy_protocol: true", 200},
		{"allow_requests_without_proxy_protocol: false", 0},
		{"allow_requests_without_proxy_protocol: true", 200},
	} {
		w.res.Extensions["ext"] = decode[*xdsresource.ExtensionConfig](t, xdsresource.ExtensionConfigType,
			`{name: ext, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol, `+c.config+`}}`)
		listen()
		if status, _ := request(t, port, "/"); status != c.status {
			t.Errorf("%s: %d, want %d; %v", c.config, status, c.status, w.Snapshot().Diagnostics)
		}
	}
	w.res.Extensions["ext"] = decode[*xdsresource.ExtensionConfig](t, xdsresource.ExtensionConfigType,
		`{name: ext, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}`)
	listen()
	if status, _ := request(t, port, "/"); status != 0 || !w.diagnosed("error", "ext") {
		t.Errorf("with a type that is not allowed: %d", status)
	}
}

func TestRoutesAndExtensionsArriveLater(t *testing.T) {
	w := newWorld(t)
	port := freePort(t)
	w.listen("l", port, "", chainYAML("c", "{}",
		`{name: ext, config_discovery: {config_source: {ads: {}}, type_urls: [type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC]}},`,
		`rds: {route_config_name: rt, config_source: {ads: {}}}`))
	w.mustApply()
	if status, _ := request(t, port, "/"); status != 500 {
		t.Errorf("without its filter's configuration: %d", status)
	}
	ext := func(doc string) {
		w.res.Extensions["ext"] = decode[*xdsresource.ExtensionConfig](t, xdsresource.ExtensionConfigType, doc)
		w.mustApply()
	}
	ext(`{name: ext, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {policies: {p: {permissions: [{any: true}], principals: [{any: true}]}}}}}`)
	if status, _ := request(t, port, "/"); status != 404 {
		t.Errorf("without routes: %d", status)
	}
	for _, body := range []string{"one", "two"} {
		w.res.Routes["rt"] = decode[*xdsresource.RouteConfiguration](t, xdsresource.RouteType, routes(body, ""))
		w.mustApply()
		if status, got := request(t, port, "/"); status != 200 || got != body {
			t.Errorf("route configuration %q: %d %q", body, status, got)
		}
	}
	w.res.Routes["rt"] = decode[*xdsresource.RouteConfiguration](t, xdsresource.RouteType,
		routes("three", `ext: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute, rbac: {rules: {action: DENY, policies: {p: {permissions: [{any: true}], principals: [{any: true}]}}}}}`))
	w.mustApply()
	if status, _ := request(t, port, "/"); status != 403 {
		t.Errorf("the override of the route is not asked: %d", status)
	}
	ext(`{name: ext, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}`)
	if status, _ := request(t, port, "/"); status != 403 || !w.diagnosed("error", "not among the type_urls") {
		t.Errorf("a type that the filter does not allow: %d", status)
	}
}

func TestClustersComeGoAndChange(t *testing.T) {
	w := newWorld(t)
	port := freePort(t)
	origin := func(name string) (string, func()) {
		s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte(name)) }))
		_, p, _ := net.SplitHostPort(strings.TrimPrefix(s.URL, "http://"))
		return p, s.Close
	}
	a, closeA := origin("a")
	defer closeA()
	b, closeB := origin("b")
	defer closeB()
	w.listen("l", port, "", chainYAML("c", "{}", "", `route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: app}}]}]}`))
	w.mustApply()
	if status, _ := request(t, port, "/"); status != 503 {
		t.Errorf("without a cluster: %d", status)
	}
	for _, o := range []struct{ port, want string }{{a, "a"}, {b, "b"}} {
		w.res.Clusters["app"] = decode[*xdsresource.Cluster](t, xdsresource.ClusterType, fmt.Sprintf(
			`{name: app, type: STATIC, load_assignment: {cluster_name: app, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %s}}}}]}]}}`, o.port))
		w.mustApply()
		if status, body := request(t, port, "/"); status != 200 || body != o.want {
			t.Errorf("got %d %q, want %q", status, body, o.want)
		}
	}
	delete(w.res.Clusters, "app")
	w.mustApply()
	if status, _ := request(t, port, "/"); status != 503 {
		t.Errorf("after its removal: %d", status)
	}
}

func TestAPortInUseIsNamedAndCostsNothingElse(t *testing.T) {
	w := newWorld(t)
	port, good := freePort(t), freePort(t)
	w.listen("good", good, "", chainYAML("c", "{}", "", direct("good")))
	w.mustApply()
	taken, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	w.listen("bad", port, "", chainYAML("c", "{}", "", direct("bad")))
	err = w.apply()
	if err == nil || !strings.Contains(err.Error(), "listener bad") || !strings.Contains(err.Error(), fmt.Sprint(port)) {
		t.Errorf("the error should name listener and port: %v", err)
	}
	if status, body := request(t, good, "/"); status != 200 || body != "good" {
		t.Errorf("the listener from before: %d %q", status, body)
	}
	_ = taken.Close()
	w.mustApply()
	if status, body := request(t, port, "/"); status != 200 || body != "bad" {
		t.Errorf("once the port is free: %d %q", status, body)
	}
}
