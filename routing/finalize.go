package routing

import (
	"strings"
	"sync"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Headers that tell what a request looked like before it was rewritten.
const (
	originalPath = "x-envoy-original-path"
	originalHost = "x-envoy-original-host"
)

// Mutations are the compiled header edits of one level: removals first, then,
// with values computed before any of them takes effect, overwrites, then
// additions; that is Envoy's order. Values that are empty are left out unless
// keep_empty_value is set. A nil *Mutations does nothing. It is immutable and
// safe for concurrent use.
type Mutations struct {
	remove []string
	add    []mutation
	// dynamic is set if a value refers to the stream.
	dynamic bool
}

type mutation struct {
	name      string
	value     *format.String
	action    xdsresource.AppendAction
	keepEmpty bool
}

// CompileMutations compiles m; it returns nil if there is nothing to do.
func CompileMutations(m *xdsresource.HeaderMutations) *Mutations {
	if len(m.Add)+len(m.Remove) == 0 {
		return nil
	}
	c := &Mutations{}
	for _, n := range m.Remove {
		c.remove = append(c.remove, headerName(n))
	}
	for i := range m.Add {
		a := &m.Add[i]
		if _, isConst := a.Value.Constant(); !isConst {
			c.dynamic = true
		}
		c.add = append(c.add, mutation{headerName(a.Name), a.Value, a.Action, a.KeepEmpty})
	}
	return c
}

func headerName(n string) string {
	if n = strings.ToLower(n); n == "host" {
		return message.Authority
	}
	return n
}

// edit is the outcome of one mutation.
type edit struct {
	value string
	skip  bool
}

const maxInline = 16

// Apply edits h; c may be nil if no value refers to the stream. c is passed to
// functions: one that is not pooled costs its caller an allocation.
func (m *Mutations) Apply(h *message.Header, c *format.Context) {
	if m == nil {
		return
	}
	for _, n := range m.remove {
		h.Del(n)
	}
	var inline [maxInline]edit
	edits := inline[:0]
	if len(m.add) > maxInline {
		edits = make([]edit, 0, len(m.add))
	}
	for i := range m.add {
		a := &m.add[i]
		v := a.value.Intern(h, c)
		edits = append(edits, edit{v, v == "" && !a.keepEmpty ||
			a.action == xdsresource.AddIfAbsent && h.Has(a.name) ||
			a.action == xdsresource.OverwriteIfExists && !h.Has(a.name)})
	}
	for i := range m.add {
		a := &m.add[i]
		if !edits[i].skip && (a.action == xdsresource.OverwriteIfExistsOrAdd || a.action == xdsresource.OverwriteIfExists) {
			h.Set(a.name, edits[i].value)
		}
	}
	for i := range m.add {
		a := &m.add[i]
		if edits[i].skip || a.action != xdsresource.AppendIfExistsOrAdd && a.action != xdsresource.AddIfAbsent {
			continue
		}
		if strings.HasPrefix(a.name, ":") {
			h.Set(a.name, edits[i].value) // there is one of each
		} else {
			h.Add(a.name, edits[i].value)
		}
	}
}

// contexts holds format contexts: operators are called through functions, so
// one on the stack would escape.
var contexts = sync.Pool{New: func() any { return new(format.Context) }}

// applyAll runs the levels of edits on h.
func applyAll(levels []*Mutations, h *message.Header, s *filters.Stream, resp *message.Header) {
	var c *format.Context
	for _, m := range levels {
		if m.dynamic && c == nil {
			c, _ = contexts.Get().(*format.Context)
			*c = format.Context{Info: &s.Info, Request: &s.Request, Response: resp}
		}
		m.Apply(h, c)
	}
	if c != nil {
		*c = format.Context{}
		contexts.Put(c)
	}
}

// FinalizeRequest applies path, host and header rewrites of route configuration,
// virtual host, route and weighted cluster to s.Request, in Envoy's order, and
// sets x-envoy-original-path and x-envoy-original-host when it rewrites path
// and host (unless suppressed). An automatic host rewrite is left to whoever
// picks the host; see RewriteHost.
//
// It reports false, and the request must not go on, if the rewrite made dot
// segments that the client's path has not: of "/pub../admin" by prefix "/pub" to
// "/" it would make "/../admin", which no policy has seen. Envoy sends it.
func (r *Route) FinalizeRequest(s *filters.Stream, suppressEnvoyHeaders bool) (ok bool) {
	applyAll(r.request, &s.Request, s, nil)
	if r.Weighted != nil && r.Weighted.HostRewrite != "" {
		s.Request.Set(message.Authority, r.Weighted.HostRewrite)
	}
	a := r.Config.Action
	if a == nil {
		return true
	}
	r.rewriteHost(s, a, suppressEnvoyHeaders)
	return r.rewritePath(s, a, suppressEnvoyHeaders)
}

// FinalizeResponse applies the response header edits of weighted cluster,
// route, virtual host and route configuration.
func (r *Route) FinalizeResponse(s *filters.Stream, resp *filters.Response) {
	applyAll(r.response, &resp.Header, s, &resp.Header)
}

func (r *Route) rewriteHost(s *filters.Stream, a *xdsresource.RouteAction, suppress bool) {
	w := &a.HostRewrite
	var host string
	switch {
	case w.Literal != "":
		host = w.Literal
	case w.Header != "":
		host = s.Request.Get(w.Header)
	case w.PathRegex != nil:
		path, _ := splitTarget(s.Request.Get(message.Path))
		host, _ = w.PathRegex.Pattern.Replace(path)
	}
	if host != "" {
		r.RewriteHost(s, host, suppress)
	}
}

// AutoHostRewrite reports whether the authority is to become the name of the
// host that is picked.
func (r *Route) AutoHostRewrite() bool {
	return r.Config.Action != nil && r.Config.Action.HostRewrite.Auto
}

// RewriteHost sets the authority of s to host, keeping the old one in
// x-forwarded-host (append_x_forwarded_host) and, unless suppressed, in
// x-envoy-original-host.
func (r *Route) RewriteHost(s *filters.Stream, host string, suppressEnvoyHeaders bool) {
	h := &s.Request
	old := h.Get(message.Authority)
	if r.Config.Action != nil && r.Config.Action.AppendXForwardedHost && old != "" {
		appendForwardedHost(h, old)
	}
	if !suppressEnvoyHeaders {
		h.Set(originalHost, old)
	}
	h.Set(message.Authority, host)
}

// appendForwardedHost appends host unless it is the last one already.
func appendForwardedHost(h *message.Header, host string) {
	v := h.Get("x-forwarded-host")
	if v == "" {
		h.Set("x-forwarded-host", host)
		return
	}
	last := v[strings.LastIndexByte(v, ',')+1:]
	if last != host {
		h.Set("x-forwarded-host", v+","+host)
	}
}

// rewritePath applies at most one rewrite to the path; the query stays. See
// FinalizeRequest for what it reports.
func (r *Route) rewritePath(s *filters.Stream, a *xdsresource.RouteAction, suppress bool) bool {
	h := &s.Request
	if a.PrefixRewrite == "" && a.RegexRewrite == nil && a.PathTemplateRewrite == nil && a.PathRewriteFormat == nil {
		return true
	}
	target, ok := h.Lookup(message.Path)
	if !ok {
		return true
	}
	path, rest := splitTarget(target)
	var buf [256]byte
	b := buf[:0]
	switch {
	case a.PrefixRewrite != "":
		n := min(r.matchedLen(path), len(path))
		b = append(append(b, a.PrefixRewrite...), target[n:]...)
	case a.RegexRewrite != nil:
		p, _ := a.RegexRewrite.Pattern.Replace(path)
		b = append(append(b, p...), rest...)
	case a.PathTemplateRewrite != nil:
		p, ok := a.PathTemplateRewrite.Rewrite(path)
		if !ok {
			p = path
		}
		b = append(append(b, p...), rest...)
	default:
		c, _ := contexts.Get().(*format.Context)
		*c = format.Context{Info: &s.Info, Request: h}
		p := a.PathRewriteFormat.Intern(h, c)
		contexts.Put(c)
		if p == "" {
			return true
		}
		b = append(append(b, p...), rest...)
	}
	if !suppress {
		h.Set(originalPath, target)
	}
	rewritten := h.Intern(b)
	h.Set(message.Path, rewritten)
	return !dotted(rewritten) || dotted(target)
}

// dotted reports whether the path of a target has a segment "." or "..".
func dotted(target string) bool {
	for i := 0; ; {
		n := strings.Index(target[i:], "/.")
		if n < 0 {
			return false
		}
		i += n + len("/.")
		if strings.ContainsAny(target[:i], "?#") {
			return false
		}
		rest := strings.TrimPrefix(target[i:], ".")
		if rest == "" || strings.IndexByte("/?#", rest[0]) >= 0 {
			return true
		}
	}
}

// splitTarget splits a request target into path and what follows, query or
// fragment with their mark.
func splitTarget(target string) (path, rest string) {
	if i := strings.IndexAny(target, "?#"); i >= 0 {
		return target[:i], target[i:]
	}
	return target, ""
}

// matchedLen returns how much of path the route's match stands for: the prefix,
// or all of it.
func (r *Route) matchedLen(path string) int {
	switch m := &r.Config.Match; m.Kind {
	case xdsresource.PathPrefix, xdsresource.PathSeparatedPrefix, xdsresource.PathExact:
		return len(m.Path)
	case xdsresource.PathRegex, xdsresource.PathConnect, xdsresource.PathTemplate:
	}
	return len(path)
}
