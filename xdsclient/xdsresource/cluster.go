package xdsresource

import (
	"crypto/tls"
	"net/netip"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/dns"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// Discovery is a cluster's discovery type.
type Discovery uint8

// Discovery types.
const (
	DiscoveryStatic Discovery = iota
	DiscoveryEDS
	DiscoveryStrictDNS
	DiscoveryLogicalDNS
	DiscoveryOriginalDst
	// DiscoveryDynamicForwardProxy is cluster_type
	// envoy.clusters.dynamic_forward_proxy.
	DiscoveryDynamicForwardProxy
)

// LBPolicy is lb_policy.
type LBPolicy uint8

// Load-balancing policies.
const (
	LBRoundRobin LBPolicy = iota
	LBLeastRequest
	LBRandom
	LBRingHash
	LBMaglev
	LBClusterProvided
)

// Cluster is envoy.config.cluster.v3.Cluster.
type Cluster struct {
	Resource
	AltStatName string
	Discovery   Discovery
	// EDSServiceName is the name to ask EDS for (the cluster's if empty).
	EDSServiceName string
	EDSSource      ConfigSource
	// Assignment holds the endpoints of STATIC and DNS clusters.
	Assignment *ClusterLoadAssignment

	ConnectTimeout time.Duration // 5 s by default
	LB             LB

	// TransportSocket is the default one; Matches are tried first, in order.
	TransportSocket TransportSocket
	Matches         []TransportSocketMatch

	HTTP     HTTPProtocol
	Breakers [2]CircuitBreaker // DEFAULT, HIGH
	Outlier  *OutlierDetection

	OriginalDst OriginalDst
	DNS         DNS

	Metadata Metadata
	// Filters stand on the connections to its hosts.
	Filters      []TypedConfig
	TCPKeepalive *TCPKeepalive
	// BindSource is upstream_bind_config's source address.
	BindSource      netip.AddrPort
	CleanupInterval time.Duration
	// Broken, if not empty, is why the cluster can't be used: requests to it
	// answer 503 with that in the log.
	Broken                   string
	MaxRequestsPerConnection uint32
}

// TCPKeepalive is upstream_connection_options.tcp_keepalive; 0 means default.
type TCPKeepalive struct {
	Probes, Time, Interval uint32
}

// LB is how a host is chosen.
type LB struct {
	Policy LBPolicy
	// ChoiceCount of least request, 2 by default; ActiveRequestBias 1.0.
	ChoiceCount           uint32
	ActiveRequestBias     float64
	RingMin, RingMax      uint64
	MaglevTableSize       uint64
	UseHostnameForHashing bool
	// PanicThreshold is a percentage, 50 by default; 0 disables panic mode.
	PanicThreshold float64
	// FailOnPanic is fail_traffic_on_panic.
	FailOnPanic bool
	// RenewOnChange is close_connections_on_host_set_change.
	RenewOnChange bool
	// LocalityWeighted is locality_weighted_lb_config; ZoneAware isn't executed.
	LocalityWeighted bool
	// SlowStartWindow 0 is off.
	SlowStartWindow                         time.Duration
	SlowStartAggression, SlowStartMinWeight float64
	// OverrideHost header and metadata keys (stateful session, InferencePool).
	OverrideHostHeader string
}

// UpstreamHTTP is which HTTP version a cluster speaks.
type UpstreamHTTP uint8

// Upstream protocols.
const (
	UpstreamHTTP1 UpstreamHTTP = iota
	UpstreamHTTP2
	// UpstreamDownstreamProtocol uses what the client spoke.
	UpstreamDownstreamProtocol
	// UpstreamAuto uses ALPN.
	UpstreamAuto
)

// HTTPProtocol is envoy.extensions.upstreams.http.v3.HttpProtocolOptions.
type HTTPProtocol struct {
	Version UpstreamHTTP
	// IdleTimeout is 1 h by default, negative off.
	IdleTimeout, MaxConnectionDuration, MaxStreamDuration time.Duration
	MaxRequestsPerConnection                              uint32
	Client                                                transport.ClientConfig
	AutoSNI, AutoSANValidation                            bool
	OverrideAutoSNIHeader                                 string
}

// CircuitBreaker is one priority's thresholds. Envoy's defaults: 1024, 1024,
// 1024, 3 retries; 4294967295 is "no limit".
type CircuitBreaker struct {
	MaxConnections, MaxPendingRequests, MaxRequests, MaxRetries uint32
	// RetryBudget, if not nil, replaces MaxRetries.
	RetryBudget *RetryBudget
}

// RetryBudget limits retries to a share of active requests.
type RetryBudget struct {
	Percent             float64 // 20 by default
	MinRetryConcurrency uint32  // 3 by default
}

// OutlierDetection is envoy.config.cluster.v3.OutlierDetection with Envoy's
// defaults filled in. Enforcing values are percentages.
type OutlierDetection struct {
	Consecutive5xx, ConsecutiveGatewayFailure, ConsecutiveLocalOriginFailure                                              uint32
	EnforcingConsecutive5xx, EnforcingConsecutiveGatewayFailure, EnforcingConsecutiveLocalOriginFailure                   uint32
	Interval, BaseEjectionTime, MaxEjectionTime, MaxEjectionTimeJitter                                                    time.Duration
	MaxEjectionPercent                                                                                                    uint32
	SplitExternalLocalOrigin                                                                                              bool
	EnforcingSuccessRate, SuccessRateMinimumHosts, SuccessRateRequestVolume, SuccessRateStdevFactor                       uint32
	EnforcingFailurePercentage, FailurePercentageThreshold, FailurePercentageMinimumHosts, FailurePercentageRequestVolume uint32
	AlwaysEjectOneHost                                                                                                    bool
}

// OriginalDst is original_dst_lb_config.
type OriginalDst struct {
	UseHTTPHeader bool
	HTTPHeader    string
	PortOverride  uint32 // 0: none
	// MetadataNS and MetadataPath name host metadata that overrides the address.
	MetadataNS   string
	MetadataPath []string
}

// DNS is how names are resolved.
type DNS struct {
	Family DNSFamily
	// RefreshRate is after how long a name is resolved again; 5 s by default, and
	// 60 s for dynamic_forward_proxy.
	RefreshRate time.Duration
	// RespectTTL resolves again when the answer's TTL is over, if it has one, but
	// not before MinRefreshRate.
	RespectTTL     bool
	MinRefreshRate time.Duration
	// FailureBase and FailureMax bound the growing pauses after failures; 0 is
	// RefreshRate each time.
	FailureBase, FailureMax time.Duration
	// Jitter is added to the pause after an answer, a random share of it.
	Jitter time.Duration
	// Resolver is the cluster's own, nil for that of the process.
	Resolver *dns.Config
	// Port is what dynamic_forward_proxy connects to if the authority has none.
	Port uint32
	// Cache is dynamic_forward_proxy's.
	Cache DNSCache
}

// DNSCache is dns_cache_config.
type DNSCache struct {
	// HostTTL is how long an unused name is kept, 5 min by default; MaxHosts how
	// many, 1024 by default.
	HostTTL  time.Duration
	MaxHosts uint32
	// QueryTimeout bounds a resolution, 5 s by default; 0 leaves it to the
	// resolver.
	QueryTimeout time.Duration
	// ForgetFailures resolves a name again when it is asked for, if it could not be.
	ForgetFailures bool
	// Preresolve are names to resolve at once.
	Preresolve []string
}

// DNSFamily is dns_lookup_family.
type DNSFamily uint8

// DNS families.
const (
	DNSAuto DNSFamily = iota
	DNSV4Only
	DNSV6Only
	DNSV4Preferred
	DNSAll
)

// TransportSocketMatch picks a socket by endpoint metadata
// (envoy.transport_socket_match); an empty Match matches every endpoint.
type TransportSocketMatch struct {
	Match  map[string]any
	Socket TransportSocket
}

// TransportSocket is an upstream transport socket. The zero value is
// raw_buffer.
type TransportSocket struct {
	// TLS is nil for plaintext.
	TLS *UpstreamTLS
	// Internal is set for internal_upstream, wrapped around the above.
	Internal *InternalUpstream
	// ProxyProtocol is 0, or the PROXY protocol version to send.
	ProxyProtocol int
	// Unknown, if not empty, is why the socket can't be used: connections fail.
	Unknown string
}

// InternalUpstream is internal_upstream: what crosses an internal hop.
type InternalUpstream struct {
	Passthrough []PassthroughMetadata
}

// PassthroughMetadata names a metadata namespace that becomes dynamic metadata
// of the internal connection.
type PassthroughMetadata struct {
	// Host is true for endpoint metadata, false for the cluster's.
	Host bool
	Name string
}

// ClusterLoadAssignment is an EDS resource.
type ClusterLoadAssignment struct {
	Resource
	Localities []LocalityEndpoints
	// OverprovisioningFactor is a percentage, 140 by default.
	OverprovisioningFactor uint32
	// DropOverloads are shares of requests to drop, in [0, 1].
	DropOverloads []float64
}

// LocalityEndpoints are the endpoints of one locality and priority.
type LocalityEndpoints struct {
	Region, Zone, SubZone string
	Priority              uint32
	// Weight is the locality's weight; 0 with locality-weighted balancing
	// means no traffic.
	Weight    uint32
	Endpoints []Endpoint
}

// Health is an endpoint's health_status.
type Health uint8

// Health states: Unknown and Healthy take traffic, Degraded only if need be.
const (
	HealthUnknown Health = iota
	HealthHealthy
	HealthUnhealthy
	HealthDraining
	HealthDegraded
)

// Endpoint is one LbEndpoint.
type Endpoint struct {
	// Address is an IP endpoint, or invalid.
	Address netip.AddrPort
	// HostName and Port are set for DNS endpoints.
	HostName string
	Port     uint32
	// InternalListener and EndpointID are set for envoy_internal_address.
	InternalListener, EndpointID string
	// Pipe is a Unix socket path.
	Pipe string
	// DisplayHost is endpoint.hostname, for auto host rewrite and auto SNI.
	DisplayHost string
	Health      Health
	Weight      uint32 // at least 1
	Metadata    Metadata
}

// TLSParams bounds TLS; versions are crypto/tls constants, 0 for Envoy's
// default (server 1.2–1.3, client 1.2–1.3 here).
type TLSParams struct {
	MinVersion, MaxVersion uint16
	CipherSuites           []uint16
	// Curves are the key exchanges that are offered and taken; empty: Envoy's
	// default. Their order counts for nothing.
	Curves []tls.CurveID
}

// Validation is how a peer's certificate is checked.
type Validation struct {
	// SDSName names the secret with the trusted CA ("" if inline).
	SDSName   string
	SDSSource ConfigSource
	// TrustedCA is PEM, inline or from a file at decode time; TrustedCAFile is watched.
	TrustedCA     []byte
	TrustedCAFile string
	// SANs: any must match; empty accepts every name.
	SANs         []SANMatcher
	SPKI, Hashes []string
	// CRL is PEM or DER, inline or from a file at decode time; CRLFile is watched.
	CRL             []byte
	CRLFile         string
	AcceptUntrusted bool // trust_chain_verification ACCEPT_UNTRUSTED
	AllowExpired    bool
	// SystemRoots uses the operating system's.
	SystemRoots bool
	// MaxVerifyDepth 0: default.
	MaxVerifyDepth uint32
	// TrustDomains is SPIFFE's cert validator; unsupported ones are rejected.
}

// SANType is the kind of subject alternative name.
type SANType uint8

// SAN types.
const (
	SANAny SANType = iota
	SANDNS
	SANURI
	SANEmail
	SANIP
)

// SANMatcher matches one subject alternative name.
type SANMatcher struct {
	Type    SANType
	Matcher matcher.String
}

// Certificate is an identity: inline PEM, files, or an SDS name.
type Certificate struct {
	SDSName            string
	SDSSource          ConfigSource
	Chain, Key         []byte
	ChainFile, KeyFile string
	OCSP               []byte
	Password           string
}

// CommonTLS is CommonTlsContext.
type CommonTLS struct {
	Params       TLSParams
	ALPN         []string
	Certificates []Certificate
	// Validation is nil if the peer isn't checked.
	Validation *Validation
}

// UpstreamTLS is UpstreamTlsContext.
type UpstreamTLS struct {
	CommonTLS
	SNI                               string
	AutoHostSNI, AutoSNISANValidation bool
	AllowRenegotiation                bool
	MaxSessionKeys                    uint32
}

// DownstreamTLS is DownstreamTlsContext, or a socket that can't be executed.
type DownstreamTLS struct {
	CommonTLS
	RequireClientCert          bool
	RequireSNI                 bool
	DisableStatelessResumption bool
	// ProxyProtocol etc. are not downstream sockets here. Unknown, if not
	// empty, is why handshakes must fail.
	Unknown string
}

// Secret is an SDS resource.
type Secret struct {
	Resource
	// Exactly one is set.
	Certificate *Certificate
	Validation  *Validation
	Generic     []byte
}
