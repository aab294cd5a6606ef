package abuse

import (
	"bufio"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// tlsBootstrap has port %[1]d speak HTTP/1.1 over mutual TLS, and port %[2]d, for
// the canary, HTTP/1.1. Certificates are in folder %[3]s.
const tlsBootstrap = `
static_resources:
  listeners:
  - name: tls
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains:
    - transport_socket_connect_timeout: 1s
      transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext,
        require_client_certificate: true, common_tls_context: {
          tls_certificates: [{certificate_chain: {filename: %[3]s/cert.pem}, private_key: {filename: %[3]s/key.pem}}],
          validation_context: {trusted_ca: {filename: %[3]s/root.pem}}}}}
      filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
        stat_prefix: tls, codec_type: HTTP1, common_http_protocol_options: {idle_timeout: 60s}, request_headers_timeout: 2s, route_config: &routes {
          virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: ok}}}]}]},
        http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]
  - name: h1
    address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: h1, codec_type: HTTP1, route_config: *routes,
      http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
`

// authority signs whatever it is given.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var serials atomic.Int64

// issue signs a certificate for a key; edit may change it.
func (a *authority) issue(t *testing.T, pub crypto.PublicKey, edit func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serials.Add(1)), Subject: pkix.Name{CommonName: fmt.Sprint("certificate ", serials.Add(1))},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
	}
	edit(c)
	parent := a.cert
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, a.key)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// below makes another authority, signed by a; without a a root.
func below(t *testing.T, a *authority, edit func(*x509.Certificate)) *authority {
	t.Helper()
	next := &authority{key: newKey(t)}
	if a == nil {
		a = next
	}
	next.cert = a.issue(t, next.key.Public(), func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign
		if edit != nil {
			edit(c)
		}
	})
	return next
}

// workload edits a certificate to be a workload's.
func workload(c *x509.Certificate) {
	c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	c.URIs = []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/app/sa/peer"}}
}

// leaf is a workload's certificate, presented with the authorities between it and
// the root, nearest first.
func (a *authority) leaf(t *testing.T, edit func(*x509.Certificate), between ...*authority) tls.Certificate {
	t.Helper()
	k := newKey(t)
	c := a.issue(t, k.Public(), func(c *x509.Certificate) {
		workload(c)
		if edit != nil {
			edit(c)
		}
	})
	out := tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: k}
	for _, b := range between {
		out.Certificate = append(out.Certificate, b.cert.Raw)
	}
	return out
}

// tlsVictim is a victim that speaks mutual TLS at port h2; handshakes are given a
// second.
type tlsVictim struct {
	*victim
	root *authority
	good tls.Certificate
	open *asker // a connection from before
}

// credentials makes a root and a certificate of it, and a folder with both.
func credentials(t *testing.T) (dir string, root *authority, good tls.Certificate) {
	t.Helper()
	dir, root = t.TempDir(), below(t, nil, nil)
	good = root.leaf(t, nil)
	key, err := x509.MarshalPKCS8PrivateKey(good.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: good.Certificate[0]}, "key.pem": {Type: "PRIVATE KEY", Bytes: key},
		"root.pem": {Type: "CERTIFICATE", Bytes: root.cert.Raw},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, root, good
}

func newTLSVictim(t *testing.T) *tlsVictim {
	t.Helper()
	dir, root, good := credentials(t)
	v := &tlsVictim{victim: &victim{t: t, h2: running.FreePort(t), h1: running.FreePort(t)}, root: root, good: good}
	v.pid = running.Start(t, fmt.Sprintf(tlsBootstrap, v.h2, v.h1, dir), v.h2)
	v.canary()
	c, err := v.dial(v.good)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	v.open = &asker{c, bufio.NewReader(c)}
	v.wellServed("at first")
	return v
}

func clientConfig(c tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, //nolint:gosec // the client attacks
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil },
	}
}

// dial does a handshake within five seconds. In TLS 1.3 the server has not said
// yet what it thinks of the certificate.
func (v *tlsVictim) dial(cert tls.Certificate) (*tls.Conn, error) {
	c, err := net.Dial("tcp", running.Address(v.h2))
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	tc := tls.Client(c, clientConfig(cert))
	if err := tc.Handshake(); err != nil {
		_ = c.Close()
		return nil, err
	}
	return tc, nil
}

// admitted tries a certificate.
func (v *tlsVictim) admitted(cert tls.Certificate) bool {
	c, err := v.dial(cert)
	if err != nil {
		return false
	}
	defer c.Close()
	return (&asker{c, bufio.NewReader(c)}).ask("/", 20*time.Second) == http.StatusOK
}

// wellServed fails unless the connection from before is served, and a new one.
func (v *tlsVictim) wellServed(when string) {
	v.t.Helper()
	if s := v.open.ask("/", 20*time.Second); s != http.StatusOK {
		v.t.Errorf("%s the open connection got %d", when, s)
	}
	if !v.admitted(v.good) {
		v.t.Errorf("%s a good certificate is refused", when)
	}
}

// unharmed fails if the canary lost a request since it had lost bad.
func (v *tlsVictim) unharmed(bad int64) {
	v.t.Helper()
	if n := v.canaryBad.Load() - bad; n > 0 {
		v.t.Errorf("the canary lost %d requests", n)
	}
	if v.canaryOK.Load() == 0 {
		v.t.Error("the canary was never answered")
	}
}

// clientHello is a whole one.
func clientHello(t *testing.T) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go func() { _ = tls.Client(a, &tls.Config{InsecureSkipVerify: true}).Handshake() }() //nolint:gosec // it only begins
	head := make([]byte, 5)
	if _, err := io.ReadFull(b, head); err != nil {
		t.Fatal(err)
	}
	rest := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(b, rest); err != nil {
		t.Fatal(err)
	}
	return append(head, rest...)
}

// Connections that send nothing, half a ClientHello, or one and no more, end when
// their time is over and hold little until then.
func TestHalfOpenHandshakesTimeOut(t *testing.T) {
	v := newTLSVictim(t)
	const each, perConn = 150, 60 << 10
	hello := clientHello(t)
	bad := v.canaryBad.Load()
	_, before := v.usage()
	var wg sync.WaitGroup
	var late, early, conns atomic.Int64
	for _, first := range [][]byte{nil, hello[:len(hello)/2], hello} {
		for range each {
			began := time.Now()
			c, err := net.Dial("tcp", running.Address(v.h2))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conns.Add(1)
			if _, err := c.Write(first); err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				_ = c.SetReadDeadline(began.Add(40 * time.Second))
				_, _ = io.Copy(io.Discard, c)
				switch d := time.Since(began); {
				case d > 30*time.Second:
					late.Add(1)
				case d < 500*time.Millisecond:
					early.Add(1)
				}
			})
		}
	}
	_, held := v.usage()
	v.wellServed("among half-open handshakes")
	wg.Wait()
	t.Logf("%d half-open handshakes: %+.1f MiB", conns.Load(), float64(held-before)/(1<<20))
	if n := late.Load(); n > 0 {
		t.Errorf("%d of %d were open after 30 s, of 1 s that they are given", n, conns.Load())
	}
	if n := early.Load(); n > 0 {
		t.Errorf("%d of %d ended before their time", n, conns.Load())
	}
	if held-before > conns.Load()*perConn {
		t.Errorf("memory grew by %d KiB, want at most %d a connection", (held-before)>>10, perConn>>10)
	}
	v.wellServed("afterwards")
	v.unharmed(bad)
}

// Four clients do nothing but whole handshakes with certificates, for two
// seconds: an open connection is served all the time.
func TestAFloodOfHandshakesLeavesOpenConnectionsAlone(t *testing.T) {
	v := newTLSVictim(t)
	bad := v.canaryBad.Load()
	_, before := v.usage()
	var wg sync.WaitGroup
	var done, failed atomic.Int64
	least, most := time.Now().Add(2*time.Second), time.Now().Add(time.Minute) // a busy machine needs more
	goesOn := func() bool { return time.Now().Before(least) || done.Load() < 100 && time.Now().Before(most) }
	for range 4 {
		wg.Go(func() {
			for goesOn() {
				c, err := v.dial(v.good)
				if err != nil {
					failed.Add(1)
					continue
				}
				done.Add(1)
				_ = c.Close()
			}
		})
	}
	var took []time.Duration
	for goesOn() {
		began := time.Now()
		if s := v.open.ask("/", 20*time.Second); s != http.StatusOK {
			t.Fatalf("an open connection got %d", s)
		}
		took = append(took, time.Since(began))
		time.Sleep(5 * time.Millisecond)
	}
	wg.Wait()
	_, after := v.usage()
	slices.Sort(took)
	p99 := took[len(took)*99/100]
	t.Logf("%d handshakes, %d failed; the open connection's p99 is %v; %+.1f MiB", done.Load(), failed.Load(), p99.Round(100*time.Microsecond), float64(after-before)/(1<<20))
	if done.Load() < 100 || failed.Load() > 0 {
		t.Errorf("%d handshakes, %d failed", done.Load(), failed.Load())
	}
	if p99 > 3*time.Second { // on processors that the attackers use as well
		t.Errorf("the open connection's p99 is %v", p99)
	}
	if after-before > maxRSS {
		t.Errorf("memory grew by %d MiB", (after-before)>>20)
	}
	v.wellServed("afterwards")
	v.unharmed(bad)
}
