package hbone

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/internal/netio"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	clientAddr = netip.MustParseAddrPort("10.0.0.1:40000")
	serverAddr = netip.MustParseAddrPort("10.0.0.2:15008")
)

var pki = sync.OnceValue(func() (c struct{ server, client *tls.Config }) {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"peer"}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	must(err)
	cert, err := x509.ParseCertificate(der)
	must(err)
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	own := []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	c.server = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: own, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"h2"}}
	c.client = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: own, RootCAs: roots, ServerName: "peer", NextProtos: []string{"h2"}}
	return c
})

// peer is an HBONE server that dialers of a test connect to through pipes.
type peer struct {
	t   testing.TB
	cfg ServerConfig
	f   func(*Request)

	mu      sync.Mutex
	servers []*Server
	raw     []netio.Conn
	opened  atomic.Int32
	options []netio.DialOptions
	gate    chan struct{} // if not nil, connecting waits for it
	drained atomic.Int32  // so many more connections are drained at once
	wg      sync.WaitGroup
}

func newPeer(t testing.TB, f func(*Request)) *peer {
	p := &peer{t: t, f: f}
	t.Cleanup(func() {
		for _, c := range p.conns() {
			c.Reset()
		}
		p.wg.Wait()
	})
	return p
}

func (p *peer) conns() []netio.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]netio.Conn(nil), p.raw...)
}

func (p *peer) last() *Server {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.servers[len(p.servers)-1]
}

// connect is a Config.Connect.
func (p *peer) connect(ctx context.Context, _ netip.AddrPort, o netio.DialOptions) (netio.Conn, error) {
	p.opened.Add(1)
	if p.gate != nil {
		select {
		case <-p.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	a, b := netio.Pipe(clientAddr, serverAddr)
	p.mu.Lock()
	p.raw = append(p.raw, b)
	p.options = append(p.options, o)
	p.mu.Unlock()
	p.wg.Add(1)
	go p.serve(b)
	return a, nil
}

func (p *peer) serve(b netio.Conn) {
	tc, err := netio.ServerTLS(context.Background(), b, pki().server)
	if err != nil {
		p.wg.Done()
		return
	}
	s := NewServer(tc, &p.cfg, p.f)
	p.mu.Lock()
	p.servers = append(p.servers, s)
	p.mu.Unlock()
	if p.drained.Add(-1) >= 0 {
		s.Drain()
	}
	s.Serve(p.wg.Done)
}

func (p *peer) dialer(t testing.TB, c Config) *Dialer {
	c.Connect = p.connect
	c.TLS = func(*Target) *tls.Config { return pki().client }
	d := NewDialer(c)
	t.Cleanup(func() {
		d.Close()
		for _, c := range p.conns() {
			c.Reset()
		}
		waitFor(t, func() bool { n, _ := d.Stats(); return n == 0 })
	})
	return d
}

func target(authority string) *Target { return &Target{Address: serverAddr, Authority: authority} }

func waitFor(t testing.TB, f func() bool) {
	t.Helper()
	for range 1000 {
		if f() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("timed out")
}

// echo accepts and sends back what comes.
func echo(r *Request) {
	c, err := r.Accept()
	if err != nil {
		return
	}
	go func() {
		_, _, _ = netio.Join(c, loop(), netio.JoinOptions{})
	}()
}

// loop returns a stream that sends back what it is sent.
func loop() netio.Conn {
	a, b := netio.Pipe(clientAddr, serverAddr)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := b.Read(buf)
			if n > 0 {
				if _, err := b.Write(buf[:n]); err != nil {
					break
				}
			}
			if err != nil {
				break
			}
		}
		_ = b.CloseWrite()
		_ = b.Close()
	}()
	return a
}
