package tlscontext

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// signer signs whatever it is asked to.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newSigner(t *testing.T, name string) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{name}}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte{1, 2, 3},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{c, key}
}

// issue signs a client's certificate after edit has changed it.
func (a *signer) issue(t *testing.T, uri string, edit func(c *x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if uri != "" {
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.URIs = []*url.URL{u}
	}
	if edit != nil {
		edit(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// rawNames is a subjectAltName extension of raw values by their tags.
func rawNames(t *testing.T, values ...asn1.RawValue) func(c *x509.Certificate) {
	t.Helper()
	b, err := asn1.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: b})
	}
}

func uriName(s string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(s)}
}

// Only a certificate of the mesh's CA that is valid now, for clients, with
// exactly the name that is expected gets in, whatever it looks like otherwise.
func TestCertificatesOfEveryShape(t *testing.T) {
	const want = "spiffe://td/ns/app/sa/client"
	ca, other := newSigner(t, "mesh"), newSigner(t, "mesh") // of the same name and key identifier
	plain := func(uri string) func(*testing.T) tls.Certificate {
		return func(t *testing.T) tls.Certificate { return ca.issue(t, uri, nil) }
	}
	edited := func(uri string, f func(c *x509.Certificate)) func(*testing.T) tls.Certificate {
		return func(t *testing.T) tls.Certificate { return ca.issue(t, uri, f) }
	}
	cases := []struct {
		name string
		cert func(t *testing.T) tls.Certificate
		ok   bool
	}{
		{"as it should be", plain(want), true},
		{"with a DNS name besides", edited(want, func(c *x509.Certificate) { c.DNSNames = []string{"a.b"} }), true},
		{"none", nil, false},
		{"expired a second ago", edited(want, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }), false},
		{"valid in a minute", edited(want, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), false},
		{"no name", plain(""), false},
		{"a DNS name only", edited("", func(c *x509.Certificate) { c.DNSNames = []string{want} }), false},
		{"the subject only", edited("", func(c *x509.Certificate) { c.Subject.CommonName = want }), false},
		{"an email only", edited("", func(c *x509.Certificate) { c.EmailAddresses = []string{"client@td"} }), false},
		{"another trust domain", plain("spiffe://td2/ns/app/sa/client"), false},
		{"another scheme", plain("https://td/ns/app/sa/client"), false},
		{"another namespace", plain("spiffe://td/ns/app2/sa/client"), false},
		{"a longer name", plain(want + "2"), false},
		{"a longer path", plain(want + "/x"), false},
		{"a prefix", plain("spiffe://td/ns/app/sa/clien"), false},
		{"upper case", plain("spiffe://td/ns/app/sa/Client"), false},
		{"an upper-case trust domain", plain("spiffe://TD/ns/app/sa/client"), false},
		{"a trailing slash", plain(want + "/"), false},
		{"an escaped letter", plain("spiffe://td/ns/app/sa/%63lient"), false},
		{"a query", plain(want + "?x"), false},
		{"a port", plain("spiffe://td:443/ns/app/sa/client"), false},
		{"a user", plain("spiffe://u@td/ns/app/sa/client"), false},
		{"a NUL behind the name", edited("", rawNames(t, uriName(want+"\x00.evil"))), false},
		{"a NUL within the name", edited("", rawNames(t, uriName("spiffe://td/ns/app/sa/cli\x00ent"))), false},
		{"a byte beyond ASCII", edited("", rawNames(t, uriName(want+"\x85"))), false},
		{"a name of another kind", edited("", rawNames(t, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 8, Bytes: []byte(want)})), false},
		{"for servers only", edited(want, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), false},
		{"for signing code", edited(want, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }), false},
		{"an unknown critical extension", edited(want, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}), false},
		{"another CA of the same name", func(t *testing.T) tls.Certificate { return other.issue(t, want, nil) }, false},
		{"a leaf as CA", func(t *testing.T) tls.Certificate {
			leaf := ca.issue(t, "spiffe://td/ns/app/sa/other", nil)
			c, err := x509.ParseCertificate(leaf.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			forged := (&signer{c, leaf.PrivateKey.(*ecdsa.PrivateKey)}).issue(t, want, nil)
			forged.Certificate = append(forged.Certificate, leaf.Certificate[0])
			return forged
		}, false},
		{"self-signed", func(t *testing.T) tls.Certificate {
			own := newSigner(t, "mesh")
			return own.issue(t, want, func(c *x509.Certificate) { c.SerialNumber = big.NewInt(1) })
		}, false},
	}
	if len(cases) != 32 {
		t.Errorf("%d shapes, want 32", len(cases))
	}
	rs := x509.NewCertPool()
	rs.AddCert(ca.cert)
	dev := newCA(t)
	c, err := dev.Issue(id(server))
	if err != nil {
		t.Fatal(err)
	}
	src := identity.NewStatic(identity.Material{Certificate: c, Roots: rs})
	srv := newServer(t, &xdsresource.DownstreamTLS{RequireClientCert: true, CommonTLS: xdsresource.CommonTLS{
		Params: xdsresource.TLSParams{MinVersion: tls.VersionTLS12}, Certificates: own, Validation: mesh(t, san(t, xdsresource.SANURI, matcher.Exact, want)),
	}}, store(t, src))
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, c := range cases {
			t.Run(tls.VersionName(version)+"/"+c.name, func(t *testing.T) {
				cc := &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version}
				if c.cert != nil {
					crt := c.cert(t)
					cc.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &crt, nil }
				}
				_, _, serr, cerr := shake(t, srv.Config(), cc)
				if (serr == nil) != c.ok || c.ok && cerr != nil {
					t.Errorf("server %v, client %v", serr, cerr)
				}
			})
		}
	}
}
