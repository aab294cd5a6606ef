package tlscontext

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func TestNamesThatOpenSSLGives(t *testing.T) {
	for id, want := range map[uint16]string{
		tls.TLS_AES_128_GCM_SHA256:                        "TLS_AES_128_GCM_SHA256",
		tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256:         "ECDHE-RSA-AES128-GCM-SHA256",
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384:       "ECDHE-ECDSA-AES256-GCM-SHA384",
		tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256:   "ECDHE-RSA-CHACHA20-POLY1305",
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA:          "ECDHE-ECDSA-AES128-SHA",
		tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256:         "ECDHE-RSA-AES128-SHA256",
		tls.TLS_RSA_WITH_AES_256_GCM_SHA384:               "AES256-GCM-SHA384",
		tls.TLS_RSA_WITH_AES_128_CBC_SHA:                  "AES128-SHA",
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256: "ECDHE-ECDSA-CHACHA20-POLY1305",
	} {
		if got := cipherName(id); got != want {
			t.Errorf("%s = %s, want %s", tls.CipherSuiteName(id), got, want)
		}
	}
}

func TestSubjectsInTheFormOfRFC2253(t *testing.T) {
	name := pkix.Name{
		Country: []string{"US"}, Province: []string{"California"}, Locality: []string{"San Francisco"},
		Organization: []string{`Lyft, "Inc"`}, OrganizationalUnit: []string{" #x"}, CommonName: "Test Server",
		ExtraNames: []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, Value: "a@b"}, {Type: asn1.ObjectIdentifier{1, 2, 3}, Value: "v"}},
	}
	raw, err := asn1.Marshal(name.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	const want = `1.2.3=#130176,emailAddress=a@b,CN=Test Server,OU=\ #x,O=Lyft\, \"Inc\",L=San Francisco,ST=California,C=US`
	got := distinguishedName(raw, name)
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// As "openssl x509 -subject -nameopt RFC2253" prints them.
func TestSubjectsAreASCII(t *testing.T) {
	for value, want := range map[string]string{
		"\u00fc\"; URI=x\\,": `O=\C3\BC\"\; URI=x\\\,`, "a\x01b\x7f": `O=a\01b\7F`, " x ": `O=\ x\ `, "  ": `O=\ \ `, "#a#": `O=\#a#`,
	} {
		raw, err := asn1.Marshal(pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 5, 4, 10}, Value: value}}})
		if err != nil {
			t.Fatal(err)
		}
		if got := distinguishedName(raw, pkix.Name{}); got != want {
			t.Errorf("%q: got %s, want %s", value, got, want)
		}
	}
}

// readDN undoes distinguishedName: the values of the attributes, last first.
func readDN(t *testing.T, s string) (values []string) {
	t.Helper()
	for s != "" {
		_, rest, ok := strings.Cut(s, "=")
		if !ok {
			t.Fatalf("%q has no value", s)
		}
		var v []byte
		i := 0
		for ; i < len(rest) && rest[i] != ',' && rest[i] != '+'; i++ {
			switch {
			case rest[i] != '\\':
				v = append(v, rest[i])
			case strings.IndexByte(`,+"\<>;# `, rest[i+1]) >= 0:
				i++
				v = append(v, rest[i])
			default:
				b, err := hex.DecodeString(rest[i+1 : i+3])
				if err != nil {
					t.Fatalf("%q: %v", rest[i:], err)
				}
				v = append(v, b...)
				i += 2
			}
		}
		values = append(values, string(v))
		if s = rest[i:]; s != "" {
			s = s[1:]
		}
	}
	return values
}

// FuzzDistinguishedName: a name is printable ASCII whose quotes are all escaped,
// and a reader of RFC 2253 finds the values of its attributes again, last first.
func FuzzDistinguishedName(f *testing.F) {
	f.Add([]byte{0x30, 0x00}, "a", "b")
	f.Add([]byte{}, "a,b=\"c\"", "\\ ")
	f.Fuzz(func(t *testing.T, raw []byte, o, cn string) {
		got := distinguishedName(raw, pkix.Name{CommonName: "x"})
		if strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Fatalf("%q is not ASCII", got)
		}
		if !utf8.ValidString(o) || !utf8.ValidString(cn) {
			return
		}
		seq := pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 5, 4, 10}, Value: o}}, {{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: cn}, {Type: asn1.ObjectIdentifier{2, 5, 4, 11}, Value: "u"}}}
		raw, err := asn1.Marshal(seq)
		if err != nil {
			t.Fatal(err)
		}
		got = distinguishedName(raw, pkix.Name{})
		unquoted := strings.NewReplacer(`\\`, "", `\"`, "").Replace(got)
		if strings.ContainsAny(unquoted, "\"") {
			t.Fatalf("%s has a bare quote", got)
		}
		if v := readDN(t, got); len(v) != 3 || !slices.Contains(v[:2], cn) || !slices.Contains(v[:2], "u") || v[2] != o {
			t.Fatalf("%q, %q: %s is read as %q", o, cn, got, v)
		}
	})
}

func TestDNSNamesMatchByTheirRules(t *testing.T) {
	for _, c := range []struct {
		pattern, host string
		want          bool
	}{
		{"a.b", "A.B", true},
		{"*.b", "a.b", true},
		{"*.b", "x.a.b", false},
		{"*.b", ".b", false},
		{"*.b", "b", false},
		{"a*.b", "ab.b", false},
		{"a.b", "a.c", false},
		{"", "", true},
	} {
		if got := dnsMatch(c.pattern, c.host); got != c.want {
			t.Errorf("dnsMatch(%q, %q) = %v", c.pattern, c.host, got)
		}
	}
}

// Sessions of different peers share what is said about the certificate of this
// side, as long as it is the same one.
func TestTheLocalCertificateIsDescribedOnce(t *testing.T) {
	ca := newCA(t)
	src := source(t, ca, id(server))
	srv := newServer(t, &xdsresource.DownstreamTLS{CommonTLS: xdsresource.CommonTLS{Certificates: own}}, store(t, src))
	session := func() streaminfo.Certificate {
		peer, err := ca.Issue(id(client))
		if err != nil {
			t.Fatal(err)
		}
		return srv.Info(&tls.ConnectionState{Version: tls.VersionTLS13, PeerCertificates: []*x509.Certificate{peer.Leaf}}).LocalCert
	}
	a, b := session(), session()
	if a.PEM == "" || unsafe.StringData(a.PEM) != unsafe.StringData(b.PEM) {
		t.Error("it is described twice")
	}
	for range 3 * maxOwn {
		c, err := ca.Issue(id(server))
		if err != nil {
			t.Fatal(err)
		}
		src.Set(identity.Material{Certificate: c, Roots: ca.Roots()})
		if d := session(); d.Serial != hex.EncodeToString(c.Leaf.SerialNumber.Bytes()) {
			t.Fatal("after a rotation the former one is described")
		}
	}
	if n := len(sessions.own); n > maxOwn {
		t.Errorf("%d are kept", n)
	}
}

// Certificates are replaced all the time: what nobody asks for any more is
// forgotten, long before so many have come that there is no room.
func TestSessionsThatAreNotSeenAnyMoreAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ic infoCache
		key := func(n int) (k infoKey) {
			k.peer[0], k.peer[1] = byte(n), byte(n>>8)
			return k
		}
		used := ic.put(key(0), &streaminfo.TLS{})
		hours := 0
		for n := range 48 * 60 { // a peer a minute
			time.Sleep(time.Minute)
			ic.put(key(n+1), &streaminfo.TLS{})
			ic.own = map[*x509.Certificate]streaminfo.Certificate{new(x509.Certificate): {}}
			if ic.get(key(0)) != used {
				t.Fatalf("the one that is used is gone after %d minutes", n)
			}
			if all := len(ic.recent) + len(ic.old); all > 2*(int(infoAge/time.Minute)+2) {
				t.Fatalf("%d are there after %d hours", all, hours)
			}
			hours = (n + 1) / 60
		}
		for n := range 3 * maxInfos { // at once
			ic.put(key(10_000+n), &streaminfo.TLS{})
			if ic.get(key(0)) != used || len(ic.recent) > maxInfos || len(ic.old) > maxInfos {
				t.Fatalf("%d and %d are there after %d", len(ic.recent), len(ic.old), n)
			}
		}
		time.Sleep(infoAge + time.Second)
		ic.put(key(1), &streaminfo.TLS{})
		if len(ic.own) != 0 {
			t.Error("what is known of former certificates of this side is still there")
		}
	})
}
