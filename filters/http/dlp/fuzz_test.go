package dlp

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/internal/sweep"
)

// FuzzDecode: both forms of a configuration and of an override give the same,
// and what is no message is refused.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(one("BLOCK")), true)
	f.Add([]byte(`{"rules":[{"name":"r","regexes":[{"infoType":"X","pattern":"a(b|c)+d"}]}]}`), true)
	f.Add([]byte("\x0a\x12\x0a\x01r\x12\x0dEMAIL_ADDRESS"), false)
	f.Fuzz(func(t *testing.T, b []byte, js bool) {
		_, _ = decodetest.Forms(t, filters.Any{TypeURL: TypeURL, Value: b, JSON: js}, Factory{}.Decode)
		_, _ = decodetest.Forms(t, filters.Any{TypeURL: PerRouteTypeURL, Value: b, JSON: js}, Factory{}.DecodeOverride)
	})
}

// FuzzDo checks that a request with a body never crashes the filter, that the
// verdict doesn't depend on chunks, and that what is masked keeps its length.
func FuzzDo(f *testing.F) {
	f.Add("/a?b="+card, "text/plain", "x "+card+" jane@example.com", uint8(3))
	f.Add("/%2534111111111111111", "application/json", `{"a":"\u0034111111111111111"}`, uint8(0))
	f.Add("/", "application/x-www-form-urlencoded", "a=4111+1111+1111+1111", uint8(1))
	block, mask := compile(f, one("BLOCK"), ""), compile(f, one("MASK"), "")
	f.Fuzz(sweep.Around(f, func(t *testing.T, path, ct, body string, n uint8) {
		req := func(n int) request {
			r := request{path: "/" + path, header: [][2]string{{"content-type", ct}}}
			if body != "" {
				r.body = &pieces{p: split(body, n)}
			}
			return r
		}
		whole, cut := block.run(t, req(1), nil), block.run(t, req(int(n)), nil)
		if whole.status != cut.status || whole.s.Info.Details != cut.s.Info.Details {
			t.Fatalf("whole: %d %s, cut: %d %s", whole.status, whole.s.Info.Details, cut.status, cut.s.Info.Details)
		}
		m := mask.run(t, req(int(n)), nil)
		if m.status == 200 && len(m.u.body) != len(body) {
			t.Fatalf("%q became %q", body, m.u.body)
		}
		if whole.status == 200 && m.status == 200 && m.u.body != body {
			t.Fatalf("%q is clean and became %q", body, m.u.body)
		}
		block.log.Reset()
		mask.log.Reset()
	}))
}

// TestSplitAtEveryOffset cuts each secret over two chunks at every offset.
func TestSplitAtEveryOffset(t *testing.T) {
	x := compile(t, `{"rules":[{"name":"r","infoTypes":["CREDIT_CARD_NUMBER","IBAN_CODE","US_SOCIAL_SECURITY_NUMBER","EMAIL_ADDRESS","AWS_CREDENTIALS",
		"GITHUB_TOKEN","JSON_WEB_TOKEN","PRIVATE_KEY","SLACK_TOKEN","STRIPE_API_KEY","GCP_API_KEY","PHONE_NUMBER"],"action":"BLOCK"}]}`, "")
	n := 0
	for _, secret := range []string{
		card, "4111 1111 1111 1111", "378282246310005", "GB82 WEST 1234 5698 7654 32", "536-90-4399", "jane.doe@example.com", "AKIAIOSFODNN7EXAMPLE",
		"ghp_16C7e42F292c6912E7710c838347Ae178B4a", "xoxb-123456789012-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx", "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
		"AIzaSyA1234567890abcdefghijklmnopqrstuv", "+49 30 1234567", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
		"-----BEGIN PRIVATE KEY-----\nMIIEowIBAAKCAQEAtVKUtcx/n9rt5afY/2WFNvU6PlFMggCatsZ3l4RjKxH0jgdL\n-----END PRIVATE KEY-----",
	} {
		for at := range len(secret) + 1 {
			body := &pieces{p: []string{`{"v":"` + secret[:at], secret[at:] + `"}`}}
			got := x.run(t, request{body: body}, nil)
			if got.status != 403 || got.u.called {
				t.Errorf("%q cut at %d: status %d", secret, at, got.status)
			}
			n++
		}
	}
	if n != 490 {
		t.Errorf("%d cases: want 490", n)
	}
}

// TestMaskedJSONStaysJSON masks secrets in random documents.
func TestMaskedJSONStaysJSON(t *testing.T) {
	x := compile(t, `{"rules":[{"name":"r","infoTypes":["CREDIT_CARD_NUMBER","EMAIL_ADDRESS","PRIVATE_KEY","IP_ADDRESS","GENERIC_SECRET","PHONE_NUMBER"],"action":"MASK","direction":"REQUEST"}]}`, "")
	r := rand.New(rand.NewPCG(3, 3))
	secrets := []string{
		card, "jane@example.com", "10.2.3.4", "caf\u00e9jane@example.com", "password = Xk29fLq0Zr81mWv", "(212) 555-0187",
		"-----BEGIN PRIVATE KEY-----\nMIIEowIBAAKCAQEAtVKUtcx/n9rt5afY/2WFNvU6PlFMggCatsZ3l4RjKxH0jgdL\n-----END PRIVATE KEY-----",
	}
	var value func(depth int) any
	value = func(depth int) any {
		switch k := r.IntN(7); {
		case k == 0 && depth < 4:
			m := map[string]any{}
			for i := range r.IntN(4) {
				m[fmt.Sprint("k", i, " ", secrets[r.IntN(3)])] = value(depth + 1)
			}
			return m
		case k == 1 && depth < 4:
			return []any{value(depth + 1), value(depth + 1)}
		case k == 2:
			return r.Float64()
		case k == 3:
			return `quote " back \ slash / tab	` + secrets[r.IntN(len(secrets))] + ` <&>`
		}
		return secrets[r.IntN(len(secrets))]
	}
	for range 300 {
		doc, err := json.Marshal(map[string]any{"v": value(0), "w": value(0)})
		if err != nil {
			t.Fatal(err)
		}
		got := x.run(t, request{body: &pieces{p: split(string(doc), 1+r.IntN(6))}}, nil)
		if !json.Valid([]byte(got.u.body)) || len(got.u.body) != len(doc) {
			t.Fatalf("%s became %s", doc, got.u.body)
		}
		for _, s := range []string{card, "jane@", "MIIEow", "Xk29"} {
			if strings.Contains(got.u.body, s) {
				t.Fatalf("%s is still in %s", s, got.u.body)
			}
		}
	}
}

func BenchmarkCleanRequest(b *testing.B) {
	x := compile(b, one("MASK"), "")
	body := []string{strings.Repeat(`{"name":"value","n":12},`, 40)}
	u := terminal{}
	s := request{path: "/api/v1/items?page=2", header: [][2]string{{"content-type", "application/json"}, {"user-agent", "bench"}, {"accept", "*/*"}, {"x-request-id", "abc"}}}.stream()
	b.ReportAllocs()
	for b.Loop() {
		s.Body = &pieces{p: body}
		s.SetChain([]filters.HTTPFilter{x.f, u})
		if _, err := filters.Start(s); err != nil {
			b.Fatal(err)
		}
	}
}

type terminal struct{}

func (terminal) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	for {
		_, last, err := s.Body.Next()
		if err != nil {
			return nil, err
		}
		if last {
			s.Body.Close()
			return s.NewResponse(), nil
		}
	}
}
