package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"time"
)

// DevCA is a certificate authority inside the process, for demonstrations,
// laptops and tests. Its key is never stored. It is safe for concurrent use.
type DevCA struct {
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	roots *x509.CertPool
	pem   []byte
}

// NewDevCA creates an authority for a trust domain, valid for ten years.
func NewDevCA(trustDomain string) (*DevCA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{trustDomain}, CommonName: "development CA"},
		NotBefore: now.Add(-2 * time.Minute), NotAfter: now.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	p := x509.NewCertPool()
	p.AddCert(c)
	return &DevCA{cert: c, key: key, roots: p, pem: EncodeCertificates(der)}, nil
}

// Roots returns the authority's certificate as a pool.
func (ca *DevCA) Roots() *x509.CertPool { return ca.roots }

// RootsPEM returns the authority's certificate.
func (ca *DevCA) RootsPEM() []byte { return ca.pem }

// Leaf describes a certificate to issue.
type Leaf struct {
	// URIs are usually one SPIFFE ID.
	URIs     []string
	DNSNames []string
	IPs      []net.IP
	// CommonName is "" for mesh certificates.
	CommonName string
	// NotBefore is two minutes ago by default, and NotAfter 24 h after now.
	NotBefore, NotAfter time.Time
}

// Issue makes a key and a certificate for it, good for both ends of TLS.
func (ca *DevCA) Issue(l Leaf) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := ca.sign(l, key.Public())
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

func (ca *DevCA) sign(l Leaf, pub crypto.PublicKey) ([]byte, error) {
	now := time.Now()
	if l.NotBefore.IsZero() {
		l.NotBefore = now.Add(-2 * time.Minute)
	}
	if l.NotAfter.IsZero() {
		l.NotAfter = now.Add(24 * time.Hour)
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: l.CommonName},
		NotBefore: l.NotBefore, NotAfter: l.NotAfter, DNSNames: l.DNSNames, IPAddresses: l.IPs,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	for _, s := range l.URIs {
		u, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("SAN: %w", err)
		}
		t.URIs = append(t.URIs, u)
	}
	return x509.CreateCertificate(rand.Reader, t, ca.cert, pub, ca.key)
}

// SignCSR signs the key of a PEM certificate request for the identity uri,
// whatever names the request asks for, and returns chain elements as istiod
// does: leaf, then roots.
func (ca *DevCA) SignCSR(csr []byte, uri string, ttl time.Duration) ([]string, error) {
	b, _ := pem.Decode(csr)
	if b == nil {
		return nil, errors.New("the certificate request is not PEM")
	}
	r, err := x509.ParseCertificateRequest(b.Bytes)
	if err != nil {
		return nil, err
	}
	if err := r.CheckSignature(); err != nil {
		return nil, err
	}
	der, err := ca.sign(Leaf{URIs: []string{uri}, NotAfter: time.Now().Add(ttl)}, r.PublicKey)
	if err != nil {
		return nil, err
	}
	return []string{string(EncodeCertificates(der)), string(ca.pem)}, nil
}

// Issuer returns a Fetch function (see RotatorConfig) for one identity whose
// certificates live for ttl, 0 meaning 24 h.
func (ca *DevCA) Issuer(id ID, ttl time.Duration) func(context.Context) (Material, error) {
	if ttl <= 0 {
		ttl = 24 * time.Hour
	}
	return func(context.Context) (Material, error) {
		c, err := ca.Issue(Leaf{URIs: []string{id.String()}, NotAfter: time.Now().Add(ttl)})
		if err != nil {
			return Material{}, err
		}
		return Material{Certificate: c, Roots: ca.roots, RootsPEM: ca.pem}, nil
	}
}

// Source returns a source with one certificate for id that is not renewed.
func (ca *DevCA) Source(id ID) (*Static, error) {
	m, err := ca.Issuer(id, 0)(context.Background())
	if err != nil {
		return nil, err
	}
	return NewStatic(m), nil
}

// SignCRL signs a revocation list and returns its DER form.
func (ca *DevCA) SignCRL(l *x509.RevocationList) ([]byte, error) {
	return x509.CreateRevocationList(rand.Reader, l, ca.cert, ca.key)
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}
