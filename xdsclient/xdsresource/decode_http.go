package xdsresource

import (
	clusterv3pb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	preservecasev3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/http/header_formatters/preserve_case/v3"
	httpv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"

	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

const httpOptionsKey = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// upstreamHTTP decodes HttpProtocolOptions, or the deprecated fields of the
// cluster if that is absent.
func (s *scope) upstreamHTTP(m *clusterv3pb.Cluster) HTTPProtocol {
	for name := range m.GetTypedExtensionProtocolOptions() {
		if name != httpOptionsKey {
			s.pushKey("typed_extension_protocol_options", name)
			s.ignore("", "options of this protocol are not executed")
			s.pop()
		}
	}
	a := m.GetTypedExtensionProtocolOptions()[httpOptionsKey]
	if a == nil {
		return s.legacyHTTP(m)
	}
	s.pushKey("typed_extension_protocol_options", httpOptionsKey)
	defer s.pop()
	var o httpv3pb.HttpProtocolOptions
	if !s.unpackStruct(a, &o) {
		s.unsupported("", "type %s is not supported", ExtensionType(a))
		return HTTPProtocol{}
	}
	s.classify(&o)
	out := s.commonHTTP(o.GetCommonHttpProtocolOptions(), o.GetUpstreamHttpProtocolOptions())
	switch p := o.GetUpstreamProtocolOptions().(type) {
	case *httpv3pb.HttpProtocolOptions_ExplicitHttpConfig_:
		switch e := p.ExplicitHttpConfig.GetProtocolConfig().(type) {
		case *httpv3pb.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions:
			s.client(&out, e.HttpProtocolOptions, nil)
		case *httpv3pb.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions:
			out.Version = UpstreamHTTP2
			s.client(&out, nil, e.Http2ProtocolOptions)
		}
	case *httpv3pb.HttpProtocolOptions_UseDownstreamProtocolConfig:
		out.Version = UpstreamDownstreamProtocol
		s.client(&out, p.UseDownstreamProtocolConfig.GetHttpProtocolOptions(), p.UseDownstreamProtocolConfig.GetHttp2ProtocolOptions())
	case *httpv3pb.HttpProtocolOptions_AutoConfig:
		out.Version = UpstreamAuto
		s.client(&out, p.AutoConfig.GetHttpProtocolOptions(), p.AutoConfig.GetHttp2ProtocolOptions())
	}
	for i, f := range o.GetHttpFilters() {
		if f.GetName() != "envoy.filters.http.upstream_codec" {
			s.pushIndex("http_filters", i)
			s.unsupported("", "upstream HTTP filter %q is not supported", f.GetName())
			s.pop()
		}
	}
	return out
}

func (s *scope) legacyHTTP(m *clusterv3pb.Cluster) HTTPProtocol {
	out := s.commonHTTP(m.GetCommonHttpProtocolOptions(), m.GetUpstreamHttpProtocolOptions())
	if v := m.GetMaxRequestsPerConnection(); v != nil {
		out.MaxRequestsPerConnection = v.GetValue()
	}
	s.client(&out, m.GetHttpProtocolOptions(), m.GetHttp2ProtocolOptions())
	switch {
	case m.GetProtocolSelection() == clusterv3pb.Cluster_USE_DOWNSTREAM_PROTOCOL:
		out.Version = UpstreamDownstreamProtocol
	case m.GetHttp2ProtocolOptions() != nil:
		out.Version = UpstreamHTTP2
	}
	return out
}

func (s *scope) commonHTTP(c *corev3pb.HttpProtocolOptions, u *corev3pb.UpstreamHttpProtocolOptions) HTTPProtocol {
	return HTTPProtocol{
		IdleTimeout:              s.idleTimeout("common_http_protocol_options.idle_timeout", c),
		MaxConnectionDuration:    s.duration("common_http_protocol_options.max_connection_duration", c.GetMaxConnectionDuration(), 0),
		MaxStreamDuration:        s.duration("common_http_protocol_options.max_stream_duration", c.GetMaxStreamDuration(), 0),
		MaxRequestsPerConnection: c.GetMaxRequestsPerConnection().GetValue(),
		AutoSNI:                  u.GetAutoSni(),
		AutoSANValidation:        u.GetAutoSanValidation(),
		OverrideAutoSNIHeader:    u.GetOverrideAutoSniHeader(),
		Client: transport.ClientConfig{
			MaxHeaderBytes: int(u32(c.GetMaxResponseHeadersKb(), defaultMaxHeadersKB)) << 10,
			MaxHeaders:     int(u32(c.GetMaxHeadersCount(), defaultMaxHeaders)),
		},
	}
}

func (s *scope) client(out *HTTPProtocol, h1 *corev3pb.Http1ProtocolOptions, h2 *corev3pb.Http2ProtocolOptions) {
	c := &out.Client
	c.EnableTrailers = h1.GetEnableTrailers()
	c.Case = s.headerCase("http_protocol_options.header_key_format", h1.GetHeaderKeyFormat())
	c.InitialStreamWindow = u32(h2.GetInitialStreamWindowSize(), defaultStreamWindow)
	c.InitialConnWindow = u32(h2.GetInitialConnectionWindowSize(), defaultConnWindow)
	c.MaxFrameSize = defaultMaxFrameSize
	c.MaxConcurrentStreams = h2.GetMaxConcurrentStreams().GetValue()
	c.KeepaliveInterval, c.KeepaliveTimeout = s.keepalive("http2_protocol_options.connection_keepalive", h2)
}

// headerCase returns how names of HTTP/1 headers are treated.
func (s *scope) headerCase(field string, m *corev3pb.Http1ProtocolOptions_HeaderKeyFormat) transport.HeaderCase {
	if m.GetProperCaseWords() != nil {
		return transport.ProperCase
	}
	a := m.GetStatefulFormatter().GetTypedConfig()
	if a == nil {
		return transport.LowerCase
	}
	s.push(field + ".stateful_formatter.typed_config")
	defer s.pop()
	var f preservecasev3pb.PreserveCaseFormatterConfig
	if !s.unpackStruct(a, &f) {
		s.ignore("", "header names are sent in lower case")
		return transport.LowerCase
	}
	s.classify(&f)
	return transport.KeepCase
}
