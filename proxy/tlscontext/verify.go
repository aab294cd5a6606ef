package tlscontext

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/proxy/secret"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// verifier checks a peer's certificate: chain, revocation, pins, names.
type verifier struct {
	spec  *xdsresource.Validation
	trust *secret.Trust // nil: no CA
	usage x509.ExtKeyUsage
	pins  pins
}

func newVerifier(v *xdsresource.Validation, store *secret.Store, server bool) (*verifier, error) {
	ver := &verifier{spec: v, usage: x509.ExtKeyUsageServerAuth}
	if server {
		ver.usage = x509.ExtKeyUsageClientAuth
	}
	var err error
	if ver.trust, err = store.Trust(v); err != nil {
		return nil, err
	}
	if ver.pins, err = parsePins(v); err != nil {
		return nil, err
	}
	if len(v.SANs) > 0 && ver.trust == nil {
		return nil, errors.New("matching subject alternative names without a trusted CA is insecure")
	}
	return ver, nil
}

// chains reports whether chains are verified at all.
func (v *verifier) chains() bool { return v.trust != nil && !v.spec.AcceptUntrusted }

// authenticates reports whether an accepted certificate proves anything.
func (v *verifier) authenticates() bool { return v.chains() || !v.pins.empty() }

// server is VerifyConnection of a server.
func (v *verifier) server(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return nil // if one is required, crypto/tls has refused already
	}
	return v.verify(cs.PeerCertificates, "")
}

// client returns VerifyConnection of a client that dials name ("" for any).
func (v *verifier) client(name string) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("the server presented no certificate")
		}
		return v.verify(cs.PeerCertificates, name)
	}
}

func (v *verifier) verify(certs []*x509.Certificate, name string) error {
	leaf := certs[0]
	a, err := v.trust.Get()
	if err != nil {
		return fmt.Errorf("can't verify the peer: %w", err)
	}
	if err := v.chain(certs, a); err != nil && !v.spec.AcceptUntrusted {
		return fmt.Errorf("certificate of the peer (%s): %w", names(leaf), err)
	}
	if !v.pinned(leaf, a.Validation) {
		return fmt.Errorf("certificate of the peer (%s) is none of the pinned ones", names(leaf))
	}
	if !v.named(leaf, a.Validation) {
		return fmt.Errorf("certificate of the peer (%s) matches none of the expected names", names(leaf))
	}
	if name != "" {
		if err := leaf.VerifyHostname(name); err != nil {
			return fmt.Errorf("certificate of the peer: %w", err)
		}
	}
	return nil
}

// chain verifies validity, signatures and revocation.
func (v *verifier) chain(certs []*x509.Certificate, a *secret.Anchors) error {
	leaf, now := certs[0], time.Now()
	expired := now.After(leaf.NotAfter)
	allow := v.spec.AllowExpired || a.Validation != nil && a.Validation.AllowExpired
	switch {
	case expired && !allow:
		return fmt.Errorf("it expired at %s (check the peer's certificate rotation and both clocks)", leaf.NotAfter.Format(time.RFC3339))
	case now.Before(leaf.NotBefore) && !allow:
		return fmt.Errorf("it is not valid before %s (check both clocks)", leaf.NotBefore.Format(time.RFC3339))
	case v.trust == nil:
		return nil
	case a.Roots == nil:
		return errors.New("no trusted CA is configured")
	}
	if err := identity.CheckChain(certs); err != nil {
		return err
	}
	if err := v.purpose(leaf); err != nil { // cheaper than a signature
		return err
	}
	o := identity.Verification{Roots: a.Roots, Usage: v.usage, Now: now}
	if expired {
		o.Now = leaf.NotAfter
	}
	if depth := int(v.spec.MaxVerifyDepth); depth > 0 || a.CRLs != nil {
		o.Accept = func(c []*x509.Certificate) error {
			if depth > 0 && len(c)-2 > depth {
				return fmt.Errorf("its chain has more than %d intermediate CAs", depth)
			}
			return a.CRLs.Check(c, now)
		}
	}
	return identity.VerifyChain(certs, &o)
}

// revoked says which of the certificates that a peer was let in with is revoked by
// now. That they, or a CA, have expired meanwhile changes nothing.
func (v *verifier) revoked(cs *tls.ConnectionState) error {
	if v == nil || !v.chains() || len(cs.PeerCertificates) == 0 {
		return nil
	}
	certs := cs.PeerCertificates
	a, err := v.trust.Get()
	if err != nil || a.Roots == nil || !a.CRLs.Lists(certs) {
		return nil //nolint:nilerr // without anchors nothing is known to be revoked
	}
	o := identity.Verification{Roots: a.Roots, Usage: v.usage, Now: time.Now()}
	for _, c := range certs {
		if c.NotAfter.Before(o.Now) {
			o.Now = c.NotAfter
		}
	}
	var revoked error
	o.Accept = func(c []*x509.Certificate) error {
		revoked = a.CRLs.Revoked(c)
		return revoked
	}
	if identity.VerifyChain(certs, &o) == nil {
		return nil // by another chain
	}
	return revoked
}

// purpose checks that leaf is for authenticating with, as BoringSSL does: "any"
// as the only extended usage does not count, which x509 lets pass.
func (v *verifier) purpose(leaf *x509.Certificate) error {
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return errors.New("its key usage has no digital signature")
	}
	if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) > 0 && !slices.Contains(leaf.ExtKeyUsage, v.usage) {
		return errors.New("its extended key usage is for something else")
	}
	return identity.CheckSVID(leaf)
}

// named reports whether any matcher of the context or the secret matches any
// name; without matchers every name does.
func (v *verifier) named(leaf *x509.Certificate, extra *xdsresource.Validation) bool {
	if extra != nil && len(extra.SANs) > 0 {
		return anySAN(leaf, v.spec.SANs) || anySAN(leaf, extra.SANs)
	}
	return len(v.spec.SANs) == 0 || anySAN(leaf, v.spec.SANs)
}

func anySAN(leaf *x509.Certificate, ms []xdsresource.SANMatcher) bool {
	for i := range ms {
		if matchSAN(leaf, &ms[i]) {
			return true
		}
	}
	return false
}

func matchSAN(leaf *x509.Certificate, m *xdsresource.SANMatcher) bool {
	is := func(t xdsresource.SANType) bool { return m.Type == t || m.Type == xdsresource.SANAny }
	if is(xdsresource.SANURI) {
		if slices.ContainsFunc(identity.URIs(leaf), m.Matcher.Match) {
			return true
		}
	}
	if is(xdsresource.SANDNS) {
		for _, d := range leaf.DNSNames {
			// Envoy: an exact DNS matcher follows the rules of DNS names.
			if m.Matcher.Kind() == matcher.Exact && dnsMatch(d, m.Matcher.Text()) || m.Matcher.Match(d) {
				return true
			}
		}
	}
	if is(xdsresource.SANEmail) {
		if slices.ContainsFunc(leaf.EmailAddresses, m.Matcher.Match) {
			return true
		}
	}
	if is(xdsresource.SANIP) {
		for _, ip := range leaf.IPAddresses {
			if a, ok := netip.AddrFromSlice(ip); ok && m.Matcher.Match(a.Unmap().String()) {
				return true
			}
		}
	}
	return false
}

// dnsMatch compares host with a certificate's DNS name, whose first label may
// be "*" or hold one (as Envoy's Utility::dnsNameMatch does for whole labels).
func dnsMatch(pattern, host string) bool {
	pattern, host = strings.ToLower(pattern), strings.ToLower(host)
	if pattern == host {
		return true
	}
	suffix, ok := strings.CutPrefix(pattern, "*.")
	if !ok {
		return false
	}
	first, rest, ok := strings.Cut(host, ".")
	return ok && first != "" && rest == suffix
}

// pins are certificate and key digests; any one suffices.
type pins struct {
	spki, cert map[[sha256.Size]byte]bool
}

func (p *pins) empty() bool { return len(p.spki)+len(p.cert) == 0 }

func (p *pins) match(leaf *x509.Certificate) bool {
	return len(p.spki) > 0 && p.spki[sha256.Sum256(leaf.RawSubjectPublicKeyInfo)] ||
		len(p.cert) > 0 && p.cert[sha256.Sum256(leaf.Raw)]
}

func parsePins(v *xdsresource.Validation) (p pins, err error) {
	add := func(m *map[[sha256.Size]byte]bool, what, s string, b []byte, err error) error {
		if err != nil || len(b) != sha256.Size {
			return fmt.Errorf("%s %q is no SHA-256 digest", what, s)
		}
		if *m == nil {
			*m = map[[sha256.Size]byte]bool{}
		}
		(*m)[[sha256.Size]byte(b)] = true
		return nil
	}
	for _, s := range v.SPKI {
		b, err := base64.StdEncoding.DecodeString(s)
		if err := add(&p.spki, "verify_certificate_spki", s, b, err); err != nil {
			return p, err
		}
	}
	for _, s := range v.Hashes {
		b, err := hex.DecodeString(strings.ReplaceAll(s, ":", ""))
		if err := add(&p.cert, "verify_certificate_hash", s, b, err); err != nil {
			return p, err
		}
	}
	return p, nil
}

// pinned reports whether the leaf satisfies the pins of context and secret.
func (v *verifier) pinned(leaf *x509.Certificate, extra *xdsresource.Validation) bool {
	var more pins
	if extra != nil && len(extra.SPKI)+len(extra.Hashes) > 0 {
		var err error
		if more, err = parsePins(extra); err != nil {
			return false
		}
	}
	if v.pins.empty() && more.empty() {
		return true
	}
	return v.pins.match(leaf) || more.match(leaf)
}

// names describes a certificate in an error.
func names(c *x509.Certificate) string {
	out := append(identity.URIs(c), c.DNSNames...)
	if len(out) == 0 {
		return c.Subject.String()
	}
	return strings.Join(out, ", ")
}
