package proxy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/fairlead-mesh/fairlead/xdsclient"
	"github.com/fairlead-mesh/fairlead/xdsclient/filesource"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// XDSTypes are the resource types that s is configured by, in the order of
// subscription, with what each needs. dec must not be nil. Further types
// (workloads) are appended by the caller.
func (s *Server) XDSTypes(dec *xdsresource.Decoder) []xdsclient.ResourceType {
	decode := func(typeURL string) xdsclient.Decoder {
		return func(_ string, b []byte) (any, []xdsclient.Key, error) {
			v, err := dec.Decode(typeURL, b)
			if err != nil {
				return nil, nil, err
			}
			if err := s.executable(v); err != nil {
				return nil, nil, err
			}
			r := refsOf(v)
			if len(r.files) > 0 || len(r.apis) > 0 {
				s.refersElsewhere.Store(true)
			}
			return v, r.keys, nil
		}
	}
	return []xdsclient.ResourceType{
		{TypeURL: xdsresource.ClusterType, KeepRaw: true, Decode: decode(xdsresource.ClusterType), Wildcard: true},
		{TypeURL: xdsresource.EndpointsType, KeepRaw: true, Decode: decode(xdsresource.EndpointsType), KeepRemoved: true, OnChange: s.onEndpoints},
		{TypeURL: xdsresource.ListenerType, KeepRaw: true, Decode: decode(xdsresource.ListenerType), Prove: s.prove, Wildcard: true, After: []string{xdsresource.ClusterType}},
		{TypeURL: xdsresource.RouteType, KeepRaw: true, Decode: decode(xdsresource.RouteType), KeepRemoved: true, Last: true},
		{TypeURL: xdsresource.ExtensionConfigType, KeepRaw: true, Decode: decode(xdsresource.ExtensionConfigType), Prove: s.prove},
		{TypeURL: xdsresource.SecretType, Decode: decode(xdsresource.SecretType), KeepRemoved: true, NoWait: true},
	}
}

// executable refuses an extension configuration of a known type that can't be
// executed: a NACK leaves the former one in force, and without one the filter
// answers for itself. Unknown types are a matter of the filter that names them,
// which may be optional. A plugin that fails open is refused only if there is a
// former one: that is safer than none.
func (s *Server) executable(v any) error {
	if err := s.reachable(v); err != nil {
		return err
	}
	e, ok := v.(*xdsresource.ExtensionConfig)
	if !ok {
		return nil
	}
	for _, tc := range []*xdsresource.TypedConfig{&e.TypedConfig, e.Network, e.Listener} {
		if tc != nil && tc.Unknown == "" {
			return nil
		}
	}
	if e.FailOpen {
		if s.holds(e.Resource.Name) {
			return errors.New(e.Unknown)
		}
		return nil
	}
	if r := s.opt.Registry; r.HTTP(e.TypeURL) == nil && r.Network(e.TypeURL) == nil && r.Listener(e.TypeURL) == nil {
		return nil
	}
	return errors.New(e.Unknown)
}

// reachable refuses what a server is to bring that is no static cluster, as Envoy
// does. Secrets are not looked at: an agent's are made here if there is none, and
// handshakes fail without others.
func (s *Server) reachable(v any) error {
	for _, r := range refsOf(v).apis {
		if r.key.TypeURL != xdsresource.SecretType && !s.isStatic(r.server.Cluster) {
			_, kind, _ := strings.Cut(r.key.TypeURL, "/")
			return fmt.Errorf("the %s %q is to come from %q: api_config_source must name one of the bootstrap's static clusters", kind, r.key.Name, r.server.Cluster)
		}
	}
	return nil
}

// asks tells whether a server is to be asked for something: not for secrets that
// are made here.
func (s *Server) asks(r apiRef) bool {
	if !s.isStatic(r.server.Cluster) {
		return false
	}
	return r.key.TypeURL != xdsresource.SecretType || !s.secrets.Own(r.key.Name, &xdsresource.ConfigSource{APIServer: r.server})
}

func (s *Server) isStatic(cluster string) bool { return s.opt.Static.Clusters[cluster] != nil }

// holds tells whether an executable extension configuration is in force.
func (s *Server) holds(name string) bool {
	snap := s.snapshot.Load()
	if snap == nil {
		return false
	}
	e := snap.Resources.Extensions[name]
	return e != nil && e.Unknown == ""
}

// onEndpoints is the fast path of EDS.
func (s *Server) onEndpoints(changes []xdsclient.Change) {
	for i := range changes {
		c := &changes[i]
		cla, _ := c.Value.(*xdsresource.ClusterLoadAssignment)
		s.UpdateEndpoints(c.Name, cla)
	}
}

// resourcesOf returns what v holds. What is the same in before, which is of a former
// View or nil, is taken from there.
func resourcesOf(v *xdsclient.View, before *Resources) *Resources {
	if before == nil {
		before = &Resources{}
	}
	return &Resources{
		Listeners:  typed(v, before.view, xdsresource.ListenerType, before.Listeners),
		Routes:     typed(v, before.view, xdsresource.RouteType, before.Routes),
		Extensions: typed(v, before.view, xdsresource.ExtensionConfigType, before.Extensions),
		Secrets:    typed(v, before.view, xdsresource.SecretType, before.Secrets),
		view:       v,
	}
}

func typed[T any](v, before *xdsclient.View, typeURL string, had map[string]T) map[string]T {
	if had != nil && v.Same(before, typeURL) {
		return had
	}
	out := make(map[string]T, v.Len(typeURL))
	for r := range v.All(typeURL) {
		if t, ok := r.Value.(T); ok {
			out[r.Name] = t
		}
	}
	return out
}

// references lists the resources that a decoded one needs from the control
// plane: endpoints of EDS clusters, route configurations, extension
// configurations, secrets.
func references(v any) []xdsclient.Key { return refsOf(v).keys }

// fileReferences lists what it needs from watched files.
func fileReferences(v any) []filesource.Ref { return refsOf(v).files }

func refsOf(v any) *refs {
	var r refs
	switch v := v.(type) {
	case *xdsresource.Cluster:
		r.cluster(v)
	case *xdsresource.Listener:
		for i := range v.ListenerFilters {
			if f := &v.ListenerFilters[i]; f.ConfigDiscovery != nil {
				r.add(f.ConfigDiscovery.Source, xdsresource.ExtensionConfigType, f.Name)
			}
		}
		for _, fc := range v.FilterChains {
			r.chain(fc)
		}
		if v.DefaultFilterChain != nil {
			r.chain(v.DefaultFilterChain)
		}
	}
	return &r
}

// apiReferences lists what it needs from servers of api_config_source.
func apiReferences(v any) []apiRef { return refsOf(v).apis }

type refs struct {
	keys  []xdsclient.Key
	files []filesource.Ref
	apis  []apiRef
}

func (r *refs) add(src xdsresource.ConfigSource, typeURL, name string) {
	k := xdsclient.Key{TypeURL: typeURL, Name: name}
	switch {
	case name == "":
	case src.ADS:
		r.keys = append(r.keys, k)
	case src.Path != "":
		r.files = append(r.files, filesource.Ref{Key: k, Path: src.Path, Watch: src.Watch})
	case src.Cluster != "":
		r.apis = append(r.apis, apiRef{k, src.APIServer})
	}
}

func (r *refs) cluster(c *xdsresource.Cluster) {
	if c.Discovery == xdsresource.DiscoveryEDS {
		name := c.EDSServiceName
		if name == "" {
			name = c.Name
		}
		r.add(c.EDSSource, xdsresource.EndpointsType, name)
	}
	if t := c.TransportSocket.TLS; t != nil {
		r.tls(&t.CommonTLS)
	}
	for i := range c.Matches {
		if t := c.Matches[i].Socket.TLS; t != nil {
			r.tls(&t.CommonTLS)
		}
	}
}

func (r *refs) tls(t *xdsresource.CommonTLS) {
	for i := range t.Certificates {
		r.add(t.Certificates[i].SDSSource, xdsresource.SecretType, t.Certificates[i].SDSName)
	}
	if t.Validation != nil {
		r.add(t.Validation.SDSSource, xdsresource.SecretType, t.Validation.SDSName)
	}
}

func (r *refs) chain(fc *xdsresource.FilterChain) {
	if fc.TransportSocket != nil {
		r.tls(&fc.TransportSocket.CommonTLS)
	}
	for i := range fc.Filters {
		f := &fc.Filters[i]
		if f.ConfigDiscovery != nil {
			r.add(f.ConfigDiscovery.Source, xdsresource.ExtensionConfigType, f.Name)
		}
		if h := f.HCM; h != nil {
			r.add(h.RDSSource, xdsresource.RouteType, h.RDSName)
			for k := range h.HTTPFilters {
				if d := h.HTTPFilters[k].ConfigDiscovery; d != nil {
					r.add(d.Source, xdsresource.ExtensionConfigType, h.HTTPFilters[k].Name)
				}
			}
		}
	}
}
