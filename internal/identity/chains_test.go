package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"
	"weak"
)

// pki is a root, one CA below it and a leaf below that, with these lives.
type pki struct {
	root, between, leaf *x509.Certificate
	rootKey             *ecdsa.PrivateKey
	roots               *x509.CertPool
}

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func newPKI(t testing.TB, root, between, leaf time.Duration) *pki {
	t.Helper()
	p := &pki{roots: x509.NewCertPool()}
	sign := func(c, parent *x509.Certificate, parentKey *ecdsa.PrivateKey, life time.Duration) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c.SerialNumber, c.BasicConstraintsValid, c.NotBefore, c.NotAfter = serial(), true, noon.Add(-life), noon.Add(life)
		if parent == nil {
			parent, parentKey = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), parentKey)
		if err != nil {
			t.Fatal(err)
		}
		return parsed(t, der), key
	}
	ca := func(name string) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: name, SerialNumber: serial().String()}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	}
	var betweenKey *ecdsa.PrivateKey
	p.root, p.rootKey = sign(ca("root"), nil, nil, root)
	p.between, betweenKey = sign(ca("between"), p.root, p.rootKey, between)
	p.leaf, _ = sign(&x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}, p.between, betweenKey, leaf)
	p.roots.AddCert(p.root)
	return p
}

func parsed(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// spoiled is c with a signature that does not verify, though the bytes are those
// that were presented before: good only for who does not verify it again.
func spoiled(t testing.TB, c *x509.Certificate) *x509.Certificate {
	t.Helper()
	s := parsed(t, c.Raw)
	s.Signature = slices.Clone(s.Signature)
	s.Signature[len(s.Signature)-1] ^= 1
	return s
}

func TestAGoodChainIsRememberedForTheSameQuestionOnly(t *testing.T) {
	p, other := newPKI(t, 3*time.Hour, 2*time.Hour, time.Hour), newPKI(t, 3*time.Hour, 2*time.Hour, time.Hour)
	again := x509.NewCertPool() // the same roots, pushed again
	again.AddCert(p.root)
	refuse := errors.New("revoked")
	asked := func(v Verification) Verification {
		if v.Roots == nil {
			v.Roots = p.roots
		}
		if v.Now.IsZero() {
			v.Now = noon
		}
		if v.Usage == 0 {
			v.Usage = x509.ExtKeyUsageClientAuth
		}
		return v
	}
	for _, c := range []struct {
		name  string
		more  []*x509.Certificate // after the leaf and the CA
		v     Verification
		known bool
	}{
		{"the same again", nil, Verification{}, true},
		{"just before the leaf expires", nil, Verification{Now: noon.Add(time.Hour)}, true},
		{"with a demand that is met", nil, Verification{Accept: func([]*x509.Certificate) error { return nil }}, true},

		{"with a demand that is not met", nil, Verification{Accept: func([]*x509.Certificate) error { return refuse }}, false},
		{"for another usage", nil, Verification{Usage: x509.ExtKeyUsageServerAuth}, false},
		{"by other roots", nil, Verification{Roots: other.roots}, false},
		{"by the same roots that came anew", nil, Verification{Roots: again}, false},
		{"by no root", nil, Verification{Roots: x509.NewCertPool()}, false},
		{"with another CA beside", []*x509.Certificate{other.between}, Verification{}, false},
		{"after the leaf has expired", nil, Verification{Now: noon.Add(time.Hour + time.Second)}, false},
		{"before the leaf is valid", nil, Verification{Now: noon.Add(-time.Hour - time.Second)}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var cc chainCache
			first := asked(Verification{})
			if c.v.Accept != nil {
				first.Accept = func([]*x509.Certificate) error { return nil }
			}
			if err := cc.verify([]*x509.Certificate{p.leaf, p.between}, &first); err != nil {
				t.Fatal(err)
			}
			v := asked(c.v)
			certs := append([]*x509.Certificate{spoiled(t, p.leaf), p.between}, c.more...)
			if err := cc.verify(certs, &v); (err == nil) != c.known {
				t.Errorf("%v, want to be remembered: %v", err, c.known)
			}
			// Nothing of that is remembered as good that is not.
			v = asked(c.v)
			if err := cc.verify(certs, &v); (err == nil) != c.known {
				t.Errorf("once more: %v", err)
			}
		})
	}
}

// The leaf outlives what signed it.
func TestARememberedChainEndsWithTheFirstOfItsCertificates(t *testing.T) {
	for name, p := range map[string]*pki{
		"the root":       newPKI(t, time.Hour, 2*time.Hour, 3*time.Hour),
		"the CA between": newPKI(t, 3*time.Hour, time.Hour, 2*time.Hour),
		"the leaf":       newPKI(t, 3*time.Hour, 2*time.Hour, time.Hour),
	} {
		var cc chainCache
		certs := []*x509.Certificate{p.leaf, p.between}
		for _, c := range []struct {
			at   time.Duration
			good bool
		}{{0, true}, {time.Hour, true}, {time.Hour + 1, false}, {-time.Hour, true}, {-time.Hour - 1, false}, {0, true}} {
			v := Verification{Roots: p.roots, Usage: x509.ExtKeyUsageClientAuth, Now: noon.Add(c.at)}
			if err := cc.verify(certs, &v); (err == nil) != c.good {
				t.Errorf("%s, %v from noon: %v", name, c.at, err)
			}
		}
	}
}

func TestARefusalIsNotRemembered(t *testing.T) {
	p := newPKI(t, time.Hour, time.Hour, time.Hour)
	var cc chainCache
	v := Verification{Roots: p.roots, Usage: x509.ExtKeyUsageClientAuth, Now: noon}
	if err := cc.verify([]*x509.Certificate{spoiled(t, p.leaf), p.between}, &v); err == nil {
		t.Fatal("a bad signature is good")
	}
	if err := cc.verify([]*x509.Certificate{p.leaf, p.between}, &v); err != nil {
		t.Error(err)
	}
	for name, certs := range map[string][]*x509.Certificate{"nothing": nil, "no CA between": {p.leaf}, "a CA": {p.between}} {
		if err := cc.verify(certs, &v); (err == nil) != (name == "a CA") {
			t.Errorf("%s: %v", name, err)
		}
	}
	v.Roots = nil
	if err := cc.verify([]*x509.Certificate{p.leaf, p.between}, &v); !errors.Is(err, errNoRoots) {
		t.Errorf("without roots: %v", err)
	}
}

// Two lists cross-sign: the chain that is remembered may be refused while another
// is good.
func TestAChainThatIsRefusedDoesNotHideAnotherOne(t *testing.T) {
	p := newPKI(t, time.Hour, time.Hour, time.Hour)
	p.roots.AddCert(p.between) // now there is a shorter one, too
	var cc chainCache
	for range 2 {
		for _, n := range []int{2, 3} {
			v := Verification{Roots: p.roots, Usage: x509.ExtKeyUsageClientAuth, Now: noon, Accept: func(c []*x509.Certificate) error {
				if len(c) != n {
					return errors.New("not this one")
				}
				return nil
			}}
			if err := cc.verify([]*x509.Certificate{p.leaf, p.between}, &v); err != nil {
				t.Errorf("%d certificates: %v", n, err)
			}
		}
	}
}

func TestWhatIsRememberedIsBoundedAndTheUsedStays(t *testing.T) {
	roots := x509.NewCertPool()
	key := func(n int) (k chainKey) {
		big.NewInt(int64(n)).FillBytes(k.presented[:])
		k.roots = weak.Make(roots)
		return k
	}
	for name, c := range map[string]struct {
		good []goodChain
		most int // a generation
	}{
		"dates":      {[]goodChain{{}}, remembered},
		"a chain":    {[]goodChain{{chain: []*x509.Certificate{{}}}}, remembered / chainPrice},
		"two chains": {[]goodChain{{chain: []*x509.Certificate{{}}}, {chain: []*x509.Certificate{{}}}}, remembered / (2 * chainPrice)},
	} {
		var cc chainCache
		cc.put(key(0), c.good)
		for n := range 3 * c.most {
			cc.put(key(n+1), c.good)
			if cc.get(key(0)) == nil {
				t.Fatalf("%s: the used one is gone after %d others", name, n)
			}
			if len(cc.recent) > c.most+1 || len(cc.old) > c.most+1 {
				t.Fatalf("%s: %d and %d are remembered", name, len(cc.recent), len(cc.old))
			}
		}
		if cc.get(key(1)) != nil {
			t.Errorf("%s: the oldest one is still there", name)
		}
	}
}

// Who has demands of the chain gets it kept, and who has none doesn't lose it.
func TestAChainIsKeptForThoseWhoAskAboutIt(t *testing.T) {
	p := newPKI(t, time.Hour, time.Hour, time.Hour)
	certs, again := []*x509.Certificate{p.leaf, p.between}, []*x509.Certificate{spoiled(t, p.leaf), p.between}
	var cc chainCache
	plain := Verification{Roots: p.roots, Usage: x509.ExtKeyUsageClientAuth, Now: noon}
	asking := plain
	asked := 0
	asking.Accept = func(chain []*x509.Certificate) error {
		asked++
		if len(chain) != 3 || !chain[2].Equal(p.root) {
			t.Errorf("asked about %d certificates", len(chain))
		}
		return nil
	}
	for i, step := range []struct {
		v     *Verification
		certs []*x509.Certificate
		good  bool
	}{
		{&plain, certs, true},
		{&asking, again, false}, // nothing to ask about: in full
		{&asking, certs, true},
		{&asking, again, true},
		{&plain, again, true},
		{&asking, again, true},
	} {
		if err := cc.verify(step.certs, step.v); (err == nil) != step.good {
			t.Errorf("step %d: %v", i, err)
		}
	}
	if asked != 3 {
		t.Errorf("asked %d times", asked)
	}
}

func TestChainsAreVerifiedByManyAtOnce(t *testing.T) {
	var ps []*pki
	for range 4 {
		ps = append(ps, newPKI(t, time.Hour, time.Hour, time.Hour))
	}
	var cc chainCache
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 50 {
				p, q := ps[(i+n)%len(ps)], ps[n%len(ps)]
				v := Verification{Roots: q.roots, Usage: x509.ExtKeyUsageClientAuth, Now: noon}
				if err := cc.verify([]*x509.Certificate{p.leaf, p.between}, &v); (err == nil) != (p == q) {
					t.Errorf("%v", err)
				}
			}
		})
	}
	wg.Wait()
}

func TestARememberedChainCostsNoMemory(t *testing.T) {
	p := newPKI(t, time.Hour, time.Hour, time.Hour)
	p.roots.AddCert(p.between)
	certs := []*x509.Certificate{p.leaf}
	var cc chainCache
	v := Verification{Roots: p.roots, Usage: x509.ExtKeyUsageClientAuth, Now: noon}
	if n := testing.AllocsPerRun(100, func() {
		if err := cc.verify(certs, &v); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzRememberingChangesNoAnswer: whatever is asked in whatever order, the answer is
// that of somebody who remembers nothing. Each byte of the input is a part of a
// question: certificates, roots, usage, time, demand.
func FuzzRememberingChangesNoAnswer(f *testing.F) {
	a, b := newPKI(f, 3*time.Hour, 2*time.Hour, time.Hour), newPKI(f, time.Hour, 2*time.Hour, 3*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, a.between, b.root, a.between.PublicKey, b.rootKey)
	if err != nil {
		f.Fatal(err)
	}
	crossed := parsed(f, der) // so that a's leaf has a chain to b's root
	certs := [][]*x509.Certificate{
		{a.leaf, a.between},
		{a.leaf, crossed},
		{a.leaf, a.between, crossed},
		{a.leaf, crossed, a.between},
		{b.leaf, b.between},
		{b.leaf, b.between, a.between},
		{a.leaf},
		{a.between},
		{spoiled(f, a.leaf), b.between},
		{b.leaf, a.between},
	}
	both := x509.NewCertPool()
	both.AddCert(a.root)
	both.AddCert(b.root)
	pools := []*x509.CertPool{a.roots, b.roots, both, x509.NewCertPool(), nil}
	times := []time.Duration{0, time.Hour, time.Hour + 1, 2*time.Hour + 1, 3*time.Hour + 1, -time.Hour - 1, -2*time.Hour - 1}
	usages := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageEmailProtection}
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0})
	f.Add([]byte{2, 2, 0, 0, 1, 2, 2, 0, 0, 2, 2, 2, 0, 3, 1, 2, 1, 0, 2, 0})
	f.Add([]byte{3, 2, 1, 0, 0, 3, 0, 1, 0, 0, 3, 1, 1, 2, 0, 1, 1, 1, 0, 2})
	f.Fuzz(func(t *testing.T, in []byte) {
		var cc chainCache
		for q := range slices.Chunk(in[:min(len(in), 200)], 5) {
			if len(q) < 5 {
				break
			}
			v := Verification{Roots: pools[int(q[1])%len(pools)], Usage: usages[int(q[2])%len(usages)], Now: noon.Add(times[int(q[3])%len(times)])}
			if n := int(q[4]) % 3; n > 0 {
				v.Accept = func(chain []*x509.Certificate) error {
					if chain[len(chain)-1].Equal([]*x509.Certificate{a.root, b.root}[n-1]) {
						return nil
					}
					return errors.New("another root")
				}
			}
			c := certs[int(q[0])%len(certs)]
			got, want := cc.verify(c, &v), new(chainCache).verify(c, &v)
			if (got == nil) != (want == nil) {
				t.Fatalf("%v: %v, with nothing remembered %v", q, got, want)
			}
		}
	})
}

func BenchmarkVerifyChain(b *testing.B) {
	p := newPKI(b, time.Hour, time.Hour, time.Hour)
	v := Verification{Roots: p.roots, Usage: x509.ExtKeyUsageClientAuth, Now: noon}
	for name, fresh := range map[string]bool{"new": true, "remembered": false} {
		b.Run(name, func(b *testing.B) {
			var cc chainCache
			b.ReportAllocs()
			for b.Loop() {
				if fresh {
					cc = chainCache{}
				}
				if err := cc.verify([]*x509.Certificate{p.leaf, p.between}, &v); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
