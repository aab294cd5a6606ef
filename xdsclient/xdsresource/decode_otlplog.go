package xdsresource

import (
	"strings"
	"time"

	openv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/otlp"
	"github.com/fairlead-mesh/fairlead/internal/tracing"
)

// otlpLog decodes an OpenTelemetry access logger. common_config is deprecated,
// and what istiod sends; fields beside it come first.
func (s *scope) otlpLog(m *openv3pb.OpenTelemetryAccessLogConfig) *OTLPLog {
	rest, _ := proto.Clone(m).(*openv3pb.OpenTelemetryAccessLogConfig)
	rest.GrpcService, rest.HttpService = nil, nil // classified where they are decoded
	common := m.GetCommonConfig()
	if rest.GetCommonConfig() != nil {
		rest.CommonConfig.GrpcService = nil
	}
	s.classify(rest)
	out := &OTLPLog{
		Exporter: otlpExporter(m),
		LogName:  m.GetLogName(), Builtin: !m.GetDisableBuiltinLabels(), Resource: m.GetResourceAttributes().GetValues(),
		Tags:  append(s.stateTags(m.GetFilterStateObjectsToLog()), s.customTags("custom_tags", m.GetCustomTags())...),
		Flush: s.duration("buffer_flush_interval", m.GetBufferFlushInterval(), 0),
	}
	grpc, field := m.GetGrpcService(), ""
	switch {
	case grpc != nil, m.GetHttpService() != nil:
	case common != nil:
		s.push("common_config")
		grpc, field = common.GetGrpcService(), "common_config"
		if out.LogName == "" {
			out.LogName = common.GetLogName()
		}
		if out.Flush == 0 {
			out.Flush = s.duration("buffer_flush_interval", common.GetBufferFlushInterval(), 0)
		}
	}
	out.Target = s.collector(grpc, m.GetHttpService(), otlp.LogsExport)
	if field != "" {
		s.pop()
	}
	if out.Target == nil {
		s.unsupported(field, "no collector in a cluster")
	}
	if out.Flush == 0 {
		out.Flush = time.Second
	}
	s.formatters(m.GetFormatters())
	out.Resource = append(s.detect(nil, m.GetResourceDetectors()), out.Resource...)
	var err error
	if m.GetBody() != nil {
		out.Body, err = otlp.CompileValue(m.GetBody())
		s.unsupportedErr("body", err)
	}
	out.Attributes, err = otlp.CompileAttributes(m.GetAttributes())
	s.unsupportedErr("attributes", err)
	return out
}

// stateTags are attributes with filter-state objects as JSON; absent ones are
// left out.
func (s *scope) stateTags(keys []string) []tracing.Tag {
	var out []tracing.Tag
	for i, key := range keys {
		f, err := format.Compile("%FILTER_STATE(" + key + ":TYPED)%")
		if err != nil || strings.ContainsAny(key, ":()%") {
			s.pushIndex("filter_state_objects_to_log", i)
			s.ignore("", "the object is not logged: a key must have no colon, bracket or percent sign")
			s.pop()
			continue
		}
		out = append(out, tracing.FormatTag(key, f, ""))
	}
	return out
}

// otlpExporter is the digest of what of m does not depend on the stream.
func otlpExporter(m *openv3pb.OpenTelemetryAccessLogConfig) Digest {
	c, _ := proto.Clone(m).(*openv3pb.OpenTelemetryAccessLogConfig)
	c.Body, c.Attributes, c.Formatters, c.FilterStateObjectsToLog, c.CustomTags = nil, nil, nil, nil, nil
	if c.GetCommonConfig() != nil {
		c.CommonConfig.FilterStateObjectsToLog, c.CommonConfig.CustomTags = nil, nil
	}
	return digest(c)
}
