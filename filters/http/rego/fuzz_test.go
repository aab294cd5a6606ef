package rego

import (
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// FuzzDecode: both forms of a configuration and of an override give the same,
// and what is no message is refused.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(conf(v1allow)), true)
	f.Add([]byte(`{"policy":{"sources":[{"filename":"x"}]},"query":"a/b"}`), true)
	f.Add([]byte("\x0a\x0f\x0a\x0d\x0a\x0bpackage a.b"), false)
	f.Fuzz(func(t *testing.T, b []byte, js bool) {
		_, _ = decodetest.Forms(t, filters.Any{TypeURL: TypeURL, Value: b, JSON: js}, Factory{}.Decode)
		_, _ = decodetest.Forms(t, filters.Any{TypeURL: PerRouteTypeURL, Value: b, JSON: js}, Factory{}.DecodeOverride)
	})
}

// FuzzDo checks that no request makes the filter fail otherwise than by a
// denial, and that a body which passed arrives whole.
func FuzzDo(f *testing.F) {
	f.Add("POST", "/a?b=c", "application/json", `{"a":1}`, 3)
	f.Add("POST", "/%zz", "application/x-www-form-urlencoded", "a=%zz;b", 1)
	f.Add("PUT", "//", "multipart/form-data; boundary=B", "--B\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--B--", 5)
	fl := compileJSON(f, env(), conf("package envoy.authz\nallow := object.union({\"allowed\": true}, {\"dynamic_metadata\": {\"in\": input}})", `"timeout":"10s"`), "")
	f.Fuzz(func(t *testing.T, method, path, ct, body string, cut int) {
		cut = min(max(cut, 0), len(body))
		s := request{method: method, path: path, header: [][2]string{{"content-type", ct}}, body: []string{body[:cut], body[cut:]}}.stream()
		u, r := run(t, fl, s)
		if u.called == r.Local {
			t.Fatalf("called %v, local %v", u.called, r.Local)
		}
		if u.called && u.body != body {
			t.Fatalf("upstream read %q of %q", u.body, body)
		}
		if st := r.Header.Get(message.Status); r.Local && st != "403" && st != "400" {
			t.Fatalf("status %s", st)
		}
	})
}
