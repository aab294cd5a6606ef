package identity

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
)

// URIs returns the URIs among a certificate's names, byte for byte: net/url would
// write "SPIFFE://td" as "spiffe://td", which is another name.
func URIs(c *x509.Certificate) []string {
	for _, e := range c.Extensions {
		if e.Id.Equal(oidSAN) {
			return rawURIs(e.Value)
		}
	}
	var out []string
	for _, u := range c.URIs { // of a certificate that was not parsed
		out = append(out, u.String())
	}
	return out
}

// rawURIs returns the URIs of a subjectAltName (RFC 5280 §4.2.1.6), which
// crypto/x509 has parsed without complaint.
func rawURIs(der []byte) (out []string) {
	var names asn1.RawValue
	if _, err := asn1.Unmarshal(der, &names); err != nil {
		return nil
	}
	const uri = 6
	for rest := names.Bytes; len(rest) > 0; {
		var n asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &n); err != nil {
			return out
		}
		if n.Class == asn1.ClassContextSpecific && n.Tag == uri {
			out = append(out, string(n.Bytes))
		}
	}
	return out
}

// CheckSVID holds a certificate that names a SPIFFE ID to the rules for it
// (X509-SVID §2, §4, §5.2): one URI, well formed, and no right to sign other
// certificates. Certificates without a SPIFFE ID are none of its business.
func CheckSVID(c *x509.Certificate) error {
	uris := URIs(c)
	spiffe := false
	for _, u := range uris {
		spiffe = spiffe || len(u) >= 7 && strings.EqualFold(u[:7], "spiffe:")
	}
	switch {
	case !spiffe:
		return nil
	case len(uris) != 1:
		return fmt.Errorf("%d URIs beside a SPIFFE ID: there must be one", len(uris))
	case c.IsCA || c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return errors.New("a certificate that may sign others is no workload's")
	}
	_, err := TrustDomain(uris[0])
	return err
}

// Bounds of the certificates that a peer may present: how many, and how many
// bytes in all. Each costs signatures, and its names and constraints multiply;
// real chains have two to five certificates of less than 2 KiB.
const (
	MaxChain      = 16
	MaxChainBytes = 32 << 10
)

// CheckChain refuses what a peer presents if it is longer than that; it is
// called before anything is verified.
func CheckChain(certs []*x509.Certificate) error {
	if len(certs) > MaxChain {
		return fmt.Errorf("it comes in a chain of %d certificates, at most %d are verified", len(certs), MaxChain)
	}
	size := 0
	for _, c := range certs {
		size += len(c.Raw)
	}
	if size > MaxChainBytes {
		return fmt.Errorf("its chain has %d bytes, at most %d are verified", size, MaxChainBytes)
	}
	return nil
}
