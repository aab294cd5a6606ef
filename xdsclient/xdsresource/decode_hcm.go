package xdsresource

import (
	"strings"
	"time"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routerv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	uuidv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"

	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// Envoy's defaults.
const (
	defaultMaxHeaders        = 100
	defaultMaxHeadersKB      = 60
	defaultHTTPIdleTimeout   = time.Hour
	defaultStreamIdleTimeout = 5 * time.Minute
	defaultStreamWindow      = 256 << 10
	defaultConnWindow        = 1 << 20
	defaultMaxFrameSize      = 16 << 10
	defaultKeepaliveTimeout  = 0
)

func (s *scope) connectionManager(m *hcmv3pb.HttpConnectionManager) *HTTPConnectionManager {
	s.classify(m)
	h := &HTTPConnectionManager{
		StatPrefix:                   m.GetStatPrefix(),
		AccessLogs:                   s.accessLogs("access_log", m.GetAccessLog()),
		StreamIdleTimeout:            s.duration("stream_idle_timeout", m.GetStreamIdleTimeout(), defaultStreamIdleTimeout),
		RequestTimeout:               s.duration("request_timeout", m.GetRequestTimeout(), 0),
		MaxStreamDuration:            s.duration("common_http_protocol_options.max_stream_duration", m.GetCommonHttpProtocolOptions().GetMaxStreamDuration(), 0),
		ServerName:                   m.GetServerName(),
		UseRemoteAddress:             m.GetUseRemoteAddress().GetValue(),
		XFFNumTrustedHops:            m.GetXffNumTrustedHops(),
		SkipXFFAppend:                m.GetSkipXffAppend(),
		Via:                          m.GetVia(),
		InternalCIDRs:                s.prefixes("internal_address_config.cidr_ranges", m.GetInternalAddressConfig().GetCidrRanges()),
		GenerateRequestID:            boolean(m.GetGenerateRequestId(), true),
		PreserveExternalRequestID:    m.GetPreserveExternalRequestId(),
		AlwaysSetRequestIDInResponse: m.GetAlwaysSetRequestIdInResponse(),
		NormalizePath:                m.GetNormalizePath().GetValue(),
		MergeSlashes:                 m.GetMergeSlashes(),
		StripMatchingPort:            m.GetStripMatchingHostPort(),
		StripAnyPort:                 m.GetStripAnyHostPort(),
		AppendXForwardedPort:         m.GetAppendXForwardedPort(),
		SchemeToOverwrite:            m.GetSchemeHeaderTransformation().GetSchemeToOverwrite(),
		Server:                       s.serverConfig(m),
	}
	if h.ServerName == "" {
		h.ServerName = "envoy"
	}
	if h.StripMatchingPort && h.StripAnyPort {
		s.errorf("strip_any_host_port", "must not be set together with strip_matching_host_port")
	}
	s.hcmEnums(h, m)
	s.requestID(h, m)
	s.hcmRoutes(h, m)
	s.httpFilters(h, m)
	h.Upgrades = mapEach(m.GetUpgradeConfigs(), func(i int, u *hcmv3pb.HttpConnectionManager_UpgradeConfig) Upgrade {
		s.pushIndex("upgrade_configs", i)
		defer s.pop()
		for _, o := range m.GetUpgradeConfigs()[:i] {
			if strings.EqualFold(o.GetUpgradeType(), u.GetUpgradeType()) {
				s.errorf("upgrade_type", "%q is there twice", u.GetUpgradeType())
			}
		}
		return Upgrade{Type: strings.ToLower(u.GetUpgradeType()), Enabled: boolean(u.GetEnabled(), true)}
	})
	if m.GetLocalReplyConfig() != nil {
		s.push("local_reply_config")
		h.LocalReply = s.localReply(m.GetLocalReplyConfig())
		s.pop()
	}
	if m.GetTracing() != nil {
		s.push("tracing")
		h.Tracing = s.tracing(m.GetTracing())
		s.pop()
	}
	return h
}

func (s *scope) hcmEnums(h *HTTPConnectionManager, m *hcmv3pb.HttpConnectionManager) {
	switch m.GetCodecType() {
	case hcmv3pb.HttpConnectionManager_AUTO:
	case hcmv3pb.HttpConnectionManager_HTTP1:
		h.Codec = CodecHTTP1
	case hcmv3pb.HttpConnectionManager_HTTP2:
		h.Codec = CodecHTTP2
	case hcmv3pb.HttpConnectionManager_HTTP3:
		s.errorf("codec_type", "HTTP3 is not supported")
	}
	switch m.GetServerHeaderTransformation() {
	case hcmv3pb.HttpConnectionManager_OVERWRITE:
	case hcmv3pb.HttpConnectionManager_APPEND_IF_ABSENT:
		h.ServerHeader = ServerAppendIfAbsent
	case hcmv3pb.HttpConnectionManager_PASS_THROUGH:
		h.ServerHeader = ServerPassThrough
	}
	switch m.GetPathWithEscapedSlashesAction() {
	case hcmv3pb.HttpConnectionManager_IMPLEMENTATION_SPECIFIC_DEFAULT, hcmv3pb.HttpConnectionManager_KEEP_UNCHANGED:
	case hcmv3pb.HttpConnectionManager_REJECT_REQUEST:
		h.EscapedSlashes = RejectRequest
	case hcmv3pb.HttpConnectionManager_UNESCAPE_AND_REDIRECT:
		h.EscapedSlashes = UnescapeAndRedirect
	case hcmv3pb.HttpConnectionManager_UNESCAPE_AND_FORWARD:
		h.EscapedSlashes = UnescapeAndForward
	}
	switch m.GetCommonHttpProtocolOptions().GetHeadersWithUnderscoresAction() {
	case corev3pb.HttpProtocolOptions_ALLOW:
	case corev3pb.HttpProtocolOptions_REJECT_REQUEST:
		h.UnderscoreAction = UnderscoreReject
	case corev3pb.HttpProtocolOptions_DROP_HEADER:
		h.UnderscoreAction = UnderscoreDrop
	}
	switch m.GetForwardClientCertDetails() {
	case hcmv3pb.HttpConnectionManager_SANITIZE:
	case hcmv3pb.HttpConnectionManager_FORWARD_ONLY:
		h.ForwardClientCert = XFCCForwardOnly
	case hcmv3pb.HttpConnectionManager_APPEND_FORWARD:
		h.ForwardClientCert = XFCCAppendForward
	case hcmv3pb.HttpConnectionManager_SANITIZE_SET:
		h.ForwardClientCert = XFCCSanitizeSet
	case hcmv3pb.HttpConnectionManager_ALWAYS_FORWARD_ONLY:
		h.ForwardClientCert = XFCCAlwaysForwardOnly
	}
	d := m.GetSetCurrentClientCertDetails()
	h.SetClientCert = SetClientCertDetails{
		Subject: d.GetSubject().GetValue(), Cert: d.GetCert(), DNS: d.GetDns(), URI: d.GetUri(),
	}
}

func (s *scope) requestID(h *HTTPConnectionManager, m *hcmv3pb.HttpConnectionManager) {
	h.PackTraceReason, h.UseRequestIDForTraceSampling = true, true
	a := m.GetRequestIdExtension().GetTypedConfig()
	if a == nil {
		return
	}
	s.push("request_id_extension.typed_config")
	defer s.pop()
	var u uuidv3pb.UuidRequestIdConfig
	if !s.unpackStruct(a, &u) {
		s.ignore("", "only UUID request ids are generated")
		return
	}
	s.classify(&u)
	h.PackTraceReason = boolean(u.GetPackTraceReason(), true)
	h.UseRequestIDForTraceSampling = boolean(u.GetUseRequestIdForTraceSampling(), true)
}

func (s *scope) hcmRoutes(h *HTTPConnectionManager, m *hcmv3pb.HttpConnectionManager) {
	switch r := m.GetRouteSpecifier().(type) {
	case *hcmv3pb.HttpConnectionManager_Rds:
		h.RDSName = r.Rds.GetRouteConfigName()
		h.RDSSource = s.configSource("rds.config_source", r.Rds.GetConfigSource())
		if h.RDSName == "" {
			s.errorf("rds.route_config_name", "is empty")
		}
	case *hcmv3pb.HttpConnectionManager_RouteConfig:
		s.push("route_config")
		h.RouteConfig = s.routeConfiguration(r.RouteConfig)
		h.RouteConfig.Digest = digest(r.RouteConfig)
		s.pop()
	}
}

// httpFilters decodes the chain, which must end in the router and hold no
// other.
func (s *scope) httpFilters(h *HTTPConnectionManager, m *hcmv3pb.HttpConnectionManager) {
	if len(m.GetHttpFilters()) == 0 {
		s.unsupported("http_filters", "is empty: nothing would answer")
	}
	for i, f := range m.GetHttpFilters() {
		s.pushIndex("http_filters", i)
		hf := s.httpFilter(f)
		last := i == len(m.GetHttpFilters())-1
		switch {
		case !last && hf.Router != nil:
			s.errorf("", "terminal filter %q must be the last one", f.GetName())
		case last && hf.Router == nil && hf.ConfigDiscovery == nil && hf.Unknown == "":
			s.errorf("", "filter %q is the last one, but not terminal: the router filter must follow", f.GetName())
		case last && hf.Router != nil && f.GetDisabled():
			s.errorf("disabled", "the terminal filter can't be disabled")
		}
		h.HTTPFilters = append(h.HTTPFilters, hf)
		s.pop()
	}
}

func (s *scope) httpFilter(f *hcmv3pb.HttpFilter) HTTPFilter {
	out := HTTPFilter{TypedConfig: TypedConfig{Name: f.GetName()}, Optional: f.GetIsOptional(), Disabled: f.GetDisabled()}
	if d := f.GetConfigDiscovery(); d != nil {
		out.ConfigDiscovery = s.discovery(f.GetName(), d, httpPlugin)
		return out
	}
	a := f.GetTypedConfig()
	if a == nil {
		s.errorf("typed_config", "is missing")
		return out
	}
	inner, err := unwrapStruct(a)
	if err == nil && isType(inner, (*routerv3pb.Router)(nil)) {
		out.TypeURL, out.Digest = inner.GetTypeUrl(), hash(inner.GetTypeUrl(), inner.GetValue())
		s.push("typed_config")
		defer s.pop()
		var r routerv3pb.Router
		if s.unpack(inner, &r) {
			out.Router = s.router(&r)
		}
		return out
	}
	out.TypedConfig = s.plugin(f.GetName(), a, httpPlugin)
	return out
}

func (s *scope) router(m *routerv3pb.Router) *Router {
	s.classify(m)
	for i, f := range m.GetUpstreamHttpFilters() {
		if f.GetName() != "envoy.filters.http.upstream_codec" {
			s.pushIndex("upstream_http_filters", i)
			s.unsupported("", "upstream HTTP filter %q is not supported", f.GetName())
			s.pop()
		}
	}
	return &Router{
		SuppressEnvoyHeaders:     m.GetSuppressEnvoyHeaders(),
		RespectExpectedRqTimeout: m.GetRespectExpectedRqTimeout(),
		StrictCheckHeaders:       m.GetStrictCheckHeaders(),
		UpstreamLogs:             s.accessLogs("upstream_log", m.GetUpstreamLog()),
	}
}

func (s *scope) serverConfig(m *hcmv3pb.HttpConnectionManager) transport.ServerConfig {
	common, h1, h2 := m.GetCommonHttpProtocolOptions(), m.GetHttpProtocolOptions(), m.GetHttp2ProtocolOptions()
	c := transport.ServerConfig{
		MaxHeaderBytes:           int(u32(m.GetMaxRequestHeadersKb(), defaultMaxHeadersKB)) << 10,
		MaxHeaders:               int(u32(common.GetMaxHeadersCount(), defaultMaxHeaders)),
		IdleTimeout:              s.idleTimeout("common_http_protocol_options.idle_timeout", common),
		HeadersTimeout:           s.duration("request_headers_timeout", m.GetRequestHeadersTimeout(), 0),
		MaxConnectionDuration:    s.duration("common_http_protocol_options.max_connection_duration", common.GetMaxConnectionDuration(), 0),
		MaxRequestsPerConnection: int(common.GetMaxRequestsPerConnection().GetValue()),

		AcceptHTTP10:       h1.GetAcceptHttp_10(),
		DefaultHostHTTP10:  h1.GetDefaultHostForHttp_10(),
		AllowAbsoluteURL:   boolean(h1.GetAllowAbsoluteUrl(), true),
		EnableTrailers:     h1.GetEnableTrailers(),
		AllowChunkedLength: h1.GetAllowChunkedLength(),
		Proxy100Continue:   m.GetProxy_100Continue(),
		Case:               s.headerCase("http_protocol_options.header_key_format", h1.GetHeaderKeyFormat()),

		AllowConnect:              h2.GetAllowConnect(),
		MaxConcurrentStreams:      h2.GetMaxConcurrentStreams().GetValue(),
		InitialStreamWindow:       u32(h2.GetInitialStreamWindowSize(), defaultStreamWindow),
		InitialConnWindow:         u32(h2.GetInitialConnectionWindowSize(), defaultConnWindow),
		MaxFrameSize:              defaultMaxFrameSize,
		MaxOutboundFrames:         int(u32(h2.GetMaxOutboundFrames(), 10_000)),
		MaxOutboundControlFrames:  int(u32(h2.GetMaxOutboundControlFrames(), 1_000)),
		MaxConsecutiveEmptyFrames: int(u32(h2.GetMaxConsecutiveInboundFramesWithEmptyPayload(), 1)),
		MaxPriorityFrames:         int(u32(h2.GetMaxInboundPriorityFramesPerStream(), 100)),
		MaxWindowUpdateFrames:     int(u32(h2.GetMaxInboundWindowUpdateFramesPerDataFrameSent(), 10)),
	}
	c.KeepaliveInterval, c.KeepaliveTimeout = s.keepalive("http2_protocol_options.connection_keepalive", h2)
	return c
}

// idleTimeout returns a connection's idle timeout, negative if it is off.
func (s *scope) idleTimeout(field string, c *corev3pb.HttpProtocolOptions) time.Duration {
	if c.GetIdleTimeout() == nil {
		return defaultHTTPIdleTimeout
	}
	if d := s.duration(field, c.GetIdleTimeout(), 0); d > 0 {
		return d
	}
	return -1
}

func (s *scope) keepalive(field string, h2 *corev3pb.Http2ProtocolOptions) (interval, timeout time.Duration) {
	k := h2.GetConnectionKeepalive()
	return s.duration(field+".interval", k.GetInterval(), 0), s.duration(field+".timeout", k.GetTimeout(), defaultKeepaliveTimeout)
}
