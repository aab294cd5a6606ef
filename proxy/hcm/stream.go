package hcm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/internal/timer"
	"github.com/fairlead-mesh/fairlead/internal/tracing"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/routing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// stream is one request: the filters' view of it and what the connection
// manager keeps beside. Streams are pooled by their Manager.
type stream struct {
	s  filters.Stream
	m  *Manager
	cn *conn
	ss transport.ServerStream
	// gen is what the stream began with, and table its route table: no stream sees two
	// versions. gen is nil before the stream runs.
	gen   *generation
	table *routing.Table

	in requestBody
	// trace is the span if traced, nil before tracing was first asked for;
	// decorated the operation that the peer is told, "" for none.
	trace     *tracing.Trace
	traced    bool
	decorated string
	// logged is what access logs get.
	logged format.Context

	idle              timer.Lazy
	request, duration timer.Timer
	idleTimeout       time.Duration

	// Method values made once, so that arming and registering don't allocate.
	onReset                                     func(error)
	onIdle, onRequestTimeout, onDurationReached func()
	reselect                                    func(*filters.Stream)
	informational                               func(*message.Header) error
	headersSent                                 bool
	// responding: the response is respond's to release.
	responding bool
	// tunnel is what the stream has become, nil if none.
	tunnel *tunnel
}

// Causes that the manager interrupts a stream with.
var (
	errStreamIdle     = errors.New("hcm: stream idle timeout")
	errRequestTimeout = errors.New("hcm: request timeout")
	errMaxDuration    = errors.New("hcm: max stream duration reached")
)

func newStream(m *Manager) *stream {
	st := &stream{m: m}
	st.onReset = st.interrupt
	st.onIdle = func() { st.interrupt(errStreamIdle) }
	st.onRequestTimeout = func() { st.interrupt(errRequestTimeout) }
	st.onDurationReached = func() { st.interrupt(errMaxDuration) }
	st.reselect = func(*filters.Stream) { st.selectRoute() }
	st.informational = st.writeInformational
	st.s.Reset()
	return st
}

// ServeStream implements transport.Handler.
func (cn *conn) ServeStream(ss transport.ServerStream) {
	m := cn.m
	if cn.drainLate {
		cn.server.Drain()
	}
	st, _ := m.pool.Get().(*stream)
	st.begin(cn, ss)
	defer st.handlerDone()
	defer func() {
		if p := recover(); p != nil {
			st.panicked(p)
		}
	}()
	st.run()
}

// begin fills the stream from the codec.
func (st *stream) begin(cn *conn, ss transport.ServerStream) {
	m := cn.m
	st.cn, st.ss = cn, ss
	s := &st.s
	s.Renew()
	ss.ReadHeaders(&s.Request)
	st.describe(cn, ss.Version(), rand.Uint64())
	info := &s.Info
	s.Reselect = st.reselect
	if m.spec.Server.Proxy100Continue && info.Protocol != message.HTTP10 { // else origins' 1xx are dropped, as in Envoy
		s.Informational = st.informational
	}
	m.st.rqTotal.Inc()
	m.st.rqActive.Add(1)
	if info.Protocol == message.HTTP2 {
		m.st.rqHTTP2.Inc()
	} else {
		m.st.rqHTTP1.Inc()
	}
	st.in.begin(st, ss.Body())
	s.Body = &st.in
	if st.in.b == message.NoBody {
		s.Body = message.NoBody
		info.RequestComplete = info.Start
	} else {
		_ = s.Guard(&st.in) // a fresh stream; filters that wrap the body need not pass interruptions on
	}
	ss.OnReset(st.onReset)
}

// describe begins the record of the stream whose head has been read.
func (st *stream) describe(cn *conn, v message.Version, random uint64) {
	s := &st.s
	info := &s.Info
	info.Conn = cn.info
	info.FilterState.Reset(&info.Conn.FilterState)
	info.Start = now()
	info.Protocol = v
	info.IsGRPC = isGRPC(s.Request.Get("content-type"))
	s.Random = random
}

func isGRPC(ct string) bool {
	return strings.HasPrefix(ct, "application/grpc") && (len(ct) == 16 || ct[16] == '+' || ct[16] == ';')
}

// run takes the request to its response and writes it.
func (st *stream) run() {
	st.expectation()
	st.armTimers()
	if st.gen = st.m.cfg.Routes.enter(); st.gen == nil {
		st.failed(filters.ErrClosed)
		return
	}
	st.table = st.gen.table
	if r := st.overloaded(); r != nil {
		st.respond(r)
		return
	}
	if r := st.admit(); r != nil {
		if st.s.Info.Protocol != message.HTTP2 && r.Status() == 400 {
			st.ss.CloseAfter() // as Envoy
		}
		st.respond(r)
		return
	}
	st.selectRoute()
	st.beginTrace()
	st.applyRouteTimeouts()
	if r := st.checkUpgrade(); r != nil {
		st.respond(r)
		return
	}
	r, err := filters.Start(&st.s)
	if err != nil {
		st.failed(err)
		return
	}
	st.respond(r)
}

// overloaded answers the request if memory is short; a tunnel is a connection.
func (st *stream) overloaded() *filters.Response {
	o := st.m.cfg.Overload
	if !o.RefusesRequests() && (!o.RefusesConnections() || st.s.Request.Get(message.Method) != "CONNECT") {
		return nil
	}
	st.m.st.overload.Inc()
	return st.s.LocalReply(503, "envoy overloaded", "overload", streaminfo.OverloadManager)
}

// expectation answers "expect: 100-continue" of HTTP/2 at once, as Envoy does;
// the codec of HTTP/1 does so itself.
func (st *stream) expectation() {
	s := &st.s
	if s.Info.Protocol != message.HTTP2 || st.m.spec.Server.Proxy100Continue || !strings.EqualFold(s.Request.Get("expect"), "100-continue") {
		return
	}
	s.Request.Del("expect")
	var h message.Header
	h.Add(message.Status, "100")
	_ = st.writeInformational(&h) // the response meets the same error
}

// selectRoute matches the route (again) and installs its chain.
func (st *stream) selectRoute() {
	s := &st.s
	if st.table != nil {
		if r := st.table.Match(s); r != nil {
			s.SelectRoute(r)
			st.virtualHost(r.VirtualHost)
			return
		}
		st.virtualHost(st.table.VirtualHost(s))
	}
	s.SelectRoute(nil)
	s.Info.RouteName, s.Info.RouteMetadata = "", nil
	s.SetChain(st.m.chain(st.gen))
}

// virtualHost records where the request was looked up; vh may be nil.
func (st *stream) virtualHost(vh *xdsresource.VirtualHost) {
	i := &st.s.Info
	if vh == nil {
		i.VirtualHost, i.VirtualHostMetadata = "", nil
		return
	}
	i.VirtualHost, i.VirtualHostMetadata = vh.Name, &vh.Metadata
}

// failed turns an error of the chain into a local reply, or a reset if nothing
// can be said any more.
func (st *stream) failed(err error) {
	s := &st.s
	cause := s.Cause()
	if cause == nil {
		cause = err
	}
	switch {
	case errors.Is(cause, errStreamIdle):
		st.m.st.rqIdle.Inc()
		status := 408
		if st.in.complete.Load() {
			status = 504
		}
		s.Info.Limit = "stream idle timeout " + st.idleTimeout.String()
		st.respondInterrupted(s.LocalReply(status, "stream timeout", "stream_idle_timeout", streaminfo.StreamIdleTimeout))
	case errors.Is(cause, errRequestTimeout):
		st.m.st.rqTimeout.Inc()
		s.Info.Limit = "request timeout " + st.m.spec.RequestTimeout.String()
		st.respondInterrupted(s.LocalReply(408, "request timeout", "request_overall_timeout", 0))
	case errors.Is(cause, errMaxDuration):
		st.m.st.rqMaxDuration.Inc()
		status := 408
		if st.in.complete.Load() {
			status = 504
		}
		s.Info.Limit = "max stream duration " + st.m.spec.MaxStreamDuration.String()
		st.respondInterrupted(s.LocalReply(status, "downstream duration timeout", "max_duration_timeout", streaminfo.DurationTimeout))
	case errors.Is(cause, filters.ErrClosed):
		s.Info.Cut = true
		st.ss.Reset(transport.LocalReset)
	case st.clientGone(cause):
		if r := st.malformed(); r != nil {
			st.respondInterrupted(r)
			return
		}
		st.downstreamReset(cause)
	default:
		st.m.cfg.Logger.Warn("stream failed", "listener", s.Info.Conn.ListenerName, "chain", s.Info.Conn.FilterChainName, "route", s.Info.RouteName, "error", err)
		st.respond(s.LocalReply(500, "", "filter_chain_error", 0))
	}
}

// clientGone tells whether cause came from the downstream connection or codec.
func (st *stream) clientGone(cause error) bool {
	return st.s.Cause() != nil || transport.ReasonOf(cause) != 0 && st.in.err != nil
}

// malformed answers a body that breaks HTTP/1, nil if there is none or it is too
// late for an answer. The connection ends.
func (st *stream) malformed() *filters.Response {
	var re *transport.ResetError
	if st.headersSent || st.s.Cause() != nil || st.s.Info.Protocol == message.HTTP2 ||
		!errors.As(st.in.err, &re) || re.Reason != transport.ProtocolError {
		return nil
	}
	status := 400
	if re.Detail == "http1.headers_too_large" || re.Detail == "http1.too_many_headers" {
		status = 431 // of a trailer section
	}
	return st.s.LocalReply(status, http.StatusText(status), re.Detail, streaminfo.DownstreamProtocolError)
}

// downstreamReset records a client that went away.
func (st *stream) downstreamReset(cause error) {
	info := &st.s.Info
	info.Cut = true
	st.m.st.rqRxReset.Inc()
	switch {
	case transport.ReasonOf(cause) == transport.ProtocolError:
		info.Flags = info.Flags.With(streaminfo.DownstreamProtocolError)
		setDetails(info, "codec_error")
	case info.Protocol == message.HTTP2 && transport.ReasonOf(cause) != transport.ConnectionTermination:
		info.Flags = info.Flags.With(streaminfo.DownstreamRemoteReset)
		setDetails(info, "http2.remote_reset")
	default:
		info.Flags = info.Flags.With(streaminfo.DownstreamConnectionTermination)
		setDetails(info, "downstream_remote_disconnect")
		if transport.ReasonOf(cause) == transport.ConnectionTermination && !st.cn.lost.Swap(true) {
			st.m.st.cxDestroyRemote.Inc()
		}
	}
	st.ss.Reset(transport.LocalReset)
}

func setDetails(info *streaminfo.Info, d string) {
	if info.Details == "" || info.Details == "via_upstream" {
		info.Details = d
	}
}

// respondInterrupted answers a stream that a timer stopped. The cause is cleared
// from the writer's point of view: only the client side matters now.
func (st *stream) respondInterrupted(r *filters.Response) {
	if st.headersSent {
		st.ss.Reset(transport.LocalReset)
		return
	}
	if !st.in.complete.Load() && st.s.Info.Protocol != message.HTTP2 {
		st.ss.CloseAfter()
	}
	st.respond(r)
}

// panicked is the one recover of a stream: the request gets a 500, the process
// goes on, the stack is logged.
func (st *stream) panicked(p any) {
	st.reportPanic("panic while serving a stream", p)
	st.dropResponse()
	if st.headersSent {
		st.ss.Reset(transport.LocalReset)
		return
	}
	defer func() {
		if recover() != nil {
			st.ss.Reset(transport.LocalReset)
		}
	}()
	if st.s.Info.Protocol != message.HTTP2 { // whose other streams go on
		st.ss.CloseAfter()
	}
	st.respond(st.s.LocalReply(500, "", "internal_error_panic", 0))
}

// dropResponse releases what a filter held that panicked behind its call of
// next: the attempt upstream that the response is of.
func (st *stream) dropResponse() {
	if st.responding {
		return
	}
	defer st.contain()
	st.s.DropResponse()
}

// interrupt is Stream.Interrupt for timers and codecs.
func (st *stream) interrupt(cause error) {
	defer func() {
		if p := recover(); p != nil { // the record is the stream's own
			st.m.st.panics.Inc()
			st.m.cfg.Logger.Error("panic while interrupting a stream", "cause", cause, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	st.s.Interrupt(cause)
}

func (st *stream) reportPanic(msg string, p any) {
	st.m.st.panics.Inc()
	st.m.cfg.Logger.Error(msg, "panic", fmt.Sprint(p), "route", st.s.Info.RouteName,
		"chain", st.s.Info.Conn.FilterChainName, "stack", string(debug.Stack()))
}

// contain is deferred around what runs for no stream.
func (m *Manager) contain() {
	if p := recover(); p != nil {
		m.st.panics.Inc()
		m.cfg.Logger.Error("panic while recording a broken connection", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	}
}

func (st *stream) writeInformational(h *message.Header) error {
	st.m.st.rqClass[1].Inc()
	return st.ss.WriteInformational(h)
}

// handlerDone ends the stream, unless it has become a tunnel that goes on.
func (st *stream) handlerDone() {
	if t := st.tunnel; t != nil {
		t.handlerDone()
		return
	}
	st.finish()
}

// finish closes the books: timers, StreamEnders, access log, statistics.
func (st *stream) finish() {
	m, s := st.m, &st.s
	st.idle.Stop()
	st.request.Stop()
	st.duration.Stop()
	st.ss.OnReset(nil) // it would meet the next stream
	st.in.Close()
	info := &s.Info
	info.End = info.Now()
	info.WireBytesReceived, info.WireBytesSent = st.ss.BytesIn(), st.ss.BytesOut()
	if st.tunnel != nil && info.Protocol != message.HTTP2 { // whose codec no longer counts
		info.WireBytesSent += info.BytesSent
		m.server.Sent.Add(info.BytesSent)
		early := uint64(0)
		if e, ok := st.ss.(interface{ EarlyBytes() uint64 }); ok {
			early = e.EarlyBytes()
		}
		m.server.Received.Add(max(info.BytesReceived, early) - early)
	}
	st.nameCluster()
	if len(info.Hidden) > 0 {
		st.hide()
	}
	if local := s.Response != nil && s.Response.Local; local || info.Decision != nil || st.tunnel == nil && info.Details != "via_upstream" {
		st.refused(local)
	}
	st.endFilters()
	if len(m.cfg.AccessLogs) > 0 {
		st.log()
	}
	st.endTrace()
	m.st.rqActive.Add(-1)
	m.st.rqTime.ObserveMillis(info.End.Sub(info.Start))
	m.st.code(info.ResponseCode)
	if n, ok := st.ss.(transport.EndNoter); ok {
		n.EndedAt(info.End)
	}
	st.release()
}

// release gives the stream back to the pool. A stream whose timers might still
// be running their callback is left to the collector.
func (st *stream) release() {
	st.cn, st.ss, st.table = nil, nil, nil
	st.tunnel, st.headersSent, st.responding = nil, false, false
	st.traced, st.decorated = false, ""
	st.idleTimeout = 0
	st.s.Reset() // before st.in: a late interruption must not meet it
	st.in.begin(nil, nil)
	if g := st.gen; g != nil {
		st.gen = nil
		g.users.Leave() // last: what it used may be closed now
	}
	if !st.idle.Fired() && !st.request.Fired() && !st.duration.Fired() {
		st.m.pool.Put(st)
	}
}

func (st *stream) endFilters() {
	chain := st.s.Chain()
	for _, c := range slices.Backward(chain) {
		if e, ok := c.(filters.StreamEnder); ok {
			st.endFilter(e)
		}
	}
}

// endFilter contains a panic, so that the filters after it and the books are
// closed all the same.
func (st *stream) endFilter(e filters.StreamEnder) {
	defer st.contain()
	e.OnStreamEnd(&st.s, st.s.Response)
}

// contain is deferred around what runs after the response.
func (st *stream) contain() {
	if p := recover(); p != nil {
		st.reportPanic("panic while ending a stream", p)
	}
}
