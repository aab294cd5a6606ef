package proxy_test

import (
	"crypto/tls"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/proxy"
)

// agentSocket is where pilot-agent serves secrets, below its working directory.
const agentSocket = "./var/run/secrets/workload-spiffe-uds/socket"

// apiBootstrap takes everything from two servers: xds, and an agent's for secrets.
const apiBootstrap = `
node: {id: edge, cluster: edge}
dynamic_resources:
  lds_config: {${API}}
  cds_config: {${API}}
static_resources:
  clusters:
  - {name: xds, load_assignment: {cluster_name: xds, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: ${XDS}}}}}]}]}}
  - {name: sds-grpc, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}},
     load_assignment: {cluster_name: sds-grpc, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: ` + agentSocket + `}}}}]}]}}
`

// onServers is a proxy that is configured by servers of api_config_source.
type onServers struct {
	*onFiles
	kind string // of api_config_source
	xds  *xdstest.Single
	sds  *xdstest.Single
	docs map[string]string
}

func (w *onServers) source(cluster string) string {
	return "api_config_source: {api_type: " + w.kind + ", transport_api_version: V3, grpc_services: [{initial_metadata: [{key: X-Token, value: t}], envoy_grpc: {cluster_name: " + cluster + "}}]}"
}

// push gives the servers what the files of fileTree hold.
func (w *onServers) push() {
	w.t.Helper()
	var all, secrets []xdstest.Resource
	for name, doc := range w.docs {
		for file := range fileTree {
			server := "xds"
			if file == "sds.yaml" {
				server = "sds-grpc"
			}
			doc = strings.ReplaceAll(doc, "path_config_source: {path: ${DIR}/"+file+"}", w.source(server))
		}
		doc = strings.ReplaceAll(doc, "path_config_source: {path: ${DIR}/link/ecds.yaml, watched_directory: {path: ${DIR}}}", w.source("xds"))
		rs, err := xdstest.Load([]byte(doc), w.vars)
		if err != nil {
			w.t.Fatalf("%s: %v", name, err)
		}
		if name == "sds.yaml" {
			secrets = rs
			continue
		}
		all = append(all, rs...)
	}
	w.xds.Set(all)
	w.sds.Set(secrets)
}

func (w *onServers) change(name, from, to string) {
	w.t.Helper()
	if !strings.Contains(w.docs[name], from) {
		w.t.Fatalf("%q is not in %s", from, name)
	}
	w.docs[name] = strings.ReplaceAll(w.docs[name], from, to)
	w.push()
}

func single(t *testing.T, network, addr string) *xdstest.Single {
	t.Helper()
	s, err := xdstest.StartSingle(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func newOnServers(t *testing.T, kind string) *onServers {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := os.MkdirAll(filepath.Dir(agentSocket), 0o700); err != nil {
		t.Fatal(err)
	}
	w := &onServers{onFiles: newOnFiles(t), kind: kind, xds: single(t, "tcp", "127.0.0.1:0"), sds: single(t, "unix", agentSocket), docs: maps.Clone(fileTree)}
	w.push()
	return w
}

func (w *onServers) bootstrap() string {
	doc := strings.ReplaceAll(apiBootstrap, "${API}", w.source("xds"))
	return withAdmin(strings.ReplaceAll(doc, "${XDS}", w.xds.Addr()[strings.LastIndexByte(w.xds.Addr(), ':')+1:]), w.admin)
}

func (w *onServers) serial() string {
	c, err := w.dial()
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	tc, _ := c.Conn.(*tls.Conn)
	return tc.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

func TestEverythingFromServersOfOneTypeEach(t *testing.T) {
	for kind, prefix := range map[string]string{"GRPC": "Stream", "DELTA_GRPC": "Delta"} {
		t.Run(kind, func(t *testing.T) {
			w := newOnServers(t, kind)
			w.p, w.log = launch(t, w.bootstrap())
			eventually(t, "ready", func() bool { return w.p.Ready() == nil })
			if got := w.answers(); got != "200 app one" {
				t.Fatalf("%s\n%s", got, w.log)
			}
			want := []string{"Clusters edge", "Endpoints edge app", "ExtensionConfigs edge headers", "Listeners edge", "Routes edge r"}
			for i := range want {
				want[i] = prefix + want[i] + " token t"
			}
			if got := w.xds.Opened(); !slices.Equal(got, want) {
				t.Errorf("streams %q, want %q", got, want)
			}
			if got := w.sds.Opened(); !slices.Equal(got, []string{prefix + "Secrets edge cert token t"}) {
				t.Errorf("streams of the agent %q", got)
			}
			if _, dump := fetch(t, fmt.Sprintf("http://127.0.0.1:%d/config_dump?include_eds", w.admin)); !strings.Contains(dump, `"app"`) || !strings.Contains(dump, `"edge"`) {
				t.Error("the configuration dump lacks what servers have sent")
			}
			if got := metric(t, w.admin, `fairlead_xds_api_connected{cluster="sds-grpc",type="envoy.extensions.transport_sockets.tls.v3.Secret"}`); got != "1" {
				t.Errorf("connected %q", got)
			}
			open, err := w.dial()
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()

			w.change("rds.yaml", "route: {cluster: app}", "direct_response: {status: 200, body: {inline_string: direct}}")
			eventually(t, "the new routes", func() bool { _, body := open.get("/"); return body == "direct" })
			w.change("rds.yaml", "direct_response: {status: 200, body: {inline_string: direct}}", "route: {cluster: app}")
			w.change("v1/ecds.yaml", "value: one", "value: two")
			eventually(t, "the new filter", func() bool { _, body := open.get("/"); return body == "app two" })
			other := originOf(t, "other")
			w.change("eds.json", "${ORIGIN}", other)
			eventually(t, "the new endpoint", func() bool { _, body := open.get("/"); return body == "other" })

			// What is wrong is refused and takes nothing away.
			w.change("rds.yaml", "route: {cluster: app}", "route: {cluster: app, timeout: -1s}")
			eventually(t, "the refusal", func() bool { return len(w.xds.Rejected()) > 0 })
			if _, body := open.get("/"); body != "other" {
				t.Errorf("after a refusal %q", body)
			}
			if _, bad := fetch(t, fmt.Sprintf("http://127.0.0.1:%d/debug/unsupported", w.admin)); !strings.Contains(bad, "must not be negative") {
				t.Errorf("/debug/unsupported: %s", bad)
			}
			w.change("lds.yaml", "name: edge", "name: other")
			w.change("lds.yaml", "port_value: ${PORT}", "port_value: 0")
			eventually(t, "the listener is gone", func() bool { return strings.HasPrefix(w.answers(), "no connection") })
		})
	}
}

// originOf is the port of an origin that answers with body.
func originOf(t *testing.T, body string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte(body)) }))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://127.0.0.1:")
}

func TestSecretsOfAnAgentAreRotated(t *testing.T) {
	w := newOnServers(t, "GRPC")
	w.p, w.log = launch(t, w.bootstrap())
	eventually(t, "ready", func() bool { return w.p.Ready() == nil })
	open, err := w.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	before := w.serial()
	chain, key := pair(t, w.ca, identity.Leaf{DNSNames: []string{"edge.example"}})
	w.vars["CHAIN"], w.vars["KEY"] = fmt.Sprintf("%q", chain), fmt.Sprintf("%q", key)
	w.push()
	eventually(t, "the new certificate", func() bool { return w.serial() != before })
	if s, body := open.get("/"); s != 200 || body != "app one" {
		t.Errorf("after a rotation an open connection gets %d %q", s, body)
	}

	// The agent restarts, with another certificate.
	before = w.serial()
	w.sds.Close()
	time.Sleep(50 * time.Millisecond)
	if got := w.serial(); got != before {
		t.Errorf("without its agent the proxy presents %s", got)
	}
	_ = os.Remove(agentSocket)
	w.sds = single(t, "unix", agentSocket)
	chain, key = pair(t, w.ca, identity.Leaf{DNSNames: []string{"edge.example"}})
	w.vars["CHAIN"], w.vars["KEY"] = fmt.Sprintf("%q", chain), fmt.Sprintf("%q", key)
	w.push()
	eventually(t, "the certificate of the new agent", func() bool { return w.serial() != before })
}

func TestSecretsOfAnAgentBesideADS(t *testing.T) {
	w := newOnServers(t, "GRPC")
	cp := xdstest.New(t, xdstest.Options{})
	w.cp = cp
	ads := func(file string) string {
		return strings.NewReplacer(
			"path_config_source: {path: ${DIR}/sds.yaml}", w.source("sds-grpc"), "path_config_source: {path: ${DIR}/rds.yaml}", "ads: {}",
			"path_config_source: {path: ${DIR}/eds.json}", "ads: {}",
			"path_config_source: {path: ${DIR}/link/ecds.yaml, watched_directory: {path: ${DIR}}}", "ads: {}",
		).Replace(fileTree[file])
	}
	for _, f := range []string{"lds.yaml", "cds.yaml", "rds.yaml", "v1/ecds.yaml", "eds.json"} {
		w.set(ads(f))
	}
	_, static, _ := strings.Cut(w.bootstrap(), "  - {name: sds-grpc")
	static = "  - {name: sds-grpc" + static
	w.p, w.log = launch(t, withAdmin(fmt.Sprintf(adsBootstrap, portOf(cp))+static, w.admin))
	eventually(t, "ready", func() bool { return w.p.Ready() == nil })
	if got := w.answers(); got != "200 app one" {
		t.Errorf("%s\n%s", got, w.log)
	}
	// A listener that is to come from elsewhere than the bootstrap's clusters is
	// refused.
	w.set(strings.Replace(ads("lds.yaml"), "route_config_name: r, config_source: {ads: {}}", "route_config_name: r, config_source: {"+w.source("nobody")+"}", 1))
	cp.Await(20*time.Second, func(rs []xdstest.Request) bool {
		return slices.ContainsFunc(rs, func(r xdstest.Request) bool {
			return r.IsNACK() && strings.Contains(r.GetErrorDetail().GetMessage(), `is to come from "nobody": api_config_source must name one of the bootstrap's static clusters`)
		})
	})
	if got := w.answers(); got != "200 app one" {
		t.Errorf("after the refusal: %s", got)
	}
}

func TestServersThatCantBeAskedAreRefused(t *testing.T) {
	w := newOnServers(t, "GRPC")
	for from, to := range map[string]string{
		"api_type: GRPC": "api_type: REST", "cluster_name: xds}": "cluster_name: nobody}", "node: {id: edge": "node: {id: \"\"",
	} {
		_, err := proxy.FromBootstrap([]byte(strings.Replace(w.bootstrap(), from, to, 1)), proxy.ProcessOptions{Registry: builtin.Registry()})
		want := map[string]string{
			"api_type: GRPC":     "dynamic_resources.lds_config.api_config_source.api_type: REST is not supported: use DELTA_GRPC or GRPC",
			"cluster_name: xds}": `dynamic_resources.lds_config.api_config_source.grpc_services[0].envoy_grpc.cluster_name: there is no static cluster "nobody"`,
			"node: {id: edge":    "node.id: is empty; a control plane needs it",
		}[from]
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", to, err, want)
		}
	}
}
