package filters

import (
	"context"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Tunnel is the far side of an upgraded stream.
type Tunnel interface {
	// TakeOver owns c, the downstream byte stream, from now on. It may return
	// at once (the connection is then driven by its own events) and must call
	// done exactly once, when the tunnel has ended in both directions.
	TakeOver(c netio.Conn, done func())
	// Abandon releases the tunnel if TakeOver will not be called. After TakeOver
	// it does nothing: one that wraps a Tunnel may panic on either side of it.
	Abandon()
}

// DepartingTunnel is implemented by tunnels that, once TakeOver has returned, use
// nothing of the stream but done: not its record, its message, nor its Guard. Of
// such a stream only what is told in the end is kept.
type DepartingTunnel interface {
	Tunnel
	Departs()
}

// Trace is the trace that a stream takes part in.
type Trace interface {
	// StartAttempt begins attempt n, from 1, at s.Info.Upstream and gives
	// s.Request the trace context that upstream is to see.
	StartAttempt(s *Stream, n int)
	// EndAttempt ends the attempt in flight, if there is one.
	EndAttempt(s *Stream, e *AttemptEnd)
}

// AttemptEnd is how an attempt ended.
type AttemptEnd struct {
	// Status is that of its response, 0 without one. Flag and Reason, in Envoy's
	// words, say why that is; Reason may be "".
	Status int
	Flag   streaminfo.ResponseFlag
	Reason string
	// Cancelled: this side gave it up.
	Cancelled bool
	// Header and Trailers are the response's; they may be nil.
	Header, Trailers *message.Header
}

// Interrupter is something that blocks on behalf of a stream, and can be told
// to stop.
type Interrupter interface {
	// Interrupt makes current and later blocking calls fail with cause. It
	// does not block.
	Interrupt(cause error)
}

// Stream is one HTTP request in flight. It belongs to the goroutine that runs
// the chain; only Interrupt, Context and Cause may be called by others.
// Streams are pooled: nothing of a Stream may be kept after it ended.
type Stream struct {
	// Request is the request head as upstream will see it, pseudo-headers
	// included. It has been normalized before any matcher ran.
	Request message.Header
	// Body is the request body, never nil. Filters may wrap it before next.
	Body message.Body
	// Info is the stream's record.
	Info streaminfo.Info
	// Route is nil if no route matched.
	Route Route
	// Random is a number drawn once for this stream; weighted choices and
	// percentages use it or parts of it.
	Random uint64
	// Trace is set by HCM on streams that are traced; nil on others.
	Trace Trace
	// Informational sends a 1xx response downstream. It is nil if the client
	// cannot take one (HTTP/1.0).
	Informational func(h *message.Header) error
	// Reselect is set by HCM: it matches the route again after a filter
	// changed the request (clear-route-cache) and installs it.
	Reselect func(s *Stream)
	// Response is the response that was chosen, set by HCM before it is
	// written; StreamEnders and access logs read it.
	Response *Response
	// Admitted is the head of a request that asks for a tunnel, as the filters let
	// it pass: the terminal filter sets it before it changes anything. By it the
	// tunnel is judged when policies change. It has no x-request-id if OwnRequestID
	// says that HCM made that up: another one is as good, and without it the heads
	// of a client's tunnels are equal.
	Admitted     message.Packed
	OwnRequestID bool
	// Scratch belongs to the terminal filter. It outlives the stream: what a
	// filter needs for each stream need not be made for each.
	Scratch any

	chain []HTTPFilter
	resp  Response

	interrupted atomic.Bool // since the last Renew

	mu     sync.Mutex
	guards []Interrupter
	cause  error
	ctx    context.Context //nolint:containedctx // handed to libraries that want one; same life as the stream
	cancel context.CancelCauseFunc
}

// Reset ends the stream and prepares it for its next request.
func (s *Stream) Reset() {
	s.Request.Reset()
	s.Body = message.NoBody
	fs, md := s.Info.FilterState, s.Info.Metadata
	md.Reset()
	fs.Reset(nil)
	s.Info = streaminfo.Info{FilterState: fs, Metadata: md}
	s.Trace, s.Admitted, s.OwnRequestID = nil, message.Packed{}, false
	s.Route, s.Random, s.Informational, s.Reselect, s.Response = nil, 0, nil, nil, nil
	s.chain = nil
	s.resetResponse()
	s.mu.Lock()
	clear(s.guards)
	s.guards = s.guards[:0]
	if s.cancel != nil {
		s.cancel(context.Canceled)
	}
	s.cause, s.ctx, s.cancel = nil, nil, nil
	s.mu.Unlock()
}

// Renew prepares a pooled stream that was Reset at the end of its last request: a
// late interruption may have met it since.
func (s *Stream) Renew() {
	if s.interrupted.Load() {
		s.mu.Lock()
		s.interrupted.Store(false)
		s.cause = nil
		s.mu.Unlock()
	}
}

func (s *Stream) resetResponse() {
	s.resp.Header.Reset()
	s.resp.Body, s.resp.Local, s.resp.Tunnel = message.NoBody, false, nil
}

// NewResponse returns the stream's response, emptied. There is one: whoever
// replaces a response must have closed the Body of the former.
func (s *Stream) NewResponse() *Response {
	s.resetResponse()
	return &s.resp
}

// DropResponse releases the response of NewResponse that nobody will write: HCM
// calls it if the filter that held it panicked.
func (s *Stream) DropResponse() {
	b, t := s.resp.Body, s.resp.Tunnel
	s.resetResponse()
	if t != nil {
		t.Abandon()
	}
	b.Close()
}

// SelectRoute installs r; filters after the current one run r's overrides.
func (s *Stream) SelectRoute(r Route) {
	s.Route, s.chain = r, nil
	if r != nil {
		s.chain = r.Chain()
		s.Info.RouteName, s.Info.RouteMetadata = r.Name(), r.Metadata()
	}
}

// SetChain installs the chain that runs when no route matched, so that filters
// see the request before the terminal filter answers 404.
func (s *Stream) SetChain(chain []HTTPFilter) { s.chain = chain }

// Chain returns the installed chain.
func (s *Stream) Chain() []HTTPFilter { return s.chain }

// Cluster is the cluster that the route leads to, also one that a header names; ""
// without a route.
func (s *Stream) Cluster() string {
	switch r := s.Route.(type) {
	case nil:
		return ""
	case interface{ Cluster(s *Stream) string }:
		return r.Cluster(s)
	default:
		return r.ClusterName()
	}
}

// Drawn draws whether a request is one of those that ppm of a million are to be.
func Drawn(ppm uint32) bool {
	const million = 1_000_000
	return ppm >= million || ppm > 0 && rand.Uint32N(million) < ppm
}

// ClearRouteCache selects the route again, if HCM allows it.
func (s *Stream) ClearRouteCache() {
	if s.Reselect != nil {
		s.Reselect(s)
	}
}

// LocalReply returns a response made by this proxy, as Envoy's sendLocalReply:
// body is sent as text/plain, or as grpc-message with HTTP status 200 if the
// request is gRPC. details becomes %RESPONSE_CODE_DETAILS%; it names the
// filter and cause without spaces. flag may be 0. The caller may add headers.
func (s *Stream) LocalReply(status int, body, details string, flag streaminfo.ResponseFlag) *Response {
	r := s.NewResponse()
	r.Local = true
	s.Info.Details = details
	s.Info.Flags = s.Info.Flags.With(flag)
	if s.Info.IsGRPC {
		r.Header.Add(message.Status, "200")
		r.Header.Add("content-type", "application/grpc")
		r.Header.Add("grpc-status", strconv.Itoa(format.GRPCFromHTTP(status)))
		if body != "" {
			r.Header.Add("grpc-message", percentEncode(body))
		}
		s.Info.ResponseCode = 200
		return r
	}
	r.Header.Add(message.Status, strconv.Itoa(status))
	if body != "" {
		r.Header.Add("content-length", strconv.Itoa(len(body)))
		r.Header.Add("content-type", "text/plain")
		if s.Request.Get(message.Method) != "HEAD" {
			r.Body = message.Bytes([]byte(body))
		}
	}
	s.Info.ResponseCode = status
	return r
}

// Deny is LocalReply for a filter that refuses the request: d is what will be
// told about it.
func (s *Stream) Deny(status int, body, details string, flag streaminfo.ResponseFlag, d streaminfo.Decision) *Response {
	s.Info.Decision = &d
	return s.LocalReply(status, body, details, flag)
}

func percentEncode(s string) string {
	const hex = "0123456789ABCDEF"
	var b []byte
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c <= '~' && c != '%' {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
	}
	return string(b)
}

// Guard registers i to be interrupted when the stream is. It returns the cause
// if that has happened already, and then does not register. Unguard must
// follow.
func (s *Stream) Guard(i Interrupter) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return s.cause
	}
	s.guards = append(s.guards, i)
	return nil
}

// Unguard removes i. After it returns, i will not be interrupted any more.
func (s *Stream) Unguard(i Interrupter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, g := range s.guards {
		if g == i {
			last := len(s.guards) - 1
			s.guards[k], s.guards[last] = s.guards[last], nil
			s.guards = s.guards[:last]
			return
		}
	}
}

// Unwatched reports whether nobody waits for the end of the stream or for an
// interruption but own, and there was none.
func (s *Stream) Unwatched(own Interrupter) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause == nil && s.ctx == nil && s.Trace == nil && (len(s.guards) == 0 || len(s.guards) == 1 && s.guards[0] == own)
}

// Interrupt ends whatever the stream is blocked on: the client went away, a
// timer expired. The first cause stays.
func (s *Stream) Interrupt(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return
	}
	s.cause = cause
	s.interrupted.Store(true)
	if s.cancel != nil {
		defer s.cancel(cause)
	}
	interrupt(s.guards, cause)
}

// interrupt tells all of them, also if one panics.
func interrupt(guards []Interrupter, cause error) {
	for i, g := range guards {
		func() {
			defer func() {
				if p := recover(); p != nil {
					interrupt(guards[i+1:], cause)
					panic(p)
				}
			}()
			g.Interrupt(cause)
		}()
	}
}

// Cause returns why the stream was interrupted, nil if it was not.
func (s *Stream) Cause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// Context returns a context that is cancelled when the stream is interrupted
// or ends. It is made on first use; filters that call libraries need it.
func (s *Stream) Context() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx == nil {
		s.ctx, s.cancel = context.WithCancelCause(context.Background())
		if s.cause != nil {
			s.cancel(s.cause)
		}
	}
	return s.ctx
}
