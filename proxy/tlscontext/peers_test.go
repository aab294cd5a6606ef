package tlscontext

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// authority is a CA that signs whatever it is given.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string, key *ecdsa.PrivateKey) *authority {
	t.Helper()
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	a := &authority{key: key}
	a.cert = a.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, SubjectKeyId: []byte{1, 2, 3}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, key).Leaf
	return a
}

func (a *authority) roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a *authority) sign(t *testing.T, tmpl *x509.Certificate, key *ecdsa.PrivateKey) *tls.Certificate {
	t.Helper()
	tmpl.SerialNumber = big.NewInt(time.Now().UnixNano())
	parent := a.cert
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der) // which does not take all of them
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// leaf is a good workload certificate, changed by edit.
func (a *authority) leaf(t *testing.T, edit func(c *x509.Certificate)) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, ExtraExtensions: sanBytes(name{6, goodID}),
	}
	if edit != nil {
		edit(c)
	}
	return a.sign(t, c, key)
}

const goodID = "spiffe://td/ns/app/sa/peer"

// name is a GeneralName: tag 6 is a URI, 2 a DNS name, 1 an e-mail address.
type name struct {
	tag  int
	text string
}

// sanBytes is a subjectAltName with exactly these bytes.
func sanBytes(ns ...name) []pkix.Extension {
	var raw []asn1.RawValue
	for _, n := range ns {
		raw = append(raw, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: n.tag, Bytes: []byte(n.text)})
	}
	v, err := asn1.Marshal(raw)
	if err != nil {
		panic(err)
	}
	return []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: v}}
}

func uri(s string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtraExtensions = sanBytes(name{6, s}) }
}

func sans(ns ...name) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtraExtensions = sanBytes(ns...) }
}

// peerCases are certificates that an other end may present where one for goodID
// is expected.
var peerCases = []struct {
	name string
	edit func(*x509.Certificate)
	good bool
}{
	{"as it should be", nil, true},
	{"a DNS name beside the SPIFFE ID", sans(name{6, goodID}, name{2, "peer.app"}), true},
	{"without usages", func(c *x509.Certificate) { c.KeyUsage, c.ExtKeyUsage = 0, nil }, true},

	{"expired a second ago", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, false},
	{"valid in a minute", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, false},
	{"no name", func(c *x509.Certificate) { c.ExtraExtensions = nil }, false},
	{"a DNS name only", sans(name{2, "peer.app"}), false},
	{"the ID as a DNS name", sans(name{2, goodID}), false},
	{"the ID as an e-mail address", sans(name{1, goodID}), false},
	{"the ID as the subject", func(c *x509.Certificate) { c.ExtraExtensions, c.Subject.CommonName = nil, goodID }, false},
	{"two SPIFFE IDs", sans(name{6, goodID}, name{6, "spiffe://td/ns/app/sa/other"}), false},
	{"two SPIFFE IDs, the good one last", sans(name{6, "spiffe://td/ns/app/sa/other"}, name{6, goodID}), false},
	{"the same ID twice", sans(name{6, goodID}, name{6, goodID}), false},
	{"another URI beside the ID", sans(name{6, goodID}, name{6, "https://td/x"}), false},
	{"https", uri("https://td/ns/app/sa/peer"), false},
	{"the scheme in upper case", uri("SPIFFE://td/ns/app/sa/peer"), false},
	{"the trust domain in upper case", uri("spiffe://TD/ns/app/sa/peer"), false},
	{"the path in upper case", uri("spiffe://td/ns/app/sa/Peer"), false},
	{"no path", uri("spiffe://td"), false},
	{"a slash for a path", uri("spiffe://td/"), false},
	{"one part more", uri(goodID + "/extra"), false},
	{"one part less", uri("spiffe://td/ns/app/sa"), false},
	{"a suffix", uri(goodID + "2"), false},
	{"a prefix", uri("spiffe://td/ns/app/sa/pee"), false},
	{"a slash at the end", uri(goodID + "/"), false},
	{"an escaped dot", uri("spiffe://td/ns/app/sa/%2e"), false},
	{"an escaped letter", uri("spiffe://td/ns/app/sa/pee%72"), false},
	{"a query", uri(goodID + "?x=1"), false},
	{"a fragment", uri(goodID + "#x"), false},
	{"a port", uri("spiffe://td:443/ns/app/sa/peer"), false},
	{"user information", uri("spiffe://u@td/ns/app/sa/peer"), false},
	{"another trust domain", uri("spiffe://td2/ns/app/sa/peer"), false},
	{"a NUL and more", uri(goodID + "\x00.evil"), false},
	{"a NUL at the end", uri(goodID + "\x00"), false},
	{"bytes that are not ASCII", uri(goodID + "\xff"), false},
	{"a byte that is not ASCII before", uri("\xc3spiffe://td/ns/app/sa/peer"), false},
	{"another kind of name, with a NUL", sans(name{0, goodID + "\x00"}), false},
	{"characters of two bytes", uri("\x00" + strings.Join(strings.Split(goodID, ""), "\x00")), false},
	{"a CA", func(c *x509.Certificate) { c.IsCA = true }, false},
	{"one that may sign certificates", func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, c.KeyUsage|x509.KeyUsageCertSign }, false},
	{"one that may sign lists", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, false},
	{"no digital signature", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, false},
	{"any usage", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, false},
	{"usages of which one is known", func(c *x509.Certificate) {
		c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 99999, 1}}
	}, true},
	{"an IP address beside the SPIFFE ID", sans(name{6, goodID}, name{7, "\x0a\x00\x00\x01"}), true},
	{"an e-mail address beside the SPIFFE ID", sans(name{6, goodID}, name{1, "peer@app"}), true},
	{"expired a day ago", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour)
	}, false},
	{"dates in the wrong order", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	}, false},
	{"the ID as an IP address", sans(name{7, goodID}), false},
	{"the ID as a registered ID", sans(name{8, goodID}), false},
	{"an empty URI", uri(""), false},
	{"an empty URI beside the ID", sans(name{6, goodID}, name{6, ""}), false},
	{"a blank before", uri(" " + goodID), false},
	{"a blank behind", uri(goodID + " "), false},
	{"a line break behind", uri(goodID + "\r\n"), false},
	{"two slashes before the path", uri("spiffe://td//ns/app/sa/peer"), false},
	{"two slashes in the path", uri("spiffe://td/ns//app/sa/peer"), false},
	{"a dot segment", uri("spiffe://td/ns/app/./sa/peer"), false},
	{"dot segments that lead back", uri("spiffe://td/ns/app/sa/other/../peer"), false},
	{"an escaped slash", uri("spiffe://td/ns/app/sa%2fpeer"), false},
	{"one slash before the trust domain", uri("spiffe:/td/ns/app/sa/peer"), false},
	{"no scheme", uri("//td/ns/app/sa/peer"), false},
	{"no trust domain", uri("spiffe:///ns/app/sa/peer"), false},
	{"a dot behind the trust domain", uri("spiffe://td./ns/app/sa/peer"), false},
	{"a password", uri("spiffe://u:p@td/ns/app/sa/peer"), false},
	{"the ID twice in one URI", uri(goodID + goodID), false},
	{"a list of two in one URI", uri(goodID + ",spiffe://td/ns/app/sa/other"), false},
	{"an extension that is critical and unknown", func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 2}, Critical: true, Value: []byte{5, 0}})
	}, false},
	{"for code signing", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }, false},
	{"for OCSP", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning} }, false},
	{"an unknown usage only", func(c *x509.Certificate) {
		c.ExtKeyUsage, c.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 99999, 1}}
	}, false},
	{"any usage and an unknown one", func(c *x509.Certificate) {
		c.ExtKeyUsage, c.UnknownExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 99999, 1}}
	}, false},
	{"for signing documents only", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageContentCommitment }, false},
	{"for e-mail", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} }, false},
}

// Every case meets a server and a client, in TLS 1.2 and 1.3.
func TestPeersAreHeldToTheirIdentity(t *testing.T) {
	if len(peerCases) != 74 {
		t.Errorf("%d cases, want 74", len(peerCases))
	}
	ca := newAuthority(t, "root", nil)
	for _, tc := range peerCases {
		t.Run(tc.name, func(t *testing.T) {
			presentedByBoth(t, ca, ca.leaf(t, tc.edit), tc.good)
		})
	}
}

// presentedByBoth has peer meet an end that trusts ca.
func presentedByBoth(t *testing.T, ca *authority, peer *tls.Certificate, good bool) {
	t.Helper()
	self := identity.NewStatic(identity.Material{Certificate: ca.leaf(t, uri("spiffe://td/ns/app/sa/self")), Roots: ca.roots()})
	names := []xdsresource.SANMatcher{san(t, xdsresource.SANURI, matcher.Exact, goodID)}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		common := xdsresource.CommonTLS{Params: xdsresource.TLSParams{MinVersion: version, MaxVersion: version}, Certificates: own, Validation: mesh(t, names...)}
		srv := newServer(t, &xdsresource.DownstreamTLS{RequireClientCert: true, CommonTLS: common}, store(t, self))
		cli := newClient(t, &xdsresource.UpstreamTLS{CommonTLS: common}, store(t, self))
		presented := 0
		other := &tls.Config{
			InsecureSkipVerify: true, MinVersion: version, MaxVersion: version,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { presented++; return peer, nil },
			GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { presented++; return peer, nil },
		}
		if _, _, serr, _ := shake(t, srv.Config(), other); (serr == nil) != good {
			t.Errorf("presented by a client of TLS %#x: %v", version, serr)
		}
		if _, _, _, cerr := shake(t, other, cli.Config(Options{})); (cerr == nil) != good {
			t.Errorf("presented by a server of TLS %#x: %v", version, cerr)
		}
		if presented != 2 {
			t.Errorf("TLS %#x: the certificate was presented %d times", version, presented)
		}
	}
}

func TestAPeerOfAnotherRootIsRefusedHoweverAlike(t *testing.T) {
	ca := newAuthority(t, "root", nil)
	for name, other := range map[string]*authority{
		"another root":                     newAuthority(t, "other", nil),
		"one with the same name and keyid": newAuthority(t, "root", nil),
	} {
		t.Run(name, func(t *testing.T) { presentedByBoth(t, ca, other.leaf(t, nil), false) })
	}
	self := &authority{}
	var err error
	if self.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	t.Run("a certificate signed by itself", func(t *testing.T) { presentedByBoth(t, ca, self.leaf(t, nil), false) })
	t.Run("the root itself, renewed with its key", func(t *testing.T) {
		presentedByBoth(t, ca, newAuthority(t, "root", ca.key).leaf(t, nil), true)
	})
}

func TestAServerWithMutualTLSTakesNobodyWithoutACertificate(t *testing.T) {
	ca := newAuthority(t, "root", nil)
	self := identity.NewStatic(identity.Material{Certificate: ca.leaf(t, nil), Roots: ca.roots()})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		srv := newServer(t, &xdsresource.DownstreamTLS{RequireClientCert: true, CommonTLS: xdsresource.CommonTLS{
			Params: xdsresource.TLSParams{MinVersion: version, MaxVersion: version}, Certificates: own, Validation: mesh(t),
		}}, store(t, self))
		if _, _, serr, cerr := shake(t, srv.Config(), &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version}); serr == nil || cerr == nil {
			t.Errorf("TLS %#x: %v, %v", version, serr, cerr)
		}
		if srv.Config().SessionTicketsDisabled != true {
			t.Error("a session may be resumed without the client's certificate")
		}
	}
}

// A root that is gone takes its certificates with it, also those of clients
// that were there before and would like to resume.
func TestAPeerIsRefusedOnceItsRootIsGone(t *testing.T) {
	ca, next := newAuthority(t, "root", nil), newAuthority(t, "next", nil)
	src := identity.NewStatic(identity.Material{Certificate: ca.leaf(t, nil), Roots: ca.roots()})
	srv := newServer(t, &xdsresource.DownstreamTLS{RequireClientCert: true, CommonTLS: xdsresource.CommonTLS{Certificates: own, Validation: mesh(t)}}, store(t, src))
	peer := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*ca.leaf(t, nil)}, ClientSessionCache: tls.NewLRUClientSessionCache(4), ServerName: "a"}
	for range 2 {
		if _, _, serr, cerr := shake(t, srv.Config(), peer); serr != nil || cerr != nil {
			t.Fatal(serr, cerr)
		}
	}
	both := x509.NewCertPool()
	both.AddCert(ca.cert)
	both.AddCert(next.cert)
	src.Set(identity.Material{Certificate: next.leaf(t, nil), Roots: both})
	if _, _, serr, cerr := shake(t, srv.Config(), peer); serr != nil || cerr != nil {
		t.Errorf("while both roots are known: %v, %v", serr, cerr)
	}
	src.Set(identity.Material{Certificate: next.leaf(t, nil), Roots: next.roots()})
	if _, _, serr, _ := shake(t, srv.Config(), peer); serr == nil {
		t.Error("a certificate of a root that is gone is good")
	}
}

// Whatever becomes of the file with the roots, a server that wants certificates
// takes nobody without a good one.
func TestACAFileThatIsLostOpensNothing(t *testing.T) {
	ca, other := newAuthority(t, "root", nil), newAuthority(t, "other", nil)
	good := identity.EncodeCertificates(ca.cert.Raw)
	self := identity.NewStatic(identity.Material{Certificate: ca.leaf(t, nil), Roots: ca.roots()})
	config := func(c *tls.Certificate) *tls.Config {
		cfg := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
		if c != nil {
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c, nil }
		}
		return cfg
	}
	peer, stranger := config(ca.leaf(t, nil)), config(other.leaf(t, nil))
	for name, content := range map[string]string{"missing": "", "a directory": "/", "empty": " ", "no PEM": "junk", "a private key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "broken PEM": string(good[:len(good)/2])} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "ca.pem")
			lose := func() {
				_ = os.Remove(file)
				switch content {
				case "":
				case "/":
					_ = os.Mkdir(file, 0o700)
				default:
					_ = os.WriteFile(file, []byte(content), 0o600)
				}
			}
			lose()
			srv := newServer(t, &xdsresource.DownstreamTLS{RequireClientCert: true, CommonTLS: xdsresource.CommonTLS{
				Certificates: own, Validation: &xdsresource.Validation{TrustedCAFile: file},
			}}, store(t, self))
			refuses := func(when string, cfgs ...*tls.Config) {
				t.Helper()
				for i, c := range cfgs {
					if _, _, serr, _ := shake(t, srv.Config(), c); serr == nil {
						t.Errorf("%s: client %d is let in", when, i)
					}
				}
			}
			refuses("at the start", config(nil), stranger, peer)
			_ = os.RemoveAll(file)
			if err := os.WriteFile(file, good, 0o600); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				if _, _, serr, _ := shake(t, srv.Config(), peer); serr == nil {
					break
				} else if time.Now().After(end) {
					t.Fatalf("with the file: %v", serr)
				}
			}
			lose()
			time.Sleep(200 * time.Millisecond)
			refuses("after the loss", config(nil), stranger)
			if _, _, serr, _ := shake(t, srv.Config(), peer); serr != nil {
				t.Errorf("the roots that were good are gone: %v", serr)
			}
		})
	}
}
