// Package router is the terminal HTTP filter: it takes one request to one
// cluster. It picks hosts, makes attempts, applies timeouts and retries,
// mirrors, joins upgraded streams, and answers by itself when upstream can't.
//
// Behaviour, texts and details follow Envoy 1.40's router filter.
package router

import (
	"errors"
	"log/slog"
	"sync"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
	"github.com/fairlead-mesh/fairlead/routing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Clusters finds running clusters. *upstream.Manager implements it.
type Clusters interface {
	Cluster(name string) *upstream.Cluster
}

// AccessLogger writes one line. *accesslog.Logger implements it.
type AccessLogger interface {
	Log(c *format.Context)
}

// Deps is what a Filter works with. Only Clusters is needed.
type Deps struct {
	Clusters Clusters
	// Stats is the connection manager's scope (envoy_http_… with its
	// stat_prefix).
	Stats  *stats.Scope
	Logger *slog.Logger
	// UpstreamLogs are upstream_log: one line for each attempt.
	UpstreamLogs []AccessLogger
}

// Filter is the compiled router filter. It is immutable and serves all routes
// of a connection manager.
type Filter struct {
	cfg *xdsresource.Router
	d   Deps
	log *slog.Logger

	pool    sync.Pool
	mirrors chan struct{}

	rqTotal, noRoute, noCluster, rqDirect, rqResetAfterStart, rqRetrySkipped *stats.Counter
}

// maxMirrors bounds the mirrored requests in flight of one filter; beyond it
// they are dropped and counted (retry_or_shadow_abandoned).
const maxMirrors = 256

// New compiles cfg; nil means the defaults.
func New(cfg *xdsresource.Router, d Deps) filters.HTTPFilter {
	if cfg == nil {
		cfg = &xdsresource.Router{}
	}
	f := &Filter{cfg: cfg, d: d, log: d.Logger, mirrors: make(chan struct{}, maxMirrors)}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	f.pool.New = func() any { return newRequest(f) }
	f.rqTotal, f.noRoute, f.noCluster = d.Stats.Counter("rq_total"), d.Stats.Counter("no_route"), d.Stats.Counter("no_cluster")
	f.rqDirect = d.Stats.Counter("rq_direct_response")
	f.rqResetAfterStart = d.Stats.Counter("rq_reset_after_downstream_response_started")
	f.rqRetrySkipped = d.Stats.Counter("rq_retry_skipped_request_not_complete")
	return f
}

// Do implements filters.HTTPFilter. It never calls next.
func (f *Filter) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	f.rqTotal.Inc()
	r, _ := s.Route.(*routing.Route)
	if r == nil {
		f.noRoute.Inc()
		return s.LocalReply(404, "", "route_not_found", streaminfo.NoRouteFound), nil
	}
	if resp := r.DirectReply(s); resp != nil {
		f.rqDirect.Inc() // as Envoy counts redirects, too
		return resp, nil
	}
	if r.Config.Action == nil {
		return f.notForwarding(s, r), nil
	}
	name := r.Cluster(s)
	c := f.d.Clusters.Cluster(name)
	if c == nil {
		f.noCluster.Inc()
		return clusterNotFound(s, r), nil
	}
	u := &s.Info.Upstream
	u.Cluster, u.ClusterRaw, u.ClusterMetadata = c.StatName(), c.Name(), &c.Spec().Metadata
	if resp := f.checkHeaders(s); resp != nil {
		return resp, nil
	}
	if dropped, all := c.Dropped(); dropped {
		return f.dropOverload(s, c, all), nil
	}
	rq, _ := f.pool.Get().(*request)
	over := false
	defer func() {
		if !over { // refused, or a panic: nothing of the request may stay behind
			rq.drop(false)
			rq.release()
		}
	}()
	if resp := rq.begin(s, r, c); resp != nil {
		return resp, nil
	}
	resp, err := rq.run()
	over = true
	return resp, err
}

func clusterNotFound(s *filters.Stream, r *routing.Route) *filters.Response {
	status := r.Config.Action.ClusterNotFoundStatus
	if status == 0 {
		status = 503
	}
	return s.LocalReply(status, "", "cluster_not_found", streaminfo.NoClusterFound)
}

// notForwarding answers for routes that have no action: broken ones and
// non_forwarding_action.
func (f *Filter) notForwarding(s *filters.Stream, r *routing.Route) *filters.Response {
	resp, broken := refusal(s, r)
	if broken {
		f.log.Error("route can't be executed", "route", r.Name(), "virtual_host", r.VirtualHost.Name, "reason", r.Config.Broken)
	}
	return resp
}

func refusal(s *filters.Stream, r *routing.Route) (resp *filters.Response, broken bool) {
	if r.Config.Broken != "" {
		return s.LocalReply(500, "", "route_not_executable", 0), true
	}
	return s.LocalReply(404, "", "route_not_found", streaminfo.NoRouteFound), false
}

// checkHeaders applies strict_check_headers.
func (f *Filter) checkHeaders(s *filters.Stream) *filters.Response {
	for _, name := range f.cfg.StrictCheckHeaders {
		if v, ok := s.Request.Lookup(name); ok && !validEnvoyHeader(name, v) {
			return s.LocalReply(400, "invalid header '"+name+"' with value '"+v+"'", "request_headers_failed_strict_check", streaminfo.InvalidEnvoyRequestHeaders)
		}
	}
	return nil
}

// dropOverload answers a request that the endpoints' drop_overload takes; all
// tells that it takes every one.
func (f *Filter) dropOverload(s *filters.Stream, c *upstream.Cluster, all bool) *filters.Response {
	header, body, details, flag := "x-envoy-drop-overload", "drop overload", "drop_overload", streaminfo.DropOverload
	if all {
		header, body = "x-envoy-unconditional-drop-overload", "unconditional drop overload"
		details, flag = "unconditional_drop_overload", streaminfo.UnconditionalDropOverload
	}
	resp := f.abort(s, c, 503, body, details, flag, false)
	if !f.cfg.SuppressEnvoyHeaders {
		resp.Header.Add(header, "true")
	}
	return resp
}

// fromInside is how responses are counted: by what HCM, or a trusted hop before,
// said of the request.
func fromInside(s *filters.Stream) bool { return s.Request.Get("x-envoy-internal") == "true" }

// abort answers in place of upstream, counting the status for the cluster.
func (f *Filter) abort(s *filters.Stream, c *upstream.Cluster, status int, body, details string, flag streaminfo.ResponseFlag, overloaded bool) *filters.Response {
	c.CountCode(status, fromInside(s))
	resp := s.LocalReply(status, body, details, flag)
	if overloaded && !f.cfg.SuppressEnvoyHeaders {
		resp.Header.Add("x-envoy-overloaded", "true")
	}
	return resp
}

// Causes by which the router itself ends an attempt.
var (
	errRouteTimeout   = errors.New("router: route timeout")
	errPerTryTimeout  = errors.New("router: per-try timeout")
	errPerTryIdle     = errors.New("router: per-try idle timeout")
	errMaxDuration    = errors.New("router: max stream duration reached")
	errUpstreamMaxAge = errors.New("router: upstream max stream duration reached")
	errDone           = errors.New("router: the response is complete")
)

// StreamEnder isn't needed: whatever a request holds is released by its
// response's Body or Tunnel.
var _ filters.HTTPFilter = (*Filter)(nil)
