package router

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// retryState decides about one request's retries: Envoy's RetryState.
type retryState struct {
	on        xdsresource.RetryOn
	left      uint32
	policy    *xdsresource.RetryPolicy
	codes     []int // from the request, besides the policy's
	names     string
	next, max time.Duration
	// holding is set while a retry holds a unit of the circuit breaker.
	holding bool
	// wait overrides the back-off (rate limited); 0: don't.
	wait time.Duration
}

var retryNames = map[string]xdsresource.RetryOn{
	"5xx": xdsresource.Retry5xx, "gateway-error": xdsresource.RetryGatewayError, "reset": xdsresource.RetryReset,
	"reset-before-request": xdsresource.RetryResetBeforeRequest, "connect-failure": xdsresource.RetryConnectFailure,
	"envoy-ratelimited": xdsresource.RetryEnvoyRateLimited, "retriable-4xx": xdsresource.RetryRetriable4xx,
	"refused-stream": xdsresource.RetryRefusedStream, "retriable-status-codes": xdsresource.RetryRetriableStatusCodes,
	"retriable-headers": xdsresource.RetryRetriableHeaders, "http3-post-connect-failure": xdsresource.RetryHTTP3PostConnectFailure,
}

var retryGRPCNames = map[string]xdsresource.RetryOn{
	"cancelled": xdsresource.RetryGRPCCancelled, "deadline-exceeded": xdsresource.RetryGRPCDeadlineExceeded, "internal": xdsresource.RetryGRPCInternal,
	"resource-exhausted": xdsresource.RetryGRPCResourceExhausted, "unavailable": xdsresource.RetryGRPCUnavailable,
}

func parseRetryOn(v string) (xdsresource.RetryOn, bool)     { return parseNames(v, retryNames) }
func parseRetryGRPCOn(v string) (xdsresource.RetryOn, bool) { return parseNames(v, retryGRPCNames) }

func parseNames(v string, m map[string]xdsresource.RetryOn) (on xdsresource.RetryOn, all bool) {
	all = true
	for v != "" {
		var name string
		name, v, _ = strings.Cut(v, ",")
		bit, ok := m[strings.TrimSpace(name)]
		on |= bit
		all = all && ok
	}
	return on, all
}

// init takes the policy and, if the request carries x-envoy headers, what they
// add; those headers are removed.
func (r *retryState) init(p *xdsresource.RetryPolicy, h *message.Header, envoy bool) {
	*r = retryState{policy: p, left: 1, next: 25 * time.Millisecond, max: 250 * time.Millisecond}
	if p != nil {
		r.on, r.left = p.On, p.NumRetries
		if p.BaseInterval > 0 {
			r.next, r.max = p.BaseInterval, 10*p.BaseInterval
		}
		if p.MaxInterval > 0 {
			r.max = p.MaxInterval
		}
		if len(p.RetriableRequestHeaders) > 0 && !anyHeader(p.RetriableRequestHeaders, h) {
			r.on = 0
		}
	}
	if !envoy {
		return
	}
	if v, ok := h.Lookup(hdrRetryOn); ok {
		on, _ := parseRetryOn(v)
		r.on |= on
	}
	if v, ok := h.Lookup(hdrRetryGRPCOn); ok {
		on, _ := parseRetryGRPCOn(v)
		r.on |= on
	}
	if v, ok := h.Lookup(hdrMaxRetries); ok && r.on != 0 {
		if n, err := strconv.ParseUint(v, 10, 32); err == nil {
			r.left = uint32(n)
		}
	}
	if v, ok := h.Lookup(hdrStatusCodes); ok {
		for v != "" {
			var code string
			code, v, _ = strings.Cut(v, ",")
			if n, err := strconv.Atoi(strings.TrimSpace(code)); err == nil && len(r.codes) < 64 {
				r.codes = append(r.codes, n)
			}
		}
	}
	r.names = strings.Clone(h.Get(hdrHeaderNames))
	h.DelFunc(isRetryHeader)
}

func isRetryHeader(f message.Field) bool {
	if !strings.HasPrefix(f.Name, envoyHeaderStart) {
		return false
	}
	switch f.Name {
	case hdrRetryOn, hdrRetryGRPCOn, hdrMaxRetries, hdrStatusCodes, hdrHeaderNames, hdrHedge, hdrAltResponse:
		return true
	}
	return false
}

func anyHeader(ms []matcher.Header, h *message.Header) bool {
	for i := range ms {
		if ms[i].Match(h) {
			return true
		}
	}
	return false
}

// wouldRetryReset tells whether the conditions cover an attempt that ended
// without a response.
func (r *retryState) wouldRetryReset(reason transport.ResetReason, sent bool) bool {
	switch {
	case r.on == 0, reason == transport.Overflow:
		return false
	case r.on&xdsresource.RetryResetBeforeRequest != 0 && !sent:
		return true
	case r.on&(xdsresource.RetryReset|xdsresource.Retry5xx|xdsresource.RetryGatewayError) != 0:
		return true
	case r.on&xdsresource.RetryRefusedStream != 0 && reason == transport.RemoteRefused:
		return true
	}
	return r.on&xdsresource.RetryConnectFailure != 0 && reason == transport.ConnectionFailure
}

// wouldRetryResponse tells whether the conditions cover a response.
func (r *retryState) wouldRetryResponse(status int, h *message.Header) bool {
	if r.on == 0 {
		return false
	}
	r.wait = 0
	if h.Has(hdrRateLimited) {
		return r.on&xdsresource.RetryEnvoyRateLimited != 0
	}
	switch {
	case r.on&xdsresource.Retry5xx != 0 && status >= 500 && status < 600,
		r.on&xdsresource.RetryGatewayError != 0 && status >= 502 && status <= 504,
		r.on&xdsresource.RetryRetriable4xx != 0 && status == 409:
	case r.on&xdsresource.RetryRetriableStatusCodes != 0 && r.hasCode(status):
	case r.on&xdsresource.RetryRetriableHeaders != 0 && r.hasHeader(h):
	case r.on&grpcConditions != 0 && r.hasGRPCStatus(h):
	default:
		return false
	}
	r.rateLimited(h)
	return true
}

const grpcConditions = xdsresource.RetryGRPCCancelled | xdsresource.RetryGRPCDeadlineExceeded | xdsresource.RetryGRPCInternal |
	xdsresource.RetryGRPCResourceExhausted | xdsresource.RetryGRPCUnavailable

func (r *retryState) hasCode(status int) bool {
	if slices.Contains(r.codes, status) {
		return true
	}
	if r.policy != nil {
		if slices.Contains(r.policy.StatusCodes, status) {
			return true
		}
	}
	return false
}

func (r *retryState) hasHeader(h *message.Header) bool {
	if r.policy != nil && anyHeader(r.policy.RetriableHeaders, h) {
		return true
	}
	for names := r.names; names != ""; {
		var n string
		n, names, _ = strings.Cut(names, ",")
		if h.Has(strings.ToLower(strings.TrimSpace(n))) {
			return true
		}
	}
	return false
}

func (r *retryState) hasGRPCStatus(h *message.Header) bool {
	switch h.Get("grpc-status") {
	case "1":
		return r.on&xdsresource.RetryGRPCCancelled != 0
	case "4":
		return r.on&xdsresource.RetryGRPCDeadlineExceeded != 0
	case "8":
		return r.on&xdsresource.RetryGRPCResourceExhausted != 0
	case "13":
		return r.on&xdsresource.RetryGRPCInternal != 0
	case "14":
		return r.on&xdsresource.RetryGRPCUnavailable != 0
	}
	return false
}

// rateLimited reads how long upstream asks to wait (rate_limited_retry_back_off):
// that long and up to half as long again.
func (r *retryState) rateLimited(h *message.Header) {
	if r.policy == nil {
		return
	}
	limit := r.policy.RateLimitedMax
	if limit <= 0 {
		limit = 300 * time.Second
	}
	for _, reset := range r.policy.RateLimitedReset {
		n, err := strconv.ParseInt(h.Get(reset.Name), 10, 64)
		if err != nil || n < 0 {
			continue
		}
		d := time.Duration(min(n, int64(limit/time.Second)+1)) * time.Second
		if reset.UnixTimestamp {
			d = time.Until(time.Unix(n, 0))
		}
		if d > 0 && d <= limit {
			r.wait = d + rand.N(d/2+1)
			return
		}
	}
}

// verdict of the state about a retry that the conditions cover.
type verdict uint8

const (
	noRetry verdict = iota
	retryNow
	retryExhausted
	retryOverflowed
)

// admit takes a retry out of what is left and from the circuit breaker.
func (r *retryState) admit(c *upstream.Cluster, high bool) verdict {
	r.settle(c, high, false)
	if r.left == 0 {
		c.Count(upstream.EventRetryLimitExceeded)
		return retryExhausted
	}
	r.left--
	if !c.TakeRetry(high) {
		c.Count(upstream.EventRetryOverflow)
		return retryOverflowed
	}
	r.holding = true
	c.Count(upstream.EventRetry)
	return retryNow
}

// settle gives back what a retry holds of the circuit breaker, now that its
// outcome is known.
func (r *retryState) settle(c *upstream.Cluster, high, success bool) {
	if !r.holding {
		return
	}
	r.holding = false
	c.GiveRetry(high)
	if success {
		c.Count(upstream.EventRetrySuccess)
	}
}

// backoff is how long to wait before the next attempt.
func (r *retryState) backoff(c *upstream.Cluster) time.Duration {
	if r.wait > 0 {
		c.Count(upstream.EventRetryBackoffRateLimited)
		return r.wait
	}
	c.Count(upstream.EventRetryBackoff)
	d := r.next
	r.next = min(2*r.next, r.max)
	return rand.N(max(d, time.Millisecond))
}
