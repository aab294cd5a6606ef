package xdsresource

import (
	"maps"
	"os"
	"slices"
	"strings"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tracev3pb "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	detectorsv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/resource_detectors/v3"
	samplersv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/samplers/v3"
	tracingv3pb "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3pb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	commonv1pb "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/otlp"
	"github.com/fairlead-mesh/fairlead/internal/tracing"
)

const (
	defaultMaxPathTag = 256
	defaultSpanQueue  = 1024
	defaultService    = "unknown_service:envoy"
)

// tracing decodes the tracing block. Traffic doesn't depend on it: what can't be
// executed is reported, and left out.
func (s *scope) tracing(m *hcmv3pb.HttpConnectionManager_Tracing) *Tracing {
	t := &Tracing{
		ClientSampling:       percent(m.GetClientSampling(), 100),
		RandomSampling:       percent(m.GetRandomSampling(), 100),
		OverallSampling:      percent(m.GetOverallSampling(), 100),
		MaxPathTagLength:     int(u32(m.GetMaxPathTagLength(), defaultMaxPathTag)),
		SpawnUpstreamSpan:    m.GetSpawnUpstreamSpan().GetValue(),
		NoContextPropagation: m.GetNoContextPropagation(),
		Tags:                 s.customTags("custom_tags", m.GetCustomTags()),
		Operation:            s.operation("operation", m.GetOperation()),
		UpstreamOperation:    s.operation("upstream_operation", m.GetUpstreamOperation()),
	}
	if m.GetProvider() == nil {
		return t
	}
	s.push("provider.typed_config")
	defer s.pop()
	a := m.GetProvider().GetTypedConfig()
	var c tracev3pb.OpenTelemetryConfig
	if !s.unpackStruct(a, &c) {
		s.ignore("", "no spans are exported: tracer "+ExtensionType(a)+" is not supported, use OpenTelemetry")
		return t
	}
	t.Provider = s.openTelemetry(&c)
	return t
}

// operation compiles a span's name, nil for "".
func (s *scope) operation(field, src string) *format.String {
	if src == "" {
		return nil
	}
	f, err := format.Compile(src)
	if err != nil {
		s.ignore(field, "spans have their default names: "+err.Error())
		return nil
	}
	return f
}

func (s *scope) openTelemetry(m *tracev3pb.OpenTelemetryConfig) *TracingProvider {
	rest, _ := proto.Clone(m).(*tracev3pb.OpenTelemetryConfig)
	rest.GrpcService, rest.HttpService = nil, nil // classified where they are decoded
	s.classify(rest)
	p := &TracingProvider{
		Digest: digest(m), MaxQueue: int(max(1, u32(m.GetMaxCacheSize(), defaultSpanQueue))),
		NoScope: !boolean(m.GetSetInstrumentationScope(), true),
	}
	if m.GetGrpcService() != nil && m.GetHttpService() != nil {
		s.errorf("", "only one of grpc_service and http_service may be set")
	}
	p.Target = s.collector(m.GetGrpcService(), m.GetHttpService(), otlp.TracesExport)
	if p.Target == nil {
		s.ignore("", "no spans are exported: there is no collector in a cluster")
	}
	if boolean(m.GetSetServiceNameResourceAttribute(), true) {
		name := m.GetServiceName()
		if name == "" {
			name = defaultService
		}
		p.Resource = append(p.Resource, otlp.Attribute("service.name", name))
	}
	if boolean(m.GetSetTelemetrySdkResourceAttributes(), true) {
		p.Resource = append(p.Resource, otlp.Attribute("telemetry.sdk.language", "go"), otlp.Attribute("telemetry.sdk.name", "fairlead"))
	}
	p.Resource = s.detect(p.Resource, m.GetResourceDetectors())
	if m.GetSampler() != nil {
		s.push("sampler.typed_config")
		p.Sampler = s.sampler(m.GetSampler())
		s.pop()
	}
	return p
}

// sampler decodes a tracer's sampler.
func (s *scope) sampler(m *corev3pb.TypedExtensionConfig) tracing.Sampler {
	var on samplersv3pb.AlwaysOnSamplerConfig
	var parent samplersv3pb.ParentBasedSamplerConfig
	switch a := m.GetTypedConfig(); {
	case s.unpackStruct(a, &on):
		return tracing.AlwaysOn
	case s.unpackStruct(a, &parent):
		if isType(parent.GetWrappedSampler().GetTypedConfig(), &on) {
			return tracing.ParentBased
		}
		s.ignore("wrapped_sampler", "the connection manager's percentages decide: only the always_on sampler may be wrapped")
	default:
		s.ignore("", "the connection manager's percentages decide: sampler "+ExtensionType(a)+" is not supported")
	}
	return tracing.NoSampler
}

// detect adds what resource detectors find.
func (s *scope) detect(out []*commonv1pb.KeyValue, ms []*corev3pb.TypedExtensionConfig) []*commonv1pb.KeyValue {
	for i, m := range ms {
		s.pushIndex("resource_detectors", i)
		var env detectorsv3pb.EnvironmentResourceDetectorConfig
		var static detectorsv3pb.StaticConfigResourceDetectorConfig
		switch a := m.GetTypedConfig(); {
		case s.unpackStruct(a, &env):
			for kv := range strings.SplitSeq(os.Getenv("OTEL_RESOURCE_ATTRIBUTES"), ",") {
				if k, v, ok := strings.Cut(kv, "="); ok && k != "" && v != "" {
					out = otlp.SetAttribute(out, otlp.Attribute(k, v))
				}
			}
		case s.unpackStruct(a, &static):
			for _, k := range slices.Sorted(maps.Keys(static.GetAttributes())) {
				if v := static.GetAttributes()[k]; k != "" && v != "" {
					out = otlp.SetAttribute(out, otlp.Attribute(k, v))
				}
			}
		default:
			s.ignore("typed_config", "resource detector "+ExtensionType(a)+" is not supported")
		}
		s.pop()
	}
	return out
}

// customTags compiles tags; what can't be compiled is reported and left out.
func (s *scope) customTags(field string, ms []*tracingv3pb.CustomTag) []tracing.Tag {
	var out []tracing.Tag
	for i, m := range ms {
		s.pushIndex(field, i)
		if t, ok := s.customTag(m); ok {
			t.Type = tracing.ValueType(max(0, m.GetValueType()-tracingv3pb.CustomTag_STRING))
			out = append(out, t)
		}
		s.pop()
	}
	return out
}

func (s *scope) customTag(m *tracingv3pb.CustomTag) (tracing.Tag, bool) {
	switch v := m.GetType().(type) {
	case *tracingv3pb.CustomTag_Literal_:
		return tracing.LiteralTag(m.GetTag(), v.Literal.GetValue()), true
	case *tracingv3pb.CustomTag_Environment_:
		value, ok := os.LookupEnv(v.Environment.GetName())
		if !ok {
			value = v.Environment.GetDefaultValue()
		}
		return tracing.LiteralTag(m.GetTag(), value), true
	case *tracingv3pb.CustomTag_RequestHeader:
		return tracing.HeaderTag(m.GetTag(), strings.ToLower(v.RequestHeader.GetName()), v.RequestHeader.GetDefaultValue()), true
	case *tracingv3pb.CustomTag_Metadata_:
		return s.metadataTag(m.GetTag(), v.Metadata)
	case *tracingv3pb.CustomTag_Value:
		f, err := format.Compile(v.Value)
		if err != nil {
			s.ignore("value", "the tag is left out: "+err.Error())
			return tracing.Tag{}, false
		}
		return tracing.FormatTag(m.GetTag(), f, ""), true
	}
	s.ignore("", "the tag is left out: it has no value")
	return tracing.Tag{}, false
}

// metadataTag is the operator %METADATA(…)% for the tag's kind and key.
func (s *scope) metadataTag(name string, m *tracingv3pb.CustomTag_Metadata) (tracing.Tag, bool) {
	kind := "DYNAMIC"
	switch {
	case m.GetKind().GetRoute() != nil:
		kind = "ROUTE"
	case m.GetKind().GetCluster() != nil:
		kind = "CLUSTER"
	case m.GetKind().GetHost() != nil:
		kind = "UPSTREAM_HOST"
	}
	parts := []string{kind, m.GetMetadataKey().GetKey()}
	for _, p := range m.GetMetadataKey().GetPath() {
		parts = append(parts, p.GetKey())
	}
	for _, p := range parts {
		if p == "" || strings.ContainsAny(p, ":()%") {
			s.ignore("metadata.metadata_key", "the tag is left out: keys must have no colon, bracket, percent sign, or index")
			return tracing.Tag{}, false
		}
	}
	f, err := format.Compile("%METADATA(" + strings.Join(parts, ":") + ")%")
	if err != nil {
		s.ignore("metadata", "the tag is left out: "+err.Error())
		return tracing.Tag{}, false
	}
	return tracing.FormatTag(name, f, m.GetDefaultValue()), true
}

// routeTracing decodes a route's tracing.
func (s *scope) routeTracing(m *routev3pb.Tracing) *RouteTracing {
	share := func(p *typev3pb.FractionalPercent) float64 {
		if p == nil {
			return 1
		}
		return fraction(p)
	}
	return &RouteTracing{
		ClientSampling: share(m.GetClientSampling()), RandomSampling: share(m.GetRandomSampling()), OverallSampling: share(m.GetOverallSampling()),
		Span: tracing.Route{
			Tags:      s.customTags("custom_tags", m.GetCustomTags()),
			Operation: s.operation("operation", m.GetOperation()), UpstreamOperation: s.operation("upstream_operation", m.GetUpstreamOperation()),
		},
	}
}
