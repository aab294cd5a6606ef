package secret

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func TestRevocationListsAreChecked(t *testing.T) {
	ca := newCA(t)
	root, _ := identity.ParseCertificates(ca.RootsPEM())
	good, _ := ca.Issue(identity.Leaf{})
	bad, _ := ca.Issue(identity.Leaf{})
	list := func(next time.Time) CRLs {
		t.Helper()
		der, err := ca.SignCRL(&x509.RevocationList{
			Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: next,
			RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: bad.Leaf.SerialNumber, RevocationTime: time.Now()}},
		})
		if err != nil {
			t.Fatal(err)
		}
		cs, err := parseCRLs(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
		if err != nil {
			t.Fatal(err)
		}
		return cs
	}
	cs := list(time.Now().Add(time.Hour))
	now := time.Now()
	if err := cs.Check([]*x509.Certificate{good.Leaf, root[0]}, now); err != nil {
		t.Errorf("a good certificate: %v", err)
	}
	for name, err := range map[string]error{
		"revoked":     cs.Check([]*x509.Certificate{bad.Leaf, root[0]}, now),
		"out of date": list(now.Add(-time.Minute)).Check([]*x509.Certificate{good.Leaf, root[0]}, now),
		"no list":     CRLs{}.Check([]*x509.Certificate{good.Leaf, root[0]}, now),
		"forged": func() error {
			other := newCA(t) // same name, other key
			o, _ := identity.ParseCertificates(other.RootsPEM())
			c, _ := other.Issue(identity.Leaf{})
			return list(now.Add(time.Hour)).Check([]*x509.Certificate{c.Leaf, o[0]}, now)
		}(),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// What ends open connections: a list revokes what it names, if its issuer signed
// it, also when it is out of date. About others it says nothing.
func TestAListRevokesWhatItNames(t *testing.T) {
	ca, other := newCA(t), newCA(t) // of one name, with two keys
	root, _ := identity.ParseCertificates(ca.RootsPEM())
	otherRoot, _ := identity.ParseCertificates(other.RootsPEM())
	good, _ := ca.Issue(identity.Leaf{})
	bad, _ := ca.Issue(identity.Leaf{})
	der, err := ca.SignCRL(&x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now().Add(-2 * time.Hour), NextUpdate: time.Now().Add(-time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: bad.Leaf.SerialNumber, RevocationTime: time.Now()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	cs, err := parseCRLs(der)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		lists           CRLs
		leaf, root      *x509.Certificate
		listed, revoked bool
	}{
		"what it names":               {cs, bad.Leaf, root[0], true, true},
		"another one":                 {cs, good.Leaf, root[0], false, false},
		"what another issuer made":    {cs, bad.Leaf, otherRoot[0], true, false},
		"what there is no list about": {CRLs{}, bad.Leaf, root[0], false, false},
		"without lists":               {nil, bad.Leaf, root[0], false, false},
	} {
		if got := tc.lists.Lists([]*x509.Certificate{tc.leaf}); got != tc.listed {
			t.Errorf("%s: listed %v", name, got)
		}
		if err := tc.lists.Revoked([]*x509.Certificate{tc.leaf, tc.root}); (err != nil) != tc.revoked {
			t.Errorf("%s: %v", name, err)
		}
	}
	if cs.Revoked([]*x509.Certificate{bad.Leaf}) != nil {
		t.Error("a root of its own is revoked")
	}
}

// A file with lists is followed, also if it is named in a secret; a broken one
// takes nothing away, and none at the start lets nobody in.
func TestFilesWithRevocationListsAreFollowed(t *testing.T) {
	ca := newCA(t)
	bad, _ := ca.Issue(identity.Leaf{})
	list := func(serials ...*big.Int) []byte {
		t.Helper()
		l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
		for _, n := range serials {
			l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: time.Now()})
		}
		der, err := ca.SignCRL(l)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	}
	for _, inSecret := range []bool{false, true} {
		file := filepath.Join(t.TempDir(), "crl.pem")
		var told atomic.Int32
		s := NewStore(Config{Revoked: func() { told.Add(1) }})
		v := &xdsresource.Validation{TrustedCA: ca.RootsPEM(), CRLFile: file}
		if inSecret {
			s.SetADS(map[string]*xdsresource.Secret{"trust": {Validation: v}})
			v = &xdsresource.Validation{SDSName: "trust", SDSSource: xdsresource.ConfigSource{ADS: true}}
		}
		tr, err := s.Trust(v)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tr.Get(); err == nil {
			t.Error("without the file there are anchors")
		}
		revokes := func() bool {
			a, err := tr.Get()
			return err == nil && a.Roots != nil && a.CRLs.Lists([]*x509.Certificate{bad.Leaf})
		}
		write := func(b []byte) {
			t.Helper()
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		await := func(what string, ok func() bool) {
			t.Helper()
			for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("not within 10 s: %s", what)
				}
			}
		}
		write(list())
		await("the first list", func() bool { a, err := tr.Get(); return err == nil && a.CRLs != nil })
		if revokes() {
			t.Error("an empty list revokes")
		}
		before := told.Load()
		write(list(bad.Leaf.SerialNumber))
		await("the second list", revokes)
		await("word of it", func() bool { return told.Load() > before })
		write([]byte("junk"))
		await("the error", func() bool {
			return slices.ContainsFunc(s.States(), func(st State) bool { return st.Name == file && st.Err != nil })
		})
		if !revokes() {
			t.Error("a broken file took the list away")
		}
		s.Close()
	}
}

// FuzzParseCRLs: what is accepted has a list for each issuer, and written in
// PEM it revokes the same.
func FuzzParseCRLs(f *testing.F) {
	f.Add([]byte("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"))
	ca := newCA(f)
	for _, n := range []int64{0, 1, 77} {
		l := &x509.RevocationList{Number: big.NewInt(n + 1), ThisUpdate: time.Unix(1, 0), NextUpdate: time.Unix(1e9, 0)}
		if n > 0 {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(n), RevocationTime: time.Unix(1, 0)}}
		}
		der, err := ca.SignCRL(l)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
		f.Add(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		cs, err := parseCRLs(b)
		if err != nil {
			return
		}
		if len(cs) == 0 {
			t.Fatal("no list and no error")
		}
		var again bytes.Buffer
		for issuer, c := range cs {
			if issuer != string(c.list.RawIssuer) || len(c.revoked) > len(c.list.RevokedCertificateEntries) {
				t.Fatalf("list of %q under %q, %d of %d", c.list.RawIssuer, issuer, len(c.revoked), len(c.list.RevokedCertificateEntries))
			}
			_ = pem.Encode(&again, &pem.Block{Type: "X509 CRL", Bytes: c.list.Raw})
		}
		cs2, err := parseCRLs(again.Bytes())
		if err != nil || len(cs2) != len(cs) {
			t.Fatalf("%d lists, in PEM %d, %v", len(cs), len(cs2), err)
		}
		for issuer, c := range cs {
			if !maps.Equal(c.revoked, cs2[issuer].revoked) {
				t.Fatalf("%v, in PEM %v", c.revoked, cs2[issuer].revoked)
			}
		}
	})
}
