package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	securityv1alpha1pb "istio.io/api/security/v1alpha1"

	"github.com/fairlead-mesh/fairlead/internal/identity"
)

// ca is istiod's certificate service: it wants a token and the cluster's ID.
type ca struct {
	securityv1alpha1pb.UnimplementedIstioCertificateServiceServer
	dev   *identity.DevCA
	calls atomic.Int32
}

func (c *ca) CreateCertificate(ctx context.Context, r *securityv1alpha1pb.IstioCertificateRequest) (*securityv1alpha1pb.IstioCertificateResponse, error) {
	c.calls.Add(1)
	md, _ := metadata.FromIncomingContext(ctx)
	if strings.Join(md.Get("authorization"), "") != "Bearer second" || strings.Join(md.Get("clusterid"), "") != "Kubernetes" {
		return nil, status.Errorf(codes.Unauthenticated, "got %v", md.Get("authorization"))
	}
	chain, err := c.dev.SignCSR([]byte(r.GetCsr()), "spiffe://cluster.local/ns/app/sa/waypoint", time.Duration(r.GetValidityDuration())*time.Second)
	return &securityv1alpha1pb.IstioCertificateResponse{CertChain: chain}, err
}

func TestGetsACertificateFromIstiodOverTLSWithTheCurrentToken(t *testing.T) {
	dev, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := dev.Issue(identity.Leaf{DNSNames: []string{"istiod.istio-system.svc"}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	svc := &ca{dev: dev}
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS12})))
	securityv1alpha1pb.RegisterIstioCertificateServiceServer(srv, svc)
	go func() { _ = srv.Serve(l) }()
	defer srv.Stop()

	dir := t.TempDir()
	root, token := filepath.Join(dir, "root.pem"), filepath.Join(dir, "token")
	write := func(p string, b []byte) {
		t.Helper()
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	other, _ := identity.NewDevCA("x")
	write(root, other.RootsPEM())
	write(token, []byte("first\n"))

	c := mustParse(t, input("waypoint", podEnv(), podFiles))
	c.CA.Address, c.CA.Roots, c.CA.TokenFile = l.Addr().String(), root, token
	failures := make(chan error, 100)
	src, release, err := c.NewIdentity(nil, func(_ identity.Material, err error) { failures <- err })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = src.Run(ctx) }()
	defer func() { cancel(); <-done; release() }()
	if err := <-failures; err == nil || !strings.Contains(err.Error(), "CA_ADDR") {
		t.Errorf("with a wrong root: %v", err)
	}
	write(root, dev.RootsPEM())
	for {
		err := <-failures
		if err == nil {
			t.Fatal("the old token was accepted")
		}
		if strings.Contains(err.Error(), "token") {
			break
		}
	}
	write(token, []byte("second\n"))
	for err := range failures {
		if err == nil {
			break
		}
	}
	if id, err := identity.IDOf(src.Certificate().Leaf); err != nil || id != c.ID {
		t.Errorf("identity %v, %v", id, err)
	}
}

func TestTakesFilesIfThePodHasThem(t *testing.T) {
	dev, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	crt, err := dev.Issue(identity.Leaf{URIs: []string{"spiffe://cluster.local/ns/a/sa/b"}})
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(crt.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := &Config{}
	c.Secrets.use(dir, "c", "k", "r")
	if _, _, err := c.NewIdentity(nil, nil); err == nil {
		t.Error("missing files: no error")
	}
	for n, b := range map[string][]byte{"c": identity.EncodeCertificates(crt.Certificate...), "k": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), "r": dev.RootsPEM()} {
		if err := os.WriteFile(filepath.Join(dir, n), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	src, release, err := c.NewIdentity(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if src.Certificate() == nil || src.Roots() == nil {
		t.Error("no material")
	}
	e := Endpoint{ClientChain: filepath.Join(dir, "c"), ClientKey: filepath.Join(dir, "k")}
	if e.Transport().TLS.ClientCertificate() == nil {
		t.Error("no client certificate")
	}
	e.ClientKey = "/missing"
	if e.Transport().TLS.ClientCertificate() != nil {
		t.Error("a client certificate without key")
	}
}
