package behaviour

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tlsBootstrap asks about requests, and on another port about connections, that
// come with a client certificate.
const tlsBootstrap = `
static_resources:
  listeners:
  - name: main
    address: {socket_address: {address: 127.0.0.1, port_value: {{.Port}}}}
    listener_filters: [{name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}]
    filter_chains:
    - transport_socket: &tls
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            tls_certificates: [{certificate_chain: {filename: DIR/server.pem}, private_key: {filename: DIR/server.key}}]
            validation_context: {trusted_ca: {filename: DIR/ca.pem}}
      filters:
      - name: connection
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.ext_authz.v3.ExtAuthz
          stat_prefix: main
          transport_api_version: V3
          grpc_service: {envoy_grpc: {cluster_name: authz}, timeout: 5s}
          include_peer_certificate: true
          include_tls_session: true
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: main
          http_filters:
          - name: request
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
              transport_api_version: V3
              grpc_service: {envoy_grpc: {cluster_name: authz}, timeout: 5s}
              include_peer_certificate: true
              include_tls_session: true
              allowed_headers: {patterns: [{exact: x-none}]}
          - name: router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 204}}]}]
  clusters:
  - name: authz
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: authz
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: {{.Authz}}}}}}]}]
`

// authority issues certificates into a directory.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (a *authority) issue(t *testing.T, name string, c *x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		a.cert, a.key, parent, signer = c, key, c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for ext, b := range map[string]*pem.Block{"pem": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(a.dir, name+"."+ext), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestQuestionsTellAboutTLS(t *testing.T) {
	proxies, err := chosenProxies()
	if err != nil {
		if testing.Short() {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	spiffe := func(path string) []*url.URL { return []*url.URL{{Scheme: "spiffe", Host: "test", Path: path}} }
	for _, p := range proxies {
		for _, c := range []struct{ name, principal string }{{"uri", "spiffe://test/client"}, {"dns", "client.test"}, {"subject", "CN=client,OU=x"}} {
			t.Run(p.Name+"/"+c.name, func(t *testing.T) {
				a := &authority{dir: t.TempDir()}
				a.issue(t, "ca", &x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
				a.issue(t, "server", &x509.Certificate{Subject: pkix.Name{CommonName: "server"}, DNSNames: []string{"a.test"}, URIs: spiffe("/server")})
				of := &x509.Certificate{Subject: pkix.Name{CommonName: "client", OrganizationalUnit: []string{"x"}}}
				switch c.name {
				case "uri":
					of.URIs, of.DNSNames = spiffe("/client"), []string{"client.test"}
				case "dns":
					of.DNSNames = []string{"client.test"}
				}
				client := a.issue(t, "client", of)
				in, err := p.Start(&Suite{Bootstrap: strings.ReplaceAll(tlsBootstrap, "DIR", a.dir)}, t.TempDir())
				if err != nil {
					t.Fatal(err)
				}
				defer in.Stop()
				rec := in.origins.begin([2][]Answer{}, nil)
				conn, err := tls.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", in.places.Port), &tls.Config{Certificates: []tls.Certificate{client}, ServerName: "a.test", InsecureSkipVerify: true})
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil || resp.StatusCode != 204 {
					t.Fatalf("%+v %v", resp, err)
				}
				certificate, err := os.ReadFile(filepath.Join(a.dir, "client.pem"))
				if err != nil {
					t.Fatal(err)
				}
				encoded := strings.NewReplacer("\n", "%0A", " ", "%20", "+", "%2B", "/", "%2F", "=", "%3D").Replace(string(certificate))
				if len(rec.asked) != 2 {
					t.Fatalf("asked %d times", len(rec.asked))
				}
				for i, q := range rec.asked {
					s, d := q.GetAttributes().GetSource(), q.GetAttributes().GetDestination()
					if s.GetPrincipal() != c.principal || d.GetPrincipal() != "spiffe://test/server" {
						t.Errorf("question %d: principals %q and %q, want %q", i, s.GetPrincipal(), d.GetPrincipal(), c.principal)
					}
					if s.GetCertificate() != encoded || d.GetCertificate() != "" {
						t.Errorf("question %d: certificates %q and %q, want %q", i, s.GetCertificate(), d.GetCertificate(), encoded)
					}
					if sni := q.GetAttributes().GetTlsSession().GetSni(); sni != "a.test" {
						t.Errorf("question %d: SNI %q", i, sni)
					}
				}
			})
		}
	}
}
