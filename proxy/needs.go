package proxy

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// notPreparedError is a filters.ErrModulePending in other words.
type notPreparedError struct{}

func (notPreparedError) Error() string { return "the module is being compiled and started" }

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
