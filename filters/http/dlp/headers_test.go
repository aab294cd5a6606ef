package dlp

import (
	"strings"
	"testing"
)

func TestCredentialsInAuthorizationAreExpected(t *testing.T) {
	js := `{"rules":[{"name":"r","infoTypes":["AWS_CREDENTIALS"],"action":"BLOCK"}]}`
	r := request{header: [][2]string{{"authorization", "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/x"}}}
	if got := compile(t, js, "").run(t, r, nil); got.status != 200 {
		t.Errorf("status %d", got.status)
	}
	js = strings.Replace(js, `{"rules"`, `{"inspectAllHeaders":true,"rules"`, 1)
	if got := compile(t, js, "").run(t, r, nil); got.status != 403 {
		t.Errorf("status %d with inspect_all_headers", got.status)
	}
}

func TestRangesAndEncodingsAreNotAskedFor(t *testing.T) {
	r := request{method: "GET", header: [][2]string{{"range", "bytes=0-9"}, {"if-range", "x"}, {"accept-encoding", "gzip, br"}}}
	got := compile(t, one("MASK"), "").run(t, r, nil)
	if _, ok := got.u.header["range"]; ok || got.u.header["accept-encoding"] != "identity" {
		t.Errorf("upstream got %v", got.u.header)
	}
	got = compile(t, one("MASK", `"direction":"REQUEST"`), "").run(t, r, nil)
	if got.u.header["range"] == "" || got.u.header["accept-encoding"] != "gzip, br" {
		t.Errorf("upstream got %v without a rule for responses", got.u.header)
	}
}

func TestFindingsAreCounted(t *testing.T) {
	x := compile(t, one("MASK"), "")
	x.run(t, request{path: "/?c=" + card, body: &pieces{p: []string{card + ", " + card}}}, &upstream{response: [][2]string{{"x-m", "jane@example.com"}}})
	var b strings.Builder
	if err := x.reg.WritePrometheus(&b); err != nil {
		t.Fatal(err)
	}
	for want, n := range map[string]string{
		`type="CREDIT_CARD_NUMBER"` + `|place="request_query"` + `|action="mask"`: " 1",
		`type="CREDIT_CARD_NUMBER"` + `|place="request_body"` + `|action="mask"`:  " 2",
		`type="EMAIL_ADDRESS"` + `|place="response_header"` + `|action="mask"`:    " 1",
	} {
		found := false
		for line := range strings.SplitSeq(b.String(), "\n") {
			ok := strings.HasPrefix(line, "fairlead_dlp_findings_total{") && strings.HasSuffix(line, n)
			for part := range strings.SplitSeq(want, "|") {
				ok = ok && strings.Contains(line, part)
			}
			found = found || ok
		}
		if !found {
			t.Errorf("no series with %s and value%s in\n%s", want, n, b.String())
		}
	}
}
