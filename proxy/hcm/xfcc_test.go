package hcm

import (
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/internal/sweep"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// readXFCC is a reader as an origin would have it: elements at commas, pairs at
// semicolons, values at the first "="; in quotes a backslash takes the next
// character.
func readXFCC(s string) (elements [][][2]string, ok bool) {
	var pairs [][2]string
	for i := 0; ; {
		eq := strings.IndexByte(s[i:], '=')
		if eq < 0 {
			return nil, false
		}
		key := s[i : i+eq]
		i += eq + 1
		var v strings.Builder
		if quoted := i < len(s) && s[i] == '"'; quoted {
			for i++; ; i++ {
				if i == len(s) {
					return nil, false
				}
				if s[i] == '"' {
					i++
					break
				}
				if v.WriteByte(s[i]); s[i] == '\\' && i+1 < len(s) {
					i++
					v.WriteByte(s[i])
				}
			}
		} else {
			for ; i < len(s) && s[i] != ';' && s[i] != ','; i++ {
				v.WriteByte(s[i])
			}
		}
		pairs = append(pairs, [2]string{key, v.String()})
		switch {
		case i == len(s):
			return append(elements, pairs), true
		case s[i] == ',':
			elements, pairs = append(elements, pairs), nil
		case s[i] != ';':
			return nil, false
		}
		i++
	}
}

func TestASubjectWithQuotesStaysInItsQuotes(t *testing.T) {
	peer := &streaminfo.TLS{Peer: streaminfo.Certificate{Digest: "ab", Subject: `CN=x\"\;URI=spiffe://td/ns/admin/sa/admin\\`, URISANs: []string{"spiffe://td/a,Hash=0;By=x"}}}
	got := xfccElement(peer, &xdsresource.SetClientCertDetails{Subject: true, URI: true})
	want := `Hash=ab;Subject="CN=x\"\;URI=spiffe://td/ns/admin/sa/admin\\";URI=spiffe://td/a%2CHash=0%3BBy=x`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// rfc2253 escapes as tlscontext does for a subject.
func rfc2253(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case strings.IndexByte(`,+"\<>;`, c) >= 0:
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c >= 0x7f:
			const hex = "0123456789ABCDEF"
			b.WriteByte('\\')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// FuzzXFCC: an origin that reads the header finds one element, with the keys of
// the configuration in their order, and the subject and SANs as they were; no
// certificate adds a pair or an element.
func FuzzXFCC(f *testing.F) {
	f.Add("x", "spiffe://td/ns/a/sa/b", "b.a", "", uint8(15))
	f.Add(`a";URI=x\`, "a;b,c\"", "a b", "spiffe://x", uint8(14))
	f.Fuzz(sweep.Around(f, func(t *testing.T, cn, uri, dns, by string, what uint8) {
		tl := &streaminfo.TLS{Peer: streaminfo.Certificate{Digest: "00ff", Subject: "CN=" + rfc2253(cn), PEM: "-----BEGIN\n a+/=", URISANs: []string{uri, uri + "2"}, DNSSANs: []string{dns}}}
		if by != "" {
			tl.LocalCert.URISANs = []string{by}
		}
		d := &xdsresource.SetClientCertDetails{Cert: what&1 != 0, Subject: what&2 != 0, URI: what&4 != 0, DNS: what&8 != 0}
		es, ok := readXFCC("Hash=1;Subject=\"\"," + xfccElement(tl, d))
		if !ok || len(es) != 2 {
			t.Fatalf("%q is %q, %t", xfccElement(tl, d), es, ok)
		}
		plain := func(s string) string { return xfccPlain.Replace(s) }
		var want [][2]string
		if by != "" {
			want = append(want, [2]string{"By", plain(by)})
		}
		want = append(want, [2]string{"Hash", "00ff"})
		if d.Cert {
			want = append(want, [2]string{"Cert", "-----BEGIN%0A%20a%2B%2F%3D"})
		}
		if d.Subject {
			want = append(want, [2]string{"Subject", tl.Peer.Subject})
		}
		if d.URI {
			want = append(want, [2]string{"URI", plain(uri)}, [2]string{"URI", plain(uri) + "2"})
		}
		if d.DNS {
			want = append(want, [2]string{"DNS", plain(dns)})
		}
		if !slices.Equal(es[1], want) {
			t.Fatalf("got %q, want %q", es[1], want)
		}
	}))
}
