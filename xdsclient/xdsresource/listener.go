package xdsresource

import (
	"net/netip"
	"time"

	commonv1pb "go.opentelemetry.io/proto/otlp/common/v1"

	"github.com/fairlead-mesh/fairlead/internal/accesslog"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/otlp"
	"github.com/fairlead-mesh/fairlead/internal/tracing"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// Listener is envoy.config.listener.v3.Listener.
type Listener struct {
	Resource
	// Internal listeners have no address.
	Internal bool
	// Addresses are Address and additional_addresses.
	Addresses []netip.AddrPort
	// IPv4Compat makes "::" accept IPv4 clients, too.
	IPv4Compat bool
	// FreeBind, Transparent, ReusePort are socket options.
	FreeBind, Transparent, ReusePort bool
	BindToPort                       bool
	// Direction is "inbound", "outbound" or "".
	Direction       string
	StatPrefix      string
	ListenerFilters []ListenerFilter
	// ListenerFiltersTimeout is 15 s by default, 0 disables it.
	ListenerFiltersTimeout time.Duration
	// FilterChainMatcher, if not nil, picks a chain by name and replaces
	// FilterChain.Match.
	FilterChainMatcher *matcher.Tree
	FilterChains       []*FilterChain
	DefaultFilterChain *FilterChain
	// PerConnectionBufferLimit is 1 MiB by default. It bounds what is kept of a
	// request for retries and mirrors, unless its route says otherwise.
	PerConnectionBufferLimit uint32
	AccessLogs               []*AccessLog
	Metadata                 Metadata
	// TCPBacklog is 0 for the system's default.
	TCPBacklog int
}

// ListenerFilter is one listener filter with its predicate.
type ListenerFilter struct {
	TypedConfig
	// ConfigDiscovery, if not nil, is where the configuration comes from.
	ConfigDiscovery *ExtensionConfigSource
	// Disabled, if not nil, turns the filter off where it matches.
	Disabled *ListenerFilterPredicate
}

// ListenerFilterPredicate is ListenerFilterChainMatchPredicate.
type ListenerFilterPredicate struct {
	Or, And []*ListenerFilterPredicate
	Not     *ListenerFilterPredicate
	Any     bool
	// PortStart and PortEnd bound a destination port range [start, end);
	// PortEnd 0 means that this is no port predicate.
	PortStart, PortEnd uint32
}

// FilterChain is one filter chain. Its Digest covers everything it holds, Frame
// everything but the routes inside its connection managers.
type FilterChain struct {
	Name          string
	Digest, Frame Digest
	// Match is nil with a FilterChainMatcher.
	Match *FilterChainMatch
	// TransportSocket is nil for raw_buffer.
	TransportSocket        *DownstreamTLS
	TransportSocketTimeout time.Duration
	Filters                []NetworkFilter
	Metadata               Metadata
	// Broken, if not empty, is why the chain as a whole can't be executed: its
	// connections are closed (security relevant) and it is reported.
	Broken string
}

// FilterChainMatch is Envoy's classic match; all given criteria must hold, most
// specific wins in Envoy's order: destination port, destination IP, server
// name, transport protocol, application protocols, direct source IP, source
// type, source IP, source port.
type FilterChainMatch struct {
	DestinationPort      uint32 // 0: any
	PrefixRanges         []netip.Prefix
	ServerNames          []string // exact or "*.suffix", lower case
	TransportProtocol    string
	ApplicationProtocols []string
	DirectSourceRanges   []netip.Prefix
	SourceType           SourceType
	SourceRanges         []netip.Prefix
	SourcePorts          []uint32
}

// SourceType is FilterChainMatch.ConnectionSourceType.
type SourceType uint8

// Source types.
const (
	SourceAny SourceType = iota
	SourceSameIPOrLoopback
	SourceExternal
)

// NetworkFilter is one network filter. Exactly one of HCM, TCPProxy and
// TypedConfig.Config (or Unknown, or ConfigDiscovery) is set.
type NetworkFilter struct {
	TypedConfig
	HCM             *HTTPConnectionManager
	TCPProxy        *TCPProxy
	ConfigDiscovery *ExtensionConfigSource
}

// ExtensionConfigSource is config_discovery (ECDS).
type ExtensionConfigSource struct {
	Source   ConfigSource
	TypeURLs []string
	// Default applies when the configuration has not arrived in time.
	Default *TypedConfig
}

// ExtensionConfig is an ECDS resource (envoy.config.core.v3.TypedExtensionConfig).
type ExtensionConfig struct {
	Resource
	// TypedConfig is the configuration as an HTTP filter's if the type is known
	// as one, else as a network or listener filter's. Network and Listener are
	// set if the type is known as such a filter.
	TypedConfig
	Network, Listener *TypedConfig
}

// Codec is HttpConnectionManager.codec_type.
type Codec uint8

// Codecs. CodecAuto uses ALPN, else looks for the HTTP/2 preface.
const (
	CodecAuto Codec = iota
	CodecHTTP1
	CodecHTTP2
)

// PathWithEscapedSlashes is path_with_escaped_slashes_action.
type PathWithEscapedSlashes uint8

// Escaped-slash actions.
const (
	KeepUnchanged PathWithEscapedSlashes = iota
	RejectRequest
	UnescapeAndRedirect
	UnescapeAndForward
)

// ForwardClientCert is forward_client_cert_details.
type ForwardClientCert uint8

// XFCC modes.
const (
	XFCCSanitize ForwardClientCert = iota
	XFCCForwardOnly
	XFCCAppendForward
	XFCCSanitizeSet
	XFCCAlwaysForwardOnly
)

// HeadersUnderscore is headers_with_underscores_action.
type HeadersUnderscore uint8

// Underscore actions.
const (
	UnderscoreAllow HeadersUnderscore = iota
	UnderscoreReject
	UnderscoreDrop
)

// ServerHeaderTransformation is server_header_transformation.
type ServerHeaderTransformation uint8

// Server header modes.
const (
	ServerOverwrite ServerHeaderTransformation = iota
	ServerAppendIfAbsent
	ServerPassThrough
)

// HTTPConnectionManager is the HCM's configuration.
type HTTPConnectionManager struct {
	StatPrefix string
	Codec      Codec
	// Exactly one of RDSName and RouteConfig is set.
	RDSName     string
	RDSSource   ConfigSource
	RouteConfig *RouteConfiguration

	HTTPFilters []HTTPFilter
	AccessLogs  []*AccessLog

	Server transport.ServerConfig
	// Timeouts: 0 is off. StreamIdleTimeout is 5 min by default,
	// RequestTimeout and MaxStreamDuration off.
	StreamIdleTimeout, RequestTimeout, MaxStreamDuration time.Duration

	ServerName                   string
	ServerHeader                 ServerHeaderTransformation
	UseRemoteAddress             bool
	XFFNumTrustedHops            uint32
	SkipXFFAppend                bool
	Via                          string
	InternalCIDRs                []netip.Prefix // internal_address_config; none by default, as in Envoy since 1.33
	GenerateRequestID            bool           // default true
	PreserveExternalRequestID    bool
	AlwaysSetRequestIDInResponse bool
	// UseRequestIDForTraceSampling and PackTraceReason of UuidRequestIdConfig.
	UseRequestIDForTraceSampling, PackTraceReason bool

	ForwardClientCert ForwardClientCert
	SetClientCert     SetClientCertDetails

	NormalizePath        bool
	MergeSlashes         bool
	EscapedSlashes       PathWithEscapedSlashes
	UnderscoreAction     HeadersUnderscore
	StripMatchingPort    bool
	StripAnyPort         bool
	AppendXForwardedPort bool
	SchemeToOverwrite    string // scheme_header_transformation

	Upgrades []Upgrade

	LocalReply *LocalReplyConfig
	Tracing    *Tracing
	// SuppressEnvoyHeaders etc. belong to the router filter's own config.
}

// SetClientCertDetails is set_current_client_cert_details.
type SetClientCertDetails struct{ Subject, Cert, DNS, URI bool }

// Upgrade is one upgrade_configs entry, of HCM or of a route.
type Upgrade struct {
	// Type is lower case, "websocket" or "connect".
	Type    string
	Enabled bool
	// Connect is set when the route terminates CONNECT (connect_config).
	Connect bool
}

// HTTPFilter is one entry of http_filters. Router is set for the terminal
// router filter.
type HTTPFilter struct {
	TypedConfig
	Optional, Disabled bool
	Router             *Router
	ConfigDiscovery    *ExtensionConfigSource
}

// Router is envoy.extensions.filters.http.router.v3.Router.
type Router struct {
	SuppressEnvoyHeaders     bool
	RespectExpectedRqTimeout bool
	// StrictCheckHeaders answers 400 for invalid x-envoy-* headers.
	StrictCheckHeaders []string
	UpstreamLogs       []*AccessLog
}

// LocalReplyConfig is local_reply_config.
type LocalReplyConfig struct {
	Mappers     []LocalReplyMapper
	Body        *format.String
	JSONBody    *accesslog.JSONFormat
	ContentType string
}

// LocalReplyMapper rewrites matching local replies.
type LocalReplyMapper struct {
	Filter      *accesslog.Filter
	StatusCode  int // 0: keep
	Body        *string
	BodyFormat  *format.String
	JSONBody    *accesslog.JSONFormat
	ContentType string
	Headers     []HeaderMutation
}

// Tracing is the HCM's tracing block. Without a Provider nothing is exported,
// but the decision to sample is made and passed on. Percentages are 0 to 100.
type Tracing struct {
	ClientSampling, RandomSampling, OverallSampling float64
	Provider                                        *TracingProvider
	Tags                                            []tracing.Tag
	// MaxPathTagLength is 256 by default.
	MaxPathTagLength     int
	SpawnUpstreamSpan    bool
	NoContextPropagation bool
	// Operation and UpstreamOperation are nil if they are not configured.
	Operation, UpstreamOperation *format.String
}

// TracingProvider is envoy.config.trace.v3.OpenTelemetryConfig. Equal Digests
// mean equal providers.
type TracingProvider struct {
	Digest Digest
	// Target is nil if spans are not exported.
	Target *otlp.Target
	// Resource are its attributes: those of detectors, service.name, of the SDK.
	Resource []*commonv1pb.KeyValue
	Sampler  tracing.Sampler
	// MaxQueue is max_cache_size, in spans, 1024 by default.
	MaxQueue int
	// NoScope leaves the instrumentation scope out.
	NoScope bool
}

// RouteTracing is envoy.config.route.v3.Tracing. Shares are 0 to 1.
type RouteTracing struct {
	ClientSampling, RandomSampling, OverallSampling float64
	Span                                            tracing.Route
}

// TCPProxy is the tcp_proxy network filter.
type TCPProxy struct {
	StatPrefix string
	// Exactly one of Cluster and Weighted is set.
	Cluster  string
	Weighted []WeightedTCPCluster
	// IdleTimeout is 1 h by default, 0 off.
	IdleTimeout           time.Duration
	MaxConnectionDuration time.Duration
	AccessLogs            []*AccessLog
	// MaxConnectAttempts is at least 1.
	MaxConnectAttempts uint32
	Tunneling          *Tunneling
	HashSourceIP       bool
	HashFilterStateKey string
	// AccessLogFlushInterval is 0 for "at the end only".
	AccessLogFlushInterval time.Duration
	FlushOnConnected       bool
}

// WeightedTCPCluster is one weighted cluster of tcp_proxy.
type WeightedTCPCluster struct {
	Name   string
	Weight uint32
}

// Tunneling is tunneling_config: CONNECT to Hostname.
type Tunneling struct {
	Hostname                 *format.String
	UsePost                  bool
	PostPath                 *format.String
	Headers                  []HeaderMutation
	PropagateResponseHeaders bool
}

// AccessLog is one access logger with its filter. Exactly one of File, OTLP and
// Unknown (in TypedConfig) is set; TypedConfig names the type.
type AccessLog struct {
	TypedConfig
	Filter *accesslog.Filter // nil: log everything
	File   *accesslog.File
	OTLP   *OTLPLog
}

// OTLPLog is OpenTelemetryAccessLogConfig.
type OTLPLog struct {
	// Exporter is equal for logs that differ in what they log only.
	Exporter Digest
	Target   *otlp.Target
	// Flush is how long a record waits for company, 1 s by default.
	Flush time.Duration
	// Builtin adds LogName, zone, cluster and node to Resource, which comes first.
	Builtin  bool
	LogName  string
	Resource []*commonv1pb.KeyValue
	// Body is nil if there is none.
	Body       *otlp.Template
	Attributes []otlp.AttributeTemplate
	// Tags are further attributes: filter-state objects and custom tags.
	Tags []tracing.Tag
}
