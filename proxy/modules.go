package proxy

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/wasmmodule"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// moduleSource gets the modules of filters: a wasmmodule.Store, or nobody for a
// configuration that is only looked at.
type moduleSource interface {
	filters.Modules
	Want(refs []filters.ModuleRef)
	Look(ref filters.ModuleRef) (sum string, settled bool, err error)
	Close()
}

// noModules answers for a Server that calls nobody.
type noModules struct{}

// notFetchedError is a filters.ErrModulePending in other words.
type notFetchedError struct{}

func (notFetchedError) Error() string {
	return "nothing is fetched for a configuration that is not run"
}
func (notFetchedError) Is(target error) bool { return target == filters.ErrModulePending }

func (noModules) Module(filters.ModuleRef) ([]byte, error)     { return nil, notFetchedError{} }
func (noModules) Want([]filters.ModuleRef)                     {}
func (noModules) Look(filters.ModuleRef) (string, bool, error) { return "", true, notFetchedError{} }
func (noModules) Close()                                       {}

func newModules(s *Server) moduleSource {
	if s.opt.Offline {
		return noModules{}
	}
	o := s.opt.Modules
	o.Upstreams, o.Logger, o.Stats, o.OnChange = s.clusters, s.log, s.stats.Scope("fairlead_wasm_"), s.reapply
	return wasmmodule.New(o)
}

// reapply puts the resources of the last Apply in force again: a module that
// they need has come, or has failed to.
func (s *Server) reapply() {
	if err := s.apply(nil); err != nil {
		s.log.Warn("applying configuration again for a WebAssembly module", "error", err)
	}
}

// modulesOf lists the modules that a decoded configuration needs.
func modulesOf(c filters.Config) []filters.ModuleRef {
	if u, ok := c.(filters.ModuleUser); ok {
		return u.Modules()
	}
	return nil
}

// extensionModules lists those of an ECDS resource, in each of its forms.
func extensionModules(e *xdsresource.ExtensionConfig) []filters.ModuleRef {
	refs := modulesOf(e.Config)
	for _, tc := range []*xdsresource.TypedConfig{e.Network, e.Listener} {
		if tc != nil {
			refs = append(refs, modulesOf(tc.Config)...)
		}
	}
	return refs
}

// chains are all filter chains of a listener.
func chains(l *xdsresource.Listener) []*xdsresource.FilterChain {
	if l.DefaultFilterChain == nil {
		return l.FilterChains
	}
	return append(slices.Clip(l.FilterChains), l.DefaultFilterChain)
}

// filterConfigs calls f for what each filter of a chain is configured with: by
// itself, by discovery (nil as long as that has not arrived), by default.
func filterConfigs(res *Resources, fc *xdsresource.FilterChain, f func(*xdsresource.TypedConfig)) {
	for i := range fc.Filters {
		n := &fc.Filters[i]
		if n.HCM == nil {
			f(resolveDiscovery(res, &n.TypedConfig, n.ConfigDiscovery, asNetwork))
			continue
		}
		for k := range n.HCM.HTTPFilters {
			h := &n.HCM.HTTPFilters[k]
			f(resolveDiscovery(res, &h.TypedConfig, h.ConfigDiscovery, asHTTP))
		}
	}
}

// neededModules lists the modules that res needs.
func neededModules(res *Resources) []filters.ModuleRef {
	var refs []filters.ModuleRef
	for _, e := range res.Extensions {
		refs = append(refs, extensionModules(e)...)
	}
	for _, l := range res.Listeners {
		for _, fc := range chains(l) {
			filterConfigs(res, fc, func(tc *xdsresource.TypedConfig) {
				if tc != nil {
					refs = append(refs, modulesOf(tc.Config)...)
				}
			})
		}
	}
	return refs
}

// withModules asks for the modules of res, and returns what can be in force now:
// what is new and waits for a module is replaced by what it is to replace, as
// long as that is worth waiting for.
//
// An extension configuration waits by itself, and as long as it takes: the former
// one goes on working. A filter that is new to its chain has no former one: the
// chain stays what it was until the module is here, or has failed, or has taken
// too long. What then becomes of its requests says its failure policy.
func (s *Server) withModules(prev *Snapshot, res *Resources) (*Resources, []Diagnostic) {
	refs := neededModules(res)
	if prev == nil || len(refs) == 0 {
		s.modules.Want(refs)
		return res, nil
	}
	out := *res
	var notes []Diagnostic
	for name, e := range res.Extensions {
		former := prev.Resources.Extensions[name]
		if former == nil || former == e || former.Unknown != "" {
			continue
		}
		why := s.missing(extensionModules(e))
		if why == nil || s.missing(extensionModules(former)) != nil {
			continue
		}
		if len(notes) == 0 {
			out.Extensions = maps.Clone(res.Extensions)
		}
		out.Extensions[name] = former
		refs = append(refs, extensionModules(former)...)
		notes = append(notes, Diagnostic{
			Resource: "extension_config " + name, Path: "typed_config", Severity: "warning", late: true,
			Message: "the former configuration stays in force until the module of the new one is here: " + why.Error(),
		})
	}
	s.modules.Want(refs)
	notes = append(notes, s.holdChains(prev, &out)...)
	slices.SortFunc(notes, func(a, b Diagnostic) int { return strings.Compare(a.Resource, b.Resource) })
	return &out, notes
}

// missing says why one of the modules is not here, nil if all are.
func (s *Server) missing(refs []filters.ModuleRef) error {
	for _, ref := range refs {
		if sum, _, err := s.modules.Look(ref); sum == "" {
			return err
		}
	}
	return nil
}

// holdChains replaces chains of res that wait for a module by the former ones.
func (s *Server) holdChains(prev *Snapshot, res *Resources) []Diagnostic {
	var notes []Diagnostic
	cloned := false
	for name, l := range res.Listeners {
		old := prev.Resources.Listeners[name]
		if old == nil || old == l {
			continue
		}
		held, why := s.heldChains(res, old, l)
		if held == nil {
			continue
		}
		if !cloned {
			res.Listeners, cloned = maps.Clone(res.Listeners), true
		}
		res.Listeners[name] = held
		notes = append(notes, why...)
	}
	return notes
}

// heldChains is l with those of its chains replaced that wait, nil if none do.
func (s *Server) heldChains(res *Resources, old, l *xdsresource.Listener) (held *xdsresource.Listener, notes []Diagnostic) {
	hold := func(fc *xdsresource.FilterChain, from []*xdsresource.FilterChain) *xdsresource.FilterChain {
		former, why := s.former(res, fc, from)
		if former == nil {
			return fc
		}
		if held == nil {
			c := *l
			c.FilterChains = slices.Clone(l.FilterChains)
			held = &c
		}
		notes = append(notes, Diagnostic{
			Resource: "listener " + l.Name + ": filter chain " + fc.Name, Path: "filters", Severity: "warning", late: true,
			Message: "the chain stays as it was until the module of a new filter is here: " + why.Error(),
		})
		return former
	}
	for i, fc := range l.FilterChains {
		if c := hold(fc, old.FilterChains); c != fc {
			held.FilterChains[i] = c
		}
	}
	if fc := l.DefaultFilterChain; fc != nil && old.DefaultFilterChain != nil {
		if c := hold(fc, []*xdsresource.FilterChain{old.DefaultFilterChain}); c != fc {
			held.DefaultFilterChain = c
		}
	}
	return held, notes
}

// former is what stays in place of fc, nil if it need not wait, and why.
func (s *Server) former(res *Resources, fc *xdsresource.FilterChain, old []*xdsresource.FilterChain) (*xdsresource.FilterChain, error) {
	var why error
	filterConfigs(res, fc, func(tc *xdsresource.TypedConfig) {
		if tc != nil && why == nil {
			why = s.awaited(modulesOf(tc.Config))
		}
	})
	if why == nil {
		return nil, nil
	}
	for _, o := range old {
		if o.Name == fc.Name && o.Frame != fc.Frame && o.Broken == "" && reflect.DeepEqual(o.Match, fc.Match) {
			return o, why
		}
	}
	return nil, nil
}

// awaited says why one of the modules is worth waiting for, nil if none is.
func (s *Server) awaited(refs []filters.ModuleRef) error {
	for _, ref := range refs {
		if _, settled, err := s.modules.Look(ref); !settled {
			return err
		}
	}
	return nil
}

// moduleState stands for where the modules of a configuration are: what was
// compiled with another state is compiled again.
func (s *Server) moduleState(tc *xdsresource.TypedConfig) string {
	refs := modulesOf(tc.Config)
	if len(refs) == 0 {
		return ""
	}
	var out strings.Builder
	for _, ref := range refs {
		if sum, _, err := s.modules.Look(ref); sum != "" {
			out.WriteString(sum)
		} else {
			fmt.Fprint(&out, err)
		}
		out.WriteByte(';')
	}
	return out.String()
}

// awaitModules waits, before the first configuration serves, for its modules.
func (s *Server) awaitModules(res *Resources, look, end <-chan time.Time) {
	refs := neededModules(res)
	s.modules.Want(refs)
	for s.awaited(refs) != nil {
		select {
		case <-look:
		case <-s.hurry:
			return
		case <-end:
			s.log.Warn("WebAssembly modules are not here in time; the proxy serves without them")
			return
		}
	}
}
