package xdsresource

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

const defaultMaxDirectBody = 4096

func (s *scope) routeConfiguration(m *routev3pb.RouteConfiguration) *RouteConfiguration {
	mark := len(s.closed)
	s.classify(m)
	rc := &RouteConfiguration{
		Resource:                        Resource{Name: m.GetName()},
		RequestHeaders:                  s.headerMutations("request_headers", m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove()),
		ResponseHeaders:                 s.headerMutations("response_headers", m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove()),
		MostSpecificHeaderMutationsWins: m.GetMostSpecificHeaderMutationsWins(),
		InternalOnlyHeaders:             lowered(m.GetInternalOnlyHeaders()),
		SkipClusterValidation:           m.GetValidateClusters() != nil && !m.GetValidateClusters().GetValue(),
		IgnorePortInHost:                m.GetIgnorePortInHostMatching(),
		Overrides:                       s.overrides(m.GetTypedPerFilterConfig()),
	}
	mirrors := s.mirrors(m.GetRequestMirrorPolicies())
	broken := s.takeClosed(mark)
	s.maxDirectBody = u32(m.GetMaxDirectResponseBodySizeBytes(), defaultMaxDirectBody)
	domains := map[string]string{}
	for i, vh := range m.GetVirtualHosts() {
		s.pushIndex("virtual_hosts", i)
		v := s.virtualHost(vh)
		for _, d := range v.Domains {
			if other, dup := domains[d]; dup {
				s.errorf("domains", "only unique values for domains are permitted; %q is one of virtual host %q, too", d, other)
			}
			domains[d] = v.Name
		}
		if v.RequestMirrors == nil {
			v.RequestMirrors = mirrors
		}
		v.breakBecause(broken)
		rc.VirtualHosts = append(rc.VirtualHosts, v)
		s.pop()
	}
	return rc
}

func lowered(in []string) []string {
	return mapEach(in, func(_ int, s string) string { return strings.ToLower(s) })
}

func (s *scope) virtualHost(m *routev3pb.VirtualHost) *VirtualHost {
	mark := len(s.closed)
	s.classify(m)
	v := &VirtualHost{
		Name:                          m.GetName(),
		Domains:                       lowered(m.GetDomains()),
		RequestHeaders:                s.headerMutations("request_headers", m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove()),
		ResponseHeaders:               s.headerMutations("response_headers", m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove()),
		Overrides:                     s.overrides(m.GetTypedPerFilterConfig()),
		IncludeAttemptCount:           m.GetIncludeRequestAttemptCount(),
		IncludeAttemptCountInResponse: m.GetIncludeAttemptCountInResponse(),
		IncludeIsTimeoutRetryHeader:   m.GetIncludeIsTimeoutRetryHeader(),
		RequestMirrors:                s.mirrors(m.GetRequestMirrorPolicies()),
		Metadata:                      s.metadata(m.GetMetadata()),
		BufferLimit:                   bufferLimit(m),
		RateLimits:                    s.rateLimits(m.GetRateLimits()),
	}
	switch m.GetRequireTls() {
	case routev3pb.VirtualHost_NONE:
	case routev3pb.VirtualHost_EXTERNAL_ONLY:
		v.RequireTLS = TLSExternalOnly
	case routev3pb.VirtualHost_ALL:
		v.RequireTLS = TLSAll
	}
	if m.GetRetryPolicy() != nil {
		s.push("retry_policy")
		v.RetryPolicy = s.retryPolicy(m.GetRetryPolicy())
		s.pop()
	}
	broken := s.takeClosed(mark)
	v.Routes = mapEach(m.GetRoutes(), func(i int, r *routev3pb.Route) *Route {
		s.pushIndex("routes", i)
		defer s.pop()
		return s.route(r)
	})
	v.breakBecause(broken)
	return v
}

// breakBecause makes every route of v answer 500, because something that
// applies to all of them can't be executed.
func (v *VirtualHost) breakBecause(reason string) {
	if reason == "" {
		return
	}
	for _, r := range v.Routes {
		r.breakBecause(reason)
	}
}

func (r *Route) breakBecause(reason string) {
	if r.Broken != "" || reason == "" {
		return
	}
	r.Broken = reason
	r.Action, r.Redirect, r.Direct, r.NonForwarding = nil, nil, nil, false
}

// bufferLimit reads the two fields that virtual hosts and routes have.
func bufferLimit(m interface {
	GetRequestBodyBufferLimit() *wrapperspb.UInt64Value
	GetPerRequestBufferLimitBytes() *wrapperspb.UInt32Value
},
) BufferLimit {
	var l BufferLimit
	if v := m.GetRequestBodyBufferLimit(); v != nil {
		n := v.GetValue()
		l.Body = &n
	}
	if v := m.GetPerRequestBufferLimitBytes(); v != nil {
		n := uint64(v.GetValue())
		l.PerRequest = &n
	}
	return l
}

func (s *scope) route(m *routev3pb.Route) *Route {
	mark := len(s.closed)
	s.classify(m)
	r := &Route{
		Name:            m.GetName(),
		RequestHeaders:  s.headerMutations("request_headers", m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove()),
		ResponseHeaders: s.headerMutations("response_headers", m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove()),
		Overrides:       s.overrides(m.GetTypedPerFilterConfig()),
		Metadata:        s.metadata(m.GetMetadata()),
		BufferLimit:     bufferLimit(m),
		Operation:       m.GetDecorator().GetOperation(),
		DecoratorStays:  !boolean(m.GetDecorator().GetPropagate(), true),
	}
	if m.GetTracing() != nil {
		s.push("tracing")
		r.Tracing = s.routeTracing(m.GetTracing())
		s.pop()
	}
	s.push("match")
	r.Match = s.routeMatch(m.GetMatch())
	s.pop()
	switch a := m.GetAction().(type) {
	case *routev3pb.Route_Route:
		s.push("route")
		r.Action = s.routeAction(a.Route, r)
		s.pop()
	case *routev3pb.Route_Redirect:
		s.push("redirect")
		r.Redirect = s.redirect(a.Redirect)
		s.pop()
	case *routev3pb.Route_DirectResponse:
		s.push("direct_response")
		r.Direct = s.directResponse(a.DirectResponse)
		s.pop()
	case *routev3pb.Route_NonForwardingAction:
		r.NonForwarding = true
	}
	r.breakBecause(s.takeClosed(mark))
	return r
}

func (s *scope) routeMatch(m *routev3pb.RouteMatch) RouteMatch {
	out := RouteMatch{
		IgnoreCase:      !boolean(m.GetCaseSensitive(), true),
		GRPC:            m.GetGrpc() != nil,
		RuntimeFraction: s.runtimeFraction(m.GetRuntimeFraction(), -1),
	}
	switch p := m.GetPathSpecifier().(type) {
	case *routev3pb.RouteMatch_Prefix:
		out.Path = p.Prefix
	case *routev3pb.RouteMatch_Path:
		out.Kind, out.Path = PathExact, p.Path
	case *routev3pb.RouteMatch_SafeRegex:
		re, err := matcher.RegexFromProto(p.SafeRegex)
		s.reject("safe_regex", err)
		out.Kind, out.Path, out.Regex = PathRegex, p.SafeRegex.GetRegex(), &re
	case *routev3pb.RouteMatch_PathSeparatedPrefix:
		out.Kind, out.Path = PathSeparatedPrefix, p.PathSeparatedPrefix
	case *routev3pb.RouteMatch_ConnectMatcher_:
		out.Kind = PathConnect
	case *routev3pb.RouteMatch_PathMatchPolicy:
		t, err := matcher.URITemplateFromProto(p.PathMatchPolicy)
		s.matcherErr("path_match_policy", err)
		out.Kind, out.Template = PathTemplate, t
		if t != nil {
			out.Path = t.String()
		}
	default:
		s.unsupported("path_specifier", "%T is not supported", p)
	}
	var err error
	out.Headers, err = matcher.HeadersFromProto(m.GetHeaders())
	s.matcherErr("headers", err)
	out.Query, err = matcher.QueryParametersFromProto(m.GetQueryParameters())
	s.matcherErr("query_parameters", err)
	for i, c := range m.GetCookies() {
		h, err := matcher.CookieFromProto(c)
		s.matcherErr(fmt.Sprintf("cookies[%d]", i), err)
		out.Cookies = append(out.Cookies, h)
	}
	for i, d := range m.GetDynamicMetadata() {
		md, err := matcher.MetadataFromProto(d)
		s.matcherErr(fmt.Sprintf("dynamic_metadata[%d]", i), err)
		out.DynamicMetadata = append(out.DynamicMetadata, md)
	}
	for i, f := range m.GetFilterState() {
		fs, err := matcher.FilterStateFromProto(f)
		s.matcherErr(fmt.Sprintf("filter_state[%d]", i), err)
		out.FilterState = append(out.FilterState, fs)
	}
	if t := m.GetTlsContext(); t != nil {
		if t.GetPresented() != nil {
			v := t.GetPresented().GetValue()
			out.TLSPresented = &v
		}
		if t.GetValidated() != nil {
			v := t.GetValidated().GetValue()
			out.TLSValidated = &v
		}
	}
	return out
}

// overrides decodes typed_per_filter_config. What can't be decoded is Unknown
// in its entry; the filter chain of the route decides what that means.
func (s *scope) overrides(m map[string]*anypb.Any) Overrides {
	if len(m) == 0 {
		return nil
	}
	out := make(Overrides, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		s.pushKey("typed_per_filter_config", name)
		out[name] = s.override(name, m[name])
		s.pop()
	}
	return out
}

func (s *scope) override(name string, a *anypb.Any) Override {
	var fc routev3pb.FilterConfig
	if !s.unpack(a, &fc) {
		return Override{TypedConfig: s.plugin(name, a, overridePlugin)}
	}
	o := Override{Disabled: fc.GetDisabled(), Optional: fc.GetIsOptional()}
	if fc.GetConfig() == nil {
		if !fc.GetDisabled() {
			s.errorf("config", "is missing, and disabled isn't set either")
		}
		o.TypedConfig = TypedConfig{Name: name, TypeURL: a.GetTypeUrl(), Digest: hash(a.GetTypeUrl(), a.GetValue())}
		return o
	}
	o.TypedConfig = s.plugin(name, fc.GetConfig(), overridePlugin)
	return o
}

func (s *scope) redirect(m *routev3pb.RedirectAction) *Redirect {
	r := &Redirect{
		HTTPS:      m.GetHttpsRedirect(),
		Scheme:     strings.ToLower(m.GetSchemeRedirect()),
		Host:       m.GetHostRedirect(),
		Port:       m.GetPortRedirect(),
		Path:       m.GetPathRedirect(),
		Prefix:     m.GetPrefixRewrite(),
		Regex:      s.regexRewrite("regex_rewrite", m.GetRegexRewrite()),
		StripQuery: m.GetStripQuery(),
	}
	switch m.GetResponseCode() {
	case routev3pb.RedirectAction_MOVED_PERMANENTLY:
		r.Status = 301
	case routev3pb.RedirectAction_FOUND:
		r.Status = 302
	case routev3pb.RedirectAction_SEE_OTHER:
		r.Status = 303
	case routev3pb.RedirectAction_TEMPORARY_REDIRECT:
		r.Status = 307
	case routev3pb.RedirectAction_PERMANENT_REDIRECT:
		r.Status = 308
	}
	return r
}

func (s *scope) directResponse(m *routev3pb.DirectResponseAction) *DirectResponse {
	d := &DirectResponse{Status: int(m.GetStatus()), Body: s.data("body", m.GetBody())}
	if uint64(len(d.Body)) > uint64(s.maxDirectBody) {
		s.errorf("body", "response body size is %d bytes; maximum is %d", len(d.Body), s.maxDirectBody)
	}
	if f := m.GetBodyFormat(); f != nil {
		s.push("body_format")
		text, json := s.substitution(f)
		if json != nil {
			s.unsupported("json_format", "is not supported in direct responses")
		}
		d.BodyFormat = text
		s.pop()
	}
	return d
}
