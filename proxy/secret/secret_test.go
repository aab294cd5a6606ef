package secret

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ads = xdsresource.ConfigSource{ADS: true}

func newCA(t testing.TB) *identity.DevCA {
	t.Helper()
	ca, err := identity.NewDevCA("td")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func pair(t *testing.T, ca *identity.DevCA, cn string) (chain, key []byte) {
	t.Helper()
	return pairOf(t, ca, identity.Leaf{CommonName: cn})
}

func pairOf(t *testing.T, ca *identity.DevCA, l identity.Leaf) (chain, key []byte) {
	t.Helper()
	c, err := ca.Issue(l)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return identity.EncodeCertificates(c.Certificate...), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k})
}

func store(t *testing.T, src identity.Source) *Store {
	t.Helper()
	s := NewStore(Config{Identity: src})
	t.Cleanup(s.Close)
	return s
}

func cn(t *testing.T, h *Certificate) string {
	t.Helper()
	c, err := h.Get()
	if err != nil {
		return "error: " + err.Error()
	}
	return c.Leaf.Subject.CommonName
}

func TestTheWorkloadsOwnSecretsFollowItsIdentity(t *testing.T) {
	ca := newCA(t)
	src := new(identity.Static)
	s := store(t, src)
	h, err := s.Certificate(&xdsresource.Certificate{SDSName: "default"})
	if err != nil {
		t.Fatal(err)
	}
	tr, err := s.Trust(&xdsresource.Validation{SDSName: "ROOTCA"})
	if err != nil {
		t.Fatal(err)
	}
	if got := cn(t, h); !strings.Contains(got, `"default"`) {
		t.Errorf("without identity: %s", got)
	}
	if _, err := tr.Get(); err == nil || !strings.Contains(err.Error(), `"ROOTCA"`) {
		t.Errorf("without identity: %v", err)
	}
	for _, name := range []string{"one", "two"} {
		c, _ := ca.Issue(identity.Leaf{CommonName: name})
		src.Set(identity.Material{Certificate: c, Roots: ca.Roots()})
		if got := cn(t, h); got != name {
			t.Errorf("certificate = %s, want %s", got, name)
		}
		if a, err := tr.Get(); err != nil || a.Roots != ca.Roots() {
			t.Errorf("anchors = %v, %v", a, err)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = h.Get(); _, _ = tr.Get() }); n != 0 {
		t.Errorf("%v allocations per Get", n)
	}
	// The same names over ADS are other secrets.
	h, _ = s.Certificate(&xdsresource.Certificate{SDSName: "default", SDSSource: ads})
	if got := cn(t, h); !strings.Contains(got, "has not arrived") {
		t.Errorf("default over ADS = %s", got)
	}
}

func TestADSSecretsArriveChangeAndGo(t *testing.T) {
	ca := newCA(t)
	s := store(t, nil)
	h, err := s.Certificate(&xdsresource.Certificate{SDSName: "kubernetes://x", SDSSource: ads})
	if err != nil {
		t.Fatal(err)
	}
	tr, err := s.Trust(&xdsresource.Validation{SDSName: "kubernetes://x-cacert", SDSSource: ads})
	if err != nil {
		t.Fatal(err)
	}
	if got := cn(t, h); !strings.Contains(got, `secret "kubernetes://x" has not arrived`) {
		t.Errorf("missing: %s", got)
	}
	put := func(d byte, name string) {
		chain, key := pair(t, ca, name)
		s.SetADS(map[string]*xdsresource.Secret{
			"kubernetes://x":        {Resource: xdsresource.Resource{Digest: xdsresource.Digest{d}}, Certificate: &xdsresource.Certificate{Chain: chain, Key: key}},
			"kubernetes://x-cacert": {Resource: xdsresource.Resource{Digest: xdsresource.Digest{d}}, Validation: &xdsresource.Validation{TrustedCA: ca.RootsPEM(), SPKI: []string{"p"}}},
			"g":                     {Generic: []byte("token")},
		})
	}
	put(1, "one")
	if got := cn(t, h); got != "one" {
		t.Errorf("first = %s", got)
	}
	a1, err := tr.Get()
	if err != nil || a1.Roots == nil || a1.Validation == nil || a1.Validation.SPKI[0] != "p" {
		t.Errorf("anchors = %+v, %v", a1, err)
	}
	put(1, "same digest")
	if got := cn(t, h); got != "one" {
		t.Errorf("unchanged digest: %s", got)
	}
	put(2, "two")
	if got := cn(t, h); got != "two" {
		t.Errorf("second = %s", got)
	}
	if b, err := s.Generic("g"); string(b) != "token" || err != nil {
		t.Errorf("generic = %q, %v", b, err)
	}
	if _, err := s.Generic("kubernetes://x"); err == nil {
		t.Error("a certificate passes as generic secret")
	}
	if _, err := s.Generic("no"); err == nil || !strings.Contains(err.Error(), `"no"`) {
		t.Errorf("missing generic: %v", err)
	}
	if st := s.States(); len(st) != 2 || st[0].Leaf == nil || st[0].Name != "kubernetes://x" {
		t.Errorf("states = %+v", st)
	}
	s.SetADS(map[string]*xdsresource.Secret{"kubernetes://x": {Resource: xdsresource.Resource{Digest: xdsresource.Digest{3}}, Certificate: &xdsresource.Certificate{Chain: []byte("x"), Key: []byte("y")}}})
	if got := cn(t, h); got != "two" {
		t.Errorf("a broken one should leave the former: %s", got)
	}
	if st := s.States(); st[0].Leaf == nil || st[0].Err == nil || !strings.Contains(st[0].Err.Error(), `secret "kubernetes://x":`) {
		t.Errorf("states = %+v", st)
	}
	if _, err := tr.Get(); err == nil {
		t.Error("the removed CA is still served")
	}
	// A certificate where a CA is wanted.
	x, _ := s.Trust(&xdsresource.Validation{SDSName: "kubernetes://x", SDSSource: ads})
	put(4, "four")
	if _, err := x.Get(); err == nil {
		t.Error("a certificate passes as CA")
	}
	runtime.KeepAlive(h)
}

func TestInlineCertificatesAreListedWhileTheyAreUsed(t *testing.T) {
	ca, s := newCA(t), store(t, nil)
	chain, key := pair(t, ca, "x")
	add := func() *Certificate {
		h, err := s.Certificate(&xdsresource.Certificate{Chain: chain, Key: key})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	a, b := add(), add()
	if st := s.States(); len(st) != 2 || st[0].Name != "inline" || st[0].Leaf == nil || st[0].Leaf.Subject.CommonName != "x" || st[1].Name != "inline" {
		t.Errorf("states = %+v", st)
	}
	runtime.KeepAlive(a)
	for range 100 {
		add()
	}
	for range 5 {
		runtime.GC()
	}
	if st := s.States(); len(st) > 3 {
		t.Errorf("%d states", len(st))
	}
	for i := range 500 {
		if add(); i%20 == 0 {
			runtime.GC()
		}
	}
	if n := len(s.inline); n > 250 { // twice as many as there were at once, whatever append makes of it
		t.Errorf("%d slots are kept", n)
	}
	runtime.KeepAlive(b)
}

func TestSlotsOfDroppedHandlesAreForgotten(t *testing.T) {
	s := store(t, nil)
	for range 100 {
		h, _ := s.Certificate(&xdsresource.Certificate{SDSName: "gone" + strings.Repeat("x", len(s.slots)), SDSSource: ads})
		_ = h
	}
	for range 5 {
		runtime.GC()
		s.SetADS(nil)
	}
	if n := len(s.slots); n > 2 {
		t.Errorf("%d slots are left", n)
	}
}

func TestAnExpiredCertificateReplacesOnlyWorseOnes(t *testing.T) {
	ca, log := newCA(t), &bytes.Buffer{}
	s := NewStore(Config{Logger: slog.New(slog.NewTextHandler(log, nil))})
	defer s.Close()
	h, err := s.Certificate(&xdsresource.Certificate{SDSName: "x", SDSSource: ads})
	if err != nil {
		t.Fatal(err)
	}
	digest := byte(0)
	put := func(name string, l identity.Leaf) {
		digest++
		l.CommonName = name
		chain, key := pairOf(t, ca, l)
		s.SetADS(map[string]*xdsresource.Secret{"x": {Resource: xdsresource.Resource{Digest: xdsresource.Digest{digest}}, Certificate: &xdsresource.Certificate{Chain: chain, Key: key}}})
	}
	old := identity.Leaf{NotBefore: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2020, 1, 2, 0, 0, 0, 0, time.UTC)}
	for _, c := range []struct {
		name string
		leaf identity.Leaf
		want string
	}{{"old", old, "old"}, {"older", old, "older"}, {"good", identity.Leaf{}, "good"}, {"again old", old, "good"}, {"better", identity.Leaf{}, "better"}} {
		log.Reset()
		put(c.name, c.leaf)
		if got := cn(t, h); got != c.want {
			t.Errorf("after %s: %s, want %s", c.name, got, c.want)
		}
		if said := strings.Contains(log.String(), `secret \"x\": the certificate expired at 2020-01-02`); said != !c.leaf.NotAfter.IsZero() {
			t.Errorf("%s: the log is %s", c.name, log)
		}
		if st := s.States(); (st[0].Err != nil) != (c.name == "again old") {
			t.Errorf("%s: %+v", c.name, st)
		}
	}
	runtime.KeepAlive(h)
}

func TestFilesAreReadAndFollowed(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	p := func(n string) string { return filepath.Join(dir, n) }
	write := func(name string) {
		chain, key := pair(t, ca, name)
		for n, b := range map[string][]byte{"c": chain, "k": key, "ca": ca.RootsPEM()} {
			if err := os.WriteFile(p(n), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := store(t, nil)
	early, err := s.Certificate(&xdsresource.Certificate{SDSName: "file-cert:" + p("c") + "~" + p("k")})
	if err != nil {
		t.Fatal(err)
	}
	if got := cn(t, early); !strings.Contains(got, p("c")) {
		t.Errorf("missing files: %s", got)
	}
	write("one")
	until := func(h *Certificate, want string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); cn(t, h) != want; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("certificate = %s, want %s", cn(t, h), want)
			}
		}
	}
	until(early, "one")
	if err := os.WriteFile(p("c"), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	until(early, "one")
	write("two")
	until(early, "two")
	for _, v := range []*xdsresource.Validation{{SDSName: "file-root:" + p("ca")}, {TrustedCAFile: p("ca")}, {SDSName: "file-root:system"}, {SystemRoots: true}} {
		tr, err := s.Trust(v)
		if err != nil {
			t.Fatal(err)
		}
		if a, err := tr.Get(); err != nil || a.Roots == nil {
			t.Errorf("%+v: %v", v, err)
		}
	}
	if len(s.files) != 2 {
		t.Errorf("%d sets of files, want 2", len(s.files))
	}
}

func TestSaysWhatIsWrongWithInlineMaterial(t *testing.T) {
	ca := newCA(t)
	chain, key := pair(t, ca, "x")
	s := store(t, nil)
	for name, c := range map[string]*xdsresource.Certificate{
		"no chain":    {Key: key},
		"no key":      {Chain: chain},
		"broken":      {Chain: []byte("x"), Key: key},
		"password":    {Chain: chain, Key: key, Password: "p"},
		"sds:// name": {SDSName: "sds://x"},
		"file-cert":   {SDSName: "file-cert:/only"},
		"SDS server":  {SDSName: "default", SDSSource: xdsresource.ConfigSource{APIServer: xdsresource.APIServer{Cluster: "vault"}}},
		"agent's":     {SDSName: "other", SDSSource: xdsresource.ConfigSource{APIServer: xdsresource.APIServer{Cluster: "sds-grpc"}}},
	} {
		if _, err := s.Certificate(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, v := range map[string]*xdsresource.Validation{
		"broken CA":  {TrustedCA: []byte("x")},
		"broken CRL": {TrustedCA: ca.RootsPEM(), CRL: []byte("x")},
		"SDS server": {SDSName: "ROOTCA", SDSSource: xdsresource.ConfigSource{APIServer: xdsresource.APIServer{Cluster: "vault"}}},
		"agent's":    {SDSName: "other", SDSSource: xdsresource.ConfigSource{APIServer: xdsresource.APIServer{Cluster: "sds-grpc"}}},
	} {
		if _, err := s.Trust(v); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	h, err := s.Certificate(&xdsresource.Certificate{Chain: chain, Key: key, OCSP: []byte("o")})
	if err != nil {
		t.Fatal(err)
	}
	if c, err := h.Get(); err != nil || !bytes.Equal(c.OCSPStaple, []byte("o")) {
		t.Errorf("inline: %v", err)
	}
	if tr, err := s.Trust(&xdsresource.Validation{}); tr != nil || err != nil {
		t.Errorf("no CA at all: %v, %v", tr, err)
	}
	s.SetStatic(map[string]*xdsresource.Secret{"st": {Certificate: &xdsresource.Certificate{Chain: chain, Key: key}}})
	if h, err = s.Certificate(&xdsresource.Certificate{SDSName: "st"}); err != nil || cn(t, h) != "x" {
		t.Errorf("static: %v, %s", err, cn(t, h))
	}
}
