// Package routing compiles route configurations into tables and matches
// requests against them. It does no I/O and holds no locks.
package routing

import (
	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// ChainBuilder compiles the HTTP filter chain for a route. overrides are the
// typed_per_filter_config maps from the least specific (route configuration) to
// the most specific (weighted cluster); nil maps are allowed. Equal inputs give
// the same slice (interned).
type ChainBuilder func(overrides []xdsresource.Overrides) ([]filters.HTTPFilter, error)

// Options are what Compile needs besides the configuration.
type Options struct {
	Chain ChainBuilder
}

// Table is an immutable, compiled RouteConfiguration.
type Table struct {
	config *xdsresource.RouteConfiguration
}

// Compile builds the table for rc. It never fails as a whole: what can't be
// compiled answers 500 where it matches and is reported in the errors, which
// name virtual host and route.
func Compile(rc *xdsresource.RouteConfiguration, o Options) (*Table, []error) {
	return &Table{config: rc}, nil
}

// Match selects the route for s: virtual host by :authority, then the first
// route whose match holds, then the weighted cluster by s.Random. It returns
// nil if nothing matches. It reads s.Request and s.Info and changes nothing.
func (t *Table) Match(s *filters.Stream) *Route { return nil }

// Route is one compiled choice: a route, or one weighted cluster of a route.
// It is immutable and implements filters.Route.
type Route struct {
	Config      *xdsresource.Route
	VirtualHost *xdsresource.VirtualHost
	// Weighted is the chosen weighted cluster, nil if the route has none.
	Weighted *xdsresource.WeightedCluster

	name, cluster string
	chain         []filters.HTTPFilter
}

// Name implements filters.Route.
func (r *Route) Name() string { return r.name }

// ClusterName implements filters.Route. For cluster_header routes it is "":
// ask Cluster.
func (r *Route) ClusterName() string { return r.cluster }

// Cluster resolves the cluster for s, reading cluster_header if configured.
func (r *Route) Cluster(s *filters.Stream) string { return r.cluster }

// Metadata implements filters.Route.
func (r *Route) Metadata() *streaminfo.Metadata { return &r.Config.Metadata }

// Chain implements filters.Route.
func (r *Route) Chain() []filters.HTTPFilter { return r.chain }

// FinalizeRequest applies path, host and header rewrites of route configuration,
// virtual host, route and weighted cluster to s.Request, in Envoy's order, and
// sets x-envoy-original-path when it changes the path (unless suppressed).
func (r *Route) FinalizeRequest(s *filters.Stream, suppressEnvoyHeaders bool) {}

// FinalizeResponse applies the response header edits of weighted cluster,
// route, virtual host and route configuration.
func (r *Route) FinalizeResponse(s *filters.Stream, resp *filters.Response) {}

// Redirect returns status and location if r is a redirect.
func (r *Route) Redirect(s *filters.Stream) (status int, location string, ok bool) {
	return 0, "", false
}

// Hash returns the hash for consistent load balancing by the route's hash
// policies, and a Set-Cookie value to add to the response ("" if none).
func (r *Route) Hash(s *filters.Stream) (hash uint64, ok bool, setCookie string) { return 0, false, "" }
