package upstream

import (
	"context"
	"crypto/tls"
	"log/slog"
	"maps"
	"net/netip"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/dns"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy/tlscontext"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/transport/h1"
	"github.com/fairlead-mesh/fairlead/proxy/transport/h2"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// ClientTLS is the TLS side of one transport socket. *tlscontext.Client
// implements it.
type ClientTLS interface {
	Config(o tlscontext.Options) *tls.Config
}

// Resolver resolves names. *dns.Resolver implements it.
type Resolver interface {
	// Lookup returns the addresses of one type that name has, which may be none.
	Lookup(ctx context.Context, name string, t dns.Type) (dns.Answer, error)
}

// Options are what a Manager needs; every field may be zero.
type Options struct {
	Stats  *stats.Scope // root scope; families are named envoy_cluster_*
	Logger *slog.Logger
	// TLS compiles a TLS context; nil: clusters with TLS can't connect.
	TLS func(spec *xdsresource.UpstreamTLS) (ClientTLS, error)
	// Filter compiles a filter of a cluster's connections; nil: clusters that have
	// one can't be used.
	Filter func(tc *xdsresource.TypedConfig) (filters.UpstreamFilter, error)
	// Internal connects to internal listeners; nil: such endpoints can't be
	// reached. SetInternal may set it later.
	Internal InternalDialer
	// Resolver replaces what clusters and DNS say, if not nil.
	Resolver Resolver
	// DNS resolves the names of clusters that say nothing else; nil is the system's
	// way. Names is where that is found.
	DNS   *dns.Config
	Names dns.Environment
	// Offline clusters are only asked about: they serve at once, resolve no
	// names and wait for no endpoints.
	Offline bool
	// WarmTimeout bounds the wait for the endpoints of a new EDS cluster; 0
	// means Envoy's initial_fetch_timeout of 15 s.
	WarmTimeout time.Duration

	// Dial, HTTP1 and HTTP2 replace netio.Dial, h1.NewClient and h2.NewClient.
	Dial  func(ctx context.Context, addr netip.AddrPort, o netio.DialOptions) (netio.Conn, error)
	HTTP1 func(c netio.Conn, cfg *transport.ClientConfig) transport.ClientConn
	HTTP2 func(c netio.Conn, cfg *transport.ClientConfig) (transport.ClientConn, error)
}

// Manager is the set of clusters of a process. Clusters outlive snapshots: an
// update with an unchanged Digest keeps hosts, pools, ejections and breakers.
// It is safe for concurrent use.
type Manager struct {
	opt      Options
	log      *slog.Logger
	internal atomic.Pointer[InternalDialer]

	// slots is replaced by Apply only; a slot is empty while its cluster warms.
	slots atomic.Pointer[map[string]*slot]

	mu          sync.Mutex
	warming     map[string]*Cluster
	byEDS       map[string][]*Cluster
	assignments map[string]*xdsresource.ClusterLoadAssignment // by EDS name
	closed      bool

	peers     peers
	callouts  sync.Map // *calloutGuard by cluster
	resolvers sync.Map // *dns.Resolver by configuration
	st        managerStats
}

type slot struct{ atomic.Pointer[Cluster] }

// NewManager returns a Manager without clusters.
func NewManager(o Options) *Manager {
	m := &Manager{opt: o, log: o.Logger, warming: map[string]*Cluster{}, assignments: map[string]*xdsresource.ClusterLoadAssignment{}}
	m.st.register(m)
	m.peers.ended = o.Stats.Counter("fairlead_upstream_connections_revoked_total")
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if m.opt.WarmTimeout <= 0 {
		m.opt.WarmTimeout = 15 * time.Second
	}
	if m.opt.Dial == nil {
		m.opt.Dial = netio.Dial
	}
	if m.opt.HTTP1 == nil {
		m.opt.HTTP1 = h1.NewClient
	}
	if m.opt.HTTP2 == nil {
		m.opt.HTTP2 = h2.NewClient
	}
	m.slots.Store(&map[string]*slot{})
	m.SetInternal(o.Internal)
	return m
}

// SetInternal installs the dialer of internal listeners.
func (m *Manager) SetInternal(d InternalDialer) {
	if d != nil {
		m.internal.Store(&d)
	}
}

func (m *Manager) internalDialer() InternalDialer {
	if d := m.internal.Load(); d != nil {
		return *d
	}
	return nil
}

// Cluster returns the cluster called name, nil if there is none or if it is
// still warming.
func (m *Manager) Cluster(name string) *Cluster {
	if s := (*m.slots.Load())[name]; s != nil {
		return s.Load()
	}
	return nil
}

// HasCluster reports whether a cluster of that name can be called.
func (m *Manager) HasCluster(name string) bool { return m.Cluster(name) != nil }

// Apply replaces the set of clusters. Those whose Digest is unchanged stay as
// they are. A new or changed cluster serves once it is warm (endpoints
// arrived, names resolved, or the timeout); until then a changed one's former
// version goes on. Removed ones drain.
func (m *Manager) Apply(clusters []*xdsresource.Cluster) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	old := *m.slots.Load()
	next := make(map[string]*slot, len(clusters))
	var started []*Cluster
	for _, spec := range clusters {
		sl, warm := old[spec.Name], m.warming[spec.Name]
		if sl == nil {
			sl = &slot{}
		}
		next[spec.Name] = sl
		cur := sl.Load()
		switch {
		case warm != nil && warm.spec.Digest == spec.Digest:
			continue
		case warm != nil:
			delete(m.warming, spec.Name)
			warm.close()
		}
		if cur != nil && cur.spec.Digest == spec.Digest {
			continue
		}
		if cur != nil {
			m.st.modified.Inc()
		} else if warm == nil {
			m.st.added.Inc()
		}
		c := m.newCluster(spec)
		m.warming[spec.Name] = c
		started = append(started, c)
	}
	var gone []*Cluster
	for name, c := range m.warming {
		if next[name] == nil {
			delete(m.warming, name)
			c.close()
			gone = append(gone, c)
		}
	}
	m.slots.Store(&next)
	for name, sl := range old {
		if c := sl.Load(); next[name] == nil && c != nil {
			m.st.removed.Inc()
			c.close()
			gone = append(gone, c)
		}
	}
	m.forget(gone, clusters)
	m.indexEDS(next)
	for _, c := range started {
		m.start(c)
	}
}

// forget ends the metrics of clusters that are gone, unless one that there is
// counts under the same name, and what is known of callouts to them. The caller holds
// m.mu.
func (m *Manager) forget(gone []*Cluster, clusters []*xdsresource.Cluster) {
	if len(gone) == 0 {
		return
	}
	used := make(map[string]bool, len(clusters))
	for _, spec := range clusters {
		used[statName(spec)] = true
	}
	var scopes []*stats.Scope
	for _, c := range gone {
		s := c.endStats()
		if !used[c.StatName()] {
			scopes = append(scopes, s)
		}
		if g, ok := m.callouts.LoadAndDelete(c.spec.Name); ok && !used[c.spec.Name] {
			scopes = append(scopes, g.(*calloutGuard).scope) //nolint:errcheck,forcetypeassert // nothing else is stored
		}
	}
	stats.Release(scopes...)
}

// indexEDS notes which clusters ask for which endpoints, and drops the
// endpoints that no cluster asks for any more. The caller holds m.mu.
func (m *Manager) indexEDS(slots map[string]*slot) {
	m.byEDS = make(map[string][]*Cluster, len(slots))
	add := func(c *Cluster) {
		if c != nil && c.spec.Discovery == xdsresource.DiscoveryEDS && c.spec.Broken == "" {
			m.byEDS[c.edsName()] = append(m.byEDS[c.edsName()], c)
		}
	}
	for _, sl := range slots {
		add(sl.Load())
	}
	for _, c := range m.warming {
		add(c)
	}
	maps.DeleteFunc(m.assignments, func(name string, _ *xdsresource.ClusterLoadAssignment) bool { return m.byEDS[name] == nil })
}

func (m *Manager) newCluster(spec *xdsresource.Cluster) *Cluster {
	c := &Cluster{m: m, spec: spec}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	for i := range c.breakers {
		c.breakers[i].configure(&spec.Breakers[i])
	}
	c.set.Store(&hostSet{})
	c.compileSockets()
	c.compileFilters()
	return c
}

// start begins to warm c. The caller holds m.mu.
func (m *Manager) start(c *Cluster) {
	spec := c.spec
	if spec.Broken != "" {
		m.log.Error("cluster can't be used", "cluster", spec.Name, "reason", spec.Broken)
		m.promoteLocked(c)
		return
	}
	if spec.Outlier != nil && spec.Outlier.Interval > 0 {
		c.detector = &detector{c: c, spec: spec.Outlier}
		defer c.detector.start()
	}
	switch spec.Discovery {
	case xdsresource.DiscoveryStatic:
		a := spec.Assignment
		if a == nil {
			a = &xdsresource.ClusterLoadAssignment{}
		}
		c.update(a)
		m.promoteLocked(c)
	case xdsresource.DiscoveryEDS:
		if a := m.assignments[c.edsName()]; a != nil {
			c.update(a)
			m.promoteLocked(c)
			return
		}
		if m.opt.Offline {
			m.promoteLocked(c)
			return
		}
		c.warmTimer = time.AfterFunc(m.opt.WarmTimeout, func() { m.startEmpty(c) })
	case xdsresource.DiscoveryStrictDNS, xdsresource.DiscoveryLogicalDNS:
		if m.opt.Offline {
			m.promoteLocked(c)
			return
		}
		c.dns = newResolver(c)
		c.dns.start() // promotes when it has an answer, or has failed to get one
	case xdsresource.DiscoveryOriginalDst, xdsresource.DiscoveryDynamicForwardProxy:
		c.dynamic = newDynamicHosts(c)
		m.promoteLocked(c)
	}
}

// startEmpty lets a cluster serve whose endpoints have not arrived, unless it is not
// waited for any more.
func (m *Manager) startEmpty(c *Cluster) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.warming[c.spec.Name] == c {
		m.log.Warn("no endpoints arrived in time; the cluster starts empty", "cluster", c.spec.Name, "eds", c.edsName())
		m.promoteLocked(c)
	}
}

// promote makes a warm cluster the one that serves.
func (m *Manager) promote(c *Cluster) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.promoteLocked(c)
}

func (m *Manager) promoteLocked(c *Cluster) {
	if m.warming[c.spec.Name] != c {
		return
	}
	delete(m.warming, c.spec.Name)
	if c.warmTimer != nil {
		c.warmTimer.Stop()
	}
	sl := (*m.slots.Load())[c.spec.Name]
	if sl == nil {
		return
	}
	if prev := sl.Swap(c); prev != nil {
		prev.close()
		c.mu.Lock()
		c.membership(c.st.Load(), c.set.Load()) // prev has set them to nothing
		c.mu.Unlock()
	}
}

func (c *Cluster) edsName() string {
	if c.spec.Discovery != xdsresource.DiscoveryEDS {
		return ""
	}
	if c.spec.EDSServiceName != "" {
		return c.spec.EDSServiceName
	}
	return c.spec.Name
}

// UpdateEndpoints installs the endpoints of every EDS cluster that asked for
// name (eds_cluster_config.service_name, or the cluster's name). A nil
// assignment (the resource was removed) leaves the clusters as they are until
// they are removed, too, as Envoy does. An unchanged Digest is a no-op.
func (m *Manager) UpdateEndpoints(name string, a *xdsresource.ClusterLoadAssignment) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a == nil {
		delete(m.assignments, name)
		return
	}
	m.assignments[name] = a
	for _, c := range m.byEDS[name] {
		if cur := c.current(); cur != nil && cur.Digest == a.Digest && a.Digest != (xdsresource.Digest{}) {
			continue
		}
		c.update(a)
		m.promoteLocked(c)
	}
}

func (c *Cluster) current() *xdsresource.ClusterLoadAssignment {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.assignment
}

// MissingEndpoints returns the EDS names whose endpoints a warming cluster waits
// for.
func (m *Manager) MissingEndpoints() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for _, c := range m.warming {
		if n := c.edsName(); n != "" && m.assignments[n] == nil {
			out = append(out, n)
		}
	}
	return out
}

// Resolving returns the names of the warming clusters that wait for DNS, sorted.
func (m *Manager) Resolving() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for name, c := range m.warming {
		if c.dns != nil {
			out = append(out, name)
		}
	}
	sort.Strings(out)
	return out
}

// Warming returns the names of the clusters that don't serve yet, sorted. A
// changed cluster is among them while its former version serves.
func (m *Manager) Warming() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for name := range m.warming {
		out = append(out, name)
	}
	sort.Strings(out)
	return out
}

// Close drains all clusters.
func (m *Manager) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for _, c := range m.warming {
		c.close()
		c.cancel()
	}
	for _, sl := range *m.slots.Load() {
		if c := sl.Load(); c != nil {
			c.close()
			c.cancel()
		}
	}
	clear(m.warming)
	clear(m.byEDS)
	m.slots.Store(&map[string]*slot{})
}
