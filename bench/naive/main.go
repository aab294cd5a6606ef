// Command bench-naive is the yardstick: the waypoint that one writes in an
// afternoon with net/http, x/net/http2 and httputil.ReverseProxy. It is no
// product: it has neither policies nor limits.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/net/http2"
)

func main() {
	dir := flag.String("dir", "", "directory of cert.pem, key.pem and ca.pem")
	plain := flag.String("plain", "", "address for HBONE in, plaintext out")
	hbone := flag.String("hbone", "", "address for HBONE in and out")
	h1 := flag.String("h1", "", "address for HTTP/1.1 in, plaintext out")
	h2tls := flag.String("h2tls", "", "address for HTTP/2 over TLS in, plaintext out")
	grpc := flag.String("grpc", "", "address for HTTP/2 without TLS in and out")
	admin := flag.String("admin", "", "address of /ready")
	origin := flag.String("origin", "", "plaintext origin")
	originHBONE := flag.String("origin-hbone", "", "HBONE origin")
	originGRPC := flag.String("origin-grpc", "", "HTTP/2 origin without TLS")
	flag.Parse()
	if err := run(*dir, *plain, *hbone, *h1, *h2tls, *grpc, *admin, *origin, *originHBONE, *originGRPC); err != nil {
		slog.Error("bench-naive", "error", err)
		os.Exit(1)
	}
}

func run(dir, plain, hbone, h1, h2tls, grpc, admin, origin, originHBONE, originGRPC string) error {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return err
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	server := &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
	}
	direct := proxy(origin, &http.Transport{MaxIdleConnsPerHost: 1000, DisableCompression: true})
	tunnel := &tunnels{address: originHBONE, h2: &http2.Transport{TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, //nolint:gosec // the name is a SPIFFE identity; the yardstick does not check it
	}}}
	tunnelled := proxy("10.1.2.3:9080", &http.Transport{DialContext: tunnel.dial, MaxIdleConnsPerHost: 1000, DisableCompression: true})

	var clear http.Protocols
	clear.SetUnencryptedHTTP2(true)
	calls := proxy(originGRPC, &http.Transport{Protocols: &clear, DisableCompression: true})
	calls.FlushInterval = -1

	errs := make(chan error, 6)
	go func() { errs <- serve(h1, direct, nil) }()
	go func() { errs <- serve(h2tls, direct, server) }()
	go func() {
		s := &http.Server{Addr: grpc, Handler: calls, Protocols: &clear, ReadHeaderTimeout: time.Minute, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 1000}}
		errs <- s.ListenAndServe()
	}()
	go func() { errs <- serve(plain, terminate(direct), server) }()
	go func() { errs <- serve(hbone, terminate(tunnelled), server) }()
	go func() { errs <- serve(admin, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), nil) }()
	return <-errs
}

func serve(address string, h http.Handler, config *tls.Config) error {
	s := &http.Server{Addr: address, Handler: h, TLSConfig: config.Clone(), ReadHeaderTimeout: time.Minute}
	if config == nil {
		return s.ListenAndServe()
	}
	if err := http2.ConfigureServer(s, &http2.Server{MaxConcurrentStreams: 1000}); err != nil {
		return err
	}
	return s.ListenAndServeTLS("", "")
}

// proxy forwards to host.
func proxy(host string, t *http.Transport) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: host})
			r.Out.Host = r.In.Host
			r.Out.Header.Set("X-Mesh", "waypoint")
		},
		Transport: t,
	}
}

// terminate serves HTTP/1.1 inside CONNECT streams.
func terminate(h http.Handler) http.Handler {
	inner := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	conns := make(chan net.Conn)
	go func() { _ = inner.Serve(listener(conns)) }()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusOK)
		rc := http.NewResponseController(w)
		if err := rc.Flush(); err != nil {
			return
		}
		c := &stream{Reader: r.Body, w: w, flush: rc.Flush, closed: make(chan struct{})}
		conns <- c
		select {
		case <-c.closed:
		case <-r.Context().Done():
		}
	})
}

type listener chan net.Conn

func (l listener) Accept() (net.Conn, error) { return <-l, nil }
func (l listener) Close() error              { return nil }
func (l listener) Addr() net.Addr            { return &net.TCPAddr{} }

// stream is a CONNECT stream as a net.Conn; it has no deadlines.
type stream struct {
	io.Reader
	w      io.Writer
	flush  func() error
	closed chan struct{}
	done   bool
}

func (s *stream) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if err != nil {
		return n, err
	}
	return n, s.flush()
}

func (s *stream) Close() error {
	if !s.done {
		s.done = true
		close(s.closed)
	}
	return nil
}

func (s *stream) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *stream) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *stream) SetDeadline(time.Time) error      { return nil }
func (s *stream) SetReadDeadline(time.Time) error  { return nil }
func (s *stream) SetWriteDeadline(time.Time) error { return nil }

// tunnels dials through CONNECT.
type tunnels struct {
	address string
	h2      *http2.Transport
}

func (t *tunnels) dial(ctx context.Context, _, authority string) (net.Conn, error) {
	pr, pw := io.Pipe()
	req := (&http.Request{
		Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: t.address}, Host: authority,
		Header: http.Header{}, Body: pr, ContentLength: -1,
	}).WithContext(context.WithoutCancel(ctx))
	resp, err := t.h2.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, errors.New("CONNECT: " + resp.Status)
	}
	return &stream{Reader: resp.Body, w: pw, flush: func() error { return nil }, closed: make(chan struct{})}, nil
}
