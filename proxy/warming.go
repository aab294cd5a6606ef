package proxy

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// withModules asks for the modules of res, has them prepared, and returns what can
// be in force now: what is new and waits for a module is replaced by what it is to
// replace, as long as that is worth waiting for.
//
// An extension configuration waits by itself, and as long as it takes: the former
// one goes on working. A filter that is new to its chain has no former one: the
// chain stays what it was until the module is ready, or can't be had, or has taken
// too long. What then becomes of its requests says its failure policy.
func (s *Server) withModules(prev *Snapshot, res *Resources) (*Resources, []Diagnostic) {
	n := s.needsOf(res)
	if prev == nil {
		s.want(n)
		t := time.NewTimer(warmTimeout)
		defer t.Stop()
		s.workshop.await(t.C) // there is nothing that it could keep from serving
		return res, nil
	}
	if n.empty() && !s.workshop.busy() {
		s.want(n)
		return res, nil
	}
	all := *n
	all.add(s.needsOf(prev.Resources))
	s.want(&all)
	out := *res
	notes := s.holdExtensions(prev, res, &out, n.uses)
	notes = append(notes, s.holdChains(prev, &out)...)
	if len(notes) > 0 {
		n.add(s.needsOf(&out))
	}
	s.want(n)
	slices.SortFunc(notes, func(a, b Diagnostic) int { return strings.Compare(a.Resource, b.Resource) })
	return &out, notes
}

// holdExtensions puts former extension configurations in the place of those that
// can't run yet.
func (s *Server) holdExtensions(prev *Snapshot, res, out *Resources, uses map[string][]string) []Diagnostic {
	var notes []Diagnostic
	for name, e := range res.Extensions {
		former := prev.Resources.Extensions[name]
		if former == nil || former == e || former.Unknown != "" {
			continue
		}
		why := s.extensionCondition(e, uses[name])
		if why == nil || s.extensionCondition(former, uses[name]) != nil {
			continue
		}
		if len(notes) == 0 {
			out.Extensions = maps.Clone(res.Extensions)
		}
		out.Extensions[name] = former
		d := Diagnostic{
			Resource: "extension_config " + name, Path: "typed_config", Severity: "warning", late: true,
			Message: "the former configuration stays in force until the module of the new one is here: " + why.Error(),
		}
		notes = append(notes, d)
	}
	return notes
}

// extensionCondition says why e can't run in one of the directions, nil if it can.
func (s *Server) extensionCondition(e *xdsresource.ExtensionConfig, directions []string) error {
	for _, ref := range extensionModules(e) {
		if sum, _, err := s.modules.Look(ref); sum == "" {
			return err
		}
	}
	for _, d := range directions {
		if c := s.condition(&e.TypedConfig, d); c.err != nil {
			return c.err
		}
	}
	return nil
}

// holdChains replaces chains of res that wait for a module by the former ones, and
// leaves out what is new.
func (s *Server) holdChains(prev *Snapshot, res *Resources) []Diagnostic {
	var notes []Diagnostic
	listeners := res.Listeners
	change := func() {
		if len(notes) == 0 {
			res.Listeners = maps.Clone(listeners)
		}
	}
	for name, l := range listeners {
		old := prev.Resources.Listeners[name]
		if old == l {
			continue
		}
		h := holder{s: s, res: res, old: old, l: l}
		h.listener()
		if len(h.notes) == 0 {
			continue
		}
		change()
		if old == nil {
			delete(res.Listeners, name)
		} else {
			res.Listeners[name] = h.held
		}
		notes = append(notes, h.notes...)
	}
	return notes
}

// holder makes of a listener what can be in force now.
type holder struct {
	s      *Server
	res    *Resources
	old, l *xdsresource.Listener // old is nil for a new one
	held   *xdsresource.Listener // nil: l
	notes  []Diagnostic
}

func (h *holder) listener() {
	for i, fc := range h.l.FilterChains {
		var from []*xdsresource.FilterChain
		if h.old != nil {
			from = h.old.FilterChains
		}
		if c := h.chain(fc, from); c != fc {
			h.held.FilterChains[i] = c
		}
	}
	if fc := h.l.DefaultFilterChain; fc != nil {
		var from []*xdsresource.FilterChain
		if h.old != nil && h.old.DefaultFilterChain != nil {
			from = []*xdsresource.FilterChain{h.old.DefaultFilterChain}
		}
		if c := h.chain(fc, from); c != fc {
			h.held.DefaultFilterChain = c
		}
	}
	if h.held != nil {
		h.held.FilterChains = slices.DeleteFunc(h.held.FilterChains, func(c *xdsresource.FilterChain) bool { return c == nil })
	}
}

// chain returns what serves in place of fc: itself, a former one, or nothing.
func (h *holder) chain(fc *xdsresource.FilterChain, from []*xdsresource.FilterChain) *xdsresource.FilterChain {
	why, hopeless := h.why(fc)
	if why == nil {
		return fc
	}
	i := slices.IndexFunc(from, func(o *xdsresource.FilterChain) bool {
		return o.Name == fc.Name && reflect.DeepEqual(o.Match, fc.Match)
	})
	if i >= 0 && (from[i].Frame == fc.Frame || from[i].Broken != "") || i < 0 && hopeless {
		return fc
	}
	var former *xdsresource.FilterChain
	message := "the chain is not served until the module of its filter is here: "
	if i >= 0 {
		former, message = from[i], "the chain stays as it was until the module of a new filter is here: "
	}
	if h.held == nil {
		c := *h.l
		c.FilterChains = slices.Clone(h.l.FilterChains)
		h.held = &c
	}
	h.notes = append(h.notes, Diagnostic{
		Resource: "listener " + h.l.Name + ": filter chain " + fc.Name, Path: "filters", Severity: "warning", late: true, Message: message + why.Error(),
	})
	return former
}

// why says why fc is not to be in force, or not yet. hopeless: its module, which
// came with the configuration, can't run.
func (h *holder) why(fc *xdsresource.FilterChain) (why error, hopeless bool) {
	filterConfigs(h.res, fc, func(tc *xdsresource.TypedConfig, http bool, name string) {
		switch {
		case why != nil:
		case tc == nil && name != "" && h.s.workshop.proven(name):
			why = notPreparedError{}
		case tc == nil:
		case http:
			c := h.s.condition(tc, h.l.Direction)
			if hopeless = c.err != nil && c.settled && !c.fetched && len(modulesOf(tc.Config)) == 0; !c.settled || hopeless {
				why = c.err
			}
		default:
			why = h.s.awaited(modulesOf(tc.Config))
		}
	})
	return why, hopeless
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

// awaitModules waits, before the first configuration serves, for its modules.
func (s *Server) awaitModules(res *Resources, look, end <-chan time.Time) {
	for {
		n := s.needsOf(res)
		if n.empty() {
			return
		}
		s.want(n)
		if s.awaited(n.refs) == nil && s.workshop.idle() {
			return
		}
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
