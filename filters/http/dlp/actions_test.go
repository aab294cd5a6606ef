package dlp

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

const hashKey = `"hashKey":"0123456789abcdef",`

func withKey(js string) string { return strings.Replace(js, `{"rules"`, `{`+hashKey+`"rules"`, 1) }

func TestTokensAreStableAndTellNothing(t *testing.T) {
	conf := withKey(one("TOKENIZE"))
	form := regexp.MustCompile(`^\{"c":"\[CREDIT_CARD_NUMBER:([0-9a-f]{32})\]"\}$`)
	token := func(conf, value string) string {
		t.Helper()
		x := compile(t, conf, "")
		got := x.run(t, request{header: [][2]string{{"content-length", "99"}}, body: &pieces{p: split(`{"c":"`+value+`"}`, 3)}}, nil)
		m := form.FindStringSubmatch(got.u.body)
		if m == nil {
			t.Fatalf("upstream got %q", got.u.body)
		}
		if cl, ok := got.u.header["content-length"]; ok && cl != fmt.Sprint(len(got.u.body)) {
			t.Errorf("content-length %s of %d bytes", cl, len(got.u.body))
		}
		if strings.Contains(x.log.String(), m[1]) {
			t.Errorf("the token is in the log: %s", x.log)
		}
		return m[1]
	}
	a := token(conf, card)
	if b := token(conf, "4111 1111-1111 1111"); a != b {
		t.Errorf("tokens %s and %s of one number", a, b)
	}
	if b := token(conf, "5555555555554444"); a == b {
		t.Error("one token for two numbers")
	}
	if b := token(strings.Replace(conf, "abcdef", "abcdeg", 1), card); a == b {
		t.Error("the token does not depend on the key")
	}
	got := compile(t, withKey(one("TOKENIZE", `"replacement":"t-{TOKEN}"`)), "").run(t, request{path: "/?c=" + card}, nil)
	if p := got.u.header[message.Path]; p != "/?c=t-"+a {
		t.Errorf("path %s, want the token %s", p, a)
	}
}

func TestConfigurationsOfTokensAndRoutesAreChecked(t *testing.T) {
	for name, js := range map[string]string{
		"a token without a key":      one("TOKENIZE"),
		"a token with a short key":   strings.Replace(one("TOKENIZE"), `{"rules"`, `{"hashKey":"short","rules"`, 1),
		"a token without a token":    withKey(one("TOKENIZE", `"replacement":"x"`)),
		"a route without a header":   one("ROUTE", `"direction":"REQUEST"`),
		"a route for responses":      one("ROUTE", `"direction":"RESPONSE","addHeader":{"name":"x-r","value":"1"}`),
		"a route for both":           one("ROUTE", `"addHeader":{"name":"x-r","value":"1"}`),
		"an unknown family of types": strings.Replace(one("MASK"), "EMAIL_ADDRESS", "ALL_BASIC", 1),
	} {
		if _, err := (Factory{}).Decode(filters.Any{TypeURL: TypeURL, Value: []byte(js), JSON: true}, nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// namedRoute is a route that does nothing but be another.
type namedRoute struct {
	filters.Route
	name  string
	chain []filters.HTTPFilter
}

func (r *namedRoute) ClusterName() string { return r.name }

func TestFindingsChooseAnotherRoute(t *testing.T) {
	conf := one("ROUTE", `"direction":"REQUEST","addHeader":{"name":"x-dlp-route","value":"quarantine"}`)
	long := strings.Repeat("clean text, ", 10000)
	for _, tt := range []struct {
		name     string
		r        request
		rerouted bool
		status   int
		details  string
	}{
		{"clean", request{body: &pieces{p: []string{"clean"}}}, false, 200, ""},
		{"the client chooses", request{header: [][2]string{{"x-dlp-route", "quarantine"}, {"x-dlp-route", "b"}}}, false, 200, ""},
		{"the client chooses what findings choose", request{path: "/?c=" + card, header: [][2]string{{"x-dlp-route", "quarantine"}}}, true, 200, ""},
		{"in the query", request{path: "/?c=" + card}, true, 200, ""},
		{"in the body", request{body: &pieces{p: split(`{"c":"`+card+`"}`, 4)}}, true, 200, ""},
		{"too late", request{body: &pieces{p: split(long+card+" ", 40)}}, false, 403, "dlp_blocked{CREDIT_CARD_NUMBER}"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x := compile(t, conf, "")
			u := &upstream{early: tt.status != 200}
			s := tt.r.stream()
			chain := []filters.HTTPFilter{x.f, u}
			first, other := &namedRoute{name: "first"}, &namedRoute{name: "other"}
			s.SetChain(chain)
			s.Route = first
			selected := 0
			if s.Request.Has("x-dlp-route") { // the client chose, and the route was selected before the filter
				s.Route = other
				selected--
			}
			s.Reselect = func(s *filters.Stream) {
				selected++
				s.Route = first
				if s.Request.Get("x-dlp-route") == "quarantine" {
					s.Route = other
				}
			}
			var late error
			if tt.status != 200 { // the upstream reads on while it answers
				u.early = false
			}
			r, err := filters.Start(s)
			if err != nil {
				late = err
			}
			if tt.status == 200 && (r == nil || r.Status() != 200) || tt.status != 200 && late == nil && r.Status() != tt.status {
				t.Fatalf("status %v, error %v", r, err)
			}
			if tt.details != "" && s.Info.Details != tt.details && late == nil {
				t.Errorf("details %q, want %q", s.Info.Details, tt.details)
			}
			if strings.Contains(u.body, card) != (tt.rerouted && tt.r.body != nil) {
				t.Errorf("upstream got %.80q", u.body)
			}
			if got := s.Route == filters.Route(other); got != tt.rerouted || selected > 1 {
				t.Errorf("rerouted %v in %d selections, want %v", got, selected, tt.rerouted)
			}
			if h := s.Request.Get("x-dlp-route"); (h != "") != tt.rerouted {
				t.Errorf("x-dlp-route: %q", h)
			}
		})
	}
	// No other route: the request doesn't go where it must not.
	if got := compile(t, conf, "").run(t, request{path: "/?c=" + card}, nil); got.status != 503 || got.u.called || got.s.Info.Details != "dlp_uninspectable{no_other_route}" {
		t.Errorf("status %d, details %q", got.status, got.s.Info.Details)
	}
}

func TestHeadersOfRulesAreNotTakenFromOutside(t *testing.T) {
	x := compile(t, one("REPORT", `"addHeader":{"name":"x-found","value":"{TYPE}"}`), "")
	got := x.run(t, request{header: [][2]string{{"x-found", "FORGED"}}}, &upstream{response: [][2]string{{"x-found", "FORGED"}}})
	if got.u.header["x-found"] != "" || got.header["x-found"] != "" {
		t.Errorf("upstream got %q, client %q", got.u.header["x-found"], got.header["x-found"])
	}
}

// TestEditedBodiesKeepTheirSyntax is the integrity of redaction: whatever is
// edited, JSON stays JSON and forms stay forms, and nothing but the matches
// changes.
func TestEditedBodiesKeepTheirSyntax(t *testing.T) {
	const documents = 10000
	r := rand.New(rand.NewPCG(3, 4))
	secrets := []string{card, "jane.doe@example.com", "AKIAIOSFODNN7EXAMPLE"}
	var value func(depth int) string
	value = func(depth int) string {
		switch k := r.IntN(10); {
		case k == 0 && depth < 4:
			return fmt.Sprintf(`{"k%d":%s,"k%d": %s}`, r.IntN(9), value(depth+1), r.IntN(9), value(depth+1))
		case k == 1 && depth < 4:
			return fmt.Sprintf("[%s, %s]", value(depth+1), value(depth+1))
		case k == 2:
			return card // a number
		case k == 3:
			return fmt.Sprint("-", r.IntN(1000), ".5e3")
		case k == 4:
			return `"quote \" and \\ ` + secrets[r.IntN(3)] + ` \u00e9 \/"`
		case k == 5:
			return []string{"true", "false", "null"}[r.IntN(3)]
		}
		return `"` + secrets[r.IntN(3)] + `"`
	}
	fixtures := []*fixture{compile(t, one("MASK", `"mask":{"keepLast":4}`), ""), compile(t, one("REPLACE"), ""), compile(t, withKey(one("TOKENIZE")), "")}
	n := 0
	for range documents {
		x := fixtures[r.IntN(3)]
		doc, ct := fmt.Sprintf(`{"v":%s,"w":%s}`, value(0), value(0)), "application/json; charset=utf-8"
		form := r.IntN(3) == 0
		if form {
			doc, ct = "a=b&c="+strings.ReplaceAll(secrets[r.IntN(3)], "@", "%40")+"&d=x+y", "application/x-www-form-urlencoded"
		}
		got := x.run(t, request{header: [][2]string{{"content-type", ct}, {"content-length", fmt.Sprint(len(doc))}, {"content-md5", "x"}}, body: &pieces{p: split(doc, 1+r.IntN(5))}}, nil)
		n++
		out := got.u.body
		if !form && !json.Valid([]byte(out)) || form && (!strings.HasPrefix(out, "a=b&c=") || !strings.HasSuffix(out, "&d=x+y")) {
			t.Fatalf("%s became %s", doc, out)
		}
		if cl, ok := got.u.header["content-length"]; ok && cl != fmt.Sprint(len(out)) {
			t.Fatalf("content-length %s of %d bytes", cl, len(out))
		}
		for _, s := range []string{card[:12], "jane.doe@", "jane.doe%40", "IOSFODNN7"} {
			if strings.Contains(out, s) {
				t.Fatalf("%s is still in %s", s, out)
			}
		}
		if _, ok := got.u.header["content-md5"]; ok && out != doc {
			t.Fatal("content-md5 of another body")
		}
	}
	if n != documents {
		t.Errorf("%d documents: want %d", n, documents)
	}
}
