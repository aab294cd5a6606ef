package upstream

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/netip"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/dns"
	"github.com/fairlead-mesh/fairlead/internal/hamt"
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

	// slots is the last state of all that was published; a slot is empty while its
	// cluster warms.
	slots atomic.Pointer[hamt.Snapshot[*slot]]

	mu          sync.Mutex
	all         hamt.Map[*slot]
	warming     map[string]*Cluster
	byEDS       map[string][]*Cluster                         // serving and warming ones
	assignments map[string]*xdsresource.ClusterLoadAssignment // by EDS name
	unasked     map[string]struct{}                           // those of assignments that no cluster asks for
	statNames   map[string]int                                // how many of all count under a name other than their own
	closed      bool

	peers     peers
	callouts  sync.Map // *calloutGuard by cluster
	resolvers sync.Map // *dns.Resolver by configuration
	st        managerStats
}

// slot is the place of a cluster by name: the one that serves, nil if it only warms.
type slot struct {
	atomic.Pointer[Cluster]
	spec *xdsresource.Cluster // the newest one; guarded by Manager.mu
}

// NewManager returns a Manager without clusters.
func NewManager(o Options) *Manager {
	m := &Manager{opt: o, log: o.Logger, warming: map[string]*Cluster{}, statNames: map[string]int{}}
	m.forgetEndpoints()
	m.publishLocked()
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
	if s, ok := m.slots.Load().Get(name); ok {
		return s.Load()
	}
	return nil
}

// each yields the clusters that serve.
func (m *Manager) each(yield func(*Cluster) bool) {
	for _, sl := range m.slots.Load().All() {
		if c := sl.Load(); c != nil && !yield(c) {
			return
		}
	}
}

// HasCluster reports whether a cluster of that name can be called.
func (m *Manager) HasCluster(name string) bool { return m.Cluster(name) != nil }

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
	sl, ok := m.all.Get(c.spec.Name)
	if !ok {
		return
	}
	if prev := sl.Swap(c); prev != nil {
		m.closeLocked(prev)
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
		delete(m.unasked, name)
		return
	}
	m.assignments[name] = a
	if m.byEDS[name] == nil {
		m.unasked[name] = struct{}{}
	}
	for _, c := range slices.Clone(m.byEDS[name]) { // the former one of a cluster that becomes warm leaves it
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
	for c := range m.each {
		c.close()
		c.cancel()
	}
	clear(m.warming)
	m.forgetEndpoints()
	clear(m.statNames)
	m.all = hamt.Map[*slot]{}
	m.publishLocked()
}
