// Package routing compiles route configurations into tables and matches
// requests against them. It does no I/O and holds no locks.
package routing

import (
	"errors"
	"fmt"
	"math"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/ratelimit"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// ChainBuilder compiles the HTTP filter chain for a route. overrides are the
// typed_per_filter_config maps from the least specific (route configuration) to
// the most specific (weighted cluster); nil maps are allowed. Equal inputs give
// the same slice (interned).
type ChainBuilder func(overrides []xdsresource.Overrides) ([]filters.HTTPFilter, error)

// Options are what Compile needs besides the configuration.
type Options struct {
	// Chain may be nil in tests: routes then have no filters.
	Chain ChainBuilder
}

// Table is an immutable, compiled RouteConfiguration.
type Table struct {
	config *xdsresource.RouteConfiguration
	hosts  hostIndex
}

// Config returns what t was compiled from.
func (t *Table) Config() *xdsresource.RouteConfiguration { return t.config }

// InternalOnlyHeaders returns the headers that HCM removes from requests of
// external clients.
func (t *Table) InternalOnlyHeaders() []string { return t.config.InternalOnlyHeaders }

// Compile builds the table for rc. It never fails as a whole: what can't be
// compiled answers 500 where it matches and is reported in the errors, which
// name virtual host and route.
func Compile(rc *xdsresource.RouteConfiguration, o Options) (*Table, []error) {
	c := compiler{rc: rc, chain: o.Chain}
	if c.chain == nil {
		c.chain = func([]xdsresource.Overrides) ([]filters.HTTPFilter, error) { return nil, nil }
	}
	t := &Table{config: rc}
	c.rcRequest = CompileMutations(&rc.RequestHeaders)
	c.rcResponse = CompileMutations(&rc.ResponseHeaders)
	for _, spec := range rc.VirtualHosts {
		vh := c.virtualHost(spec)
		for _, d := range spec.Domains {
			if err := t.hosts.add(d, vh); err != nil {
				c.errs = append(c.errs, fmt.Errorf("route configuration %s: virtual host %s: %w", rc.Name, spec.Name, err))
			}
		}
	}
	t.hosts.finish()
	return t, c.errs
}

// compiler holds what is common to the routes of one table.
type compiler struct {
	rc                    *xdsresource.RouteConfiguration
	chain                 ChainBuilder
	rcRequest, rcResponse *Mutations
	errs                  []error
}

func (c *compiler) fail(vh *xdsresource.VirtualHost, what string, err error) {
	c.errs = append(c.errs, fmt.Errorf("route configuration %s: virtual host %s: %s: %w", c.rc.Name, vh.Name, what, err))
}

// virtualHost is one compiled virtual host.
type virtualHost struct {
	spec   *xdsresource.VirtualHost
	tls    xdsresource.TLSRequirement
	secure *Route // answers the redirect to https; nil unless tls is set
	routes []entry
	index  *routeIndex // nil if routes are scanned
}

// entry is one route with its choices.
type entry struct {
	match routeMatch
	// route is the choice if there are no weighted clusters.
	route    *Route
	weighted []*Route
	// upTo[i] is the sum of the weights of weighted[:i+1].
	upTo   []uint64
	total  uint64
	header string // random_value_header
}

func (c *compiler) virtualHost(spec *xdsresource.VirtualHost) *virtualHost {
	vh := &virtualHost{spec: spec, tls: spec.RequireTLS, routes: make([]entry, len(spec.Routes))}
	parent := levels{
		request:  [...]*Mutations{nil, nil, CompileMutations(&spec.RequestHeaders), c.rcRequest},
		response: [...]*Mutations{nil, nil, CompileMutations(&spec.ResponseHeaders), c.rcResponse},
	}
	if spec.RequireTLS != xdsresource.TLSNone {
		vh.secure = c.secureRedirect(spec)
	}
	for i, r := range spec.Routes {
		vh.routes[i] = c.route(spec, r, i, parent)
	}
	vh.index = indexRoutes(vh.routes)
	return vh
}

// levels are header edits from the most specific to the least: weighted
// cluster, route, virtual host, route configuration.
type levels struct{ request, response [4]*Mutations }

func (c *compiler) route(vh *xdsresource.VirtualHost, spec *xdsresource.Route, i int, l levels) entry {
	what := fmt.Sprintf("routes[%d] %s", i, spec.Name)
	l.request[1], l.response[1] = CompileMutations(&spec.RequestHeaders), CompileMutations(&spec.ResponseHeaders)
	e := entry{match: compileMatch(&spec.Match)}
	a := spec.Action
	if spec.Broken != "" {
		c.fail(vh, what, errors.New(spec.Broken))
	} else if a != nil && len(a.Weighted) > 0 {
		if err := c.weighted(&e, vh, spec, l); err != nil {
			c.fail(vh, what, err)
			e.weighted = nil
			e.route = c.brokenRoute(vh, spec, l)
		}
		return e
	}
	r := &Route{Config: spec, VirtualHost: vh, name: spec.Name}
	if a != nil {
		r.cluster, r.clusterHeader = a.Cluster, a.ClusterHeader
	}
	if err := c.finish(r, l, nil); err != nil {
		c.fail(vh, what, err)
	}
	e.route = r
	return e
}

func (c *compiler) brokenRoute(vh *xdsresource.VirtualHost, spec *xdsresource.Route, l levels) *Route {
	r := &Route{Config: spec, VirtualHost: vh, name: spec.Name}
	r.levels(l, c.rc.MostSpecificHeaderMutationsWins)
	r.chain = []filters.HTTPFilter{brokenTerminal}
	return r
}

func (c *compiler) weighted(e *entry, vh *xdsresource.VirtualHost, spec *xdsresource.Route, l levels) error {
	a := spec.Action
	e.header = a.WeightedRandomHeader
	for i := range a.Weighted {
		w := &a.Weighted[i]
		l.request[0], l.response[0] = CompileMutations(&w.RequestHeaders), CompileMutations(&w.ResponseHeaders)
		r := &Route{
			Config: spec, VirtualHost: vh, Weighted: w, name: spec.Name, cluster: w.Name, clusterHeader: w.ClusterHeader,
		}
		if err := c.finish(r, l, w.Overrides); err != nil {
			c.fail(vh, "route "+spec.Name+": weighted cluster "+w.Name, err)
		}
		e.total += uint64(w.Weight)
		e.weighted, e.upTo = append(e.weighted, r), append(e.upTo, e.total)
	}
	if e.total == 0 {
		return errors.New("weighted_clusters: the sum of weights is 0")
	}
	return nil
}

// finish compiles the chain of r. If that fails, or if the route can't be
// executed, r answers by itself.
func (c *compiler) finish(r *Route, l levels, weighted xdsresource.Overrides) error {
	r.levels(l, c.rc.MostSpecificHeaderMutationsWins)
	r.bufferLimit = bufferLimit(&r.Config.BufferLimit, &r.VirtualHost.BufferLimit)
	r.retry, r.mirrors = r.VirtualHost.RetryPolicy, r.VirtualHost.RequestMirrors
	if a := r.Config.Action; a != nil {
		if a.Retry != nil {
			r.retry = a.Retry
		}
		if len(a.Mirrors) > 0 {
			r.mirrors = a.Mirrors
		}
		if len(a.RateLimits)+len(r.VirtualHost.RateLimits) > 0 {
			r.limits = &ratelimit.Policy{Route: a.RateLimits, VirtualHost: r.VirtualHost.RateLimits, IncludeVirtualHost: a.IncludeVirtualHostLimits}
		}
	}
	chain, err := c.chain([]xdsresource.Overrides{c.rc.Overrides, r.VirtualHost.Overrides, r.Config.Overrides, weighted})
	if err != nil {
		r.chain = []filters.HTTPFilter{brokenTerminal}
		return err
	}
	switch {
	case r.Config.Broken != "":
		chain = withTerminal(chain, brokenTerminal)
	case r.Config.NonForwarding:
		chain = withTerminal(chain, nonForwardingTerminal)
	}
	r.chain = chain
	return nil
}

// bufferLimit picks the limit as Envoy does: request_body_buffer_limit before
// the older field, wherever it stands; then the route's before the virtual
// host's. It is negative if none is set.
func bufferLimit(route, vh *xdsresource.BufferLimit) int {
	for _, n := range [...]*uint64{route.Body, vh.Body, route.PerRequest, vh.PerRequest} {
		if n != nil {
			return int(min(*n, math.MaxInt))
		}
	}
	return -1
}

// secureRedirect returns the route that redirects to https. As in Envoy, it
// carries no per-route configuration.
func (c *compiler) secureRedirect(vh *xdsresource.VirtualHost) *Route {
	r := &Route{
		Config:      &xdsresource.Route{Redirect: &xdsresource.Redirect{HTTPS: true, Status: 301}},
		VirtualHost: vh, secure: true,
	}
	chain, err := c.chain(nil)
	if err != nil {
		c.fail(vh, "require_tls", err)
		chain = []filters.HTTPFilter{brokenTerminal}
	}
	r.chain = chain
	return r
}

// withTerminal returns chain with its last filter, the router, replaced, so
// that filters with an eye on every stream still see it.
func withTerminal(chain []filters.HTTPFilter, last filters.HTTPFilter) []filters.HTTPFilter {
	if len(chain) == 0 {
		return []filters.HTTPFilter{last}
	}
	out := make([]filters.HTTPFilter, len(chain))
	copy(out, chain)
	out[len(out)-1] = last
	return out
}

// answer is a terminal filter that answers a fixed status.
type answer struct {
	status  int
	details string
}

var (
	brokenTerminal        = &answer{500, "route_not_executable"}
	nonForwardingTerminal = &answer{404, "route_not_forwarding"}
)

// Explain says what Do answers.
func (a *answer) Explain(*filters.Stream) filters.Explanation {
	return filters.Explanation{Verdict: filters.VerdictDeny, Status: a.status, Details: a.details}
}

// Do implements filters.HTTPFilter.
func (a *answer) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	return s.LocalReply(a.status, "", a.details, 0), nil
}
