package router

import (
	"fmt"
	"runtime/debug"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
)

// attemptLog is what upstream_log tells about one attempt.
type attemptLog struct {
	start time.Time
	// response is the head as upstream sent it.
	response message.Header
	// stream is the attempt's, nil if it got none.
	stream  *upstream.Stream
	written bool
}

// beginAttemptLog begins the record of an attempt, if somebody reads it.
func (rq *request) beginAttemptLog() {
	if len(rq.f.d.UpstreamLogs) == 0 {
		return
	}
	rq.attempted = &attemptLog{start: rq.s.Info.Now()}
	rq.status = 0
}

// logAttempt writes upstream_log when an attempt is over; later calls do
// nothing. As in Envoy, an attempt has a record of its own, seen from this
// side: the bytes received are upstream's, the protocol is that to upstream, and
// of filters and virtual host there is nothing. A panic costs the lines, not the
// connection.
func (rq *request) logAttempt(flag streaminfo.ResponseFlag) {
	a := rq.attempted
	if a == nil || a.written {
		return
	}
	a.written = true
	defer func() {
		if p := recover(); p != nil {
			rq.f.log.Error("panic in an upstream access log", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	of := &rq.s.Info
	info := streaminfo.Info{
		Conn: of.Conn, Start: a.start, End: of.Now(), Protocol: of.Upstream.Protocol, ResponseCode: rq.status, Flags: flag,
		RouteName: of.RouteName, VirtualHost: of.VirtualHost, RouteMetadata: of.RouteMetadata, Upstream: of.Upstream, IsGRPC: of.IsGRPC,
		TraceID: of.TraceID, SpanID: of.SpanID, Cut: true,
	}
	if u := &info.Upstream; a.stream != nil {
		u.WireBytesReceived, u.WireBytesSent = a.stream.BytesIn(), a.stream.BytesOut()
	} else {
		u.WireBytesReceived, u.WireBytesSent = 0, 0
	}
	ctx := format.Context{Info: &info, Request: &rq.s.Request, LogType: format.LogUpstreamEnd}
	if rq.status != 0 {
		info.FirstUpstreamRx, info.LastUpstreamRx = of.FirstUpstreamRx, of.LastUpstreamRx
		info.BytesReceived, info.BytesSent = of.BytesSent, of.BytesReceived
		ctx.Response = &a.response
		if rq.received != nil && rq.ended {
			ctx.Trailers = rq.received.Trailers()
		}
	}
	for _, l := range rq.f.d.UpstreamLogs {
		l.Log(&ctx)
	}
}
