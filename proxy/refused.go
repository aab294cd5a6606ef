package proxy

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// A push is several messages, and what is put in force is what has come by then: a
// table or listener may be of one push and the clusters of the next, which has
// removed those that it names. It is passed over for the RemovalGrace: its successor
// is on the way. If that is refused, the rest of its push is taken over: what is in
// force keeps its clusters until something good comes, and a table that was not in
// force yet is passed over until then.

// passing finds what is to be passed over.
type passing struct {
	s    *Server
	prev *Snapshot
	res  *Resources
	// gone are the clusters that were removed before they were in force.
	gone  map[string]bool
	held  map[any]time.Time
	clung map[string]bool
	notes []Diagnostic
}

// passOver returns res with former tables and listeners in the place of those that
// name clusters which have been removed meanwhile. Those of the former ones are there.
func (s *Server) passOver(prev *Snapshot, res *Resources) (*Resources, []Diagnostic) {
	if prev == nil || s.opt.Refused == nil && s.opt.Passed == nil {
		return res, nil
	}
	p := passing{s: s, prev: prev, res: res, held: map[any]time.Time{}, clung: map[string]bool{}}
	if s.opt.Passed != nil && s.opt.RemovalGrace > 0 {
		p.gone = s.opt.Passed()
	}
	out := *res
	out.Routes = former(&p, res.Routes, prev.Resources.Routes, xdsresource.RouteType, "route_config ", namedByTable)
	out.Listeners = former(&p, res.Listeners, prev.Resources.Listeners, xdsresource.ListenerType, "listener ", namedByListener)
	s.held, s.clung = p.held, p.clung
	if len(p.notes) == 0 {
		return res, nil
	}
	slices.SortFunc(p.notes, func(a, b Diagnostic) int { return strings.Compare(a.Resource, b.Resource) })
	return &out, p.notes
}

// former returns next with those of prev that stay.
func former[T any](p *passing, next, prev map[string]*T, typeURL, kind string, named func(*T) map[string]bool) map[string]*T {
	var out map[string]*T
	for name, x := range next {
		old := prev[name]
		if old == nil || old == x {
			continue
		}
		// A listener has policies: one that was accepted is not put off for long.
		refused := typeURL == xdsresource.RouteType && p.s.refused(typeURL, name)
		if !refused && len(p.gone) == 0 || !p.stays(x, refused, named(old), named(x)) {
			continue
		}
		if out == nil {
			out = maps.Clone(next)
		}
		out[name] = old
		p.notes = append(p.notes, Diagnostic{
			Resource: kind + name, Severity: "warning", late: true,
			Message: "the version in force stays: the next one names clusters that were removed since; if this lasts, check why the newest version was rejected",
		})
	}
	if out == nil {
		return next
	}
	return out
}

// stays reports whether what names the clusters old stays in the place of x, which
// names those of next: old are there, or linger, and some of next are gone. Only for
// a refused successor that is more than the RemovalGrace.
func (p *passing) stays(x any, refused bool, old, next map[string]bool) bool {
	missing, gone := false, false
	for n := range next {
		if p.res.Cluster(n) == nil {
			missing, gone = true, gone || p.gone[n]
		}
	}
	if !missing || !refused && !gone {
		return false
	}
	for n := range old {
		if p.res.Cluster(n) == nil && p.prev.Resources.Cluster(n) == nil && p.s.linger.clusters[n] == nil {
			return false
		}
	}
	if !refused && !p.waits(x) {
		return false
	}
	maps.Copy(p.clung, old)
	return true
}

// waits reports whether x is to be waited with still.
func (p *passing) waits(x any) bool {
	now := time.Now()
	until, ok := p.s.held[x]
	if !ok {
		until = now.Add(p.s.opt.RemovalGrace)
		p.s.again(p.s.opt.RemovalGrace)
	}
	p.held[x] = until
	return now.Before(until)
}

// again puts the configuration in force again after d. The caller holds s.mu.
func (s *Server) again(d time.Duration) {
	s.laterIn(d, func() {
		if s.closed {
			return
		}
		if err := s.applyLocked(nil); err != nil {
			s.log.Error("applying configuration", "error", err)
		}
	})
}

// refused reports whether the newest version of a resource was.
func (s *Server) refused(typeURL, name string) bool {
	return s.opt.Refused != nil && s.opt.Refused(typeURL, name)
}

func namedByTable(rc *xdsresource.RouteConfiguration) map[string]bool {
	n := naming{named: map[string]bool{}}
	n.table(rc)
	return n.clusters()
}

func namedByListener(l *xdsresource.Listener) map[string]bool {
	n := naming{res: &Resources{}, named: map[string]bool{}}
	for _, fc := range chains(l) {
		n.chain(fc)
	}
	return n.clusters()
}

// clusters are the names without that of actions which have none.
func (n *naming) clusters() map[string]bool {
	delete(n.named, "")
	return n.named
}

// namedByRefused lists the clusters that are named by resources of res whose newest
// version was refused; any is as for namedClusters.
func (s *Server) namedByRefused(res *Resources) (named map[string]bool, any bool) {
	n := naming{res: &Resources{}, named: map[string]bool{}}
	if s.opt.Refused == nil {
		return n.named, false
	}
	for name, l := range res.Listeners {
		if s.refused(xdsresource.ListenerType, name) {
			for _, fc := range chains(l) {
				n.chain(fc)
			}
		}
	}
	for name, rc := range res.Routes {
		if s.refused(xdsresource.RouteType, name) {
			n.table(rc)
		}
	}
	return n.clusters(), n.any
}
