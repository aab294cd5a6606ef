package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy"
)

var waypointID = identity.ID{TrustDomain: "cluster.local", Namespace: "app", ServiceAccount: "waypoint"}

const clientID = "spiffe://cluster.local/ns/app/sa/client"

// devCA returns a CA and the waypoint's identity from it.
func devCA(t *testing.T) (*identity.DevCA, *identity.Static) {
	t.Helper()
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	src, err := ca.Source(waypointID)
	if err != nil {
		t.Fatal(err)
	}
	return ca, src
}

// TestTheEndWaitsForRequestsAndTunnels is SIGTERM: what is open goes on, its
// clients are told, and nothing new is accepted.
func TestTheEndWaitsForRequestsAndTunnels(t *testing.T) {
	hold, asked := make(chan struct{}), make(chan struct{}, 1)
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/open/slow" {
			asked <- struct{}{}
			<-hold
		}
		_, _ = io.WriteString(w, "done")
	}))
	defer origin.Close()
	ca, src := devCA(t)
	port := freePort(t)
	ready := make(chan struct{})
	p, err := proxy.FromBootstrap(fmt.Appendf(nil, waypointYAML, port, origin.URL[strings.LastIndex(origin.URL, ":")+1:]), proxy.ProcessOptions{
		Registry: builtin.Registry(), Identity: src, DrainTime: 10 * time.Second, OnReady: func() { close(ready) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	<-ready

	c, cl := tunnel(t, ca, clientID, port, "10.1.2.3:9080")
	defer cl.Close(netio.ErrClosed)
	if _, err := io.WriteString(c, "GET /open/slow HTTP/1.1\r\nhost: reviews\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-asked
	idle := openStream(t, cl, "10.1.2.3:9080")
	cancel()
	within(t, "GOAWAY to the client of the tunnel", func() bool { return cl.Available() == 0 })
	within(t, "closing the port", func() bool {
		n, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = n.Close()
		}
		return err != nil
	})
	if err := p.Ready(); err == nil {
		t.Error("ready while it drains")
	}
	// An open tunnel can still begin a request; its answer ends the connection.
	if status, _ := get(t, idle, bufio.NewReader(idle), "/open"); status != 200 {
		t.Errorf("a request on an open tunnel got %d", status)
	}
	_ = idle.Close()
	select {
	case err := <-ended:
		t.Fatalf("ended with a request in flight: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(hold)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "done" || !resp.Close {
		t.Errorf("%q, %v, close=%v", b, err, resp.Close)
	}
	_ = resp.Body.Close()
	_ = c.Close()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("does not end after its last connection")
	}
}

// within waits until ok, and fails after 20 s.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// TestARotationKeepsOpenTunnels rotates each kind of identity source under a
// tunnel: it goes on, and who comes next sees the new certificate.
func TestARotationKeepsOpenTunnels(t *testing.T) {
	type source struct {
		identity.Source
		run    func(context.Context) error
		rotate func()
	}
	files := func(t *testing.T, ca *identity.DevCA) source {
		dir := t.TempDir()
		write := func() (string, string) {
			c, err := ca.Issue(identity.Leaf{URIs: []string{waypointID.String()}})
			if err != nil {
				t.Fatal(err)
			}
			return writePair(t, dir, "tls", c)
		}
		cert, key := write()
		roots := filepath.Join(dir, "ca.pem")
		if err := os.WriteFile(roots, ca.RootsPEM(), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := identity.NewFiles(cert, key, roots, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return source{f, f.Run, func() { write() }}
	}
	issued := func(t *testing.T, ca *identity.DevCA) source {
		r := identity.NewRotator(identity.RotatorConfig{Fetch: ca.Issuer(waypointID, time.Hour)})
		return source{r, r.Run, r.Renew}
	}
	for name, start := range map[string]func(*testing.T, *identity.DevCA) source{"files": files, "ca": issued} {
		t.Run(name, func(t *testing.T) {
			origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
			defer origin.Close()
			ca, _ := devCA(t)
			src := start(t, ca)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); _ = src.run(ctx) }()
			defer func() { cancel(); <-done }()
			within(t, "a first certificate", func() bool { return src.Certificate() != nil })
			port := freePort(t)
			startProxy(t, fmt.Sprintf(waypointYAML, port, origin.URL[strings.LastIndex(origin.URL, ":")+1:]), src)
			c, cl := tunnel(t, ca, clientID, port, "10.1.2.3:9080")
			defer cl.Close(netio.ErrClosed)
			br := bufio.NewReader(c)
			if status, _ := get(t, c, br, "/open"); status != 200 {
				t.Fatal(status)
			}
			before := serverSerial(t, ca, port)
			src.rotate()
			within(t, "the next certificate", func() bool { return serverSerial(t, ca, port) != before })
			if status, _ := get(t, c, br, "/open"); status != 200 {
				t.Errorf("the open tunnel got %d", status)
			}
			more := openStream(t, cl, "10.1.2.3:9080")
			if status, _ := get(t, more, bufio.NewReader(more), "/open"); status != 200 {
				t.Errorf("a new stream on the open connection got %d", status)
			}
			_, _ = more.Close(), c.Close()
		})
	}
}

// serverSerial is the serial number of the certificate served now.
func serverSerial(t *testing.T, ca *identity.DevCA, port int) string {
	t.Helper()
	cert, err := ca.Issue(identity.Leaf{URIs: []string{clientID}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port), &tls.Config{
		Certificates: []tls.Certificate{*cert}, InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
}
