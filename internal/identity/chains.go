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
// What is kept is bounded, of whatever pools: 16,384 answers, or 1,024 with the
// chains that an Accept is asked about. Whoever holds a good certificate, even
// without its key, can push others out by presenting it in many ways, after which
// those are verified in full again (docs/adr/0013).
func VerifyChain(certs []*x509.Certificate, v *Verification) error {
	return known.verify(certs, v)
}

// remembered is how much is kept of recent answers, and as much of those that were
// recent before them: an answer counts 1, for some 300 bytes, with its chain
// chainPrice, for some 6 KiB, most of which is the parsed leaf.
const remembered, chainPrice = 8192, 16

var known chainCache

// chainCache is safe for concurrent use. The zero value is empty.
type chainCache struct {
	mu sync.Mutex
	// recent is filled until it is worth remembered and then becomes old, whose
	// entries move back when they are used.
	recent, old map[chainKey][]goodChain
	worth       int
}

// goodChain is a chain that was verified.
type goodChain struct {
	from, until time.Time // while all of its certificates are valid
	// chain is nil if nobody had to be asked about it.
	chain []*x509.Certificate
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
	for _, g := range cc.get(k) {
		if !v.Now.Before(g.from) && !v.Now.After(g.until) && (v.Accept == nil || g.chain != nil && v.Accept(g.chain) == nil) {
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
	cc.put(k, goodChains(chains, v.Accept != nil))
	if v.Accept == nil {
		return nil
	}
	for _, chain := range chains {
		if err = v.Accept(chain); err == nil {
			return nil
		}
	}
	return err
}

// goodChains notes from when until when each is valid, as x509 understands it.
func goodChains(chains [][]*x509.Certificate, keep bool) []goodChain {
	out := make([]goodChain, len(chains))
	for i, chain := range chains {
		g := goodChain{from: chain[0].NotBefore, until: chain[0].NotAfter}
		for _, c := range chain[1:] {
			if c.NotBefore.After(g.from) {
				g.from = c.NotBefore
			}
			if c.NotAfter.Before(g.until) {
				g.until = c.NotAfter
			}
		}
		if keep {
			g.chain = chain
		}
		out[i] = g
	}
	return out
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

func (cc *chainCache) get(k chainKey) []goodChain {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if good, ok := cc.recent[k]; ok {
		return good
	}
	good, ok := cc.old[k]
	if ok {
		cc.putLocked(k, good)
	}
	return good
}

func (cc *chainCache) put(k chainKey, good []goodChain) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	cc.putLocked(k, good)
}

func (cc *chainCache) putLocked(k chainKey, good []goodChain) {
	if cc.recent == nil || cc.worth >= remembered {
		cc.recent, cc.old, cc.worth = map[chainKey][]goodChain{}, cc.recent, 0
	}
	for _, g := range good { // also if it replaces one: it may be worth more
		if g.chain != nil {
			cc.worth += chainPrice
		} else {
			cc.worth++
		}
	}
	cc.recent[k] = good
}
