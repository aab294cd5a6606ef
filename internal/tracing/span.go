package tracing

import (
	"strconv"
	"time"

	commonv1pb "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1pb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/otlp"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// builder fills a span.
type builder struct{ s *tracev1pb.Span }

// span begins a span of t; a zero parent is none.
func (t *Trace) span(name string, kind tracev1pb.Span_SpanKind, id, parent [8]byte, start, end time.Time) *builder {
	s := &tracev1pb.Span{
		Name: otlp.Copy(name), Kind: kind, TraceId: append([]byte(nil), t.ctx.trace[:]...), SpanId: append([]byte(nil), id[:]...), TraceState: otlp.Copy(t.ctx.state),
		StartTimeUnixNano: otlp.UnixNano(start), EndTimeUnixNano: otlp.UnixNano(end),
	}
	if parent != [8]byte{} {
		s.ParentSpanId = append([]byte(nil), parent[:]...)
	}
	return &builder{s}
}

func (b *builder) tag(name, value string) {
	b.s.Attributes = append(b.s.Attributes, otlp.Attribute(name, value))
}

func (b *builder) number(name string, v int64) { b.tag(name, strconv.FormatInt(v, 10)) }

// custom adds a custom tag, which replaces what has its name; nil is none.
func (b *builder) custom(v *commonv1pb.KeyValue) {
	if v == nil {
		return
	}
	if v.GetKey() == "http.method" {
		v = otlp.Attribute(v.GetKey(), method(v.GetValue().GetStringValue()))
	}
	b.s.Attributes = otlp.SetAttribute(b.s.Attributes, v)
}

// method is m if it is known to OpenTelemetry's conventions.
func method(m string) string {
	switch m {
	case "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE":
		return m
	}
	return "_OTHER"
}

// tagOr is tag with "-" for what h doesn't have.
func (b *builder) tagOr(name string, h *message.Header, field string) {
	v, ok := h.Lookup(field)
	if !ok {
		v = "-"
	}
	b.tag(name, v)
}

func (b *builder) tagIf(name string, h *message.Header, field string) {
	if v, ok := h.Lookup(field); ok {
		b.tag(name, v)
	}
}

// request is the span of the whole request: HttpTracerUtility's
// finalizeDownstreamSpan.
func (t *Trace) request(s *filters.Stream) *tracev1pb.Span {
	info, h := &s.Info, &s.Request
	kind := tracev1pb.Span_SPAN_KIND_SERVER
	if t.cfg.Egress && !t.cfg.SpawnUpstream {
		kind = tracev1pb.Span_SPAN_KIND_CLIENT
	}
	b := t.span(t.name(s), kind, t.ctx.span, t.parent, info.Start, info.End)
	b.tag("node_id", t.cfg.NodeID)
	b.tag("zone", t.cfg.Zone)
	b.tagIf("guid:x-request-id", h, "x-request-id")
	b.tag("http.url", t.url(h, info))
	b.tag("http.method", method(h.Get(message.Method)))
	b.tagOr("downstream_cluster", h, "x-envoy-downstream-service-cluster")
	b.tagOr("user_agent", h, "user-agent")
	b.tag("http.protocol", protocol(info.Protocol))
	if a := info.Conn.DirectRemote.Addr(); a.IsValid() {
		b.tag("peer.address", a.Unmap().String())
	}
	b.tagIf("guid:x-client-trace-id", h, "x-client-trace-id")
	if info.IsGRPC {
		b.tagIf("grpc.path", h, message.Path)
		b.tagIf("grpc.authority", h, message.Authority)
		b.tagIf("grpc.content_type", h, "content-type")
		b.tagIf("grpc.timeout", h, "grpc-timeout")
	}
	b.number("request_size", int64(info.BytesReceived))
	b.number("response_size", int64(info.BytesSent))
	failed := t.common(b, s, info.ResponseCode, info.Flags)
	if info.IsGRPC && s.Response != nil {
		b.grpc(&s.Response.Header, s.Response.Body.Trailers(), failed)
	}
	return b.s
}

// grpc adds what a gRPC response says; failed spans have their error already.
func (b *builder) grpc(h, trailers *message.Header, failed bool) {
	if trailers != nil && trailers.Has("grpc-status") {
		h = trailers
	}
	b.tagIf("grpc.status_code", h, "grpc-status")
	b.tagIf("grpc.message", h, "grpc-message")
	status, ok := h.Lookup("grpc-status")
	fault := grpcFailure(status)
	if fault || ok && status != "0" && b.s.GetKind() == tracev1pb.Span_SPAN_KIND_CLIENT {
		b.s.Status = &tracev1pb.Status{Code: tracev1pb.Status_STATUS_CODE_ERROR}
	}
	if fault && !failed {
		b.tag("error", "true")
	}
}

// grpcFailure tells which gRPC statuses are the server's fault.
func grpcFailure(status string) bool {
	switch status {
	case "2", "4", "12", "13", "14", "15":
		return true
	}
	return false
}

// name is the request's operation: a configured format, what SetOperation said,
// or the direction.
func (t *Trace) name(s *filters.Stream) string {
	f := t.cfg.Operation
	if t.route != nil && t.route.Operation != nil {
		f = t.route.Operation
	}
	switch {
	case f != nil:
		return f.Render(t.context(s))
	case t.operation != "":
		return t.operation
	case t.cfg.Egress:
		return "egress " + s.Request.Get(message.Authority)
	}
	return "ingress"
}

// url is the URL as the client asked for it (Http::Utility::buildOriginalUri).
func (t *Trace) url(h *message.Header, info *streaminfo.Info) string {
	path, ok := h.Lookup("x-envoy-original-path")
	if !ok {
		if path, ok = h.Lookup(message.Path); !ok {
			return ""
		}
	}
	path = info.Show(path) // before it is cut
	if len(path) > t.cfg.MaxPath {
		path = path[:t.cfg.MaxPath]
	}
	return h.Get("x-forwarded-proto") + "://" + h.Get(message.Authority) + path
}

// common adds what both kinds of spans have, and reports whether the span is an
// error's.
func (t *Trace) common(b *builder, s *filters.Stream, status int, flags streaminfo.ResponseFlag) (failed bool) {
	b.tag("component", "proxy")
	if u := &s.Info.Upstream; u.ClusterRaw != "" {
		b.tag("upstream_cluster", u.ClusterRaw)
		b.tag("upstream_cluster.name", u.Cluster)
	}
	b.number("http.status_code", int64(status))
	if status >= 500 || status >= 400 && b.s.GetKind() == tracev1pb.Span_SPAN_KIND_CLIENT {
		b.s.Status = &tracev1pb.Status{Code: tracev1pb.Status_STATUS_CODE_ERROR}
	}
	b.tag("response_flags", flags.String())
	if failed = status == 0 || status >= 500 && status < 600; failed {
		b.tag("error", "true")
	}
	c := t.context(s)
	for i := range t.cfg.Tags {
		if tag := &t.cfg.Tags[i]; !t.route.has(tag.Name) {
			b.custom(tag.Attribute(c))
		}
	}
	if t.route != nil {
		for i := range t.route.Tags {
			b.custom(t.route.Tags[i].Attribute(c))
		}
	}
	return failed
}

func (r *Route) has(tag string) bool {
	if r == nil {
		return false
	}
	for i := range r.Tags {
		if r.Tags[i].Name == tag {
			return true
		}
	}
	return false
}

func protocol(v message.Version) string {
	if v == 0 {
		return "-"
	}
	return v.String()
}
