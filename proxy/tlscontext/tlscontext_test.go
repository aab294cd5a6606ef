package tlscontext

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/secret"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	server = identity.ID{TrustDomain: "td", Namespace: "app", ServiceAccount: "server"}
	client = identity.ID{TrustDomain: "td", Namespace: "app", ServiceAccount: "client"}
	own    = []xdsresource.Certificate{{SDSName: "default"}}
)

func newCA(t testing.TB) *identity.DevCA {
	t.Helper()
	ca, err := identity.NewDevCA("td")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func source(t testing.TB, ca *identity.DevCA, l identity.Leaf) *identity.Static {
	t.Helper()
	c, err := ca.Issue(l)
	if err != nil {
		t.Fatal(err)
	}
	return identity.NewStatic(identity.Material{Certificate: c, Roots: ca.Roots()})
}

func id(i identity.ID) identity.Leaf { return identity.Leaf{URIs: []string{i.String()}} }

func store(t testing.TB, src identity.Source) *secret.Store {
	t.Helper()
	s := secret.NewStore(secret.Config{Identity: src})
	t.Cleanup(s.Close)
	return s
}

func san(t testing.TB, typ xdsresource.SANType, kind matcher.StringKind, text string) xdsresource.SANMatcher {
	t.Helper()
	m, err := matcher.NewString(kind, text, false)
	if err != nil {
		t.Fatal(err)
	}
	return xdsresource.SANMatcher{Type: typ, Matcher: m}
}

// mesh is the validation that istiod sends: ROOTCA and a SPIFFE prefix.
func mesh(t testing.TB, sans ...xdsresource.SANMatcher) *xdsresource.Validation {
	t.Helper()
	return &xdsresource.Validation{SDSName: "ROOTCA", SANs: sans}
}

func newServer(t testing.TB, spec *xdsresource.DownstreamTLS, s *secret.Store) *Server {
	t.Helper()
	srv, err := NewServer(spec, s)
	if err != nil {
		t.Fatal(err)
	}
	return srv
}

func newClient(t testing.TB, spec *xdsresource.UpstreamTLS, s *secret.Store) *Client {
	t.Helper()
	c, err := NewClient(spec, s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// shake runs a handshake and an exchange of one byte each way, so that TLS 1.3
// client errors surface on both ends.
func shake(t testing.TB, sc, cc *tls.Config) (ss, cs tls.ConnectionState, serr, cerr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	b, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	_, _ = a.SetDeadline(deadline), b.SetDeadline(deadline)
	done := make(chan struct{})
	srv, cli := tls.Server(a, sc), tls.Client(b, cc)
	go func() {
		defer close(done)
		defer func() { _ = a.Close() }()
		if serr = srv.Handshake(); serr != nil {
			return
		}
		ss = srv.ConnectionState()
		buf := make([]byte, 1)
		if _, serr = srv.Read(buf); serr == nil {
			_, serr = srv.Write(buf)
		}
	}()
	if cerr = cli.Handshake(); cerr == nil {
		cs = cli.ConnectionState()
		buf := []byte{1}
		if _, cerr = cli.Write(buf); cerr == nil {
			_, cerr = cli.Read(buf)
		}
	}
	_ = b.Close()
	<-done
	return ss, cs, serr, cerr
}

func meshPair(t testing.TB, ca *identity.DevCA) (*Server, *Client, *identity.Static, *identity.Static) {
	t.Helper()
	ssrc, csrc := source(t, ca, id(server)), source(t, ca, id(client))
	prefix := san(t, xdsresource.SANURI, matcher.Prefix, "spiffe://td/")
	srv := newServer(t, &xdsresource.DownstreamTLS{RequireClientCert: true, CommonTLS: xdsresource.CommonTLS{
		Params: xdsresource.TLSParams{MinVersion: tls.VersionTLS13}, ALPN: []string{"h2"}, Certificates: own, Validation: mesh(t, prefix),
	}}, store(t, ssrc))
	cli := newClient(t, &xdsresource.UpstreamTLS{CommonTLS: xdsresource.CommonTLS{
		Params: xdsresource.TLSParams{MinVersion: tls.VersionTLS13}, ALPN: []string{"h2"}, Certificates: own,
		Validation: mesh(t, san(t, xdsresource.SANURI, matcher.Exact, server.String())),
	}}, store(t, csrc))
	return srv, cli, ssrc, csrc
}

func TestMeshPeersVerifyEachOther(t *testing.T) {
	srv, cli, _, _ := meshPair(t, newCA(t))
	ss, cs, serr, cerr := shake(t, srv.Config(), cli.Config(Options{}))
	if serr != nil || cerr != nil {
		t.Fatalf("server: %v, client: %v", serr, cerr)
	}
	si, ci := srv.Info(&ss), cli.Info(&cs)
	if si.Version != "TLSv1.3" || si.ALPN != "h2" || !strings.HasPrefix(si.CipherSuite, "TLS_") || ss.ServerName != "" {
		t.Errorf("info = %+v, SNI %q", si, ss.ServerName)
	}
	for who, c := range map[string][2]*streaminfo.Certificate{client.String(): {&si.Peer, &ci.LocalCert}, server.String(): {&ci.Peer, &si.LocalCert}} {
		for _, x := range c {
			if len(x.URISANs) != 1 || x.URISANs[0] != who || !x.Present() || len(x.Digest) != 64 || !strings.Contains(x.PEM, "BEGIN") {
				t.Errorf("%s: %+v", who, x)
			}
		}
	}
	if again := srv.Info(&ss); again != si {
		t.Error("the description is not shared")
	}
	if n := testing.AllocsPerRun(100, func() { srv.Info(&ss) }); n != 0 {
		t.Errorf("%v allocations per description", n)
	}
	if Info(nil) != nil {
		t.Error("no session has a description")
	}
}

func TestRotationReachesTheNextHandshake(t *testing.T) {
	old, next := newCA(t), newCA(t)
	srv, cli, ssrc, csrc := meshPair(t, old)
	move := func(src *identity.Static, i identity.ID, ca *identity.DevCA) {
		c, err := ca.Issue(id(i))
		if err != nil {
			t.Fatal(err)
		}
		src.Set(identity.Material{Certificate: c, Roots: ca.Roots()})
	}
	move(ssrc, server, next)
	if _, _, _, cerr := shake(t, srv.Config(), cli.Config(Options{})); cerr == nil {
		t.Error("the client accepts a root that it doesn't know")
	}
	move(csrc, client, next)
	if _, _, serr, cerr := shake(t, srv.Config(), cli.Config(Options{})); serr != nil || cerr != nil {
		t.Errorf("after both rotated: %v, %v", serr, cerr)
	}
}

func TestWhatCannotBeVerifiedFailsWithAClearError(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	good := func(t *testing.T) identity.Source { return source(t, ca, id(client)) }
	base := func(t *testing.T) *xdsresource.Validation {
		return mesh(t, san(t, xdsresource.SANURI, matcher.Prefix, "spiffe://td/ns/app/"))
	}
	for name, c := range map[string]struct {
		client func(*testing.T) identity.Source
		tune   func(*testing.T, *xdsresource.Validation)
		want   string // "" is success
	}{
		"good": {good, func(*testing.T, *xdsresource.Validation) {}, ""},
		"no certificate yet": {
			func(*testing.T) identity.Source { return new(identity.Static) }, nil,
			`secret "default"`,
		},
		"expired": {func(t *testing.T) identity.Source {
			return source(t, ca, identity.Leaf{URIs: id(client).URIs, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(-time.Minute)})
		}, nil, "expired at"},
		"not yet valid": {func(t *testing.T) identity.Source {
			return source(t, ca, identity.Leaf{URIs: id(client).URIs, NotBefore: time.Now().Add(time.Hour), NotAfter: time.Now().Add(2 * time.Hour)})
		}, nil, "not valid before"},
		"expired but allowed": {func(t *testing.T) identity.Source {
			return source(t, ca, identity.Leaf{URIs: id(client).URIs, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(-time.Minute)})
		}, func(_ *testing.T, v *xdsresource.Validation) { v.AllowExpired = true }, "own certificate expired"},
		"foreign CA": {func(t *testing.T) identity.Source { return source(t, other, id(client)) }, nil, "unknown authority"},
		"foreign CA, untrusted accepted": {
			func(t *testing.T) identity.Source { return source(t, other, id(client)) },
			func(_ *testing.T, v *xdsresource.Validation) { v.AcceptUntrusted = true }, "",
		},
		"other namespace": {func(t *testing.T) identity.Source {
			return source(t, ca, identity.Leaf{URIs: []string{"spiffe://td/ns/evil/sa/x"}})
		}, nil, "matches none of the expected names"},
		"no name": {
			func(t *testing.T) identity.Source { return source(t, ca, identity.Leaf{DNSNames: []string{"spiffe"}}) }, nil,
			"matches none of the expected names",
		},
		"any of several matchers": {good, func(t *testing.T, v *xdsresource.Validation) {
			v.SANs = []xdsresource.SANMatcher{san(t, xdsresource.SANDNS, matcher.Exact, "x"), san(t, xdsresource.SANAny, matcher.Suffix, "/sa/client")}
		}, ""},
		"wrong type of name": {good, func(t *testing.T, v *xdsresource.Validation) {
			v.SANs = []xdsresource.SANMatcher{san(t, xdsresource.SANDNS, matcher.Exact, client.String())}
		}, "matches none"},
		"pinned elsewhere": {good, func(_ *testing.T, v *xdsresource.Validation) { v.Hashes = []string{strings.Repeat("ab", 32)} }, "pinned"},
	} {
		t.Run(name, func(t *testing.T) {
			v := base(t)
			if c.tune != nil {
				c.tune(t, v)
			}
			srv := newServer(t, &xdsresource.DownstreamTLS{RequireClientCert: true, CommonTLS: xdsresource.CommonTLS{Certificates: own, Validation: v}}, store(t, source(t, ca, id(server))))
			cli := newClient(t, &xdsresource.UpstreamTLS{CommonTLS: xdsresource.CommonTLS{Certificates: own}}, store(t, c.client(t)))
			_, _, serr, cerr := shake(t, srv.Config(), cli.Config(Options{}))
			if c.want == "" {
				if serr != nil || cerr != nil {
					t.Errorf("server: %v, client: %v", serr, cerr)
				}
				return
			}
			var all string
			for _, e := range []error{serr, cerr} {
				if e != nil {
					all += e.Error() + "\n"
				}
			}
			if !strings.Contains(all, c.want) {
				t.Errorf("errors: %s\nwant %q", all, c.want)
			}
		})
	}
}

func TestPins(t *testing.T) {
	ca := newCA(t)
	src := source(t, ca, id(server))
	leaf := src.Certificate().Leaf
	spki := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	cert := sha256.Sum256(leaf.Raw)
	colons := strings.ToUpper(hex.EncodeToString(cert[:]))
	for i := len(colons) - 2; i > 0; i -= 2 {
		colons = colons[:i] + ":" + colons[i:]
	}
	zero := make([]byte, 32)
	srv := newServer(t, &xdsresource.DownstreamTLS{CommonTLS: xdsresource.CommonTLS{Certificates: own}}, store(t, src))
	for name, c := range map[string]struct {
		v  xdsresource.Validation
		ok bool
	}{
		"key":                 {xdsresource.Validation{SPKI: []string{base64.StdEncoding.EncodeToString(spki[:])}}, true},
		"certificate":         {xdsresource.Validation{Hashes: []string{hex.EncodeToString(cert[:])}}, true},
		"with colons":         {xdsresource.Validation{Hashes: []string{colons}}, true},
		"either":              {xdsresource.Validation{SPKI: []string{base64.StdEncoding.EncodeToString(zero)}, Hashes: []string{colons}}, true},
		"other":               {xdsresource.Validation{Hashes: []string{hex.EncodeToString(zero)}}, false},
		"right pin, wrong CA": {xdsresource.Validation{Hashes: []string{colons}, TrustedCA: newCA(t).RootsPEM()}, false},
	} {
		cli := newClient(t, &xdsresource.UpstreamTLS{CommonTLS: xdsresource.CommonTLS{Validation: &c.v}}, store(t, nil))
		_, _, _, cerr := shake(t, srv.Config(), cli.Config(Options{}))
		if (cerr == nil) != c.ok {
			t.Errorf("%s: %v", name, cerr)
		}
	}
}

func TestContextsThatCannotBeExecutedAreRefused(t *testing.T) {
	s := store(t, nil)
	pin := &xdsresource.Validation{Hashes: []string{strings.Repeat("00", 32)}}
	for name, spec := range map[string]*xdsresource.DownstreamTLS{
		"unknown socket":             {Unknown: "quic is not supported"},
		"no certificate":             {},
		"client cert without CA":     {RequireClientCert: true, CommonTLS: xdsresource.CommonTLS{Certificates: own}},
		"client cert with empty CA":  {RequireClientCert: true, CommonTLS: xdsresource.CommonTLS{Certificates: own, Validation: &xdsresource.Validation{}}},
		"SANs without CA":            {CommonTLS: xdsresource.CommonTLS{Certificates: own, Validation: &xdsresource.Validation{SANs: make([]xdsresource.SANMatcher, 1)}}},
		"broken pin":                 {CommonTLS: xdsresource.CommonTLS{Certificates: own, Validation: &xdsresource.Validation{SPKI: []string{"!"}}}},
		"broken CA":                  {CommonTLS: xdsresource.CommonTLS{Certificates: own, Validation: &xdsresource.Validation{TrustedCA: []byte("x")}}},
		"broken inline certificate":  {CommonTLS: xdsresource.CommonTLS{Certificates: []xdsresource.Certificate{{Chain: []byte("x"), Key: []byte("y")}}}},
		"broken second certificate":  {CommonTLS: xdsresource.CommonTLS{Certificates: append(slices.Clone(own), xdsresource.Certificate{})}},
		"secrets from an API server": {CommonTLS: xdsresource.CommonTLS{Certificates: []xdsresource.Certificate{{SDSName: "x", SDSSource: xdsresource.ConfigSource{APIServer: xdsresource.APIServer{Cluster: "c"}}}}}},
	} {
		if _, err := NewServer(spec, s); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := NewServer(&xdsresource.DownstreamTLS{RequireClientCert: true, CommonTLS: xdsresource.CommonTLS{Certificates: own, Validation: pin}}, s); err != nil {
		t.Errorf("pins alone are enough: %v", err)
	}
	if _, err := NewClient(&xdsresource.UpstreamTLS{AutoSNISANValidation: true}, s); err == nil {
		t.Error("auto_sni_san_validation without a CA: no error")
	}
}

func TestServerNames(t *testing.T) {
	ca := newCA(t)
	srv := newServer(t, &xdsresource.DownstreamTLS{CommonTLS: xdsresource.CommonTLS{ALPN: []string{"h2", "http/1.1"}, Certificates: own}},
		store(t, source(t, ca, identity.Leaf{DNSNames: []string{"*.example.com", "a.test"}})))
	spec := func(auto bool) *xdsresource.UpstreamTLS {
		return &xdsresource.UpstreamTLS{
			SNI: "a.test", AutoSNISANValidation: auto,
			CommonTLS: xdsresource.CommonTLS{ALPN: []string{"h2"}, Validation: &xdsresource.Validation{TrustedCA: ca.RootsPEM()}},
		}
	}
	plain, auto := newClient(t, spec(false), store(t, nil)), newClient(t, spec(true), store(t, nil))
	noSNI := spec(true)
	noSNI.SNI = ""
	bare := newClient(t, noSNI, store(t, nil))
	for name, c := range map[string]struct {
		cli       *Client
		o         Options
		sni, alpn string
		ok        bool
	}{
		"configured":        {plain, Options{}, "a.test", "h2", true},
		"overridden":        {plain, Options{SNI: "other"}, "other", "h2", true},
		"alpn overridden":   {plain, Options{ALPN: []string{"http/1.1"}}, "a.test", "http/1.1", true},
		"no common alpn":    {plain, Options{ALPN: []string{"acme"}}, "a.test", "", true},
		"name verified":     {plain, Options{VerifyName: "x.example.com"}, "a.test", "h2", true},
		"name refused":      {plain, Options{VerifyName: "x.y.example.com"}, "", "", false},
		"auto":              {auto, Options{}, "a.test", "h2", true},
		"auto, overridden":  {auto, Options{SNI: "b.example.com"}, "b.example.com", "h2", true},
		"auto, wrong":       {auto, Options{SNI: "b.test"}, "", "", false},
		"auto, without SNI": {bare, Options{}, "", "", false},
	} {
		ss, _, _, cerr := shake(t, srv.Config(), c.cli.Config(c.o))
		if (cerr == nil) != c.ok {
			t.Errorf("%s: %v", name, cerr)
		} else if c.ok && (ss.ServerName != c.sni || ss.NegotiatedProtocol != c.alpn) {
			t.Errorf("%s: SNI %q, ALPN %q", name, ss.ServerName, ss.NegotiatedProtocol)
		}
	}
	if first := plain.Config(Options{}); first != plain.Config(Options{}) {
		t.Error("configurations are not cached")
	}
	if n := testing.AllocsPerRun(100, func() { plain.Config(Options{SNI: "other"}) }); n != 0 {
		t.Errorf("%v allocations per Config", n)
	}
	for i := range 3 * maxCached {
		plain.Config(Options{SNI: string(rune('a'+i%26)) + strings.Repeat("x", i%100) + hex.EncodeToString([]byte{byte(i), byte(i >> 8)})})
	}
	if len(plain.cache) > maxCached {
		t.Errorf("%d configurations are cached", len(plain.cache))
	}
	strict := newServer(t, &xdsresource.DownstreamTLS{RequireSNI: true, CommonTLS: xdsresource.CommonTLS{Certificates: own}}, store(t, source(t, ca, id(server))))
	if _, _, serr, _ := shake(t, strict.Config(), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}); serr == nil || !strings.Contains(serr.Error(), "SNI") {
		t.Errorf("without SNI: %v", serr)
	}
}

func TestSecretsFromTheControlPlane(t *testing.T) {
	ca, clientCA := newCA(t), newCA(t)
	s := store(t, source(t, ca, identity.Leaf{DNSNames: []string{"gw"}}))
	adsSrc := xdsresource.ConfigSource{ADS: true}
	srv := newServer(t, &xdsresource.DownstreamTLS{RequireClientCert: true, CommonTLS: xdsresource.CommonTLS{
		Certificates: own, Validation: &xdsresource.Validation{SDSName: "gw-cacert", SDSSource: adsSrc},
	}}, s)
	cli := newClient(t, &xdsresource.UpstreamTLS{CommonTLS: xdsresource.CommonTLS{Certificates: own}}, store(t, source(t, clientCA, id(client))))
	_, _, serr, _ := shake(t, srv.Config(), cli.Config(Options{}))
	if serr == nil || !strings.Contains(serr.Error(), `secret "gw-cacert" has not arrived`) {
		t.Errorf("missing secret: %v", serr)
	}
	put := func(d byte, v xdsresource.Validation) {
		v.TrustedCA = clientCA.RootsPEM()
		s.SetADS(map[string]*xdsresource.Secret{"gw-cacert": {Resource: xdsresource.Resource{Digest: xdsresource.Digest{d}}, Validation: &v}})
	}
	put(1, xdsresource.Validation{})
	if _, _, serr, cerr := shake(t, srv.Config(), cli.Config(Options{})); serr != nil || cerr != nil {
		t.Errorf("with the secret: %v, %v", serr, cerr)
	}
	put(2, xdsresource.Validation{SANs: []xdsresource.SANMatcher{san(t, xdsresource.SANURI, matcher.Exact, "spiffe://other")}})
	if _, _, serr, _ := shake(t, srv.Config(), cli.Config(Options{})); serr == nil {
		t.Error("the names that the secret demands are not checked")
	}
}

func TestSessionsResumeOnlyWithoutClientCertificates(t *testing.T) {
	ca := newCA(t)
	srvStore := store(t, source(t, ca, identity.Leaf{DNSNames: []string{"a.test"}}))
	upstream := func(certs []xdsresource.Certificate) *Client {
		return newClient(t, &xdsresource.UpstreamTLS{SNI: "a.test", MaxSessionKeys: 1, CommonTLS: xdsresource.CommonTLS{
			Certificates: certs, Validation: &xdsresource.Validation{TrustedCA: ca.RootsPEM()},
		}}, store(t, source(t, ca, id(client))))
	}
	plain := xdsresource.CommonTLS{Certificates: own}
	mutual := xdsresource.CommonTLS{Certificates: own, Validation: mesh(t)}
	for name, c := range map[string]struct {
		spec *xdsresource.DownstreamTLS
		cli  *Client
		want bool
	}{
		"simple TLS":                     {&xdsresource.DownstreamTLS{CommonTLS: plain}, upstream(nil), true},
		"disabled":                       {&xdsresource.DownstreamTLS{CommonTLS: plain, DisableStatelessResumption: true}, upstream(nil), false},
		"mutual TLS":                     {&xdsresource.DownstreamTLS{CommonTLS: mutual, RequireClientCert: true}, upstream(own), false},
		"client with an own certificate": {&xdsresource.DownstreamTLS{CommonTLS: plain}, upstream(own), false},
	} {
		srv := newServer(t, c.spec, srvStore)
		var last tls.ConnectionState
		for range 3 {
			_, cs, serr, cerr := shake(t, srv.Config(), c.cli.Config(Options{}))
			if serr != nil || cerr != nil {
				t.Fatalf("%s: %v, %v", name, serr, cerr)
			}
			last = cs
		}
		if last.DidResume != c.want {
			t.Errorf("%s: resumed = %v, want %v", name, last.DidResume, c.want)
		}
	}
}

func TestPicksACertificateThatTheClientCanUse(t *testing.T) {
	ca := newCA(t)
	src := source(t, ca, id(server))
	s := store(t, src)
	srv := newServer(t, &xdsresource.DownstreamTLS{CommonTLS: xdsresource.CommonTLS{
		Certificates: []xdsresource.Certificate{{SDSName: "missing", SDSSource: xdsresource.ConfigSource{ADS: true}}, {SDSName: "default"}},
	}}, s)
	if _, _, serr, cerr := shake(t, srv.Config(), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}); serr != nil || cerr != nil {
		t.Errorf("one of two is missing: %v, %v", serr, cerr)
	}
}

func TestAnExpiredPeerIsRefusedUnlessAllowed(t *testing.T) {
	ca := newCA(t)
	old, err := ca.Issue(identity.Leaf{URIs: id(client).URIs, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(-time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	for _, allow := range []bool{false, true} {
		v := mesh(t)
		v.AllowExpired = allow
		srv := newServer(t, &xdsresource.DownstreamTLS{RequireClientCert: true, CommonTLS: xdsresource.CommonTLS{Certificates: own, Validation: v}}, store(t, source(t, ca, id(server))))
		_, _, serr, _ := shake(t, srv.Config(), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*old}})
		if allow != (serr == nil) {
			t.Errorf("allow_expired_certificate %v: %v", allow, serr)
		}
		if !allow && !strings.Contains(serr.Error(), "expired at") {
			t.Errorf("error = %v", serr)
		}
	}
}

func BenchmarkMutualHandshake(b *testing.B) {
	srv, cli, _, _ := meshPair(b, newCA(b))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, serr, cerr := shake(b, srv.Config(), cli.Config(Options{})); serr != nil || cerr != nil {
			b.Fatal(serr, cerr)
		}
	}
}
