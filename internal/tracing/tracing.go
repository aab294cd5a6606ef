package tracing

import (
	"encoding/hex"
	"time"

	commonv1pb "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1pb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
)

// Sampler decides in the tracer, among the requests that the connection manager
// drew.
type Sampler uint8

// Samplers. ParentBased takes the parent's decision, and samples without one.
const (
	NoSampler Sampler = iota
	AlwaysOn
	ParentBased
)

// Config is how one connection manager traces. It is immutable.
type Config struct {
	// Egress is set on outbound listeners: spans are the client's.
	Egress bool
	// SpawnUpstream makes a span of each attempt, too.
	SpawnUpstream bool
	// MaxPath bounds the path in http.url, in bytes.
	MaxPath int
	Tags    []Tag
	// Operation and UpstreamOperation name spans; nil leaves it to Envoy's rules.
	Operation, UpstreamOperation *format.String
	// NoPropagation leaves trace headers of requests to upstream alone.
	NoPropagation bool
	Sampler       Sampler
	NodeID, Zone  string
	// Export takes finished spans that are sampled; nil drops them. It must not
	// block.
	Export func(s *tracev1pb.Span)
}

// Route is what a route says about its traces. It is immutable.
type Route struct {
	// Tags replace those of the same name in Config.
	Tags []Tag
	// Operation and UpstreamOperation are before Config's.
	Operation, UpstreamOperation *format.String
}

// Trace is the span of one request, and of its attempt in flight. The zero Trace
// is ready; it may be used again after Finish. It belongs to its stream's
// goroutine.
type Trace struct {
	cfg       *Config
	route     *Route
	ctx       spanContext
	parent    [8]byte // zero: this is the root
	operation string

	attempt      [8]byte // of the attempt's span, zero if there is none
	attemptStart time.Time
	attemptName  string
	retries      int
	format       format.Context
}

// Start begins the span of s if s takes part in a trace, and then makes s.Trace
// and the identifiers of s.Info. decision is what the connection manager drew;
// a sampled parent overrides it. A traceparent that is none is left alone, and
// nothing is traced, as in Envoy.
func (t *Trace) Start(c *Config, r *Route, s *filters.Stream, decision bool) bool {
	parent, present, ok := extract(&s.Request)
	if present && !ok {
		return false
	}
	*t = Trace{cfg: c, route: r, ctx: spanContext{span: newSpanID(), sampled: decision}}
	if present {
		t.ctx.trace, t.ctx.sampled, t.ctx.state, t.parent = parent.trace, parent.sampled, parent.state, parent.span
	} else {
		t.ctx.trace = newTraceID()
	}
	switch c.Sampler { // which is asked about what the connection manager drew only
	case NoSampler:
	case AlwaysOn:
		t.ctx.sampled = decision
	case ParentBased:
		t.ctx.sampled = decision && (!present || parent.sampled)
	}
	var b [32]byte
	hex.Encode(b[:], t.ctx.trace[:])
	s.Info.TraceID = s.Request.Intern(b[:])
	hex.Encode(b[:16], t.ctx.span[:])
	s.Info.SpanID = s.Request.Intern(b[:16])
	s.Trace = t
	return true
}

// SetOperation names the span; a configured operation stays.
func (t *Trace) SetOperation(name string) { t.operation = name }

// Sampled reports whether the spans are exported.
func (t *Trace) Sampled() bool { return t.ctx.sampled }

// StartAttempt implements filters.Trace.
func (t *Trace) StartAttempt(s *filters.Stream, n int) {
	c := t.cfg
	ctx := t.ctx
	if c.SpawnUpstream {
		t.attempt, t.attemptStart, t.retries = newSpanID(), s.Info.Now(), n-1
		ctx.span = t.attempt
		if t.ctx.sampled {
			t.attemptName = t.upstreamOperation(s)
		}
	}
	if !c.NoPropagation {
		ctx.inject(&s.Request)
	}
}

// upstreamOperation is Envoy's name of an attempt's span.
func (t *Trace) upstreamOperation(s *filters.Stream) string {
	f := t.cfg.UpstreamOperation
	if t.route != nil && t.route.UpstreamOperation != nil {
		f = t.route.UpstreamOperation
	}
	if f != nil {
		return f.Render(t.context(s))
	}
	return "router " + s.Info.Upstream.Cluster + " egress"
}

func (t *Trace) context(s *filters.Stream) *format.Context {
	t.format = format.Context{Info: &s.Info, Request: &s.Request}
	if s.Response != nil {
		t.format.Response = &s.Response.Header
		t.format.Trailers = s.Response.Body.Trailers()
	}
	return &t.format
}

// EndAttempt implements filters.Trace.
func (t *Trace) EndAttempt(s *filters.Stream, e *filters.AttemptEnd) {
	if t.attempt == [8]byte{} {
		return
	}
	id := t.attempt
	t.attempt = [8]byte{}
	if t.cfg.Export == nil || !t.ctx.sampled {
		return
	}
	b := t.span(t.attemptName, tracev1pb.Span_SPAN_KIND_CLIENT, id, t.ctx.span, t.attemptStart, s.Info.Now())
	if t.retries > 0 {
		b.number("retry.count", int64(t.retries))
	}
	u := &s.Info.Upstream
	b.tag("http.protocol", protocol(u.Protocol))
	if u.Host != "" {
		b.tag("upstream_address", u.Host)
		b.tag("peer.address", u.Host)
	}
	if e.Cancelled {
		b.tag("canceled", "true")
	}
	if e.Reason != "" {
		b.tag("error.reason", e.Reason)
	}
	failed := t.common(b, s, e.Status, e.Flag)
	if s.Info.IsGRPC && e.Header != nil {
		b.grpc(e.Header, e.Trailers, failed)
	}
	t.export(s, b.s)
}

// export gives a span away, without what is to be hidden.
func (t *Trace) export(s *filters.Stream, span *tracev1pb.Span) {
	if info := &s.Info; len(info.Hidden) > 0 {
		span.Name = info.Show(span.GetName())
		for _, a := range span.GetAttributes() {
			if v, ok := a.GetValue().GetValue().(*commonv1pb.AnyValue_StringValue); ok {
				v.StringValue = info.Show(v.StringValue)
			}
		}
	}
	t.cfg.Export(span)
}

// Finish ends the span of s, and that of an attempt which is still open. s has
// ended, but for being forgotten.
func (t *Trace) Finish(s *filters.Stream) {
	if t.cfg == nil {
		return
	}
	t.EndAttempt(s, &filters.AttemptEnd{Status: s.Info.ResponseCode})
	if t.cfg.Export != nil && t.ctx.sampled {
		t.export(s, t.request(s))
	}
	*t = Trace{}
}
