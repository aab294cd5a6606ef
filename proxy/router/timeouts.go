package router

import (
	"strconv"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Request headers that the router executes and removes. Whether a client may
// send them is decided by HCM, which removes them from external requests.
const (
	hdrTimeout       = "x-envoy-upstream-rq-timeout-ms"
	hdrPerTry        = "x-envoy-upstream-rq-per-try-timeout-ms"
	hdrExpected      = "x-envoy-expected-rq-timeout-ms"
	hdrRetryOn       = "x-envoy-retry-on"
	hdrRetryGRPCOn   = "x-envoy-retry-grpc-on"
	hdrMaxRetries    = "x-envoy-max-retries"
	hdrStatusCodes   = "x-envoy-retriable-status-codes"
	hdrHeaderNames   = "x-envoy-retriable-header-names"
	hdrHedge         = "x-envoy-hedge-on-per-try-timeout"
	hdrAltResponse   = "x-envoy-upstream-rq-timeout-alt-response"
	hdrAttempt       = "x-envoy-attempt-count"
	hdrServiceTime   = "x-envoy-upstream-service-time"
	hdrRateLimited   = "x-envoy-ratelimited"
	hdrIsTimeoutTry  = "x-envoy-is-timeout-retry"
	hdrGRPCTimeout   = "grpc-timeout"
	envoyHeaderStart = "x-envoy-"
)

// timeouts are the limits of one request; 0 is none.
type timeouts struct {
	route, perTry, perTryIdle, duration time.Duration
	// alt asks for 204 in place of 504 (x-envoy-upstream-rq-timeout-alt-response).
	alt bool
}

// hasEnvoyHeader tells cheaply whether the request carries any header that
// starts with "x-envoy-", so that the usual request is scanned once.
func hasEnvoyHeader(h *message.Header) bool {
	for i := range h.Len() {
		if strings.HasPrefix(h.At(i).Name, envoyHeaderStart) {
			return true
		}
	}
	return false
}

// timeoutsOf computes Envoy's final timeouts and removes the headers that
// carried them.
func timeoutsOf(s *filters.Stream, a *xdsresource.RouteAction, p *xdsresource.RetryPolicy, envoy, respectExpected bool) timeouts {
	t := timeouts{route: a.Timeout}
	if p != nil {
		t.perTry, t.perTryIdle = p.PerTryTimeout, p.PerTryIdleTimeout
	}
	if a.MaxStreamDuration != nil {
		t.duration = *a.MaxStreamDuration
	}
	if a.GRPCTimeoutMax != nil && s.Info.IsGRPC {
		if d, ok := grpcTimeout(s.Request.Get(hdrGRPCTimeout)); ok {
			t.route = bounded(d, *a.GRPCTimeoutMax, a.GRPCTimeoutOffset)
		} else {
			t.route = *a.GRPCTimeoutMax
		}
	}
	if envoy {
		if respectExpected {
			if d, ok := takeMillis(&s.Request, hdrExpected, false); ok {
				t.route = d
			} else if d, ok := takeMillis(&s.Request, hdrTimeout, true); ok {
				t.route = d
			}
		} else if d, ok := takeMillis(&s.Request, hdrTimeout, true); ok {
			t.route = d
		}
		if d, ok := takeMillis(&s.Request, hdrPerTry, true); ok {
			t.perTry = d
		}
		t.alt = s.Request.Has(hdrAltResponse) // removed with the headers about retries
	}
	if t.route > 0 && t.perTry >= t.route {
		t.perTry = 0
	}
	return t
}

// bounded applies grpc_timeout_header_max and _offset.
func bounded(d, limit, offset time.Duration) time.Duration {
	if offset > 0 && d > offset {
		d -= offset
	}
	if limit > 0 && (d == 0 || d > limit) {
		d = limit
	}
	return d
}

func takeMillis(h *message.Header, name string, remove bool) (time.Duration, bool) {
	v, ok := h.Lookup(name)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(v, 10, 32)
	if remove {
		h.Del(name)
	}
	return time.Duration(n) * time.Millisecond, err == nil
}

// longest stands for timeouts beyond what a time.Duration holds.
const longest = 100 * 365 * 24 * time.Hour

// grpcTimeout parses "grpc-timeout": at most eight digits and a unit.
func grpcTimeout(v string) (time.Duration, bool) {
	if len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	n, err := strconv.ParseUint(v[:len(v)-1], 10, 32)
	if err != nil {
		return 0, false
	}
	var u time.Duration
	switch v[len(v)-1] {
	case 'H':
		u = time.Hour
	case 'M':
		u = time.Minute
	case 'S':
		u = time.Second
	case 'm':
		u = time.Millisecond
	case 'u':
		u = time.Microsecond
	case 'n':
		u = time.Nanosecond
	default:
		return 0, false
	}
	if time.Duration(n) > longest/u {
		return longest, true
	}
	d := time.Duration(n) * u
	if n > 0 && d < time.Millisecond {
		d = time.Millisecond // Envoy rounds up
	}
	return d, true
}

// expected is the value of x-envoy-expected-rq-timeout-ms for an attempt that
// starts now; 0: don't send one.
func (t *timeouts) expected(elapsed time.Duration) time.Duration {
	d := t.perTry
	if d == 0 {
		d = t.route
	}
	if d > 0 && t.route > 0 {
		if elapsed >= t.route {
			return time.Millisecond
		}
		d = min(d, t.route-elapsed)
	}
	return d
}

func validEnvoyHeader(name, v string) bool {
	switch name {
	case hdrTimeout, hdrPerTry, hdrMaxRetries:
		_, err := strconv.ParseUint(v, 10, 32)
		return err == nil
	case hdrRetryOn:
		_, ok := parseRetryOn(v)
		return ok
	case hdrRetryGRPCOn:
		_, ok := parseRetryGRPCOn(v)
		return ok
	}
	return true
}
