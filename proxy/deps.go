package proxy

import (
	"crypto/tls"
	"errors"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/accesslog"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/router"
	"github.com/fairlead-mesh/fairlead/proxy/tcpproxy"
	"github.com/fairlead-mesh/fairlead/proxy/tlscontext"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// newClusters makes the cluster manager of s.
func newClusters(s *Server) *upstream.Manager {
	m := upstream.NewManager(upstream.Options{
		Stats: s.stats, Logger: s.log, Offline: s.opt.Offline, DNS: s.opt.DNS, Names: s.opt.Names,
		TLS: func(spec *xdsresource.UpstreamTLS) (upstream.ClientTLS, error) {
			return tlscontext.NewClient(spec, s.secrets)
		},
		Filter: s.upstreamFilter,
	})
	m.SetInternal(internalHop{s})
	return m
}

// upstreamFilter compiles a filter of a cluster's connections.
func (s *Server) upstreamFilter(tc *xdsresource.TypedConfig) (filters.UpstreamFilter, error) {
	fac := s.opt.Registry.Upstream(tc.TypeURL)
	if fac == nil {
		return nil, errors.New("no filter of upstream connections is registered for " + tc.TypeURL)
	}
	return contained(s.log, tc.Name, func() (filters.UpstreamFilter, error) {
		return fac.CompileUpstream(s.env(tc.Name, "outbound"), tc.Config)
	})
}

// serverTLS adapts a downstream TLS context to what a listener needs.
type serverTLS struct{ s *tlscontext.Server }

// Config implements listener.ServerTLS.
func (t serverTLS) Config() (*tls.Config, error) { return t.s.Config(), nil }

// Admits is what tlscontext.Server says.
func (t serverTLS) Admits(id string) error { return t.s.Admits(id) }

// Revoked implements listener.PeerReviewer.
func (t serverTLS) Revoked(cs *tls.ConnectionState) error { return t.s.Revoked(cs) }

// Describe implements listener.ServerTLS.
func (t serverTLS) Describe(cs *tls.ConnectionState) *streaminfo.TLS { return t.s.Info(cs) }

func (s *Server) routerDeps(sc *stats.Scope, logs []*accesslog.Logger) router.Deps {
	d := router.Deps{Clusters: s.clusters, Stats: sc, Logger: s.log}
	for _, l := range logs {
		d.UpstreamLogs = append(d.UpstreamLogs, l)
	}
	return d
}

func (s *Server) tcpProxyDeps(logs []*accesslog.Logger, spec *xdsresource.TCPProxy) tcpproxy.Deps {
	d := tcpproxy.Deps{
		Clusters: s.clusters, Logger: s.log,
		Stats: s.stats.Scope("envoy_tcp_", stats.Label{Name: "envoy_tcp_prefix", Value: spec.StatPrefix}),
	}
	for _, l := range logs {
		d.AccessLogs = append(d.AccessLogs, l)
	}
	return d
}
