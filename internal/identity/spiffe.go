package identity

import (
	"crypto/x509"
	"fmt"
	"strings"
)

// ID is a workload identity in Istio's form of a SPIFFE ID.
type ID struct{ TrustDomain, Namespace, ServiceAccount string }

// String returns spiffe://<trust domain>/ns/<namespace>/sa/<service account>.
func (id ID) String() string {
	return "spiffe://" + id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
}

// maxID bounds a SPIFFE ID (SPIFFE-ID specification, section 2.3).
const maxID = 2048

// ParseID parses exactly the form that String returns.
func ParseID(s string) (ID, error) {
	td, path, err := split(s)
	if err != nil {
		return ID{}, err
	}
	p := strings.Split(path, "/")
	if len(p) != 4 || p[0] != "ns" || p[2] != "sa" {
		return ID{}, fmt.Errorf("SPIFFE ID %q: want spiffe://<trust domain>/ns/<namespace>/sa/<service account>", s)
	}
	return ID{td, p[1], p[3]}, nil
}

// TrustDomain returns the trust domain of any valid SPIFFE ID.
func TrustDomain(s string) (string, error) {
	td, _, err := split(s)
	return td, err
}

// split checks s by the SPIFFE-ID specification, sections 2.1 and 2.2.
func split(s string) (td, path string, err error) {
	rest, ok := strings.CutPrefix(s, "spiffe://")
	if !ok || len(s) > maxID {
		return "", "", fmt.Errorf("%.80q is no SPIFFE ID", s)
	}
	td, path, slash := strings.Cut(rest, "/")
	if td == "" || strings.ContainsFunc(td, func(r rune) bool { return !idRune(r) || 'A' <= r && r <= 'Z' }) {
		return "", "", fmt.Errorf("SPIFFE ID %q: bad trust domain %q", s, td)
	}
	if !slash {
		return td, "", nil
	}
	for seg := range strings.SplitSeq(path, "/") {
		if seg == "" || seg == "." || seg == ".." || strings.ContainsFunc(seg, func(r rune) bool { return !idRune(r) }) {
			return "", "", fmt.Errorf("SPIFFE ID %q: bad path segment %q", s, seg)
		}
	}
	return td, path, nil
}

func idRune(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '.' || r == '-' || r == '_'
}

// IDOf returns the identity of a certificate: its only SPIFFE URI.
func IDOf(c *x509.Certificate) (ID, error) {
	var found string
	for _, u := range URIs(c) {
		if !strings.HasPrefix(u, "spiffe:") {
			continue
		}
		if found != "" {
			return ID{}, fmt.Errorf("certificate has two SPIFFE IDs, %s and %s", found, u)
		}
		found = u
	}
	if found == "" {
		return ID{}, fmt.Errorf("certificate of %q has no SPIFFE ID", c.Subject.String())
	}
	return ParseID(found)
}
