package proxy

import (
	"maps"
	"slices"
	"strings"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// A resource whose newest version was refused stays what it was, while the rest of
// its push is taken over. That may have removed the clusters which the old version
// names: they stay for it, and a version that was never in force is passed over.

// refused reports whether the newest version of a resource was.
func (s *Server) refused(typeURL, name string) bool {
	return s.opt.Refused != nil && s.opt.Refused(typeURL, name)
}

// holdRefused returns res with former tables and listeners in the place of those
// that were accepted and superseded before they came into force, if what supersedes
// them was refused and the clusters that they name are gone. Those of the former ones
// are there.
func (s *Server) holdRefused(prev *Snapshot, res *Resources) (*Resources, []Diagnostic) {
	if prev == nil || s.opt.Refused == nil {
		return res, nil
	}
	var notes []Diagnostic
	var tables map[string]*xdsresource.RouteConfiguration
	for name, rc := range res.Routes {
		old := prev.Resources.Routes[name]
		if old == nil || old == rc || !s.refused(xdsresource.RouteType, name) || !s.outlived(prev, res, namedByTable(old), namedByTable(rc)) {
			continue
		}
		if tables == nil {
			tables = maps.Clone(res.Routes)
		}
		tables[name] = old
		notes = append(notes, heldBack("route_config "+name))
	}
	var listeners map[string]*xdsresource.Listener
	for name, l := range res.Listeners {
		old := prev.Resources.Listeners[name]
		if old == nil || old == l || !s.refused(xdsresource.ListenerType, name) || !s.outlived(prev, res, namedByListener(old), namedByListener(l)) {
			continue
		}
		if listeners == nil {
			listeners = maps.Clone(res.Listeners)
		}
		listeners[name] = old
		notes = append(notes, heldBack("listener "+name))
	}
	if len(notes) == 0 {
		return res, nil
	}
	out := *res
	if tables != nil {
		out.Routes = tables
	}
	if listeners != nil {
		out.Listeners = listeners
	}
	slices.SortFunc(notes, func(a, b Diagnostic) int { return strings.Compare(a.Resource, b.Resource) })
	return &out, notes
}

func heldBack(resource string) Diagnostic {
	return Diagnostic{
		Resource: resource, Severity: "warning", late: true,
		Message: "the version in force stays: the one after it names clusters that were removed since, and the newest was refused; check why the control plane's last push was rejected",
	}
}

// outlived reports whether the clusters of old are there, or linger, and one of
// next is not.
func (s *Server) outlived(prev *Snapshot, res *Resources, old, next map[string]bool) bool {
	for n := range old {
		if res.Clusters[n] == nil && prev.Resources.Clusters[n] == nil && s.linger.clusters[n] == nil {
			return false
		}
	}
	for n := range next {
		if res.Clusters[n] == nil {
			return true
		}
	}
	return false
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
