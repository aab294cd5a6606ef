package proxy_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/proxy"
)

// writePair stores a certificate and its key.
func writePair(t *testing.T, dir, name string, c *tls.Certificate) (cert, key string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	if err := os.WriteFile(cert, identity.EncodeCertificates(c.Certificate...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// The cluster of ads_config may be one with TLS: then that context holds for
// the control plane, too.
func TestTheControlPlaneIsReachedWithTheTLSOfItsCluster(t *testing.T) {
	dir := t.TempDir()
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	issue := func(l identity.Leaf) *tls.Certificate {
		c, err := ca.Issue(l)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	server := issue(identity.Leaf{DNSNames: []string{"cp.example"}})
	cert, key := writePair(t, dir, "client", issue(identity.Leaf{URIs: []string{"spiffe://cluster.local/ns/app/sa/edge"}}))
	roots := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(roots, ca.RootsPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 16)
	secured := xdstest.Options{GRPC: []grpc.ServerOption{grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{*server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Roots(), MinVersion: tls.VersionTLS13,
		VerifyConnection: func(cs tls.ConnectionState) error {
			seen <- cs.ServerName + " " + cs.PeerCertificates[0].URIs[0].String()
			return nil
		},
	}))}}
	cp, other := xdstest.New(t, secured), xdstest.New(t, secured)
	serve(t, cp, fmt.Sprintf(edgeRoutes, "direct_response: {status: 200, body: {inline_string: hello}}"))
	serve(t, cp, `- {"@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: app}`)
	doc := func(port int, cp *xdstest.Server, name string) string {
		socket := fmt.Sprintf(`transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: cp.example, common_tls_context: {
      tls_certificates: [{certificate_chain: {filename: %s}, private_key: {filename: %s}}],
      validation_context: {trusted_ca: {filename: %s}, match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: %s}}]}}}}, `, cert, key, roots, name)
		return strings.Replace(fmt.Sprintf(staticYAML, port, portOf(cp), ""), "{name: cp, ", "{name: cp, "+socket, 1)
	}
	port := freePort(t)
	startProxy(t, doc(port, cp, "cp.example"), nil)
	if s, body := request(t, port, "/"); s != 200 || body != "hello" {
		t.Errorf("%d %q", s, body)
	}
	if got := <-seen; got != "cp.example spiffe://cluster.local/ns/app/sa/edge" {
		t.Errorf("the control plane saw %q", got)
	}

	// A server with another name gets no request.
	var mu sync.Mutex
	var log strings.Builder
	p, err := proxy.FromBootstrap([]byte(doc(freePort(t), other, "other.example")), proxy.ProcessOptions{Registry: builtin.Registry(), Logger: slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return log.Write(b)
	}), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	said := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return strings.Contains(log.String(), "other.example") || strings.Contains(log.String(), "certificate")
	}
	go func() {
		for !said() && ctx.Err() == nil {
			time.Sleep(5 * time.Millisecond)
		}
		cancel()
	}()
	_ = p.Run(ctx)
	if n := len(other.Requests()); n != 0 {
		t.Errorf("%d requests went to a server that is not the one", n)
	}
	if !said() {
		mu.Lock()
		defer mu.Unlock()
		t.Errorf("the log does not say why: %s", log.String())
	}
}
