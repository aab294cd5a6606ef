package corpus

import (
	"fmt"
	"net/url"
	"regexp/syntax"
	"slices"
	"strings"
	"testing"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	matcherv3pb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

// request is one to send.
type request struct {
	method, authority, path string
	header                  [][2]string
}

func (r *request) set(name, value string) {
	r.header = slices.DeleteFunc(r.header, func(h [2]string) bool { return h[0] == name })
	r.header = append(r.header, [2]string{name, value})
}

// satisfying is a request that the route's match asks for.
func satisfying(t *testing.T, domain string, r *routev3pb.Route) *request {
	t.Helper()
	m := r.GetMatch()
	q := &request{method: "GET", authority: strings.Replace(domain, "*", "any", 1), path: samplePath(t, m)}
	if domain == "*" {
		q.authority = "corpus.example"
	}
	for _, h := range m.GetHeaders() {
		if h.GetInvertMatch() {
			continue // a header that isn't there is not equal, too
		}
		v := sampleHeader(t, h)
		switch h.GetName() {
		case ":method":
			q.method = v
		case ":authority":
			q.authority = v
		case ":scheme": // is what the door makes it
		default:
			q.set(strings.ToLower(h.GetName()), v)
		}
	}
	vs := url.Values{}
	for _, p := range m.GetQueryParameters() {
		v := "1"
		if s := p.GetStringMatch(); s != nil {
			v = sample(t, s)
		}
		vs.Set(p.GetName(), v)
	}
	if len(vs) > 0 {
		q.path += "?" + vs.Encode()
	}
	if m.GetGrpc() != nil || m.GetRuntimeFraction() != nil || len(m.GetDynamicMetadata()) > 0 || m.GetTlsContext() != nil {
		t.Fatalf("route %s: %v", r.GetName(), m)
	}
	for _, n := range r.GetRequestHeadersToRemove() {
		q.set(n, "to be removed")
	}
	return q
}

// samplePath goes one segment further than a prefix does.
func samplePath(t *testing.T, m *routev3pb.RouteMatch) string {
	t.Helper()
	switch p := m.GetPathSpecifier().(type) {
	case *routev3pb.RouteMatch_Prefix:
		return strings.TrimSuffix(p.Prefix, "/") + "/zz"
	case *routev3pb.RouteMatch_PathSeparatedPrefix:
		return p.PathSeparatedPrefix + "/zz"
	case *routev3pb.RouteMatch_Path:
		return p.Path
	case *routev3pb.RouteMatch_SafeRegex:
		return sampleRegex(t, p.SafeRegex.GetRegex())
	}
	t.Fatalf("path %T", m.GetPathSpecifier())
	return ""
}

func sampleHeader(t *testing.T, h *routev3pb.HeaderMatcher) string {
	t.Helper()
	switch m := h.GetHeaderMatchSpecifier().(type) {
	case *routev3pb.HeaderMatcher_StringMatch:
		return sample(t, m.StringMatch)
	case *routev3pb.HeaderMatcher_PresentMatch:
		return "present"
	}
	t.Fatalf("header %s: %T", h.GetName(), h.GetHeaderMatchSpecifier())
	return ""
}

func sample(t *testing.T, s *matcherv3pb.StringMatcher) string {
	t.Helper()
	switch m := s.GetMatchPattern().(type) {
	case *matcherv3pb.StringMatcher_Exact:
		return m.Exact
	case *matcherv3pb.StringMatcher_Prefix:
		return m.Prefix + "-more"
	case *matcherv3pb.StringMatcher_Suffix:
		return "more-" + m.Suffix
	case *matcherv3pb.StringMatcher_Contains:
		return "a-" + m.Contains + "-z"
	case *matcherv3pb.StringMatcher_SafeRegex:
		return sampleRegex(t, m.SafeRegex.GetRegex())
	}
	t.Fatalf("string matcher %T", s.GetMatchPattern())
	return ""
}

// sampleRegex is a short text that the expression matches as a whole.
func sampleRegex(t *testing.T, re string) string {
	t.Helper()
	p, err := syntax.Parse(re, syntax.Perl)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	emit(t, p, &b)
	if m := compile(t, re); !m.MatchString(b.String()) {
		t.Fatalf("%q is no sample of %q", b.String(), re)
	}
	return b.String()
}

func emit(t *testing.T, p *syntax.Regexp, b *strings.Builder) {
	t.Helper()
	switch p.Op {
	case syntax.OpLiteral:
		b.WriteString(string(p.Rune))
	case syntax.OpCharClass:
		b.WriteRune(p.Rune[0])
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		b.WriteByte('x')
	case syntax.OpPlus, syntax.OpStar, syntax.OpCapture, syntax.OpAlternate:
		emit(t, p.Sub[0], b)
	case syntax.OpConcat:
		for _, s := range p.Sub {
			emit(t, s, b)
		}
	case syntax.OpEmptyMatch, syntax.OpQuest, syntax.OpBeginText, syntax.OpEndText:
	default:
		t.Fatalf("expression with %v", p.Op)
	}
}

// outcome is what the route's own fields say about its request.
type outcome struct {
	status   int
	clusters []*routev3pb.WeightedCluster_ClusterWeight
	mirrors  []string
	// path and host as the origin sees them.
	path, host string
	// request headers at the origin, response headers at the client: "" must
	// not be there, and a leading "+" is one value among others.
	request, response map[string]string
	body              string
	// upgraded is a redirect to HTTPS, before any route.
	upgraded bool
}

// expected needs q as it will be sent: formats may add headers to it.
func (s *scenario) expected(t *testing.T, rc *routev3pb.RouteConfiguration, vh *routev3pb.VirtualHost, r *routev3pb.Route, q *request, scheme string) *outcome {
	t.Helper()
	o := &outcome{status: 200, path: q.path, host: q.authority, request: map[string]string{}, response: map[string]string{}}
	for _, level := range []interface {
		GetRequestHeadersToAdd() []*corev3pb.HeaderValueOption
		GetRequestHeadersToRemove() []string
		GetResponseHeadersToAdd() []*corev3pb.HeaderValueOption
		GetResponseHeadersToRemove() []string
	}{rc, vh, r} {
		edits(o.request, level.GetRequestHeadersToAdd(), level.GetRequestHeadersToRemove(), q)
		edits(o.response, level.GetResponseHeadersToAdd(), level.GetResponseHeadersToRemove(), q)
	}
	if vh.GetRequireTls() == routev3pb.VirtualHost_ALL && scheme == "http" {
		o.upgraded, o.status, o.response["location"] = true, 301, "https://"+q.authority+q.path
		return o
	}
	switch a := r.GetAction().(type) {
	case *routev3pb.Route_DirectResponse:
		o.status, o.body = int(a.DirectResponse.GetStatus()), a.DirectResponse.GetBody().GetInlineString()
	case *routev3pb.Route_Redirect:
		o.redirect(t, r.GetMatch(), a.Redirect, q, scheme)
	case *routev3pb.Route_Route:
		s.forwarded(t, o, r, a.Route, q)
	default:
		t.Fatalf("route %s: action %T", r.GetName(), a)
	}
	return o
}

func edits(want map[string]string, add []*corev3pb.HeaderValueOption, remove []string, q *request) {
	for _, n := range remove {
		want[n] = ""
	}
	for _, h := range add {
		v := h.GetHeader().GetValue()
		if n, ok := strings.CutPrefix(v, "%REQ("); ok {
			n = strings.ToLower(strings.TrimSuffix(n, ")%"))
			v = "value of " + n
			q.set(n, v)
		}
		if h.GetAppendAction() == corev3pb.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD {
			q.set(h.GetHeader().GetKey(), "sent")
			v = "+" + v
		}
		want[h.GetHeader().GetKey()] = v
	}
}

func (o *outcome) redirect(t *testing.T, m *routev3pb.RouteMatch, a *routev3pb.RedirectAction, q *request, scheme string) {
	t.Helper()
	o.status = map[routev3pb.RedirectAction_RedirectResponseCode]int{
		routev3pb.RedirectAction_MOVED_PERMANENTLY: 301, routev3pb.RedirectAction_FOUND: 302, routev3pb.RedirectAction_SEE_OTHER: 303,
		routev3pb.RedirectAction_TEMPORARY_REDIRECT: 307, routev3pb.RedirectAction_PERMANENT_REDIRECT: 308,
	}[a.GetResponseCode()]
	host, path := q.authority, q.path
	if h := a.GetHostRedirect(); h != "" {
		host = h
	}
	if v := a.GetSchemeRedirect(); v != "" {
		scheme = v
	}
	if p := a.GetPortRedirect(); p != 0 {
		host = fmt.Sprintf("%s:%d", host, p)
	}
	if p := a.GetPathRedirect(); p != "" {
		path = p
	} else if p := a.GetPrefixRewrite(); p != "" {
		path = rewritten(t, m, p, path)
	}
	o.response["location"] = scheme + "://" + host + path
}

// rewritten replaces the prefix that m matched.
func rewritten(t *testing.T, m *routev3pb.RouteMatch, by, path string) string {
	t.Helper()
	for _, prefix := range []string{m.GetPathSeparatedPrefix(), m.GetPrefix()} {
		if rest, ok := strings.CutPrefix(path, prefix); ok && prefix != "" {
			return by + rest
		}
	}
	t.Fatalf("%s has no prefix of %v", path, m)
	return ""
}

func (s *scenario) forwarded(t *testing.T, o *outcome, r *routev3pb.Route, a *routev3pb.RouteAction, q *request) {
	t.Helper()
	o.clusters = targets(a)
	for _, c := range o.clusters {
		if s.clusters[c.GetName()] == nil {
			o.status = 503
			if a.GetClusterNotFoundResponseCode() == routev3pb.RouteAction_INTERNAL_SERVER_ERROR {
				o.status = 500
			}
		}
	}
	if h := a.GetHostRewriteLiteral(); h != "" {
		o.host = h
	}
	path, query, _ := strings.Cut(q.path, "?")
	switch {
	case a.GetPrefixRewrite() != "":
		path = rewritten(t, r.GetMatch(), a.GetPrefixRewrite(), path)
	case a.GetRegexRewrite() != nil:
		path = compile(t, a.GetRegexRewrite().GetPattern().GetRegex()).ReplaceAllString(path, strings.ReplaceAll(a.GetRegexRewrite().GetSubstitution(), `\`, `$`))
	}
	if o.path = path; query != "" {
		o.path += "?" + query
	}
	for _, m := range a.GetRequestMirrorPolicies() {
		o.mirrors = append(o.mirrors, m.GetCluster())
	}
	for _, p := range r.GetTypedPerFilterConfig() {
		var f faultv3pb.HTTPFault
		if unpack(t, p, &f) && f.GetAbort() != nil {
			o.status, o.clusters, o.mirrors = int(f.GetAbort().GetHttpStatus()), nil, nil
		}
	}
}

// cors is a request across origins that the route allows, and a preflight.
func cors(t *testing.T, r *routev3pb.Route) (origin string, policy *corsv3pb.CorsPolicy) {
	t.Helper()
	for _, a := range r.GetTypedPerFilterConfig() {
		var p corsv3pb.CorsPolicy
		if unpack(t, a, &p) {
			return sample(t, p.GetAllowOriginStringMatch()[0]), &p
		}
	}
	return "", nil
}

type regex interface {
	MatchString(s string) bool
	ReplaceAllString(s, by string) string
}

func compile(t *testing.T, re string) regex {
	t.Helper()
	m, err := matcher.CompileSafeRegex(re)
	if err != nil {
		t.Fatal(err)
	}
	return m
}
