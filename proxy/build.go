package proxy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy/hcm"
	"github.com/fairlead-mesh/fairlead/proxy/listener"
	"github.com/fairlead-mesh/fairlead/proxy/router"
	"github.com/fairlead-mesh/fairlead/proxy/tcpproxy"
	"github.com/fairlead-mesh/fairlead/proxy/tlscontext"
	"github.com/fairlead-mesh/fairlead/routing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Snapshot is the compiled world. It is immutable once published, but for the
// route tables that RDS swaps inside its connection managers.
type Snapshot struct {
	Generation  uint64
	Resources   *Resources
	Listeners   map[string]*builtListener
	Diagnostics []Diagnostic
	// ignoredInView is how many fields of the clusters and endpoints of the control
	// plane have no effect.
	ignoredInView int
	// former is what listeners go on serving that could not take over what is in
	// Listeners.
	former map[string]*builtListener
}

// builtListener is a compiled listener.
type builtListener struct {
	spec   *xdsresource.Listener
	config listener.Config
	chains []*builtChain
	// specs are what chains execute, in the same order.
	specs []*xdsresource.FilterChain
	// diags are those of the listener's own parts, not of its chains.
	diags []Diagnostic
	// ecds are the extension configurations of its listener filters.
	ecds string
	// hold is that of its own access logs.
	hold *hold
}

// builtChain is a compiled filter chain with what it depends on.
type builtChain struct {
	key   chainKey
	chain *listener.Chain
	hcms  []*builtHCM
	// network are the names of chain.Network.
	network []string
	diags   []Diagnostic
	hold    *hold
}

// chainKey decides whether a chain can be kept: same content but for routes,
// same place, same extension configurations of network filters, and broken by
// the same.
type chainKey struct {
	listener, direction string
	frame               xdsresource.Digest
	broken, ecds        string
}

// builtHCM is a connection manager whose route table and discovered HTTP filters
// may be replaced.
type builtHCM struct {
	manager *hcm.Manager
	routes  *hcm.Routes
	chains  *chainBuilder
	rdsName string
	// unrouted is the chain without overrides. policies stands for what decides
	// about requests, in all chains.
	unrouted []filters.HTTPFilter
	policies policies
	// held are holds of all filters that new streams may run through.
	held []*filterRef
	// release gives back shared state of the manager.
	release []func()
	// filter is its index in the chain.
	filter int
	// diags are those of the table, filterDiags those of the filters without
	// overrides.
	diags, filterDiags []Diagnostic
	// table is the digest of the route configuration in force, ecds stands for
	// the discovered configurations of HTTP filters.
	table xdsresource.Digest
	ecds  string
}

// builder compiles one set of resources, reusing what the previous snapshot has.
type builder struct {
	s     *Server
	res   *Resources
	prev  *Snapshot
	diags []Diagnostic
	// fresh are chains that were compiled now.
	fresh int
	// at is the place in the listener that is compiled, by indexes.
	at string
	// holds collects what the part that is compiled shares.
	holds *hold
	// review are the listeners of whose requests others decide now.
	review map[string]bool
}

func (b *builder) diag(resource, path, severity, message string) {
	b.diags = append(b.diags, Diagnostic{Resource: resource, Path: path, Severity: severity, Message: message, at: b.at})
}

// diagLate is diag for what is missing and may still arrive.
func (b *builder) diagLate(resource, path, severity, message string) {
	b.diags = append(b.diags, Diagnostic{Resource: resource, Path: path, Severity: severity, Message: message, at: b.at, late: true})
}

// build never fails as a whole: what can't be compiled is refused where it
// stands and named in the diagnostics.
func (b *builder) build() *Snapshot {
	snap := &Snapshot{Resources: b.res, Listeners: make(map[string]*builtListener, len(b.res.Listeners))}
	for _, name := range sortedKeys(b.res.Listeners) {
		snap.Listeners[name] = b.listener(b.res.Listeners[name])
	}
	if b.prev != nil {
		snap.Generation = b.prev.Generation + 1
	}
	snap.Diagnostics = b.diags
	return snap
}

func (b *builder) listener(spec *xdsresource.Listener) *builtListener {
	where := "listener " + spec.Name
	var prev *builtListener
	if b.prev != nil {
		prev = b.prev.Listeners[spec.Name]
	}
	old := map[chainKey]*builtChain{}
	if prev != nil {
		for _, c := range prev.chains {
			old[c.key] = c
		}
	}
	bl := &builtListener{spec: spec, ecds: b.listenerECDS(spec)}
	sc := b.s.stats.Scope("envoy_listener_", stats.Label{Name: "envoy_listener_address", Value: statAddress(spec)})
	bl.config = listener.Config{Spec: spec, Stats: sc, Refusals: b.s.refusals, Logger: b.s.log, DrainTime: b.s.opt.DrainTime, Overload: b.s.overload}
	if prev != nil && prev.spec.Digest == spec.Digest && prev.ecds == bl.ecds {
		bl.config.ListenerFilters, bl.config.AccessLogs, bl.diags, bl.hold = prev.config.ListenerFilters, prev.config.AccessLogs, prev.diags, prev.hold
		b.diags = append(b.diags, bl.diags...)
	} else {
		mark := len(b.diags)
		for i := range spec.ListenerFilters {
			b.at = fmt.Sprintf("listener_filters[%d]", i)
			b.listenerFilter(bl, where, &spec.ListenerFilters[i])
		}
		b.at = ""
		bl.hold = &hold{}
		b.holds = bl.hold
		bl.config.AccessLogs = listenerLogs(b.accessLogs(where, spec.AccessLogs))
		bl.diags = append([]Diagnostic(nil), b.diags[mark:]...)
	}
	if len(bl.hold.releases) > 0 {
		bl.config.LogUsers = &bl.hold.users
	}
	for i, fc := range spec.FilterChains {
		b.at = fmt.Sprintf("filter_chains[%d]", i)
		bc := b.chain(bl, old, fc)
		bl.config.Chains = append(bl.config.Chains, bc.chain)
	}
	if spec.DefaultFilterChain != nil {
		b.at = "default_filter_chain"
		bl.config.Default = b.chain(bl, old, spec.DefaultFilterChain).chain
	}
	return bl
}

func statAddress(spec *xdsresource.Listener) string {
	switch {
	case spec.StatPrefix != "":
		return spec.StatPrefix
	case len(spec.Addresses) > 0:
		return strings.ReplaceAll(spec.Addresses[0].String(), ":", "_") // as Envoy's tag
	}
	return spec.Name
}

// listenerFilter compiles one listener filter. One that can't be executed could
// have decided which chain takes a connection, so the listener takes none.
func (b *builder) listenerFilter(bl *builtListener, where string, f *xdsresource.ListenerFilter) {
	path := "listener_filters[" + f.Name + "]"
	fail := func(why string) {
		b.diag(where, path, "error", "not executable, connections are closed: "+why)
		bl.config.ListenerFilters = append(bl.config.ListenerFilters, listener.ListenerFilter{Filter: closeListener{why}, Disabled: f.Disabled})
	}
	tc := resolveDiscovery(b.res, &f.TypedConfig, f.ConfigDiscovery, asListener)
	if tc == nil {
		fail("its configuration (ECDS) has not arrived")
		b.diags[len(b.diags)-1].late = true
		return
	}
	if tc.Unknown != "" {
		fail(tc.Unknown)
		return
	}
	fac := b.s.opt.Registry.Listener(tc.TypeURL)
	if fac == nil {
		fail("no listener filter is registered for " + tc.TypeURL)
		return
	}
	lf, err := contained(b.s.log, f.Name, func() (filters.ListenerFilter, error) {
		return fac.Compile(b.s.env(f.Name, bl.spec.Direction), tc.Config)
	})
	if err != nil {
		fail(err.Error())
		return
	}
	bl.config.ListenerFilters = append(bl.config.ListenerFilters, listener.ListenerFilter{Filter: lf, Disabled: f.Disabled})
}

// closeListener stands in for a listener filter that can't be executed.
type closeListener struct{ why string }

// OnAccept implements filters.ListenerFilter.
func (c closeListener) OnAccept(*filters.Connection) error {
	return fmt.Errorf("listener filter not executable: %s", c.why)
}

// chain returns the compiled form of fc: the previous one if nothing that it
// depends on changed, so that its connections stay.
func (b *builder) chain(bl *builtListener, old map[chainKey]*builtChain, fc *xdsresource.FilterChain) *builtChain {
	key := chainKey{bl.spec.Name, bl.spec.Direction, fc.Frame, fc.Broken, b.ecdsDigests(fc)}
	bl.specs = append(bl.specs, fc)
	if c := old[key]; c != nil {
		bl.chains = append(bl.chains, c)
		b.diags = append(b.diags, c.diags...)
		return c
	}
	b.fresh++
	mark := len(b.diags)
	c := b.compileChain(bl, fc)
	c.key = key
	c.diags = append([]Diagnostic(nil), b.diags[mark:]...)
	bl.chains = append(bl.chains, c)
	return c
}

func (b *builder) compileChain(bl *builtListener, fc *xdsresource.FilterChain) *builtChain {
	where := "listener " + bl.spec.Name + ": filter chain " + fc.Name
	lc := &listener.Chain{Name: fc.Name, Metadata: &fc.Metadata, Digest: fc.Digest, Match: fc.Match, HandshakeTimeout: fc.TransportSocketTimeout, Broken: fc.Broken}
	bc := &builtChain{chain: lc, hold: &hold{}}
	b.holds = bc.hold
	broken := func(path, why string) {
		if lc.Broken == "" {
			lc.Broken = why
		}
		b.diag(where, path, "error", "not executable, connections are closed: "+why)
	}
	if fc.Broken != "" {
		broken("", fc.Broken)
	}
	at := b.at
	if fc.TransportSocket != nil {
		b.at = at + ".transport_socket"
		ts, err := tlscontext.NewServer(fc.TransportSocket, b.s.secrets)
		if err != nil {
			broken("transport_socket", err.Error())
		} else {
			lc.TLS = serverTLS{ts}
		}
	}
	for i := range fc.Filters {
		f := &fc.Filters[i]
		path := "filters[" + f.Name + "]"
		b.at = fmt.Sprintf("%s.filters[%d]", at, i)
		last := i == len(fc.Filters)-1
		switch {
		case f.HCM != nil:
			h, err := b.hcm(where, bl.spec, f.HCM)
			if err != nil {
				broken(path, err.Error())
				continue
			}
			h.filter = i
			bc.hcms = append(bc.hcms, h)
			lc.Terminal = h.manager
		case f.TCPProxy != nil:
			t, err := b.tcpProxy(where, f.TCPProxy)
			if err != nil {
				broken(path, err.Error())
				continue
			}
			lc.Terminal = t
		default:
			b.networkFilter(lc, where, bl.spec.Direction, f, path, broken)
			if len(lc.Network) > len(bc.network) {
				bc.network = append(bc.network, f.Name)
			}
		}
		if lc.Terminal != nil && !last {
			broken(path, "a terminal filter must be the last of its chain")
		}
	}
	b.at = at
	if lc.Terminal == nil && lc.Broken == "" {
		broken("filters", "the chain has no terminal filter (http_connection_manager or tcp_proxy)")
	}
	return bc
}

func (b *builder) tcpProxy(where string, spec *xdsresource.TCPProxy) (filters.TerminalFilter, error) {
	return tcpproxy.New(spec, b.s.tcpProxyDeps(b.accessLogs(where, spec.AccessLogs), spec))
}

// hcm compiles a connection manager and its route table.
func (b *builder) hcm(where string, ls *xdsresource.Listener, spec *xdsresource.HTTPConnectionManager) (*builtHCM, error) {
	sc := b.s.managerStats("envoy_http_", spec.StatPrefix)
	cb := &chainBuilder{b: b, where: where, at: b.at + ".typed_config", direction: ls.Direction, manager: spec.StatPrefix, specs: spec.HTTPFilters}
	for i := range spec.HTTPFilters {
		if r := spec.HTTPFilters[i].Router; r != nil {
			cb.terminal = router.New(r, b.s.routerDeps(sc, b.accessLogs(where, r.UpstreamLogs)))
		}
	}
	if cb.terminal == nil {
		return nil, errors.New("http_filters: no terminal filter (envoy.filters.http.router must be the last)")
	}
	h := &builtHCM{routes: &hcm.Routes{}, chains: cb, rdsName: spec.RDSName}
	def, err := b.setFilters(h)
	if err != nil {
		return nil, err
	}
	rc := spec.RouteConfig
	if rc == nil {
		rc = b.res.Routes[spec.RDSName]
	}
	b.setTable(h, where, rc)
	trace, release := b.tracer(ls, spec.Tracing)
	h.release = append(h.release, release)
	h.policies = policiesOf(h)
	h.manager, err = hcm.New(hcm.Config{
		Spec: spec, Routes: h.routes, DefaultChain: def, AccessLogs: hcmLogs(b.accessLogs(where, spec.AccessLogs)),
		Clusters: b.s.clusters, Trace: trace, Egress: ls.Direction == "outbound",
		Refusals: b.s.refusals, Stats: sc, Logger: b.s.log, Overload: b.s.overload,
	})
	return h, err
}

// setFilters resolves what h's filters get by discovery and compiles the chain
// without overrides. The table must be set after it.
func (b *builder) setFilters(h *builtHCM) ([]filters.HTTPFilter, error) {
	mark := len(b.diags)
	defer func() {
		h.filterDiags = append([]Diagnostic(nil), b.diags[mark:]...)
		b.diags = b.diags[:mark]
	}()
	cb := h.chains
	defer cb.begin(b)()
	h.ecds = b.httpDigests(cb.specs, cb.direction) // before: a module may arrive meanwhile
	cb.resolve(b.res)
	old := cb.base
	cb.renew()
	def, err := cb.chain(nil)
	cb.base = cb.renew()
	h.unrouted = def
	b.s.filters.release(old, b.s.log) // what streams may run through is held
	return def, err
}

// setTable compiles rc for h and installs it, and the chain without overrides. What
// is to be said about it goes to h.
func (b *builder) setTable(h *builtHCM, where string, rc *xdsresource.RouteConfiguration) {
	mark := len(b.diags)
	defer func() {
		h.diags = append([]Diagnostic(nil), b.diags[mark:]...)
		b.diags = b.diags[:mark]
	}()
	if rc == nil {
		b.diagLate(where, "rds["+h.rdsName+"]", "warning", "the route configuration has not arrived; requests are answered 404")
		b.s.install(h, nil)
		return
	}
	defer h.chains.begin(b)()
	defer func(at string) { b.at = at }(b.at)
	b.at = h.chains.at + ".route_config"
	t, errs := routing.Compile(rc, routing.Options{Chain: h.chains.chain})
	for _, err := range errs {
		b.diag(where, "route_config["+rc.Name+"]", "error", err.Error())
	}
	b.s.install(h, t)
	h.table = rc.Digest
}

// refreshRoutes recompiles the tables of kept chains whose routes changed,
// inline or by RDS, or whose HTTP filters did, by ECDS: connections stay, and
// their next stream gets the new table and filters.
func (b *builder) refreshRoutes(snap *Snapshot) {
	for _, name := range sortedKeys(snap.Listeners) {
		bl := snap.Listeners[name]
		for i, c := range bl.chains {
			for _, h := range c.hcms {
				rc := b.res.Routes[h.rdsName]
				if h.rdsName == "" {
					rc = bl.specs[i].Filters[h.filter].HCM.RouteConfig
				}
				renewed := h.ecds != b.httpDigests(h.chains.specs, h.chains.direction)
				if renewed {
					_, _ = b.setFilters(h) // never fails: what can't be executed refuses requests
					if t := h.routes.Table(); t != nil && rc == nil {
						rc = t.Config() // the table stays that is not there any more
					}
				}
				if renewed || rc != nil && rc.Digest != h.table {
					b.setTable(h, "listener "+name+": filter chain "+c.chain.Name, rc)
					b.noteReview(name, h)
				}
				b.diags = append(append(b.diags, h.filterDiags...), h.diags...)
			}
		}
	}
	snap.Diagnostics = b.diags
}

// keep notes that the listener called name serves what it did with prev.
func (snap *Snapshot) keep(name string, prev *Snapshot) {
	bl := prev.former[name]
	if bl == nil {
		bl = prev.Listeners[name]
	}
	if snap.former == nil {
		snap.former = map[string]*builtListener{}
	}
	snap.former[name] = bl
}

// held yields what listeners serve or are to serve.
func (snap *Snapshot) held(yield func(*builtListener) bool) {
	for _, l := range snap.Listeners {
		if !yield(l) {
			return
		}
	}
	for _, l := range snap.former {
		if !yield(l) {
			return
		}
	}
}

// usedBy is the set of chains of snap.
func usedBy(snap *Snapshot) map[*builtChain]bool {
	out := map[*builtChain]bool{}
	for l := range snap.held {
		for _, c := range l.chains {
			out[c] = true
		}
	}
	return out
}

// holdsOf is what the listeners of snap hold beside their chains.
func holdsOf(snap *Snapshot) map[*hold]bool {
	out := map[*hold]bool{}
	for l := range snap.held {
		out[l.hold] = true
	}
	return out
}
