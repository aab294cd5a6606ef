package identity

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	securityv1alpha1pb "istio.io/api/security/v1alpha1"

	"github.com/fairlead-mesh/fairlead/internal/sweep"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var me = ID{"cluster.local", "app", "waypoint"}

func newCA(t *testing.T) *DevCA {
	t.Helper()
	ca, err := NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestParseIDAcceptsExactlyIstiosForm(t *testing.T) {
	for in, want := range map[string]ID{
		"spiffe://cluster.local/ns/app/sa/waypoint": me,
		"spiffe://td-1.x_y/ns/a.b/sa/C":             {"td-1.x_y", "a.b", "C"},
		"spiffe://cluster.local/ns/app/sa":          {},
		"spiffe://cluster.local/ns/app/sa/":         {},
		"spiffe://cluster.local/ns/app/sa/a/b":      {},
		"spiffe://cluster.local/ns//sa/a":           {},
		"spiffe://cluster.local/ns/../sa/a":         {},
		"spiffe:///ns/app/sa/a":                     {},
		"spiffe://Cluster/ns/app/sa/a":              {},
		"spiffe://c:1/ns/app/sa/a":                  {},
		"spiffe://u@c/ns/app/sa/a":                  {},
		"spiffe://c/ns/app/sa/a?x":                  {},
		"spiffe://c/ns/app/sa/%61":                  {},
		"SPIFFE://c/ns/app/sa/a":                    {},
		"https://c/ns/app/sa/a":                     {},
		"":                                          {},
	} {
		got, err := ParseID(in)
		if got != want || (err == nil) != (want != ID{}) {
			t.Errorf("ParseID(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	if td, err := TrustDomain("spiffe://td/any/path"); td != "td" || err != nil {
		t.Errorf("TrustDomain = %q, %v", td, err)
	}
}

// FuzzParseID: an ID that is accepted is written as it was read.
func FuzzParseID(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/app/sa/waypoint")
	f.Add("spiffe://a/b/./..")
	f.Fuzz(sweep.Around(f, func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			return
		}
		sweep.Accepted()
		if id.String() != s {
			t.Errorf("ParseID(%q) = %v", s, id)
		}
	}))
}

func TestADevelopmentCertificateVerifies(t *testing.T) {
	ca := newCA(t)
	src, err := ca.Source(me)
	if err != nil {
		t.Fatal(err)
	}
	c := src.Certificate()
	if id, err := IDOf(c.Leaf); id != me || err != nil {
		t.Errorf("IDOf = %v, %v", id, err)
	}
	for _, u := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: src.Roots(), KeyUsages: []x509.ExtKeyUsage{u}}); err != nil {
			t.Errorf("usage %v: %v", u, err)
		}
	}
	if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: newCA(t).Roots()}); err == nil {
		t.Error("verifies with another CA's root")
	}
}

func writePair(t *testing.T, dir string, ca *DevCA, id ID) {
	t.Helper()
	c, err := ca.Issue(Leaf{URIs: []string{id.String()}})
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"cert.pem": EncodeCertificates(c.Certificate...), "ca.pem": ca.RootsPEM(),
		"key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFilesAreFollowedAndBrokenOnesIgnored(t *testing.T) {
	ca, dir := newCA(t), t.TempDir()
	writePair(t, dir, ca, me)
	p := func(n string) string { return filepath.Join(dir, n) }
	f, err := NewFiles(p("cert.pem"), p("key.pem"), p("ca.pem"), nil)
	if err != nil {
		t.Fatal(err)
	}
	f.watch.Settle, f.watch.Poll = 20*time.Millisecond, 50*time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = f.Run(ctx) }()
	defer func() { cancel(); <-done }()
	time.Sleep(50 * time.Millisecond)

	if err := os.WriteFile(p("cert.pem"), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(150 * time.Millisecond)
	if id, err := IDOf(f.Certificate().Leaf); id != me || err != nil {
		t.Errorf("after a broken file: %v, %v", id, err)
	}
	changed := f.Changed()
	other := ID{"cluster.local", "app", "other"}
	writePair(t, dir, ca, other)
	timer := time.NewTimer(5 * time.Second)
	defer timer.Stop()
	for {
		select {
		case <-changed:
			changed = f.Changed()
		case <-timer.C:
			t.Fatal("the new files were not taken")
		}
		if id, _ := IDOf(f.Certificate().Leaf); id == other {
			return
		}
	}
}

func TestFilesMustBeGoodAtFirst(t *testing.T) {
	dir := t.TempDir()
	if _, err := NewFiles(filepath.Join(dir, "c"), filepath.Join(dir, "k"), "", nil); err == nil || !strings.Contains(err.Error(), "certificate chain") {
		t.Errorf("missing files: %v", err)
	}
	writePair(t, dir, newCA(t), me)
	key, _ := os.ReadFile(filepath.Join(dir, "key.pem"))
	writePair(t, dir, newCA(t), me)
	_ = os.WriteFile(filepath.Join(dir, "key.pem"), key, 0o600)
	if _, err := NewFiles(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), "", nil); err == nil {
		t.Error("a key of another certificate was accepted")
	}
}

func TestRotatesAtHalfTheLifetimeAndKeepsTheOldOneMeanwhile(t *testing.T) {
	ca := newCA(t) // outside of the bubble: its clock starts in 2000
	synctest.Test(t, func(t *testing.T) {
		ca.cert.NotBefore = time.Now()
		var mu sync.Mutex
		var at []time.Time
		attempts := func() []time.Time {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(at)
		}
		issue := ca.Issuer(me, 24*time.Hour)
		var fail atomic.Bool
		r := NewRotator(RotatorConfig{Fetch: func(ctx context.Context) (Material, error) {
			mu.Lock()
			at = append(at, time.Now())
			mu.Unlock()
			if fail.Load() {
				return Material{}, errors.New("no answer")
			}
			return issue(ctx)
		}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = r.Run(ctx) }()
		synctest.Wait()
		first := r.Certificate()
		if first == nil {
			t.Fatal("no certificate")
		}
		changed := r.Changed()
		fail.Store(true)
		time.Sleep(13 * time.Hour)
		synctest.Wait()
		life := first.Leaf.NotAfter.Sub(first.Leaf.NotBefore)
		if d := attempts()[1].Sub(first.Leaf.NotBefore); d < life*49/100 || d > life*51/100 {
			t.Errorf("renewed after %v of %v", d, life)
		}
		if r.Certificate() != first {
			t.Error("the old certificate is gone although there is no new one")
		}
		if _, err := r.Err(); err == nil {
			t.Error("the failure is not reported")
		}
		tries := attempts()
		n := len(tries)
		if pause := tries[n-1].Sub(tries[n-2]); pause < 95*time.Second || pause > 145*time.Second {
			t.Errorf("pauses after failures reach %v, want about 2 min", pause)
		}
		select {
		case <-changed:
			t.Error("a change was announced")
		default:
		}
		fail.Store(false)
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if r.Certificate() == first {
			t.Error("no new certificate after the failures ended")
		}
		<-changed
		n = len(attempts())
		r.Renew()
		synctest.Wait()
		if got := len(attempts()); got != n+1 {
			t.Errorf("Renew made %d attempts", got-n)
		}
		cancel()
		synctest.Wait()
	})
}

func TestAShortLivedCertificateDoesNotMakeABusyLoop(t *testing.T) {
	ca := newCA(t)
	synctest.Test(t, func(t *testing.T) {
		var count atomic.Int32
		issue := ca.Issuer(me, time.Minute)
		r := NewRotator(RotatorConfig{Fetch: func(ctx context.Context) (Material, error) { count.Add(1); return issue(ctx) }})
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = r.Run(ctx) }()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := count.Load(); n < 15 || n > 25 {
			t.Errorf("%d certificates of 1 min in 10 min", n)
		}
		cancel()
		synctest.Wait()
	})
}

type fakeIstiod struct {
	securityv1alpha1pb.UnimplementedIstioCertificateServiceServer
	ca     *DevCA
	req    *securityv1alpha1pb.IstioCertificateRequest
	answer func(csr []byte) ([]string, error)
}

func (f *fakeIstiod) CreateCertificate(_ context.Context, r *securityv1alpha1pb.IstioCertificateRequest) (*securityv1alpha1pb.IstioCertificateResponse, error) {
	f.req = r
	chain, err := f.answer([]byte(r.GetCsr()))
	return &securityv1alpha1pb.IstioCertificateResponse{CertChain: chain}, err
}

func istiod(t *testing.T) (*fakeIstiod, *grpc.ClientConn) {
	t.Helper()
	f := &fakeIstiod{ca: newCA(t)}
	f.answer = func(csr []byte) ([]string, error) { return f.ca.SignCSR(csr, me.String(), time.Hour) }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	securityv1alpha1pb.RegisterIstioCertificateServiceServer(s, f)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	c, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return f, c
}

func TestIstiodSignsOurKey(t *testing.T) {
	f, conn := istiod(t)
	for _, bits := range []int{0, 2048} {
		m, err := NewCA(CAConfig{Conn: conn, ID: me, RSABits: bits, CertSigner: "x"}).Fetch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if id, err := IDOf(m.Certificate.Leaf); id != me || err != nil {
			t.Errorf("identity %v, %v", id, err)
		}
		if m.Roots == nil || string(m.RootsPEM) != string(f.ca.RootsPEM()) || len(m.Certificate.Certificate) != 1 {
			t.Errorf("roots or chain are wrong: %d in the chain", len(m.Certificate.Certificate))
		}
	}
	if f.req.GetValidityDuration() != 86400 || f.req.GetMetadata().AsMap()["CertSigner"] != "x" || f.req.GetMetadata().AsMap()["ImpersonatedIdentity"] != nil {
		t.Errorf("request = %v", f.req)
	}
	b, _ := pem.Decode([]byte(f.req.GetCsr()))
	csr, err := x509.ParseCertificateRequest(b.Bytes)
	if err != nil || csr.Subject.String() != "" || len(csr.URIs) != 1 || csr.URIs[0].String() != me.String() {
		t.Errorf("CSR: %v, subject %q, URIs %v", err, csr.Subject, csr.URIs)
	}
}

func TestABadAnswerOfTheCAIsRefused(t *testing.T) {
	f, conn := istiod(t)
	other := newCA(t)
	for name, c := range map[string]struct {
		answer      func([]byte) ([]string, error)
		impersonate bool
		want        string
	}{
		"no root": {func(csr []byte) ([]string, error) {
			ch, err := f.ca.SignCSR(csr, me.String(), time.Hour)
			return ch[:1], err
		}, false, "chain elements"},
		"foreign key": {func([]byte) ([]string, error) {
			c, err := f.ca.Issue(Leaf{URIs: []string{me.String()}})
			return []string{string(EncodeCertificates(c.Certificate...)), string(f.ca.RootsPEM())}, err
		}, false, "not for our key"},
		"foreign root": {func(csr []byte) ([]string, error) {
			ch, err := f.ca.SignCSR(csr, me.String(), time.Hour)
			return []string{ch[0], string(other.RootsPEM())}, err
		}, false, "does not chain"},
		"other identity": {func(csr []byte) ([]string, error) {
			return f.ca.SignCSR(csr, "spiffe://cluster.local/ns/a/sa/b", time.Hour)
		}, true, "asked for"},
		"a name more": {func(csr []byte) ([]string, error) {
			b, _ := pem.Decode(csr)
			r, err := x509.ParseCertificateRequest(b.Bytes)
			if err != nil {
				return nil, err
			}
			der, err := f.ca.sign(Leaf{URIs: []string{me.String(), "spiffe://cluster.local/ns/a/sa/b"}}, r.PublicKey)
			return []string{string(EncodeCertificates(der)), string(f.ca.RootsPEM())}, err
		}, true, "asked for"},
		"garbage": {func([]byte) ([]string, error) { return []string{"x", "y"}, nil }, false, "no certificate"},
		"refusal": {func([]byte) ([]string, error) { return nil, status.Error(codes.Unauthenticated, "no") }, false, "token"},
	} {
		f.answer = c.answer
		_, err := NewCA(CAConfig{Conn: conn, ID: me, Impersonate: c.impersonate}).Fetch(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestTheRootFileOutweighsTheAnswersRoot(t *testing.T) {
	f, conn := istiod(t)
	p := filepath.Join(t.TempDir(), "root.pem")
	both := string(f.ca.RootsPEM()) + string(newCA(t).RootsPEM())
	if err := os.WriteFile(p, []byte(both), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := NewCA(CAConfig{Conn: conn, RootsFile: p}).Fetch(t.Context())
	if err != nil || string(m.RootsPEM) != both {
		t.Errorf("%v; roots are the file's: %v", err, string(m.RootsPEM) == both)
	}
}
