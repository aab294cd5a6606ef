package tlscontext

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// below makes a CA that a signs.
func (a *authority) below(t *testing.T, edit func(*x509.Certificate)) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: fmt.Sprintf("between %d", time.Now().UnixNano())}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	if edit != nil {
		edit(c)
	}
	return &authority{cert: a.sign(t, c, key).Leaf, key: key}
}

// Every certificate in these chains is good; some are too many, or too large.
func TestOverlongChainsAreRefusedBeforeTheyAreVerified(t *testing.T) {
	root := newAuthority(t, "root", nil)
	chain := func(between int, edit func(*x509.Certificate)) *tls.Certificate {
		a, raw := root, [][]byte(nil)
		for range between {
			a = a.below(t, edit)
			raw = append([][]byte{a.cert.Raw}, raw...)
		}
		leaf := a.leaf(t, nil)
		leaf.Certificate = append(leaf.Certificate, raw...)
		return leaf
	}
	constrained := func(c *x509.Certificate) {
		for i := range 1500 {
			c.ExcludedDNSDomains = append(c.ExcludedDNSDomains, fmt.Sprintf("name-%d.example.com", i))
		}
	}
	self := identity.NewStatic(identity.Material{Certificate: root.leaf(t, uri("spiffe://td/ns/app/sa/self")), Roots: root.roots()})
	for _, c := range []struct {
		name string
		peer *tls.Certificate
		want string // in the error; "" if the chain is good
	}{
		{"three between", chain(3, nil), ""},
		{"as many as are taken", chain(identity.MaxChain-1, nil), ""},
		{"one more", chain(identity.MaxChain, nil), "a chain of 17 certificates"},
		{"a hundred", chain(100, nil), "a chain of 101 certificates"},
		{"one that forbids 1,500 names", chain(1, constrained), "at most 32768 are verified"},
	} {
		t.Run(c.name, func(t *testing.T) {
			common := xdsresource.CommonTLS{Certificates: own, Validation: mesh(t)}
			srv := newServer(t, &xdsresource.DownstreamTLS{RequireClientCert: true, CommonTLS: common}, store(t, self))
			cli := newClient(t, &xdsresource.UpstreamTLS{CommonTLS: common}, store(t, self))
			other := &tls.Config{
				InsecureSkipVerify: true, MinVersion: tls.VersionTLS12,
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.peer, nil },
				GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.peer, nil },
			}
			_, _, serr, _ := shake(t, srv.Config(), other)
			_, _, _, cerr := shake(t, other, cli.Config(Options{}))
			for _, err := range []error{serr, cerr} {
				if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, want %q", err, c.want)
				}
			}
		})
	}
}
