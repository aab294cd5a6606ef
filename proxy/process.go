package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/admin"
	"github.com/fairlead-mesh/fairlead/internal/dns"
	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/wasmmodule"
	"github.com/fairlead-mesh/fairlead/internal/workload"
	"github.com/fairlead-mesh/fairlead/proxy/agent"
	"github.com/fairlead-mesh/fairlead/proxy/bootstrap"
	"github.com/fairlead-mesh/fairlead/xdsclient"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// ProcessOptions are what a Process needs beside its configuration.
type ProcessOptions struct {
	Registry *filters.Registry
	Logger   *slog.Logger
	// Names is where the system's way to resolve names is found, the zero value
	// for its files.
	Names dns.Environment
	// Events is that of Options.
	Events *slog.Logger
	// Level, if not nil, is what /logging changes.
	Level   *slog.LevelVar
	Version string
	// Identity answers "default" and "ROOTCA" for a bootstrap file; agent mode
	// has its own. nil: those secrets are missing.
	Identity identity.Source
	// DrainTime bounds the shutdown, 5 s by default; agent mode has its own.
	DrainTime time.Duration
	// Agent serves the ports of Istio's agent; zero ports are off.
	Ports agent.Ports
	// Modules says how WebAssembly modules are fetched for a bootstrap file;
	// agent mode has its own.
	Modules wasmmodule.Options
	// OnReady, if not nil, is called once when the process serves.
	OnReady func()
}

// Process is a proxy with its control plane client and operator endpoints. Run
// drives it.
type Process struct {
	opt      ProcessOptions
	log      *slog.Logger
	registry *stats.Registry
	server   *Server
	sources  *sources
	dec      *xdsresource.Decoder
	client   *xdsclient.Client
	target   string // of client
	// bootstrap is the file, for /config_dump; nil in agent mode.
	bootstrap []byte
	table     *workload.Table
	source    agent.IdentitySource
	release   func()
	admins    []string
	// socket is the admin's Unix socket, "" for none.
	socket     string
	socketMode os.FileMode
	node       filters.Node
	start      time.Time
	// farewell is how a pod's proxy ends; nil outside of agent mode.
	farewell *agent.Drain

	ready  atomic.Bool
	failed atomic.Bool
	// unready is why the first configuration isn't in force, nil without one.
	unready atomic.Pointer[error]
	quit    chan struct{}
	once    sync.Once
	hurry   chan struct{}
	hurried sync.Once

	mu      sync.Mutex
	servers []*admin.Server
}

func newProcess(o ProcessOptions) *Process {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.DrainTime == 0 {
		o.DrainTime = 5 * time.Second
	}
	p := &Process{opt: o, log: o.Logger, registry: &stats.Registry{}, quit: make(chan struct{}), hurry: make(chan struct{}), start: time.Now(), release: func() {}}
	p.registry.RegisterProcess()
	p.dec = xdsresource.NewDecoder(o.Registry, xdsresource.Options{})
	return p
}

// FromBootstrap returns the process that an Envoy v3 bootstrap (YAML or JSON)
// describes. The error lists everything that is wrong with it.
func FromBootstrap(doc []byte, o ProcessOptions) (*Process, error) {
	p := newProcess(o)
	cfg, err := bootstrap.Parse(doc, p.dec)
	if err != nil {
		return nil, err
	}
	for _, ig := range cfg.Ignored {
		p.log.Warn("bootstrap field without effect", "path", ig.Path, "reason", ig.Reason)
	}
	p.node, p.bootstrap = cfg.Node, cfg.Raw
	if _, err := p.check(cfg); err != nil {
		return nil, err
	}
	if p.server, err = New(Options{
		Registry: o.Registry, Node: cfg.Node, Static: staticResources(cfg), Identity: o.Identity, Logger: p.log, Events: o.Events, Stats: p.registry, DNS: cfg.DNS, Names: o.Names, RemovalGrace: holdNew, Away: p.away, Refused: p.refused, Passed: p.passed, AwaitClusters: true, Modules: o.Modules,
	}); err != nil {
		return nil, err
	}
	p.registry.RegisterServer(p.server.Draining, p.server.connections)
	certificateStats(p.registry, p.server.secrets.States)
	p.sources = newSources(p.server, p.dec, p.registry.Scope("fairlead_xds_file_"), p.log)
	p.sources.serve(func(s xdsresource.APIServer) (xdsclient.Config, error) { return p.apiServer(cfg, s) }, p.registry)
	switch {
	case cfg.Admin.Address.IsValid():
		p.admins = append(p.admins, cfg.Admin.Address.String())
	case cfg.Admin.Pipe != "":
		p.socket, p.socketMode = cfg.Admin.Pipe, cfg.Admin.Mode
	}
	return p, p.dynamic(cfg)
}

// FromAgent returns the process that pilot-agent's arguments and environment
// describe: identity from istiod, configuration by delta ADS.
func FromAgent(cfg *agent.Config, o ProcessOptions) (*Process, error) {
	o.Ports = cfg.Ports
	p := newProcess(o)
	p.farewell = &cfg.Drain
	for _, w := range cfg.Warnings {
		p.log.Warn("agent setting without effect", "setting", w)
	}
	var err error
	if p.source, p.release, err = cfg.NewIdentity(p.log, func(m identity.Material, err error) {
		if err != nil {
			p.log.Error("workload certificate", "error", err)
			return
		}
		if m.Certificate != nil && m.Certificate.Leaf != nil {
			p.log.Info("workload certificate", "not_after", m.Certificate.Leaf.NotAfter)
		}
	}); err != nil {
		return nil, err
	}
	p.node = *cfg.FilterNode()
	p.table = &workload.Table{}
	if p.server, err = New(Options{
		Registry: o.Registry, Node: p.node, Identity: p.source, Workloads: p.table, Logger: p.log, Events: o.Events, Stats: p.registry, Names: o.Names, DrainTime: cfg.Drain.Duration, RemovalGrace: holdNew, Away: p.away, Refused: p.refused, Passed: p.passed, AwaitClusters: true, Modules: cfg.Modules,
	}); err != nil {
		return nil, err
	}
	p.registry.RegisterServer(p.server.Draining, p.server.connections)
	certificateStats(p.registry, p.server.secrets.States)
	p.sources = newSources(p.server, p.dec, p.registry.Scope("fairlead_xds_file_"), p.log)
	if cfg.Ports.Admin != 0 {
		p.admins = append(p.admins, fmt.Sprintf("127.0.0.1:%d", cfg.Ports.Admin))
	}
	xc := cfg.XDSConfig()
	xc.Types = append(xc.Types, agent.WorkloadType(p.table))
	return p, p.connect(xc, demand{clusters: true, listeners: true})
}

func (p *Process) connect(xc xdsclient.Config, d demand) error {
	types := p.server.XDSTypes(p.dec)
	d.apply(types)
	xc.Types = append(types, xc.Types...)
	p.target = xc.Target
	xc.OnView = p.sources.onView
	xc.Logger = p.log
	xc.Reporter = newReporter(p.registry.Scope("fairlead_xds_"))
	c, err := xdsclient.New(xc)
	if err != nil {
		return err
	}
	p.client, p.sources.client = c, c
	c.SetNames(p.sources.asked)
	if !slices.ContainsFunc(xc.Types, func(t xdsclient.ResourceType) bool { return t.Wildcard || len(t.Names) > 0 }) && len(p.sources.asked) == 0 {
		p.sources.view = c.View() // it is asked for nothing, and will answer nothing
	}
	return nil
}

// away reports whether the control plane can't be heard.
func (p *Process) away() bool {
	return p.client != nil && p.client.Status().State != xdsclient.StateConnected
}

// refused reports whether the newest version of a resource of the control plane was.
func (p *Process) refused(typeURL, name string) bool {
	return p.client != nil && p.client.Refused(typeURL, name)
}

// passed lists clusters that the control plane sent and removed before they could be
// in force.
func (p *Process) passed() map[string]bool {
	if p.client == nil {
		return nil
	}
	return p.client.Passed(xdsresource.ClusterType)
}

// applied is told of each configuration. The first one must be in force before
// traffic may come; a later one that isn't leaves the former in force.
func (p *Process) applied(err error) {
	if err != nil && !p.ready.Load() {
		p.unready.Store(&err)
		return
	}
	p.setReady()
}

// setReady marks the process ready once.
func (p *Process) setReady() {
	if !p.ready.Swap(true) {
		p.server.StartServing()
		p.log.Info("ready", "after", time.Since(p.start))
		if p.opt.OnReady != nil {
			p.opt.OnReady()
		}
	}
}

// Ready is nil when the process serves its configuration.
func (p *Process) Ready() error {
	switch {
	case p.failed.Load():
		return errors.New("health check was failed by the operator")
	case p.server.Draining():
		return errors.New("draining")
	case p.ready.Load():
		return nil
	}
	if err := p.unready.Load(); err != nil {
		return *err
	}
	return p.waiting()
}

// waiting says what the first configuration hangs on.
func (p *Process) waiting() error {
	if p.client == nil {
		return errors.New("not serving yet")
	}
	st := p.client.Status()
	switch {
	case st.State == xdsclient.StateConnected:
		return fmt.Errorf("no configuration from the control plane %s yet: it is connected and has not answered", p.target)
	case st.Err != nil:
		return fmt.Errorf("no configuration from the control plane %s yet: %w", p.target, st.Err)
	}
	return fmt.Errorf("no configuration from the control plane %s yet: %s", p.target, st.State)
}

// Server returns the proxy itself.
func (p *Process) Server() *Server { return p.server }

// Quit ends Run in order, in a pod with the time that it gives its clients: what
// pilot-agent's /quitquitquit does.
func (p *Process) Quit() {
	p.once.Do(func() {
		p.server.StartServing() // what waits for clusters doesn't hold it up
		close(p.quit)
	})
}

// Exit is Quit without that time, also when it is running already: Envoy's
// /quitquitquit.
func (p *Process) Exit() {
	p.hurried.Do(func() { close(p.hurry) })
	p.Quit()
}

// Run serves until ctx ends or Quit, drains, and returns what went wrong. An
// address that can't be bound at the start ends it at once.
func (p *Process) Run(ctx context.Context) error {
	defer p.release()
	if err := p.operators(); err != nil {
		p.server.Close()
		return err
	}
	defer p.closeOperators()
	stop := context.AfterFunc(ctx, p.server.StartServing) // no wait holds the end up
	defer stop()
	// Static clusters that need the control plane or files are waited for with
	// these, not before.
	if err := p.server.applyStatic(p.client == nil && !p.sources.configured()); err != nil {
		p.server.Close()
		return err
	}
	bg, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	if p.source != nil {
		wg.Go(func() { _ = p.source.Run(bg) })
	}
	p.sources.applied = p.applied
	switch {
	case p.sources.configured():
		p.sources.onFiles()
	case p.client == nil || p.sources.view != nil:
		p.setReady()
	}
	wg.Go(func() { p.sources.run(bg) })
	if p.client != nil {
		wg.Go(func() { _ = p.client.Run(bg) })
	}
	select {
	case <-ctx.Done():
	case <-p.quit:
	}
	drain := p.opt.DrainTime
	if p.farewell != nil {
		p.linger()
		drain = 0
	}
	p.log.Info("shutting down", "drain", drain)
	dctx, dcancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer dcancel()
	err := p.server.Shutdown(dctx)
	if err != nil {
		p.log.Warn("shutdown", "note", err)
	}
	cancel()
	wg.Wait()
	return nil
}

// linger goes on serving, as pilot-agent lets its proxy do: clients learn later
// than the pod that it ends. Readiness fails, connections are asked to end, new
// ones are accepted. It takes the whole time that the pod is given, or lasts
// until no connection is left. If the operator has drained it before, it is over
// at once.
func (p *Process) linger() {
	d := p.farewell
	if p.server.Draining() {
		return
	}
	p.server.DrainListeners(true)
	if !d.ExitOnZero {
		p.log.Info("draining", "for", d.Termination)
		p.pause(d.Termination)
		return
	}
	p.log.Info("draining until no connection is left", "at_least", d.Minimum)
	for wait := d.Minimum; p.pause(wait) && p.server.Active() > 0; {
		wait = 100 * time.Millisecond
	}
}

// pause waits for d and reports false if Exit ended it.
func (p *Process) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-p.hurry:
		return false
	}
}

// operators starts admin, status and metrics endpoints.
func (p *Process) operators() error {
	h := p.adminHandler()
	if p.socket != "" {
		s, err := admin.ServeUnix(p.socket, p.socketMode, h, p.log)
		if err != nil {
			return err
		}
		p.keep(s)
	}
	for _, addr := range p.admins {
		if err := p.serve("admin", addr, h); err != nil {
			return err
		}
	}
	ports := p.opt.Ports
	if ports.Status != 0 {
		if err := p.serve("status", fmt.Sprintf(":%d", ports.Status), admin.HealthHandler(p.Ready)); err != nil {
			return err
		}
	}
	if ports.Agent != 0 {
		if err := p.serve("agent", fmt.Sprintf(":%d", ports.Agent), admin.AgentHandler(p.registry, p.Ready, p.Quit)); err != nil {
			return err
		}
	}
	if ports.Prometheus != 0 {
		if err := p.serve("prometheus", fmt.Sprintf(":%d", ports.Prometheus), admin.AgentHandler(p.registry, p.Ready, nil)); err != nil {
			return err
		}
	}
	return nil
}

func (p *Process) serve(what, addr string, h http.Handler) error {
	s, err := admin.Serve(addr, h, p.log)
	if err != nil {
		return fmt.Errorf("%s endpoint on %s: %w (is the port in use?)", what, addr, err)
	}
	p.keep(s)
	return nil
}

func (p *Process) keep(s *admin.Server) {
	p.mu.Lock()
	p.servers = append(p.servers, s)
	p.mu.Unlock()
}

func (p *Process) closeOperators() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.servers {
		_ = s.Close()
	}
}

// ReadFile reads a bootstrap file; the error says which.
func ReadFile(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	return b, nil
}
