package matcher

import "testing"

func TestMatchersSayWhatTheyWant(t *testing.T) {
	str := func(k StringKind, text string, fold bool) String {
		s, err := NewString(k, text, fold)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	hdr := func(s HeaderSpec) Header {
		h, err := NewHeader(s)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	exact := str(Exact, "b", false)
	yes, no := true, false
	text, absent, rng := hdr(HeaderSpec{Name: "X-A", String: &exact, Invert: true}), hdr(HeaderSpec{Name: "x-a", Present: &no}), hdr(HeaderSpec{Name: "x-a", Range: &Range{1, 5}})
	present := hdr(HeaderSpec{Name: "Host", Present: &yes})
	query, err := NewQueryParameter("q", &exact, false)
	if err != nil {
		t.Fatal(err)
	}
	fs, err := NewFilterState("k", exact)
	if err != nil {
		t.Fatal(err)
	}
	md, err := NewMetadata("ns", []string{"a", "b"}, BoolValue(true), true)
	if err != nil {
		t.Fatal(err)
	}
	fold, re, anything := str(Prefix, "AB", true), str(Regex, "a.*", false), str(Any, "", false)
	for want, got := range map[string]string{
		`prefix "ab" (ignoring case)`:              fold.Describe(),
		`regex "a.*"`:                              re.Describe(),
		`anything`:                                 anything.Describe(),
		`header "x-a": not exactly "b"`:            text.Describe(),
		`header "x-a": absent`:                     absent.Describe(),
		`header ":authority": present`:             present.Describe(),
		`header "x-a": a number from 1 to below 5`: rng.Describe(),
		`query parameter "q": exactly "b"`:         query.Describe(),
		`filter state "k": exactly "b"`:            fs.Describe(),
		`not metadata ns: a.b`:                     md.Describe(),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
