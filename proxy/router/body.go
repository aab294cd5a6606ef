package router

import (
	"errors"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
)

// responseBody is the response's body as HCM pulls it. Its end gives the
// upstream connection back. It outlives its request, which is pooled: access
// logs ask for trailers after Close.
type responseBody struct {
	rq       *request
	trailers *message.Header // nil or kept
	kept     message.Header
}

// newResponseBody takes the body that the pooled stream had before, if nobody
// uses that any more.
func newResponseBody(rq *request) *responseBody {
	b, ok := rq.s.Scratch.(*responseBody)
	if !ok || b.rq != nil {
		b = &responseBody{}
		rq.s.Scratch = b
	}
	b.rq, b.trailers = rq, nil
	return b
}

// Next implements message.Body.
func (b *responseBody) Next() ([]byte, bool, error) {
	rq := b.rq
	if rq == nil {
		return nil, true, nil
	}
	p, last, err := rq.received.Next()
	if err != nil {
		return nil, false, rq.brokeOff(err)
	}
	rq.touchIdle()
	if last && !rq.ended {
		rq.ended = true
		info := &rq.s.Info
		if rq.whole {
			info.LastUpstreamRx = info.FirstUpstreamRx
		} else {
			info.LastUpstreamRx = info.Now()
		}
		rq.observe()
		if rq.grpcLater {
			rq.grpcLater = false
			v := ""
			if t := rq.received.Trailers(); t != nil {
				v = t.Get("grpc-status")
			}
			rq.c.Status(rq.host, httpFromGRPC(v))
		}
		rq.stopTimers()
	}
	return p, last, nil
}

// Ready implements message.Body.
func (b *responseBody) Ready() (int, bool) {
	if b.rq == nil {
		return 0, true
	}
	return b.rq.received.Ready()
}

// Trailers implements message.Body.
func (b *responseBody) Trailers() *message.Header {
	if b.rq == nil {
		return b.trailers
	}
	return b.rq.received.Trailers()
}

// Close implements message.Body.
func (b *responseBody) Close() {
	rq := b.rq
	if rq == nil {
		return
	}
	if t := rq.received.Trailers(); t != nil && rq.ended {
		b.kept.CopyFrom(t)
		b.trailers = &b.kept
	}
	b.rq = nil
	if !rq.ended {
		if _, last := rq.received.Ready(); last {
			// What is left is here already (a HEAD, or a body that nobody
			// wanted): the connection stays usable.
			_, _, err := rq.received.Next()
			rq.ended = err == nil
		}
	}
	rq.received.Close()
	if !rq.ended {
		rq.countTxReset()
	}
	rq.drop(rq.ended && rq.pump.finished())
	rq.release()
}

// lateRelease is the body of a response whose request is still being pumped: it
// ends that when the response has been written.
type lateRelease struct {
	message.Body
	rq *request
}

// Close implements message.Body.
func (b *lateRelease) Close() {
	b.Body.Close()
	if rq := b.rq; rq != nil {
		b.rq = nil
		rq.release()
	}
}

func (rq *request) stopTimers() {
	rq.routeTimer.Stop()
	rq.durationTimer.Stop()
	rq.idleTimer.Stop()
	rq.tryTimer.Stop()
}

// timersFired reports, after stopTimers, whether a callback may still run.
func (rq *request) timersFired() bool {
	return rq.routeTimer.Fired() || rq.durationTimer.Fired() || rq.idleTimer.Fired() || rq.tryTimer.Fired()
}

// brokeOff records why a response that had begun did not end, and returns what
// HCM resets the client for.
func (rq *request) brokeOff(err error) error {
	info := &rq.s.Info
	cause, try := rq.causes()
	rq.f.rqResetAfterStart.Inc()
	if rq.attempted != nil && cause == nil && try == nil {
		rq.logAttempt(reasonFlag(transport.ReasonOf(err)))
	}
	var be *bodyError
	switch {
	case errors.As(cause, &be):
		return be.err
	case errors.Is(cause, errRouteTimeout):
		rq.c.Count(upstream.EventTimeout)
		info.Flags = info.Flags.With(streaminfo.UpstreamRequestTimeout)
		info.Details = "response_timeout"
		rq.limit("route timeout", rq.t.route)
		return cause
	case errors.Is(cause, errMaxDuration):
		info.Flags = info.Flags.With(streaminfo.DurationTimeout)
		info.Details = "max_duration_timeout"
		rq.limit("max stream duration", rq.t.duration)
		return cause
	case errors.Is(cause, errUpstreamMaxAge):
		rq.c.Count(upstream.EventMaxDuration)
		info.Flags = info.Flags.With(streaminfo.UpstreamMaxStreamDurationReached)
		info.Details = "upstream_max_stream_duration_reached"
		rq.limit("max stream duration of the cluster", rq.t.duration)
		return cause
	case cause != nil:
		return cause
	case try != nil:
		rq.c.Count(tryEvent(try))
		info.Flags = info.Flags.With(streaminfo.UpstreamRequestTimeout)
		info.Details = tryDetail(try)
		rq.limitOfTry(try)
		return try
	}
	reason := transport.ReasonOf(err)
	if reason == 0 {
		reason = transport.ConnectionTermination
	}
	if reason == transport.RemoteReset || reason == transport.RemoteRefused {
		rq.c.Count(upstream.EventRxReset)
	}
	rq.c.Failed(rq.host, upstream.FailureReset)
	info.Flags = info.Flags.With(reasonFlag(reason))
	info.Details = "upstream_reset_after_response_started{" + underscores(reasonText(reason, err)) + "}"
	return err
}
