package router

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/timer"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
	"github.com/fairlead-mesh/fairlead/routing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// request is one request on its way upstream, through all its attempts. It is
// pooled. The goroutine of the stream owns it; only what mu guards, and pump,
// is touched by others.
type request struct {
	f      *Filter
	s      *filters.Stream
	route  *routing.Route
	action *xdsresource.RouteAction
	c      *upstream.Cluster
	host   *upstream.Host
	opts   upstream.ConnectOptions
	pick   upstream.PickContext
	t      timeouts
	retry  retryState
	high   bool
	kind   tunnelKind
	cookie string

	attempts  int
	tried     []*upstream.Host
	freeTried bool
	status    int  // of the attempt's response, 0 before
	spanned   bool // the attempt has a span that is open
	sent      bool
	numBuf    [24]byte
	attempted *attemptLog // of the attempt in flight, nil without upstream logs
	mirrors   []pendingMirror
	body      source
	pump      pump
	resp      *filters.Response
	held      bool         // the response's body or tunnel goes on using this
	whole     bool         // the response's body had arrived with its head
	received  message.Body // of the response, nil without one
	ended     bool         // the response is complete
	grpcLater bool         // the trailers will tell the gRPC status

	durationCause error
	timerArmed    bool // guarded by mu

	// Method values made once.
	onRoute, onTry, onIdle, onDuration func()
	avoid                              func(*upstream.Host) bool
	routeTimer                         timer.Lazy
	tryTimer, idleTimer, durationTimer timer.Timer

	mu          sync.Mutex
	cur         *upstream.Stream
	cancel      context.CancelCauseFunc
	cause       error // ends the request
	tryCause    error // ends the attempt
	tryDeadline time.Time
	idleEnd     time.Time // when the attempt may have been idle for too long
	completed   time.Time // when the last byte of the request had been received
}

func newRequest(f *Filter) *request {
	rq := &request{f: f}
	rq.onRoute = func() { rq.Interrupt(errRouteTimeout) }
	rq.onTry = func() { rq.interruptTry(errPerTryTimeout) }
	rq.onIdle = func() { rq.interruptTry(errPerTryIdle) }
	rq.onDuration = func() { rq.Interrupt(rq.durationCause) }
	rq.avoid = rq.wasTried
	rq.pump.rq = rq
	rq.pump.wrote.L = &rq.pump.mu
	return rq
}

// begin resolves everything that does not depend on the attempt. It returns the
// answer to a request that must not go on.
func (rq *request) begin(s *filters.Stream, r *routing.Route, c *upstream.Cluster) *filters.Response {
	rq.s, rq.route, rq.action, rq.c = s, r, r.Config.Action, c
	rq.high = rq.action.HighPriority
	policy := r.Retry()
	envoy := hasEnvoyHeader(&s.Request)
	rq.t = timeoutsOf(s, rq.action, policy, envoy, rq.f.cfg.RespectExpectedRqTimeout)
	rq.retry.init(policy, &s.Request, envoy)
	if rq.kind = kindOf(s, rq.action); rq.kind != noTunnel {
		own := ""
		if s.OwnRequestID && s.Request.Get("x-request-id") == s.Info.RequestID { // else a filter has changed it
			own = "x-request-id"
		}
		s.Admitted = s.Request.PackWithout(own)
	}
	rq.pick = upstream.PickContext{Conn: s.Info.Conn, Info: &s.Info, Stream: s, High: rq.high}
	if len(rq.action.HashPolicy) > 0 {
		rq.pick.Hash, rq.pick.HasHash, rq.cookie = r.Hash(s)
	}
	if policy != nil && (policy.PreviousHosts || policy.OmitCanary) {
		rq.pick.Avoid, rq.pick.Attempts = rq.avoid, max(1, policy.HostSelectionAttempts)
	}
	if rq.f.cfg.RespectExpectedRqTimeout {
		s.Request.Del(hdrExpected)
	}
	if !r.FinalizeRequest(s, rq.f.cfg.SuppressEnvoyHeaders) {
		return strayed(s)
	}
	rq.opts = upstream.ConnectOptions{
		Conn: s.Info.Conn, Info: &s.Info, FilterState: &s.Info.FilterState, Version: s.Info.Protocol, High: rq.high,
		Authority: s.Request.Get(message.Authority),
	}
	rq.names()
	rq.body.begin(s, rq.kind)
	rq.planMirrors()
	rq.durationCause = errMaxDuration
	if d := c.Spec().HTTP.MaxStreamDuration; d > 0 && (rq.t.duration == 0 || d < rq.t.duration) {
		rq.t.duration, rq.durationCause = d, errUpstreamMaxAge
	}
	if rq.t.duration > 0 {
		rq.arm(&rq.durationTimer, rq.t.duration, rq.onDuration)
	}
	if rq.body.kind != streaming && rq.kind == noTunnel {
		rq.requestComplete()
		if rq.repeatable() {
			rq.opts.RepeatableAt = rq.completed
		}
	}
	return nil
}

// strayed answers a request whose rewritten path has dot segments.
func strayed(s *filters.Stream) *filters.Response {
	return s.LocalReply(400, "", "rewritten_path_has_dot_segments", 0)
}

// names fills what TLS to upstream depends on from header and filter state.
func (rq *request) names() {
	h := &rq.c.Spec().HTTP
	if name := h.OverrideAutoSNIHeader; name != "" {
		if v := rq.s.Request.Get(name); v != "" {
			rq.opts.Authority = v
		}
	}
	rq.opts.Demand(&rq.s.Info.FilterState)
}

// requestComplete notes that the last byte of the request is here: the route's
// timeout starts. The pump may call it, too.
func (rq *request) requestComplete() {
	info := &rq.s.Info
	now := info.RequestComplete
	if now.IsZero() || len(rq.s.Chain()) > 1 { // filters before this one may have taken their time
		now = info.Now()
	}
	if rq.pump.started { // it may be its goroutine that calls
		rq.mu.Lock()
		defer rq.mu.Unlock()
	}
	rq.completed = now
	if rq.t.route > 0 {
		rq.timerArmed = true
		rq.routeTimer.ArmAt(now, rq.t.route, rq.onRoute)
	}
}

// completedAt is when the last byte of the request had been received, zero
// before that.
func (rq *request) completedAt() time.Time {
	if rq.pump.started {
		rq.mu.Lock()
		defer rq.mu.Unlock()
	}
	return rq.completed
}

func (rq *request) arm(t *timer.Timer, d time.Duration, f func()) {
	rq.mu.Lock()
	rq.timerArmed = true
	rq.mu.Unlock()
	t.Arm(d, f)
}

// Interrupt implements filters.Interrupter: cause ends the request.
func (rq *request) Interrupt(cause error) {
	rq.mu.Lock()
	defer rq.mu.Unlock()
	if rq.cause != nil {
		return
	}
	rq.cause = cause
	rq.wake(cause)
}

// wake makes what blocks return. The caller holds mu.
func (rq *request) wake(cause error) {
	if rq.cur != nil {
		rq.cur.Interrupt(cause)
	}
	if rq.cancel != nil {
		rq.cancel(cause)
	}
}

// interruptTry ends the attempt in flight, unless the timer was a former
// attempt's.
func (rq *request) interruptTry(cause error) {
	rq.mu.Lock()
	defer rq.mu.Unlock()
	deadline := rq.tryDeadline
	if errors.Is(cause, errPerTryIdle) {
		deadline = rq.idleEnd
	}
	if rq.cur == nil || rq.tryCause != nil || time.Now().Before(deadline) {
		return
	}
	rq.tryCause = cause
	rq.wake(cause)
}

func (rq *request) causes() (request, attempt error) {
	rq.mu.Lock()
	defer rq.mu.Unlock()
	return rq.cause, rq.tryCause
}

// run makes attempts until one gives an answer.
func (rq *request) run() (*filters.Response, error) {
	if err := rq.s.Guard(rq); err != nil {
		rq.release()
		return nil, err
	}
	for {
		resp, again, err := rq.attempt()
		if again {
			continue
		}
		switch {
		case rq.held:
		case err == nil && rq.pump.busy():
			// The answer goes out first: to stop a pump that waits for the
			// client, a codec may have to give the connection up.
			rq.held = true
			resp.Body = &lateRelease{resp.Body, rq}
		default:
			rq.release()
		}
		return resp, err
	}
}

// attempt makes one attempt. again asks for a further one.
func (rq *request) attempt() (resp *filters.Response, again bool, err error) {
	rq.attempts++
	rq.s.Info.AttemptCount = rq.attempts // Envoy counts before it looks for a host
	host, err := rq.c.Pick(&rq.pick)
	if err != nil {
		return rq.noHost(err)
	}
	rq.describe(host)
	rq.beginAttemptLog()
	if tr := rq.s.Trace; tr != nil {
		rq.status = 0
		tr.StartAttempt(rq.s, rq.attempts)
		rq.spanned = true
	}
	if rq.kind == terminate {
		return rq.terminateConnect()
	}
	rq.prepare(host)
	st, err := rq.open(host)
	if err != nil {
		return rq.failed(err)
	}
	if err := rq.send(st); err != nil && !earlyAnswer(err) {
		return rq.failed(err)
	}
	status, end, err := rq.receive(st)
	if err != nil {
		return rq.failed(err)
	}
	return rq.answered(st, status, end)
}

// earlyAnswer tells whether upstream may have answered although the request
// could not be written: it then closed its reading side.
func earlyAnswer(err error) bool {
	r := transport.ReasonOf(err)
	return r == transport.ConnectionTermination || r == transport.RemoteReset
}

// describe records the host of the attempt.
func (rq *request) describe(host *upstream.Host) {
	rq.host = host
	info := &rq.s.Info
	u := &info.Upstream
	u.Host, u.Address, u.Locality, u.HostMetadata = host.String(), host.Address(), host.Locality, &host.Endpoint.Metadata
	u.Local, u.TLS, u.Protocol, u.TransportFailureReason, u.Relayed, u.Unmetered = netip.AddrPort{}, nil, 0, "", false, false
	u.State, u.HostName = nil, host.Endpoint.DisplayHost
	if rq.pick.Avoid != nil {
		rq.tried = append(rq.tried, host)
	}
	if p := rq.retry.policy; p != nil && p.PreviousPriorities > 0 && rq.attempts%p.PreviousPriorities == 0 && host.Priority < 64 {
		rq.pick.SkipPriorities |= 1 << host.Priority
	}
}

// wasTried is the retry host predicate.
func (rq *request) wasTried(h *upstream.Host) bool {
	p := rq.retry.policy
	if p.OmitCanary {
		if v, ok := h.Endpoint.Metadata.Lookup("envoy.lb", "canary"); ok && v == true && rq.attempts > 1 {
			return true
		}
	}
	if !p.PreviousHosts {
		return false
	}
	for _, t := range rq.tried {
		if t.Same(h) {
			return true
		}
	}
	return false
}

// prepare sets the request headers that depend on host and attempt.
func (rq *request) prepare(host *upstream.Host) {
	h := &rq.s.Request
	if rq.route.AutoHostRewrite() && host.Endpoint.DisplayHost != "" && h.Get(message.Authority) != host.Endpoint.DisplayHost {
		rq.route.RewriteHost(rq.s, host.Endpoint.DisplayHost, rq.f.cfg.SuppressEnvoyHeaders || rq.attempts > 1)
	}
	if rq.route.VirtualHost.IncludeAttemptCount {
		h.Set(hdrAttempt, rq.number(h, int64(rq.attempts)))
	}
	if rq.route.VirtualHost.IncludeIsTimeoutRetryHeader && rq.attempts > 1 {
		_, try := rq.causes()
		h.Set(hdrIsTimeoutTry, strconv.FormatBool(try != nil))
	}
	if rq.f.cfg.SuppressEnvoyHeaders {
		return
	}
	var elapsed time.Duration
	if !rq.completed.IsZero() && rq.attempts > 1 {
		elapsed = time.Since(rq.completed)
	}
	if d := rq.t.expected(elapsed); d > 0 {
		h.Set(hdrExpected, rq.number(h, d.Milliseconds()))
	}
}

// number renders n into h's memory.
func (rq *request) number(h *message.Header, n int64) string {
	return h.Intern(strconv.AppendInt(rq.numBuf[:0], n, 10))
}

// open gets a stream on a connection to host.
func (rq *request) open(host *upstream.Host) (*upstream.Stream, error) {
	rq.sent = false
	st, err := rq.c.TryStream(host, &rq.opts)
	if st == nil && err == nil {
		err = rq.blocking(func(ctx context.Context) (err error) {
			st, err = rq.c.NewStream(ctx, host, &rq.opts)
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	u := &rq.s.Info.Upstream
	u.Local, u.TLS, u.Protocol, u.State = st.LocalAddr(), st.TLS(), st.Version(), st.State()
	if rq.attempted != nil {
		rq.attempted.stream = st
	}
	rq.mu.Lock()
	rq.cur, rq.tryCause = st, nil
	if rq.cause != nil {
		st.Interrupt(rq.cause)
	}
	completed := !rq.completed.IsZero()
	rq.mu.Unlock()
	if completed {
		rq.armTry()
	}
	return st, nil
}

// armTry starts the timers of the attempt in flight.
func (rq *request) armTry() {
	if rq.t.perTry > 0 {
		rq.mu.Lock()
		rq.tryDeadline = time.Now().Add(rq.t.perTry)
		rq.mu.Unlock()
		rq.arm(&rq.tryTimer, rq.t.perTry, rq.onTry)
	}
	rq.touchIdle()
}

// touchIdle notes progress for per_try_idle_timeout.
func (rq *request) touchIdle() {
	if rq.t.perTryIdle > 0 {
		rq.mu.Lock()
		rq.idleEnd = time.Now().Add(rq.t.perTryIdle)
		rq.mu.Unlock()
		rq.arm(&rq.idleTimer, rq.t.perTryIdle, rq.onIdle)
	}
}

// drop ends the attempt in flight; complete says that both directions ended in
// order, so that the connection may be used again.
func (rq *request) drop(complete bool) {
	st := rq.cur // which only this goroutine sets
	if st == nil {
		return
	}
	rq.endSpan()
	if !complete {
		st.Interrupt(errDone) // frees the pump if it is writing
	}
	rq.pump.detach()
	rq.mu.Lock()
	rq.cur = nil
	rq.mu.Unlock()
	rq.tryTimer.Stop()
	rq.idleTimer.Stop()
	rq.logAttempt(0)
	if !complete {
		st.Reset()
	}
	at := rq.s.Info.LastUpstreamRx
	if at.IsZero() {
		at = time.Now()
	}
	in, out := st.ReleaseAt(at)
	u := &rq.s.Info.Upstream
	u.WireBytesReceived += in
	u.WireBytesSent += out
}

// endSpan ends the span of the attempt in flight, if there is one.
func (rq *request) endSpan() {
	if tr := rq.s.Trace; tr != nil {
		rq.finishSpan(tr, filters.AttemptEnd{})
	}
}

// finishSpan runs before the attempt's stream is given back: it reads the
// response. Later calls do nothing.
func (rq *request) finishSpan(tr filters.Trace, e filters.AttemptEnd) {
	if !rq.spanned {
		return
	}
	rq.spanned = false
	if e.Status = rq.status; e.Status != 0 {
		e.Header = &rq.resp.Header
		if rq.received != nil && rq.ended {
			e.Trailers = rq.received.Trailers()
		}
	}
	tr.EndAttempt(rq.s, &e)
}

// release ends the request: nothing of it is used afterwards.
func (rq *request) release() {
	rq.pump.stop()
	rq.endSpan()
	rq.s.Unguard(rq)
	rq.retry.settle(rq.c, rq.high, false)
	reusable := true
	if rq.timerArmed {
		rq.stopTimers()
		// A callback may be running; it must not meet another request.
		rq.mu.Lock()
		reusable = rq.cause == nil && rq.tryCause == nil && !rq.timersFired()
		rq.mu.Unlock()
	}
	rq.mirrors, rq.attempted = nil, nil
	if !reusable {
		return
	}
	clear(rq.tried)
	rq.s, rq.route, rq.action, rq.c, rq.host, rq.resp = nil, nil, nil, nil, nil, nil
	rq.opts, rq.pick, rq.t, rq.retry = upstream.ConnectOptions{}, upstream.PickContext{}, timeouts{}, retryState{}
	rq.attempts, rq.tried, rq.freeTried, rq.sent, rq.status, rq.spanned, rq.cookie, rq.timerArmed = 0, rq.tried[:0], false, false, 0, false, "", false
	rq.received, rq.ended, rq.grpcLater, rq.held, rq.whole = nil, false, false, false, false
	rq.body = source{}
	rq.pump.reset()
	rq.cause, rq.tryCause, rq.cancel, rq.completed, rq.tryDeadline, rq.idleEnd = nil, nil, nil, time.Time{}, time.Time{}, time.Time{}
	rq.f.pool.Put(rq)
}
