package proxy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fairlead-mesh/fairlead/xdsclient"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Resources is one consistent set of decoded configuration: what a Snapshot is
// built from. The maps and everything in them are read-only.
type Resources struct {
	Listeners map[string]*xdsresource.Listener
	// Clusters are those that did not come from a control plane. Cluster finds all.
	Clusters   map[string]*xdsresource.Cluster
	Routes     map[string]*xdsresource.RouteConfiguration
	Extensions map[string]*xdsresource.ExtensionConfig
	Secrets    map[string]*xdsresource.Secret
	// Endpoints are assignments by EDS name that did not come from a control plane.
	Endpoints map[string]*xdsresource.ClusterLoadAssignment
	// fileEndpoints are those of Endpoints that files hold.
	fileEndpoints map[string]*xdsresource.ClusterLoadAssignment
	// view holds the clusters and endpoints of the control plane, which may be many:
	// they are not copied. Clusters and Endpoints win over what it has of the same name.
	view *xdsclient.View
}

// Cluster returns the cluster called name, nil if there is none.
func (r *Resources) Cluster(name string) *xdsresource.Cluster {
	if c := r.Clusters[name]; c != nil {
		return c
	}
	return fromView[*xdsresource.Cluster](r, xdsresource.ClusterType, name)
}

// endpoints returns the assignment of an EDS name, nil if there is none.
func (r *Resources) endpoints(name string) *xdsresource.ClusterLoadAssignment {
	if a := r.Endpoints[name]; a != nil {
		return a
	}
	return fromView[*xdsresource.ClusterLoadAssignment](r, xdsresource.EndpointsType, name)
}

func fromView[T any](r *Resources, typeURL, name string) T {
	var none T
	if r.view == nil {
		return none
	}
	res, _ := r.view.Get(typeURL, name)
	t, _ := res.Value.(T)
	return t
}

// changedClusters lists the names whose cluster is not the same in a and b, sorted.
func changedClusters(a, b *Resources) []string {
	names := map[string]struct{}{}
	note := func(n string) {
		if a.Cluster(n) != b.Cluster(n) {
			names[n] = struct{}{}
		}
	}
	for n := range a.Clusters {
		note(n)
	}
	for n := range b.Clusters {
		note(n)
	}
	xdsclient.Diff(a.view, b.view, xdsresource.ClusterType, func(n string, _, _ any) { note(n) })
	return sortedKeys(names)
}

// Diagnostic is something an operator should know about the configuration: a
// part that isn't executed, or not as configured.
type Diagnostic struct {
	// Resource is "listener connect_terminate", "cluster x"; Path the place in it.
	Resource string `json:"resource"`
	Path     string `json:"path"`
	// Severity is "error" for what fails closed or is broken, "ignored" for
	// fields without effect, "warning" for the rest.
	Severity string `json:"severity"`
	Message  string `json:"message"`
	// at is the path with indexes inside a listener, for static ones.
	at string
	// late is set if what is missing may still arrive.
	late bool
}

// String formats d in one line.
func (d Diagnostic) String() string {
	return fmt.Sprintf("%s: %s: %s: %s", d.Severity, d.Resource, d.Path, d.Message)
}

// IgnoredFields lists what r holds and Fairlead doesn't execute, sorted.
func (r *Resources) IgnoredFields() []Diagnostic {
	var out []Diagnostic
	add := func(kind string, res *xdsresource.Resource) {
		for _, ig := range res.Ignored {
			out = append(out, Diagnostic{Resource: kind + " " + res.Name, Path: ig.Path, Severity: "ignored", Message: ig.Reason})
		}
	}
	r.eachOwn(add)
	for _, t := range manyTypes {
		if r.view == nil {
			break
		}
		for x := range r.view.All(t.url) {
			if !r.shadows(t.url, x.Name) {
				add(t.kind, resourceOf(x.Value))
			}
		}
	}
	slices.SortFunc(out, func(a, b Diagnostic) int {
		if c := strings.Compare(a.Resource, b.Resource); c != 0 {
			return c
		}
		return strings.Compare(a.Path, b.Path)
	})
	return out
}

// manyTypes are those that a view holds for Resources.
var manyTypes = []struct{ url, kind string }{{xdsresource.ClusterType, "cluster"}, {xdsresource.EndpointsType, "endpoints"}}

func resourceOf(v any) *xdsresource.Resource {
	switch v := v.(type) {
	case *xdsresource.Cluster:
		return &v.Resource
	case *xdsresource.ClusterLoadAssignment:
		return &v.Resource
	}
	return &xdsresource.Resource{}
}

// shadows reports whether a resource of the view does not count.
func (r *Resources) shadows(typeURL, name string) bool {
	if typeURL == xdsresource.ClusterType {
		return r.Clusters[name] != nil
	}
	return r.Endpoints[name] != nil
}

// eachOwn calls f for all resources but those of the view.
func (r *Resources) eachOwn(f func(kind string, res *xdsresource.Resource)) {
	for _, x := range r.Listeners {
		f("listener", &x.Resource)
	}
	for _, x := range r.Clusters {
		f("cluster", &x.Resource)
	}
	for _, x := range r.Routes {
		f("route_configuration", &x.Resource)
	}
	for _, x := range r.Extensions {
		f("extension_config", &x.Resource)
	}
	for _, x := range r.Secrets {
		f("secret", &x.Resource)
	}
	for _, x := range r.Endpoints {
		f("endpoints", &x.Resource)
	}
}

// ignored counts IgnoredFields. Of the view, only what differs from before's is
// looked at: beforeView is how many fields that had.
func (r *Resources) ignored(before *Resources, beforeView int) (all, inView int) {
	r.eachOwn(func(_ string, res *xdsresource.Resource) { all += len(res.Ignored) })
	inView = beforeView
	for _, t := range manyTypes {
		xdsclient.Diff(before.view, r.view, t.url, func(_ string, was, is any) {
			inView += len(resourceOf(is).Ignored) - len(resourceOf(was).Ignored)
		})
	}
	all += inView
	for n := range r.Clusters {
		if c := fromView[*xdsresource.Cluster](r, xdsresource.ClusterType, n); c != nil {
			all -= len(c.Ignored)
		}
	}
	for n := range r.Endpoints {
		if a := fromView[*xdsresource.ClusterLoadAssignment](r, xdsresource.EndpointsType, n); a != nil {
			all -= len(a.Ignored)
		}
	}
	return all, inView
}

// merge returns static resources overlaid by dynamic ones; a static resource
// wins over a dynamic one of the same name, as in Envoy. Static ones have no view.
func merge(static, dynamic *Resources) *Resources {
	return &Resources{
		Listeners:  overlay(static.Listeners, dynamic.Listeners),
		Clusters:   overlay(static.Clusters, dynamic.Clusters),
		Routes:     overlay(static.Routes, dynamic.Routes),
		Extensions: overlay(static.Extensions, dynamic.Extensions),
		Secrets:    overlay(static.Secrets, dynamic.Secrets),
		Endpoints:  overlay(static.Endpoints, dynamic.Endpoints),
		view:       dynamic.view,
	}
}

func overlay[V any](static, dynamic map[string]V) map[string]V {
	if len(static) == 0 {
		return dynamic
	}
	if len(dynamic) == 0 {
		return static
	}
	out := maps.Clone(dynamic)
	maps.Copy(out, static)
	return out
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
