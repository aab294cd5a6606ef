package netio

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// pairs are the ways to get two connected ends; every one must behave alike.
var pairs = []struct {
	name string
	make func(t *testing.T) (a, b Conn)
}{
	{"tcp", tcpPair},
	{"unix", unixPair},
	{"wrapped tcp", wrappedPair},
	{"pipe", func(*testing.T) (Conn, Conn) { return Pipe(netip.AddrPort{}, netip.AddrPort{}) }},
	{"tls over tcp", func(t *testing.T) (Conn, Conn) { a, b := tcpPair(t); return tlsPair(t, a, b) }},
	{"tls over wrapped tcp", func(t *testing.T) (Conn, Conn) { a, b := wrappedPair(t); return tlsPair(t, a, b) }},
	{"tls over pipe", func(t *testing.T) (Conn, Conn) {
		a, b := Pipe(netip.AddrPort{}, netip.AddrPort{})
		return tlsPair(t, a, b)
	}},
	{"tls over tls over tcp", func(t *testing.T) (Conn, Conn) {
		a, b := tcpPair(t)
		a, b = tlsPair(t, a, b)
		return tlsPair(t, a, b)
	}},
}

func tcpPair(t *testing.T) (a, b Conn) {
	t.Helper()
	l, err := Listen(loopback, ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err = Dial(t.Context(), l.Addr(), DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func unixPair(t *testing.T) (a, b Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = DialUnix(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if b, err = newSocket(nc); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func wrappedPair(t *testing.T) (a, b Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	x, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	y, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return Wrap(x), Wrap(y)
}

var testCert = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

func serverConfig() *tls.Config { return &tls.Config{Certificates: []tls.Certificate{testCert()}} }

func clientConfig() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

func tlsPair(t *testing.T, a, b Conn) (Conn, Conn) {
	t.Helper()
	type res struct {
		c   Conn
		err error
	}
	ch := make(chan res, 1)
	go func() {
		c, err := ServerTLS(context.Background(), b, serverConfig())
		ch <- res{c, err}
	}()
	ca, err := ClientTLS(context.Background(), a, clientConfig())
	r := <-ch
	if err != nil || r.err != nil {
		t.Fatal(err, r.err)
	}
	return ca, r.c
}

// each runs f on both orders of every pair.
func each(t *testing.T, f func(t *testing.T, a, b Conn)) {
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			a, b := p.make(t)
			defer a.Close()
			defer b.Close()
			f(t, a, b)
		})
		t.Run(p.name+", other end", func(t *testing.T) {
			a, b := p.make(t)
			defer a.Close()
			defer b.Close()
			f(t, b, a)
		})
	}
}

func write(t *testing.T, c Conn, s string) {
	t.Helper()
	if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
		t.Fatalf("write %q: %d, %v", s, n, err)
	}
}

func readN(t *testing.T, c Conn, n int) string {
	t.Helper()
	b := make([]byte, n)
	if k, err := io.ReadFull(c, b); err != nil {
		t.Fatalf("read %d of %d: %v", k, n, err)
	}
	return string(b)
}

// park waits until c is readable, however it does so.
func park(c Conn) {
	ch := make(chan struct{})
	if c.Park(func() { close(ch) }) {
		<-ch
	}
}

// tryAll drains c without blocking.
func tryAll(c Conn) (string, error) {
	var out []byte
	b := make([]byte, 100)
	for {
		n, err := c.TryRead(b)
		out = append(out, b[:n]...)
		if err != nil {
			return string(out), err
		}
	}
}

func eventually(t *testing.T, f func() bool) {
	t.Helper()
	for range 20000 {
		if f() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("never")
}
