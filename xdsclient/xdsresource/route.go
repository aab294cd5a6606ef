package xdsresource

import (
	"time"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/ratelimit"
)

// RouteConfiguration is envoy.config.route.v3.RouteConfiguration.
type RouteConfiguration struct {
	Resource
	VirtualHosts                    []*VirtualHost
	RequestHeaders, ResponseHeaders HeaderMutations
	MostSpecificHeaderMutationsWins bool
	InternalOnlyHeaders             []string
	// SkipClusterValidation is an explicit validate_clusters: false.
	SkipClusterValidation bool
	IgnorePortInHost      bool
	Overrides             Overrides
}

// Overrides are typed_per_filter_config entries by filter name.
type Overrides map[string]Override

// Override is one per-route filter configuration.
type Override struct {
	TypedConfig
	Disabled, Optional bool
}

// VirtualHost is one virtual host.
type VirtualHost struct {
	Name                                               string
	Domains                                            []string // lower case
	Routes                                             []*Route
	RequireTLS                                         TLSRequirement
	RequestHeaders, ResponseHeaders                    HeaderMutations
	Overrides                                          Overrides
	RetryPolicy                                        *RetryPolicy
	IncludeAttemptCount, IncludeAttemptCountInResponse bool
	IncludeIsTimeoutRetryHeader                        bool
	RequestMirrors                                     []Mirror
	Metadata                                           Metadata
	BufferLimit                                        BufferLimit
	RateLimits                                         []*ratelimit.Limit
}

// BufferLimit bounds in bytes what is kept of a request for retries and
// mirrors: Body (request_body_buffer_limit) before PerRequest
// (per_request_buffer_limit_bytes), each the route's before the virtual host's;
// if none is set the listener's PerConnectionBufferLimit.
type BufferLimit struct{ Body, PerRequest *uint64 }

// TLSRequirement is require_tls.
type TLSRequirement uint8

// TLS requirements.
const (
	TLSNone TLSRequirement = iota
	TLSExternalOnly
	TLSAll
)

// Route is one route of a virtual host. Exactly one of Action, Redirect,
// Direct and Broken is set.
type Route struct {
	Name     string
	Match    RouteMatch
	Action   *RouteAction
	Redirect *Redirect
	Direct   *DirectResponse
	// NonForwarding is non_forwarding_action (answers 404 here).
	NonForwarding bool
	// Tracing is nil if the route says nothing about its traces.
	Tracing *RouteTracing
	// Operation is decorator.operation, "" if there is none; DecoratorStays is
	// its propagate: false.
	Operation      string
	DecoratorStays bool
	// Broken, if not empty, is why the route can't be executed; it answers 500
	// where it matches rather than letting a later route match.
	Broken string

	RequestHeaders, ResponseHeaders HeaderMutations
	Overrides                       Overrides
	Metadata                        Metadata
	BufferLimit                     BufferLimit
}

// PathKind is how a route matches the path.
type PathKind uint8

// Path match kinds. PathConnect matches CONNECT requests only.
const (
	PathPrefix PathKind = iota
	PathExact
	PathRegex
	PathSeparatedPrefix
	PathConnect
	PathTemplate
)

// RouteMatch is envoy.config.route.v3.RouteMatch.
type RouteMatch struct {
	Kind PathKind
	// Path is the prefix, exact path, template, or regex source. It never has
	// a query.
	Path     string
	Regex    *matcher.String
	Template *matcher.URITemplate
	// IgnoreCase is !case_sensitive.
	IgnoreCase bool
	Headers    []matcher.Header
	Query      []matcher.QueryParameter
	Cookies    []matcher.Header // by cookie name
	GRPC       bool
	// RuntimeFraction is a fraction in [0, 1]; negative means always.
	RuntimeFraction            float64
	TLSPresented, TLSValidated *bool
	DynamicMetadata            []matcher.Metadata
	FilterState                []matcher.FilterState
}

// RouteAction forwards to a cluster.
type RouteAction struct {
	// Exactly one of Cluster, ClusterHeader and Weighted is set.
	Cluster       string
	ClusterHeader string
	Weighted      []WeightedCluster
	// WeightedRandomHeader is random_value_header's equivalent header_name.
	WeightedRandomHeader string
	// ClusterNotFoundStatus is 503 by default.
	ClusterNotFoundStatus int

	PrefixRewrite        string
	RegexRewrite         *RegexRewrite
	PathTemplateRewrite  *matcher.URITemplateRewrite
	PathRewriteFormat    *format.String
	HostRewrite          HostRewrite
	AppendXForwardedHost bool

	// Timeout is the route timeout, 15 s by default, 0 off.
	Timeout     time.Duration
	IdleTimeout *time.Duration
	// MaxStreamDuration; GRPCTimeoutMax nil means grpc-timeout is ignored, 0
	// unlimited. MaxGRPCTimeout is the deprecated route field with the same
	// meaning, folded in here.
	MaxStreamDuration *time.Duration
	GRPCTimeoutMax    *time.Duration
	GRPCTimeoutOffset time.Duration
	Retry             *RetryPolicy
	Mirrors           []Mirror
	HashPolicy        []HashPolicy
	Upgrades          []Upgrade
	// Priority is the circuit breaker class, true for HIGH.
	HighPriority bool
	RateLimits   []*ratelimit.Limit
	// IncludeVirtualHostLimits is include_vh_rate_limits.
	IncludeVirtualHostLimits bool
	// CORS legacy field is ignored.
}

// WeightedCluster is one weighted target.
type WeightedCluster struct {
	Name, ClusterHeader             string
	Weight                          uint32
	RequestHeaders, ResponseHeaders HeaderMutations
	Overrides                       Overrides
	HostRewrite                     string
}

// HostRewrite is one of the host rewrite options; at most one is set.
type HostRewrite struct {
	Literal   string
	Header    string
	Auto      bool // to the chosen host's hostname
	PathRegex *RegexRewrite
}

// RegexRewrite is RegexMatchAndSubstitute.
type RegexRewrite struct {
	// Pattern need not match the whole string.
	Pattern *matcher.Substitution
}

// Redirect is envoy.config.route.v3.RedirectAction.
type Redirect struct {
	HTTPS      bool
	Scheme     string
	Host       string
	Port       uint32
	Path       string // path_redirect
	Prefix     string // prefix_rewrite
	Regex      *RegexRewrite
	Status     int // 301 by default
	StripQuery bool
}

// DirectResponse is a fixed answer.
type DirectResponse struct {
	Status     int
	Body       []byte
	BodyFormat *format.String
}

// Mirror is one request_mirror_policies entry.
type Mirror struct {
	Cluster, ClusterHeader string
	// Fraction in [0, 1].
	Fraction                float64
	DisableShadowHostSuffix bool
}

// HashPolicy is one hash_policy entry; exactly one source is set.
type HashPolicy struct {
	Header, QueryParameter, FilterState string
	Cookie                              *HashCookie
	SourceIP                            bool
	Terminal                            bool
	HeaderRegex                         *RegexRewrite
}

// HashCookie is a cookie hash source; a TTL (may be 0) makes us set the cookie.
type HashCookie struct {
	Name, Path string
	TTL        *time.Duration
	Attributes [][2]string
}

// RetryOn is a set of retry conditions.
type RetryOn uint32

// Retry conditions of retry_on and x-envoy-retry-on / -grpc-on.
const (
	Retry5xx RetryOn = 1 << iota
	RetryGatewayError
	RetryReset
	RetryResetBeforeRequest
	RetryConnectFailure
	RetryEnvoyRateLimited
	RetryRetriable4xx
	RetryRefusedStream
	RetryRetriableStatusCodes
	RetryRetriableHeaders
	RetryGRPCCancelled
	RetryGRPCDeadlineExceeded
	RetryGRPCInternal
	RetryGRPCResourceExhausted
	RetryGRPCUnavailable
	RetryHTTP3PostConnectFailure
)

// RetryPolicy is envoy.config.route.v3.RetryPolicy.
type RetryPolicy struct {
	On RetryOn
	// NumRetries is 1 by default.
	NumRetries                                uint32
	PerTryTimeout, PerTryIdleTimeout          time.Duration
	StatusCodes                               []int
	RetriableHeaders, RetriableRequestHeaders []matcher.Header
	// BaseInterval is 25 ms by default, MaxInterval ten times that.
	BaseInterval, MaxInterval time.Duration
	RateLimitedReset          []RateLimitedReset
	RateLimitedMax            time.Duration
	// PreviousHosts avoids hosts that were tried, up to HostSelectionAttempts.
	PreviousHosts         bool
	OmitCanary            bool
	HostSelectionAttempts int
	// PreviousPriorities is retry_priority previous_priorities with its
	// update frequency; 0 is off.
	PreviousPriorities int
}

// RateLimitedReset is one reset header.
type RateLimitedReset struct {
	Name          string
	UnixTimestamp bool
}

// HeaderMutations are headers to add and remove, in order.
type HeaderMutations struct {
	Add    []HeaderMutation
	Remove []string // lower case
}

// AppendAction is HeaderValueOption.append_action.
type AppendAction uint8

// Append actions.
const (
	AppendIfExistsOrAdd AppendAction = iota
	AddIfAbsent
	OverwriteIfExistsOrAdd
	OverwriteIfExists
)

// HeaderMutation adds or overwrites one header.
type HeaderMutation struct {
	Name      string // lower case
	Value     *format.String
	Action    AppendAction
	KeepEmpty bool
}
