package streaminfo

import (
	"math/bits"
	"strings"
)

// ResponseFlag says why a stream or connection ended as it did: one bit for
// each flag of Envoy's %RESPONSE_FLAGS%. The bits from orderShift on remember in
// which order flags were set, if With set more than one.
type ResponseFlag uint64

const (
	orderShift = 34 // bits below are flags; above are maxOrdered places
	orderBits  = 5
	maxOrdered = 6
	orderMask  = 1<<orderBits - 1
	flagMask   = ResponseFlag(1)<<orderShift - 1
)

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

// With returns f with g set too. Envoy lists flags in the order in which they
// were set: so do String and Next, for flags that were set one at a time.
func (f ResponseFlag) With(g ResponseFlag) ResponseFlag {
	old := f & flagMask
	if g &= flagMask; old == 0 || g&^old == 0 {
		return f | g
	}
	n := 0
	for n < maxOrdered && f>>(orderShift+n*orderBits)&orderMask != 0 {
		n++
	}
	if n == 0 {
		f, n = f.place(old, n)
	}
	f, _ = f.place(g&^old, n)
	return f | g
}

// place notes that the flags of g come next, after n others.
func (f ResponseFlag) place(g ResponseFlag, n int) (ResponseFlag, int) {
	for ; g != 0 && n < maxOrdered; n++ {
		i := bits.TrailingZeros64(uint64(g))
		g &^= 1 << i
		f |= ResponseFlag(i+1) << (orderShift + n*orderBits)
	}
	return f, n
}

// Next returns the number (0 for the lowest bit) of the flag that was set first,
// and the others. f must not be 0.
func (f ResponseFlag) Next() (i int, rest ResponseFlag) {
	if f >= 1<<orderShift {
		i = int(f>>orderShift&orderMask) - 1
		rest = (f>>(orderShift+orderBits))<<orderShift | f&flagMask
	} else {
		i, rest = bits.TrailingZeros64(uint64(f)), f
	}
	return i, rest &^ (1 << i)
}

// String returns the short names joined by ",", in the order in which they were
// set as far as that is known, and "-" if no flag is set.
func (f ResponseFlag) String() string {
	switch {
	case f == 0:
		return "-"
	case f&(f-1) == 0:
		return flagNames[bits.TrailingZeros64(uint64(f))]
	}
	var b strings.Builder
	for f != 0 {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		var i int
		i, f = f.Next()
		b.WriteString(flagNames[i])
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
