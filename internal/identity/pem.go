package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// ParseCertificate returns the key pair in chain (leaf first) and key, both
// PEM, with Leaf set. Chain and key must belong together.
func ParseCertificate(chain, key []byte) (*tls.Certificate, error) {
	c, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, err
	}
	if c.Leaf == nil {
		if c.Leaf, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
			return nil, err
		}
	}
	return &c, nil
}

// ParseCertificates returns all certificates in PEM data. Other blocks are
// skipped; a certificate that doesn't parse, or none at all, is an error.
func ParseCertificates(data []byte) ([]*x509.Certificate, error) {
	var cs []*x509.Certificate
	for rest := data; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(cs)+1, err)
		}
		cs = append(cs, c)
	}
	if len(cs) == 0 {
		return nil, errors.New("no certificate in the PEM data")
	}
	return cs, nil
}

// ParseRoots is ParseCertificates into a pool.
func ParseRoots(data []byte) (*x509.CertPool, error) {
	cs, err := ParseCertificates(data)
	if err != nil {
		return nil, err
	}
	p := x509.NewCertPool()
	for _, c := range cs {
		p.AddCert(c)
	}
	return p, nil
}

// EncodeCertificates returns DER certificates as PEM.
func EncodeCertificates(ders ...[]byte) []byte {
	var b bytes.Buffer
	for _, d := range ders {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: d}) // a bytes.Buffer doesn't fail
	}
	return b.Bytes()
}
