package proxy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Resources is one consistent set of decoded configuration: what a Snapshot is
// built from. The maps and everything in them are read-only.
type Resources struct {
	Listeners  map[string]*xdsresource.Listener
	Clusters   map[string]*xdsresource.Cluster
	Routes     map[string]*xdsresource.RouteConfiguration
	Extensions map[string]*xdsresource.ExtensionConfig
	Secrets    map[string]*xdsresource.Secret
	// Endpoints are assignments by EDS name.
	Endpoints map[string]*xdsresource.ClusterLoadAssignment
	// fileEndpoints are those of Endpoints that files hold.
	fileEndpoints map[string]*xdsresource.ClusterLoadAssignment
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
	for _, x := range r.Listeners {
		add("listener", &x.Resource)
	}
	for _, x := range r.Clusters {
		add("cluster", &x.Resource)
	}
	for _, x := range r.Routes {
		add("route_configuration", &x.Resource)
	}
	for _, x := range r.Extensions {
		add("extension_config", &x.Resource)
	}
	for _, x := range r.Secrets {
		add("secret", &x.Resource)
	}
	for _, x := range r.Endpoints {
		add("endpoints", &x.Resource)
	}
	slices.SortFunc(out, func(a, b Diagnostic) int {
		if c := strings.Compare(a.Resource, b.Resource); c != 0 {
			return c
		}
		return strings.Compare(a.Path, b.Path)
	})
	return out
}

// merge returns static resources overlaid by dynamic ones; a static resource
// wins over a dynamic one of the same name, as in Envoy.
func merge(static, dynamic *Resources) *Resources {
	return &Resources{
		Listeners:  overlay(static.Listeners, dynamic.Listeners),
		Clusters:   overlay(static.Clusters, dynamic.Clusters),
		Routes:     overlay(static.Routes, dynamic.Routes),
		Extensions: overlay(static.Extensions, dynamic.Extensions),
		Secrets:    overlay(static.Secrets, dynamic.Secrets),
		Endpoints:  overlay(static.Endpoints, dynamic.Endpoints),
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
