// Package configdump renders the configuration of a proxy as Envoy's admin
// interface does (envoy.admin.v3.ConfigDump), from the bytes as they were
// received, so that istioctl proxy-config and other tools of the field can read
// it. Secrets are redacted as Envoy redacts them: by the annotation of the
// field.
package configdump

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	adminv3pb "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	bootstrapv3pb "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Resource is one dynamic resource.
type Resource struct {
	Name, Version string
	// Raw is the resource in force as it was received, nil if there is none.
	Raw     []byte
	Updated time.Time
	// Error says why the newest version, FailedVersion, was rejected at Failed.
	Error, FailedVersion string
	Failed               time.Time
}

// Config is what is dumped.
type Config struct {
	// Bootstrap is a serialized envoy.config.bootstrap.v3.Bootstrap, nil if the
	// proxy was not started from one.
	Bootstrap []byte
	// Start is when the static resources were loaded.
	Start time.Time
	// Dynamic are the control plane's resources by type URL.
	Dynamic map[string][]Resource
}

// Options select what Build renders.
type Options struct {
	// Endpoints adds EDS resources, as Envoy's include_eds does.
	Endpoints bool
}

// Build returns the entries of "configs", each an object with "@type", in
// Envoy's order. A resource that can't be rendered is an error in its place, not
// the end of the dump.
func Build(c *Config, o Options) []json.RawMessage {
	b := builder{c: c, start: timestamppb.New(c.Start)}
	if c.Bootstrap != nil {
		if err := proto.Unmarshal(c.Bootstrap, &b.bootstrap); err == nil {
			m := proto.CloneOf(&b.bootstrap)
			b.add(&adminv3pb.BootstrapConfigDump{Bootstrap: m, LastUpdated: b.start})
		}
	}
	b.clusters()
	if o.Endpoints {
		b.endpoints()
	}
	b.listeners()
	b.routes()
	b.extensions()
	b.secrets()
	return b.out
}

type builder struct {
	c         *Config
	start     *timestamppb.Timestamp
	bootstrap bootstrapv3pb.Bootstrap
	out       []json.RawMessage
}

// marshal is Envoy's form: names as in the .proto files.
var marshal = protojson.MarshalOptions{UseProtoNames: true}

// add redacts m and renders it.
func (b *builder) add(m proto.Message) {
	redact(m.ProtoReflect(), false)
	a, err := anypb.New(m)
	var text []byte
	if err == nil {
		text, err = marshal.Marshal(a)
	}
	if err != nil {
		text, _ = json.Marshal(map[string]string{"@type": "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()), "error": err.Error()}) //nolint:errchkjson // strings
	}
	b.out = append(b.out, text)
}

// dynamic returns the resources of a type by name.
func (b *builder) dynamic(typeURL string) []Resource {
	rs := slices.Clone(b.c.Dynamic[typeURL])
	slices.SortFunc(rs, func(x, y Resource) int { return strings.Compare(x.Name, y.Name) })
	return rs
}

// version is what Envoy calls the version of a type; in delta xDS resources have
// their own, and the newest stands for all.
func version(rs []Resource) string {
	var newest *Resource
	for i := range rs {
		if newest == nil || rs[i].Updated.After(newest.Updated) {
			newest = &rs[i]
		}
	}
	if newest == nil {
		return ""
	}
	return newest.Version
}

func (r *Resource) any(typeURL string) *anypb.Any {
	if r.Raw == nil {
		return nil
	}
	return &anypb.Any{TypeUrl: typeURL, Value: r.Raw}
}

// failure is the error_state of a resource, nil if its newest version is in
// force.
func (r *Resource) failure() *adminv3pb.UpdateFailureState {
	if r.Error == "" {
		return nil
	}
	return &adminv3pb.UpdateFailureState{LastUpdateAttempt: timestamppb.New(r.Failed), Details: r.Error, VersionInfo: r.FailedVersion}
}

func wrap(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		return nil
	}
	return a
}

func (b *builder) clusters() {
	rs := b.dynamic(xdsresource.ClusterType)
	d := &adminv3pb.ClustersConfigDump{VersionInfo: version(rs)}
	for _, c := range b.bootstrap.GetStaticResources().GetClusters() {
		d.StaticClusters = append(d.StaticClusters, &adminv3pb.ClustersConfigDump_StaticCluster{Cluster: wrap(c), LastUpdated: b.start})
	}
	for i := range rs {
		r := &rs[i]
		e := &adminv3pb.ClustersConfigDump_DynamicCluster{VersionInfo: r.Version, Cluster: r.any(xdsresource.ClusterType), ErrorState: r.failure()}
		if r.Raw == nil {
			d.DynamicWarmingClusters = append(d.DynamicWarmingClusters, e)
			continue
		}
		e.LastUpdated = timestamppb.New(r.Updated)
		d.DynamicActiveClusters = append(d.DynamicActiveClusters, e)
	}
	b.add(d)
}

func (b *builder) listeners() {
	rs := b.dynamic(xdsresource.ListenerType)
	d := &adminv3pb.ListenersConfigDump{VersionInfo: version(rs)}
	for _, l := range b.bootstrap.GetStaticResources().GetListeners() {
		d.StaticListeners = append(d.StaticListeners, &adminv3pb.ListenersConfigDump_StaticListener{Listener: wrap(l), LastUpdated: b.start})
	}
	for i := range rs {
		r := &rs[i]
		e := &adminv3pb.ListenersConfigDump_DynamicListener{Name: r.Name, ErrorState: r.failure()}
		if r.Raw != nil {
			e.ActiveState = &adminv3pb.ListenersConfigDump_DynamicListenerState{VersionInfo: r.Version, Listener: r.any(xdsresource.ListenerType), LastUpdated: timestamppb.New(r.Updated)}
		}
		d.DynamicListeners = append(d.DynamicListeners, e)
	}
	b.add(d)
}

func (b *builder) routes() {
	d := &adminv3pb.RoutesConfigDump{}
	rs := b.dynamic(xdsresource.RouteType)
	for i := range rs {
		r := &rs[i]
		d.DynamicRouteConfigs = append(d.DynamicRouteConfigs, &adminv3pb.RoutesConfigDump_DynamicRouteConfig{
			VersionInfo: r.Version, RouteConfig: r.any(xdsresource.RouteType), LastUpdated: timestamppb.New(r.Updated), ErrorState: r.failure(),
		})
	}
	for _, c := range inlineRoutes(&b.bootstrap) {
		d.StaticRouteConfigs = append(d.StaticRouteConfigs, &adminv3pb.RoutesConfigDump_StaticRouteConfig{RouteConfig: wrap(c), LastUpdated: b.start})
	}
	for _, l := range b.dynamic(xdsresource.ListenerType) {
		for _, c := range routesOf(l.Raw) {
			d.StaticRouteConfigs = append(d.StaticRouteConfigs, &adminv3pb.RoutesConfigDump_StaticRouteConfig{RouteConfig: wrap(c), LastUpdated: timestamppb.New(l.Updated)})
		}
	}
	b.add(d)
}

func (b *builder) endpoints() {
	d := &adminv3pb.EndpointsConfigDump{}
	for _, r := range b.dynamic(xdsresource.EndpointsType) {
		d.DynamicEndpointConfigs = append(d.DynamicEndpointConfigs, &adminv3pb.EndpointsConfigDump_DynamicEndpointConfig{
			VersionInfo: r.Version, EndpointConfig: r.any(xdsresource.EndpointsType), LastUpdated: timestamppb.New(r.Updated), ErrorState: r.failure(),
		})
	}
	for _, c := range b.bootstrap.GetStaticResources().GetClusters() {
		if a := c.GetLoadAssignment(); a != nil {
			d.StaticEndpointConfigs = append(d.StaticEndpointConfigs, &adminv3pb.EndpointsConfigDump_StaticEndpointConfig{EndpointConfig: wrap(a), LastUpdated: b.start})
		}
	}
	b.add(d)
}

func (b *builder) extensions() {
	rs := b.dynamic(xdsresource.ExtensionConfigType)
	if len(rs) == 0 {
		return
	}
	d := &adminv3pb.EcdsConfigDump{}
	for i := range rs {
		r := &rs[i]
		d.EcdsFilters = append(d.EcdsFilters, &adminv3pb.EcdsConfigDump_EcdsFilterConfig{
			VersionInfo: r.Version, EcdsFilter: r.any(xdsresource.ExtensionConfigType), LastUpdated: timestamppb.New(r.Updated), ErrorState: r.failure(),
		})
	}
	b.add(d)
}

// secrets names the control plane's secrets; their content is never kept.
func (b *builder) secrets() {
	rs := b.dynamic(xdsresource.SecretType)
	d := &adminv3pb.SecretsConfigDump{}
	for i := range rs {
		r := &rs[i]
		d.DynamicActiveSecrets = append(d.DynamicActiveSecrets, &adminv3pb.SecretsConfigDump_DynamicSecret{
			Name: r.Name, VersionInfo: r.Version, LastUpdated: timestamppb.New(r.Updated), ErrorState: r.failure(),
		})
	}
	for _, s := range b.bootstrap.GetStaticResources().GetSecrets() {
		d.StaticSecrets = append(d.StaticSecrets, &adminv3pb.SecretsConfigDump_StaticSecret{Name: s.GetName(), LastUpdated: b.start, Secret: wrap(s)})
	}
	b.add(d)
}
