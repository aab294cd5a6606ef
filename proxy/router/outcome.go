package router

import (
	"errors"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
)

// receive reads response heads until the final one. 1xx heads are passed on.
func (rq *request) receive(st *upstream.Stream) (status int, end bool, err error) {
	for {
		rq.resp = rq.s.NewResponse()
		status, end, err = st.ReadHeaders(&rq.resp.Header)
		if err != nil {
			return 0, false, err
		}
		rq.touchIdle()
		if status >= 200 || status == 101 {
			return status, end, nil
		}
		if f := rq.s.Informational; f != nil && status != 100 || f != nil && rq.s.Request.Has("expect") {
			if err := f(&rq.resp.Header); err != nil {
				return 0, false, &bodyError{err}
			}
		}
	}
}

// answered decides about a response whose head has arrived.
func (rq *request) answered(st *upstream.Stream, status int, end bool) (*filters.Response, bool, error) {
	info := &rq.s.Info
	info.FirstUpstreamRx = info.Now()
	rq.status = status
	if rq.attempted != nil {
		rq.attempted.response.CopyFrom(&rq.resp.Header)
	}
	rq.judge(status, end)
	h := &rq.resp.Header
	if rq.retry.wouldRetryResponse(status, h) && rq.pump.replayable() && rq.kind == noTunnel {
		switch rq.retry.admit(rq.c, rq.high) {
		case retryNow:
			rq.c.CountRetried(status)
			rq.drop(end && rq.pump.finished())
			if err := rq.sleep(rq.retry.backoff(rq.c)); err != nil {
				return rq.failed(err)
			}
			return nil, true, nil
		case retryExhausted:
			info.Flags = info.Flags.With(streaminfo.UpstreamRetryLimitExceeded)
		case retryOverflowed:
			info.Flags = info.Flags.With(streaminfo.UpstreamOverflow)
		case noRetry:
		}
	}
	rq.c.CountCode(status, fromInside(rq.s))
	rq.retry.settle(rq.c, rq.high, true)
	rq.pump.commit()
	info.Details, info.ResponseCode = "via_upstream", status
	if rq.accepted(status) {
		return rq.tunnelled(st), false, nil
	}
	rq.finishHead(h)
	if end {
		info.LastUpstreamRx = info.FirstUpstreamRx
		rq.observe()
		rq.drop(rq.pump.finished())
		return rq.resp, false, nil
	}
	rq.held = true
	rq.received = st.Body()
	_, rq.whole = rq.received.Ready()
	rq.resp.Body = newResponseBody(rq)
	return rq.resp, false, nil
}

// finishHead adds what the router adds to every response from upstream.
func (rq *request) finishHead(h *message.Header) {
	s := rq.s
	completed := rq.completedAt()
	if !completed.IsZero() {
		s.Info.Upstream.ServiceTime = s.Info.FirstUpstreamRx.Sub(completed)
		if !rq.f.cfg.SuppressEnvoyHeaders {
			h.Set(hdrServiceTime, rq.number(h, s.Info.Upstream.ServiceTime.Milliseconds()))
		}
	}
	if rq.route.VirtualHost.IncludeAttemptCountInResponse {
		h.Set(hdrAttempt, rq.number(h, int64(rq.attempts)))
	}
	if rq.cookie != "" {
		h.Add("set-cookie", rq.cookie)
	}
	rq.route.FinalizeResponse(s, rq.resp)
}

// judge tells outlier detection about a response. A gRPC response counts by its
// grpc-status, which may come with the trailers.
func (rq *request) judge(status int, end bool) {
	rq.grpcLater = false
	if rq.s.Info.IsGRPC && status == 200 {
		v := rq.resp.Header.Get("grpc-status")
		if v == "" && !end {
			rq.grpcLater = true
			return
		}
		status = httpFromGRPC(v)
	}
	rq.c.Status(rq.host, status)
}

// observe records the time of a complete exchange, which LastUpstreamRx ended.
func (rq *request) observe() {
	if completed := rq.completedAt(); !completed.IsZero() {
		rq.c.ObserveTime(max(0, rq.s.Info.LastUpstreamRx.Sub(completed)))
	}
}

// httpFromGRPC maps a grpc-status to the HTTP status that stands for it, as
// Envoy's Grpc::Utility::grpcToHttpStatus does.
func httpFromGRPC(v string) int {
	switch v {
	case "0", "":
		return 200
	case "1":
		return 499
	case "3", "9", "11":
		return 400
	case "4":
		return 504
	case "5":
		return 404
	case "6", "10":
		return 409
	case "7":
		return 403
	case "8":
		return 429
	case "12":
		return 501
	case "14":
		return 503
	case "16":
		return 401
	}
	return 500
}

// failed decides about an attempt that ended without a response.
func (rq *request) failed(err error) (*filters.Response, bool, error) {
	cause, try := rq.causes()
	rq.mu.Lock()
	st := rq.cur
	rq.mu.Unlock()
	stale := rq.stale(st, err)
	rq.endFailed(cause, try, err)
	rq.drop(false)
	var be *bodyError
	switch {
	case errors.As(cause, &be), errors.As(err, &be):
		return nil, false, be.err
	case errors.Is(cause, errRouteTimeout), errors.Is(cause, errMaxDuration), errors.Is(cause, errUpstreamMaxAge):
		return rq.timedOut(cause, st != nil), false, nil
	case cause != nil:
		if st != nil {
			rq.countTxReset()
		}
		return nil, false, cause
	}
	reason := transport.ReasonOf(err)
	if reason == 0 {
		reason = transport.ConnectionTermination
	}
	rq.note(reason, err)
	switch {
	case try != nil:
		rq.c.Failed(rq.host, upstream.FailureTimeout)
		rq.countTxReset()
		rq.c.Count(tryEvent(try))
		reason = transport.LocalReset
	case reason == transport.ConnectionFailure:
		rq.c.Failed(rq.host, upstream.FailureConnect)
	case reason != transport.Overflow:
		if reason == transport.RemoteReset || reason == transport.RemoteRefused {
			rq.c.Count(upstream.EventRxReset)
		}
		rq.c.Failed(rq.host, upstream.FailureReset)
	}
	if rq.retry.wouldRetryReset(reason, rq.sent) {
		if !rq.pump.replayable() {
			rq.f.rqRetrySkipped.Inc()
		} else if again, resp, err := rq.retryReset(); again || resp != nil || err != nil {
			return resp, again, err
		}
	}
	if stale && try == nil && rq.freeRetry() {
		return nil, true, nil
	}
	rq.retry.settle(rq.c, rq.high, false)
	if try != nil {
		rq.limitOfTry(try)
		return rq.timeoutReply(tryDetail(try)), false, nil
	}
	return rq.resetReply(reason, err), false, nil
}

// endFailed ends span and log of an attempt without a response.
func (rq *request) endFailed(cause, try, err error) {
	tr := rq.s.Trace
	if tr == nil && len(rq.f.d.UpstreamLogs) == 0 {
		return
	}
	e := filters.AttemptEnd{Cancelled: true}
	switch {
	case errors.Is(cause, errUpstreamMaxAge):
		e.Flag = streaminfo.UpstreamMaxStreamDurationReached
	case cause != nil:
	case try != nil:
		e.Flag = streaminfo.UpstreamRequestTimeout
	default:
		reason := transport.ReasonOf(err)
		e = filters.AttemptEnd{Flag: reasonFlag(reason), Reason: reasonText(reason, err)}
		rq.note(reason, err)
	}
	rq.logAttempt(e.Flag)
	if tr != nil {
		rq.finishSpan(tr, e)
	}
}

// retryReset takes a retry after a reset, if what is left and the breaker allow
// it. A response or error means that the request ended while it waited.
func (rq *request) retryReset() (again bool, resp *filters.Response, err error) {
	switch rq.retry.admit(rq.c, rq.high) {
	case retryNow:
		if err := rq.sleep(rq.retry.backoff(rq.c)); err != nil {
			resp, again, err = rq.failed(err)
			return again, resp, err
		}
		return true, nil, nil
	case retryExhausted:
		rq.s.Info.Flags = rq.s.Info.Flags.With(streaminfo.UpstreamRetryLimitExceeded)
	case retryOverflowed:
		rq.s.Info.Flags = rq.s.Info.Flags.With(streaminfo.UpstreamOverflow)
	case noRetry:
	}
	return false, nil, nil
}

// note records why the transport failed.
func (rq *request) note(reason transport.ResetReason, err error) {
	var re *transport.ResetError
	if reason == transport.ConnectionFailure && errors.As(err, &re) && re.Detail != upstream.DetailConnectTimeout {
		rq.s.Info.Upstream.TransportFailureReason = underscores(re.Detail)
	}
}

func underscores(s string) string { return strings.ReplaceAll(s, " ", "_") }

func tryEvent(cause error) upstream.Event {
	if errors.Is(cause, errPerTryIdle) {
		return upstream.EventPerTryIdleTimeout
	}
	return upstream.EventPerTryTimeout
}

func tryDetail(cause error) string {
	if errors.Is(cause, errPerTryIdle) {
		return "upstream_per_try_idle_timeout"
	}
	return "upstream_per_try_timeout"
}

// timedOut answers a request whose time is over.
func (rq *request) timedOut(cause error, inFlight bool) *filters.Response {
	if inFlight {
		rq.countTxReset()
		if errors.Is(cause, errRouteTimeout) {
			rq.c.Failed(rq.host, upstream.FailureTimeout)
		}
	}
	status := 504
	if rq.mu.Lock(); rq.completed.IsZero() {
		status = 408 // the client, too, was slow
	}
	rq.mu.Unlock()
	switch {
	case errors.Is(cause, errMaxDuration):
		rq.limit("max stream duration", rq.t.duration)
		return rq.f.abort(rq.s, rq.c, status, "downstream duration timeout", "max_duration_timeout", streaminfo.DurationTimeout, false)
	case errors.Is(cause, errUpstreamMaxAge):
		rq.c.Count(upstream.EventMaxDuration)
		rq.limit("max stream duration of the cluster", rq.t.duration)
		return rq.f.abort(rq.s, rq.c, status, "upstream max stream duration reached", "upstream_max_stream_duration_reached", streaminfo.UpstreamMaxStreamDurationReached, false)
	}
	rq.c.Count(upstream.EventTimeout)
	rq.limit("route timeout", rq.t.route)
	return rq.timeoutReply("response_timeout")
}

// countTxReset counts a stream of HTTP/2 that was reset; in HTTP/1 it is the
// connection that ends.
func (rq *request) countTxReset() {
	if rq.s.Info.Upstream.Protocol == message.HTTP2 {
		rq.c.Count(upstream.EventTxReset)
	}
}

// limit notes which limit ended the request.
func (rq *request) limit(name string, d time.Duration) { rq.s.Info.Limit = name + " " + d.String() }

// limitOfTry is limit for the timer of an attempt.
func (rq *request) limitOfTry(cause error) {
	if errors.Is(cause, errPerTryIdle) {
		rq.limit("per-try idle timeout", rq.t.perTryIdle)
		return
	}
	rq.limit("per-try timeout", rq.t.perTry)
}

// timeoutReply answers a request that upstream did not answer in time.
func (rq *request) timeoutReply(details string) *filters.Response {
	status, body := 504, "upstream request timeout"
	if rq.t.alt {
		status, body = 204, ""
	}
	return rq.f.abort(rq.s, rq.c, status, body, details, streaminfo.UpstreamRequestTimeout, false)
}

// noHost answers when load balancing gave no host.
func (rq *request) noHost(err error) (*filters.Response, bool, error) {
	rq.retry.settle(rq.c, rq.high, false)
	if cause, _ := rq.causes(); cause != nil {
		if errors.Is(cause, errRouteTimeout) || errors.Is(cause, errMaxDuration) || errors.Is(cause, errUpstreamMaxAge) {
			return rq.timedOut(cause, false), false, nil
		}
		return nil, false, cause
	}
	var broken *upstream.BrokenError
	switch {
	case errors.Is(err, upstream.ErrDNS):
		rq.f.log.Warn("name can't be resolved", "cluster", rq.c.Name(), "error", err)
		return rq.f.abort(rq.s, rq.c, 503, "DNS resolution failure", "dns_resolution_failure", streaminfo.DNSResolutionFailed, false), false, nil
	case errors.As(err, &broken):
		rq.f.log.Error("request to a cluster that can't be used", "cluster", rq.c.Name(), "reason", broken.Reason)
		return rq.f.abort(rq.s, rq.c, 503, "no healthy upstream", "cluster_not_usable", streaminfo.NoHealthyUpstream, false), false, nil
	}
	return rq.f.abort(rq.s, rq.c, 503, "no healthy upstream", "no_healthy_upstream", streaminfo.NoHealthyUpstream, false), false, nil
}

// reasonText is Envoy's name of a reset reason.
func reasonText(reason transport.ResetReason, err error) string {
	switch reason {
	case transport.ConnectionFailure:
		var re *transport.ResetError
		if errors.As(err, &re) && re.Detail == upstream.DetailConnectTimeout {
			return "connection timeout"
		}
		return "remote connection failure"
	case transport.ConnectionTermination:
		return "connection termination"
	case transport.RemoteReset:
		return "remote reset"
	case transport.RemoteRefused:
		return "remote refused stream reset"
	case transport.LocalReset:
		return "local reset"
	case transport.ProtocolError:
		return "protocol error"
	case transport.Overflow:
		return "overflow"
	}
	return reason.String()
}

func reasonFlag(reason transport.ResetReason) streaminfo.ResponseFlag {
	switch reason {
	case transport.ConnectionFailure:
		return streaminfo.UpstreamConnectionFailure
	case transport.ConnectionTermination:
		return streaminfo.UpstreamConnectionTermination
	case transport.RemoteReset, transport.RemoteRefused:
		return streaminfo.UpstreamRemoteReset
	case transport.LocalReset:
		return streaminfo.LocalReset
	case transport.ProtocolError:
		return streaminfo.UpstreamProtocolError
	case transport.Overflow:
		return streaminfo.UpstreamOverflow
	}
	return 0
}

// breakerLimit names the circuit breaker that was full.
func breakerLimit(err error) string {
	if re, ok := errors.AsType[*transport.ResetError](err); ok && re.Detail != "" {
		return "circuit breaker " + re.Detail
	}
	return "circuit breaker"
}

// resetReply answers a request whose last attempt ended without a response.
func (rq *request) resetReply(reason transport.ResetReason, err error) *filters.Response {
	text := reasonText(reason, err)
	body := "upstream connect error or disconnect/reset before headers. "
	if rq.attempts > 1 {
		body += "retried and the latest "
	}
	body += "reset reason: " + text
	details := "upstream_reset_before_response_started{" + underscores(text)
	if t := rq.s.Info.Upstream.TransportFailureReason; t != "" && reason == transport.ConnectionFailure {
		details += "|" + t
	}
	details += "}"
	status := 503
	if reason == transport.ProtocolError {
		status = 502
	}
	if reason == transport.Overflow {
		rq.s.Info.Limit = breakerLimit(err)
	}
	return rq.f.abort(rq.s, rq.c, status, body, details, reasonFlag(reason), reason == transport.Overflow)
}
