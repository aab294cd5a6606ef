package xdsresource

import (
	accesslogv3pb "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filev3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	celv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	openv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	streamv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fairlead-mesh/fairlead/internal/accesslog"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

// accessLogs decodes access loggers. A logger that can't be executed is
// Unknown and reported; traffic isn't affected by it.
func (s *scope) accessLogs(field string, ms []*accesslogv3pb.AccessLog) []*AccessLog {
	return mapEach(ms, func(i int, m *accesslogv3pb.AccessLog) *AccessLog {
		s.pushIndex(field, i)
		defer s.pop()
		key := digest(m)
		l := s.logs[key]
		if l == nil {
			l = s.accessLog(m, key)
			if s.logs == nil {
				s.logs = map[Digest]*AccessLog{}
			}
			s.logs[key] = l
		}
		if l.Unknown != "" {
			s.ignore("", "nothing is logged: "+l.Unknown)
		}
		return l
	})
}

func (s *scope) accessLog(m *accesslogv3pb.AccessLog, key Digest) *AccessLog {
	a := m.GetTypedConfig()
	l := &AccessLog{TypedConfig: TypedConfig{Name: m.GetName(), TypeURL: a.GetTypeUrl(), Digest: key}}
	l.Unknown = s.close(func() {
		if inner, err := unwrapStruct(a); err == nil {
			a = inner
		}
		if t := ExtensionType(a); t != "" {
			l.TypeURL = typePrefix + t
		}
		s.accessLogger(l, m, a)
	})
	return l
}

func (s *scope) accessLogger(l *AccessLog, m *accesslogv3pb.AccessLog, a *anypb.Any) {
	if m.GetFilter() != nil {
		s.push("filter")
		l.Filter = s.logFilter(m.GetFilter(), 0)
		s.pop()
	}
	s.push("typed_config")
	defer s.pop()
	var file filev3pb.FileAccessLog
	var stdout streamv3pb.StdoutAccessLog
	var open openv3pb.OpenTelemetryAccessLogConfig
	var stderr streamv3pb.StderrAccessLog
	switch {
	case s.unpack(a, &file):
		s.classify(&file)
		l.File = s.fileLog(&file)
	case s.unpack(a, &stdout):
		s.classify(&stdout)
		l.File = s.streamLog("/dev/stdout", stdout.GetLogFormat())
	case s.unpack(a, &stderr):
		s.classify(&stderr)
		l.File = s.streamLog("/dev/stderr", stderr.GetLogFormat())
	case s.unpack(a, &open):
		l.OTLP = s.otlpLog(&open)
	default:
		s.unsupported("", "access logger %s is not supported", ExtensionType(a))
	}
}

func (s *scope) fileLog(m *filev3pb.FileAccessLog) *accesslog.File {
	out := &accesslog.File{Path: m.GetPath()}
	switch f := m.GetAccessLogFormat().(type) {
	case *filev3pb.FileAccessLog_Format:
		out.Text = s.format("format", f.Format)
	case *filev3pb.FileAccessLog_JsonFormat:
		out.JSON = s.jsonFormat("json_format", structMap(f.JsonFormat), false)
	case *filev3pb.FileAccessLog_TypedJsonFormat:
		out.JSON = s.jsonFormat("typed_json_format", structMap(f.TypedJsonFormat), false)
	case *filev3pb.FileAccessLog_LogFormat:
		s.push("log_format")
		out.Text, out.JSON = s.substitution(f.LogFormat)
		s.pop()
	}
	return s.defaultLogFormat(out)
}

func (s *scope) streamLog(path string, m *corev3pb.SubstitutionFormatString) *accesslog.File {
	out := &accesslog.File{Path: path}
	if m != nil {
		s.push("log_format")
		out.Text, out.JSON = s.substitution(m)
		s.pop()
	}
	return s.defaultLogFormat(out)
}

func (s *scope) defaultLogFormat(f *accesslog.File) *accesslog.File {
	if f.Text == nil && f.JSON == nil {
		f.Text = s.format("", accesslog.DefaultFormat)
	}
	return f
}

// substitution compiles a SubstitutionFormatString; one result is not nil.
func (s *scope) substitution(m *corev3pb.SubstitutionFormatString) (*format.String, *accesslog.JSONFormat) {
	s.formatters(m.GetFormatters())
	switch f := m.GetFormat().(type) {
	case *corev3pb.SubstitutionFormatString_TextFormat:
		return s.format("text_format", f.TextFormat), nil
	case *corev3pb.SubstitutionFormatString_TextFormatSource:
		return s.format("text_format_source", string(s.data("text_format_source", f.TextFormatSource))), nil
	case *corev3pb.SubstitutionFormatString_JsonFormat:
		return nil, s.jsonFormat("json_format", structMap(f.JsonFormat), m.GetOmitEmptyValues())
	}
	s.errorf("format", "none is set")
	return nil, nil
}

func (s *scope) jsonFormat(field string, spec map[string]any, omitEmpty bool) *accesslog.JSONFormat {
	j, err := accesslog.CompileJSON(spec, omitEmpty)
	s.unsupportedErr(field, err)
	return j
}

// formatters checks formatter extensions; those that are known are built in.
func (s *scope) formatters(ms []*corev3pb.TypedExtensionConfig) {
	for i, m := range ms {
		switch ExtensionType(m.GetTypedConfig()) {
		case "envoy.extensions.formatter.cel.v3.Cel",
			"envoy.extensions.formatter.metadata.v3.Metadata",
			"envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery":
		default:
			s.pushIndex("formatters", i)
			s.unsupported("", "formatter %s is not supported", ExtensionType(m.GetTypedConfig()))
			s.pop()
		}
	}
}

const maxFilterDepth = 32

// logFilter compiles an access-log filter.
func (s *scope) logFilter(m *accesslogv3pb.AccessLogFilter, depth int) *accesslog.Filter {
	if depth > maxFilterDepth {
		s.errorf("", "nested more than %d deep", maxFilterDepth)
		return nil
	}
	list := func(field string, ms []*accesslogv3pb.AccessLogFilter) []*accesslog.Filter {
		return mapEach(ms, func(i int, m *accesslogv3pb.AccessLogFilter) *accesslog.Filter {
			s.pushIndex(field+".filters", i)
			defer s.pop()
			return s.logFilter(m, depth+1)
		})
	}
	var out *accesslog.Filter
	var err error
	var field string
	switch f := m.GetFilterSpecifier().(type) {
	case *accesslogv3pb.AccessLogFilter_AndFilter:
		return accesslog.And(list("and_filter", f.AndFilter.GetFilters())...)
	case *accesslogv3pb.AccessLogFilter_OrFilter:
		return accesslog.Or(list("or_filter", f.OrFilter.GetFilters())...)
	case *accesslogv3pb.AccessLogFilter_StatusCodeFilter:
		c := f.StatusCodeFilter.GetComparison()
		return accesslog.StatusCode(accesslog.Comparison(c.GetOp()), c.GetValue().GetDefaultValue())
	case *accesslogv3pb.AccessLogFilter_DurationFilter:
		c := f.DurationFilter.GetComparison()
		return accesslog.Duration(accesslog.Comparison(c.GetOp()), c.GetValue().GetDefaultValue())
	case *accesslogv3pb.AccessLogFilter_NotHealthCheckFilter:
		return accesslog.All()
	case *accesslogv3pb.AccessLogFilter_RuntimeFilter:
		return accesslog.Runtime(fraction(f.RuntimeFilter.GetPercentSampled()))
	case *accesslogv3pb.AccessLogFilter_ResponseFlagFilter:
		field = "response_flag_filter"
		out, err = accesslog.ResponseFlags(f.ResponseFlagFilter.GetFlags())
	case *accesslogv3pb.AccessLogFilter_HeaderFilter:
		field = "header_filter.header"
		var h matcher.Header
		h, err = matcher.HeaderFromProto(f.HeaderFilter.GetHeader())
		out = accesslog.Header(h)
	case *accesslogv3pb.AccessLogFilter_GrpcStatusFilter:
		field = "grpc_status_filter"
		var names []string
		for _, st := range f.GrpcStatusFilter.GetStatuses() {
			names = append(names, st.String())
		}
		out, err = accesslog.GRPCStatus(names, f.GrpcStatusFilter.GetExclude())
	case *accesslogv3pb.AccessLogFilter_MetadataFilter:
		return s.metadataFilter(f.MetadataFilter)
	case *accesslogv3pb.AccessLogFilter_ExtensionFilter:
		field = "extension_filter.typed_config"
		var e celv3pb.ExpressionFilter
		if !s.unpack(f.ExtensionFilter.GetTypedConfig(), &e) {
			s.unsupported(field, "filter %s is not supported", ExtensionType(f.ExtensionFilter.GetTypedConfig()))
			return nil
		}
		out, err = accesslog.CEL(e.GetExpression())
	default:
		s.unsupported("filter_specifier", "%T is not supported", f)
		return nil
	}
	s.unsupportedErr(field, err)
	return out
}

func (s *scope) metadataFilter(m *accesslogv3pb.MetadataFilter) *accesslog.Filter {
	absent := boolean(m.GetMatchIfKeyNotFound(), true)
	if m.GetMatcher() == nil {
		return accesslog.All()
	}
	md, err := matcher.MetadataFromProto(m.GetMatcher())
	if err != nil {
		s.matcherErr("metadata_filter.matcher", err)
		return nil
	}
	var path []string
	for _, p := range m.GetMatcher().GetPath() {
		path = append(path, p.GetKey())
	}
	return accesslog.Metadata(md, m.GetMatcher().GetFilter(), path, absent)
}
