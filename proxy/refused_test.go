package proxy_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// A push replaces a table and the cluster that it names. The table is refused: the
// one in force goes on working, however long it takes until a good one comes.
func TestTheClustersOfATableWhoseSuccessorIsRefusedStay(t *testing.T) {
	for _, kind := range []string{"route table", "inline routes", "TCP proxy"} {
		t.Run(kind, func(t *testing.T) {
			var refused atomic.Bool
			w := newWorldWith(t, proxy.Options{Registry: builtin.Registry(), RemovalGrace: 5 * time.Millisecond, Refused: func(typeURL, name string) bool {
				return refused.Load() && (typeURL == xdsresource.ListenerType && name == "l" || typeURL == xdsresource.RouteType && name == "r")
			}})
			port := freePort(t)
			table := func(cluster string) string {
				return fmt.Sprintf(`{name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: %s}}]}]}`, cluster)
			}
			name := func(cluster string) {
				switch kind {
				case "route table":
					w.listen("l", port, "", chainYAML("c", "{}", "", `rds: {route_config_name: r, config_source: {ads: {}}}`))
					w.res.Routes["r"] = decode[*xdsresource.RouteConfiguration](t, xdsresource.RouteType, table(cluster))
				case "inline routes":
					w.listen("l", port, "", chainYAML("c", "{}", "", `route_config: `+table(cluster)))
				case "TCP proxy":
					w.listen("l", port, "", `{name: c, filters: [{name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: p, cluster: `+cluster+`}}]}`)
				}
			}
			add := func(cluster string) {
				w.res.Clusters[cluster] = decode[*xdsresource.Cluster](t, xdsresource.ClusterType, fmt.Sprintf(`{name: %s, type: STATIC, load_assignment: {cluster_name: %[1]s}}`, cluster))
			}
			stays := func(cluster string) {
				t.Helper()
				for range 60 {
					if !w.Clusters().HasCluster(cluster) {
						t.Fatalf("cluster %s is gone", cluster)
					}
					time.Sleep(5 * time.Millisecond)
				}
			}
			add("one")
			name("one")
			w.mustApply()

			refused.Store(true)
			delete(w.res.Clusters, "one")
			add("two")
			w.mustApply()
			stays("one")

			// A version that names a cluster which comes and goes before it is in force.
			delete(w.res.Clusters, "two")
			name("two")
			add("three")
			w.mustApply()
			want, notes := "one", 1
			if kind != "route table" { // a listener has policies, too
				want, notes = "two", 0
			} else {
				stays("one")
			}
			if got := w.named(); got != want {
				t.Errorf("%q is in force, want %s", got, want)
			}
			for _, d := range w.Snapshot().Diagnostics {
				if strings.Contains(d.Message, "clusters that were removed since") {
					notes--
				}
			}
			if notes != 0 {
				t.Errorf("%d notes too few: %v", notes, w.Snapshot().Diagnostics)
			}

			refused.Store(false)
			name("three")
			w.mustApply()
			if got := w.named(); got != "three" {
				t.Errorf("%q is in force, want three", got)
			}
			eventually(t, "the cluster is forgotten", func() bool { return !w.Clusters().HasCluster("one") })
		})
	}
}

// named is the cluster that the listener l leads to.
func (w *world) named() string {
	res := w.Snapshot().Resources
	f := res.Listeners["l"].FilterChains[0].Filters[0]
	if f.HCM == nil {
		return f.TCPProxy.Cluster
	}
	rc := f.HCM.RouteConfig
	if rc == nil {
		rc = res.Routes[f.HCM.RDSName]
	}
	return rc.VirtualHosts[0].Routes[0].Action.Cluster
}

// A table comes into force with the next push's clusters, which has removed its own:
// the former one stays for a moment.
func TestATableWaitsForItsSuccessorIfItsClusterCameAndWent(t *testing.T) {
	for _, comes := range []bool{true, false} {
		w := newWorldWith(t, proxy.Options{Registry: builtin.Registry(), RemovalGrace: 300 * time.Millisecond, Passed: func() map[string]bool { return map[string]bool{"two": true} }})
		table := func(cluster string) {
			w.res.Routes["r"] = decode[*xdsresource.RouteConfiguration](t, xdsresource.RouteType, fmt.Sprintf(`{name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: %s}}]}]}`, cluster))
		}
		has := func(cluster string) {
			clear(w.res.Clusters)
			w.res.Clusters[cluster] = decode[*xdsresource.Cluster](t, xdsresource.ClusterType, fmt.Sprintf(`{name: %s, type: STATIC, load_assignment: {cluster_name: %[1]s}}`, cluster))
		}
		w.listen("l", freePort(t), "", chainYAML("c", "{}", "", `rds: {route_config_name: r, config_source: {ads: {}}}`))
		has("one")
		table("one")
		w.mustApply()
		began := time.Now()
		has("three")
		table("two")
		w.mustApply()
		if got := w.named(); got != "one" || !w.Clusters().HasCluster("one") {
			t.Errorf("%q is in force, want one with its cluster", got)
		}
		if comes {
			table("three")
			w.mustApply()
			if got := w.named(); got != "three" {
				t.Errorf("%q is in force, want three", got)
			}
		} else {
			eventually(t, "what there is", func() bool { return w.named() == "two" })
			if d := time.Since(began); d < 300*time.Millisecond {
				t.Errorf("it was waited for %v", d)
			}
		}
		eventually(t, "the former cluster is gone", func() bool { return !w.Clusters().HasCluster("one") })
	}
}

// Only what was refused stays behind: without a refusal, what names a missing
// cluster comes into force, as in Envoy.
func TestATableThatNamesAMissingClusterComesIntoForce(t *testing.T) {
	w := newWorldWith(t, proxy.Options{Registry: builtin.Registry(), RemovalGrace: 5 * time.Millisecond, Refused: func(string, string) bool { return false }})
	w.res.Clusters["one"] = decode[*xdsresource.Cluster](t, xdsresource.ClusterType, `{name: one, type: STATIC, load_assignment: {cluster_name: one}}`)
	for _, cluster := range []string{"one", "nowhere"} {
		w.listen("l", freePort(t), "", chainYAML("c", "{}", "", fmt.Sprintf(`route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: %s}}]}]}`, cluster)))
		w.mustApply()
		if got := w.named(); got != cluster {
			t.Errorf("%q is in force, want %s", got, cluster)
		}
	}
	delete(w.res.Clusters, "one")
	w.mustApply()
	eventually(t, "the cluster is gone", func() bool { return !w.Clusters().HasCluster("one") })
}

const tabled = `
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: edge
  address: {socket_address: {address: 127.0.0.1, port_value: ${PORT}}}
  enable_reuse_port: false
  filter_chains:
  - filters:
    - name: hcm
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: edge
        rds: {route_config_name: table, config_source: {ads: {}}}
        http_filters:
        - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: table
  virtual_hosts:
  - {name: all, domains: ["*"], request_headers_to_add: [{header: {key: x-version, value: "${VERSION}"}}], routes: [{match: ${MATCH}, route: {cluster: "app-${VERSION}"}}]}
- {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: "app-${VERSION}", type: EDS, eds_cluster_config: {eds_config: {ads: {}}}}
- {"@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: "app-${VERSION}", endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: ${ORIGIN}}}}}]}]}
`

// The same with a control plane: half a push, of which nothing is in force because
// the endpoints of its cluster are still to come, is superseded by one whose table
// is refused.
func TestARefusedTableAfterHalfAPushFailsNothing(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprint(w, r.Header.Get("X-Version"))
	}))
	t.Cleanup(origin.Close)
	w := &pushed{t: t, port: freePort(t), cp: xdstest.New(t, xdstest.Options{})}
	w.vars = map[string]string{"PORT": fmt.Sprint(w.port), "ORIGIN": strings.TrimPrefix(origin.URL, "http://127.0.0.1:"), "MATCH": "{prefix: /}"}
	load := func(version, match string) []xdstest.Resource {
		w.vars["VERSION"], w.vars["MATCH"] = version, match
		rs, err := xdstest.Load([]byte(tabled), w.vars)
		if err != nil {
			t.Fatal(err)
		}
		return rs
	}
	gone := func(version string) []xdstest.Key {
		return []xdstest.Key{{TypeURL: xdstest.Cluster, Name: "app-" + version}, {TypeURL: xdstest.Endpoints, Name: "app-" + version}}
	}
	answered := func(typeURL string, nack bool) func([]xdstest.Request) bool {
		return func(rs []xdstest.Request) bool {
			n := 0
			for _, r := range rs {
				if r.GetTypeUrl() == typeURL && r.GetResponseNonce() != "" && r.IsNACK() == nack {
					n++
				}
			}
			if nack {
				return n == 1
			}
			return n == 2
		}
	}
	const good = "{prefix: /}"
	w.cp.Update(load("1", good), nil)
	w.p, w.log = launch(t, fmt.Sprintf(adsBootstrap, portOf(w.cp)))
	eventually(t, "ready", func() bool { return w.p.Ready() == nil })
	answer := func() string {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", w.port))
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		var b [100]byte
		n, _ := resp.Body.Read(b[:])
		return fmt.Sprint(resp.StatusCode, " ", string(b[:n]))
	}
	eventually(t, "the first version", func() bool { return answer() == "200 1" })

	half := load("2", good)
	w.cp.Update(half[:3], gone("1")) // without endpoints
	w.cp.Await(10*time.Second, answered(xdstest.Route, false))
	bad := load("3", `{safe_regex: {regex: "("}}`)
	w.cp.Update(bad, gone("2"))
	w.cp.Await(10*time.Second, answered(xdstest.Route, true))
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if got := answer(); got != "200 1" {
			t.Fatalf("%s, want the answer of the first version", got)
		}
	}
	w.cp.Update(load("4", good), gone("3"))
	eventually(t, "the last version", func() bool { return answer() == "200 4" })
}
