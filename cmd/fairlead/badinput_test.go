package main

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/examples"
	"github.com/fairlead-mesh/fairlead/internal/identity"
)

// good is a bootstrap without fault; the cases replace a part of it. %d is a
// free port.
const good = `node: {id: n, cluster: c}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  secrets: [{name: cert, tls_certificate: {certificate_chain: {filename: certs/shop.pem}, private_key: {filename: certs/shop-key.pem}}}]
  listeners:
  - name: edge
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    listener_filters: [] # LISTENER FILTER
    filter_chains:
    - transport_socket: # SOCKET
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_certificate_sds_secret_configs: [{name: cert}]
      filters:
      # NETWORK FILTER
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: edge
          access_log: [{name: f, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /dev/null}}]
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /}
                route: {cluster: app, timeout: 3s}
          http_filters:
          # HTTP FILTER
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: app
    type: STATIC
    load_assignment: {cluster_name: app, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9}}}}]}]}
`

const (
	chain0 = "static_resources.listeners[0].filter_chains[0]"
	hcm0   = chain0 + ".filters[0].typed_config"
	route0 = hcm0 + ".route_config.virtual_hosts[0].routes[0].route"
)

// startsBadly lists what a file can have wrong. Each refuses the start, and
// config validate, with the file's name, the line and the path.
var startsBadly = []struct {
	name, from, to string
	want           string // after the file's name
}{
	{"malformed YAML", "    filter_chains:\n", "   filter_chains:\n", "line 9: not valid YAML: "},
	{"a field that does not exist", "stat_prefix: edge", "stat_prefx: edge", "line 21: " + hcm0 + ".stat_prefx: HttpConnectionManager has no such field: did you mean stat_prefix?"},
	{"a value of another type", "timeout: 3s", "timeout: soon", "line 29: " + route0 + `.timeout: want seconds, such as 10s or 0.5s, not "soon"`},
	{"an unknown type of network filter", "# NETWORK FILTER", `- {name: acme, typed_config: {"@type": type.googleapis.com/acme.v1.Filter}}`, "line 17: " + chain0 + ".filters[0]: filters[acme]: type type.googleapis.com/acme.v1.Filter is not supported"},
	{"an unknown type of HTTP filter", "# HTTP FILTER", `- {name: acme, typed_config: {"@type": type.googleapis.com/acme.v1.Filter}}`, "line 31: " + hcm0 + ".http_filters[0]: http_filters[acme]: type type.googleapis.com/acme.v1.Filter is not supported"},
	{"an unknown type of listener filter", "[] # LISTENER FILTER", `[{name: acme, typed_config: {"@type": type.googleapis.com/acme.v1.Filter}}]`, "line 8: static_resources.listeners[0].listener_filters[0]: listener_filters[acme]: type type.googleapis.com/acme.v1.Filter is not supported"},
	{"a policy that does not compile", "# HTTP FILTER", `- {name: rego, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/fairlead.rego.v1.Config, value: {policy: {sources: [{inline_string: "package x\nallow if {"}]}}}}`, "line 31: " + hcm0 + ".http_filters[0]: http_filters[rego]: "},
	{"a policy file that is missing", "# HTTP FILTER", `- {name: rego, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/fairlead.rego.v1.Config, value: {policy: {sources: [{filename: none.rego}]}}}}`, "line 31: " + hcm0 + ".http_filters[0]: http_filters[rego]: "},
	{"a missing cluster", "cluster: app, timeout", "cluster: nowhere, timeout", "line 29: " + route0 + `.cluster: there is no cluster "nowhere"`},
	{"a missing cluster among weighted ones", "cluster: app, timeout", "weighted_clusters: {clusters: [{name: app, weight: 1}, {name: nowhere, weight: 1}]}, timeout", "line 29: " + route0 + `.weighted_clusters.clusters[1].name: there is no cluster "nowhere"`},
	{"a missing cluster of a mirror", "cluster: app, timeout", "cluster: app, request_mirror_policies: [{cluster: nowhere}], timeout", "line 29: " + route0 + `.request_mirror_policies[0].cluster: there is no cluster "nowhere"`},
	{"a missing certificate file", "{filename: certs/shop.pem}", "{filename: certs/none.pem}", "line 11: " + chain0 + `.transport_socket: listener edge: secret "cert": open certs/none.pem: no such file`},
	{"a key that is not the certificate's", "{filename: certs/shop-key.pem}", "{filename: certs/admin-key.pem}", "line 11: " + chain0 + `.transport_socket: listener edge: secret "cert": tls: private key does not match`},
	{"a certificate that is none", "{filename: certs/shop.pem}", "{inline_string: x}", `line 11: ` + chain0 + `.transport_socket: listener edge: secret "cert": `},
	{"a missing secret", "[{name: cert}]", "[{name: other}]", "line 11: " + chain0 + `.transport_socket: there is no secret "other" in static_resources.secrets`},
	{"a missing CA file of a cluster", "  - name: app\n", `  - name: app
    transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {validation_context: {trusted_ca: {filename: certs/none.pem}}}}}
`, "line 36: static_resources.clusters[0].transport_socket.typed_config.common_tls_context.validation_context.trusted_ca.filename: "},
	{"an unknown transport socket of a cluster", "  - name: app\n", `  - name: app
    transport_socket: {name: acme, typed_config: {"@type": type.googleapis.com/acme.v1.Socket}}
`, "line 36: static_resources.clusters[0].transport_socket: cluster app can't be executed: "},
	{"a log in a directory that is missing", "path: /dev/null", "path: none/access.log", "line 18: " + chain0 + ".filters[0]: access_log[f]: "},
	{"two listeners of one address", "  clusters:\n", "  - {name: other, address: {socket_address: {address: 127.0.0.1, port_value: PORT}}, filter_chains: [{filters: [{name: tcp, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: app}}]}]}\n  clusters:\n", "line 34: static_resources.listeners[1].address: listener other: address 127.0.0.1:PORT is that of listener edge"},
	{"two listeners of one name", "  clusters:\n", "  - {name: edge, address: {socket_address: {address: 127.0.0.1, port_value: 1}}, filter_chains: [{filters: []}]}\n  clusters:\n", `static_resources.listeners[1]: name "edge" is used twice`},
	{"a control plane that is no cluster", "static_resources:\n", "dynamic_resources: {cds_config: {ads: {}}, ads_config: {api_type: DELTA_GRPC, grpc_services: [{envoy_grpc: {cluster_name: nowhere}}]}}\nstatic_resources:\n", `there is no static cluster "nowhere"`},
	{"a secret from a control plane that is not there", "[{name: cert}]", "[{name: cert, sds_config: {ads: {}}}]", `line 6: static_resources.listeners[0]: it needs the envoy.extensions.transport_sockets.tls.v3.Secret "cert" over ads, but there is no dynamic_resources.ads_config`},
	{"a control plane, but no identity", "node: {id: n, cluster: c}\n", "dynamic_resources: {cds_config: {ads: {}}, ads_config: {api_type: DELTA_GRPC, grpc_services: [{envoy_grpc: {cluster_name: app}}]}}\n", "node.id: is empty"},
}

// badFile writes a bootstrap in a new directory, which becomes the current one.
func badFile(t *testing.T, from, to string) (file string, port int) {
	t.Helper()
	dir := t.TempDir()
	t.Chdir(dir)
	if err := examples.WriteCertificates("certs"); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a, _ := l.Addr().(*net.TCPAddr)
	_ = l.Close()
	doc := fmt.Sprintf(good, a.Port)
	if strings.Count(doc, from) != 1 {
		t.Fatalf("%q is there %d times", from, strings.Count(doc, from))
	}
	if err := os.WriteFile("edge.yaml", []byte(strings.Replace(doc, from, strings.ReplaceAll(to, "PORT", fmt.Sprint(a.Port)), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	return "edge.yaml", a.Port
}

func TestABadFileIsRefusedWithItsPlace(t *testing.T) {
	if len(startsBadly) != 23 {
		t.Fatalf("%d cases", len(startsBadly))
	}
	for _, c := range startsBadly {
		t.Run(c.name, func(t *testing.T) {
			file, port := badFile(t, c.from, c.to)
			want := strings.ReplaceAll(c.want, "PORT", fmt.Sprint(port))
			for _, args := range [][]string{{"config", "validate", file}, {"proxy", "-c", file}} {
				out, err := fairlead(t, args...)
				if err == nil || !strings.Contains(out, "fairlead: edge.yaml: ") || !strings.Contains(out, want) {
					t.Errorf("%v: want %q in:\n%s", args, want, out)
				}
			}
			if d, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
				_ = d.Close()
				t.Error("it listens")
			}
		})
	}
}

func TestAFileThatCannotBeReadIsNamed(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("dir", 0o700); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"none.yaml": "none.yaml: no such file", "dir": "dir: is a directory"} {
		for _, args := range [][]string{{"config", "validate", file}, {"proxy", "-c", file}} {
			if out, err := fairlead(t, args...); err == nil || !strings.Contains(out, want) {
				t.Errorf("%v: %s", args, out)
			}
		}
	}
}

func TestAPortInUseEndsTheStartAndNamesTheListener(t *testing.T) {
	for _, c := range []struct{ name, from, to, want string }{
		{"of a listener", "# SOCKET", "#", "listener edge: bind 127.0.0.1:%d: "},
		{"of the admin interface", "port_value: 0", "port_value: %d", "admin endpoint on 127.0.0.1:%d: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			a, _ := l.Addr().(*net.TCPAddr)
			file, port := badFile(t, c.from, strings.ReplaceAll(c.to, "%d", fmt.Sprint(a.Port)))
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			doc := string(b)
			if c.name == "of a listener" {
				doc = strings.Replace(doc, fmt.Sprint(port), fmt.Sprint(a.Port), 1)
			}
			if err := os.WriteFile(file, []byte(doc), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := fairlead(t, "proxy", "-c", file)
			if want := strings.ReplaceAll(c.want, "%d", fmt.Sprint(a.Port)); err == nil || !strings.Contains(out, want) || !strings.Contains(out, "address already in use") {
				t.Errorf("want %q in:\n%s", want, out)
			}
		})
	}
}

func TestAnExpiredCertificateIsNotedAndDoesNotStopTheRest(t *testing.T) {
	file, _ := badFile(t, "certs/shop.pem", "certs/old.pem")
	writeExpired(t, filepath.Join("certs", "old.pem"), filepath.Join("certs", "shop-key.pem"))
	out, err := fairlead(t, "config", "validate", file)
	if err != nil || !strings.Contains(out, "warning: listener edge: ") || !strings.Contains(out, "certificate cert expired at 2020-01-02T") {
		t.Errorf("%v\n%s", err, out)
	}
}

// writeExpired writes a certificate that was valid on one day of 2020, and its key.
func writeExpired(t *testing.T, chain, key string) {
	t.Helper()
	ca, err := identity.NewDevCA("example.com")
	if err != nil {
		t.Fatal(err)
	}
	day := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	crt, err := ca.Issue(identity.Leaf{DNSNames: []string{"shop.example.com"}, NotBefore: day, NotAfter: day.AddDate(0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(crt.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for file, b := range map[string][]byte{chain: identity.EncodeCertificates(crt.Certificate...), key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
