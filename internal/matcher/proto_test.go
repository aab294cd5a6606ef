package matcher

import (
	"net/netip"
	"strings"
	"testing"

	xdsmatcherv3pb "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3pb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	metadatav3pb "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func fromJSON[M proto.Message](t *testing.T, m M, text string) M {
	t.Helper()
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		t.Fatal(err)
	}
	return m
}

// checkErr reports whether the conversion is done, that is failed as wanted.
func checkErr(t *testing.T, err error, want string) bool {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Fatal(err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Fatalf("error %v, want one with %q", err, want)
	}
	return want != ""
}

func TestStringFromProto(t *testing.T) {
	for _, tc := range []struct{ name, json, match, noMatch, err string }{
		{"exact ignores case if told so", `{"exact":"Ab","ignore_case":true}`, "aB", "abc", ""},
		{"prefix", `{"prefix":"spiffe://td/"}`, "spiffe://td/ns", "spiffe://t", ""},
		{"suffix", `{"suffix":"/x"}`, "a/x", "a/y", ""},
		{"contains", `{"contains":"b"}`, "abc", "ac", ""},
		{"regex must match the whole string", `{"safe_regex":{"regex":"a+"}}`, "aaa", "aab", ""},
		{"no pattern is an error", `{}`, "", "", "match_pattern: none"},
		{"an empty regex is an error", `{"safe_regex":{}}`, "", "", "safe_regex.regex: is empty"},
		{"a broken regex is an error", `{"safe_regex":{"regex":"a("}}`, "", "", "safe_regex: "},
		{"custom matchers are an error", `{"custom":{"name":"x"}}`, "", "", "custom: this way to match is not supported"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := StringFromProto(fromJSON(t, &matcherv3pb.StringMatcher{}, tc.json))
			if checkErr(t, err, tc.err) {
				return
			}
			if !m.Match(tc.match) || m.Match(tc.noMatch) {
				t.Errorf("Match(%q) = %v, Match(%q) = %v", tc.match, m.Match(tc.match), tc.noMatch, m.Match(tc.noMatch))
			}
		})
	}
	if _, err := StringFromProto(nil); err == nil {
		t.Error("nil message: want an error")
	}
}

func TestHeaderFromProto(t *testing.T) {
	type probe struct {
		value   string
		present bool
		want    bool
	}
	for _, tc := range []struct {
		name, json string
		probes     []probe
		err        string
	}{
		{"no specifier means present", `{"name":"X-A"}`, []probe{{"", true, true}, {"", false, false}}, ""},
		{"present_match false", `{"name":"x-a","present_match":false}`, []probe{{"", true, false}, {"", false, true}}, ""},
		{"string_match", `{"name":"x-a","string_match":{"exact":"b"}}`, []probe{{"b", true, true}, {"c", true, false}}, ""},
		{"exact_match", `{"name":"x-a","exact_match":"b"}`, []probe{{"b", true, true}, {"c", true, false}}, ""},
		{"prefix_match", `{"name":"x-a","prefix_match":"b"}`, []probe{{"bc", true, true}}, ""},
		{"suffix_match", `{"name":"x-a","suffix_match":"b"}`, []probe{{"ab", true, true}}, ""},
		{"contains_match", `{"name":"x-a","contains_match":"b"}`, []probe{{"abc", true, true}}, ""},
		{"safe_regex_match", `{"name":"x-a","safe_regex_match":{"regex":"b."}}`, []probe{{"bc", true, true}, {"b", true, false}}, ""},
		{"range_match is half open", `{"name":"x-a","range_match":{"start":"1","end":"3"}}`, []probe{{"1", true, true}, {"3", true, false}}, ""},
		{"invert_match", `{"name":"x-a","string_match":{"exact":"b"},"invert_match":true}`, []probe{{"b", true, false}, {"c", true, true}, {"", false, false}}, ""},
		{"treat_missing_header_as_empty", `{"name":"x-a","string_match":{"exact":""},"treat_missing_header_as_empty":true}`, []probe{{"", false, true}}, ""},
		{"no name", `{"string_match":{"exact":"b"}}`, nil, "name"},
		{"the error has the field's path", `{"name":"x-a","string_match":{"safe_regex":{"regex":""}}}`, nil, "string_match.safe_regex.regex: is empty"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h, err := HeaderFromProto(fromJSON(t, &routev3pb.HeaderMatcher{}, tc.json))
			if checkErr(t, err, tc.err) {
				return
			}
			if h.Name != "x-a" {
				t.Errorf("Name = %q", h.Name)
			}
			for _, p := range tc.probes {
				if got := h.MatchValue(p.value, p.present); got != p.want {
					t.Errorf("MatchValue(%q, %v) = %v", p.value, p.present, got)
				}
			}
		})
	}
	_, err := HeadersFromProto([]*routev3pb.HeaderMatcher{{Name: "a"}, {}})
	if err == nil || !strings.HasPrefix(err.Error(), "[1]") {
		t.Errorf("error %v, want one that names the index", err)
	}
}

func TestQueryAndCookieFromProto(t *testing.T) {
	q, err := QueryParameterFromProto(fromJSON(t, &routev3pb.QueryParameterMatcher{}, `{"name":"a","string_match":{"exact":"1"}}`))
	if err != nil || !q.Match("x=2&a=1") || q.Match("a=2") || q.Match("") {
		t.Errorf("string_match: %v", err)
	}
	q, err = QueryParameterFromProto(fromJSON(t, &routev3pb.QueryParameterMatcher{}, `{"name":"a","present_match":false}`))
	if err != nil || q.Match("a") || !q.Match("b") {
		t.Errorf("present_match false: %v", err)
	}
	c, err := CookieFromProto(fromJSON(t, &routev3pb.CookieMatcher{}, `{"name":"Sid","string_match":{"prefix":"u"}}`))
	if err != nil || c.Name != "Sid" || !c.MatchValue("u1", true) || c.MatchValue("", false) {
		t.Errorf("cookie %q: %v", c.Name, err)
	}
	if _, err := CookieFromProto(&routev3pb.CookieMatcher{Name: "a"}); err == nil {
		t.Error("cookie without string_match: want an error")
	}
}

func TestMetadataFromProto(t *testing.T) {
	var md streaminfo.Metadata
	md.Set("jwt", "payload", map[string]any{"groups": []any{"a", "b"}, "n": 3.0, "ok": true, "nil": nil, "sub": "me"})
	for _, tc := range []struct {
		name, value string
		path        string
		want        bool
		err         string
	}{
		{"string", `{"string_match":{"exact":"me"}}`, "sub", true, ""},
		{"list", `{"list_match":{"one_of":{"string_match":{"exact":"b"}}}}`, "groups", true, ""},
		{"or", `{"or_match":{"value_matchers":[{"string_match":{"exact":"x"}},{"bool_match":true}]}}`, "ok", true, ""},
		{"double exact", `{"double_match":{"exact":3}}`, "n", true, ""},
		{"double range", `{"double_match":{"range":{"start":1,"end":3}}}`, "n", false, ""},
		{"null", `{"null_match":{}}`, "nil", true, ""},
		{"present", `{"present_match":true}`, "nope", false, ""},
		{"nothing", `{}`, "sub", false, "value.match_pattern"},
		{"nested error", `{"list_match":{"one_of":{}}}`, "sub", false, "value.list_match.one_of.match_pattern"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := MetadataFromProto(fromJSON(t, &matcherv3pb.MetadataMatcher{},
				`{"filter":"jwt","path":[{"key":"payload"},{"key":"`+tc.path+`"}],"value":`+tc.value+`}`))
			if checkErr(t, err, tc.err) {
				return
			}
			if got := m.Match(&md); got != tc.want {
				t.Errorf("Match = %v", got)
			}
		})
	}
	_, _, err := MetadataKeyFromProto(fromJSON(t, &metadatav3pb.MetadataKey{}, `{"key":"a","path":[{"index":1}]}`))
	if err == nil {
		t.Error("list index: want an error")
	}
}

func TestFilterStateFromProto(t *testing.T) {
	var fs streaminfo.FilterState
	fs.Set("k", streaminfo.String("10.1.2.3"), streaminfo.SharingNone)
	for _, tc := range []struct {
		name, json string
		want       bool
		err        string
	}{
		{"string", `{"key":"k","string_match":{"prefix":"10."}}`, true, ""},
		{"address", `{"key":"k","address_match":{"ranges":[{"address_prefix":"10.1.0.0","prefix_len":16}]}}`, true, ""},
		{"other key", `{"key":"l","string_match":{"prefix":"10."}}`, false, ""},
		{"inverted address", `{"key":"k","address_match":{"invert_match":true}}`, false, "address_match.invert_match"},
		{"bad address", `{"key":"k","address_match":{"ranges":[{"address_prefix":"x"}]}}`, false, "address_match.ranges[0].address_prefix"},
		{"nothing", `{"key":"k"}`, false, "matcher"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := FilterStateFromProto(fromJSON(t, &matcherv3pb.FilterStateMatcher{}, tc.json))
			if checkErr(t, err, tc.err) {
				return
			}
			if got := m.Match(&fs); got != tc.want {
				t.Errorf("Match = %v", got)
			}
		})
	}
}

func TestCIDRFromProto(t *testing.T) {
	for _, tc := range []struct{ name, json, want, err string }{
		{"host bits are cleared", `{"address_prefix":"10.1.2.3","prefix_len":8}`, "10.0.0.0/8", ""},
		{"a missing length is 0, as in Envoy", `{"address_prefix":"10.1.2.3"}`, "0.0.0.0/0", ""},
		{"IPv6", `{"address_prefix":"2001:db8::1","prefix_len":128}`, "2001:db8::1/128", ""},
		{"too long", `{"address_prefix":"10.1.2.3","prefix_len":33}`, "", "prefix_len"},
		{"far too long", `{"address_prefix":"::","prefix_len":4294967295}`, "", "prefix_len"},
		{"a name", `{"address_prefix":"localhost","prefix_len":8}`, "", "address_prefix"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := CIDRFromProto(fromJSON(t, &corev3pb.CidrRange{}, tc.json))
			if checkErr(t, err, tc.err) {
				return
			}
			if p.String() != tc.want {
				t.Errorf("got %s", p)
			}
		})
	}
}

const (
	ipInput   = `{"name":"ip","typed_config":{"@type":"type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.DestinationIPInput"}}`
	portInput = `{"name":"port","typed_config":{"@type":"type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.DestinationPortInput"}}`
)

func action(name string) string {
	return `{"action":{"name":"x","typed_config":{"@type":"type.googleapis.com/google.protobuf.StringValue","value":"` + name + `"}}}`
}

func TestTreeFromProto(t *testing.T) {
	byPort := `{"matcher":{"matcher_tree":{"input":` + portInput + `,"exact_match_map":{"map":{"80":` + action("http") + `}}},"on_no_match":` + action("tcp") + `}}`
	text := `{"matcher_tree":{"input":` + ipInput + `,"custom_match":{"name":"ip","typed_config":{
		"@type":"type.googleapis.com/xds.type.matcher.v3.IPMatcher",
		"range_matchers":[{"ranges":[{"address_prefix":"10.0.0.1","prefix_len":32}],"on_match":` + byPort + `}]}}}}`
	tree, err := TreeFromProto(fromJSON(t, &xdsmatcherv3pb.Matcher{}, text))
	if err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]string{"10.0.0.1:80": "http", "10.0.0.1:81": "tcp", "10.0.0.2:80": ""} {
		got, _ := tree.Match(&streaminfo.Conn{Local: netip.MustParseAddrPort(to)})
		if got != want {
			t.Errorf("%s: %q, want %q", to, got, want)
		}
	}
}

func TestTreeFromProtoList(t *testing.T) {
	pred := func(p string) string {
		return `{"matcher_list":{"matchers":[{"predicate":` + p + `,"on_match":` + action("a") + `}]}}`
	}
	single := `{"single_predicate":{"input":` + portInput + `,"value_match":{"exact":"80"}}}`
	cidr := `{"single_predicate":{"input":` + ipInput + `,"custom_match":{"name":"c","typed_config":{
		"@type":"type.googleapis.com/envoy.extensions.matching.input_matchers.ip.v3.Ip","stat_prefix":"x","cidr_ranges":[{"address_prefix":"10.0.0.0","prefix_len":8}]}}}}`
	for _, tc := range []struct {
		name, json string
		want       bool
		err        string
	}{
		{"value", pred(single), true, ""},
		{"not", pred(`{"not_matcher":` + single + `}`), false, ""},
		{"and", pred(`{"and_matcher":{"predicate":[` + single + `,` + cidr + `]}}`), true, ""},
		{"or", pred(`{"or_matcher":{"predicate":[` + single + `,` + cidr + `]}}`), true, ""},
		{
			"unknown input", pred(`{"single_predicate":{"input":{"name":"x","typed_config":{"@type":"type.googleapis.com/google.protobuf.Empty","value":{}}},"value_match":{"exact":"80"}}}`),
			false, "matcher_list.matchers[0].predicate.single_predicate.input.typed_config",
		},
		{"keep_matching", `{"on_no_match":{"keep_matching":true}}`, false, "on_no_match.keep_matching"},
		{"empty action", `{"on_no_match":` + action("") + `}`, false, "on_no_match.action.typed_config.value"},
		{"prefix map", `{"matcher_tree":{"input":` + portInput + `,"prefix_match_map":{"map":{"8":` + action("a") + `}}}}`, true, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tree, err := TreeFromProto(fromJSON(t, &xdsmatcherv3pb.Matcher{}, tc.json))
			if checkErr(t, err, tc.err) {
				return
			}
			if _, got := tree.Match(&streaminfo.Conn{Local: netip.MustParseAddrPort("10.0.0.1:80")}); got != tc.want {
				t.Errorf("Match = %v", got)
			}
		})
	}
}

func TestURITemplateFromProto(t *testing.T) {
	ext := fromJSON(t, &corev3pb.TypedExtensionConfig{}, `{"name":"t","typed_config":{
		"@type":"type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig","path_template":"/a/{x}"}}`)
	m, err := URITemplateFromProto(ext)
	if err != nil || !m.Match("/a/b") || m.Match("/b") {
		t.Fatal(err)
	}
	rw := fromJSON(t, &corev3pb.TypedExtensionConfig{}, `{"name":"t","typed_config":{
		"@type":"type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig","path_template_rewrite":"/z/{x}"}}`)
	r, err := URITemplateRewriteFromProto(rw, m)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := r.Rewrite("/a/b"); got != "/z/b" {
		t.Errorf("Rewrite = %q", got)
	}
	if _, err := URITemplateRewriteFromProto(rw, nil); err == nil {
		t.Error("rewrite without match: want an error")
	}
	if _, err := URITemplateFromProto(rw); err == nil {
		t.Error("other type: want an error")
	}
}

func TestSubstitutionFromProto(t *testing.T) {
	s, err := SubstitutionFromProto(fromJSON(t, &matcherv3pb.RegexMatchAndSubstitute{}, `{"pattern":{"regex":"^/a(.*)"},"substitution":"/b\\1"}`))
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := s.Replace("/a/x"); got != "/b/x" {
		t.Errorf("Replace = %q", got)
	}
	if _, err := SubstitutionFromProto(nil); err == nil {
		t.Error("nil message: want an error")
	}
}
