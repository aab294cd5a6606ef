package tlscontext

import (
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/proxy/secret"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// verifying is a server's verifier of v.
func verifying(t *testing.T, v *xdsresource.Validation, s *secret.Store) *verifier {
	t.Helper()
	ver, err := newVerifier(v, s, true)
	if err != nil {
		t.Fatal(err)
	}
	return ver
}

// admit is what ver says to a client with these certificates.
func admit(ver *verifier, certs ...*x509.Certificate) error {
	return ver.server(tls.ConnectionState{PeerCertificates: certs})
}

func wantAdmit(t *testing.T, when string, err error, want string) {
	t.Helper()
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %v, want %q", when, err, want)
	}
}

// A chain that was verified is not verified again (see identity.VerifyChain).
// Here is what a peer that was good is refused for all the same.
func TestAPeerThatWasGoodIsRefusedOnceItIsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		peer, err := ca.Issue(identity.Leaf{URIs: id(client).URIs, NotAfter: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		s := store(t, nil)
		push := func(digest byte, v xdsresource.Validation) {
			s.SetADS(map[string]*xdsresource.Secret{"ca": {Resource: xdsresource.Resource{Digest: xdsresource.Digest{digest}}, Validation: &v}})
		}
		list := func(next time.Time, revoked ...x509.RevocationListEntry) []byte {
			der, err := ca.SignCRL(&x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: next, RevokedCertificateEntries: revoked})
			if err != nil {
				t.Fatal(err)
			}
			return der
		}
		pem, other := ca.RootsPEM(), newCA(t)
		ver := verifying(t, &xdsresource.Validation{SDSName: "ca", SDSSource: xdsresource.ConfigSource{ADS: true}}, s)
		good := func(when string) {
			t.Helper()
			for range 2 {
				wantAdmit(t, when, admit(ver, peer.Leaf), "")
			}
		}
		refused := func(when, want string) {
			t.Helper()
			wantAdmit(t, when, admit(ver, peer.Leaf), want)
		}
		push(1, xdsresource.Validation{TrustedCA: pem})
		good("with its root")
		push(2, xdsresource.Validation{TrustedCA: other.RootsPEM()})
		refused("with another root", "unknown authority")
		push(3, xdsresource.Validation{TrustedCA: slices.Concat(pem, other.RootsPEM())})
		good("with both")
		push(4, xdsresource.Validation{TrustedCA: pem, CRL: list(time.Now().Add(10*time.Minute), x509.RevocationListEntry{SerialNumber: big.NewInt(7), RevocationTime: time.Now()})})
		good("with a list of others")
		time.Sleep(11 * time.Minute)
		refused("with a list that is out of date", "out of date")
		push(5, xdsresource.Validation{TrustedCA: pem, CRL: list(time.Now().Add(3*time.Hour), x509.RevocationListEntry{SerialNumber: peer.Leaf.SerialNumber, RevocationTime: time.Now()})})
		refused("with a list that has it", "is revoked")
		push(6, xdsresource.Validation{TrustedCA: pem, SANs: []xdsresource.SANMatcher{san(t, xdsresource.SANURI, matcher.Exact, "spiffe://td/ns/app/sa/other")}})
		refused("when others are expected", "matches none")
		push(7, xdsresource.Validation{TrustedCA: pem, Hashes: []string{strings.Repeat("ab", 32)}})
		refused("when others are pinned", "none of the pinned")
		push(8, xdsresource.Validation{TrustedCA: pem})
		good("as at first")
		time.Sleep(50 * time.Minute)
		refused("after it has expired", "it expired at")
		push(9, xdsresource.Validation{TrustedCA: pem, AllowExpired: true})
		good("where that is allowed")
		s.SetADS(nil)
		refused("without the secret", "has not arrived")
	})
}

// Contexts share what is remembered, and nothing of what each of them demands.
func TestContextsDoNotVouchForEachOther(t *testing.T) {
	root := newAuthority(t, "root", nil)
	between := root.below(t, nil)
	leaf, stranger := between.leaf(t, nil), newAuthority(t, "root", nil).below(t, nil)
	s := store(t, identity.NewStatic(identity.Material{Certificate: root.leaf(t, nil), Roots: root.roots()}))
	elsewhere := store(t, identity.NewStatic(identity.Material{Certificate: root.leaf(t, nil), Roots: newAuthority(t, "root", nil).roots()}))
	first := verifying(t, mesh(t), s)
	for range 2 {
		wantAdmit(t, "the first context", admit(first, leaf.Leaf, between.cert), "")
	}
	asServer, err := newVerifier(mesh(t), s, false)
	if err != nil {
		t.Fatal(err)
	}
	onlyClient := between.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	shallow := mesh(t)
	shallow.MaxVerifyDepth = 1
	for range 2 {
		wantAdmit(t, "other names", admit(verifying(t, mesh(t, san(t, xdsresource.SANURI, matcher.Prefix, "spiffe://td2/")), s), leaf.Leaf, between.cert), "matches none")
		wantAdmit(t, "the same names", admit(verifying(t, mesh(t, san(t, xdsresource.SANURI, matcher.Exact, goodID)), s), leaf.Leaf, between.cert), "")
		wantAdmit(t, "other roots", admit(verifying(t, mesh(t), elsewhere), leaf.Leaf, between.cert), "unknown authority")
		wantAdmit(t, "without the CA between", admit(first, leaf.Leaf), "unknown authority")
		wantAdmit(t, "with another CA between", admit(first, leaf.Leaf, stranger.cert), "unknown authority")
		wantAdmit(t, "with another CA besides", admit(first, leaf.Leaf, stranger.cert, between.cert), "")
		wantAdmit(t, "as a client", admit(first, onlyClient.Leaf, between.cert), "")
		wantAdmit(t, "as a server", asServer.client("")(tls.ConnectionState{PeerCertificates: []*x509.Certificate{onlyClient.Leaf, between.cert}}), "extended key usage")
		wantAdmit(t, "a short chain", admit(verifying(t, shallow, s), leaf.Leaf, between.cert), "")
	}
}

// Whoever presents a certificate whose chain is remembered still has to prove that
// it is his.
func TestARememberedCertificateIsNoProofOfItsKey(t *testing.T) {
	ca := newAuthority(t, "root", nil)
	s := store(t, identity.NewStatic(identity.Material{Certificate: ca.leaf(t, nil), Roots: ca.roots()}))
	common := xdsresource.CommonTLS{Certificates: own, Validation: mesh(t)}
	srv := newServer(t, &xdsresource.DownstreamTLS{RequireClientCert: true, CommonTLS: common}, s)
	peer, thief := ca.leaf(t, nil), ca.leaf(t, nil)
	stolen := &tls.Certificate{Certificate: peer.Certificate, PrivateKey: thief.PrivateKey}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		with := func(c *tls.Certificate) *tls.Config {
			return &tls.Config{
				InsecureSkipVerify: true, MinVersion: version, MaxVersion: version,
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c, nil },
			}
		}
		for range 2 {
			if _, _, serr, cerr := shake(t, srv.Config(), with(peer)); serr != nil || cerr != nil {
				t.Errorf("the owner by TLS %#x: %v, %v", version, serr, cerr)
			}
			if _, _, serr, _ := shake(t, srv.Config(), with(stolen)); serr == nil {
				t.Errorf("somebody without the key is let in by TLS %#x", version)
			}
		}
	}
}

func TestKeyExchangesAreEnvoysUnlessConfigured(t *testing.T) {
	ca := newCA(t)
	s := store(t, source(t, ca, id(server)))
	for _, c := range []struct {
		name     string
		srv, cli []tls.CurveID // nil: default
		want     tls.CurveID   // 0: no handshake
		offers   []tls.CurveID // by the client; nil: not looked at
	}{
		{"defaults", nil, nil, tls.X25519MLKEM768, []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256}},
		{"the client wants none against quantum computers", nil, []tls.CurveID{tls.X25519}, tls.X25519, []tls.CurveID{tls.X25519}},
		{"nor does the server", []tls.CurveID{tls.X25519, tls.CurveP256}, nil, tls.X25519, nil},
		{"the client wants nothing else", nil, []tls.CurveID{tls.X25519MLKEM768}, tls.X25519MLKEM768, []tls.CurveID{tls.X25519MLKEM768}},
		{"nothing in common", []tls.CurveID{tls.X25519MLKEM768}, []tls.CurveID{tls.CurveP256}, 0, nil},
		{"P-256", []tls.CurveID{tls.CurveP256}, nil, tls.CurveP256, nil},
		{"P-384 by the client only", nil, []tls.CurveID{tls.CurveP384}, 0, nil},
		{"P-384", []tls.CurveID{tls.CurveP384}, []tls.CurveID{tls.CurveP384}, tls.CurveP384, []tls.CurveID{tls.CurveP384}},
	} {
		t.Run(c.name, func(t *testing.T) {
			common := func(curves []tls.CurveID) xdsresource.CommonTLS {
				return xdsresource.CommonTLS{Params: xdsresource.TLSParams{Curves: curves}, Certificates: own}
			}
			srv := newServer(t, &xdsresource.DownstreamTLS{CommonTLS: common(c.srv)}, s)
			cli := newClient(t, &xdsresource.UpstreamTLS{CommonTLS: common(c.cli)}, s)
			sc := srv.Config().Clone()
			var offered []tls.CurveID
			sc.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
				offered = h.SupportedCurves
				return nil, nil
			}
			ss, _, serr, cerr := shake(t, sc, cli.Config(Options{}))
			if c.want == 0 {
				if serr == nil || cerr == nil {
					t.Errorf("by %v: %v, %v", ss.CurveID, serr, cerr)
				}
				return
			}
			if serr != nil || cerr != nil || ss.CurveID != c.want {
				t.Errorf("by %v: %v, %v", ss.CurveID, serr, cerr)
			}
			if c.offers != nil && !slices.Equal(offered, c.offers) {
				t.Errorf("offered %v", offered)
			}
		})
	}
}

// What the proxy itself adds to a handshake: crypto/tls makes some 500 objects.
func TestVerifyingAPeerThatWasSeenCostsLittle(t *testing.T) {
	ca := newCA(t)
	peer, err := ca.Issue(id(client))
	if err != nil {
		t.Fatal(err)
	}
	ver := verifying(t, mesh(t, san(t, xdsresource.SANURI, matcher.Prefix, "spiffe://td/")), store(t, source(t, ca, id(server))))
	certs := []*x509.Certificate{peer.Leaf}
	if n := testing.AllocsPerRun(200, func() {
		if err := ver.verify(certs, ""); err != nil {
			t.Error(err)
		}
	}); n > 8 { // the names, twice
		t.Errorf("%v allocations", n)
	}
}
