package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/xdsclient"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// notPreparedError is a filters.ErrModulePending in other words.
type notPreparedError struct{}

func (notPreparedError) Error() string        { return "the module is being compiled and started" }
func (notPreparedError) Is(target error) bool { return target == filters.ErrModulePending }

// filterConfigs calls f for what each filter of a chain is configured with: by
// itself, by discovery (nil as long as that has not arrived), by default. http is
// set for HTTP filters, name if the configuration is discovered.
func filterConfigs(res *Resources, fc *xdsresource.FilterChain, f func(tc *xdsresource.TypedConfig, http bool, name string)) {
	discovered := func(d *xdsresource.ExtensionConfigSource, name string) string {
		if d == nil {
			return ""
		}
		return name
	}
	for i := range fc.Filters {
		n := &fc.Filters[i]
		if n.HCM == nil {
			f(resolveDiscovery(res, &n.TypedConfig, n.ConfigDiscovery, asNetwork), false, discovered(n.ConfigDiscovery, n.Name))
			continue
		}
		for k := range n.HCM.HTTPFilters {
			h := &n.HCM.HTTPFilters[k]
			f(resolveDiscovery(res, &h.TypedConfig, h.ConfigDiscovery, asHTTP), true, discovered(h.ConfigDiscovery, h.Name))
		}
	}
}

// needs are what a configuration has to wait for.
type needs struct {
	refs  []filters.ModuleRef
	tasks []task
	// uses has the directions that HTTP filters are in which get a configuration by
	// discovery, by its name.
	uses map[string][]string
}

func (n *needs) empty() bool { return len(n.refs)+len(n.tasks) == 0 }

func (n *needs) add(o *needs) {
	n.refs, n.tasks = append(n.refs, o.refs...), append(n.tasks, o.tasks...)
}

// needsOf lists what res needs: tasks are for modules that are here.
func (s *Server) needsOf(res *Resources) *needs {
	n := &needs{uses: map[string][]string{}}
	for _, e := range res.Extensions {
		n.refs = append(n.refs, extensionModules(e)...)
	}
	for _, l := range res.Listeners {
		for _, fc := range chains(l) {
			filterConfigs(res, fc, func(tc *xdsresource.TypedConfig, http bool, name string) {
				if http && name != "" && !slices.Contains(n.uses[name], l.Direction) {
					n.uses[name] = append(n.uses[name], l.Direction)
				}
				if tc == nil {
					return
				}
				n.refs = append(n.refs, modulesOf(tc.Config)...)
				if t, ok := s.task(tc, l.Direction); http && ok {
					n.tasks = append(n.tasks, t)
				}
			})
		}
	}
	return n
}

// want makes needs those of the configuration.
func (s *Server) want(n *needs) {
	s.modules.Want(n.refs)
	s.workshop.retain(n.tasks)
}

// preparer is who prepares an HTTP filter, nil if that is not to be done.
func (s *Server) preparer(tc *xdsresource.TypedConfig) filters.Preparer {
	if tc.Config == nil || tc.Unknown != "" || s.opt.Offline {
		return nil
	}
	p, _ := s.opt.Registry.HTTP(tc.TypeURL).(filters.Preparer)
	return p
}

// task is how tc is prepared for a direction; there is none as long as one of its
// modules is missing.
func (s *Server) task(tc *xdsresource.TypedConfig, direction string) (t task, ok bool) {
	p := s.preparer(tc)
	if p == nil {
		return t, false
	}
	var sums strings.Builder
	for _, ref := range modulesOf(tc.Config) {
		if !s.modules.Here(ref) {
			return t, false
		}
		sum, _, _ := s.modules.Look(ref)
		sums.WriteString(sum)
	}
	t.key = jobKey{tc.TypeURL, direction, tc.Digest, sums.String()}
	t.name = tc.Name
	t.run = func(ctx context.Context) (io.Closer, error) {
		return p.Prepare(ctx, s.env(tc.Name, direction), tc.Config)
	}
	return t, true
}

// condition is how far a filter is.
type condition struct {
	// err is why it can't run, or not yet; nil: it can.
	err error
	// settled: nothing need wait for it any more.
	settled bool
	// fetched: its modules came from elsewhere, and are here.
	fetched bool
	// prepared is what was made for it.
	prepared io.Closer
}

// condition looks at a filter of a chain.
func (s *Server) condition(tc *xdsresource.TypedConfig, direction string) condition {
	c := condition{settled: true}
	for _, ref := range modulesOf(tc.Config) {
		if sum, settled, err := s.modules.Look(ref); sum == "" {
			c.err, c.settled = err, c.settled && settled
		}
		c.fetched = true
	}
	if c.err != nil {
		c.fetched = false
		return c
	}
	t, ok := s.task(tc, direction)
	if !ok {
		return c
	}
	j := s.workshop.look(t.key)
	if j == nil {
		c.err, c.settled = notPreparedError{}, false
		return c
	}
	c.err, c.prepared = j.err, j.made
	return c
}

// moduleState stands for the condition of a filter: what was compiled in another
// is compiled again.
func (s *Server) moduleState(tc *xdsresource.TypedConfig, direction string) string {
	refs := modulesOf(tc.Config)
	if len(refs) == 0 && s.preparer(tc) == nil {
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
	if c := s.condition(tc, direction); c.err != nil {
		out.WriteString(c.err.Error())
	}
	return out.String()
}

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

// prove says how a decoded resource is proven: if it has modules that are here,
// they are started before it is accepted.
func (s *Server) prove(name string, v any) xdsclient.Proof {
	var ts []task
	add := func(tc *xdsresource.TypedConfig, direction string) {
		t, ok := s.task(tc, direction)
		if !ok {
			return
		}
		if j := s.workshop.look(t.key); j == nil || j.err != nil {
			ts = append(ts, t)
		}
	}
	ext := ""
	switch v := v.(type) {
	case *xdsresource.ExtensionConfig:
		ext = name
		for _, d := range s.directionsOf(name) {
			add(&v.TypedConfig, d)
		}
	case *xdsresource.Listener:
		for _, fc := range chains(v) {
			filterConfigs(&Resources{}, fc, func(tc *xdsresource.TypedConfig, http bool, _ string) {
				if tc != nil && http {
					add(tc, v.Direction)
				}
			})
		}
	}
	if len(ts) == 0 {
		return nil
	}
	if ext != "" {
		s.workshop.proofBegins(ext)
	}
	return func(ctx context.Context) error {
		err := s.workshop.prove(ctx, ext, ts)
		if errors.Is(err, filters.ErrModulePending) {
			return nil // it was lost meanwhile: as if it were not here
		}
		return err
	}
}

// directionsOf are those that an extension configuration is used in, or may be.
func (s *Server) directionsOf(name string) []string {
	snap := s.snapshot.Load()
	if snap == nil {
		return []string{"inbound"}
	}
	var used, all []string
	for _, l := range snap.Resources.Listeners {
		for _, fc := range chains(l) {
			filterConfigs(snap.Resources, fc, func(_ *xdsresource.TypedConfig, http bool, n string) {
				if http && n == name && !slices.Contains(used, l.Direction) {
					used = append(used, l.Direction)
				}
				if http && !slices.Contains(all, l.Direction) {
					all = append(all, l.Direction)
				}
			})
		}
	}
	switch {
	case len(used) > 0:
		return used
	case len(all) > 0:
		return all[:1]
	}
	return []string{"inbound"}
}
