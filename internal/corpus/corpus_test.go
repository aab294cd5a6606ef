package corpus

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	listenerv3pb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// appClient is the workload that sends requests where nothing else is said.
const appClient = "spiffe://cluster.local/ns/app/sa/client"

// world is a scenario that is served, and those around it.
type world struct {
	t *testing.T
	*scenario
	*client
	origins *origins
	proxy   *proxy.Process
	stop    func()
	log     string
	names   map[string]string // addresses of origins that requests name, by cluster
	callers map[string]string // identities by chain

	n int
	// asked requests were explained before, unknown of them without a verdict.
	asked, unknown int
	probes         map[string]probe // by id
	reached        map[string]bool  // chains that an origin proves
}

// probe is a request that was sent, and the way that it must have taken.
type probe struct{ what, chain, route string }

// start serves the scenario name, without what is taken out of it.
func start(t *testing.T, name string, outs []*taken) *world {
	t.Helper()
	dir := t.TempDir()
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	cert, key := issue(t, ca, "file-cert")
	for f, b := range map[string][]byte{"ca.pem": ca.RootsPEM(), "c.pem": cert, "k.pem": key} {
		if err := os.WriteFile(filepath.Join(dir, f), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := &world{t: t, origins: newOrigins(t, ca), log: filepath.Join(dir, "log"), names: map[string]string{}, probes: map[string]probe{}, reached: map[string]bool{}}
	w.scenario = loadScenario(t, name, strings.NewReplacer("file-root:system", "file-root:"+dir+"/ca.pem", "/etc/certs/", dir+"/"))
	w.certify(t, ca)
	w.atOrigins(t, w.origins)
	w.reachable(t, w.origins)
	w.client = &client{t: t, ca: ca, addrs: w.bind(t, w.origins), certs: map[string]*tlsCert{}, tunnels: map[string]transport.ClientConn{}}
	(&editor{t: t, s: w.scenario, log: w.log, outs: outs, named: w.named}).all()

	id, err := identity.ParseID("spiffe://cluster.local/ns/app/sa/waypoint")
	if err != nil {
		t.Fatal(err)
	}
	src, err := ca.Source(id)
	if err != nil {
		t.Fatal(err)
	}
	cp := xdstest.New(t, xdstest.Options{})
	w.serve(t, cp)
	w.run(fmt.Sprintf(bootstrap, strings.TrimPrefix(cp.Addr(), "127.0.0.1:")), src)
	for c := range w.clusters {
		if !eventually(func() bool { return w.proxy.Server().Clusters().Cluster(c) != nil }) {
			t.Errorf("cluster %s does not get warm", c)
		}
	}
	for _, r := range cp.Requests() {
		if text := r.GetErrorDetail().GetMessage(); r.IsNACK() && !strings.Contains(text, moduleElsewhere) {
			t.Errorf("%s is refused: %s", r.GetTypeUrl(), text)
		}
	}
	t.Cleanup(w.close)
	return w
}

// moduleElsewhere is a plugin of waypoint-rich whose module is a file of the pod
// that istiod was asked about: it is refused, and what waits for it is closed.
const moduleElsewhere = `plugin "app.wasm-file~istio-translated-wasmplugin": open /opt/filters/rego: no such file or directory`

const bootstrap = `
node: {id: waypoint~10.1.1.1~waypoint.app~app.svc.cluster.local, cluster: waypoint.app, metadata: {NAMESPACE: app, NETWORK: network-1}}
dynamic_resources:
  lds_config: {ads: {}}
  cds_config: {ads: {}}
  ads_config: {api_type: DELTA_GRPC, grpc_services: [{envoy_grpc: {cluster_name: cp}}]}
static_resources:
  clusters:
  - {name: cp, type: STATIC, load_assignment: {cluster_name: cp, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %s}}}}]}]}}
`

func (w *world) run(doc string, src identity.Source) {
	w.t.Helper()
	ready := make(chan struct{})
	level := slog.LevelError + 1
	if testing.Verbose() {
		level = slog.LevelWarn
	}
	var err error
	w.proxy, err = proxy.FromBootstrap([]byte(doc), proxy.ProcessOptions{
		Registry: builtin.Registry(), Identity: src, Names: names, DrainTime: 10 * time.Millisecond, OnReady: func() { close(ready) },
		Logger: slog.New(slog.NewTextHandler(logger{w.t}, &slog.HandlerOptions{Level: level})),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.proxy.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(w.stop)
	select {
	case <-ready:
	case <-time.After(20 * time.Second):
		w.t.Fatalf("the proxy does not become ready: %v", w.proxy.Ready())
	}
}

// logger puts the proxy's log into that of the test.
type logger struct{ t *testing.T }

func (l logger) Write(p []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// walk goes through every door: one request for each, and through the first
// door of a chain with HTTP one for each domain and route.
func (w *world) walk() {
	first := map[string]bool{}
	for _, d := range w.doors(w.t) {
		fc := w.chain(d.chain)
		if fc == nil {
			w.t.Errorf("%v leads to %q, which does not exist", d, d.chain)
			continue
		}
		hcm, tcp := terminal(w.t, fc)
		if hcm == nil {
			w.tcp(d, fc, tcp)
			continue
		}
		w.http(d, w.table(hcm), !first[d.chain])
		if slices.ContainsFunc(hcm.GetHttpFilters(), func(h *hcmv3pb.HttpFilter) bool { return h.GetName() == "envoy.filters.http.grpc_web" }) {
			w.grpcWeb(d, w.table(hcm).GetVirtualHosts()[0].GetRoutes()[0])
		}
		first[d.chain] = true
	}
}

func (w *world) chain(name string) *listenerv3pb.FilterChain {
	for _, l := range w.listeners {
		for _, fc := range l.GetFilterChains() {
			if fc.GetName() == name {
				return fc
			}
		}
	}
	return nil
}

// terminal is the last filter of a chain.
func terminal(t *testing.T, fc *listenerv3pb.FilterChain) (*hcmv3pb.HttpConnectionManager, *tcpproxyv3pb.TcpProxy) {
	t.Helper()
	var hcm hcmv3pb.HttpConnectionManager
	var tcp tcpproxyv3pb.TcpProxy
	last := fc.GetFilters()[len(fc.GetFilters())-1]
	if unpack(t, last.GetTypedConfig(), &hcm) {
		return &hcm, nil
	}
	if unpack(t, last.GetTypedConfig(), &tcp) {
		return nil, &tcp
	}
	t.Fatalf("%s ends with %s", fc.GetName(), last.GetName())
	return nil, nil
}

// caller is who must go through a chain so that its policies let pass.
func (w *world) caller(chain string) string {
	for _, k := range []string{chain, "*"} {
		if id := w.callers[k]; id != "" {
			return id
		}
	}
	return appClient
}

func (w *world) http(d door, rc *routev3pb.RouteConfiguration, all bool) {
	if rc == nil {
		w.t.Errorf("%v: no routes", d)
		return
	}
	for _, vh := range rc.GetVirtualHosts() {
		for i, domain := range vh.GetDomains() {
			for _, r := range vh.GetRoutes() {
				w.route(d, rc, vh, domain, r)
				if !all || i > 0 {
					break
				}
			}
			if !all {
				return
			}
		}
	}
}

// tries bounds how often a route with weights is asked until each of its
// clusters has answered.
const tries = 150

func (w *world) route(d door, rc *routev3pb.RouteConfiguration, vh *routev3pb.VirtualHost, domain string, r *routev3pb.Route) {
	scheme := "http"
	if d.terminated {
		scheme = "https"
	}
	left := map[string]bool{}
	for n := range tries {
		q := satisfying(w.t, domain, r)
		if strings.HasPrefix(domain, "*.") && d.sni == "" && w.isDFP(r) {
			q.authority = w.resolvable(r, domain)
		}
		o := w.expected(w.t, rc, vh, r, q, scheme)
		if n == 0 {
			for _, c := range o.clusters {
				w.ways(c.GetName(), left)
			}
		}
		name := r.GetName()
		if o.upgraded {
			name = "-"
		}
		got := w.send(d, q, name)
		if got == nil {
			return
		}
		if !w.check(d, r, q, o, got) {
			return
		}
		delete(left, got.echo.Cluster+wayOf(got.echo))
		if len(left) == 0 || o.status != http.StatusOK {
			break
		}
	}
	if len(left) > 0 {
		w.t.Errorf("%v %s: %v got no request", d, r.GetName(), slices.Sorted(maps.Keys(left)))
	}
	w.crossOrigin(d, domain, r)
}

// send sends q through d; nil if there is no answer, which is an error.
func (w *world) send(d door, q *request, route string) *result {
	w.n++
	id := fmt.Sprintf("%s-%d", w.name, w.n)
	q.set(idHeader, id)
	w.probes[id] = probe{fmt.Sprint(d, " ", q.method, " ", q.authority, q.path), d.chain, route}
	x := w.explained(d, q)
	conn, err := w.enter(d, w.caller(d.chain))
	if err != nil {
		w.t.Errorf("%v: %v", d, err)
		return nil
	}
	defer func() { _ = conn.Close() }()
	do := exchange
	if d.protocol == "h2c" {
		do = exchangeH2
	}
	got, err := do(conn, q)
	if err != nil {
		w.t.Errorf("%v %s %s%s: %v", d, q.method, q.authority, q.path, err)
		return nil
	}
	w.agrees(w.probes[id].what, d.chain, x, got)
	return got
}

func (w *world) check(d door, r *routev3pb.Route, q *request, o *outcome, got *result) (ok bool) {
	at := fmt.Sprint(d, " ", q.method, " ", q.authority, q.path)
	if got.status != o.status {
		w.t.Errorf("%s: status %d, want %d; route %s, body %.200q", at, got.status, o.status, r.GetName(), got.body)
		return false
	}
	if o.body != "" && got.body != o.body {
		w.t.Errorf("%s: body %q, want %q", at, got.body, o.body)
	}
	if d.protocol != "h2c" {
		w.headers(at+": response", o.response, got.header)
	}
	if len(o.clusters) == 0 || o.status != http.StatusOK {
		return true
	}
	i := slices.IndexFunc(o.clusters, func(c *routev3pb.WeightedCluster_ClusterWeight) bool { return c.GetName() == got.echo.Cluster })
	if i < 0 {
		w.t.Errorf("%s: reached %q, which is none of the route's clusters", at, got.echo.Cluster)
		return false
	}
	c := o.clusters[i]
	edits(o.request, c.GetRequestHeadersToAdd(), c.GetRequestHeadersToRemove(), &request{})
	edits(o.response, c.GetResponseHeadersToAdd(), c.GetResponseHeadersToRemove(), &request{})
	w.headers(at+": request", o.request, got.echo.Header)
	if c.GetHostRewriteLiteral() != "" {
		o.host = c.GetHostRewriteLiteral()
	}
	if got.echo.Path != o.path || got.echo.Host != o.host || got.echo.Method != q.method {
		w.t.Errorf("%s: the origin saw %s %s%s, want %s%s", at, got.echo.Method, got.echo.Host, got.echo.Path, o.host, o.path)
	}
	w.transport(at, got.echo)
	id := q.header[len(q.header)-1][1]
	for _, m := range o.mirrors {
		if !eventually(func() bool { return slices.Contains(w.origins.reached(id), m) }) {
			w.t.Errorf("%s: no copy went to %s", at, m)
		}
	}
	return true
}

func (w *world) headers(at string, want map[string]string, got http.Header) {
	for n, v := range want {
		has := got.Values(n)
		if more, ok := strings.CutPrefix(v, "+"); ok {
			if !slices.ContainsFunc(has, func(h string) bool {
				return h == more || strings.HasSuffix(h, ","+more) || strings.HasSuffix(h, ", "+more)
			}) {
				w.t.Errorf("%s: %s is %q, want %q among it", at, n, has, more)
			}
			continue
		}
		if strings.Join(has, ",") != v {
			w.t.Errorf("%s: %s is %q, want %q", at, n, has, v)
		}
	}
}

func eventually(ok func() bool) bool {
	for range 4000 {
		if ok() {
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return false
}
