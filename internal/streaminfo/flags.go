package streaminfo

import "strings"

// ResponseFlag says why a stream or connection ended as it did: one bit for
// each flag of Envoy's %RESPONSE_FLAGS%.
type ResponseFlag uint64

// Envoy's response flags; the comment is the short form that access logs and
// Istio's metrics carry.
const (
	FailedLocalHealthCheck           ResponseFlag = 1 << iota // LH
	NoHealthyUpstream                                         // UH
	UpstreamRequestTimeout                                    // UT
	LocalReset                                                // LR
	UpstreamRemoteReset                                       // UR
	UpstreamConnectionFailure                                 // UF
	UpstreamConnectionTermination                             // UC
	UpstreamOverflow                                          // UO
	NoRouteFound                                              // NR
	DelayInjected                                             // DI
	FaultInjected                                             // FI
	RateLimited                                               // RL
	UnauthorizedExternalService                               // UAEX
	RateLimitServiceError                                     // RLSE
	DownstreamConnectionTermination                           // DC
	UpstreamRetryLimitExceeded                                // URX
	StreamIdleTimeout                                         // SI
	InvalidEnvoyRequestHeaders                                // IH
	DownstreamProtocolError                                   // DPE
	UpstreamMaxStreamDurationReached                          // UMSDR
	ResponseFromCacheFilter                                   // RFCF
	NoFilterConfigFound                                       // NFCF
	DurationTimeout                                           // DT
	UpstreamProtocolError                                     // UPE
	NoClusterFound                                            // NC
	OverloadManager                                           // OM
	DNSResolutionFailed                                       // DF
	DropOverload                                              // DO
	DownstreamRemoteReset                                     // DR
	UnconditionalDropOverload                                 // UDO
)

var flagNames = [...]string{
	"LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "RLSE", "DC", "URX", "SI", "IH", "DPE",
	"UMSDR", "RFCF", "NFCF", "DT", "UPE", "NC", "OM", "DF", "DO", "DR", "UDO",
}

// String returns the short names joined by ",", in Envoy's order, and "-" if
// no flag is set.
func (f ResponseFlag) String() string {
	switch {
	case f == 0:
		return "-"
	case f&(f-1) == 0:
		for i, n := range flagNames {
			if f == 1<<i {
				return n
			}
		}
	}
	var b strings.Builder
	for i, n := range flagNames {
		if f&(1<<i) != 0 {
			if b.Len() > 0 {
				b.WriteByte(',')
			}
			b.WriteString(n)
		}
	}
	return b.String()
}

// ParseResponseFlag returns the flag with Envoy's short name.
func ParseResponseFlag(short string) (ResponseFlag, bool) {
	for i, n := range flagNames {
		if n == short {
			return 1 << i, true
		}
	}
	return 0, false
}
