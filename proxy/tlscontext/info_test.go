package tlscontext

import (
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/asn1"
	"testing"
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
	const want = `1.2.3=v,emailAddress=a@b,CN=Test Server,OU=\ #x,O=Lyft\, \"Inc\",L=San Francisco,ST=California,C=US`
	got := distinguishedName(raw, name)
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func FuzzDistinguishedName(f *testing.F) {
	f.Add([]byte{0x30, 0x00})
	f.Fuzz(func(_ *testing.T, raw []byte) { _ = distinguishedName(raw, pkix.Name{}) })
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
