package dlp

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func TestFindingsAreExplainedAndNeitherCountedNorLogged(t *testing.T) {
	const card = "4111 1111 1111 1111"
	for name, c := range map[string]struct {
		config  string
		req     request
		verdict filters.Verdict
		details string
		text    string
	}{
		"a masked body":              {one("MASK"), request{body: message.Bytes([]byte("card " + card)), header: [][2]string{{"content-type", "text/plain"}}}, filters.VerdictAllow, "", "1 × CREDIT_CARD_NUMBER in body: mask (rule r, likelihood "},
		"a blocked body":             {one("BLOCK"), request{body: message.Bytes([]byte("card " + card)), header: [][2]string{{"content-type", "text/plain"}}}, filters.VerdictDeny, "dlp_blocked{CREDIT_CARD_NUMBER}", "1 × CREDIT_CARD_NUMBER in body: block (rule r, likelihood "},
		"a blocked header":           {one("BLOCK"), request{header: [][2]string{{"x-mail", "a@example.com"}}}, filters.VerdictDeny, "dlp_blocked{EMAIL_ADDRESS}", "1 × EMAIL_ADDRESS in header x-mail: block (rule r, likelihood "},
		"a dry run":                  {strings.Replace(one("BLOCK"), "{", `{"dryRun":true,`, 1), request{header: [][2]string{{"x-mail", "a@example.com"}}}, filters.VerdictPass, "", "dry run: the request passes unchanged"},
		"nothing":                    {one("BLOCK"), request{body: message.Bytes([]byte("hello"))}, filters.VerdictAllow, "", "nothing is found in the request"},
		"a coding that nobody knows": {one("BLOCK"), request{body: message.Bytes([]byte("hello")), header: [][2]string{{"content-encoding", "x"}}}, filters.VerdictDeny, "dlp_uninspectable{content_encoding}", "the body can't be inspected: content_encoding"},
	} {
		t.Run(name, func(t *testing.T) {
			x := compile(t, c.config, "")
			s := c.req.stream()
			got := x.f.(interface {
				Explain(s *filters.Stream) filters.Explanation
			}).Explain(s)
			if got.Verdict != c.verdict || got.Details != c.details || (got.Status != 0) != (c.verdict == filters.VerdictDeny) ||
				!slices.ContainsFunc(got.Text, func(s string) bool { return strings.HasPrefix(s, c.text) }) {
				t.Errorf("%+v", got)
			}
			if strings.Contains(strings.Join(got.Text, " "), "4111") || strings.Contains(strings.Join(got.Text, " "), "a@example") {
				t.Errorf("shows the match: %q", got.Text)
			}
			if x.log.Len() > 0 {
				t.Errorf("logged %s", x.log)
			}
			var b strings.Builder
			if err := x.reg.WritePrometheusUsed(&b, func(string) bool { return true }); err != nil {
				t.Fatal(err)
			}
			if b.Len() > 0 {
				t.Errorf("counted %s", b.String())
			}
			if name == "a masked body" {
				if body, err := readAll(s.Body); err != nil || strings.Contains(body, card) {
					t.Errorf("later filters see %q, %v", body, err)
				}
			}
			live := c.req // with a body of its own
			if c.req.body != nil {
				live.body = message.Bytes([]byte(map[bool]string{true: "card " + card, false: "hello"}[strings.Contains(c.text, "CARD")]))
			}
			if r := x.run(t, live, nil); (r.status != 200) != (got.Verdict == filters.VerdictDeny) || r.status != 200 && (r.status != got.Status || r.s.Info.Details != got.Details) {
				t.Errorf("live: %d %s", r.status, r.s.Info.Details)
			}
		})
	}
}

// TestFindingsInAResponseAreExplained compares with what Do makes of the same
// response.
func TestFindingsInAResponseAreExplained(t *testing.T) {
	const card = "4111 1111 1111 1111"
	for name, c := range map[string]struct {
		config  string
		header  [][2]string
		body    string
		verdict filters.Verdict
		text    string
	}{
		"masked":                 {one("MASK"), nil, "card " + card, filters.VerdictAllow, "1 × CREDIT_CARD_NUMBER in body: mask (rule r, likelihood "},
		"masked, encoded":        {one("MASK"), header("content-encoding", "gzip"), encode(t, "gzip", "card "+card), filters.VerdictAllow, "1 × CREDIT_CARD_NUMBER in body: mask (rule r, likelihood "},
		"blocked":                {one("BLOCK"), nil, "card " + card, filters.VerdictDeny, "1 × CREDIT_CARD_NUMBER in body: block (rule r, likelihood "},
		"blocked late":           {one("BLOCK"), nil, strings.Repeat("clean text, ", 20000) + card, filters.VerdictDeny, "1 × CREDIT_CARD_NUMBER in body: block (rule r, likelihood "},
		"a header":               {one("BLOCK"), header("x-m", "a@example.com"), "", filters.VerdictDeny, "1 × EMAIL_ADDRESS in header x-m: block (rule r, likelihood "},
		"a dry run":              {strings.Replace(one("BLOCK"), "{", `{"dryRun":true,`, 1), nil, card, filters.VerdictPass, "dry run: the response passes unchanged"},
		"nothing":                {one("BLOCK"), nil, "hello", filters.VerdictAllow, "nothing is found in the response"},
		"uninspectable":          {one("BLOCK"), header("content-encoding", "x"), "hello", filters.VerdictDeny, "the body can't be inspected: content_encoding"},
		"no rules for responses": {one("BLOCK", `"direction":"REQUEST"`), nil, card, filters.VerdictPass, ""},
	} {
		t.Run(name, func(t *testing.T) {
			x := compile(t, c.config, "")
			s := request{method: "GET"}.stream()
			r := s.NewResponse()
			r.Header.Add(message.Status, "200")
			for _, h := range c.header {
				r.Header.Add(h[0], h[1])
			}
			r.Body = message.Bytes([]byte(c.body))
			got := x.f.(interface {
				ExplainResponse(s *filters.Stream, r *filters.Response) filters.Explanation
			}).ExplainResponse(s, r)
			if got.Verdict != c.verdict || (got.Status != 0) != (c.verdict == filters.VerdictDeny) ||
				c.text != "" && !slices.ContainsFunc(got.Text, func(s string) bool { return strings.HasPrefix(s, c.text) }) {
				t.Errorf("%+v", got)
			}
			if all := strings.Join(got.Text, " "); strings.Contains(all, "4111") || strings.Contains(all, "a@example") || x.log.Len() > 0 {
				t.Errorf("shows the match: %q, or logs it: %s", got.Text, x.log)
			}
			live := x.run(t, request{method: "GET"}, &upstream{response: c.header, answer: message.Bytes([]byte(c.body))})
			body, err := readAll(r.Body)
			if denied := live.bodyErr != nil || live.status != 200; denied != (got.Verdict == filters.VerdictDeny) || !denied && (err != nil || body != live.body || r.Status() != live.status) {
				t.Errorf("live: %d, %q, %v; explained: %d, %q, %v", live.status, live.body, live.bodyErr, r.Status(), body, err)
			}
		})
	}
}

func TestAReportNamesBothEnds(t *testing.T) {
	x := compile(t, one("REPORT"), "")
	r := request{header: [][2]string{{"x-mail", "a@example.com"}, {"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}}.stream()
	r.Info.Conn.Local = netip.MustParseAddrPort("10.96.0.1:80")
	r.Info.FilterState.Set("io.istio.peer_principal", streaminfo.String("spiffe://cluster.local/ns/a/sa/b"), streaminfo.SharingNone)
	r.Info.FilterState.Set("downstream_peer", &streaminfo.Peer{Namespace: "a", Workload: "w"}, streaminfo.SharingNone)
	r.Route = &namedRoute{name: "bank"}
	r.SetChain([]filters.HTTPFilter{x.f, &upstream{}})
	if _, err := filters.Start(r); err != nil {
		t.Fatal(err)
	}
	var ev map[string]any
	if err := json.Unmarshal(x.log.Bytes(), &ev); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]any{
		"source":      map[string]any{"address": "10.0.0.1:4", "direct_address": nil, "identity": "spiffe://cluster.local/ns/a/sa/b", "namespace": "a", "workload": "w"},
		"destination": map[string]any{"address": "10.96.0.1:80", "cluster": "bank"},
	} {
		got, _ := ev[k].(map[string]any)
		for f, v := range want.(map[string]any) {
			if got[f] != v {
				t.Errorf("%s.%s is %v, want %v", k, f, got[f], v)
			}
		}
	}
	if ev["trace_id"] != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("trace_id %v", ev["trace_id"])
	}
}
