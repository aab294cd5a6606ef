package hcm

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/sweep"
)

// The expectations were taken from Envoy 1.40 with normalize_path; "" is 400.
var canonicalCases = []struct{ in, want string }{
	{"/a/../b", "/b"},
	{"/a/./b", "/a/b"},
	{"/a//b", "/a//b"},
	{"/%2e%2e/x", "/x"},
	{"/a%2Fb", "/a%2Fb"},
	{"/a%41", "/aA"},
	{"/a%7e%2D", "/a~-"},
	{`/a\b`, "/a/b"},
	{`/a\..\b`, "/b"},
	{"/a/..", "/"},
	{"/a/.", "/a/"},
	{"/..", "/"},
	{"/a%00b", ""},
	{"/a\x00b", ""},
	{"/a%zz", "/a%zz"},
	{"/a%", "/a%"},
	{"/a<b>", "/a%3Cb%3E"},
	{`/a"b`, "/a%22b"},
	{"/a{b}", "/a%7Bb%7D"},
	{"/a|b^c`", "/a%7Cb%5Ec%60"},
	{"/a?b/../c", "/a?b/../c"},
	{"/a;b=c,d", "/a;b=c,d"},
	{"/a'b(c)*!$&+=:@", "/a'b(c)*!$&+=:@"},
	{"/%5c..%5cx", "/%5c..%5cx"},
	{"/...", "/..."},
	{"/a/%2e", "/a/"},
	{"/a/%2E%2e/b", "/b"},
	{"/a/.%2e", "/"},
	{"/a%c3%a9", "/a%c3%a9"},
	{"/a%20b", "/a%20b"},
	{"//a", "//a"},
	{"/a/b/../../../c", "/c"},
	{"/a%5Bb[]", "/a%5Bb[]"},
	{"/a%7Fb", "/a%7Fb"},
	{"/a%2e", "/a."},
	{"/a.", "/a."},
	{"/.a", "/.a"},
	{"/%%36%31dmin", "/%2561dmin"},
	{"/%6%31dmin", "/%2561dmin"},
	{"/%%361dmin", "/%2561dmin"},
	{"/a%2%66b", "/a%252fb"},
	{"/%%32%65%%32%65/x", "/%252e%252e/x"},
	{"/%%%36%31", "/%%2561"},
	{"/%%36%3", "/%6%3"},
	{"/%/36%31", "/%/361"},
	{"/%%36/../%31", "/1"},
	{"/%252e", "/%252e"},
	{"x", ""},
	{"", ""},
}

func TestPathsAreNormalizedAsByEnvoy(t *testing.T) {
	if len(canonicalCases) != 49 {
		t.Fatalf("%d cases, want 49", len(canonicalCases))
	}
	for _, c := range canonicalCases {
		got, ok := canonicalPath(c.in)
		if !ok {
			got = ""
		}
		if got != c.want {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
}

func TestSlashesAreMergedInThePathOnly(t *testing.T) {
	for in, want := range map[string]string{"//a///b?c//d": "/a/b?c//d", "/a": "/a", "/": "/", "//": "/"} {
		if got := mergeSlashes(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestEscapedSlashesAreFound(t *testing.T) {
	for in, want := range map[string]string{"/a%2Fb": "/a/b", "/a%2fb%5C?x%2F": `/a/b\?x%2F`, "/a%41": "/a%41", "/a%2": "/a%2"} {
		got, found := unescapeSlashes(in)
		if got != want || found != (in != want) {
			t.Errorf("%q: got %q, %t, want %q", in, got, found, want)
		}
	}
}

// slowPath is canonicalPath by segments, for paths whose escapes are all well
// formed.
func slowPath(path string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' {
			n, err := strconv.ParseUint(path[i+1:i+3], 16, 8)
			if err != nil {
				panic(err)
			}
			if n == 0 {
				return "", false
			}
			if strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~", rune(n)) && n < 128 {
				b.WriteByte(byte(n))
			} else {
				b.WriteString(path[i : i+3])
			}
			i += 2
			continue
		}
		switch {
		case c == 0:
			return "", false
		case c == '\\':
			b.WriteByte('/')
		case c <= ' ' || c >= 0x7f || strings.IndexByte("\"<>`{}|^#", c) >= 0:
			fmt.Fprintf(&b, "%%%02X", c)
		default:
			b.WriteByte(c)
		}
	}
	var out []string
	segs := strings.Split(b.String()[1:], "/")
	for i, s := range segs {
		last := i == len(segs)-1
		switch {
		case s == "." && last:
			out = append(out, "")
		case s == ".":
		case s == "..":
			out = out[:max(0, len(out)-1)]
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, s)
		}
	}
	return "/" + strings.Join(out, "/"), true
}

var malformedEscape = regexp.MustCompile(`%(?:$|[^0-9a-fA-F]|[0-9a-fA-F](?:$|[^0-9a-fA-F]))`)

// FuzzCanonicalPath: a slow reference by segments gives the same path; normal
// paths are not changed again, and have no dot segments nor bytes that may not
// stand in a path.
func FuzzCanonicalPath(f *testing.F) {
	for _, c := range canonicalCases {
		f.Add(c.in)
	}
	f.Fuzz(sweep.Around(f, func(t *testing.T, in string) {
		out, ok := canonicalPath(in)
		raw, query, hasQuery := strings.Cut(in, "?")
		if raw != "" && raw[0] == '/' && !malformedEscape.MatchString(raw) {
			want, wantOK := slowPath(raw)
			if hasQuery {
				want += "?" + query
			}
			if ok != wantOK || ok && out != want {
				t.Errorf("%q: got %q, %t, want %q, %t", in, out, ok, want, wantOK)
			}
		}
		if !ok {
			return
		}
		sweep.Accepted()
		again, ok := canonicalPath(out)
		path, _, _ := strings.Cut(out, "?")
		if !ok || again != out {
			t.Errorf("%q normalizes to %q, and that to %q", in, out, again)
		}
		for seg := range strings.SplitSeq(path, "/") {
			if seg == "." || seg == ".." {
				t.Errorf("%q keeps a dot segment: %q", in, out)
			}
		}
		if strings.ContainsAny(path, "\\ \"<>\x00") {
			t.Errorf("%q keeps an unsafe character: %q", in, out)
		}
		merged := mergeSlashes(out)
		if p, _, _ := strings.Cut(merged, "?"); strings.Contains(p, "//") || mergeSlashes(merged) != merged {
			t.Errorf("%q is merged to %q", out, merged)
		}
	}))
}
