package h2

import "testing"

func TestAnAuthorityIsTheSameOverAllVersions(t *testing.T) {
	for v, want := range map[string]string{"": "", "a": "", "a:80": "", "[::1]:80": "", "a:80:90": "invalid authority", "[::1": "invalid authority", "a:": "invalid authority", "a:99999": "invalid authority", "a,b": "invalid authority", "u@a": "invalid authority"} {
		for _, k := range []fieldKind{kindAuthority, kindHost} {
			if got := badValue(k, v); got != want {
				t.Errorf("%q: got %q, want %q", v, got, want)
			}
		}
	}
}
