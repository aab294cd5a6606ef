package xdsresource

import (
	"strings"

	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	metadatav3pb "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	tracingv3pb "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3pb "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

func (s *scope) tracing(m *hcmv3pb.HttpConnectionManager_Tracing) *Tracing {
	t := &Tracing{
		ClientSampling:    percent(m.GetClientSampling(), 100),
		RandomSampling:    percent(m.GetRandomSampling(), 100),
		OverallSampling:   percent(m.GetOverallSampling(), 100),
		SpawnUpstreamSpan: m.GetSpawnUpstreamSpan().GetValue(),
		Tags:              s.tracingTags(m.GetCustomTags()),
	}
	if p := m.GetProvider(); p != nil {
		a := p.GetTypedConfig()
		t.Provider = &TypedConfig{Name: p.GetName(), TypeURL: typePrefix + ExtensionType(a), Digest: digest(p)}
		t.Provider.Unknown = "tracer " + ExtensionType(a) + " is not supported"
	}
	return t
}

func (s *scope) routeTracing(m *routev3pb.Tracing) *Tracing {
	pct := func(p *typev3pb.FractionalPercent) float64 {
		if p == nil {
			return 100
		}
		return 100 * fraction(p)
	}
	return &Tracing{
		ClientSampling:  pct(m.GetClientSampling()),
		RandomSampling:  pct(m.GetRandomSampling()),
		OverallSampling: pct(m.GetOverallSampling()),
		Tags:            s.tracingTags(m.GetCustomTags()),
	}
}

func (s *scope) tracingTags(ms []*tracingv3pb.CustomTag) []TracingTag {
	return mapEach(ms, func(i int, m *tracingv3pb.CustomTag) TracingTag {
		s.pushIndex("custom_tags", i)
		defer s.pop()
		t := TracingTag{Tag: m.GetTag()}
		if reason := s.isolate(func() { s.tracingTag(&t, m) }); reason != "" {
			s.ignore("", "the tag is left out: "+reason)
			t.Value = constant("")
		}
		return t
	})
}

// constant returns a format that renders text.
func constant(text string) *format.String {
	f, err := format.Compile(strings.ReplaceAll(text, "%", "%%"))
	if err != nil { // too long
		return nil
	}
	return f
}

func (s *scope) tracingTag(t *TracingTag, m *tracingv3pb.CustomTag) {
	switch v := m.GetType().(type) {
	case *tracingv3pb.CustomTag_Literal_:
		t.Value = constant(v.Literal.GetValue())
	case *tracingv3pb.CustomTag_Environment_:
		text, ok := s.d.opts.LookupEnv(v.Environment.GetName())
		if !ok {
			text = v.Environment.GetDefaultValue()
		}
		t.Value = constant(text)
	case *tracingv3pb.CustomTag_RequestHeader:
		t.RequestHeader, t.Default = strings.ToLower(v.RequestHeader.GetName()), v.RequestHeader.GetDefaultValue()
	case *tracingv3pb.CustomTag_Metadata_:
		t.Default = v.Metadata.GetDefaultValue()
		switch v.Metadata.GetKind().GetKind().(type) {
		case *metadatav3pb.MetadataKind_Route_:
			t.MetadataKind = "route"
		case *metadatav3pb.MetadataKind_Cluster_:
			t.MetadataKind = "cluster"
		case *metadatav3pb.MetadataKind_Host_:
			t.MetadataKind = "host"
		default:
			t.MetadataKind = "request"
		}
		var err error
		t.MetadataNS, t.MetadataPath, err = matcher.MetadataKeyFromProto(v.Metadata.GetMetadataKey())
		s.matcherErr("metadata.metadata_key", err)
	case *tracingv3pb.CustomTag_Value:
		t.Value = s.format("value", v.Value)
	default:
		s.unsupported("type", "%T is not supported", v)
	}
}

func (s *scope) localReply(m *hcmv3pb.LocalReplyConfig) *LocalReplyConfig {
	out := &LocalReplyConfig{}
	if f := m.GetBodyFormat(); f != nil {
		s.push("body_format")
		out.Body, out.JSONBody = s.substitution(f)
		out.ContentType = f.GetContentType()
		s.pop()
	}
	out.Mappers = mapEach(m.GetMappers(), func(i int, m *hcmv3pb.ResponseMapper) LocalReplyMapper {
		s.pushIndex("mappers", i)
		defer s.pop()
		s.push("filter")
		lm := LocalReplyMapper{Filter: s.logFilter(m.GetFilter(), 0), StatusCode: int(m.GetStatusCode().GetValue())}
		s.pop()
		if m.GetBody() != nil {
			b := string(s.data("body", m.GetBody()))
			lm.Body = &b
		}
		if f := m.GetBodyFormatOverride(); f != nil {
			s.push("body_format_override")
			lm.BodyFormat, lm.JSONBody = s.substitution(f)
			lm.ContentType = f.GetContentType()
			s.pop()
		}
		lm.Headers = s.headersToAdd("headers_to_add", m.GetHeadersToAdd())
		return lm
	})
	return out
}
