package dlp

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// hidden are forty secrets of sixteen kinds.
var hidden = map[string][]string{
	"CREDIT_CARD_NUMBER":                 {"4111111111111111", "4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005", "6011111111111117"},
	"IBAN_CODE":                          {"GB82WEST12345698765432", "DE89 3704 0044 0532 0130 00", "FR1420041010050500013M02606"},
	"US_SOCIAL_SECURITY_NUMBER":          {"536-90-4399", "212-45-6789"},
	"EMAIL_ADDRESS":                      {"jane.doe@example.com", "o.neil+x@mail.example.org"},
	"PHONE_NUMBER":                       {"+49 30 1234567", "+12125550187"},
	"AWS_CREDENTIALS":                    {"AKIAIOSFODNN7EXAMPLE", "ASIAY34FZKBOKMUTVV7A"},
	"GCP_API_KEY":                        {"AIzaSyA1234567890abcdefghijklmnopqrstuv", "AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY"},
	"GITHUB_TOKEN":                       {"ghp_16C7e42F292c6912E7710c838347Ae178B4a", "gho_16C7e42F292c6912E7710c838347Ae178B4a", "github_pat_" + strings.Repeat("aB3_x", 16) + "zz"},
	"SLACK_TOKEN":                        {"xoxb-123456789012-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx", "xoxp-1234567890-1234567890-abcdef"},
	"STRIPE_API_KEY":                     {"sk_live_4eC39HqLyjWDarjtT1zdp7dc", "rk_live_4eC39HqLyjWDarjtT1zdp7dc"},
	"JSON_WEB_TOKEN":                     {"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.c2ln"},
	"PRIVATE_KEY":                        {"-----BEGIN PRIVATE KEY-----\nMIIEowIBAAKCAQEAtVKUtcx/n9rt5afY/2WFNvU6PlFMggCatsZ3l4RjKxH0jgdL\n-----END PRIVATE KEY-----", "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIIGLlamZ6hqdb6Bt2RUGJYQcVFuVLlNqYwM3zyPJ8yKcoAoGCCqGSM49\n-----END EC PRIVATE KEY-----"},
	"FINLAND_NATIONAL_ID_NUMBER":         {"131052-308T"},
	"BITCOIN_ADDRESS":                    {"1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"},
	"GITLAB_TOKEN":                       {"glpat-AbCdEfGh1234567890zZ", "glpat-zZ09yY18xX27wW36vV45", "glpat-q1W2e3R4t5Y6u7I8o9P0"},
	"SWITZERLAND_SOCIAL_SECURITY_NUMBER": {"756.9217.0769.85", "756.1234.5678.97"},
	"PROJECT":                            {"operation skyfall", "bluebird", "codename-nightjar"},
}

const hiddenKinds, hiddenInstances = 17, 40

func eachHidden(f func(kind, secret string)) (n int) {
	for kind, secrets := range hidden {
		for _, s := range secrets {
			f(kind, s)
			n++
		}
	}
	return n
}

// guard is the configuration of the table: everything in hidden is blocked.
func guard(t testing.TB, action string) *fixture {
	t.Helper()
	var types []string
	for k := range hidden {
		if k != "PROJECT" {
			types = append(types, k)
		}
	}
	js, err := json.Marshal(map[string]any{"rules": []any{map[string]any{
		"name": "r", "infoTypes": types, "action": action, "words": []any{map[string]any{"infoType": "PROJECT", "words": hidden["PROJECT"]}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return compile(t, string(js), "")
}

// evasion is one row: how a secret is hidden in a message.
type evasion struct {
	name string
	make func(secret string) (request, *upstream)
	// refused allows an answer that the body can't be inspected.
	refused bool
}

// run sends the row's message and reports whether it was stopped. Whatever
// happens, the other side never holds the whole secret.
func (e *evasion) run(t *testing.T, x *fixture, id, secret string) {
	t.Helper()
	r, u := e.make(secret)
	if u == nil {
		u = &upstream{}
	}
	s := r.stream()
	s.SetChain([]filters.HTTPFilter{x.f, u})
	resp, err := filters.Start(s)
	var body string
	if err == nil {
		body, err = readAll(resp.Body)
		resp.Body.Close()
	}
	stopped := err != nil || resp.Status() == 403 || resp.Header.Get("grpc-status") == "7" || e.refused && (resp.Status() == 415 || resp.Status() == 413 || resp.Status() == 502)
	if !stopped {
		t.Errorf("%s %s: %q passed with status %d, details %q", id, e.name, secret, resp.Status(), s.Info.Details)
	}
	if seen := u.body + fmt.Sprint(u.header) + body; strings.Contains(seen, secret) {
		t.Errorf("%s %s: the other side got %q", id, e.name, secret)
	}
}

func inRequest(p ...string) (request, *upstream) { return request{body: &pieces{p: p}}, nil }

func inResponse(header [][2]string, p ...string) (request, *upstream) {
	return request{method: "GET"}, &upstream{response: header, answer: &pieces{p: p}}
}

func header(name, value string) [][2]string { return [][2]string{{name, value}} }

func quoted(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// TestEvasions is the table of the ways around inspection. The rows of a
// number are tried with all forty secrets, and counted.
//
//nolint:maintidx // a table
func TestEvasions(t *testing.T) {
	x := guard(t, "BLOCK")
	doc := func(s string) string { return `{"a":1,"v":` + quoted(s) + `}` }
	gzipped := func(s string) string { return encode(t, "gzip", "text "+s+" end") }
	coded := func(h, body string) (request, *upstream) {
		return request{header: header("content-encoding", h), body: &pieces{p: split(body, 3)}}, nil
	}
	mapped := func(f func(i int, c byte) string) func(string) (request, *upstream) {
		return func(s string) (request, *upstream) {
			var b strings.Builder
			for i := range len(s) {
				b.WriteString(f(i, s[i]))
			}
			return inRequest(`{"v":"` + b.String() + `"}`)
		}
	}
	part := func(ct, body string) func(string) (request, *upstream) {
		return func(s string) (request, *upstream) {
			return request{header: header("content-type", ct), body: &pieces{p: split(strings.ReplaceAll(body, "SECRET", s), 4)}}, nil
		}
	}
	table := map[string][]evasion{
		"M1": {
			{"chunked", func(s string) (request, *upstream) { return inRequest(split(doc(s), 4)...) }, false},
			{"with a length", func(s string) (request, *upstream) {
				return request{header: header("content-length", fmt.Sprint(len(doc(s)))), body: &pieces{p: []string{doc(s)}}}, nil
			}, false},
			{"one byte at a time", func(s string) (request, *upstream) { return inRequest(split(doc(s), 0)...) }, false},
			{"expecting 100", func(s string) (request, *upstream) {
				return request{header: header("expect", "100-continue"), body: &pieces{p: []string{doc(s)}}}, nil
			}, false},
			{"a response until the end of the connection", func(s string) (request, *upstream) { return inResponse(nil, split(doc(s), 3)...) }, false},
			{"a method without a body", func(s string) (request, *upstream) {
				return request{method: "GET", body: &pieces{p: []string{doc(s)}}}, nil
			}, false},
		},
		"M4": {
			{"gzip", func(s string) (request, *upstream) { return coded("gzip", gzipped(s)) }, false},
			{"x-gzip", func(s string) (request, *upstream) { return coded("x-gzip", gzipped(s)) }, false},
			{"GZIP", func(s string) (request, *upstream) { return coded("GZIP", gzipped(s)) }, false},
			{"a space before gzip", func(s string) (request, *upstream) { return coded(" gzip", gzipped(s)) }, false},
			{"zlib", func(s string) (request, *upstream) { return coded("deflate", encode(t, "zlib", s)) }, false},
			{"raw deflate", func(s string) (request, *upstream) { return coded("deflate", encode(t, "flate", s)) }, false},
			{"br", func(s string) (request, *upstream) { return coded("br", encode(t, "br", s)) }, false},
			{"zstd", func(s string) (request, *upstream) { return coded("zstd", encode(t, "zstd", s)) }, false},
			{"gzip twice", func(s string) (request, *upstream) { return coded("gzip, gzip", encode(t, "gzip", gzipped(s))) }, false},
			{"gzip, identity", func(s string) (request, *upstream) { return coded("gzip, identity", gzipped(s)) }, false},
			{"gzip, br", func(s string) (request, *upstream) { return coded("gzip,br", encode(t, "br", gzipped(s))) }, false},
			{"two members", func(s string) (request, *upstream) { return coded("gzip", encode(t, "gzip", "clean")+gzipped(s)) }, false},
			{"over two members", func(s string) (request, *upstream) {
				return coded("gzip", encode(t, "gzip", "a "+s[:len(s)/2])+encode(t, "gzip", s[len(s)/2:]+" b"))
			}, false},
			{"behind garbage", func(s string) (request, *upstream) { return coded("gzip", encode(t, "gzip", "clean")+"garbage "+s) }, true},
			{"a wrong checksum", func(s string) (request, *upstream) {
				b := []byte(gzipped(s))
				b[len(b)-6] ^= 1
				return coded("gzip", string(b))
			}, true},
			{"truncated", func(s string) (request, *upstream) { b := gzipped(s); return coded("gzip", b[:len(b)-9]) }, true},
			{"unknown", func(s string) (request, *upstream) { return coded("compress", s) }, true},
			{"two headers", func(s string) (request, *upstream) {
				return request{header: [][2]string{{"content-encoding", "gzip"}, {"content-encoding", "br"}}, body: &pieces{p: []string{encode(t, "br", gzipped(s))}}}, nil
			}, false},
		},
		"M5": {
			{"gzip that nobody declared", func(s string) (request, *upstream) { return inRequest(gzipped(s)) }, true},
			{"gzip that is none", func(s string) (request, *upstream) { return coded("gzip", doc(s)) }, true},
			{"gzip declared as identity", func(s string) (request, *upstream) { return coded("identity", gzipped(s)) }, true},
		},
		"M6": {
			{"percent encoding", mapped(func(_ int, c byte) string { return fmt.Sprintf("%%%02X", c) }), false},
			{"percent encoding in part", mapped(func(i int, c byte) string {
				if i%3 == 1 {
					return fmt.Sprintf("%%%02x", c)
				}
				return url.PathEscape(string(c))
			}), false},
			{"JSON escapes", mapped(func(_ int, c byte) string { return fmt.Sprintf(`\u%04x`, c) }), false},
			{"HTML decimal", mapped(func(_ int, c byte) string { return fmt.Sprintf("&#%d;", c) }), false},
			{"HTML hexadecimal", mapped(func(_ int, c byte) string { return fmt.Sprintf("&#x%x;", c) }), false},
			{"zero-width joiners", mapped(func(_ int, c byte) string { return string(c) + "\u200d" }), false},
			{"zero-width spaces, escaped", mapped(func(_ int, c byte) string { return strings.Trim(quoted(string(c)), `"`) + `\u200b` }), false},
			{"full width", mapped(func(_ int, c byte) string {
				if c > ' ' && c < 0x7f {
					return string(rune(c) - '!' + 0xFF01)
				}
				return string(c)
			}), false},
			{"Arabic-Indic digits", mapped(func(_ int, c byte) string {
				if c >= '0' && c <= '9' {
					return string(rune(c) - '0' + 0x0660)
				}
				return string(c)
			}), false},
			{"a byte order mark", func(s string) (request, *upstream) { return inRequest("\ufeff" + s) }, false},
			{"UTF-16LE with a mark", func(s string) (request, *upstream) { return inRequest("\xff\xfe" + utf16(s, false)) }, true},
			{"UTF-16BE with a mark", func(s string) (request, *upstream) { return inRequest("\xfe\xff" + utf16(s, true)) }, true},
			{"UTF-16LE without a mark", func(s string) (request, *upstream) { return inRequest(utf16(s, false)) }, true},
			{"UTF-16BE without a mark", func(s string) (request, *upstream) { return inRequest(utf16(s, true)) }, true},
			{"UTF-7", part("text/plain; charset=utf-7", "SECRET"), true},
		},
		"M7": {
			{"duplicate keys", func(s string) (request, *upstream) { return inRequest(`{"v":"x","v":` + quoted(s) + `}`) }, false},
			{"a key", func(s string) (request, *upstream) { return inRequest(`{` + quoted(s) + `:1}`) }, false},
			{"JSONP", func(s string) (request, *upstream) { return inRequest(`cb({"v":` + quoted(s) + `})`) }, false},
			{"NDJSON", func(s string) (request, *upstream) {
				return request{header: header("content-type", "application/x-ndjson"), body: &pieces{p: []string{"{}\n", doc(s) + "\n", "{}\n"}}}, nil
			}, false},
			{"broken JSON", func(s string) (request, *upstream) { return inRequest(`{"v":[[[` + quoted(s)) }, false},
			{"a comment", func(s string) (request, *upstream) { return inRequest("{/* " + s + " */}") }, false},
		},
		"M8": {
			{"multipart", part("multipart/form-data; boundary=x", "--x\r\nContent-Disposition: form-data; name=a\r\n\r\nSECRET\r\n--x--\r\n"), false},
			{"nested", part("multipart/mixed; boundary=x", "--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y\r\n\r\nSECRET\r\n--y--\r\n--x--\r\n"), false},
			{"a quoted boundary", part(`multipart/form-data; boundary="a b"`, "--a b\r\n\r\nSECRET\r\n--a b--"), false},
			{"a long boundary", part("multipart/form-data; boundary="+strings.Repeat("b", 90), "--"+strings.Repeat("b", 90)+"\r\n\r\nSECRET"), false},
			{"no final boundary", part("multipart/form-data; boundary=x", "--x\r\n\r\nSECRET"), false},
			{"preamble", part("multipart/form-data; boundary=x", "SECRET\r\n--x\r\n\r\n\r\n--x--"), false},
			{"epilogue", part("multipart/form-data; boundary=x", "--x\r\n\r\n\r\n--x--\r\nSECRET"), false},
			{"a file of bytes", part("multipart/form-data; boundary=x", "--x\r\nContent-Disposition: form-data; filename=a; filename*=utf-8''b\r\nContent-Type: application/octet-stream\r\n\r\n\x00\x01 SECRET \xff\r\n--x--"), false},
			{"base64 in a part", func(s string) (request, *upstream) {
				return part("Multipart/Form-Data; boundary=x", "--x\r\nContent-TRANSFER-Encoding:  base64\r\n\r\n"+base64.StdEncoding.EncodeToString([]byte(s)))(s)
			}, true},
			{"quoted-printable in a part", part("multipart/form-data; boundary=x", "--x\r\ncontent-transfer-encoding: Quoted-Printable\r\n\r\n=34=31"), true},
			{"two content types", func(s string) (request, *upstream) {
				return request{header: [][2]string{{"content-type", "text/plain"}, {"content-type", "multipart/form-data; boundary=x"}}, body: &pieces{p: []string{"--x\r\n\r\n" + s}}}, nil
			}, false},
		},
		"M9": {
			{"path", func(s string) (request, *upstream) { return request{path: "/a/" + url.PathEscape(s) + "/b"}, nil }, false},
			{"query", func(s string) (request, *upstream) { return request{path: "/?q=" + url.QueryEscape(s)}, nil }, false},
			{"query, encoded twice", func(s string) (request, *upstream) {
				return request{path: "/?q=" + url.QueryEscape(url.QueryEscape(s))}, nil
			}, false},
			{"header", func(s string) (request, *upstream) {
				return request{header: header("x-v", strings.ReplaceAll(s, "\n", " "))}, nil
			}, false},
			{"cookie", func(s string) (request, *upstream) {
				return request{header: header("cookie", "a=b; v="+strings.ReplaceAll(s, "\n", " "))}, nil
			}, false},
			{"trailer", func(s string) (request, *upstream) {
				h := &message.Header{}
				h.Add("x-t", strings.ReplaceAll(s, "\n", " "))
				return request{body: &pieces{p: []string{"x"}, trailers: h}}, nil
			}, false},
			{"gRPC metadata", func(s string) (request, *upstream) {
				r := grpcRequest([]string{grpcFrame(0, nil)}, "")
				r.header = append(r.header, [2]string{"x-meta", strings.ReplaceAll(s, "\n", " ")})
				return r, nil
			}, false},
			{"gRPC message", func(s string) (request, *upstream) {
				return grpcRequest(split(grpcFrame(0, message1(s, "m")), 3), ""), nil
			}, false},
			{"gRPC message, compressed", func(s string) (request, *upstream) {
				return grpcRequest(split(grpcFrame(1, []byte(encode(t, "gzip", string(message1(s, "m"))))), 3), "gzip"), nil
			}, false},
			{"SSE", func(s string) (request, *upstream) {
				return inResponse(header("content-type", "text/event-stream"), "data: 1\n\n", "data: "+strings.ReplaceAll(s, "\n", " ")+"\n\n")
			}, false},
		},
		"M10": {
			{"response", func(s string) (request, *upstream) { return inResponse(nil, doc(s)) }, false},
			{"response header", func(s string) (request, *upstream) {
				return inResponse(header("x-v", strings.ReplaceAll(s, "\n", " ")), "x")
			}, false},
			{"response, compressed though nobody asked", func(s string) (request, *upstream) {
				return inResponse(header("content-encoding", "gzip"), gzipped(s))
			}, false},
			{"partial content", func(s string) (request, *upstream) {
				r, u := inResponse(header("content-range", "bytes 0-9/99"), s[:len(s)-1])
				u.status = 206
				return r, u
			}, true},
			{"an error", func(s string) (request, *upstream) { r, u := inResponse(nil, doc(s)); u.status = 500; return r, u }, false},
		},
		"M11": {
			{"JSON as HTML", part("text/html", `{"v":"SECRET"}`), false},
			{"text as an image", part("image/png", "SECRET"), false},
			{"no content type", func(s string) (request, *upstream) { return inRequest(s) }, false},
			{"a form as JSON", part("application/json", "v=SECRET&x"), false},
			{"a wrong length", func(s string) (request, *upstream) {
				return request{header: header("content-length", "1"), body: &pieces{p: []string{s}}}, nil
			}, false},
		},
		"M12": {
			{"a zip", func(s string) (request, *upstream) { return inRequest("PK\x03\x04" + s) }, true},
			{"zip, declared as text", part("text/plain", "PK\x03\x04SECRET"), true},
			{"nested ten times", func(s string) (request, *upstream) {
				b := s
				for range 10 {
					b = encode(t, "gzip", b)
				}
				return coded(strings.TrimSuffix(strings.Repeat("gzip,", 10), ","), b)
			}, true},
			{"nested ten times, declared once", func(s string) (request, *upstream) {
				b := s
				for range 10 {
					b = encode(t, "gzip", b)
				}
				return coded("gzip", b)
			}, true},
		},
	}
	want := map[string]int{"M1": 240, "M4": 720, "M5": 120, "M6": 600, "M7": 240, "M8": 440, "M9": 400, "M10": 200, "M11": 200, "M12": 160}
	for id, rows := range table {
		n := 0
		for i := range rows {
			n += eachHidden(func(_, secret string) { rows[i].run(t, x, id, secret) })
		}
		if n != want[id] {
			t.Errorf("%s: %d cases: want %d", id, n, want[id])
		}
	}
	if len(table) != len(want) || len(hidden) != hiddenKinds || eachHidden(func(_, _ string) {}) != hiddenInstances {
		t.Errorf("%d numbers, %d kinds, %d secrets: want %d, %d, %d", len(table), len(hidden), eachHidden(func(_, _ string) {}), len(want), hiddenKinds, hiddenInstances)
	}
}

func utf16(s string, big bool) string {
	var b []byte
	for i := range len(s) {
		if big {
			b = append(b, 0, s[i])
		} else {
			b = append(b, s[i], 0)
		}
	}
	return string(b)
}

// TestEvasionsOutOfScopeAreDeclared lists what is not seen through. The README
// says so, and a finding here means that it no longer has to.
func TestEvasionsOutOfScopeAreDeclared(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, scope, _ := strings.Cut(string(readme), "Not seen through:")
	scope, _, _ = strings.Cut(scope, "\n- ")
	x := guard(t, "BLOCK")
	n := 0
	for name, body := range map[string]string{
		"base64":                     base64.StdEncoding.EncodeToString([]byte("x " + card)),
		"hexadecimal":                hex.EncodeToString([]byte(card)),
		"quoted-printable":           "=34=31=31=31=31=31=31=31=31=31=31=31=31=31=31=31",
		"homoglyphs":                 "АКIАIОSFОDNN7ЕХАМРLЕ", // Cyrillic
		"numbers with exponents":     `{"c":4.111111111111111e15}`,
		"over several values":        `["4111","1111","1111","1111"]`,
		"words between digits":       "4111 then 1111 then 1111 then 1111",
		"encrypted":                  "-----BEGIN PGP MESSAGE-----\nhQEMA5\n-----END PGP MESSAGE-----",
		"documents and images":       "%PDF-1.7 stream\x9c\x01endstream",
		"over several messages":      card[:8],
		"names of HTML's characters": "jane.doe&commat;example.com",
	} {
		if !strings.Contains(strings.Join(strings.Fields(scope), " "), name) {
			t.Errorf("README.md doesn't declare %q", name)
		}
		if got := x.run(t, request{body: &pieces{p: []string{body}}}, nil); got.status != 200 {
			t.Errorf("%s: status %d: it is covered after all", name, got.status)
		}
		n++
	}
	if n != 11 {
		t.Errorf("%d rows: want 11", n)
	}
}
