package matcher

import (
	"errors"
	"fmt"
	"net/netip"

	xdscorev3pb "github.com/cncf/xds/go/xds/core/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	uritemplatev3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	urirewritev3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/path/rewrite/uri_template/v3"
	matcherv3pb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	metadatav3pb "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Functions here turn Envoy's matcher messages into matchers. What a matcher
// can't express is an error whose text starts with the field's proto path
// relative to the message; nothing is dropped, because a matcher with a
// condition missing matches more than it was meant to.

// StringFromProto compiles a StringMatcher. A nil message is an error.
func StringFromProto(m *matcherv3pb.StringMatcher) (String, error) {
	return stringFromProto(m, m.GetSafeRegex().GetRegex())
}

// stringMatcher is what Envoy's and xDS's StringMatcher have in common.
type stringMatcher interface {
	proto.Message
	GetExact() string
	GetPrefix() string
	GetSuffix() string
	GetContains() string
	GetIgnoreCase() bool
}

func stringFromProto(m stringMatcher, regex string) (String, error) {
	r := m.ProtoReflect()
	set := r.WhichOneof(r.Descriptor().Oneofs().ByName("match_pattern"))
	if set == nil {
		return String{}, badField("match_pattern", "none is set")
	}
	switch set.Name() {
	case "exact":
		return NewString(Exact, m.GetExact(), m.GetIgnoreCase())
	case "prefix":
		return NewString(Prefix, m.GetPrefix(), m.GetIgnoreCase())
	case "suffix":
		return NewString(Suffix, m.GetSuffix(), m.GetIgnoreCase())
	case "contains":
		return NewString(Contains, m.GetContains(), m.GetIgnoreCase())
	case "safe_regex":
		s, err := newRegex(regex)
		return s, within("safe_regex", err)
	}
	return String{}, unsupported(string(set.Name()), "this way to match is not supported")
}

func newRegex(src string) (String, error) {
	if src == "" {
		return String{}, badField("regex", "is empty")
	}
	return NewString(Regex, src, false)
}

// StringsFromProto compiles a list of StringMatchers.
func StringsFromProto(ms []*matcherv3pb.StringMatcher) ([]String, error) {
	return each(ms, StringFromProto)
}

// RegexFromProto compiles a RegexMatcher that must match the whole string.
func RegexFromProto(m *matcherv3pb.RegexMatcher) (String, error) {
	return newRegex(m.GetRegex())
}

// SubstitutionFromProto compiles a RegexMatchAndSubstitute.
func SubstitutionFromProto(m *matcherv3pb.RegexMatchAndSubstitute) (*Substitution, error) {
	if m.GetPattern().GetRegex() == "" {
		return nil, badField("pattern.regex", "is empty")
	}
	return NewSubstitution(m.GetPattern().GetRegex(), m.GetSubstitution())
}

// PathFromProto compiles a PathMatcher; it is to be applied to the path
// without query and fragment.
func PathFromProto(m *matcherv3pb.PathMatcher) (String, error) {
	s, err := StringFromProto(m.GetPath())
	return s, within("path", err)
}

// HeaderFromProto compiles a HeaderMatcher, the deprecated ways to match
// included.
func HeaderFromProto(m *routev3pb.HeaderMatcher) (Header, error) {
	s := HeaderSpec{Name: m.GetName(), Invert: m.GetInvertMatch(), TreatMissingAsEmpty: m.GetTreatMissingHeaderAsEmpty()}
	var str String
	var err error
	field := "string_match"
	switch p := m.GetHeaderMatchSpecifier().(type) {
	case nil:
		return NewHeader(s)
	case *routev3pb.HeaderMatcher_PresentMatch:
		s.Present = &p.PresentMatch
		return NewHeader(s)
	case *routev3pb.HeaderMatcher_RangeMatch:
		s.Range = &Range{Start: p.RangeMatch.GetStart(), End: p.RangeMatch.GetEnd()}
		return NewHeader(s)
	case *routev3pb.HeaderMatcher_StringMatch:
		str, err = StringFromProto(p.StringMatch)
	case *routev3pb.HeaderMatcher_ExactMatch:
		field = "exact_match"
		str, err = NewString(Exact, p.ExactMatch, false)
	case *routev3pb.HeaderMatcher_SafeRegexMatch:
		field = "safe_regex_match"
		str, err = RegexFromProto(p.SafeRegexMatch)
	case *routev3pb.HeaderMatcher_PrefixMatch:
		field = "prefix_match"
		str, err = NewString(Prefix, p.PrefixMatch, false)
	case *routev3pb.HeaderMatcher_SuffixMatch:
		field = "suffix_match"
		str, err = NewString(Suffix, p.SuffixMatch, false)
	case *routev3pb.HeaderMatcher_ContainsMatch:
		field = "contains_match"
		str, err = NewString(Contains, p.ContainsMatch, false)
	default:
		return Header{}, unsupported("header_match_specifier", "%T is not supported", p)
	}
	if err != nil {
		return Header{}, within(field, err)
	}
	s.String = &str
	return NewHeader(s)
}

// HeadersFromProto compiles a list of HeaderMatchers.
func HeadersFromProto(ms []*routev3pb.HeaderMatcher) ([]Header, error) {
	return each(ms, HeaderFromProto)
}

// CookieFromProto compiles a CookieMatcher; the result's Name is the cookie's,
// and MatchValue is to be called with the cookie's value.
func CookieFromProto(m *routev3pb.CookieMatcher) (Header, error) {
	str, err := StringFromProto(m.GetStringMatch())
	if err != nil {
		return Header{}, within("string_match", err)
	}
	h, err := NewHeader(HeaderSpec{Name: m.GetName(), String: &str, Invert: m.GetInvertMatch()})
	h.Name = m.GetName() // cookie names are case sensitive
	return h, err
}

// QueryParameterFromProto compiles a QueryParameterMatcher; one that says
// nothing but a name matches if the parameter is there.
func QueryParameterFromProto(m *routev3pb.QueryParameterMatcher) (QueryParameter, error) {
	switch p := m.GetQueryParameterMatchSpecifier().(type) {
	case nil:
		return NewQueryParameter(m.GetName(), nil, true)
	case *routev3pb.QueryParameterMatcher_PresentMatch:
		return NewQueryParameter(m.GetName(), nil, p.PresentMatch)
	case *routev3pb.QueryParameterMatcher_StringMatch:
		s, err := StringFromProto(p.StringMatch)
		if err != nil {
			return QueryParameter{}, within("string_match", err)
		}
		return NewQueryParameter(m.GetName(), &s, true)
	default:
		return QueryParameter{}, unsupported("query_parameter_match_specifier", "%T is not supported", p)
	}
}

// QueryParametersFromProto compiles a list of QueryParameterMatchers.
func QueryParametersFromProto(ms []*routev3pb.QueryParameterMatcher) ([]QueryParameter, error) {
	return each(ms, QueryParameterFromProto)
}

const maxValueDepth = 32

// ValueFromProto compiles a ValueMatcher.
func ValueFromProto(m *matcherv3pb.ValueMatcher) (Value, error) { return valueFromProto(m, 0) }

func valueFromProto(m *matcherv3pb.ValueMatcher, depth int) (Value, error) {
	if depth > maxValueDepth {
		return Value{}, fmt.Errorf("nested more than %d deep", maxValueDepth)
	}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3pb.ValueMatcher_NullMatch_:
		return NullValue(), nil
	case *matcherv3pb.ValueMatcher_DoubleMatch:
		switch d := p.DoubleMatch.GetMatchPattern().(type) {
		case *matcherv3pb.DoubleMatcher_Exact:
			return DoubleExactValue(d.Exact), nil
		case *matcherv3pb.DoubleMatcher_Range:
			return DoubleValue(d.Range.GetStart(), d.Range.GetEnd()), nil
		}
		return Value{}, badField("double_match", "nothing is set")
	case *matcherv3pb.ValueMatcher_StringMatch:
		s, err := StringFromProto(p.StringMatch)
		if err != nil {
			return Value{}, within("string_match", err)
		}
		return StringValue(s), nil
	case *matcherv3pb.ValueMatcher_BoolMatch:
		return BoolValue(p.BoolMatch), nil
	case *matcherv3pb.ValueMatcher_PresentMatch:
		return PresentValue(p.PresentMatch), nil
	case *matcherv3pb.ValueMatcher_ListMatch:
		one, err := valueFromProto(p.ListMatch.GetOneOf(), depth+1)
		if err != nil {
			return Value{}, within("list_match.one_of", err)
		}
		return ListValue(one), nil
	case *matcherv3pb.ValueMatcher_OrMatch:
		vs, err := each(p.OrMatch.GetValueMatchers(), func(v *matcherv3pb.ValueMatcher) (Value, error) { return valueFromProto(v, depth+1) })
		if err != nil {
			return Value{}, within("or_match.value_matchers", err)
		}
		return OrValue(vs...), nil
	}
	return Value{}, unsupported("match_pattern", "none is set or it is not supported")
}

// MetadataFromProto compiles a MetadataMatcher.
func MetadataFromProto(m *matcherv3pb.MetadataMatcher) (Metadata, error) {
	v, err := ValueFromProto(m.GetValue())
	if err != nil {
		return Metadata{}, within("value", err)
	}
	path := make([]string, 0, len(m.GetPath()))
	for _, s := range m.GetPath() {
		path = append(path, s.GetKey())
	}
	return NewMetadata(m.GetFilter(), path, v, m.GetInvert())
}

// MetadataKeyFromProto splits a MetadataKey into namespace and path. List
// indices are an error.
func MetadataKeyFromProto(m *metadatav3pb.MetadataKey) (ns string, path []string, err error) {
	for i, s := range m.GetPath() {
		k, ok := s.GetSegment().(*metadatav3pb.MetadataKey_PathSegment_Key)
		if !ok {
			return "", nil, unsupported(fmt.Sprintf("path[%d]", i), "only keys are supported")
		}
		path = append(path, k.Key)
	}
	if m.GetKey() == "" {
		return "", nil, badField("key", "is empty")
	}
	return m.GetKey(), path, nil
}

// FilterStateFromProto compiles a FilterStateMatcher.
func FilterStateFromProto(m *matcherv3pb.FilterStateMatcher) (FilterState, error) {
	switch p := m.GetMatcher().(type) {
	case *matcherv3pb.FilterStateMatcher_StringMatch:
		s, err := StringFromProto(p.StringMatch)
		if err != nil {
			return FilterState{}, within("string_match", err)
		}
		return NewFilterState(m.GetKey(), s)
	case *matcherv3pb.FilterStateMatcher_AddressMatch:
		if p.AddressMatch.GetInvertMatch() {
			return FilterState{}, unsupported("address_match.invert_match", "is not supported")
		}
		ps, err := each(p.AddressMatch.GetRanges(), xdsCIDR)
		if err != nil {
			return FilterState{}, within("address_match.ranges", err)
		}
		return NewFilterStateAddress(m.GetKey(), NewCIDRSet(ps))
	}
	return FilterState{}, unsupported("matcher", "none is set or it is not supported")
}

// CIDRFromProto returns the prefix with its host bits cleared. As in Envoy a
// missing prefix_len is 0.
func CIDRFromProto(m *corev3pb.CidrRange) (netip.Prefix, error) {
	return cidr(m.GetAddressPrefix(), m.GetPrefixLen().GetValue())
}

// CIDRsFromProto converts a list of CidrRanges.
func CIDRsFromProto(ms []*corev3pb.CidrRange) ([]netip.Prefix, error) { return each(ms, CIDRFromProto) }

func xdsCIDR(m *xdscorev3pb.CidrRange) (netip.Prefix, error) {
	return cidr(m.GetAddressPrefix(), m.GetPrefixLen().GetValue())
}

func cidr(addr string, bits uint32) (netip.Prefix, error) {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return netip.Prefix{}, badField("address_prefix", "%q is not an IP address", addr)
	}
	p, err := a.WithZone("").Prefix(int(min(bits, 129)))
	if err != nil {
		return netip.Prefix{}, badField("prefix_len", "%d is too long for %s", bits, addr)
	}
	return p, nil
}

// URITemplateFromProto compiles the uri_template path match policy.
func URITemplateFromProto(m *corev3pb.TypedExtensionConfig) (*URITemplate, error) {
	var c uritemplatev3pb.UriTemplateMatchConfig
	if err := unpack(m.GetTypedConfig(), &c); err != nil {
		return nil, within("typed_config", err)
	}
	t, err := NewURITemplate(c.GetPathTemplate())
	return t, within("typed_config.path_template", err)
}

// URITemplateRewriteFromProto compiles the uri_template path rewrite policy.
func URITemplateRewriteFromProto(m *corev3pb.TypedExtensionConfig, from *URITemplate) (*URITemplateRewrite, error) {
	var c urirewritev3pb.UriTemplateRewriteConfig
	if err := unpack(m.GetTypedConfig(), &c); err != nil {
		return nil, within("typed_config", err)
	}
	if from == nil {
		return nil, errors.New("a template rewrite needs a uri_template path match policy")
	}
	r, err := NewURITemplateRewrite(c.GetPathTemplateRewrite(), from)
	return r, within("typed_config.path_template_rewrite", err)
}

func name(m proto.Message) string { return string(m.ProtoReflect().Descriptor().FullName()) }

// unpack decodes a into m, which must be of its type.
func unpack(a *anypb.Any, m proto.Message) error {
	if got, want := string(a.MessageName()), name(m); got != want {
		return unsupportedError(fmt.Sprintf("type %q is not supported here, only %q", a.GetTypeUrl(), want))
	}
	return proto.Unmarshal(a.GetValue(), m)
}
