package authz

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3pb "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	uri_templatev3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherv3pb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

const maxDepth = 64

// DecodeRules validates an RBAC message; nil gives nil. path is its proto path
// for errors and reports.
func DecodeRules(m *rbacv3pb.RBAC, path string, d *filters.Decoding) (*Rules, error) {
	if m == nil {
		return nil, nil //nolint:nilnil // absent rules are nil
	}
	r := &Rules{}
	switch m.GetAction() {
	case rbacv3pb.RBAC_ALLOW:
	case rbacv3pb.RBAC_DENY:
		r.Action = Deny
	case rbacv3pb.RBAC_LOG:
		r.Action = Log
	default:
		return nil, fmt.Errorf("%s.action: %d is not supported", path, m.GetAction())
	}
	if m.GetAuditLoggingOptions() != nil {
		d.Ignore(path+".audit_logging_options", "audit loggers are not run; use access logs or the shadow statistics")
	}
	for name, p := range m.GetPolicies() {
		at := fmt.Sprintf("%s.policies[%s]", path, name)
		pol, err := decodePolicy(name, p)
		if err != nil {
			return nil, fmt.Errorf("%s.%w", at, err)
		}
		r.Policies = append(r.Policies, pol)
	}
	sort.Slice(r.Policies, func(i, j int) bool { return r.Policies[i].Name < r.Policies[j].Name })
	if _, err := New(r); err != nil {
		return nil, fmt.Errorf("%s.%w", path, err)
	}
	return r, nil
}

func decodePolicy(name string, p *rbacv3pb.Policy) (Policy, error) {
	out := Policy{Name: name}
	if p.GetCondition() != nil || p.GetCheckedCondition() != nil || p.GetCelConfig() != nil {
		return out, errors.New("condition: CEL conditions are not supported")
	}
	if len(p.GetPermissions()) == 0 {
		return out, errors.New("permissions: at least one is required")
	}
	if len(p.GetPrincipals()) == 0 {
		return out, errors.New("principals: at least one is required")
	}
	var err error
	if out.Permissions, err = decodeList(p.GetPermissions(), "permissions", 0, decodePermission); err != nil {
		return out, err
	}
	out.Principals, err = decodeList(p.GetPrincipals(), "principals", 0, decodePrincipal)
	return out, err
}

func decodeList[M any](ms []M, path string, depth int, one func(M, int) (Rule, error)) ([]Rule, error) {
	rs := make([]Rule, len(ms))
	for i, m := range ms {
		r, err := one(m, depth+1)
		if err != nil {
			return nil, fmt.Errorf("%s[%d].%w", path, i, err)
		}
		rs[i] = r
	}
	return rs, nil
}

func decodePermission(p *rbacv3pb.Permission, depth int) (Rule, error) {
	if depth > maxDepth {
		return Rule{}, fmt.Errorf("rule: nested deeper than %d", maxDepth)
	}
	switch x := p.GetRule().(type) {
	case *rbacv3pb.Permission_Any:
		return decodeAny(x.Any)
	case *rbacv3pb.Permission_AndRules:
		rs, err := decodeSet(x.AndRules.GetRules(), "and_rules.rules", depth, decodePermission)
		return Rule{Kind: KindAnd, Rules: rs}, err
	case *rbacv3pb.Permission_OrRules:
		rs, err := decodeSet(x.OrRules.GetRules(), "or_rules.rules", depth, decodePermission)
		return Rule{Kind: KindOr, Rules: rs}, err
	case *rbacv3pb.Permission_NotRule:
		r, err := decodePermission(x.NotRule, depth+1)
		return Rule{Kind: KindNot, Rules: []Rule{r}}, within("not_rule", err)
	case *rbacv3pb.Permission_Header:
		return decodeHeader(x.Header)
	case *rbacv3pb.Permission_UrlPath:
		return decodePath(x.UrlPath)
	case *rbacv3pb.Permission_UriTemplate:
		return decodeTemplate(x.UriTemplate)
	case *rbacv3pb.Permission_DestinationIp:
		return decodeIP(KindDestinationIP, "destination_ip", x.DestinationIp)
	case *rbacv3pb.Permission_DestinationPort:
		if x.DestinationPort > 65535 {
			return Rule{}, fmt.Errorf("destination_port: %d is not a port", x.DestinationPort)
		}
		return Rule{Kind: KindPort, PortStart: x.DestinationPort, PortEnd: x.DestinationPort + 1}, nil
	case *rbacv3pb.Permission_DestinationPortRange:
		s, e := x.DestinationPortRange.GetStart(), x.DestinationPortRange.GetEnd()
		if s < 0 || e > 65536 || s >= e {
			return Rule{}, fmt.Errorf("destination_port_range: [%d, %d) is not a range of ports", s, e)
		}
		return Rule{Kind: KindPort, PortStart: uint32(s), PortEnd: uint32(e)}, nil
	case *rbacv3pb.Permission_RequestedServerName:
		s, err := DecodeString(x.RequestedServerName)
		return Rule{Kind: KindServerName, String: s}, within("requested_server_name", err)
	case *rbacv3pb.Permission_Metadata:
		m, err := DecodeMetadata(x.Metadata)
		return Rule{Kind: KindMetadata, Metadata: m}, within("metadata", err)
	case *rbacv3pb.Permission_SourcedMetadata:
		return decodeSourced(x.SourcedMetadata)
	}
	return Rule{}, fmt.Errorf("rule: %T is not supported", p.GetRule())
}

func decodePrincipal(p *rbacv3pb.Principal, depth int) (Rule, error) {
	if depth > maxDepth {
		return Rule{}, fmt.Errorf("identifier: nested deeper than %d", maxDepth)
	}
	switch x := p.GetIdentifier().(type) {
	case *rbacv3pb.Principal_Any:
		return decodeAny(x.Any)
	case *rbacv3pb.Principal_AndIds:
		rs, err := decodeSet(x.AndIds.GetIds(), "and_ids.ids", depth, decodePrincipal)
		return Rule{Kind: KindAnd, Rules: rs}, err
	case *rbacv3pb.Principal_OrIds:
		rs, err := decodeSet(x.OrIds.GetIds(), "or_ids.ids", depth, decodePrincipal)
		return Rule{Kind: KindOr, Rules: rs}, err
	case *rbacv3pb.Principal_NotId:
		r, err := decodePrincipal(x.NotId, depth+1)
		return Rule{Kind: KindNot, Rules: []Rule{r}}, within("not_id", err)
	case *rbacv3pb.Principal_Authenticated_:
		n := x.Authenticated.GetPrincipalName()
		if n == nil {
			return Rule{Kind: KindAuthenticated, AnyName: true}, nil
		}
		s, err := DecodeString(n)
		return Rule{Kind: KindAuthenticated, String: s}, within("authenticated.principal_name", err)
	case *rbacv3pb.Principal_SourceIp:
		return decodeIP(KindSourceIP, "source_ip", x.SourceIp)
	case *rbacv3pb.Principal_DirectRemoteIp:
		return decodeIP(KindDirectRemoteIP, "direct_remote_ip", x.DirectRemoteIp)
	case *rbacv3pb.Principal_RemoteIp:
		return decodeIP(KindRemoteIP, "remote_ip", x.RemoteIp)
	case *rbacv3pb.Principal_Header:
		return decodeHeader(x.Header)
	case *rbacv3pb.Principal_UrlPath:
		return decodePath(x.UrlPath)
	case *rbacv3pb.Principal_Metadata:
		m, err := DecodeMetadata(x.Metadata)
		return Rule{Kind: KindMetadata, Metadata: m}, within("metadata", err)
	case *rbacv3pb.Principal_SourcedMetadata:
		return decodeSourced(x.SourcedMetadata)
	case *rbacv3pb.Principal_FilterState:
		return decodeFilterState(x.FilterState)
	}
	return Rule{}, fmt.Errorf("identifier: %T is not supported", p.GetIdentifier())
}

func within(field string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", field, err)
}

func decodeAny(v bool) (Rule, error) {
	if !v {
		return Rule{}, errors.New("any: must be true")
	}
	return Rule{Kind: KindAny}, nil
}

func decodeSet[M any](ms []M, path string, depth int, one func(M, int) (Rule, error)) ([]Rule, error) {
	if len(ms) == 0 {
		return nil, fmt.Errorf("%s: at least one is required", path)
	}
	return decodeList(ms, path, depth, one)
}

func decodeHeader(h *routev3pb.HeaderMatcher) (Rule, error) {
	out := Header{Name: strings.ToLower(h.GetName()), Invert: h.GetInvertMatch(), TreatMissingAsEmpty: h.GetTreatMissingHeaderAsEmpty()}
	if out.Name == "host" {
		out.Name = message.Authority
	}
	if out.Name == "" {
		return Rule{}, errors.New("header.name: must not be empty")
	}
	var err error
	switch x := h.GetHeaderMatchSpecifier().(type) {
	case nil: // Envoy: present
		out.Kind = HeaderPresent
	case *routev3pb.HeaderMatcher_PresentMatch:
		out.Kind = HeaderAbsent
		if x.PresentMatch {
			out.Kind = HeaderPresent
		}
	case *routev3pb.HeaderMatcher_RangeMatch:
		out.Kind, out.RangeStart, out.RangeEnd = HeaderRange, x.RangeMatch.GetStart(), x.RangeMatch.GetEnd()
	case *routev3pb.HeaderMatcher_StringMatch:
		out.String, err = DecodeString(x.StringMatch)
	case *routev3pb.HeaderMatcher_ExactMatch:
		out.String, err = nonEmpty(matcher.Exact, x.ExactMatch)
	case *routev3pb.HeaderMatcher_PrefixMatch:
		out.String, err = nonEmpty(matcher.Prefix, x.PrefixMatch)
	case *routev3pb.HeaderMatcher_SuffixMatch:
		out.String, err = nonEmpty(matcher.Suffix, x.SuffixMatch)
	case *routev3pb.HeaderMatcher_ContainsMatch:
		out.String, err = nonEmpty(matcher.Contains, x.ContainsMatch)
	case *routev3pb.HeaderMatcher_SafeRegexMatch:
		out.String, err = nonEmpty(matcher.Regex, x.SafeRegexMatch.GetRegex())
	default:
		err = fmt.Errorf("%T is not supported", x)
	}
	return Rule{Kind: KindHeader, Header: out}, within("header", err)
}

// nonEmpty refuses the empty text of deprecated matchers, which Envoy takes
// for "matches anything".
func nonEmpty(kind matcher.StringKind, text string) (String, error) {
	if text == "" {
		return String{}, errors.New("text is empty: use present_match or string_match")
	}
	return String{Kind: kind, Text: text}, nil
}

func decodePath(p *matcherv3pb.PathMatcher) (Rule, error) {
	s, err := DecodeString(p.GetPath())
	return Rule{Kind: KindPath, String: s}, within("url_path.path", err)
}

func decodeTemplate(c *corev3pb.TypedExtensionConfig) (Rule, error) {
	m := &uri_templatev3pb.UriTemplateMatchConfig{}
	if err := c.GetTypedConfig().UnmarshalTo(m); err != nil {
		return Rule{}, within("uri_template.typed_config", err)
	}
	t, err := matcher.NewURITemplate(m.GetPathTemplate())
	return Rule{Kind: KindTemplate, Template: t}, within("uri_template.typed_config.path_template", err)
}

func decodeIP(kind Kind, field string, c *corev3pb.CidrRange) (Rule, error) {
	p, err := DecodePrefix(c)
	return Rule{Kind: kind, Prefix: p}, within(field, err)
}

// CIDR is Envoy's or xDS's CidrRange.
type CIDR interface {
	GetAddressPrefix() string
	GetPrefixLen() *wrapperspb.UInt32Value
}

// DecodePrefix converts a CidrRange. An absent prefix_len is 0, as in Envoy;
// IPv4-mapped ranges become IPv4.
func DecodePrefix(c CIDR) (netip.Prefix, error) {
	a, err := netip.ParseAddr(c.GetAddressPrefix())
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("address_prefix: %w", err)
	}
	bits := int(c.GetPrefixLen().GetValue())
	if a.Is4In6() && bits >= 96 {
		a, bits = a.Unmap(), bits-96
	}
	p, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("prefix_len: %w", err)
	}
	return p, nil
}

func decodeFilterState(f *matcherv3pb.FilterStateMatcher) (Rule, error) {
	out := Rule{Kind: KindFilterState, Key: f.GetKey()}
	if out.Key == "" {
		return out, errors.New("filter_state.key: must not be empty")
	}
	switch x := f.GetMatcher().(type) {
	case *matcherv3pb.FilterStateMatcher_StringMatch:
		s, err := DecodeString(x.StringMatch)
		out.String = s
		return out, within("filter_state.string_match", err)
	case *matcherv3pb.FilterStateMatcher_AddressMatch:
		out.Prefixes, out.InvertPrefixes = []netip.Prefix{}, x.AddressMatch.GetInvertMatch()
		for i, c := range x.AddressMatch.GetRanges() {
			p, err := DecodePrefix(c)
			if err != nil {
				return out, fmt.Errorf("filter_state.address_match.ranges[%d].%w", i, err)
			}
			out.Prefixes = append(out.Prefixes, p)
		}
		return out, nil
	}
	return out, fmt.Errorf("filter_state.matcher: %T is not supported", f.GetMatcher())
}

func decodeSourced(s *rbacv3pb.SourcedMetadata) (Rule, error) {
	m, err := DecodeMetadata(s.GetMetadataMatcher())
	if err != nil {
		return Rule{}, within("sourced_metadata.metadata_matcher", err)
	}
	switch s.GetMetadataSource() {
	case rbacv3pb.MetadataSource_DYNAMIC:
	case rbacv3pb.MetadataSource_ROUTE:
		m.Route = true
	default:
		return Rule{}, fmt.Errorf("sourced_metadata.metadata_source: %d is not supported", s.GetMetadataSource())
	}
	return Rule{Kind: KindMetadata, Metadata: m}, nil
}

// DecodeMetadata converts a MetadataMatcher.
func DecodeMetadata(m *matcherv3pb.MetadataMatcher) (Metadata, error) {
	out := Metadata{Namespace: m.GetFilter(), Invert: m.GetInvert()}
	if out.Namespace == "" {
		return out, errors.New("filter: must not be empty")
	}
	for i, seg := range m.GetPath() {
		if seg.GetKey() == "" {
			return out, fmt.Errorf("path[%d].key: must not be empty", i)
		}
		out.Path = append(out.Path, seg.GetKey())
	}
	if len(out.Path) == 0 {
		return out, errors.New("path: at least one segment is required")
	}
	v, err := decodeValue(m.GetValue(), 0)
	out.Value = v
	return out, within("value", err)
}

func decodeValue(v *matcherv3pb.ValueMatcher, depth int) (Value, error) {
	if depth > maxDepth {
		return Value{}, fmt.Errorf("nested deeper than %d", maxDepth)
	}
	switch x := v.GetMatchPattern().(type) {
	case *matcherv3pb.ValueMatcher_NullMatch_:
		return Value{Kind: ValueNull}, nil
	case *matcherv3pb.ValueMatcher_BoolMatch:
		return Value{Kind: ValueBool, Bool: x.BoolMatch}, nil
	case *matcherv3pb.ValueMatcher_PresentMatch:
		return Value{Kind: ValuePresent, Bool: x.PresentMatch}, nil
	case *matcherv3pb.ValueMatcher_StringMatch:
		s, err := DecodeString(x.StringMatch)
		return Value{Kind: ValueString, String: s}, within("string_match", err)
	case *matcherv3pb.ValueMatcher_DoubleMatch:
		switch n := x.DoubleMatch.GetMatchPattern().(type) {
		case *matcherv3pb.DoubleMatcher_Exact:
			return Value{Kind: ValueNumber, Min: n.Exact}, nil
		case *matcherv3pb.DoubleMatcher_Range:
			return Value{Kind: ValueRange, Min: n.Range.GetStart(), Max: n.Range.GetEnd()}, nil
		}
	case *matcherv3pb.ValueMatcher_ListMatch:
		one, err := decodeValue(x.ListMatch.GetOneOf(), depth+1)
		return Value{Kind: ValueOneOf, Values: []Value{one}}, within("list_match.one_of", err)
	case *matcherv3pb.ValueMatcher_OrMatch:
		out := Value{Kind: ValueOr}
		for i, m := range x.OrMatch.GetValueMatchers() {
			one, err := decodeValue(m, depth+1)
			if err != nil {
				return out, fmt.Errorf("or_match.value_matchers[%d]: %w", i, err)
			}
			out.Values = append(out.Values, one)
		}
		return out, nil
	}
	return Value{}, fmt.Errorf("%T is not supported", v.GetMatchPattern())
}

// DecodeString converts a StringMatcher and checks that it compiles.
func DecodeString(m *matcherv3pb.StringMatcher) (String, error) {
	s := String{IgnoreCase: m.GetIgnoreCase()}
	switch x := m.GetMatchPattern().(type) {
	case *matcherv3pb.StringMatcher_Exact:
		s.Kind, s.Text = matcher.Exact, x.Exact
	case *matcherv3pb.StringMatcher_Prefix:
		s.Kind, s.Text = matcher.Prefix, x.Prefix
	case *matcherv3pb.StringMatcher_Suffix:
		s.Kind, s.Text = matcher.Suffix, x.Suffix
	case *matcherv3pb.StringMatcher_Contains:
		s.Kind, s.Text = matcher.Contains, x.Contains
	case *matcherv3pb.StringMatcher_SafeRegex:
		s.Kind, s.Text, s.IgnoreCase = matcher.Regex, x.SafeRegex.GetRegex(), false
	default:
		return s, fmt.Errorf("%T is not supported", x)
	}
	if s.Text == "" && slices.Contains([]matcher.StringKind{matcher.Prefix, matcher.Suffix, matcher.Contains, matcher.Regex}, s.Kind) {
		return s, errors.New("text must not be empty")
	}
	_, err := newString(s)
	return s, err
}
