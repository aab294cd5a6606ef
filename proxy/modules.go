package proxy

import (
	"slices"

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
	Here(ref filters.ModuleRef) bool
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
func (noModules) Here(filters.ModuleRef) bool                  { return false }
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
