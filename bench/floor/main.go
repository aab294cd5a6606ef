// Command bench-floor is the least that a proxy has to do: it ends HBONE
// tunnels and copies the bytes of each CONNECT stream to the origin and back,
// on Fairlead's own transport but without anything of layer 7: no routing, no
// policies, no metrics, no log. What a proxy costs more is its HTTP.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/hbone"
)

func main() {
	var a addresses
	flag.StringVar(&a.dir, "dir", "", "directory of cert.pem, key.pem and ca.pem")
	flag.StringVar(&a.plain, "plain", "", "address for HBONE in, plaintext out")
	flag.StringVar(&a.hbone, "hbone", "", "address for HBONE in and out")
	flag.StringVar(&a.h1, "h1", "", "address for plaintext in and out")
	flag.StringVar(&a.admin, "admin", "", "address of /ready")
	flag.StringVar(&a.origin, "origin", "", "plaintext origin")
	flag.StringVar(&a.originHBONE, "origin-hbone", "", "HBONE origin")
	for _, unused := range []string{"h2tls", "grpc", "origin-grpc"} {
		flag.String(unused, "", "not used: a relay knows no requests")
	}
	flag.Parse()
	if err := a.run(context.Background()); err != nil {
		slog.Error("bench-floor", "error", err)
		os.Exit(1)
	}
}

type addresses struct{ dir, plain, hbone, h1, admin, origin, originHBONE string }

// relay is one listener and where its bytes go.
type relay struct {
	ctx    context.Context //nolint:containedctx // of the process
	server *tls.Config
	open   func(context.Context) (netio.Conn, error)
}

func (a *addresses) run(ctx context.Context) error {
	cert, err := tls.LoadX509KeyPair(filepath.Join(a.dir, "cert.pem"), filepath.Join(a.dir, "key.pem"))
	if err != nil {
		return err
	}
	pem, err := os.ReadFile(filepath.Join(a.dir, "ca.pem"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	server := &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
	}
	client := &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, //nolint:gosec // the name is a SPIFFE identity; the floor does not check it
	}
	origin, err := netip.ParseAddrPort(a.origin)
	if err != nil {
		return err
	}
	originHBONE, err := netip.ParseAddrPort(a.originHBONE)
	if err != nil {
		return err
	}
	direct := func(ctx context.Context) (netio.Conn, error) { return netio.Dial(ctx, origin, netio.DialOptions{}) }
	dialer := hbone.NewDialer(hbone.Config{TLS: func(*hbone.Target) *tls.Config { return client }, MaxStreams: 1000})
	defer dialer.Close()
	tunnel := func(ctx context.Context) (netio.Conn, error) {
		return dialer.Dial(ctx, &hbone.Target{Address: originHBONE, Authority: "10.1.2.3:9080"}, nil)
	}
	errs := make(chan error, 4)
	go func() { errs <- (&relay{ctx, server, direct}).listen(a.plain) }()
	go func() { errs <- (&relay{ctx, server, tunnel}).listen(a.hbone) }()
	go func() { errs <- (&relay{ctx, nil, direct}).listen(a.h1) }()
	go func() {
		s := &http.Server{Addr: a.admin, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), ReadHeaderTimeout: time.Minute}
		errs <- s.ListenAndServe()
	}()
	return <-errs
}

func (r *relay) listen(address string) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	l, err := netio.Listen(at, netio.ListenOptions{})
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if r.server == nil {
			go r.join(c)
		} else {
			go r.serve(c)
		}
	}
}

// serve ends one tunnel.
func (r *relay) serve(c netio.Conn) {
	tc, err := netio.ServerTLS(r.ctx, c, r.server)
	if err != nil {
		return
	}
	hbone.NewServer(tc, &hbone.ServerConfig{MaxStreams: 1000}, func(q *hbone.Request) {
		up, err := r.open(r.ctx)
		if err != nil {
			_ = q.Reject(http.StatusServiceUnavailable)
			return
		}
		down, err := q.Accept()
		if err != nil {
			up.Reset()
			return
		}
		netio.JoinAsync(down, up, netio.JoinOptions{}, func(uint64, uint64, error) {})
	}).Serve(nil)
}

func (r *relay) join(down netio.Conn) {
	up, err := r.open(r.ctx)
	if err != nil {
		down.Reset()
		return
	}
	netio.JoinAsync(down, up, netio.JoinOptions{}, func(uint64, uint64, error) {})
}
