package secret

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"time"
)

// CRLs are certificate revocation lists by the issuer's raw subject.
type CRLs map[string]*crl

type crl struct {
	list    *x509.RevocationList
	revoked map[string]struct{} // serial numbers, big endian

	mu     sync.Mutex
	signer []byte // raw certificate whose signature on list was verified
}

func parseCRLs(data []byte) (CRLs, error) {
	out := CRLs{}
	ders := [][]byte{}
	if b, rest := pem.Decode(data); b == nil {
		ders = append(ders, data)
	} else {
		for ; b != nil; b, rest = pem.Decode(rest) {
			if b.Type == "X509 CRL" {
				ders = append(ders, b.Bytes)
			}
		}
	}
	for _, der := range ders {
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, err
		}
		c := &crl{list: l, revoked: make(map[string]struct{}, len(l.RevokedCertificateEntries))}
		for _, e := range l.RevokedCertificateEntries {
			c.revoked[string(e.SerialNumber.Bytes())] = struct{}{}
		}
		out[string(l.RawIssuer)] = c
	}
	if len(out) == 0 {
		return nil, errors.New("no revocation list in the data")
	}
	return out, nil
}

// Check verifies that no certificate of a verified chain (leaf first, root
// last) is revoked. As in Envoy every issuer must have a list, correctly
// signed and not out of date: what isn't known is refused. Nil CRLs demand
// nothing.
func (cs CRLs) Check(chain []*x509.Certificate, now time.Time) error {
	if cs == nil {
		return nil
	}
	for i := 0; i+1 < len(chain); i++ {
		c, issuer := chain[i], chain[i+1]
		l := cs[string(c.RawIssuer)]
		if l == nil {
			return fmt.Errorf("there is no revocation list of %q", c.Issuer.String())
		}
		if err := l.verify(issuer); err != nil {
			return fmt.Errorf("revocation list of %q: %w", c.Issuer.String(), err)
		}
		if !l.list.NextUpdate.IsZero() && now.After(l.list.NextUpdate) {
			return fmt.Errorf("revocation list of %q is out of date since %s", c.Issuer.String(), l.list.NextUpdate.Format(time.RFC3339))
		}
		if _, bad := l.revoked[string(c.SerialNumber.Bytes())]; bad {
			return revokedError(c)
		}
	}
	return nil
}

// Lists reports whether a certificate is on one of the lists, whoever signed that.
func (cs CRLs) Lists(certs []*x509.Certificate) bool {
	for _, c := range certs {
		if l := cs[string(c.RawIssuer)]; l != nil {
			if _, bad := l.revoked[string(c.SerialNumber.Bytes())]; bad {
				return true
			}
		}
	}
	return false
}

// Revoked says which certificate of a verified chain (leaf first, root last) is
// revoked by a list of its issuer, nil if none is. Unlike Check it knows nothing of
// certificates that there is no good list about; a list that is out of date still
// revokes.
func (cs CRLs) Revoked(chain []*x509.Certificate) error {
	for i := 0; i+1 < len(chain); i++ {
		if c := chain[i]; cs.Lists(chain[i:i+1]) && cs[string(c.RawIssuer)].verify(chain[i+1]) == nil {
			return revokedError(c)
		}
	}
	return nil
}

func revokedError(c *x509.Certificate) error {
	return fmt.Errorf("certificate %x is revoked", c.SerialNumber)
}

func (c *crl) verify(issuer *x509.Certificate) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if bytes.Equal(c.signer, issuer.Raw) {
		return nil
	}
	if err := c.list.CheckSignatureFrom(issuer); err != nil {
		return err
	}
	c.signer = issuer.Raw
	return nil
}
