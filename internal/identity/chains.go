package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"sync"
	"time"
	"weak"
)

// Verification is what VerifyChain asks of a peer's certificates.
type Verification struct {
	// Roots are the trusted CAs. The pool must not change any more: another
	// set of CAs is another pool.
	Roots *x509.CertPool
	// Usage is what the peer authenticates as.
	Usage x509.ExtKeyUsage
	// Now is the time at which everything must be valid.
	Now time.Time
	// Accept is asked about each chain, leaf first and root last, and may have
	// further demands (revocation, length); nil has none.
	Accept func(chain []*x509.Certificate) error
}

// VerifyChain verifies what a peer presents, leaf first: dates, signatures up to
// one of the roots, constraints and usage, and that Accept takes one of the
// chains. What has too many certificates, or too large ones, is refused unread.
//
// A chain that was found good is remembered, because each of its signatures is a
// tenth of what a handshake costs and the same peers come again and again. What is
// remembered is a fact that can't become untrue: these very certificates (by the
// SHA-256 of what was presented, so that other intermediates are another
// question) lead by this chain to this very pool, for this usage. Everything that
// may change is looked at each time: the dates of every certificate of the chain,
// the root's among them, and what Accept demands. Roots that were replaced are
// another pool, whose chains are found anew: a root that is gone takes what was
// remembered with it at once. What is not remembered, or is no longer good, is
// verified in full; a refusal is never remembered. That a peer holds the key of
// its certificate is the handshake's business, each time.
//
// At most 1,024 answers are kept, of whatever pools. Whoever holds a good
// certificate, even without its key, can push others out by presenting it in
// many ways, after which those are verified in full again (docs/adr/0013).
func VerifyChain(certs []*x509.Certificate, v *Verification) error {
	return known.verify(certs, v)
}

// remembered is how many recent chains are kept, and as many that were recent
// before them. One takes some 6 KiB, most of it the parsed leaf.
const remembered = 512

var known chainCache

// chainCache is safe for concurrent use. The zero value is empty.
type chainCache struct {
	mu sync.Mutex
	// recent is filled until it has remembered entries and then becomes old,
	// whose entries move back when they are used.
	recent, old map[chainKey][][]*x509.Certificate
}

// chainKey is a question. The weak pointer is equal for the same pool only, also
// when that is gone and another one has its address, and does not keep it.
type chainKey struct {
	presented [sha256.Size]byte
	roots     weak.Pointer[x509.CertPool]
	usage     x509.ExtKeyUsage
}

var errNoCertificates, errNoRoots = errors.New("the peer presented no certificate"), errors.New("no trusted CA is configured")

func (cc *chainCache) verify(certs []*x509.Certificate, v *Verification) error {
	switch {
	case len(certs) == 0:
		return errNoCertificates
	case v.Roots == nil: // which x509 would take for the system's
		return errNoRoots
	}
	if err := CheckChain(certs); err != nil {
		return err
	}
	k := chainKey{presented: digest(certs), roots: weak.Make(v.Roots), usage: v.Usage}
	for _, chain := range cc.get(k) {
		if validAt(chain, v.Now) && v.accept(chain) == nil {
			return nil
		}
	}
	o := x509.VerifyOptions{Roots: v.Roots, KeyUsages: []x509.ExtKeyUsage{v.Usage}, CurrentTime: v.Now}
	if len(certs) > 1 {
		o.Intermediates = x509.NewCertPool()
		for _, c := range certs[1:] {
			o.Intermediates.AddCert(c)
		}
	}
	chains, err := certs[0].Verify(o)
	if err != nil {
		return err
	}
	cc.put(k, chains)
	for _, chain := range chains {
		if err = v.accept(chain); err == nil {
			return nil
		}
	}
	return err
}

func (v *Verification) accept(chain []*x509.Certificate) error {
	if v.Accept == nil {
		return nil
	}
	return v.Accept(chain)
}

// digest is the SHA-256 of all certificates, each of which says itself where it
// ends (DER).
func digest(certs []*x509.Certificate) (d [sha256.Size]byte) {
	if len(certs) == 1 {
		return sha256.Sum256(certs[0].Raw)
	}
	h := sha256.New()
	for _, c := range certs {
		_, _ = h.Write(c.Raw)
	}
	h.Sum(d[:0])
	return d
}

// validAt is what x509 asks of the dates of every certificate of a chain.
func validAt(chain []*x509.Certificate, now time.Time) bool {
	for _, c := range chain {
		if now.Before(c.NotBefore) || now.After(c.NotAfter) {
			return false
		}
	}
	return true
}

func (cc *chainCache) get(k chainKey) [][]*x509.Certificate {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if chains, ok := cc.recent[k]; ok {
		return chains
	}
	chains, ok := cc.old[k]
	if ok {
		cc.putLocked(k, chains)
	}
	return chains
}

func (cc *chainCache) put(k chainKey, chains [][]*x509.Certificate) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	cc.putLocked(k, chains)
}

func (cc *chainCache) putLocked(k chainKey, chains [][]*x509.Certificate) {
	if cc.recent == nil || len(cc.recent) >= remembered {
		cc.recent, cc.old = map[chainKey][][]*x509.Certificate{}, cc.recent
	}
	cc.recent[k] = chains
}
