package transport

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var authorityGrammar = regexp.MustCompile(`^(?:\[[0-9a-fA-F:.]{2,}\]|[!$%&'()*+\-.;=_~0-9a-zA-Z]+)(?::([0-9]{1,5}))?$`)

func grammar(s string, needPort bool) bool {
	m := authorityGrammar.FindStringSubmatch(s)
	if m == nil || strings.HasSuffix(s, "\n") {
		return false
	}
	n, _ := strconv.Atoi(m[1])
	return n <= 65535 && (m[1] != "" || !needPort)
}

func TestAuthorities(t *testing.T) {
	for s, want := range map[string][2]bool{
		"a": {true, false}, "a:1": {true, true}, "a:00080": {true, true}, "a:000080": {}, "a:65536": {}, "a:": {}, ":80": {}, "": {}, "a:80:90": {}, "a:80@x": {},
		"u@a": {}, "a b": {}, "a,b": {}, "[::1]": {true, false}, "[::1]:1": {true, true}, "[::1": {}, "[]": {}, "[::1]x": {}, "[fe80::1%25eth0]:80": {}, "::1": {},
		"%2Ftmp%2Fx.sock": {true, false}, "outbound_.80_._.a.b": {true, false}, "a\x00": {}, "a/b": {}, "a?": {}, "a#": {}, `a\b`: {}, "ü": {},
	} {
		if got := [2]bool{ValidAuthority(s, false), ValidAuthority(s, true)}; got != want {
			t.Errorf("%q: got %v, want %v", s, got, want)
		}
	}
}

// FuzzAuthority: an authority is accepted if a regular expression of the grammar
// matches it, as string and as bytes.
func FuzzAuthority(f *testing.F) {
	for _, s := range []string{"a:1", "[::1]:80", "u@a", "a:65536", "a:00001", "%2F:0"} {
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, s string, needPort bool) {
		want := grammar(s, needPort)
		if got := ValidAuthority(s, needPort); got != want || ValidAuthority([]byte(s), needPort) != want {
			t.Errorf("%q: got %t, the grammar says %t", s, got, want)
		}
	})
}
