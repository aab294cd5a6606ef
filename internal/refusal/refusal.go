// Package refusal tells operators what the proxy refused and what it failed at:
// one structured log event for every request that a filter denied or that the
// proxy answered with an error of its own, and for every connection that it
// turned away, with everything that is known about both ends, the policy and
// the limit; and counters, which count also what the log leaves out.
//
// Filters leave a streaminfo.Decision; who ends the stream calls the Recorder
// once. A request that passes costs a comparison.
package refusal

import (
	"context"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Options are what a Recorder is made of; every field may be zero.
type Options struct {
	Logger *slog.Logger
	// Stats is the root scope.
	Stats     *stats.Scope
	Workloads Workloads
	Clusters  Clusters
	// PerSecond bounds the events that are logged, 100 by default, in bursts
	// of twice as many. What goes beyond is counted only.
	PerSecond int
	// Now is time.Now if nil.
	Now func() time.Time
}

// Recorder writes events. It is safe for concurrent use; a nil Recorder
// discards.
type Recorder struct {
	log              *slog.Logger
	at               Directory
	denials, replies *stats.CounterFamily
	refused, cut     *stats.CounterFamily
	revoked          *stats.CounterFamily
	// replied and refusals hold the counters of replies and denials, which newReply and
	// newDenial find: in a flood they are needed as often as requests come.
	replied            stats.Cache[reply, stats.Counter]
	refusals           stats.Cache[denial, stats.Counter]
	newReply           func(reply) *stats.Counter
	newDenial          func(denial) *stats.Counter
	suppressed         *stats.Counter
	events, reasonings bucket
	now                func() time.Time
}

// reply and denial are the labels of a counter.
type (
	reply struct {
		reason string
		code   int
	}
	denial struct{ filter, policy, reason string }
)

// New returns a Recorder.
func New(o Options) *Recorder {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.PerSecond == 0 {
		o.PerSecond = 100
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	r := &Recorder{
		log: o.Logger, at: Directory{o.Workloads, o.Clusters}, now: o.Now,
		denials:    o.Stats.CounterFamily("fairlead_policy_denials_total", "Requests and connections that a filter denied.", "filter", "policy", "reason"),
		replies:    o.Stats.CounterFamily("fairlead_local_replies_total", "Errors that the proxy answered by itself, denials included.", "reason", "response_code"),
		refused:    o.Stats.CounterFamily("fairlead_connections_refused_total", "Connections that were closed before they were served.", "reason"),
		cut:        o.Stats.CounterFamily("fairlead_responses_cut_off_total", "Responses of upstream that had begun and were not ended.", "reason"),
		revoked:    o.Stats.CounterFamily("fairlead_connections_revoked_total", "Connections and tunnels that were ended because a policy or a list of revoked certificates that came later refuses them.", "reason"),
		suppressed: o.Stats.Counter("fairlead_refusal_events_suppressed_total"),
		events:     bucket{rate: float64(o.PerSecond), max: 2 * float64(o.PerSecond)},
		reasonings: bucket{rate: 10, max: 20},
	}
	r.replied.Own = func(k reply) reply { return reply{strings.Clone(k.reason), k.code} }
	r.refusals.Own = func(k denial) denial {
		return denial{strings.Clone(k.filter), strings.Clone(k.policy), strings.Clone(k.reason)}
	}
	r.newReply = func(k reply) *stats.Counter { return r.replies.With(k.reason, strconv.Itoa(k.code)) }
	r.newDenial = func(k denial) *stats.Counter { return r.denials.With(k.filter, k.policy, k.reason) }
	return r
}

// Wanted reports whether HTTP has something to record: whether a filter denied
// the stream, the response is the proxy's own (local) and an error, or one of
// upstream was cut off.
func Wanted(info *streaminfo.Info, local bool) bool {
	if info.Decision != nil {
		return true
	}
	if local {
		return (info.ResponseCode >= 400 || info.IsGRPC) && !configured(info.Details)
	}
	return cut(info.Details)
}

// replyReason is the constant part of a reply's details. Those of an answer that
// a WebAssembly guest gave are the guest's words, which are no label.
func replyReason(info *streaminfo.Info) string {
	if d := info.Decision; d != nil && d.Filter == "wasm" {
		return "wasm_" + d.Reason
	}
	return reason(info.Details)
}

// brokenOff begins the details of responses that upstream did not end.
const brokenOff = "upstream_reset_after_response_started"

// cut tells responses that had begun and were not ended: by a timer, or by
// upstream.
func cut(details string) bool {
	switch details {
	case "", "via_upstream":
		return false
	case "stream_idle_timeout", "max_duration_timeout", "response_timeout", "upstream_per_try_timeout", "upstream_per_try_idle_timeout",
		"upstream_max_stream_duration_reached":
		return true
	}
	return strings.HasPrefix(details, brokenOff)
}

// configured tells replies that an operator asked for from errors.
func configured(details string) bool {
	return details == "" || details == "direct_response" || details == "cors_response"
}

// Stream is a finished stream.
type Stream struct {
	Info *streaminfo.Info
	// Request is its head as it was in the end; Response, which may be nil,
	// what was answered, by the proxy itself if Local.
	Request, Response *message.Header
	Local             bool
	// Cluster is that of the route, "" if there is none.
	Cluster string
}

// HTTP records a stream, if it is Wanted.
func (r *Recorder) HTTP(s *Stream) {
	if r == nil || !Wanted(s.Info, s.Local) {
		return
	}
	info, request, response, local := s.Info, s.Request, s.Response, s.Local
	if local {
		r.replied.Get(reply{replyReason(info), info.ResponseCode}, r.newReply).Inc()
	}
	msg, level := "request rejected", slog.LevelInfo
	switch {
	case info.Revoked:
		r.denied(info.Decision)
		r.revoked.With(reason(info.Details)).Inc()
		msg = "tunnel revoked"
	case info.Decision != nil:
		r.denied(info.Decision)
		msg = "request denied"
	case !local:
		r.cut.With(reason(info.Details)).Inc()
		msg = "response cut off"
		if info.Limit != "" {
			level = slog.LevelWarn
		}
	case info.ResponseCode >= 500 || info.IsGRPC:
		msg, level = "request failed", slog.LevelWarn
	}
	if !r.admit(level) {
		return
	}
	a := make([]slog.Attr, 0, 24)
	a = append(a, slog.Int("status", info.ResponseCode))
	if response != nil && info.IsGRPC {
		a = text(a, "grpc_status", response.Get("grpc-status"))
	}
	a = r.common(a, info, s.Cluster)
	a = text(a, "method", request.Get(message.Method))
	a = text(a, "authority", request.Get(message.Authority))
	path, _, _ := strings.Cut(request.Get(message.Path), "?") // queries hold what logs should not
	a = text(a, "path", path)
	a = text(a, "route", info.RouteName)
	a = text(a, "virtual_host", info.VirtualHost)
	a = text(a, "request_id", info.RequestID)
	a = text(a, "trace_id", TraceID(info, request))
	r.log.LogAttrs(context.Background(), level, msg, r.timed(a, info)...)
}

// unserved are the flags of connections that found no way on.
const unserved = streaminfo.NoHealthyUpstream | streaminfo.UpstreamConnectionFailure | streaminfo.UpstreamOverflow |
	streaminfo.NoRouteFound | streaminfo.NoClusterFound | streaminfo.DNSResolutionFailed

// Connection records a connection that was not served, or that found no
// upstream: one with a Decision, a termination detail, a failed handshake, or
// no filter chain; and one that was revoked.
func (r *Recorder) Connection(info *streaminfo.Info) {
	if r == nil {
		return
	}
	ci := info.Conn
	var why string
	counter := r.refused
	switch {
	case info.Revoked:
		why, counter = reason(info.ConnectionTerminationDetails), r.revoked
	case info.Decision != nil, ci.TerminationDetails != "":
		why = reason(ci.TerminationDetails)
	case strings.HasSuffix(ci.TransportFailureReason, "EOF"):
		return // a port that is looked at, by a probe or a scanner
	case ci.TransportFailureReason != "":
		why = "handshake_failed"
	case info.Limit != "" && info.LocalClose != "":
		why = info.LocalClose
	case info.Flags&unserved != 0:
		if why = reason(info.Details); why == "" {
			why = strings.ToLower((info.Flags & unserved).String())
		}
	default:
		return
	}
	counter.With(why).Inc()
	msg, level := "connection closed", slog.LevelInfo
	switch {
	case info.Revoked:
		r.denied(info.Decision)
		msg = "connection revoked"
	case info.Decision != nil:
		r.denied(info.Decision)
		msg = "connection denied"
	case info.Flags&unserved != 0:
		level = slog.LevelWarn
	}
	if !r.admit(level) {
		return
	}
	a := r.common(make([]slog.Attr, 0, 20), info, "")
	details := info.ConnectionTerminationDetails
	if details == "" {
		details = ci.TerminationDetails
	}
	a = text(a, "termination_details", details)
	a = text(a, "handshake_failure", ci.TransportFailureReason)
	a = text(a, "requested_server_name", ci.RequestedServerName)
	r.log.LogAttrs(context.Background(), level, msg, r.timed(a, info)...)
}

func (r *Recorder) denied(d *streaminfo.Decision) {
	policy, _ := SplitPolicy(d.Policy)
	r.refusals.Get(denial{d.Filter, policy, d.Reason}, r.newDenial).Inc()
}

// admit tells whether the log has room for an event.
func (r *Recorder) admit(level slog.Level) bool {
	if !r.log.Enabled(context.Background(), level) {
		return false
	}
	if !r.events.take(r.now()) {
		r.suppressed.Inc()
		return false
	}
	return true
}

// common are the attributes of requests and connections: what was decided, and
// who is at both ends.
func (r *Recorder) common(a []slog.Attr, info *streaminfo.Info, cluster string) []slog.Attr {
	ci := info.Conn
	a = text(a, "response_code_details", info.Details)
	if info.Flags != 0 {
		a = append(a, slog.String("response_flags", info.Flags.String()))
	}
	if d := info.Decision; d != nil {
		a = text(a, "filter", d.Filter)
		policy, rule := SplitPolicy(d.Policy)
		if d.Rule != "" {
			rule = d.Rule
		}
		a = text(a, "policy", policy)
		a = text(a, "rule", rule)
		a = text(a, "reason", d.Reason)
		if d.Why != nil && r.reasonings.take(r.now()) {
			a = text(a, "clause", d.Why())
		}
	}
	a = text(a, "limit", info.Limit)
	source := r.at.Source(ci, Principal(info), Peer(info))
	a = append(a, source, r.at.Destination(ToOf(info, cluster)))
	a = text(a, "listener", ci.ListenerName)
	return text(a, "filter_chain", ci.FilterChainName)
}

func (r *Recorder) timed(a []slog.Attr, info *streaminfo.Info) []slog.Attr {
	if !info.End.IsZero() && !info.Start.IsZero() {
		a = append(a, slog.Float64("duration_ms", float64(info.End.Sub(info.Start).Microseconds())/1000))
	}
	return a
}

func group(name string, a []slog.Attr) slog.Attr {
	return slog.Attr{Key: name, Value: slog.GroupValue(a...)}
}

func text(a []slog.Attr, key, value string) []slog.Attr {
	if value == "" {
		return a
	}
	return append(a, slog.String(key, value))
}

func addr(a []slog.Attr, key string, v netip.AddrPort) []slog.Attr {
	if !v.IsValid() {
		return a
	}
	return append(a, slog.String(key, v.String()))
}

// TraceID returns the trace of the request: the stream's, or what the client
// says in traceparent (W3C Trace Context).
func TraceID(info *streaminfo.Info, request *message.Header) string {
	if info.TraceID != "" {
		return info.TraceID
	}
	if v := request.Get("traceparent"); len(v) >= 55 && v[2] == '-' && v[35] == '-' {
		return v[3:35]
	}
	return request.Get("x-b3-traceid")
}

// reason is the constant part of response code details: what stands before the
// first bracket.
func reason(details string) string {
	if i := strings.IndexAny(details, "{["); i >= 0 {
		return details[:i]
	}
	return details
}

// SplitPolicy takes apart the name that istiod gives a rule of an
// AuthorizationPolicy, "ns[a]-policy[b]-rule[0]": policy "a/b", rule "0". Other
// names are policies without a rule.
func SplitPolicy(name string) (policy, rule string) {
	rest, ok := strings.CutPrefix(name, "ns[")
	if !ok {
		return name, ""
	}
	ns, rest, ok := strings.Cut(rest, "]-policy[")
	if !ok {
		return name, ""
	}
	p, rest, ok := strings.Cut(rest, "]-rule[")
	if !ok {
		return name, ""
	}
	rule, ok = strings.CutSuffix(rest, "]")
	if !ok {
		return name, ""
	}
	return ns + "/" + p, rule
}

// bucket is a token bucket.
type bucket struct {
	rate, max float64
	mu        sync.Mutex
	tokens    float64
	last      time.Time
}

func (b *bucket) take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last.IsZero() {
		b.tokens = b.max
	} else if d := now.Sub(b.last); d > 0 {
		b.tokens = min(b.max, b.tokens+b.rate*d.Seconds())
	}
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
