package proxy

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy/bootstrap"
	"github.com/fairlead-mesh/fairlead/proxy/secret"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Validate decodes and compiles a bootstrap without serving it, as
// FromBootstrap does before it returns a process. The error lists everything
// that stops a proxy from executing the file as it is (*xdsresource.ParseError,
// with paths and lines); notes are what works and deserves a look.
func Validate(doc []byte, o ProcessOptions) (cfg *bootstrap.Config, notes []Diagnostic, err error) {
	p := newProcess(o)
	if cfg, err = bootstrap.Parse(doc, p.dec); err != nil {
		return nil, nil, err
	}
	notes, err = p.check(cfg)
	problems, ok := errors.AsType[*xdsresource.ParseError](err)
	if err != nil && !ok {
		return cfg, notes, err
	}
	files, err := p.checkFiles(cfg)
	switch {
	case err != nil:
		return cfg, notes, err
	case problems != nil:
		return cfg, notes, &xdsresource.ParseError{Problems: append(problems.Problems, files...)}
	case len(files) > 0:
		return cfg, notes, &xdsresource.ParseError{Problems: files}
	}
	return cfg, notes, nil
}

// checkFiles lists what is wrong with the files that cfg takes resources from.
// They don't keep a proxy from starting, which follows their changes.
func (p *Process) checkFiles(cfg *bootstrap.Config) ([]xdsresource.Problem, error) {
	s, err := New(Options{Offline: true, Registry: p.opt.Registry, Node: cfg.Node, Identity: p.opt.Identity, Logger: slog.New(slog.DiscardHandler), Stats: &stats.Registry{}})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	src := newSources(s, p.dec, s.stats, s.log)
	src.start(cfg)
	var out []xdsresource.Problem
	for _, d := range src.problems() {
		out = append(out, xdsresource.Problem{Path: d.Path, Message: d.Resource + ": " + d.Message})
	}
	src.mu.Lock()
	res := src.wantLocked(&Resources{})
	src.mu.Unlock()
	if err := s.Compile(res); err != nil {
		return nil, err
	}
	for _, d := range s.snapshot.Load().Diagnostics {
		if d.Severity == "error" && !d.late {
			out = append(out, xdsresource.Problem{Path: d.Resource + ": " + d.Path, Message: d.Message})
		}
	}
	return out, nil
}

// check compiles the static resources in a server that serves nothing. What a
// push over xDS would have refused where it stands refuses a file as a whole:
// nothing runs yet that could suffer, and whoever wrote it is there to read why.
func (p *Process) check(cfg *bootstrap.Config) ([]Diagnostic, error) {
	s, err := New(Options{
		Offline: true, Registry: p.opt.Registry, Node: cfg.Node, Static: staticResources(cfg), Identity: p.opt.Identity,
		Logger: slog.New(slog.DiscardHandler), Stats: &stats.Registry{},
	})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	s.secrets.SetADS(s.opt.Static.Secrets)
	b := &builder{s: s, res: s.opt.Static}
	snap := b.build()
	b.refreshRoutes(snap)  // adds what is to be said about route tables
	s.snapshot.Store(snap) // Close releases it
	c := checker{cfg: cfg, secrets: s.secrets, identity: p.opt.Identity}
	for _, d := range snap.Diagnostics {
		c.diagnostic(d)
	}
	taken := map[netip.AddrPort]string{}
	for i, l := range cfg.Listeners {
		if err := claim(taken, l); err != nil {
			c.problem(fmt.Sprintf("static_resources.listeners[%d].address", i), "%v", err)
		}
		at := fmt.Sprintf("static_resources.listeners[%d]", i)
		c.source(at, l)
		c.listener(at, l)
	}
	for i, cl := range cfg.Clusters {
		at := fmt.Sprintf("static_resources.clusters[%d]", i)
		c.source(at, cl)
		c.cluster(at, cl)
	}
	if len(c.problems) == 0 {
		return c.notes, nil
	}
	slices.SortStableFunc(c.problems, func(a, b xdsresource.Problem) int { return cmp.Compare(a.Line, b.Line) })
	return c.notes, &xdsresource.ParseError{Problems: c.problems}
}

func staticResources(cfg *bootstrap.Config) *Resources {
	return &Resources{
		Listeners: byName(cfg.Listeners, func(l *xdsresource.Listener) string { return l.Name }),
		Clusters:  byName(cfg.Clusters, func(c *xdsresource.Cluster) string { return c.Name }),
		Secrets:   byName(cfg.Secrets, func(s *xdsresource.Secret) string { return s.Name }),
	}
}

// checker collects what is wrong with static resources.
type checker struct {
	cfg      *bootstrap.Config
	secrets  *secret.Store
	identity identity.Source
	problems []xdsresource.Problem
	notes    []Diagnostic
}

func (c *checker) problem(path, format string, args ...any) {
	p := xdsresource.Problem{Path: path, Line: c.cfg.Line(path), Message: fmt.Sprintf(format, args...)}
	if !slices.Contains(c.problems, p) {
		c.problems = append(c.problems, p)
	}
}

func (c *checker) note(resource, path, format string, args ...any) {
	c.notes = append(c.notes, Diagnostic{Resource: resource, Path: path, Severity: "warning", Message: fmt.Sprintf(format, args...)})
}

// diagnostic takes over what the compilation found.
func (c *checker) diagnostic(d Diagnostic) {
	if d.late || d.Severity == "ignored" {
		return
	}
	if d.Severity != "error" {
		c.notes = append(c.notes, d)
		return
	}
	path := d.Resource
	for i, l := range c.cfg.Listeners {
		if d.Resource == "listener "+l.Name || strings.HasPrefix(d.Resource, "listener "+l.Name+": ") {
			path = fmt.Sprintf("static_resources.listeners[%d]", i)
			if d.at != "" {
				path += "." + d.at
			}
			break
		}
	}
	_, why, ok := strings.Cut(d.Message, "not executable, ") // what it would do at run time does not matter here
	if ok {
		_, why, ok = strings.Cut(why, ": ")
	}
	if !ok {
		why = d.Message
	}
	c.problem(path, "%s: %s", d.Path, why)
}

// source demands a control plane for what v wants from one.
func (c *checker) source(path string, v any) {
	for _, r := range apiReferences(v) {
		if _, kind, _ := strings.Cut(r.key.TypeURL, "/"); c.cfg.Cluster(r.server.Cluster) == nil && r.key.TypeURL != xdsresource.SecretType {
			c.problem(path, "it needs the %s %q from %q, which is no static cluster", kind, r.key.Name, r.server.Cluster)
		}
	}
	if c.cfg.ADS != nil {
		return
	}
	for _, k := range references(v) {
		_, kind, _ := strings.Cut(k.TypeURL, "/")
		c.problem(path, "it needs the %s %q over ads, but there is no dynamic_resources.ads_config", kind, k.Name)
	}
}

func (c *checker) listener(path string, l *xdsresource.Listener) {
	for i, fc := range l.FilterChains {
		c.chain(fmt.Sprintf("%s.filter_chains[%d]", path, i), l.Name, fc)
	}
	if l.DefaultFilterChain != nil {
		c.chain(path+".default_filter_chain", l.Name, l.DefaultFilterChain)
	}
}

func (c *checker) chain(path, listener string, fc *xdsresource.FilterChain) {
	if fc.TransportSocket != nil {
		c.tls(path+".transport_socket", "listener "+listener, &fc.TransportSocket.CommonTLS)
	}
	for i := range fc.Filters {
		f := &fc.Filters[i]
		at := fmt.Sprintf("%s.filters[%d].typed_config", path, i)
		switch {
		case f.HCM != nil && f.HCM.RouteConfig != nil:
			if !f.HCM.RouteConfig.SkipClusterValidation {
				c.routes(at+".route_config", f.HCM.RouteConfig)
			}
		case f.TCPProxy != nil:
			c.exists(at+".cluster", f.TCPProxy.Cluster)
			for k := range f.TCPProxy.Weighted {
				c.exists(fmt.Sprintf("%s.weighted_clusters.clusters[%d].name", at, k), f.TCPProxy.Weighted[k].Name)
			}
		}
	}
}

// routes checks that clusters exist, as Envoy does for routes in the file
// itself.
func (c *checker) routes(path string, rc *xdsresource.RouteConfiguration) {
	for i, vh := range rc.VirtualHosts {
		for k, r := range vh.Routes {
			a := r.Action
			if a == nil {
				continue
			}
			at := fmt.Sprintf("%s.virtual_hosts[%d].routes[%d].route", path, i, k)
			c.exists(at+".cluster", a.Cluster)
			for n := range a.Weighted {
				c.exists(fmt.Sprintf("%s.weighted_clusters.clusters[%d].name", at, n), a.Weighted[n].Name)
			}
			for n := range a.Mirrors {
				c.exists(fmt.Sprintf("%s.request_mirror_policies[%d].cluster", at, n), a.Mirrors[n].Cluster)
			}
		}
	}
}

// exists demands a static cluster, if clusters come from nowhere else.
func (c *checker) exists(path, name string) {
	if name != "" && c.cfg.CDS == nil && c.cfg.Cluster(name) == nil {
		c.problem(path, "there is no cluster %q in static_resources.clusters, and no cds_config that could bring it", name)
	}
}

func (c *checker) cluster(path string, cl *xdsresource.Cluster) {
	if cl.Broken != "" {
		c.problem(path, "cluster %s can't be executed: %s", cl.Name, cl.Broken)
	}
	sockets := []*xdsresource.TransportSocket{&cl.TransportSocket}
	at := []string{path + ".transport_socket"}
	for i := range cl.Matches {
		sockets = append(sockets, &cl.Matches[i].Socket)
		at = append(at, fmt.Sprintf("%s.transport_socket_matches[%d]", path, i))
	}
	for i, s := range sockets {
		switch {
		case s.Unknown != "":
			c.problem(at[i], "cluster %s can't be executed: %s", cl.Name, s.Unknown)
		case s.TLS != nil:
			c.tls(at[i], "cluster "+cl.Name, &s.TLS.CommonTLS)
		}
	}
}

// missing reports a secret that the file refers to and does not have.
func (c *checker) missing(path, name string, src *xdsresource.ConfigSource) bool {
	if name == "" || *src != (xdsresource.ConfigSource{}) || slices.ContainsFunc(c.cfg.Secrets, func(s *xdsresource.Secret) bool { return s.Name == name }) {
		return false
	}
	c.problem(path, "there is no secret %q in static_resources.secrets, and no sds_config says where else to find it", name)
	return true
}

// tls checks that the certificates and CAs which the file names are there. What
// the control plane brings may still come, and so may the workload's own.
func (c *checker) tls(path, resource string, t *xdsresource.CommonTLS) {
	for i := range t.Certificates {
		crt := &t.Certificates[i]
		if !c.secrets.Own(crt.SDSName, &crt.SDSSource) || c.missing(path, crt.SDSName, &crt.SDSSource) {
			continue
		}
		h, err := c.secrets.Certificate(crt)
		if err != nil {
			continue // the compilation found it
		}
		v, err := h.Get()
		switch {
		case err != nil && h.Own():
			c.note(resource, path, "%v", err)
		case err != nil:
			c.problem(path, "%s: %v", resource, err)
		case time.Now().After(v.Leaf.NotAfter):
			c.note(resource, path, "certificate %s expired at %s; it is not presented, and handshakes that need it fail", h.Name(), v.Leaf.NotAfter.Format(time.RFC3339))
		}
	}
	if t.Validation == nil || !c.secrets.Own(t.Validation.SDSName, &t.Validation.SDSSource) || c.missing(path, t.Validation.SDSName, &t.Validation.SDSSource) {
		return
	}
	h, err := c.secrets.Trust(t.Validation)
	if err != nil {
		return
	}
	if _, err := h.Get(); err != nil {
		if h.Own() {
			c.note(resource, path, "%v", err)
		} else {
			c.problem(path, "%s: %v", resource, err)
		}
	}
}
