// Package proxy links decoded configuration into a running proxy. It builds an
// immutable Snapshot from Resources, reuses every part that did not change,
// swaps it in with one pointer, and drains what was replaced. Endpoints and
// secrets take their own way and rebuild nothing.
package proxy

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/accesslog"
	"github.com/fairlead-mesh/fairlead/internal/dns"
	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/overload"
	"github.com/fairlead-mesh/fairlead/internal/refusal"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/wasmmodule"
	"github.com/fairlead-mesh/fairlead/proxy/listener"
	"github.com/fairlead-mesh/fairlead/proxy/secret"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Options are what a Server is made from. Registry and Node must be set.
type Options struct {
	Registry *filters.Registry
	Node     filters.Node
	// Static are the bootstrap's static_resources; nil is none.
	Static *Resources
	// Identity answers the SDS names "default" and "ROOTCA"; nil if this
	// workload has none.
	Identity identity.Source
	// Workloads looks up mesh peers; nil if there is no WDS.
	Workloads filters.Workloads
	Logger    *slog.Logger
	// Events is where refusals and findings are told, Logger if nil. It lets
	// them be seen where Logger says little, as in Istio's pods.
	Events *slog.Logger
	Stats  *stats.Registry
	// Overload refuses connections and requests while memory is short; nil makes
	// one that keeps to GOMEMLIMIT, if that is set.
	Overload *overload.Monitor
	// DNS is how clusters that don't say resolve names, nil for the system's way.
	// Names is where that is found.
	DNS   *dns.Config
	Names dns.Environment
	// Offline is set for a Server that is given its configuration by Compile, to
	// be checked or asked by Explain: it resolves no names and calls nobody.
	Offline bool
	// DrainTime bounds how long replaced or shut down chains live on, 10 min by
	// default as Envoy's --drain-time-s.
	DrainTime time.Duration
	// RemovalGrace is how long a cluster that was removed while routes name it is
	// still there: its control plane may not have sent the new routes yet. 0 is
	// not at all.
	RemovalGrace time.Duration
	// Away, if not nil, reports whether the control plane can't be heard. It may
	// have gone in the middle of a push: RemovalGrace begins when it is back. It is
	// called under the Server's lock.
	Away func() bool
	// Refused, if not nil, reports whether the newest version of a resource was
	// refused, so that one before it is what the control plane's clients have. It is
	// called under the Server's lock.
	Refused func(typeURL, name string) bool
	// Passed, if not nil, lists the clusters that came and were removed again before
	// they could be in force. It is called under the Server's lock.
	Passed func() map[string]bool
	// AwaitClusters makes Apply wait for the names of the clusters that it is
	// given, up to 15 s, until StartServing is called.
	AwaitClusters bool
	// Modules says how WebAssembly modules of filters are fetched and kept; the
	// Server sets the rest of it.
	Modules wasmmodule.Options
}

// errClosed is what a Server says that has ended.
var errClosed = errors.New("proxy: closed")

// Server is a running proxy. Apply may be called by one goroutine at a time;
// the rest is safe for concurrent use.
type Server struct {
	opt      Options
	log      *slog.Logger
	stats    *stats.Scope
	clusters *upstream.Manager
	secrets  *secret.Store
	shared   filters.Shared
	node     filters.Node
	logs     *accesslog.Sinks
	refusals *refusal.Recorder
	modules  moduleSource
	workshop *workshop
	// overload is nil if memory is not limited; calm ends its Run.
	overload *overload.Monitor
	calm     func()

	mu        sync.Mutex // guards Apply and the fields below
	filters   filterPool
	listeners map[string]*listener.Listener
	pending   map[*time.Timer]func() // releases to come
	outdated  map[*outdated]bool     // what waits for its last user
	linger    lingering
	held      map[any]time.Time // see passing
	clung     map[string]bool
	dynamic   *Resources // of the last Apply
	closed    bool
	// given has the clusters that the manager was given last. parting are those that
	// it has beside, until the configuration that goes with given is in force.
	given   *Resources
	parting map[string]*xdsresource.Cluster

	// byName is the current set of listeners, for internal hops.
	byName atomic.Pointer[map[string]*listener.Listener]
	// retired are removed listeners that may have connections; Apply replaces it.
	retired  atomic.Pointer[[]*listener.Listener]
	snapshot atomic.Pointer[Snapshot]
	draining atomic.Bool
	// shut says which listeners bind no sockets any more.
	shut shut
	// hurry is closed by StartServing.
	hurry   chan struct{}
	hurried sync.Once
	// refersElsewhere is set once a received resource names a watched file, or a
	// server of api_config_source.
	refersElsewhere atomic.Bool
	peers, frees    oneAtATime
	st              serverStats
}

type serverStats struct {
	snapshots, chainsCompiled, chainsKept *stats.Counter
	diagErrors, diagIgnored, live         *stats.Gauge
	bindErrors                            *stats.Counter
	lds                                   listenerManagerStats
}

// New returns a Server that serves nothing yet. Apply brings configuration.
func New(o Options) (*Server, error) {
	if o.Registry == nil {
		return nil, errors.New("proxy: no filter registry")
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Events == nil {
		o.Events = o.Logger
	}
	if o.Stats == nil {
		o.Stats = &stats.Registry{}
	}
	if o.Static == nil {
		o.Static = &Resources{}
	}
	if o.DrainTime == 0 {
		o.DrainTime = 10 * time.Minute
	}
	s := &Server{opt: o, log: o.Logger, stats: o.Stats.Scope(""), node: o.Node, listeners: map[string]*listener.Listener{}, pending: map[*time.Timer]func(){}, outdated: map[*outdated]bool{}, hurry: make(chan struct{})}
	s.given, s.parting = &Resources{}, map[string]*xdsresource.Cluster{}
	s.logs = accesslog.NewSinks(s.stats.Scope("fairlead_access_log_"))
	s.secrets = secret.NewStore(secret.Config{
		Identity: o.Identity, Served: s.isStatic, Logger: o.Logger, Revoked: func() { s.peers.start(s.reviewPeers) },
	})
	s.clusters = newClusters(s)
	s.modules = newModules(s)
	s.workshop = newWorkshop(s.reapply, s.log)
	s.refusals = refusal.New(refusal.Options{Logger: o.Events, Stats: s.stats, Workloads: o.Workloads, Clusters: s.clusters})
	sc := s.stats.Scope("fairlead_config_")
	s.st = serverStats{
		snapshots: sc.Counter("snapshots_total"), chainsCompiled: sc.Counter("filter_chains_compiled_total"), chainsKept: sc.Counter("filter_chains_kept_total"),
		diagErrors: sc.Gauge("errors"), diagIgnored: sc.Gauge("ignored_fields"), live: sc.Gauge("live"), bindErrors: sc.Counter("listener_bind_errors_total"),
	}
	empty := map[string]*listener.Listener{}
	s.byName.Store(&empty)
	s.watchMemory()
	s.st.lds.register(s)
	return s, nil
}

// watchMemory starts what refuses connections and requests while memory is
// short, until Close.
func (s *Server) watchMemory() {
	s.calm = func() {}
	if s.opt.Offline {
		return
	}
	if s.overload = s.opt.Overload; s.overload == nil {
		s.overload = overload.New(overload.Options{Logger: s.opt.Events, Stats: s.stats.Scope("envoy_overload_")})
	}
	if s.overload == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.overload.Run(ctx) })
	s.calm = func() { cancel(); running.Wait() }
}

// Snapshot returns the compiled configuration in force, nil before the first
// Apply.
func (s *Server) Snapshot() *Snapshot { return s.snapshot.Load() }

// Clusters returns the cluster manager.
func (s *Server) Clusters() *upstream.Manager { return s.clusters }

// Listener returns the running listener called name, nil if there is none.
func (s *Server) Listener(name string) *listener.Listener { return (*s.byName.Load())[name] }

// UpdateEndpoints is the fast path of EDS: hosts of one cluster are replaced and
// nothing is rebuilt.
func (s *Server) UpdateEndpoints(name string, cla *xdsresource.ClusterLoadAssignment) {
	s.clusters.UpdateEndpoints(name, cla)
}

// env is what a filter called name compiles with.
func (s *Server) env(name, direction string) *filters.Env {
	return &filters.Env{
		Name: name, Direction: direction, Stats: s.stats, Logger: s.log.With("filter", name), Events: s.opt.Events.With("filter", name), Upstreams: s.clusters,
		Workloads: s.opt.Workloads, Node: &s.node, Shared: &s.shared, Logs: s.logs, Modules: s.modules,
	}
}

// managerStats is for what connection managers with that stat_prefix count.
func (s *Server) managerStats(prefix, manager string) *stats.Scope {
	return s.stats.Scope(prefix, stats.Label{Name: "envoy_http_conn_manager_prefix", Value: manager})
}
