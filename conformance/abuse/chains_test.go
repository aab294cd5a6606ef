package abuse

import (
	"crypto"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"
)

// liar claims to have the private key of pub.
type liar struct{ pub *rsa.PublicKey }

func (l liar) Public() crypto.PublicKey { return l.pub }

func (l liar) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return make([]byte, l.pub.Size()), nil
}

// Certificates that cost much to read or to verify are refused for less than
// 50 ms of processor time. All of them are signed by the root that is trusted.
func TestOverlongCertificateChainsAreRefused(t *testing.T) {
	v := newTLSVictim(t)
	chain := func(n int, edit func(*x509.Certificate)) tls.Certificate {
		a, between := v.root, []*authority(nil)
		for range n {
			a = below(t, a, edit)
			between = append([]*authority{a}, between...)
		}
		return a.leaf(t, nil, between...)
	}
	constraints := func(n int) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			for i := range n {
				c.ExcludedDNSDomains = append(c.ExcludedDNSDomains, fmt.Sprintf("%d.example", i))
			}
		}
	}
	large := &rsa.PublicKey{N: new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 16384), big.NewInt(159)), E: 65537}
	// A hundred authorities of one name and one key identifier: each may have
	// signed the leaf.
	alike := func(c *x509.Certificate) { c.Subject.CommonName, c.SubjectKeyId = "twin", []byte{1, 2, 3} }
	twins := below(t, v.root, alike).leaf(t, nil)
	for range 100 {
		twins.Certificate = append(twins.Certificate, below(t, nil, alike).cert.Raw)
	}
	for _, c := range []struct {
		name string
		cert tls.Certificate
		good bool
	}{
		{"two between", chain(2, nil), true},
		{"a hundred between", chain(100, nil), false},
		{"a hundred that may have signed", twins, false},
		{"1,000 names", v.root.leaf(t, func(c *x509.Certificate) {
			for i := range 1000 {
				c.DNSNames = append(c.DNSNames, fmt.Sprintf("a-name-that-is-longer-than-most-%d.example", i))
			}
		}), false},
		{"a URI of 64 KiB", v.root.leaf(t, func(c *x509.Certificate) {
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/app/sa/" + strings.Repeat("a", 64<<10)}}
		}), false},
		{"10,000 name constraints", chain(1, constraints(10_000)), false},
		{"more than a Certificate message may have", chain(1, constraints(25_000)), false},
		{"a key of 16,384 bits", tls.Certificate{PrivateKey: liar{large}, Certificate: [][]byte{v.root.issue(t, large, workload).Raw}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := v.canaryBad.Load()
			idle := v.idleCPU(300 * time.Millisecond)
			const tries = 5
			cpu0, rss0 := v.usage()
			began := time.Now()
			for range tries {
				if v.admitted(c.cert) != c.good {
					t.Errorf("admitted: %t, want %t", !c.good, c.good)
				}
			}
			took := time.Since(began)
			cpu1, rss1 := v.usage()
			cost := (cpu1 - cpu0 - time.Duration(float64(idle)*float64(took)/float64(300*time.Millisecond))) / tries
			size := 0
			for _, b := range c.cert.Certificate {
				size += len(b)
			}
			t.Logf("%d certificates of %d KiB: %v of processor time, memory %+.1f MiB", len(c.cert.Certificate), size>>10, cost, float64(rss1-rss0)/(1<<20))
			if cost > 50*time.Millisecond {
				t.Errorf("%v of processor time a handshake, want at most 50ms", cost)
			}
			if rss1-rss0 > maxRSS {
				t.Errorf("memory grew by %d MiB", (rss1-rss0)>>20)
			}
			v.wellServed("afterwards")
			v.unharmed(bad)
		})
	}
}
