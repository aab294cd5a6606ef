package routing

import (
	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/ratelimit"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Route is one compiled choice: a route, or one weighted cluster of a route.
// It is immutable and implements filters.Route.
type Route struct {
	// Config and VirtualHost are never nil.
	Config      *xdsresource.Route
	VirtualHost *xdsresource.VirtualHost
	// Weighted is the chosen weighted cluster, nil if the route has none.
	Weighted *xdsresource.WeightedCluster

	name, cluster, clusterHeader string
	chain                        []filters.HTTPFilter
	// request and response are header edits in the order of execution; nil
	// entries are left out. weightedRequest is the weighted cluster's, which
	// runs before its host rewrite.
	request, response []*Mutations
	retry             *xdsresource.RetryPolicy
	mirrors           []xdsresource.Mirror
	// bufferLimit is negative if neither route nor virtual host has one.
	bufferLimit int
	// limits is nil if neither route nor virtual host has rate limits.
	limits *ratelimit.Policy
	// secure marks the redirect of require_tls.
	secure bool
}

var _ filters.Route = (*Route)(nil)

// Name implements filters.Route.
func (r *Route) Name() string { return r.name }

// ClusterName implements filters.Route. For cluster_header routes it is "":
// ask Cluster.
func (r *Route) ClusterName() string { return r.cluster }

// Cluster resolves the cluster for s, reading cluster_header if configured.
func (r *Route) Cluster(s *filters.Stream) string {
	if r.clusterHeader == "" {
		return r.cluster
	}
	return s.Request.Get(r.clusterHeader)
}

// RateLimits implements ratelimit.Route.
func (r *Route) RateLimits() *ratelimit.Policy { return r.limits }

// Metadata implements filters.Route.
func (r *Route) Metadata() *streaminfo.Metadata { return &r.Config.Metadata }

// Chain implements filters.Route.
func (r *Route) Chain() []filters.HTTPFilter { return r.chain }

// Retry returns the retry policy, of the route or else of its virtual host;
// nil if there is none.
func (r *Route) Retry() *xdsresource.RetryPolicy { return r.retry }

// Mirrors returns the mirror policies, of the route or else of its virtual
// host.
func (r *Route) Mirrors() []xdsresource.Mirror { return r.mirrors }

// BufferLimit bounds in bytes what may be kept of a request for retries and
// mirrors; false means that route and virtual host leave it to the listener.
func (r *Route) BufferLimit() (int, bool) { return r.bufferLimit, r.bufferLimit >= 0 }

// levels orders the header edits. Envoy runs the most specific first, so that
// the least specific wins, or the other way round with
// most_specific_header_mutations_wins.
func (r *Route) levels(l levels, mostSpecificWins bool) {
	r.request, r.response = order(l.request, mostSpecificWins), order(l.response, mostSpecificWins)
}

func order(l [4]*Mutations, reverse bool) []*Mutations {
	var out []*Mutations
	for i := range l {
		if reverse {
			i = len(l) - 1 - i
		}
		if l[i] != nil {
			out = append(out, l[i])
		}
	}
	return out
}
