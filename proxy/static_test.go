package proxy_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/proxy"
)

// staticYAML takes listeners and clusters from the file and only what these
// refer to from the control plane.
const staticYAML = `
node: {id: edge, cluster: edge}
dynamic_resources:
  %[3]s
  ads_config: {api_type: DELTA_GRPC, grpc_services: [{envoy_grpc: {cluster_name: cp}}]}
static_resources:
  clusters:
  - {name: cp, type: STATIC, load_assignment: {cluster_name: cp, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]s}}}}]}]}}
  - {name: app, type: EDS, eds_cluster_config: {eds_config: {ads: {}}}}
  listeners:
  - name: edge
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: edge
          rds: {route_config_name: edge, config_source: {ads: {}}}
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
`

const edgeRoutes = `- {"@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: edge, virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, %s}]}]}`

func serve(t *testing.T, s *xdstest.Server, doc string) {
	t.Helper()
	rs, err := xdstest.Load([]byte(doc), nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Update(rs, nil)
}

func portOf(s *xdstest.Server) string { return strings.TrimPrefix(s.Addr(), "127.0.0.1:") }

func TestStaticResourcesSubscribeToWhatTheyReferTo(t *testing.T) {
	for _, c := range []struct {
		name, config string
		want         []string // types that are asked for
	}{
		{"nothing else", "", []string{xdstest.Endpoints, xdstest.Route}},
		{"and all clusters", "cds_config: {ads: {}}", []string{xdstest.Cluster, xdstest.Endpoints, xdstest.Route}},
		{"and all listeners", "lds_config: {ads: {}}", []string{xdstest.Endpoints, xdstest.Listener, xdstest.Route}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cp := xdstest.New(t, xdstest.Options{})
			serve(t, cp, fmt.Sprintf(edgeRoutes, "direct_response: {status: 200, body: {inline_string: one}}"))
			serve(t, cp, `- {"@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: app}`)
			port := freePort(t)
			startProxy(t, fmt.Sprintf(staticYAML, port, portOf(cp), c.config), nil)
			var asked []string
			for _, r := range cp.Requests() {
				if !slices.Contains(asked, r.GetTypeUrl()) {
					asked = append(asked, r.GetTypeUrl())
				}
			}
			slices.Sort(asked)
			if !slices.Equal(asked, c.want) {
				t.Errorf("asked for %v", asked)
			}
			if s, body := request(t, port, "/"); s != 200 || body != "one" {
				t.Errorf("%d %q", s, body)
			}
			serve(t, cp, fmt.Sprintf(edgeRoutes, "direct_response: {status: 200, body: {inline_string: two}}"))
			for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				if _, body := request(t, port, "/"); body == "two" {
					break
				}
				if time.Now().After(end) {
					t.Fatal("the new routes do not arrive")
				}
			}
		})
	}
}

// Endpoints take a way of their own, but also they alone make a proxy ready.
func TestEndpointsOfAStaticClusterMakeTheProxyReady(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "app") }))
	defer origin.Close()
	cp := xdstest.New(t, xdstest.Options{})
	serve(t, cp, fmt.Sprintf(`- {"@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: app, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %s}}}}]}]}`, strings.TrimPrefix(origin.URL, "http://127.0.0.1:")))
	port := freePort(t)
	doc := strings.Replace(fmt.Sprintf(staticYAML, port, portOf(cp), ""), "rds: {route_config_name: edge, config_source: {ads: {}}}",
		`route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: app}}]}]}`, 1)
	startProxy(t, doc, nil)
	if s, body := request(t, port, "/"); s != 200 || body != "app" {
		t.Errorf("%d %q", s, body)
	}
}

const googleYAML = `
node: {id: edge, cluster: edge, locality: {region: r, zone: z, sub_zone: s}}
dynamic_resources:
  lds_config: {ads: {}}
  ads_config:
    api_type: DELTA_GRPC
    grpc_services:
    - google_grpc:
        target_uri: "localhost:%s"
        stat_prefix: x
        channel_credentials: {ssl_credentials: {root_certs: {inline_string: %q}%s}}
`

func TestAControlPlaneThatWantsACertificateAndTheLocality(t *testing.T) {
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	crt, err := ca.Issue(identity.Leaf{DNSNames: []string{"localhost"}})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.RootsPEM())
	cp := xdstest.New(t, xdstest.Options{GRPC: []grpc.ServerOption{grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*crt}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
	}))}})
	chain, key := pair(t, ca, identity.Leaf{DNSNames: []string{"edge"}})
	doc := func(own string) string { return fmt.Sprintf(googleYAML, portOf(cp), ca.RootsPEM(), own) }
	startProxy(t, doc(fmt.Sprintf(", cert_chain: {inline_string: %q}, private_key: {inline_string: %q}", chain, key)), nil)
	rs := cp.Requests()
	if len(rs) == 0 {
		t.Fatal("no request arrived")
	}
	if l := rs[0].GetNode().GetLocality(); l.GetRegion() != "r" || l.GetZone() != "z" || l.GetSubZone() != "s" {
		t.Errorf("locality %v", l)
	}
	if _, err := proxy.FromBootstrap([]byte(doc(`, cert_chain: {inline_string: x}, private_key: {inline_string: y}`)), proxy.ProcessOptions{Registry: builtin.Registry()}); err == nil || !strings.Contains(err.Error(), "cert_chain and private_key") {
		t.Errorf("with a broken certificate: %v", err)
	}
}
