package tracing

import (
	"encoding/hex"
	"regexp"
	"strings"
	"testing"

	tracev1pb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func start(t *testing.T, c *Config, drawn bool, fields ...string) (tr *Trace, s *filters.Stream, started bool) {
	t.Helper()
	s = &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	s.Request.CopyFrom(header(fields...))
	tr = &Trace{}
	return tr, s, tr.Start(c, nil, s, drawn)
}

func TestSamplingByParentDrawAndSampler(t *testing.T) {
	unsampled := parent[:54] + "0"
	for _, c := range []struct {
		name    string
		sampler Sampler
		drawn   bool
		parent  string
		want    bool
	}{
		{"drawn", NoSampler, true, "", true},
		{"not drawn", NoSampler, false, "", false},
		{"the parent counts, not the draw", NoSampler, false, parent, true},
		{"an unsampled parent counts", NoSampler, true, unsampled, false},
		{"always on asks the draw only", AlwaysOn, true, unsampled, true},
		{"always on, not drawn", AlwaysOn, false, parent, false},
		{"parent based without one", ParentBased, true, "", true},
		{"parent based, not drawn", ParentBased, false, parent, false},
		{"parent based with an unsampled one", ParentBased, true, unsampled, false},
		{"parent based with a sampled one", ParentBased, true, parent, true},
	} {
		var f []string
		if c.parent != "" {
			f = []string{traceparent, c.parent}
		}
		tr, s, ok := start(t, &Config{Sampler: c.sampler}, c.drawn, f...)
		if !ok || tr.Sampled() != c.want {
			t.Errorf("%s: started %t, sampled %t", c.name, ok, tr.Sampled())
		}
		if len(s.Info.TraceID) != 32 || len(s.Info.SpanID) != 16 || c.parent != "" && s.Info.TraceID != traceText || s.Info.SpanID == spanText {
			t.Errorf("%s: trace %q, span %q", c.name, s.Info.TraceID, s.Info.SpanID)
		}
	}
}

func TestAParentThatIsNoneIsLeftAlone(t *testing.T) {
	_, s, ok := start(t, &Config{}, true, traceparent, "00-x")
	if ok || s.Trace != nil || s.Request.Get(traceparent) != "00-x" {
		t.Errorf("started %t, %q", ok, s.Request.Get(traceparent))
	}
}

func TestSpansHaveTheirParents(t *testing.T) {
	var spans []*tracev1pb.Span
	tr, s, _ := start(t, &Config{SpawnUpstream: true, Export: func(s *tracev1pb.Span) { spans = append(spans, s) }}, true, traceparent, parent)
	tr.StartAttempt(s, 1)
	sent, _, ok := extract(&s.Request)
	tr.EndAttempt(s, &filters.AttemptEnd{Status: 200})
	tr.Finish(s)
	tr.Finish(s) // ended already
	if !ok || len(spans) != 2 {
		t.Fatalf("%t, %d spans", ok, len(spans))
	}
	attempt, request := spans[0], spans[1]
	if string(attempt.GetParentSpanId()) != string(request.GetSpanId()) || string(attempt.GetSpanId()) != string(sent.span[:]) || hex.EncodeToString(request.GetParentSpanId()) != spanText {
		t.Errorf("request %x of %x, attempt %x of %x, sent %x", request.GetSpanId(), request.GetParentSpanId(), attempt.GetSpanId(), attempt.GetParentSpanId(), sent.span)
	}
	if attempt.GetKind() != tracev1pb.Span_SPAN_KIND_CLIENT || request.GetKind() != tracev1pb.Span_SPAN_KIND_SERVER {
		t.Errorf("kinds %v, %v", attempt.GetKind(), request.GetKind())
	}
}

var parentForm = regexp.MustCompile(`^[0-9a-fA-F]{2}-([0-9a-fA-F]{32})-([0-9a-fA-F]{16})-[0-9a-fA-F]([0-9a-fA-F])$`)

// FuzzTraceparent: a traceparent is taken if a regular expression of its form
// matches and neither ID is zero; what is taken and sent on is read as the same
// context, in version 00.
func FuzzTraceparent(f *testing.F) {
	for _, s := range []string{parent, "ff-" + parent[3:], parent + "-", strings.Repeat("0", 55)} {
		f.Add(s, "a=1")
	}
	f.Fuzz(func(t *testing.T, in, state string) {
		m := parentForm.FindStringSubmatch(in)
		want := m != nil && len(in) == parentSize && strings.Trim(m[1], "0") != "" && strings.Trim(m[2], "0") != ""
		c, present, ok := extract(header(traceparent, in, tracestate, state))
		if !present || ok != want {
			t.Fatalf("%q: %t, want %t", in, ok, want)
		}
		if !ok {
			return
		}
		if hex.EncodeToString(c.trace[:]) != strings.ToLower(m[1]) || hex.EncodeToString(c.span[:]) != strings.ToLower(m[2]) || c.sampled != (m[3] != "" && strings.Trim(m[3], "13579bdfBDF") == "") || c.state != state {
			t.Fatalf("%q is %+v", in, c)
		}
		h := header(traceparent, "x", tracestate, "y")
		c.inject(h)
		again, _, ok := extract(h)
		if !ok || again != c || !strings.HasPrefix(h.Get(traceparent), "00-") {
			t.Fatalf("%q: %+v became %+v by %q", in, c, again, h.Get(traceparent))
		}
	})
}
