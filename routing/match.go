package routing

import (
	"strconv"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Match selects the route for s: virtual host by :authority, then the first
// route whose match holds, then the weighted cluster by s.Random. It returns
// nil if nothing matches. It reads s.Request and s.Info and changes nothing.
func (t *Table) Match(s *filters.Stream) *Route {
	vh := t.hosts.find(s.Request.Get(message.Authority), t.config.IgnorePortInHost)
	if vh == nil {
		return nil
	}
	if vh.wantsTLS(s) {
		return vh.secure
	}
	q := makeRequest(s)
	if e := vh.find(&q); e != nil {
		return e.pick(s)
	}
	return nil
}

// VirtualHost returns the virtual host that the authority of s belongs to, nil
// if there is none: what Match looked for routes in.
func (t *Table) VirtualHost(s *filters.Stream) *xdsresource.VirtualHost {
	if vh := t.hosts.find(s.Request.Get(message.Authority), t.config.IgnorePortInHost); vh != nil {
		return vh.spec
	}
	return nil
}

// wantsTLS reports whether require_tls redirects s.
func (vh *virtualHost) wantsTLS(s *filters.Stream) bool {
	return vh.tls != xdsresource.TLSNone && !isSecure(&s.Request) &&
		(vh.tls == xdsresource.TLSAll || s.Request.Get("x-envoy-internal") != "true")
}

// isSecure reports whether the client spoke https, as x-forwarded-proto says,
// which HCM has set or checked.
func isSecure(h *message.Header) bool {
	p, ok := h.Lookup("x-forwarded-proto")
	if !ok {
		p = h.Get(message.Scheme)
	}
	return p == "https"
}

// request is what routes look at, split once.
type request struct {
	s           *filters.Stream
	path, query string
	hasPath     bool
	connect     bool
}

func makeRequest(s *filters.Stream) request {
	target, ok := s.Request.Lookup(message.Path)
	q := request{s: s, hasPath: ok, connect: s.Request.Get(message.Method) == "CONNECT"}
	if i := strings.IndexAny(target, "?#"); i >= 0 {
		q.path = target[:i]
		_, q.query, _ = strings.Cut(target, "?")
	} else {
		q.path = target
	}
	return q
}

// find returns the first entry that matches.
func (vh *virtualHost) find(q *request) *entry {
	if vh.index != nil && q.hasPath {
		return vh.index.find(vh.routes, q)
	}
	for i := range vh.routes {
		if vh.routes[i].match.matches(q) {
			return &vh.routes[i]
		}
	}
	return nil
}

// pick returns the entry's route, or the weighted one that s.Random falls on.
func (e *entry) pick(s *filters.Stream) *Route {
	if len(e.weighted) == 0 {
		return e.route
	}
	random := s.Random
	if e.header != "" {
		if n, err := strconv.ParseUint(s.Request.Get(e.header), 10, 64); err == nil {
			random = n
		}
	}
	at := random % e.total
	for i, end := range e.upTo {
		if at < end {
			return e.weighted[i]
		}
	}
	return e.weighted[len(e.weighted)-1]
}

// routeMatch is a compiled RouteMatch.
type routeMatch struct {
	spec *xdsresource.RouteMatch
	// always means that the path decides alone.
	always bool
	// fraction is the runtime fraction in millionths; negative is always.
	fraction int64
}

const million = 1_000_000

func compileMatch(m *xdsresource.RouteMatch) routeMatch {
	c := routeMatch{spec: m, fraction: -1}
	if m.RuntimeFraction >= 0 {
		c.fraction = int64(m.RuntimeFraction*million + 0.5)
	}
	c.always = c.fraction < 0 && !m.GRPC && len(m.Headers)+len(m.Query)+len(m.Cookies)+len(m.DynamicMetadata)+len(m.FilterState) == 0 &&
		m.TLSPresented == nil && m.TLSValidated == nil
	return c
}

// matches reports whether path and conditions hold.
func (m *routeMatch) matches(q *request) bool {
	return m.matchesPath(q) && (m.always || m.conditions(q))
}

func (m *routeMatch) matchesPath(q *request) bool {
	if m.spec.Kind == xdsresource.PathConnect {
		return q.connect
	}
	if !q.hasPath {
		return false
	}
	path, want := q.path, m.spec.Path
	switch m.spec.Kind {
	case xdsresource.PathPrefix:
		return len(path) >= len(want) && m.equal(path[:len(want)], want)
	case xdsresource.PathExact:
		return m.equal(path, want)
	case xdsresource.PathSeparatedPrefix:
		return len(path) >= len(want) && m.equal(path[:len(want)], want) && (len(path) == len(want) || path[len(want)] == '/')
	case xdsresource.PathRegex:
		return m.spec.Regex != nil && m.spec.Regex.Match(path)
	case xdsresource.PathTemplate:
		return m.spec.Template != nil && m.spec.Template.Match(path)
	case xdsresource.PathConnect: // above
	}
	return false
}

// equal compares, ignoring ASCII case if configured.
func (m *routeMatch) equal(a, b string) bool {
	if !m.spec.IgnoreCase || a == b {
		return a == b
	}
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// condition names one condition of a match beside the path; the zero condition
// is none. n is its place among those of its kind.
type condition struct {
	kind conditionKind
	n    int
}

type conditionKind uint8

const (
	noCondition conditionKind = iota
	fractionCondition
	grpcCondition
	headerCondition
	queryCondition
	cookieCondition
	certificateCondition
	metadataCondition
	filterStateCondition
)

// conditions reports whether everything but the path holds.
func (m *routeMatch) conditions(q *request) bool { return m.failing(q).kind == noCondition }

// failing returns the first condition beside the path that does not hold.
func (m *routeMatch) failing(q *request) condition {
	spec, s := m.spec, q.s
	if m.fraction >= 0 && int64(s.Random%million) >= m.fraction {
		return condition{fractionCondition, 0}
	}
	if spec.GRPC && !isGRPC(s.Request.Get("content-type")) {
		return condition{grpcCondition, 0}
	}
	for i := range spec.Headers {
		if !spec.Headers[i].Match(&s.Request) {
			return condition{headerCondition, i}
		}
	}
	for i := range spec.Query {
		if !spec.Query[i].Match(q.query) {
			return condition{queryCondition, i}
		}
	}
	for i := range spec.Cookies {
		v, ok := cookie(&s.Request, spec.Cookies[i].Name)
		if !spec.Cookies[i].MatchCookie(v, ok) {
			return condition{cookieCondition, i}
		}
	}
	if spec.TLSPresented != nil || spec.TLSValidated != nil {
		// A certificate is presented only if it was validated: the handshake
		// fails otherwise.
		has := s.Info.Conn != nil && s.Info.Conn.TLS != nil && s.Info.Conn.TLS.Peer.Present()
		if spec.TLSPresented != nil && *spec.TLSPresented != has || spec.TLSValidated != nil && *spec.TLSValidated != has {
			return condition{certificateCondition, 0}
		}
	}
	for i := range spec.DynamicMetadata {
		if !spec.DynamicMetadata[i].Match(&s.Info.Metadata) {
			return condition{metadataCondition, i}
		}
	}
	for i := range spec.FilterState {
		if !spec.FilterState[i].Match(&s.Info.FilterState) {
			return condition{filterStateCondition, i}
		}
	}
	return condition{}
}

func isGRPC(ct string) bool {
	const name = "application/grpc"
	return strings.HasPrefix(ct, name) && (len(ct) == len(name) || ct[len(name)] == '+')
}

// cookie returns the first cookie called name, without quotes around it.
func cookie(h *message.Header, name string) (string, bool) {
	for i := range h.Len() {
		f := h.At(i)
		if f.Name != "cookie" {
			continue
		}
		for rest := f.Value; rest != ""; {
			var kv string
			kv, rest, _ = strings.Cut(rest, ";")
			k, v, ok := strings.Cut(strings.Trim(kv, " \t"), "=")
			if ok && k == name {
				if n := len(v); n >= 2 && v[0] == '"' && v[n-1] == '"' {
					v = v[1 : n-1]
				}
				return v, true
			}
		}
	}
	return "", false
}
