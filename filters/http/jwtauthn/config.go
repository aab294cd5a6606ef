package jwtauthn

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwt_authnv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

const (
	typeURL         = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"
	typeURLPerRoute = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig"
)

// Config is JwtAuthentication.
type Config struct {
	Providers []Provider
	Rules     []Rule
	// Named are the requirements of requirement_map.
	Named map[string]*Requirement
	// StateKey names the filter-state object whose text selects one of ByState.
	StateKey            string
	ByState             map[string]*Requirement
	BypassCORSPreflight bool
	StripFailure        bool
}

// Provider is one issuer of tokens.
type Provider struct {
	Name, Issuer      string
	Audiences         []string // without scheme and trailing slash
	Subjects          *matcher.String
	RequireExpiration bool
	MaxLifetime       time.Duration // 0: any
	Skew              time.Duration
	Forward           bool
	Headers           []HeaderLocation
	Params, Cookies   []string

	PayloadHeader         string
	PadPayloadHeader      bool
	PayloadKey, HeaderKey string // in dynamic metadata
	FailedStatusKey       string
	SpaceDelimited        []string
	Claims                []ClaimHeader
	ClearRouteCache       bool
	// Keys are inline; else one of the others is set.
	Keys              *keySet
	File, Environment string // where the keys are
	Remote            *Remote
}

// HeaderLocation is a header that may carry a token after Prefix.
type HeaderLocation struct{ Name, Prefix string }

// ClaimHeader copies a claim to a request header.
type ClaimHeader struct {
	Header string
	Path   []string
}

// Remote is remote_jwks.
type Remote struct {
	Cluster, Scheme, Authority, Path string
	Timeout, CacheDuration           time.Duration
	Retry                            *filters.Retry // nil: none
	// Async fetches before a token needs the keys, and FailedRefetch after a
	// fetch that failed.
	Async         bool
	FailedRefetch time.Duration
}

// Rule asks Requires of requests that match.
type Rule struct {
	Match    Match
	Requires *Requirement // nil: nothing is required
}

// MatchKind says how a Match compares the path.
type MatchKind uint8

// Path match kinds.
const (
	MatchPrefix MatchKind = iota
	MatchPath
	MatchRegex
	MatchSeparatedPrefix
	MatchTemplate
	MatchConnect
)

// Match is the part of RouteMatch that selects a rule.
type Match struct {
	Kind     MatchKind
	Text     string
	NoCase   bool
	Regex    matcher.String
	Template *matcher.URITemplate
	Headers  []matcher.Header
	Query    []matcher.QueryParameter
}

// RequirementKind says what a Requirement asks.
type RequirementKind uint8

// Requirement kinds.
const (
	RequireProvider RequirementKind = iota + 1
	RequireAny
	RequireAll
	AllowMissing
	AllowMissingOrFailed
	RequireNothing
)

// Requirement is JwtRequirement.
type Requirement struct {
	Kind RequirementKind
	// Providers are indexes into Config.Providers: the provider, or for
	// AllowMissing and AllowMissingOrFailed those whose tokens are looked at.
	Providers []int
	// Audiences, if not nil, replace the provider's.
	Audiences []string
	Children  []*Requirement
}

// Override is PerRouteConfig.
type Override struct {
	Disabled bool
	Name     string
}

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &jwt_authnv3pb.JwtAuthentication{}
	if err := decode.Strict(a, m); err != nil {
		return nil, err
	}
	decode.IgnoreSet(d, m, "statistics have no part of this name", "stat_prefix")
	c := &Config{BypassCORSPreflight: m.GetBypassCorsPreflight(), StripFailure: m.GetStripFailureResponse(), Named: map[string]*Requirement{}}
	b := &builder{c: c, index: map[string]int{}}
	for _, name := range slices.Sorted(maps.Keys(m.GetProviders())) {
		path := "providers[" + name + "]"
		p, err := decodeProvider(m.GetProviders()[name], path, d)
		if err != nil {
			return nil, fmt.Errorf("%s.%w", path, err)
		}
		p.Name, b.index[name] = name, len(c.Providers)
		c.Providers = append(c.Providers, *p)
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetRequirementMap())) {
		r, err := b.requirement(m.GetRequirementMap()[name], nil, 0)
		if err != nil {
			return nil, fmt.Errorf("requirement_map[%s].%w", name, err)
		}
		c.Named[name] = r
	}
	for i, r := range m.GetRules() {
		rule, err := b.rule(r)
		if err != nil {
			return nil, fmt.Errorf("rules[%d].%w", i, err)
		}
		c.Rules = append(c.Rules, rule)
	}
	if f := m.GetFilterStateRules(); f != nil {
		c.StateKey, c.ByState = f.GetName(), map[string]*Requirement{}
		for _, name := range slices.Sorted(maps.Keys(f.GetRequires())) {
			r, err := b.requirement(f.GetRequires()[name], nil, 0)
			if err != nil {
				return nil, fmt.Errorf("filter_state_rules.requires[%s].%w", name, err)
			}
			c.ByState[name] = r
		}
	}
	return c, nil
}

// DecodeOverride implements filters.HTTPFactory.
func (Factory) DecodeOverride(a filters.Any, _ *filters.Decoding) (filters.Config, error) {
	m := &jwt_authnv3pb.PerRouteConfig{}
	if err := decode.Strict(a, m); err != nil {
		return nil, err
	}
	if !m.GetDisabled() && m.GetRequirementName() == "" {
		return nil, errors.New("requirement_name: must not be empty unless disabled")
	}
	return &Override{Disabled: m.GetDisabled(), Name: m.GetRequirementName()}, nil
}

func decodeProvider(m *jwt_authnv3pb.JwtProvider, path string, d *filters.Decoding) (*Provider, error) {
	p := &Provider{
		Issuer: m.GetIssuer(), RequireExpiration: m.GetRequireExpiration(), Skew: 60 * time.Second, Forward: m.GetForward(),
		Params: m.GetFromParams(), Cookies: m.GetFromCookies(), PayloadHeader: strings.ToLower(m.GetForwardPayloadHeader()), PadPayloadHeader: m.GetPadForwardPayloadHeader(),
		PayloadKey: m.GetPayloadInMetadata(), HeaderKey: m.GetHeaderInMetadata(), FailedStatusKey: m.GetFailedStatusInMetadata(),
		SpaceDelimited: m.GetNormalizePayloadInMetadata().GetSpaceDelimitedClaims(), ClearRouteCache: m.GetClearRouteCache(),
	}
	if s := m.GetClockSkewSeconds(); s > 0 {
		p.Skew = time.Duration(s) * time.Second
	}
	for _, a := range m.GetAudiences() {
		p.Audiences = append(p.Audiences, plainAudience(a))
	}
	var err error
	if p.MaxLifetime, err = decode.Duration(m.GetMaxLifetime(), 0); err != nil {
		return nil, fmt.Errorf("max_lifetime: %w", err)
	}
	if m.GetSubjects() != nil {
		s, err := matcher.StringFromProto(m.GetSubjects())
		if err != nil {
			return nil, fmt.Errorf("subjects: %w", err)
		}
		p.Subjects = &s
	}
	for i, h := range m.GetFromHeaders() {
		if h.GetName() == "" {
			return nil, fmt.Errorf("from_headers[%d].name: must not be empty", i)
		}
		p.Headers = append(p.Headers, HeaderLocation{strings.ToLower(h.GetName()), h.GetValuePrefix()})
	}
	if len(p.Headers) == 0 && len(p.Params) == 0 && len(p.Cookies) == 0 {
		p.Headers, p.Params = []HeaderLocation{{"authorization", "Bearer "}}, []string{"access_token"}
	}
	for i, ch := range m.GetClaimToHeaders() {
		c := ClaimHeader{Header: strings.ToLower(ch.GetHeaderName()), Path: strings.Split(ch.GetClaimName(), ".")}
		if len(ch.GetClaimPath()) > 0 {
			c.Path = nil
			for _, s := range ch.GetClaimPath() {
				c.Path = append(c.Path, s.GetKey())
			}
		}
		if c.Header == "" || strings.HasPrefix(c.Header, ":") || c.Path[0] == "" {
			return nil, fmt.Errorf("claim_to_headers[%d]: header and claim must be named", i)
		}
		p.Claims = append(p.Claims, c)
	}
	return p, p.decodeKeys(m, path, d)
}

func (p *Provider) decodeKeys(m *jwt_authnv3pb.JwtProvider, path string, d *filters.Decoding) error {
	switch x := m.GetJwksSourceSpecifier().(type) {
	case *jwt_authnv3pb.JwtProvider_LocalJwks:
		var text string
		switch s := x.LocalJwks.GetSpecifier().(type) {
		case *corev3pb.DataSource_InlineString:
			text = s.InlineString
		case *corev3pb.DataSource_InlineBytes:
			text = string(s.InlineBytes)
		case *corev3pb.DataSource_Filename:
			if p.File = s.Filename; p.File == "" {
				return errors.New("local_jwks.filename: must not be empty")
			}
			return nil
		case *corev3pb.DataSource_EnvironmentVariable:
			if p.Environment = s.EnvironmentVariable; p.Environment == "" {
				return errors.New("local_jwks.environment_variable: must not be empty")
			}
			return nil
		default:
			return errors.New("local_jwks: keys are required")
		}
		set, skipped, err := parseKeys([]byte(text))
		if err != nil {
			d.Ignore(path+".local_jwks", "no key is usable and all tokens are refused: "+err.Error())
			p.Keys = &keySet{}
			return nil //nolint:nilerr // reported, and fails closed
		}
		for _, e := range skipped {
			d.Ignore(path+".local_jwks", "a key is left out: "+e.Error())
		}
		p.Keys = set
	case *jwt_authnv3pb.JwtProvider_RemoteJwks:
		r, err := decodeRemote(x.RemoteJwks, path, d)
		if err != nil {
			return fmt.Errorf("remote_jwks.%w", err)
		}
		p.Remote = r
	default:
		return errors.New("jwks_source_specifier: keys are required")
	}
	return nil
}

// minRefetch is the least time between two fetches in the background.
const minRefetch = 100 * time.Millisecond

func decodeRemote(m *jwt_authnv3pb.RemoteJwks, path string, d *filters.Decoding) (*Remote, error) {
	u, err := url.Parse(m.GetHttpUri().GetUri())
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("http_uri.uri: %q is not an absolute URI", m.GetHttpUri().GetUri())
	}
	r := &Remote{Cluster: m.GetHttpUri().GetCluster(), Scheme: u.Scheme, Authority: u.Host, Path: u.RequestURI()}
	if r.Cluster == "" {
		return nil, errors.New("http_uri.cluster: must not be empty")
	}
	if r.Timeout, err = decode.Duration(m.GetHttpUri().GetTimeout(), 5*time.Second); err != nil {
		return nil, fmt.Errorf("http_uri.timeout: %w", err)
	}
	if r.CacheDuration, err = decode.Duration(m.GetCacheDuration(), 10*time.Minute); err != nil {
		return nil, fmt.Errorf("cache_duration: %w", err)
	}
	if r.CacheDuration < time.Second {
		return nil, errors.New("cache_duration: must not be less than a second")
	}
	if a := m.GetAsyncFetch(); a != nil {
		r.Async = true
		if r.FailedRefetch, err = decode.Duration(a.GetFailedRefetchDuration(), time.Second); err != nil || r.FailedRefetch < minRefetch {
			return nil, fmt.Errorf("async_fetch.failed_refetch_duration: must not be less than %s", minRefetch)
		}
	}
	if r.Retry, err = decode.Retry(m.GetRetryPolicy(), path+".remote_jwks.retry_policy", d); err != nil {
		return nil, fmt.Errorf("retry_policy.%w", err)
	}
	return r, nil
}

// plainAudience removes what does not count in a comparison of audiences.
func plainAudience(a string) string {
	a = strings.TrimPrefix(strings.TrimPrefix(a, "https://"), "http://")
	return strings.TrimSuffix(a, "/")
}

// builder resolves names of providers and requirements.
type builder struct {
	c     *Config
	index map[string]int
}

const maxRequirementDepth = 32

func (b *builder) provider(name string) (int, error) {
	i, known := b.index[name]
	if !known {
		return 0, fmt.Errorf("provider_name: no provider is called %q", name)
	}
	return i, nil
}

// requirement converts m; siblings are the providers of the requires_any that
// holds it.
func (b *builder) requirement(m *jwt_authnv3pb.JwtRequirement, siblings []int, depth int) (*Requirement, error) {
	if depth > maxRequirementDepth {
		return nil, fmt.Errorf("requires: nested deeper than %d", maxRequirementDepth)
	}
	if len(siblings) == 0 {
		siblings = make([]int, len(b.c.Providers))
		for i := range siblings {
			siblings[i] = i
		}
	}
	switch x := m.GetRequiresType().(type) {
	case nil:
		return &Requirement{Kind: RequireNothing}, nil
	case *jwt_authnv3pb.JwtRequirement_ProviderName:
		i, err := b.provider(x.ProviderName)
		return &Requirement{Kind: RequireProvider, Providers: []int{i}}, err
	case *jwt_authnv3pb.JwtRequirement_ProviderAndAudiences:
		i, err := b.provider(x.ProviderAndAudiences.GetProviderName())
		r := &Requirement{Kind: RequireProvider, Providers: []int{i}}
		for _, a := range x.ProviderAndAudiences.GetAudiences() {
			r.Audiences = append(r.Audiences, plainAudience(a))
		}
		return r, err
	case *jwt_authnv3pb.JwtRequirement_RequiresAny:
		return b.any(x.RequiresAny.GetRequirements(), depth)
	case *jwt_authnv3pb.JwtRequirement_RequiresAll:
		r := &Requirement{Kind: RequireAll}
		for i, child := range x.RequiresAll.GetRequirements() {
			c, err := b.requirement(child, nil, depth+1)
			if err != nil {
				return nil, fmt.Errorf("requires_all.requirements[%d].%w", i, err)
			}
			r.Children = append(r.Children, c)
		}
		if len(r.Children) < 2 {
			return nil, errors.New("requires_all.requirements: at least two are required")
		}
		return r, nil
	case *jwt_authnv3pb.JwtRequirement_AllowMissing:
		return &Requirement{Kind: AllowMissing, Providers: siblings}, nil
	case *jwt_authnv3pb.JwtRequirement_AllowMissingOrFailed:
		return &Requirement{Kind: AllowMissingOrFailed, Providers: siblings}, nil
	}
	return nil, fmt.Errorf("requires_type: %T is not supported", m.GetRequiresType())
}

// any puts the one alternative that forgives missing tokens last; it looks at
// the tokens of the providers beside it.
func (b *builder) any(ms []*jwt_authnv3pb.JwtRequirement, depth int) (*Requirement, error) {
	r := &Requirement{Kind: RequireAny}
	var forgiving *jwt_authnv3pb.JwtRequirement
	var used []int
	for i, m := range ms {
		if m.GetAllowMissing() != nil || m.GetAllowMissingOrFailed() != nil {
			if forgiving == nil || forgiving.GetAllowMissing() != nil {
				forgiving = m
			}
			continue
		}
		c, err := b.requirement(m, nil, depth+1)
		if err != nil {
			return nil, fmt.Errorf("requires_any.requirements[%d].%w", i, err)
		}
		if c.Kind == RequireProvider {
			used = append(used, c.Providers...)
		}
		r.Children = append(r.Children, c)
	}
	if forgiving != nil {
		c, err := b.requirement(forgiving, used, depth+1)
		if err != nil {
			return nil, err
		}
		r.Children = append(r.Children, c)
	}
	if len(r.Children) == 0 {
		return nil, errors.New("requires_any.requirements: must not be empty")
	}
	return r, nil
}

func (b *builder) rule(m *jwt_authnv3pb.RequirementRule) (Rule, error) {
	match, err := decodeMatch(m.GetMatch())
	if err != nil {
		return Rule{}, fmt.Errorf("match.%w", err)
	}
	r := Rule{Match: match}
	switch x := m.GetRequirementType().(type) {
	case nil:
	case *jwt_authnv3pb.RequirementRule_Requires:
		if r.Requires, err = b.requirement(x.Requires, nil, 0); err != nil {
			return r, fmt.Errorf("requires.%w", err)
		}
	case *jwt_authnv3pb.RequirementRule_RequirementName:
		named, known := b.c.Named[x.RequirementName]
		if !known {
			return r, fmt.Errorf("requirement_name: no requirement is called %q", x.RequirementName)
		}
		r.Requires = named
	default:
		return r, fmt.Errorf("requirement_type: %T is not supported", x)
	}
	return r, nil
}

func decodeMatch(m *routev3pb.RouteMatch) (Match, error) {
	out := Match{NoCase: m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue()}
	var err error
	switch x := m.GetPathSpecifier().(type) {
	case *routev3pb.RouteMatch_Prefix:
		out.Kind, out.Text = MatchPrefix, x.Prefix
	case *routev3pb.RouteMatch_Path:
		out.Kind, out.Text = MatchPath, x.Path
	case *routev3pb.RouteMatch_PathSeparatedPrefix:
		out.Kind, out.Text = MatchSeparatedPrefix, x.PathSeparatedPrefix
	case *routev3pb.RouteMatch_ConnectMatcher_:
		out.Kind = MatchConnect
	case *routev3pb.RouteMatch_SafeRegex:
		out.Kind = MatchRegex
		if out.Regex, err = matcher.RegexFromProto(x.SafeRegex); err != nil {
			return out, fmt.Errorf("safe_regex: %w", err)
		}
	case *routev3pb.RouteMatch_PathMatchPolicy:
		out.Kind = MatchTemplate
		if out.Template, err = matcher.URITemplateFromProto(x.PathMatchPolicy); err != nil {
			return out, fmt.Errorf("path_match_policy: %w", err)
		}
	default:
		return out, fmt.Errorf("path_specifier: %T is not supported", x)
	}
	if m.GetRuntimeFraction() != nil || m.GetGrpc() != nil || m.GetTlsContext() != nil || len(m.GetDynamicMetadata()) > 0 || len(m.GetFilterState()) > 0 || len(m.GetCookies()) > 0 {
		return out, errors.New("only path, headers and query parameters are supported")
	}
	if out.Headers, err = matcher.HeadersFromProto(m.GetHeaders()); err != nil {
		return out, fmt.Errorf("headers%w", err)
	}
	if out.Query, err = matcher.QueryParametersFromProto(m.GetQueryParameters()); err != nil {
		return out, fmt.Errorf("query_parameters%w", err)
	}
	return out, nil
}
