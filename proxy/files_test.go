package proxy_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/explain"
	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/proxy"
)

// filesBootstrap takes everything from files under ${DIR}.
const filesBootstrap = `
node: {id: edge, cluster: edge}
dynamic_resources:
  lds_config: {path_config_source: {path: ${DIR}/lds.yaml}}
  cds_config: {path_config_source: {path: ${DIR}/cds.yaml}}
`

// fileTree are the files: a listener with routes, an HTTP filter and a
// certificate of files of their own, and a cluster whose endpoints are in one.
var fileTree = map[string]string{
	"lds.yaml": `
version_info: lds-1
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: edge
  enable_reuse_port: false
  address: {socket_address: {address: 127.0.0.1, port_value: ${PORT}}}
  filter_chains:
  - transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {
      tls_certificate_sds_secret_configs: [{name: cert, sds_config: {path_config_source: {path: ${DIR}/sds.yaml}}}]}}}
    filters:
    - name: hcm
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: edge
        rds: {route_config_name: r, config_source: {path_config_source: {path: ${DIR}/rds.yaml}}}
        http_filters:
        - {name: headers, config_discovery: {config_source: {path_config_source: {path: ${DIR}/link/ecds.yaml, watched_directory: {path: ${DIR}}}}, type_urls: [type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation]}}
        - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
`,
	"cds.yaml": `
resources:
- {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: app, type: EDS, eds_cluster_config: {eds_config: {path_config_source: {path: ${DIR}/eds.json}}}}
`,
	"eds.json": `{"resources": [{"@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", "cluster_name": "app",
  "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ${ORIGIN}}}}}]}]}]}`,
	"rds.yaml": `
resources:
- {"@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: app}}]}]}
`,
	"v1/ecds.yaml": ecdsFile("one"),
	"sds.yaml": `
resources:
- {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret, name: cert, tls_certificate: {certificate_chain: {inline_string: ${CHAIN}}, private_key: {inline_string: ${KEY}}}}
`,
}

func ecdsFile(value string) string {
	return `
resources:
- {"@type": type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig, name: headers, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation,
   mutations: {request_mutations: [{append: {header: {key: x-file, value: ` + value + `}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}}]}}}
`
}

// onFiles is a proxy that is configured by files.
type onFiles struct {
	*pushed
	dir   string
	admin int
}

// write replaces a file as configuration management does: by a move.
func (w *onFiles) write(name, doc string) {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	pairs := []string{"${DIR}", w.dir}
	for k, v := range w.vars {
		pairs = append(pairs, "${"+k+"}", v)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path+".tmp", []byte(strings.NewReplacer(pairs...).Replace(doc)), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		w.t.Fatal(err)
	}
}

func (w *onFiles) link(to string) {
	w.t.Helper()
	tmp := filepath.Join(w.dir, "tmp")
	if err := os.Symlink(to, tmp); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(w.dir, "link")); err != nil {
		w.t.Fatal(err)
	}
}

func (w *onFiles) edit(name, from, to string) {
	w.t.Helper()
	if strings.Count(fileTree[name], from) != 1 {
		w.t.Fatalf("%q is in %s %d times", from, name, strings.Count(fileTree[name], from))
	}
	w.write(name, strings.Replace(fileTree[name], from, to, 1))
}

func newOnFiles(t *testing.T) *onFiles {
	t.Helper()
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	origin := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(rw, "app "+r.Header.Get("X-File"))
	}))
	t.Cleanup(origin.Close)
	ports := freePorts(t, 2)
	w := &onFiles{pushed: &pushed{t: t, ca: ca, port: ports[0]}, dir: t.TempDir(), admin: ports[1]}
	chain, key := pair(t, ca, identity.Leaf{DNSNames: []string{"edge.example"}})
	w.vars = map[string]string{"PORT": fmt.Sprint(w.port), "ORIGIN": strings.TrimPrefix(origin.URL, "http://127.0.0.1:"), "CHAIN": fmt.Sprintf("%q", chain), "KEY": fmt.Sprintf("%q", key)}
	for name, doc := range fileTree {
		w.write(name, doc)
	}
	w.link("v1")
	return w
}

func (w *onFiles) start() {
	w.t.Helper()
	w.p, w.log = launch(w.t, withAdmin(strings.ReplaceAll(filesBootstrap, "${DIR}", w.dir), w.admin))
	eventually(w.t, "ready", func() bool { return w.p.Ready() == nil })
}

// answers asks over a new connection.
func (w *onFiles) answers() string {
	c, err := w.dial()
	if err != nil {
		return "no connection: " + err.Error()
	}
	defer c.Close()
	s, body := c.get("/")
	return fmt.Sprintf("%d %s", s, body)
}

func (w *onFiles) count(name string) string {
	return metric(w.t, w.admin, "fairlead_xds_file_"+name)
}

func TestEverythingFromWatchedFiles(t *testing.T) {
	w := newOnFiles(t)
	w.start()
	if got := w.answers(); got != "200 app one" {
		t.Fatalf("%s\n%s", got, w.log)
	}
	open, err := w.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if s, body := open.get("/"); s != 200 {
		t.Fatalf("%d %q", s, body)
	}
	if _, dump := fetch(t, fmt.Sprintf("http://127.0.0.1:%d/config_dump?include_eds", w.admin)); !strings.Contains(dump, `"lds-1"`) || !strings.Contains(dump, "DynamicEndpointConfig") && !strings.Contains(dump, "dynamic_endpoint_configs") {
		t.Error("the configuration dump lacks what files hold")
	}

	// Routes and filters change under their connections, the link is swapped in
	// the folder that is watched.
	w.edit("rds.yaml", "route: {cluster: app}", "direct_response: {status: 200, body: {inline_string: direct}}")
	eventually(t, "the new routes", func() bool { _, body := open.get("/"); return body == "direct" })
	w.write("rds.yaml", fileTree["rds.yaml"])
	w.write("v2/ecds.yaml", ecdsFile("two"))
	w.link("v2")
	eventually(t, "the new filter", func() bool { _, body := open.get("/"); return body == "app two" })

	// Endpoints and certificates take their own ways.
	other := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "other") }))
	defer other.Close()
	w.edit("eds.json", "${ORIGIN}", strings.TrimPrefix(other.URL, "http://127.0.0.1:"))
	eventually(t, "the new endpoint", func() bool { _, body := open.get("/"); return body == "other" })
	chain, key := pair(t, w.ca, identity.Leaf{DNSNames: []string{"edge.example"}})
	serial := func() string {
		c, err := w.dial()
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		tc, _ := c.Conn.(*tls.Conn)
		return tc.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := serial()
	w.vars["CHAIN"], w.vars["KEY"] = fmt.Sprintf("%q", chain), fmt.Sprintf("%q", key)
	w.write("sds.yaml", fileTree["sds.yaml"])
	eventually(t, "the new certificate", func() bool { return serial() != before })
	if s, body := open.get("/"); s != 200 || body != "other" {
		t.Errorf("after a rotation an open connection gets %d %q", s, body)
	}

	// Files that nothing refers to are forgotten, listeners that are gone drain.
	w.write("lds.yaml", "resources: []")
	eventually(t, "the listener is gone", func() bool { return strings.HasPrefix(w.answers(), "no connection") })
}

func TestABrokenFileIsNamedAndTakesNothingAway(t *testing.T) {
	w := newOnFiles(t)
	w.start()
	if got := w.answers(); got != "200 app one" {
		t.Fatalf("%s\n%s", got, w.log)
	}
	for _, c := range []struct{ file, doc, counter, log string }{
		{"lds.yaml", "resources: [", "update_failure_total", "lds.yaml"},
		{"lds.yaml", strings.Replace(fileTree["lds.yaml"], "stat_prefix", "stat_prefx", 1), "update_failure_total", "did you mean stat_prefix?"},
		{"lds.yaml", strings.Replace(fileTree["lds.yaml"], "stat_prefix: edge", `stat_prefix: ""`, 1), "update_rejected_total", "filter_chains[0].filters[0].typed_config.stat_prefix: "},
		{"cds.yaml", strings.Replace(fileTree["cds.yaml"], "type: EDS", "type: EDS, connect_timeout: 0s", 1), "update_rejected_total", "connect_timeout: "},
		{"rds.yaml", strings.Replace(fileTree["rds.yaml"], "name: r,", "name: other,", 1), "update_rejected_total", "the file has no such resource"},
		{"eds.json", "{}", "update_failure_total", "resources: is missing"},
		{"sds.yaml", strings.Replace(fileTree["sds.yaml"], "${CHAIN}", "x", 1), "update_rejected_total", "tls_certificate: "},
		{"link/ecds.yaml", "x", "update_failure_total", "ecds.yaml"},
		{"rds.yaml", strings.Replace(fileTree["lds.yaml"], "name: edge", "name: r", 1), "update_rejected_total", `the resource is a \"type.googleapis.com/envoy.config.listener.v3.Listener\"`},
	} {
		before := w.count(c.counter)
		w.write(c.file, c.doc)
		eventually(t, c.log+" is counted", func() bool { return w.count(c.counter) != before })
		eventually(t, c.log+" is in the log", func() bool { return strings.Contains(w.log.String(), c.log) })
		if got := w.answers(); got != "200 app one" {
			t.Errorf("with %s: %s", c.log, got)
		}
		plain := strings.ReplaceAll(c.log, `\"`, `\\\"`)
		if _, u := fetch(t, fmt.Sprintf("http://127.0.0.1:%d/debug/unsupported", w.admin)); !strings.Contains(u, filepath.Base(c.file)) || !strings.Contains(strings.ReplaceAll(u, `\"`, `\\\"`), plain) {
			t.Errorf("with %s: /debug/unsupported is %s", c.log, u)
		}
		good := strings.Replace(c.file, "link/", "v1/", 1)
		success := w.count("update_success_total")
		w.write(c.file, fileTree[good])
		eventually(t, c.file+" is good again", func() bool { return w.count("update_success_total") != success })
	}
	if got := w.answers(); got != "200 app one" {
		t.Errorf("at the end: %s", got)
	}
	if err := os.Remove(filepath.Join(w.dir, "cds.yaml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the missing file is in the log", func() bool { return strings.Contains(w.log.String(), "no such file") })
	if got := w.answers(); got != "200 app one" {
		t.Errorf("with a file missing: %s", got)
	}
}

func TestAMissingFileOfTheBootstrapIsRefused(t *testing.T) {
	_, err := proxy.FromBootstrap([]byte(strings.ReplaceAll(filesBootstrap, "${DIR}", t.TempDir())), proxy.ProcessOptions{Registry: builtin.Registry()})
	for _, w := range []string{"lds_config", "cds_config", "lds.yaml does not exist"} {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("%q is missing in %v", w, err)
		}
	}
}

func TestValidationListsWhatIsWrongInFiles(t *testing.T) {
	w := newOnFiles(t)
	validate := func() error {
		_, _, err := proxy.Validate([]byte(strings.ReplaceAll(filesBootstrap, "${DIR}", w.dir)), proxy.ProcessOptions{Registry: builtin.Registry()})
		return err
	}
	if err := validate(); err != nil {
		t.Fatal(err)
	}
	w.edit("cds.yaml", "type: EDS", "type: EDS, connect_timeout: 0s")
	w.write("rds.yaml", "resources: [")
	w.edit("lds.yaml", "{name: headers, config_discovery: {config_source: {path_config_source: {path: ${DIR}/link/ecds.yaml, watched_directory: {path: ${DIR}}}}, type_urls: [type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation]}}",
		`{name: acme, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/acme.v1.Filter}}`)
	err := validate()
	for _, w := range []string{"cds.yaml", "connect_timeout: ", "rds.yaml", "listener edge", "acme.v1.Filter is not supported"} {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("%q is missing in %v", w, err)
		}
	}
}

// A listener of a file may take its routes and endpoints from the control plane,
// and the control plane's may name files.
func TestFilesAndTheControlPlaneReferToEachOther(t *testing.T) {
	w := newOnFiles(t)
	cp := xdstest.New(t, xdstest.Options{})
	w.cp = cp
	w.set(`- {"@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: app}}]}]}`)
	w.set(strings.TrimPrefix(strings.ReplaceAll(fileTree["cds.yaml"], "${DIR}", w.dir), "\nresources:\n"))
	w.edit("lds.yaml", "{path_config_source: {path: ${DIR}/rds.yaml}}", "{ads: {}}")
	doc := strings.Replace(fmt.Sprintf(adsBootstrap, portOf(cp)), "lds_config: {ads: {}, resource_api_version: V3}", "lds_config: {path_config_source: {path: "+w.dir+"/lds.yaml}}", 1)
	w.p, w.log = launch(t, withAdmin(doc, w.admin))
	eventually(t, "ready", func() bool { return w.p.Ready() == nil })
	eventually(t, "the route of the control plane", func() bool { return w.answers() == "200 app one" })
	w.edit("lds.yaml", "rds: {route_config_name: r, config_source: {path_config_source: {path: ${DIR}/rds.yaml}}}", "rds: {route_config_name: r2, config_source: {ads: {}}}")
	time.Sleep(300 * time.Millisecond)
	if got := w.answers(); got != "200 app one" {
		t.Errorf("while new routes are on their way: %s", got)
	}
	w.set(`- {"@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: r2, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: r2}}}]}]}`)
	eventually(t, "the other route of the control plane", func() bool { return w.answers() == "200 r2" })
}

func TestExplanationsReadWatchedFiles(t *testing.T) {
	w := newOnFiles(t)
	doc := []byte(strings.ReplaceAll(filesBootstrap, "${DIR}", w.dir))
	ask := func() *explain.Report {
		t.Helper()
		r, err := proxy.ExplainBootstrap(doc, proxy.ProcessOptions{Registry: builtin.Registry()}, &explain.Request{Host: "edge.example"})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	text := func(r *explain.Report) string {
		var b strings.Builder
		if err := r.WriteText(&b); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	if got := text(ask()); !strings.Contains(got, "app") || !strings.Contains(got, "127.0.0.1:"+w.vars["ORIGIN"]) {
		t.Errorf("the route, cluster and endpoints of the files are not told:\n%s", got)
	}
	w.write("rds.yaml", "resources: [")
	if got := text(ask()); !strings.Contains(got, "rds.yaml") || !strings.Contains(got, "the file can't be used") {
		t.Errorf("a broken file is not told:\n%s", got)
	}
}
