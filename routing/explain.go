package routing

import (
	"fmt"
	"strconv"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/explain"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Explain says how Match comes to the route that it selects for s, and why the
// routes before it do not match. It evaluates the same compiled conditions.
func (t *Table) Explain(s *filters.Stream) *explain.Routing {
	out := &explain.Routing{Table: t.config.Name}
	authority := s.Request.Get(message.Authority)
	vh := t.hosts.find(authority, t.config.IgnorePortInHost)
	if vh == nil {
		return out
	}
	out.VirtualHost, out.Domain = vh.spec.Name, t.hosts.domain(vh, authority, t.config.IgnorePortInHost)
	if vh.wantsTLS(s) {
		out.Route = &explain.Route{Index: -1, Match: "require_tls"}
		return out
	}
	q := makeRequest(s)
	chosen := vh.find(&q)
	for i := range vh.routes {
		e := &vh.routes[i]
		spec := vh.spec.Routes[i]
		if e == chosen {
			out.Route = e.explain(i, spec, s)
			return out
		}
		out.Rejected = append(out.Rejected, explain.RejectedRoute{Index: i, Name: spec.Name, Match: describePath(&spec.Match), Reason: e.match.explain(&q)})
	}
	return out
}

// domain returns the pattern by which vh was found.
func (x *hostIndex) domain(vh *virtualHost, authority string, ignorePort bool) string {
	for _, d := range vh.spec.Domains {
		one := hostIndex{}
		if one.add(d, vh) != nil {
			continue
		}
		one.finish()
		if d != "*" && one.find(authority, ignorePort) != nil {
			return d
		}
	}
	return "*"
}

func (e *entry) explain(i int, spec *xdsresource.Route, s *filters.Stream) *explain.Route {
	r := e.pick(s)
	out := &explain.Route{Index: i, Name: spec.Name, Match: describePath(&spec.Match), Cluster: r.Cluster(s), Broken: spec.Broken}
	for _, w := range e.weighted {
		out.Weighted = append(out.Weighted, explain.Choice{Cluster: w.Cluster(s), Weight: uint64(w.Weighted.Weight), Chosen: w == r})
	}
	return out
}

// explain says why m does not match q, "" if it does.
func (m *routeMatch) explain(q *request) string {
	if !m.matchesPath(q) {
		switch {
		case m.spec.Kind == xdsresource.PathConnect:
			return "the method is not CONNECT"
		case !q.hasPath:
			return "the request has no path"
		}
		return "path " + strconv.Quote(q.path) + " does not match " + describePath(m.spec)
	}
	if m.always {
		return ""
	}
	return m.describe(m.failing(q), q)
}

func (m *routeMatch) describe(c condition, q *request) string {
	spec, s := m.spec, q.s
	switch c.kind {
	case noCondition:
		return ""
	case fractionCondition:
		return fmt.Sprintf("runtime_fraction: only %g %% of requests match, and this one is drawn out", float64(m.fraction)/million*100)
	case grpcCondition:
		return fmt.Sprintf("not gRPC: content-type is %q", s.Request.Get("content-type"))
	case headerCondition:
		h := &spec.Headers[c.n]
		v, ok := s.Request.Joined(h.Name)
		return "wants " + h.Describe() + ", has " + have(v, ok)
	case queryCondition:
		return "wants " + spec.Query[c.n].Describe() + ", the query is " + strconv.Quote(q.query)
	case cookieCondition:
		return fmt.Sprintf("wants cookie %q: %s", spec.Cookies[c.n].Name, spec.Cookies[c.n].DescribeValue())
	case certificateCondition:
		return "tls_context: a client certificate is wanted and missing, or the other way round"
	case metadataCondition:
		return "wants " + spec.DynamicMetadata[c.n].Describe()
	case filterStateCondition:
		return "wants " + spec.FilterState[c.n].Describe()
	}
	return "does not match"
}

func have(v string, ok bool) string {
	if !ok {
		return "none"
	}
	return strconv.Quote(v)
}

// describePath returns the path part of a match in words.
func describePath(m *xdsresource.RouteMatch) string {
	fold := ""
	if m.IgnoreCase {
		fold = " (ignoring case)"
	}
	q := strconv.Quote(m.Path) + fold
	switch m.Kind {
	case xdsresource.PathPrefix:
		return "prefix " + q
	case xdsresource.PathExact:
		return "path " + q
	case xdsresource.PathRegex:
		return "regex " + q
	case xdsresource.PathSeparatedPrefix:
		return "path-separated prefix " + q
	case xdsresource.PathConnect:
		return "CONNECT"
	case xdsresource.PathTemplate:
		return "template " + q
	}
	return q
}
