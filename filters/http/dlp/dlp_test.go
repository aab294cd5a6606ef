package dlp

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	card   = "4111111111111111"
	masked = "****************"
)

func TestPlaces(t *testing.T) {
	trailers := func() *message.Header {
		h := &message.Header{}
		h.Add("x-t", card)
		return h
	}
	for _, tt := range []struct {
		name string
		req  func() request
	}{
		{"path", func() request { return request{path: "/c/" + card + "/x"} }},
		{"query", func() request { return request{path: "/?c=" + card} }},
		{"percent-encoded query", func() request { return request{path: "/?c=%34111+1111+1111+%31%31%311"} }},
		{"doubly encoded query", func() request { return request{path: "/?c=%2534111111111111111"} }},
		{"thrice encoded path", func() request { return request{path: "/%25253411111111111111%2531"} }},
		{"header", func() request { return request{header: [][2]string{{"x-card", card}}} }},
		{"cookie", func() request { return request{header: [][2]string{{"cookie", "a=b; c=" + card}}} }},
		{"body", func() request { return request{body: &pieces{p: []string{`{"c":"`, card, `"}`}}} }},
		{"body, byte by byte", func() request { return request{body: &pieces{p: split(`{"c":"`+card+`"}`, 0)}} }},
		{"JSON escapes", func() request { return request{body: &pieces{p: []string{`{"c":"\u00341111111111111\u0031\u0031"}`}}} }},
		{"form", func() request {
			return request{header: [][2]string{{"content-type", "application/x-www-form-urlencoded"}}, body: &pieces{p: []string{"c=4111+1111+%31111+1111"}}}
		}},
		{"trailers", func() request { return request{body: &pieces{p: []string{"x"}, trailers: trailers()}} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := compile(t, one("BLOCK"), "").run(t, tt.req(), nil)
			if got.status != 403 || got.s.Info.Details != "dlp_blocked{CREDIT_CARD_NUMBER}" {
				t.Errorf("block: status %d, details %q", got.status, got.s.Info.Details)
			}
			if strings.Contains(got.u.body+fmt.Sprint(got.u.header), card) {
				t.Errorf("block: upstream got %v %q", got.u.header, got.u.body)
			}
			x := compile(t, one("MASK"), "")
			r := tt.req()
			got = x.run(t, r, nil)
			seen := fmt.Sprint(got.u.header, got.u.body, r.body)
			if got.status != 200 || strings.Contains(seen, "1111111") {
				t.Errorf("mask: status %d, upstream got %s", got.status, seen)
			}
			if !strings.Contains(x.log.String(), `"CREDIT_CARD_NUMBER"`) || strings.Contains(x.log.String(), "1111111") {
				t.Errorf("log: %s", x.log)
			}
			got = compile(t, one("REPORT"), "").run(t, tt.req(), nil)
			if got.status != 200 || strings.Contains(fmt.Sprint(got.u.header, got.u.body), "*") {
				t.Errorf("report: status %d, upstream got %v %q", got.status, got.u.header, got.u.body)
			}
		})
	}
}

func TestResponses(t *testing.T) {
	body := func() message.Body { return &pieces{p: split(`{"c":"`+card+`","d":1}`, 5)} }
	for _, tt := range []struct {
		name, conf string
		u          upstream
		status     int
		body       string
		header     map[string]string // "" is absent
	}{
		{"block answers 403", one("BLOCK"), upstream{answer: body()}, 403, "", nil},
		{"block chooses its status", one("BLOCK", `"blockStatus":451`), upstream{answer: body()}, 451, "", nil},
		{"a blocked header", one("BLOCK"), upstream{response: [][2]string{{"x-c", card}}}, 403, "", map[string]string{"x-c": ""}},
		{
			"mask keeps the length and drops validators", one("MASK", `"mask":{"keepLast":4}`),
			upstream{answer: body(), response: [][2]string{{"content-length", "30"}, {"etag", "\"x\""}, {"content-digest", "sha-256=:x:"}}},
			200, `{"c":"************1111","d":1}`,
			map[string]string{"content-length": "30", "etag": "", "content-digest": ""},
		},
		{
			"replace drops the length", one("REPLACE"),
			upstream{answer: body(), response: [][2]string{{"content-length", "30"}}},
			200, `{"c":"[CREDIT_CARD_NUMBER]","d":1}`,
			map[string]string{"content-length": ""},
		},
		{
			"report changes nothing", one("REPORT"),
			upstream{answer: body(), response: [][2]string{{"content-length", "30"}, {"etag", "\"x\""}}},
			200, `{"c":"` + card + `","d":1}`,
			map[string]string{"content-length": "30", "etag": "\"x\""},
		},
		{"a header is added", one("REPORT", `"addHeader":{"name":"X-DLP","value":"{TYPE}"}`), upstream{answer: body()}, 200, `{"c":"` + card + `","d":1}`, map[string]string{"x-dlp": "CREDIT_CARD_NUMBER"}},
		{"a threshold is not reached", one("BLOCK", `"minCount":2`), upstream{answer: body()}, 200, `{"c":"` + card + `","d":1}`, nil},
		{"likelihood is not reached", one("BLOCK", `"minLikelihood":"VERY_LIKELY"`), upstream{answer: &pieces{p: []string{card}}}, 200, card, nil},
		{"an allowed value", one("BLOCK", `"allowValues":["4111-1111-1111-1111"]`), upstream{answer: body()}, 200, `{"c":"` + card + `","d":1}`, nil},
		{"another direction", one("BLOCK", `"direction":"REQUEST"`), upstream{answer: body()}, 200, `{"c":"` + card + `","d":1}`, nil},
		{"another place", one("BLOCK", `"places":["HEADERS"]`), upstream{answer: body()}, 200, `{"c":"` + card + `","d":1}`, nil},
		{"a body that is clean keeps its validators", one("MASK", `"places":["HEADERS"]`), upstream{answer: &pieces{p: []string{"x"}}, response: [][2]string{{"etag", "\"x\""}}}, 200, "x", map[string]string{"etag": "\"x\""}},
		{"304 has no body", one("BLOCK"), upstream{status: 304, answer: message.NoBody, response: [][2]string{{"etag", "\"x\""}}}, 304, "", map[string]string{"etag": "\"x\""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := tt.u
			answer := u.answer
			got := compile(t, tt.conf, "").run(t, request{method: "GET"}, &u)
			if got.status != tt.status || got.body != tt.body {
				t.Errorf("status %d, body %q: want %d, %q", got.status, got.body, tt.status, tt.body)
			}
			for k, v := range tt.header {
				if got.header[k] != v {
					t.Errorf("%s: %q, want %q", k, got.header[k], v)
				}
			}
			if p, ok := answer.(*pieces); ok && p.closed != 1 {
				t.Errorf("upstream's body closed %d times", p.closed)
			}
		})
	}
}

func TestALateBlockResetsTheStream(t *testing.T) {
	long := strings.Repeat("clean text, ", 10000)
	t.Run("response", func(t *testing.T) {
		got := compile(t, one("BLOCK"), "").run(t, request{method: "GET"}, &upstream{answer: &pieces{p: split(long+card+" tail", 50)}})
		if got.status != 200 || got.bodyErr == nil || strings.Contains(got.body, card) || strings.Contains(got.body, "tail") {
			t.Errorf("status %d, error %v, %d bytes", got.status, got.bodyErr, len(got.body))
		}
	})
	t.Run("request that is being sent", func(t *testing.T) {
		u := &upstream{}
		got := compile(t, one("BLOCK"), "").run(t, request{body: &pieces{p: split(long+card+" tail", 50)}}, u)
		if got.status != 403 || got.s.Info.Details != "dlp_blocked{CREDIT_CARD_NUMBER}" || strings.Contains(u.body, card) || u.bodyErr == nil {
			t.Errorf("status %d, details %q, upstream error %v", got.status, got.s.Info.Details, u.bodyErr)
		}
	})
	t.Run("request whose response went first", func(t *testing.T) {
		u := &upstream{early: true}
		x := compile(t, one("BLOCK"), "")
		s := request{body: &pieces{p: split(long+card, 50)}}.stream()
		s.SetChain([]filters.HTTPFilter{x.f, u})
		if r, err := filters.Start(s); err != nil || r.Status() != 200 {
			t.Fatal(r, err)
		}
		if _, err := readAll(u.request); err == nil {
			t.Error("the body was read to its end")
		}
		if s.Cause() == nil {
			t.Error("the stream was not interrupted")
		}
	})
	t.Run("a short request never reaches upstream", func(t *testing.T) {
		u := &upstream{}
		if got := compile(t, one("BLOCK"), "").run(t, request{body: &pieces{p: []string{"x " + card}}}, u); got.status != 403 || u.called {
			t.Errorf("status %d, upstream called %v", got.status, u.called)
		}
	})
}

func TestLongBodiesStream(t *testing.T) {
	for _, action := range []string{"MASK", "REPLACE", "BLOCK"} {
		x := compile(t, one(action), "")
		src := &pieces{}
		for range 500 {
			src.p = append(src.p, strings.Repeat("line of clean text\n", 200))
		}
		u := &upstream{early: true}
		s := request{body: src}.stream()
		s.SetChain([]filters.HTTPFilter{x.f, u})
		if _, err := filters.Start(s); err != nil {
			t.Fatal(err)
		}
		pulled := 500 - len(src.p)
		if limit := 64<<10/3800 + 3; pulled > limit {
			t.Errorf("%s: %d chunks were pulled before the request went on: want at most %d", action, pulled, limit)
		}
		n := 0
		for {
			p, last, err := u.request.Next()
			if err != nil {
				t.Fatal(err)
			}
			if n += len(p); last {
				break
			}
			if ahead := (500-len(src.p))*3800 - n; ahead > 80<<10 {
				t.Fatalf("%s: %d bytes are held", action, ahead)
			}
		}
		if n != 500*3800 {
			t.Errorf("%s: %d bytes arrived", action, n)
		}
	}
}

func TestEventStreamsAreNotDelayed(t *testing.T) {
	x := compile(t, one("BLOCK"), "")
	src := &pieces{p: []string{"data: 1\n\n", "data: 2\n\n", "data: " + card + "\n\n"}}
	s := request{method: "GET"}.stream()
	s.SetChain([]filters.HTTPFilter{x.f, &upstream{answer: src, response: [][2]string{{"content-type", "text/event-stream"}}}})
	r, err := filters.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	if len(src.p) != 3 {
		t.Errorf("%d events were pulled before the head went on", 3-len(src.p))
	}
	for i := range 2 {
		if p, _, err := r.Body.Next(); err != nil || len(src.p) != 2-i || string(p) != fmt.Sprintf("data: %d\n\n", i+1) {
			t.Errorf("event %d: %q %v", i, p, err)
		}
	}
	if _, _, err := r.Body.Next(); err == nil {
		t.Error("the card passed")
	}
	r.Body.Close()
}

func TestDryRunChangesNothing(t *testing.T) {
	js := strings.Replace(one("BLOCK"), `{"rules"`, `{"dryRun":true,"rules"`, 1)
	x := compile(t, js, "")
	got := x.run(t, request{path: "/?c=" + card, header: [][2]string{{"range", "bytes=0-1"}}, body: &pieces{p: split(card, 0)}}, &upstream{answer: &pieces{p: split(card, 0)}})
	if got.status != 200 || got.u.body != card || got.body != card || got.u.header["range"] == "" || got.u.header[":path"] != "/?c="+card {
		t.Errorf("status %d, upstream %q, client %q", got.status, got.u.body, got.body)
	}
	if strings.Count(x.log.String(), "dry_run") != 2 {
		t.Errorf("log: %s", x.log)
	}
}

func TestPerRoute(t *testing.T) {
	if x := compile(t, one("BLOCK"), `{"disabled":true}`); x.f != nil {
		t.Error("a disabled filter was made")
	}
	if x := compile(t, one("BLOCK"), `{"disabledRules":["r"]}`); x.f != nil {
		t.Error("a filter without rules was made")
	}
	x := compile(t, one("BLOCK"), fmt.Sprintf(`{"config":%s}`, one("MASK")))
	if got := x.run(t, request{path: "/" + card}, nil); got.status != 200 || got.u.header[":path"] != "/"+masked {
		t.Errorf("status %d, path %q", got.status, got.u.header[":path"])
	}
}

func TestReportsHoldNoSecret(t *testing.T) {
	x := compile(t, one("MASK"), "")
	x.run(t, request{
		path: "/p?c=" + card, header: [][2]string{{"x-h", "jane@example.com"}},
		body: &pieces{p: []string{card + " and " + card + " AKIAIOSFODNN7EXAMPLE"}},
	}, nil)
	log := x.log.String()
	for _, secret := range []string{card, "jane", "AKIA"} {
		if strings.Contains(log, secret) {
			t.Errorf("%q is in the log: %s", secret, log)
		}
	}
	var e struct {
		Policy    string `json:"policy"`
		Outcome   string `json:"outcome"`
		RequestID string `json:"request_id"`
		Findings  []struct {
			Type, Place, Field, Action, Rule, Likelihood string
			Count, Length                                int
			Hashes                                       []string
		}
	}
	if err := json.Unmarshal([]byte(log), &e); err != nil {
		t.Fatalf("want one line: %v: %s", err, log)
	}
	if e.Policy != "dlp" || e.Outcome != "changed" || e.RequestID != "req-7" || len(e.Findings) != 4 {
		t.Fatalf("%+v", e)
	}
	byPlace := map[string]string{}
	for _, f := range e.Findings {
		byPlace[f.Place+" "+f.Type] = f.Hashes[0]
		if f.Place == "body" && f.Type == "CREDIT_CARD_NUMBER" && (f.Count != 2 || f.Length != 16 || f.Hashes[0] != f.Hashes[1]) {
			t.Errorf("%+v", f)
		}
		if f.Place == "header" && f.Field != "x-h" {
			t.Errorf("%+v", f)
		}
	}
	if byPlace["query CREDIT_CARD_NUMBER"] != byPlace["body CREDIT_CARD_NUMBER"] || byPlace["header EMAIL_ADDRESS"] == "" {
		t.Errorf("hashes %v: equal matches must have equal hashes", byPlace)
	}
}

// frees counts how often it is given back.
type frees int

func (*frees) next() ([]byte, bool, error) { return nil, true, nil }
func (*frees) memory() int                 { return 0 }
func (f *frees) free()                     { *f++ }

// badEnd is a body that can't be closed.
type badEnd struct{ message.Body }

func (badEnd) Close() { panic("closed") }

// Who closed a body and met a panic of another filter's closes it again.
func TestScannersAreGivenBackOnce(t *testing.T) {
	var f frees
	b := newBody(badEnd{message.NoBody}, &f, &inspection{reported: true}, nil)
	for range 2 {
		func() {
			defer func() { _ = recover() }()
			b.Close()
		}()
	}
	if f != 1 {
		t.Errorf("given back %d times", f)
	}
}
