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
