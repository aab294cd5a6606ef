package hcm

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// The modes of Istio's MeshConfig.pathNormalization, as istiod writes them.
var istioModes = []xdsresource.HTTPConnectionManager{
	{},
	{NormalizePath: true},
	{NormalizePath: true, MergeSlashes: true},
	{NormalizePath: true, MergeSlashes: true, EscapedSlashes: xdsresource.UnescapeAndForward},
}

// pathOf is what an origin gets of a path, "400" if that is the answer.
func pathOf(t *testing.T, spec xdsresource.HTTPConnectionManager, path string) string {
	t.Helper()
	spec.Codec = xdsresource.CodecHTTP1
	resp, body := ask(t, &spec, nil, []string{":path"}, "GET "+path+" HTTP/1.1\r\nhost: a\r\n\r\n")
	if resp.StatusCode != http.StatusOK {
		return fmt.Sprint(resp.StatusCode)
	}
	body, _, _ = strings.Cut(body, "\nremote ")
	return strings.TrimPrefix(body, ":path: ")
}

// The table of Istio's own test of path normalization: NONE, BASE,
// MERGE_SLASHES, DECODE_AND_MERGE_SLASHES.
func TestPathsAreNormalizedAsInIstio(t *testing.T) {
	for path, want := range map[string][4]string{
		"/app":             {"/app", "/app", "/app", "/app"},
		"/app/../admin":    {"/app/../admin", "/admin", "/admin", "/admin"},
		"/app//":           {"/app//", "/app//", "/app/", "/app/"},
		"/app/%2f":         {"/app/%2f", "/app/%2f", "/app/%2f", "/app/"},
		"/app%2f/":         {"/app%2f/", "/app%2f/", "/app%2f/", "/app/"},
		"/xyz%30..//abc":   {"/xyz%30..//abc", "/xyz0..//abc", "/xyz0../abc", "/xyz0../abc"},
		"/app/%2E./admin":  {"/app/%2E./admin", "/admin", "/admin", "/admin"},
		`/app\admin`:       {`/app\admin`, "/app/admin", "/app/admin", "/app/admin"},
		`/app/..\admin`:    {`/app/..\admin`, "/admin", "/admin", "/admin"},
		"/app%5cadmin":     {"/app%5cadmin", "/app%5cadmin", "/app%5cadmin", "/app/admin"},
		"/app/..%2fadmin":  {"/app/..%2fadmin", "/app/..%2fadmin", "/app/..%2fadmin", "/admin"},
		"/app%00":          {"/app%00", "400", "400", "400"},
		"/xyz/.%00../abc":  {"/xyz/.%00../abc", "400", "400", "400"},
		"/a/%2F%2f/c":      {"/a/%2F%2f/c", "/a/%2F%2f/c", "/a/%2F%2f/c", "/a/c"},
		"/%c0%af":          {"/%c0%af", "/%c0%af", "/%c0%af", "/%c0%af"},
		"/app#foo":         {"400", "400", "400", "400"}, // Istio's client leaves the fragment out
		"/app?x=//../%2f":  {"/app?x=//../%2f", "/app?x=//../%2f", "/app?x=//../%2f", "/app?x=//../%2f"},
		"/app/.../admin":   {"/app/.../admin", "/app/.../admin", "/app/.../admin", "/app/.../admin"},
		"/app/..;/admin":   {"/app/..;/admin", "/app/..;/admin", "/app/..;/admin", "/app/..;/admin"},
		"/app%252f../":     {"/app%252f../", "/app%252f../", "/app%252f../", "/app%252f../"},
		"/app/%252e%252e/": {"/app/%252e%252e/", "/app/%252e%252e/", "/app/%252e%252e/", "/app/%252e%252e/"},
	} {
		for i, spec := range istioModes {
			if got := pathOf(t, spec, path); got != want[i] {
				t.Errorf("mode %d: %s became %s, want %s", i, path, got, want[i])
			}
		}
	}
}

// In the strictest mode one byte is decoded once: unreserved characters and
// slashes; NUL is refused.
func TestEveryEscapedByteInIstiosStrictestMode(t *testing.T) {
	spec := istioModes[3]
	n := 0
	for b := range 256 {
		for _, escaped := range []string{fmt.Sprintf("%%%02x", b), fmt.Sprintf("%%%02X", b)} {
			n++
			want := "/admin" + escaped
			c := byte(b)
			switch {
			case c == 0:
				want = "400"
			case c == '/', c == '\\':
				want = "/admin/"
			case c == '-', c == '.', c == '_', c == '~', '0' <= c && c <= '9', 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z':
				want = "/admin" + string(rune(c))
			}
			if got := pathOf(t, spec, "/admin"+escaped); got != want {
				t.Errorf("/admin%s became %s, want %s", escaped, got, want)
			}
		}
	}
	for _, same := range []string{
		"/%c0%ae%c0%ae/admin", "/%252e%252e/admin", "/..;/admin", "/.../admin", "/ADMIN", "/%c0/admin", "/%e0%80%af/admin", "/%252fadmin", "/%252Fadmin",
		"/admin;x", "/;admin", "/%uff0e%uff0e/admin", "/%ef%bc%8fadmin", "/%ef%bc%8e%ef%bc%8e/admin", "/admin%20", "/%20admin", "/admin%09", "/admin%0a", "/admin%0d%0a", "/..%c0%af", "/%c1%9cadmin", "/admin%3b", "/admin%3f", "/admin%23",
	} {
		n++
		if got := pathOf(t, spec, same); got != same {
			t.Errorf("%s became %s", same, got)
		}
	}
	if n != 536 {
		t.Errorf("%d paths, want 536", n)
	}
}
