package proxy_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// crl is a list of p's CA that revokes certs.
func (p *policed) crl(number int64, certs ...*tls.Certificate) string {
	p.t.Helper()
	l := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	for _, c := range certs {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.Leaf.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := p.ca.SignCRL(l)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

// trust makes the secret "trust", by which peers are verified.
func (p *policed) trust(crl string) {
	p.res.Secrets["trust"] = decode[*xdsresource.Secret](p.t, xdsresource.SecretType, fmt.Sprintf(
		`{name: trust, validation_context: {trusted_ca: {inline_string: %q}, crl: {inline_string: %q}}}`, p.ca.RootsPEM(), crl))
}

const byTrust = `validation_context_sds_secret_config: {name: trust, sds_config: {ads: {}}}`

// issue makes a certificate for id.
func (p *policed) issue(id string, until time.Duration) *tls.Certificate {
	p.t.Helper()
	c, err := p.ca.Issue(identity.Leaf{URIs: []string{id}, NotAfter: time.Now().Add(until)})
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// connect connects with cert and opens a tunnel.
func (p *policed) connects(cert *tls.Certificate) (transport.ClientConn, netio.Conn) {
	p.t.Helper()
	cl, err := hboneClient(p.t, cert, p.port)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { cl.Close(netio.ErrClosed) })
	c := openStream(p.t, cl, "10.1.2.3:9000")
	p.uses(c, "at first")
	return cl, c
}

// letsIn says whether a new connection with cert carries anything.
func (p *policed) letsIn(cert *tls.Certificate) bool {
	cl, err := hboneClient(p.t, cert, p.port)
	if err != nil {
		return false
	}
	defer cl.Close(netio.ErrClosed)
	c := tryStream(cl, "10.1.2.3:9000")
	return c != nil && echoed(c, "x") == nil
}

// A list that revokes the certificate of a client ends its connections, those
// with tunnels and idle ones, and nobody else's.
func TestARevokedClientLosesItsConnections(t *testing.T) {
	for _, how := range []string{"a secret of the control plane", "a file", "the listener's own"} {
		t.Run(how, func(t *testing.T) {
			p := newPoliced(t)
			bad, good := p.issue(otherID, time.Hour), p.issue(clientID, time.Hour)
			number := int64(0)
			file := filepath.Join(t.TempDir(), "crl.pem")
			revoke := func(certs ...*tls.Certificate) {
				number++
				list := p.crl(number, certs...)
				switch how {
				case "a file":
					if err := os.WriteFile(file+".new", []byte(list), 0o600); err != nil {
						t.Fatal(err)
					}
					if err := os.Rename(file+".new", file); err != nil {
						t.Fatal(err)
					}
				case "the listener's own":
					p.validation = fmt.Sprintf(`validation_context: {trusted_ca: {inline_string: %q}, crl: {inline_string: %q}}`, p.ca.RootsPEM(), list)
					p.apply("", "")
				default:
					p.trust(list)
					p.apply("", "")
				}
			}
			p.validation = byTrust
			if how == "a file" {
				p.validation = fmt.Sprintf(`validation_context: {trusted_ca: {inline_string: %q}, crl: {filename: %q}}`, p.ca.RootsPEM(), file)
			}
			revoke()
			if how == "a file" {
				p.apply("", "")
			}
			_, goes := p.connects(bad)
			idle, c := p.connects(bad)
			_ = c.Close()
			_, stays := p.connects(good)

			revoke(p.issue(otherID, time.Hour))
			p.uses(goes, "after a list that revokes another certificate")
			revoke(bad)
			eventually(t, "the end of the tunnel", func() bool { return echoed(goes, "x") != nil })
			select {
			case <-idle.Done():
			case <-time.After(10 * time.Second):
				t.Error("a connection without tunnels is still open")
			}
			p.uses(stays, "after the other's was revoked")
			if p.letsIn(bad) || !p.letsIn(good) {
				t.Error("new connections are judged otherwise")
			}
			ev := p.event("connection revoked")
			if src, _ := ev["source"].(map[string]any); ev["filter"] != "tls" || ev["reason"] != "certificate_revoked" || src["identity"] != otherID || !strings.Contains(fmt.Sprint(ev["clause"]), fmt.Sprintf("%x", bad.Leaf.SerialNumber)) {
				t.Errorf("%v", ev)
			}
			const series = `fairlead_connections_revoked_total{reason="certificate_revoked"}`
			eventually(t, "all counted", func() bool {
				n := p.counted(series) // an idle one may have drained with its chain
				return n == "2" || how == "the listener's own" && n == "1"
			})
		})
	}
}

// Clients with a revoked certificate connect as the list arrives: none stays.
func TestNoRevokedClientSlipsThroughANewList(t *testing.T) {
	p := newPoliced(t)
	p.validation = byTrust
	bad := p.issue(otherID, time.Hour)
	for round := range 3 {
		p.trust(p.crl(int64(2 * round)))
		p.apply("", "")
		var opened atomic.Int32
		var wg sync.WaitGroup
		stop := make(chan struct{})
		conns := make(chan transport.ClientConn, 10000)
		for range 4 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if cl, err := hboneClient(t, bad, p.port); err == nil {
						opened.Add(1)
						conns <- cl
					}
				}
			})
		}
		eventually(t, "some connections", func() bool { return opened.Load() > 5 })
		p.trust(p.crl(int64(2*round+1), bad))
		p.apply("", "")
		time.Sleep(20 * time.Millisecond)
		close(stop)
		wg.Wait()
		close(conns)
		for cl := range conns {
			select {
			case <-cl.Done():
			case <-time.After(10 * time.Second):
				t.Fatalf("round %d: a connection is still open", round)
			}
		}
	}
}

// A list that revokes the certificate of an upstream ends the connections to it:
// pooled ones with requests and without, and those of tcp_proxy.
func TestARevokedUpstreamLosesItsConnections(t *testing.T) {
	p := newPoliced(t)
	bad, good := p.issue("spiffe://cluster.local/ns/app/sa/bad", time.Hour), p.issue("spiffe://cluster.local/ns/app/sa/good", time.Hour)
	p.trust(p.crl(1))
	p.validation = byTrust
	var open [2]atomic.Int32 // connections to each upstream
	for i, cert := range []*tls.Certificate{bad, good} {
		o := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "begun")
			_ = http.NewResponseController(w).Flush()
			if r.URL.Path == "/long" {
				<-r.Context().Done()
			}
		}))
		o.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS12}
		o.Config.ConnState = func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew:
				open[i].Add(1)
			case http.StateClosed, http.StateHijacked:
				open[i].Add(-1)
			case http.StateActive, http.StateIdle:
			}
		}
		o.StartTLS()
		t.Cleanup(o.Close)
		name := []string{"bad", "good"}[i]
		p.cluster(name, fmt.Sprintf(`{socket_address: {address: 127.0.0.1, port_value: %s}}`, urlPort(o.URL)), `transport_socket: {name: tls, typed_config: {
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {`+byTrust+`}}}`)
	}
	edge, tcp := freePort(t), freePort(t)
	p.res.Listeners["edge"] = decode[*xdsresource.Listener](t, xdsresource.ListenerType, fmt.Sprintf(`{name: edge, address: {socket_address: {address: 127.0.0.1, port_value: %d}}, filter_chains: [%s]}`, edge,
		chainYAML("c", "{}", "", `route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /good}, route: {cluster: good, prefix_rewrite: /}}, {match: {prefix: /}, route: {cluster: bad, timeout: 0s}}]}]}`)))
	p.res.Listeners["tcp"] = decode[*xdsresource.Listener](t, xdsresource.ListenerType, fmt.Sprintf(`{name: tcp, address: {socket_address: {address: 127.0.0.1, port_value: %d}}, filter_chains: [{filters: [
    {name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: bad}}]}]}`, tcp))
	p.apply("", "")

	ask := func(port int, path string) *http.Response {
		c := dial(t, port)
		t.Cleanup(func() { _ = c.Close() })
		if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nhost: a\r\n\r\n", path); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(c.br, nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %v %v", path, resp, err)
		}
		return resp
	}
	_, _ = io.ReadAll(ask(edge, "/good").Body)
	long, relayed := ask(edge, "/long"), ask(tcp, "/long")
	idle := ask(edge, "/")
	_, _ = io.ReadAll(idle.Body)
	if n, m := open[0].Load(), open[1].Load(); n != 3 || m != 1 {
		t.Fatalf("%d and %d connections", n, m)
	}
	p.trust(p.crl(2, bad))
	p.apply("", "")
	for name, r := range map[string]*http.Response{"pooled": long, "of tcp_proxy": relayed} {
		if _, err := io.ReadAll(r.Body); err == nil {
			t.Errorf("%s: the response came to an end", name)
		}
	}
	eventually(t, "no connection to who was revoked, one to the other", func() bool { return open[0].Load() == 0 && open[1].Load() == 1 })
	if status, _ := request(t, edge, "/"); status != 503 {
		t.Errorf("a new request: %d", status)
	}
	_, _ = io.ReadAll(ask(edge, "/good").Body)
	if n := open[1].Load(); n != 1 {
		t.Errorf("the other has %d connections", n)
	}
	if v := p.counted("fairlead_upstream_connections_revoked_total"); v != "3" {
		t.Errorf("%q are counted", v)
	}
}

// A certificate that expires while its connection is open ends nothing, as in
// ztunnel; nobody connects with it any more.
func TestACertificateThatExpiresKeepsItsTunnels(t *testing.T) {
	p := newPoliced(t)
	p.validation = byTrust
	p.trust(p.crl(1))
	p.apply(admitAll, "")
	for life := 2 * time.Second; ; life *= 2 { // a busy machine needs more for a handshake
		cert := p.issue(clientID, life)
		cl, err := hboneClient(t, cert, p.port)
		if err != nil && life < 30*time.Second {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cl.Close(netio.ErrClosed) })
		c := openStream(t, cl, "10.1.2.3:9000")
		p.uses(c, "at first")
		time.Sleep(time.Until(cert.Leaf.NotAfter.Add(1100 * time.Millisecond)))
		p.uses(c, "after it expired")
		if p.letsIn(cert) {
			t.Error("a new connection with it is let in")
		}
		p.trust(p.crl(2, p.issue(clientID, time.Hour)))
		p.apply(admitClient, "")
		p.uses(c, "after a list and a policy that don't concern it")
		p.uses(openStream(t, cl, "10.1.2.3:9000"), "a further tunnel on the connection")
		p.trust(p.crl(3, cert))
		p.apply(admitClient, "")
		p.ends("the tunnel of who expired and was revoked", c)
		return
	}
}
