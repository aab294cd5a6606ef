package matcher_test

import (
	"math/rand/v2"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func str(kind matcher.StringKind, text string) *matcher.String {
	s := must(matcher.NewString(kind, text, false))
	return &s
}

func TestStrings(t *testing.T) {
	for _, c := range []struct {
		kind   matcher.StringKind
		text   string
		fold   bool
		yes    []string
		no     []string
		folded string
	}{
		{matcher.Exact, "Abc", false, []string{"Abc"}, []string{"abc", "Abcd", ""}, "Abc"},
		{matcher.Exact, "Abc", true, []string{"abc", "ABC"}, []string{"ab"}, "abc"},
		{matcher.Prefix, "/A", true, []string{"/a", "/Abc"}, []string{"a", ""}, "/a"},
		{matcher.Suffix, ".Com", true, []string{"x.com", ".COM"}, []string{"com"}, ".com"},
		{matcher.Contains, "Mid", true, []string{"aMIDb", "mid"}, []string{"mi"}, "mid"},
		{matcher.Prefix, "/a", false, []string{"/a", "/ab"}, []string{"/A"}, "/a"},
		{matcher.Suffix, "z", false, []string{"z", "az"}, []string{"za"}, "z"},
		{matcher.Contains, "m", false, []string{"m", "amb"}, []string{"M"}, "m"},
		{matcher.Regex, "a.c", false, []string{"abc", "a\nc"}, []string{"abcd", "xabc"}, "a.c"},
		{matcher.Regex, "a|b", false, []string{"a", "b"}, []string{"ab", "ax"}, "a|b"},
		{matcher.Regex, "(?i)abc.*", false, []string{"ABC", "abcd"}, []string{"xabc"}, "(?i)abc.*"},
		{matcher.Regex, "ab", true, []string{"ab"}, []string{"AB"}, "ab"},
		{matcher.Any, "", false, []string{"", "x"}, nil, ""},
	} {
		s, err := matcher.NewString(c.kind, c.text, c.fold)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range c.yes {
			if !s.Match(v) {
				t.Errorf("%v %q (fold %v) doesn't match %q", c.kind, c.text, c.fold, v)
			}
		}
		for _, v := range c.no {
			if s.Match(v) {
				t.Errorf("%v %q (fold %v) matches %q", c.kind, c.text, c.fold, v)
			}
		}
		if s.Text() != c.folded || s.Kind() != c.kind {
			t.Errorf("%q: text %q, kind %v", c.text, s.Text(), s.Kind())
		}
	}
	var zero matcher.String
	if !zero.Match("") || zero.Match("a") {
		t.Error("the zero String doesn't match exactly the empty string")
	}
}

func TestUnsafeRegexesAreRefused(t *testing.T) {
	for _, src := range []string{"a)(b", "(", "a{2000}", strings.Repeat("a", matcher.MaxRegexBytes+1), `a\8`, "(?<x", "a(?=b)", strings.Repeat("a{999}|b{999}|", 500)} {
		if _, err := matcher.CompileSafeRegex(src); err == nil {
			t.Errorf("%.20q compiles", src)
		}
	}
}

// FuzzRegexShortcuts holds the plain matches that stand for simple regular
// expressions to the automaton.
func FuzzRegexShortcuts(f *testing.F) {
	f.Add("abc.*", "abcd")
	f.Add(".*", "")
	f.Add(".*a\\.b", "xa.b")
	f.Add("(?i)a.*", "A")
	f.Add(".*x.*", "\xff")
	f.Add("[.]*$", "..")
	f.Fuzz(func(t *testing.T, src, s string) {
		m, err := matcher.NewString(matcher.Regex, src, false)
		if err != nil {
			return
		}
		if want := regexp.MustCompile(`^(?s:` + src + `)$`).MatchString(s); m.Match(s) != want {
			t.Errorf("%q on %q: %v, the automaton says %v", src, s, !want, want)
		}
	})
}

func header(kv ...string) *message.Header {
	h := &message.Header{}
	for i := 0; i < len(kv); i += 2 {
		h.Add(kv[i], kv[i+1])
	}
	return h
}

func TestHeaders(t *testing.T) {
	yes, no := true, false
	h := header(":authority", "a.example", "x-n", "-5", "x-two", "a", "x-two", "b", "x-empty", "")
	for _, c := range []struct {
		name string
		spec matcher.HeaderSpec
		want bool
	}{
		{"no condition is presence", matcher.HeaderSpec{Name: "X-N"}, true},
		{"missing", matcher.HeaderSpec{Name: "x-m"}, false},
		{"missing inverted", matcher.HeaderSpec{Name: "x-m", Invert: true}, true},
		{"present false on missing", matcher.HeaderSpec{Name: "x-m", Present: &no}, true},
		{"present false on present", matcher.HeaderSpec{Name: "x-n", Present: &no}, false},
		{"present false inverted on present", matcher.HeaderSpec{Name: "x-n", Present: &no, Invert: true}, true},
		{"present false inverted on missing", matcher.HeaderSpec{Name: "x-m", Present: &no, Invert: true}, false},
		{"present true", matcher.HeaderSpec{Name: "x-empty", Present: &yes}, true},
		{"exact", matcher.HeaderSpec{Name: ":authority", String: str(matcher.Exact, "a.example")}, true},
		{"repeated values are not joined", matcher.HeaderSpec{Name: "x-two", String: str(matcher.Exact, "a,b")}, false},
		{"one of repeated values", matcher.HeaderSpec{Name: "x-two", String: str(matcher.Exact, "b")}, true},
		{"none of repeated values, inverted", matcher.HeaderSpec{Name: "x-two", String: str(matcher.Exact, "c"), Invert: true}, true},
		{"one of repeated values, inverted", matcher.HeaderSpec{Name: "x-two", String: str(matcher.Exact, "b"), Invert: true}, false},
		{"inverted", matcher.HeaderSpec{Name: "x-n", String: str(matcher.Exact, "7"), Invert: true}, true},
		{"inverted on missing", matcher.HeaderSpec{Name: "x-m", String: str(matcher.Exact, "7"), Invert: true}, false},
		{"missing as empty, inverted", matcher.HeaderSpec{Name: "x-m", String: str(matcher.Exact, "7"), Invert: true, TreatMissingAsEmpty: true}, true},
		{"missing as empty, exact", matcher.HeaderSpec{Name: "x-m", String: str(matcher.Exact, ""), TreatMissingAsEmpty: true}, true},
		{"range", matcher.HeaderSpec{Name: "x-n", Range: &matcher.Range{Start: -5, End: 0}}, true},
		{"range end is exclusive", matcher.HeaderSpec{Name: "x-n", Range: &matcher.Range{Start: -10, End: -5}}, false},
		{"no number", matcher.HeaderSpec{Name: "x-two", Range: &matcher.Range{Start: -10, End: 10}}, false},
		{"regex", matcher.HeaderSpec{Name: "x-n", String: str(matcher.Regex, "-[0-9]")}, true},
	} {
		m, err := matcher.NewHeader(c.spec)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.Match(h); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	if _, err := matcher.NewHeader(matcher.HeaderSpec{}); err == nil {
		t.Error("a header without name is accepted")
	}
	if _, err := matcher.NewHeader(matcher.HeaderSpec{Name: "a", Present: &yes, Range: &matcher.Range{}}); err == nil {
		t.Error("two conditions are accepted")
	}
	ms := []matcher.Header{must(matcher.NewHeader(matcher.HeaderSpec{Name: "x-n"})), must(matcher.NewHeader(matcher.HeaderSpec{Name: "x-m"}))}
	if matcher.MatchHeaders(ms, h) || !matcher.MatchHeaders(ms[:1], h) || !matcher.MatchHeaders(nil, h) {
		t.Error("MatchHeaders is not a conjunction")
	}
}

func TestQueryParameters(t *testing.T) {
	for _, c := range []struct {
		query   string
		value   *matcher.String
		present bool
		want    bool
	}{
		{"a=1&k=v&k=w", str(matcher.Exact, "v"), true, true},
		{"k=w&k=v", str(matcher.Exact, "v"), true, false},
		{"k", nil, true, true},
		{"k", str(matcher.Exact, ""), true, true},
		{"kk=1", nil, true, false},
		{"", nil, true, false},
		{"", nil, false, true},
		{"k=1", nil, false, false},
		{"k=a%20b", str(matcher.Exact, "a b"), true, false},
		{"&&k=v=x&", str(matcher.Exact, "v=x"), true, true},
	} {
		m := must(matcher.NewQueryParameter("k", c.value, c.present))
		if got := m.Match(c.query); got != c.want {
			t.Errorf("%q: %v", c.query, got)
		}
	}
	if p, q := matcher.SplitPath("/a?b?c"); p != "/a" || q != "b?c" {
		t.Error(p, q)
	}
	if _, err := matcher.NewQueryParameter("", nil, true); err == nil {
		t.Error("a parameter without name is accepted")
	}
}

func TestMetadata(t *testing.T) {
	md := streaminfo.MetadataFrom(map[string]map[string]any{"ns": {
		"s": "text", "n": 2.5, "b": true, "null": nil, "list": []any{"x", 3.0}, "deep": map[string]any{"k": "v"},
	}})
	for _, c := range []struct {
		path   string
		value  matcher.Value
		invert bool
		want   bool
	}{
		{"s", matcher.StringValue(*str(matcher.Prefix, "te")), false, true},
		{"n", matcher.StringValue(*str(matcher.Any, "")), false, false},
		{"n", matcher.DoubleValue(2, 3), false, true},
		{"n", matcher.DoubleValue(2, 2.5), false, false},
		{"n", matcher.DoubleExactValue(2.5), false, true},
		{"b", matcher.BoolValue(true), false, true},
		{"b", matcher.BoolValue(false), false, false},
		{"null", matcher.NullValue(), false, true},
		{"missing", matcher.NullValue(), false, false},
		{"missing", matcher.PresentValue(true), false, false},
		{"missing", matcher.PresentValue(false), false, false},
		{"missing", matcher.PresentValue(true), true, true},
		{"null", matcher.PresentValue(true), false, true},
		{"list", matcher.ListValue(matcher.StringValue(*str(matcher.Exact, "x"))), false, true},
		{"list", matcher.ListValue(matcher.DoubleExactValue(4)), false, false},
		{"s", matcher.ListValue(matcher.StringValue(*str(matcher.Exact, "text"))), false, false},
		{"deep/k", matcher.StringValue(*str(matcher.Exact, "v")), false, true},
		{"s/k", matcher.StringValue(*str(matcher.Exact, "v")), false, false},
		{"list", matcher.OrValue(matcher.BoolValue(true), matcher.ListValue(matcher.DoubleExactValue(3))), false, true},
		{"s", matcher.OrValue(), false, false},
	} {
		m := must(matcher.NewMetadata("ns", strings.Split(c.path, "/"), c.value, c.invert))
		if got := m.Match(&md); got != c.want {
			t.Errorf("%s (invert %v): %v", c.path, c.invert, got)
		}
	}
	var zero matcher.Metadata
	if zero.Match(&md) {
		t.Error("the zero matcher matches")
	}
	m := must(matcher.NewMetadata("ns", []string{"s"}, matcher.StringValue(*str(matcher.Any, "")), false))
	if m.Match(nil) {
		t.Error("nil metadata matches")
	}
	for _, err := range []error{
		fail(matcher.NewMetadata("", []string{"a"}, matcher.NullValue(), false)),
		fail(matcher.NewMetadata("ns", nil, matcher.NullValue(), false)),
		fail(matcher.NewMetadata("ns", []string{"a"}, matcher.Value{}, false)),
	} {
		if err == nil {
			t.Error("an incomplete matcher is accepted")
		}
	}
}

func fail[T any](_ T, err error) error { return err }

func TestFilterState(t *testing.T) {
	var fs streaminfo.FilterState
	fs.Set("id", streaminfo.String("spiffe://td/ns/a/sa/b"), streaminfo.SharingNone)
	fs.Set("addr", streaminfo.String("10.1.2.3:80"), streaminfo.SharingNone)
	set := matcher.NewCIDRSet([]netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")})
	for _, c := range []struct {
		name string
		m    matcher.FilterState
		want bool
	}{
		{"prefix", must(matcher.NewFilterState("id", *str(matcher.Prefix, "spiffe://td/"))), true},
		{"other", must(matcher.NewFilterState("id", *str(matcher.Prefix, "spiffe://tx/"))), false},
		{"missing", must(matcher.NewFilterState("nope", *str(matcher.Any, ""))), false},
		{"address", must(matcher.NewFilterStateAddress("addr", set)), true},
		{"no address", must(matcher.NewFilterStateAddress("id", set)), false},
		{"zero", matcher.FilterState{}, false},
	} {
		if got := c.m.Match(&fs); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
		if c.m.Match(nil) {
			t.Errorf("%s matches nil", c.name)
		}
	}
	if fail(matcher.NewFilterState("", matcher.String{})) == nil || fail(matcher.NewFilterStateAddress("", set)) == nil {
		t.Error("a matcher without key is accepted")
	}
}

func randomPrefix(r *rand.Rand) netip.Prefix {
	if r.IntN(3) == 0 {
		var b [16]byte
		b[0], b[1], b[15] = 0xfd, byte(r.IntN(4)), byte(r.IntN(256))
		return netip.PrefixFrom(netip.AddrFrom16(b), r.IntN(129))
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(r.IntN(4)), byte(r.IntN(4)), byte(r.IntN(256))}), r.IntN(33))
}

func randomAddr(r *rand.Rand) netip.Addr {
	switch r.IntN(12) {
	case 0:
		return netip.MustParseAddr("255.255.255.255")
	case 1:
		return netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
	}
	return randomPrefix(r).Addr()
}

func TestCIDRSetAgreesWithScanning(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var ps []netip.Prefix
		for range r.IntN(30) {
			ps = append(ps, randomPrefix(r))
		}
		set := matcher.NewCIDRSet(ps)
		for range 50 {
			a := randomAddr(r)
			want := false
			for _, p := range ps {
				want = want || p.Masked().Contains(a)
			}
			if set.Contains(a) != want {
				t.Fatalf("%v in %v: want %v", a, ps, want)
			}
		}
	}
	set := matcher.NewCIDRSet([]netip.Prefix{{}, netip.MustParsePrefix("::ffff:10.0.0.0/104"), netip.MustParsePrefix("fe80::/10")})
	for a, want := range map[string]bool{"10.1.1.1": true, "::ffff:10.1.1.1": true, "11.0.0.1": false, "fe80::1%eth0": true} {
		if set.Contains(netip.MustParseAddr(a)) != want {
			t.Errorf("%s: want %v", a, want)
		}
	}
	var none *matcher.CIDRSet
	if none.Contains(netip.MustParseAddr("1.1.1.1")) || !none.Empty() || set.Empty() || set.Contains(netip.Addr{}) {
		t.Error("nil or invalid")
	}
}

func TestSubstitution(t *testing.T) {
	for _, c := range []struct{ pattern, rewrite, in, want string }{
		{"^/service/([^/]+)(/.*)$", `\2/instance/\1`, "/service/foo/v1/api", "/v1/api/instance/foo"},
		{"one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"},
		{"^(.*?)one(.*)$", `\1two\2`, "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/one/zzz"},
		{"(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb", "/aaa/yyy/bbb"},
		{"a(b)?", `[\1\0\\]`, "aab", `[a\][bab\]`},
		{"x*", "-", "abc", "-a-b-c-"},
		{"none", "x", "abc", "abc"},
	} {
		s, err := matcher.NewSubstitution(c.pattern, c.rewrite)
		if err != nil {
			t.Fatal(err)
		}
		got, changed := s.Replace(c.in)
		if got != c.want || changed != (c.in != c.want) {
			t.Errorf("%s -> %s on %s: %s (changed %v)", c.pattern, c.rewrite, c.in, got, changed)
		}
	}
	for _, bad := range [][2]string{{"(", ""}, {"a", `\1`}, {"a", `\`}, {"a", `\x`}, {strings.Repeat("a", 9000), ""}} {
		if fail(matcher.NewSubstitution(bad[0], bad[1])) == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestMatchingAllocatesNothing(t *testing.T) {
	h := header(":authority", "Host.Example", "x", "abc")
	fold := must(matcher.NewString(matcher.Contains, "EXAMPLE", true))
	hm := must(matcher.NewHeader(matcher.HeaderSpec{Name: ":authority", String: &fold}))
	q := must(matcher.NewQueryParameter("k", str(matcher.Exact, "v"), true))
	set := matcher.NewCIDRSet([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	addr := netip.MustParseAddr("10.1.1.1")
	tmpl := must(matcher.NewURITemplate("/a/{x}/**"))
	md := streaminfo.MetadataFrom(map[string]map[string]any{"a": {"b": "c"}})
	mm := must(matcher.NewMetadata("a", []string{"b"}, matcher.StringValue(*str(matcher.Exact, "c")), false))
	re := str(matcher.Regex, "[a-c]+")
	if n := testing.AllocsPerRun(100, func() {
		if !hm.Match(h) || !q.Match("a=b&k=v") || !set.Contains(addr) || !tmpl.Match("/a/b/c/d") || !mm.Match(&md) || !re.Match("abc") {
			t.Fatal("no match")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
