package proxy_test

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/explain"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// corpus compiles what istiod programs in a scenario, in a server that serves
// nothing.
func corpus(t testing.TB, scenario string) *proxy.Server {
	return counted(t, scenario, &stats.Registry{})
}

func counted(t testing.TB, scenario string, reg *stats.Registry) *proxy.Server {
	t.Helper()
	s, err := proxy.New(proxy.Options{Offline: true, Stats: reg, Registry: builtin.Registry(), Logger: slog.New(slog.DiscardHandler), Node: filters.Node{Namespace: "app"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	d := xdsresource.NewDecoder(builtin.Registry(), xdsresource.Options{})
	res := &proxy.Resources{
		Listeners: load[*xdsresource.Listener](t, d, scenario, "lds", xdsresource.ListenerType), Clusters: load[*xdsresource.Cluster](t, d, scenario, "cds", xdsresource.ClusterType),
		Routes: load[*xdsresource.RouteConfiguration](t, d, scenario, "rds", xdsresource.RouteType), Extensions: load[*xdsresource.ExtensionConfig](t, d, scenario, "ecds", xdsresource.ExtensionConfigType),
		Secrets: load[*xdsresource.Secret](t, d, scenario, "sds", xdsresource.SecretType), Endpoints: load[*xdsresource.ClusterLoadAssignment](t, d, scenario, "eds", xdsresource.EndpointsType),
	}
	if err := s.Compile(res); err != nil {
		t.Fatal(err)
	}
	return s
}

func load[T any](t testing.TB, d *xdsresource.Decoder, scenario, kind, typeURL string) map[string]T {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "xdsclient", "xdsresource", "testdata", "istiod", scenario, kind+".json.gz"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var list []struct {
		Name     string
		Resource json.RawMessage
	}
	if err := json.NewDecoder(z).Decode(&list); err != nil {
		t.Fatal(err)
	}
	out := map[string]T{}
	for _, r := range list {
		v, err := d.FromYAML(typeURL, r.Resource)
		if err != nil {
			t.Fatalf("%s: %v", r.Name, err)
		}
		typed, ok := v.(T)
		if !ok {
			t.Fatalf("%s is a %T", r.Name, v)
		}
		out[r.Name] = typed
	}
	return out
}

func TestExplainingLeavesNoTrace(t *testing.T) {
	reg := &stats.Registry{}
	used := func() string {
		var b strings.Builder
		if err := reg.WritePrometheusUsed(&b, func(string) bool { return true }); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	s := counted(t, "waypoint-rich", reg)
	before := used()
	for _, q := range questions {
		if q.scenario != "waypoint-rich" {
			continue
		}
		if _, err := s.Explain(&q.q); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(before, used()); d != "" {
		t.Error(d)
	}
}

// question is one row of the table: what is asked, and what must be answered.
type question struct {
	scenario string
	q        explain.Request
	outcome  string
	decider  string
	status   int
	details  string
	// hops are "listener/filter chain".
	hops []string
	// route is the chosen one's name, rejected how many were before it, reason
	// part of the last rejection.
	route    string
	rejected int
	reason   string
	cluster  string
	// nearest is the policy that came closest, misses what it lacks.
	nearest string
	misses  []string
	note    string
}

const (
	appClient   = "spiffe://cluster.local/ns/app/sa/client"
	productpage = "spiffe://cluster.local/ns/app/sa/productpage"
)

func from(identity, destination, path string, headers ...string) explain.Request {
	return explain.Request{Source: explain.Source{Identity: identity, Address: "10.1.1.9"}, Destination: destination, Path: path, Headers: headers}
}

// questions are asked of what a genuine istiod programs.
var questions = map[string]question{
	"the least waypoint forwards": {
		scenario: "waypoint-minimal", q: from(appClient, "reviews.app:9080", "/x"), outcome: explain.Forward,
		hops: []string{"connect_terminate/default", "main_internal/inbound-vip|9080|http|reviews.app.svc.cluster.local"}, route: "default",
		cluster: "inbound-vip|9080|http|reviews.app.svc.cluster.local", note: "taken for 10.96.1.1:9080",
	},
	"a layer 4 policy on the tunnel misses by the principal alone": {
		scenario: "waypoint-layered-authz", q: from("spiffe://cluster.local/ns/app/sa/other", "reviews.app:9080", "/x"),
		outcome: explain.Deny, decider: "envoy.filters.http.rbac", status: 403, details: "rbac_access_denied_matched_policy[none]",
		hops: []string{"connect_terminate/default"}, cluster: "main_internal", nearest: "ns[app]-policy[l4-on-waypoint]-rule[0]",
		misses: []string{`peer certificate: exactly "` + productpage + `", has spiffe://cluster.local/ns/app/sa/other`},
	},
	"the layer 4 policy admits the right client": {
		scenario: "waypoint-layered-authz", q: from(productpage, "10.96.1.1:9080", "/x"), outcome: explain.Forward,
		hops: []string{"connect_terminate/default", "main_internal/inbound-vip|9080|http|reviews.app.svc.cluster.local"}, route: "default",
		cluster: "inbound-vip|9080|http|reviews.app.svc.cluster.local",
	},
	"an address that nothing is programmed for is closed": {
		scenario: "waypoint-minimal", q: from(appClient, "10.244.9.9:8080", "/"), outcome: explain.Close, decider: "listener main_internal",
		details: "filter_chain_not_found", hops: []string{"connect_terminate/default", "main_internal/"}, note: "no filter chain of listener main_internal takes",
	},
	"a workload's address goes to the workload": {
		scenario: "waypoint-rich", q: from(appClient, "10.244.1.102:8080", "/"), outcome: explain.Deny,
		decider: "extensions.istio.io/trafficextension/app.wasm-file~istio-translated-wasmplugin", status: 403,
		details: "filter_not_executable{extensions.istio.io/trafficextension/app.wasm-file~istio-translated-wasmplugin}",
		hops:    []string{"connect_terminate/default", "main_internal/direct-http"}, route: "default", cluster: "encap",
	},
	"a filter that can't be executed refuses before any policy": {
		scenario: "waypoint-rich", q: from(productpage, "reviews.app:9080", "/forbidden"), outcome: explain.Deny, decider: "extensions.istio.io/trafficextension/app.wasm-file~istio-translated-wasmplugin",
		status: 403, details: "filter_not_executable{extensions.istio.io/trafficextension/app.wasm-file~istio-translated-wasmplugin}",
		hops:  []string{"connect_terminate/default", "main_internal/inbound-vip|9080|http|reviews.app.svc.cluster.local"},
		route: "app.reviews.10", rejected: 10, reason: `path "/forbidden" does not match regex "/re/[0-9]+/.*"`, cluster: "inbound-vip|9080|http|reviews.app.svc.cluster.local",
		nearest: "ns[app]-policy[allow-reviews]-rule[0]",
		misses:  []string{`server name (SNI): exactly "www.example.com", has none`, `header "x-token": exactly "admin", has none`},
	},
	"a route is rejected by the first header that fails": {
		scenario: "waypoint-rich", q: from(productpage, "reviews.app:9080", "/exact", "x-canary: true", "x-re: other"), outcome: explain.Deny, decider: "extensions.istio.io/trafficextension/app.wasm-file~istio-translated-wasmplugin",
		status: 403, details: "filter_not_executable{extensions.istio.io/trafficextension/app.wasm-file~istio-translated-wasmplugin}",
		hops:  []string{"connect_terminate/default", "main_internal/inbound-vip|9080|http|reviews.app.svc.cluster.local"},
		route: "app.reviews.10", rejected: 10, cluster: "inbound-vip|9080|http|reviews.app.svc.cluster.local",
		nearest: "ns[app]-policy[allow-reviews]-rule[0]",
	},
	"a chain that can't be executed closes, whatever its policies say": {
		scenario: "waypoint-rich", q: from(productpage, "tcp-svc.app:9000", ""), outcome: explain.Close,
		decider: "filter chain inbound-vip|9000|tcp|tcp-svc.app.svc.cluster.local", details: "filter_chain_not_executable",
		note:    "type.googleapis.com/fairlead.tcpfilter.v1.Config is not supported",
		hops:    []string{"connect_terminate/default", "main_internal/inbound-vip|9000|tcp|tcp-svc.app.svc.cluster.local"},
		nearest: "ns[app]-policy[allow-nothing]-rule[0]",
		misses:  []string{`server name (SNI): exactly "a.b", has none`, `source identity: exactly "` + appClient + `", has "` + productpage + `"`},
	},
	"a filter that denies in any case decides, whatever the authorizer says": {
		scenario: "waypoint-rich", q: from(productpage, "vs-svc.app:8080", "/direct"), outcome: explain.Deny,
		decider: "extensions.istio.io/trafficextension/app.wasm-file~istio-translated-wasmplugin", status: 403,
		details:  "filter_not_executable{extensions.istio.io/trafficextension/app.wasm-file~istio-translated-wasmplugin}",
		hops:     []string{"connect_terminate/default", "main_internal/inbound-vip|8080|http|vs-svc.app.svc.cluster.local"},
		rejected: 1, reason: `does not match prefix "/fault" (ignoring case)`,
		note: "it may end earlier, by envoy.filters.http.ext_authz, which is not asked here",
	},
	"a service of the egress waypoint": {
		scenario: "egress", q: from("spiffe://cluster.local/ns/app/sa/other", "httpbin.org:80", "/x"), outcome: explain.Deny, decider: "envoy.filters.http.rbac", status: 403,
		details: "rbac_access_denied_matched_policy[none]", hops: []string{"connect_terminate/default", "main_internal/inbound-vip|80|http|httpbin.org"},
		rejected: 1, reason: `path "/x" does not match path-separated prefix "/get"`,
		nearest: "ns[egress]-policy[who]-rule[0]", misses: []string{`path: prefix "/get", has "/x"`},
	},
	"no host of the ingress": {
		scenario: "ingress", q: explain.Request{Destination: "1.2.3.4:80", Host: "nobody.test"}, outcome: explain.Deny, decider: "acme.rego", status: 403,
		details: "filter_not_executable{acme.rego}", hops: []string{"0.0.0.0_80/"},
	},
}

func TestWhatIstiodProgramsIsExplained(t *testing.T) {
	servers := map[string]*proxy.Server{}
	for name, want := range questions {
		t.Run(name, func(t *testing.T) {
			s := servers[want.scenario]
			if s == nil {
				s = corpus(t, want.scenario)
			}
			r, err := s.Explain(&want.q)
			if err != nil {
				t.Fatal(err)
			}
			want.check(t, r)
			if t.Failed() {
				var b strings.Builder
				_ = r.WriteText(&b)
				t.Log("\n" + b.String())
			}
		})
	}
	if len(questions) != 11 {
		t.Errorf("%d questions, want 11", len(questions))
	}
}

func (want *question) check(t *testing.T, r *explain.Report) {
	t.Helper()
	if r.Outcome != want.outcome || r.Decider != want.decider || r.Status != want.status || r.Details != want.details {
		t.Errorf("%s by %q: %d %q, want %s by %q: %d %q", r.Outcome, r.Decider, r.Status, r.Details, want.outcome, want.decider, want.status, want.details)
	}
	var hops []string
	for _, h := range r.Hops {
		hops = append(hops, h.Listener+"/"+h.FilterChain)
	}
	if !slices.Equal(hops, want.hops) {
		t.Errorf("hops %q, want %q", hops, want.hops)
	}
	last := r.Hops[len(r.Hops)-1]
	if rt := last.Routing; rt != nil {
		route := ""
		if rt.Route != nil {
			route = rt.Route.Name
		}
		if route != want.route || len(rt.Rejected) != want.rejected {
			t.Errorf("route %q after %d others, want %q after %d", route, len(rt.Rejected), want.route, want.rejected)
		}
		if want.reason != "" && !strings.Contains(rt.Rejected[len(rt.Rejected)-1].Reason, want.reason) {
			t.Errorf("the last one was rejected because %q, want %q", rt.Rejected[len(rt.Rejected)-1].Reason, want.reason)
		}
	}
	if last.Upstream != nil && last.Upstream.Cluster != want.cluster {
		t.Errorf("cluster %q, want %q", last.Upstream.Cluster, want.cluster)
	}
	near, misses := nearest(last)
	if near != want.nearest {
		t.Errorf("nearest %q, want %q", near, want.nearest)
	}
	for _, m := range want.misses {
		if !slices.Contains(misses, m) {
			t.Errorf("it misses %q, want %q among them", misses, m)
		}
	}
	if want.note != "" && !strings.Contains(strings.Join(r.Notes, "\n"), want.note) {
		t.Errorf("notes %q, want %q", r.Notes, want.note)
	}
}

// nearest returns the policy of the last filter that names one.
func nearest(h explain.Hop) (name string, misses []string) {
	for _, f := range append(h.NetworkFilters, h.Filters...) {
		if f.Nearest == nil {
			continue
		}
		name, misses = f.Nearest.Name, nil
		for _, c := range f.Nearest.Failed {
			misses = append(misses, c.Want+", has "+c.Have)
		}
	}
	return name, misses
}

func TestTheConnectRequestOfATunnelHasHeadersOfItsOwn(t *testing.T) {
	q := from(appClient, "reviews.app:9080", "/x", "x-inner: 1")
	q.ConnectHeaders = []string{"X-Outer:  2 "}
	r, err := corpus(t, "waypoint-minimal").Explain(&q)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Hops) != 2 || r.Outcome != explain.Forward {
		t.Fatalf("%s, %d hops", r.Outcome, len(r.Hops))
	}
	for i, want := range [][2]string{{"x-outer: 2", "x-inner: 1"}, {"x-inner: 1", "x-outer: 2"}} {
		if h := r.Hops[i].Request.Headers; !slices.Contains(h, want[0]) || slices.Contains(h, want[1]) {
			t.Errorf("listener %s gets %q", r.Hops[i].Listener, h)
		}
	}
	q = explain.Request{Destination: "1.2.3.4:80", Host: "nobody.test", ConnectHeaders: []string{"a: b"}}
	if _, err := corpus(t, "ingress").Explain(&q); err == nil || !strings.Contains(err.Error(), "connect_headers: the request reaches listener 0.0.0.0_80 through no tunnel") {
		t.Error(err)
	}
}

// FuzzQuestion asks whatever an operator might send: there is an answer or an
// error, both ways of printing work, and every filter that is not reached comes
// behind one that ends the request.
func FuzzQuestion(f *testing.F) {
	for _, q := range questions {
		b, err := json.Marshal(&q.q)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"listener":"connect_terminate","method":"CONNECT","host":"[::1","headers":[":path: x","upgrade: websocket","connection: upgrade"],"body":"x"}`))
	f.Add([]byte(`{"listener":"connect_originate","destination":"::1:1","path":"*","scheme":"ftp","sni":"*","alpn":["x"],"random":18446744073709551615}`))
	f.Add([]byte(`{"destination":"reviews.app:9080","connect_headers":["x: y","upgrade: websocket","host:"]}`))
	s := corpus(f, "waypoint-rich")
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := proxy.DecodeQuestion(b)
		if err != nil {
			return
		}
		r, err := s.Explain(q)
		if err != nil {
			return
		}
		if err := r.WriteText(io.Discard); err != nil {
			t.Fatal(err)
		}
		if _, err := json.Marshal(r); err != nil {
			t.Fatal(err)
		}
		if r.Outcome == "" || len(r.Hops) == 0 {
			t.Fatalf("%+v", r)
		}
	})
}
