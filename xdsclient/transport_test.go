package xdsclient_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/xdsclient"
)

// lastErr waits until the client's last stream error contains want.
func lastErr(t *testing.T, c *xdsclient.Client, want string) {
	t.Helper()
	for end := time.Now().Add(wait); ; time.Sleep(2 * time.Millisecond) {
		err := c.Status().Err
		if err != nil && strings.Contains(err.Error(), want) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("last error %v, want %q", err, want)
		}
	}
}

func TestSpeaksTLSWithTheCurrentRootTokenAndCertificate(t *testing.T) {
	ca, err := identity.NewDevCA("td")
	if err != nil {
		t.Fatal(err)
	}
	other, err := identity.NewDevCA("td")
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
	dir := t.TempDir()
	root, token := filepath.Join(dir, "root"), filepath.Join(dir, "token")
	write := func(p string, b []byte) {
		t.Helper()
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		md, _ := metadata.FromIncomingContext(ss.Context())
		if got := strings.Join(md.Get("authorization"), ","); got != "Bearer good" {
			return status.Errorf(codes.Unauthenticated, "token %q", got)
		}
		if strings.Join(md.Get("clusterid"), ",") != "c1" {
			return status.Error(codes.Unauthenticated, "no cluster")
		}
		return next(srv, ss)
	}
	srv := xdstest.New(t, xdstest.Options{GRPC: []grpc.ServerOption{grpc.StreamInterceptor(check), grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{*issue(identity.Leaf{DNSNames: []string{"istiod.x"}})}, MinVersion: tls.VersionTLS12,
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Roots(),
	}))}})
	srv.SetBytes(xdstest.Cluster, "a", "", []byte("A"))
	write(root, other.RootsPEM())
	cert := issue(identity.Leaf{URIs: []string{"spiffe://td/ns/a/sa/b"}})
	views := make(chan *xdsclient.View, 10)
	c, err := xdsclient.New(xdsclient.Config{
		Target: srv.Addr(), Node: xdsclient.Node{ID: "n"}, OnView: func(v *xdsclient.View) { views <- v },
		Types:      []xdsclient.ResourceType{{TypeURL: xdstest.Cluster, Decode: decode, Wildcard: true}},
		MinBackoff: 5 * time.Millisecond, MaxBackoff: 20 * time.Millisecond,
		Transport: xdsclient.Transport{
			TokenFile: token, Metadata: map[string]string{"ClusterID": "c1"},
			TLS: &xdsclient.TLS{RootsFile: root, ServerName: "istiod.x", ClientCertificate: func() *tls.Certificate { return cert }},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	defer func() { cancel(); <-done }()

	lastErr(t, c, "unknown authority")
	write(root, ca.RootsPEM())
	lastErr(t, c, "is the istio-token volume mounted")
	write(token, []byte("bad\n"))
	lastErr(t, c, `token "Bearer bad"`)
	write(token, []byte(" good\n"))
	select {
	case v := <-views:
		if _, ok := v.Get(xdstest.Cluster, "a"); !ok {
			t.Error("no cluster in the view")
		}
	case <-time.NewTimer(wait).C:
		t.Fatalf("no view; status %+v", c.Status())
	}
}

func TestRefusesToSendATokenInTheClear(t *testing.T) {
	tr := xdsclient.Transport{TokenFile: "/t"}
	if _, err := xdsclient.Dial("10.0.0.1:15010", tr); err == nil {
		t.Error("plaintext TCP: no error")
	}
	conn, err := xdsclient.Dial("unix:///tmp/x", tr)
	if err != nil {
		t.Fatalf("Unix socket: %v", err)
	}
	_ = conn.Close()
}

// relay forwards TCP and can stop forwarding without closing anything.
type relay struct {
	l      net.Listener
	target string
	mu     sync.Mutex
	stuck  bool
	conns  []net.Conn
	wg     sync.WaitGroup
}

func newRelay(t *testing.T, target string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{l: l, target: target}
	r.wg.Go(func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", target)
			if err != nil {
				_ = a.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, a, b)
			r.mu.Unlock()
			r.wg.Go(func() { r.copy(a, b) })
			r.wg.Go(func() { r.copy(b, a) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		r.mu.Lock()
		for _, c := range r.conns {
			_ = c.Close()
		}
		r.mu.Unlock()
		r.wg.Wait()
	})
	return r
}

func (r *relay) copy(dst, src net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				_ = dst.Close()
			}
			return
		}
		r.mu.Lock()
		stuck := r.stuck
		r.mu.Unlock()
		if stuck {
			continue // swallow: the peer has gone without a word
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (r *relay) set(stuck bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stuck = stuck
}

func TestNoticesAHalfOpenConnection(t *testing.T) {
	if testing.Short() {
		t.Skip("gRPC's shortest keepalive is 10 s")
	}
	t.Parallel()
	var r *relay
	h := start(t, map[string]string{"cds/a": "A", "lds/l": "L"}, func(c *xdsclient.Config) {
		r = newRelay(t, c.Target)
		c.Target = r.l.Addr().String()
		c.Transport.KeepaliveTime, c.Transport.KeepaliveTimeout = 10*time.Second, time.Second
		c.Transport.ConnectTimeout = time.Second
	})
	h.wantView("cds/a=A lds/l=L")
	r.set(true)
	begin := time.Now()
	for h.client.Status().State == xdsclient.StateConnected {
		if time.Since(begin) > 40*time.Second {
			t.Fatal("still connected after 40 s")
		}
		time.Sleep(20 * time.Millisecond)
	}
	h.srv.SetBytes(xdstest.Cluster, "a", "", []byte("A2"))
	r.set(false)
	h.wantView("cds/a=A2 lds/l=L")
}
