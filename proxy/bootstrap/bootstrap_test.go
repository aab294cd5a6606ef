package bootstrap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bootstrapv3pb "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/sweep"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func decoder() *xdsresource.Decoder {
	return xdsresource.NewDecoder(builtin.Registry(), xdsresource.Options{})
}

func TestBootstrapsRenderedByIstioLoad(t *testing.T) {
	for _, role := range []string{"waypoint", "gateway"} {
		t.Run(role, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join("testdata", role+"_envoy_bootstrap.json"))
			if err != nil {
				t.Fatal(err)
			}
			c, err := Parse(b, decoder())
			if err != nil {
				t.Fatal(err)
			}
			if c.Node.Namespace != "app" || c.Node.ServiceAccount != "waypoint" || c.Node.ClusterID != "Kubernetes" ||
				c.Node.Network != "network-1" || c.Node.WorkloadName != "waypoint" ||
				c.Node.Labels["gateway.networking.k8s.io/gateway-name"] != "waypoint" {
				t.Errorf("node %+v", c.Node)
			}
			if len(c.Clusters) != 4 || len(c.Listeners) != 2 {
				t.Errorf("%d clusters, %d listeners", len(c.Clusters), len(c.Listeners))
			}
			if c.ADS == nil || c.ADS.Cluster != "xds-grpc" || c.LDS == nil || !c.LDS.ADS || c.CDS == nil || !c.CDS.ADS {
				t.Errorf("ads %+v, lds %+v, cds %+v", c.ADS, c.LDS, c.CDS)
			}
			ep := c.Cluster("xds-grpc").Assignment.Localities[0].Endpoints[0]
			if ep.Pipe != "etc/istio/proxy/XDS" {
				t.Errorf("endpoint %+v", ep)
			}
			if c.Admin.Address.String() != "127.0.0.1:15000" {
				t.Errorf("admin %v", c.Admin)
			}
			got := map[string]bool{}
			for _, ig := range c.Ignored {
				got[ig.Path] = true
			}
			for _, want := range []string{"layered_runtime", "overload_manager", "stats_config", "admin.access_log"} {
				if !got[want] {
					t.Errorf("%s is not reported as ignored; have %v", want, got)
				}
			}
			if got["bootstrap_extensions"] {
				t.Error("a bootstrap extension of Istio is reported")
			}
		})
	}
}

const minimal = `
node: {id: test, cluster: test}
admin: {address: {pipe: {path: /run/admin.sock}}}
static_resources:
  clusters:
  - name: backend
    type: STATIC
    load_assignment:
      cluster_name: backend
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 8080}}}
  listeners:
  - address: {socket_address: {address: 0.0.0.0, port_value: 10000}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /}
                route: {cluster: backend, timeout: 3s}
          http_filters:
          - name: rego
            typed_config:
              "@type": type.googleapis.com/fairlead.unknown.v1.Config
              package: a.b
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
dynamic_resources:
  lds_config: {path_config_source: {path: /etc/lds.yaml}}
`

func TestYAMLWithNativeFilterLoads(t *testing.T) {
	c, err := Parse([]byte(minimal), decoder())
	if err != nil {
		t.Fatal(err)
	}
	if c.Admin.Pipe != "/run/admin.sock" || c.LDS.Path != "/etc/lds.yaml" || c.CDS != nil || c.ADS != nil {
		t.Errorf("admin %+v, lds %+v, cds %+v, ads %+v", c.Admin, c.LDS, c.CDS, c.ADS)
	}
	hcm := c.Listeners[0].FilterChains[0].Filters[0].HCM
	if f := hcm.HTTPFilters[0]; f.TypeURL != "type.googleapis.com/fairlead.unknown.v1.Config" || f.Unknown == "" {
		t.Errorf("filter %+v", f)
	}
	if c.Listeners[0].Name != "0.0.0.0:10000" {
		t.Errorf("listener is called %q", c.Listeners[0].Name)
	}
}

func TestAllProblemsAreListedWithLines(t *testing.T) {
	for _, tc := range []struct {
		name, from, to string
		want           []string
	}{
		{"a misspelled field", "stat_prefix: ingress", "stat_prefx: ingress", []string{
			"line 20: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.stat_prefx: HttpConnectionManager has no such field: did you mean stat_prefix?",
		}},
		{"a wrong enum and a wrong type together", "type: STATIC", "type: STATIK\n    connect_timeout: [1s]\n    lb_policy: 1.5s", []string{
			`line 7: static_resources.clusters[0].type: "STATIK" is none of STATIC, STRICT_DNS`,
			`line 9: static_resources.clusters[0].lb_policy: "1.5s" is none of ROUND_ROBIN`,
		}},
		{"a constraint of the API", "timeout: 3s", "timeout: 3s, retry_policy: {retry_back_off: {base_interval: 0s}}", []string{
			"line 27: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].route.retry_policy.retry_back_off.base_interval: value must be greater than 0s",
		}},
		{"a name instead of an address", "address: 127.0.0.1", "address: localhost", []string{
			"line 12: static_resources.clusters[0].load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: \"localhost\" is not an IP address",
		}},
		{"two problems in two resources", "type: STATIC", "type: EDS", []string{
			"static_resources.clusters[0].eds_cluster_config: is missing, but type is EDS",
		}},
		{"ADS without a server", "path_config_source: {path: /etc/lds.yaml}", "ads: {}", []string{
			"dynamic_resources.lds_config.ads: there is no ads_config",
		}},
		{"an unknown cluster for ADS", "dynamic_resources:", "dynamic_resources:\n  ads_config: {api_type: REST, grpc_services: [{envoy_grpc: {cluster_name: xds}}]}", []string{
			"line 36: dynamic_resources.ads_config.api_type: REST is not supported: use DELTA_GRPC or GRPC",
			`line 36: dynamic_resources.ads_config.grpc_services[0].envoy_grpc.cluster_name: there is no static cluster "xds"`,
		}},
		{"allow_paths", "admin: {", "admin: {allow_paths: [{exact: /}], ", []string{"admin.allow_paths: is not supported"}},
		{"a duplicate name", "  listeners:", "  - {name: backend}\n  listeners:", []string{`static_resources.clusters[1]: name "backend" is used twice`}},
		{"broken YAML", "  listeners:", " listeners:", []string{"line "}},
		{"a number for a string", "name: backend\n", "name: 5\n", []string{"line 6: static_resources.clusters[0].name: want a string: put 5 in quotes"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse([]byte(strings.Replace(minimal, tc.from, tc.to, 1)), decoder())
			if _, ok := errors.AsType[*xdsresource.ParseError](err); !ok {
				t.Fatalf("error %v", err)
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("want %q in:\n%v", w, err)
				}
			}
		})
	}
}

func TestGoogleGRPC(t *testing.T) {
	doc := strings.Replace(minimal, "dynamic_resources:", `dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    grpc_services:
    - initial_metadata: [{key: X-Token, value: t}]
      google_grpc:
        target_uri: istiod:15012
        stat_prefix: x
        channel_credentials: {ssl_credentials: {root_certs: {inline_string: pem}}}`, 1)
	c, err := Parse([]byte(doc), decoder())
	if err != nil {
		t.Fatal(err)
	}
	if a := c.ADS; a.Target != "istiod:15012" || a.Plaintext || string(a.RootCAs) != "pem" || a.Metadata[0] != [2]string{"x-token", "t"} {
		t.Errorf("ads %+v", a)
	}
	if _, err := Parse([]byte(strings.Replace(doc, "root_certs", "cert_chain", 1)), decoder()); err == nil {
		t.Error("a certificate without key: want an error")
	}
}

// FuzzParse: there is a configuration or an error, and what was accepted is
// accepted in the form of proto's JSON, and is the same message.
func FuzzParse(f *testing.F) {
	f.Add([]byte(minimal))
	f.Add([]byte(`{"node":{"id":"x"},"admin":{}}`))
	f.Add([]byte("a: &a [*a]"))
	d := decoder()
	f.Fuzz(sweep.Around(f, func(t *testing.T, b []byte) {
		c, err := Parse(b, d)
		if (c == nil) == (err == nil) {
			t.Fatalf("config %v, error %v", c, err)
		}
		if err != nil {
			return
		}
		sweep.Accepted()
		m := &bootstrapv3pb.Bootstrap{}
		if err := proto.Unmarshal(c.Raw, m); err != nil {
			t.Fatal(err)
		}
		js, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(js, d)
		if err != nil {
			t.Fatalf("%s is accepted, and as JSON %v", b, err)
		}
		m2 := &bootstrapv3pb.Bootstrap{}
		if err := proto.Unmarshal(again.Raw, m2); err != nil || !proto.Equal(m, m2) {
			t.Fatalf("%v became %v, %v", m, m2, err)
		}
	}))
}

func TestTheResolverOfTheBootstrap(t *testing.T) {
	for doc, want := range map[string]string{
		``:                              "",
		`use_tcp_for_dns_lookups: true`: "{[] false true false 0s 0 false 0 false}",
		`dns_resolution_config: {resolvers: [{socket_address: {address: 10.0.0.53, port_value: 53}}]}`:                                                                             "{[10.0.0.53:53] false false false 0s 0 false 0 false}",
		`typed_dns_resolver_config: {name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, query_tries: 7}}`: "{[] false false false 0s 7 false 0 false}",
	} {
		c, err := Parse([]byte(minimal+doc+"\n"), decoder())
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if c.DNS != nil {
			got = fmt.Sprint(*c.DNS)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", doc, got, want)
		}
	}
	c, err := Parse([]byte(minimal+`typed_dns_resolver_config: {name: r, typed_config: {"@type": type.googleapis.com/acme.Resolver}}`), decoder())
	if err != nil || c.DNS != nil || len(c.Ignored) != 1 || c.Ignored[0].Path != "typed_dns_resolver_config.typed_config" {
		t.Errorf("%+v, %v", c.Ignored, err)
	}
}
