package cluster

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/hbone"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/transport/h2"
	"github.com/fairlead-mesh/fairlead/xdsclient"
)

// environment is what run.sh prepared; without it there is nothing to test.
func environment(t *testing.T) (run, fairlead string) {
	t.Helper()
	run, fairlead = os.Getenv("RUN"), os.Getenv("FAIRLEAD")
	if run == "" || fairlead == "" {
		t.Skip("needs a cluster: start it with run.sh")
	}
	return run, fairlead
}

// webIdentity asks istiod for the certificate of the pods' service account, as
// the ztunnel of their node does.
func webIdentity(t *testing.T, run string) identity.Material {
	t.Helper()
	conn, err := xdsclient.Dial("istiod.istio-system.svc:15012", xdsclient.Transport{
		TLS: &xdsclient.TLS{RootsFile: run + "/k/root.pem"}, TokenFile: run + "/k/zt.jwt", Metadata: map[string]string{"clusterid": "Kubernetes"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	id, err := identity.ParseID("spiffe://cluster.local/ns/app/sa/web")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	m, err := identity.NewCA(identity.CAConfig{Conn: conn, ID: id, Impersonate: true}).Fetch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// pod serves HBONE for one pod address: every tunnel ends at an application
// that answers with name and path.
func pod(t *testing.T, addr, name string, m identity.Material) {
	t.Helper()
	l, err := netio.Listen(netip.MustParseAddrPort(addr+":15008"), netio.ListenOptions{ReusePort: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	app := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s", name, r.URL.Path, r.Header.Get("x-forwarded-proto"))
	})}
	al, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = app.Serve(al) }()
	t.Cleanup(func() { _ = app.Close() })
	target := netip.MustParseAddrPort(al.Addr().String())
	cfg := &tls.Config{
		Certificates: []tls.Certificate{*m.Certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: m.Roots,
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				tc, err := netio.ServerTLS(ctx, c, cfg)
				if err != nil {
					t.Log("pod handshake:", err)
					return
				}
				s := hbone.NewServer(tc, &hbone.ServerConfig{}, func(r *hbone.Request) {
					up, err := netio.Dial(context.Background(), target, netio.DialOptions{})
					if err != nil {
						_ = r.Reject(503)
						return
					}
					down, err := r.Accept()
					if err != nil {
						up.Reset()
						return
					}
					_, _, _ = netio.Join(down, up, netio.JoinOptions{})
				})
				s.Serve(func() {})
			}()
		}
	}()
}

// client opens a tunnel to the waypoint for the address of a service.
func client(t *testing.T, m identity.Material, authority string) (netio.Conn, *bufio.Reader) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := netio.Dial(ctx, netip.MustParseAddrPort("10.98.0.20:15008"), netio.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tc, err := netio.ClientTLS(ctx, c, &tls.Config{
		Certificates: []tls.Certificate{*m.Certificate}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, //nolint:gosec // SPIFFE identities carry no DNS name; VerifyConnection checks the chain
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: m.Roots})
			return err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	cl, err := h2.NewClient(tc, &transport.ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close(netio.ErrClosed) })
	st, err := cl.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	var h message.Header
	h.Add(message.Method, "CONNECT")
	h.Add(message.Authority, authority)
	if err := st.WriteHeaders(&h, false); err != nil {
		t.Fatal(err)
	}
	_ = st.Flush()
	if status, _, err := st.ReadHeaders(&h); err != nil || status != 200 {
		t.Fatalf("CONNECT: %d, %v", status, err)
	}
	tun := st.Tunnel()
	return tun, bufio.NewReader(tun)
}

func get(t *testing.T, c netio.Conn, br *bufio.Reader, path string) (int, string) {
	t.Helper()
	if _, err := c.Write([]byte("GET " + path + " HTTP/1.1\r\nhost: web\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func kubectl(t *testing.T, run string, stdin string, args ...string) string {
	t.Helper()
	home := os.Getenv("CLUSTER_HOME")
	if home == "" {
		home = "/var/tmp/cluster"
	}
	cmd := exec.CommandContext(context.Background(), home+"/bin/kubectl", append([]string{"--kubeconfig", run + "/k/certs/kubeconfig"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

const movedRoute = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: app}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /moved}}]
    backendRefs: [{name: web-v2, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /v2}}]
    backendRefs: [{name: web-v2, port: 80}]
  - backendRefs: [{name: web, port: 80}]
`

func TestWaypointUnderARealIstiod(t *testing.T) {
	run, fairlead := environment(t)
	var log bytes.Buffer
	cmd := exec.CommandContext(context.Background(), fairlead, "proxy", "waypoint", "--domain", "app.svc.cluster.local", "--serviceCluster", "waypoint.app", "--proxyLogLevel", "warning")
	cmd.Env = append(os.Environ(),
		"ISTIO_META_SERVICE_ACCOUNT=waypoint", "ISTIO_META_NODE_NAME=node-1", "PILOT_CERT_PROVIDER=istiod", "CA_ADDR=istiod.istio-system.svc:15012",
		"POD_NAME=waypoint-0", "POD_NAMESPACE=app", "INSTANCE_IP=10.98.0.20", "SERVICE_ACCOUNT=waypoint", "ISTIO_META_CLUSTER_ID=Kubernetes",
		"ISTIO_META_WORKLOAD_NAME=waypoint", "TRUST_DOMAIN=cluster.local", "ISTIO_META_ENABLE_HBONE=true",
		`PROXY_CONFIG={"discoveryAddress":"istiod.istio-system.svc:15012"}`)
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Error("the proxy did not end in order:", err)
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	start := time.Now()
	await(t, time.Minute, "readiness", func() bool {
		resp, err := http.Get("http://127.0.0.1:15021/healthz/ready")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == 200
	})
	t.Log("ready after", time.Since(start))
	m := webIdentity(t, run)
	pod(t, "10.98.0.11", "v1", m)
	pod(t, "10.98.0.12", "v2", m)
	vip := kubectl(t, run, "", "-n", "app", "get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}")
	c, br := client(t, m, vip+":80")
	if status, body := get(t, c, br, "/v2/x"); status != 200 || body != "v2 /v2/x http" {
		t.Fatalf("/v2/x: %d %q", status, body)
	}
	seen := map[string]bool{}
	for range 40 {
		status, body := get(t, c, br, "/")
		if status != 200 {
			t.Fatalf("/: %d %q", status, body)
		}
		seen[body[:2]] = true
	}
	if !seen["v1"] || !seen["v2"] {
		t.Errorf("both pods should serve, got %v", seen)
	}
	changed := time.Now()
	kubectl(t, run, movedRoute, "apply", "--server-side", "--force-conflicts", "-f", "-")
	failed := 0
	await(t, time.Minute, "the new route", func() bool {
		// A replaced filter chain closes its connections after their next
		// answer, so each round opens a tunnel.
		c, br := client(t, m, vip+":80")
		defer c.Close()
		for range 8 {
			status, body := get(t, c, br, "/moved")
			if status != 200 {
				failed++
			}
			if !strings.HasPrefix(body, "v2") {
				return false
			}
		}
		return true
	})
	if failed > 0 {
		t.Errorf("%d requests failed over the change", failed)
	}
	t.Log("the route change was live after", time.Since(changed))
	if status, body := get(t, c, br, "/"); status != 200 {
		t.Errorf("the connection from before the change: %d %q", status, body)
	}
}

func await(t *testing.T, d time.Duration, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatal("waited in vain for " + what)
}
