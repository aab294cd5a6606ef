// Package explaintest holds what a filter explains to what it does.
package explaintest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Explainer is a filter that can be asked.
type Explainer interface {
	Explain(s *filters.Stream) filters.Explanation
}

// Question is what a filter said before it was given the request.
type Question struct {
	x    filters.Explanation
	twin *filters.Stream
}

// Ask asks f about a copy of s. It returns nil, which agrees with everything, if
// s has a body: there is one of it.
func Ask(tb testing.TB, f filters.HTTPFilter, s *filters.Stream) *Question {
	tb.Helper()
	if f == nil || s.Body != nil && s.Body != message.NoBody {
		return nil
	}
	e, ok := f.(Explainer)
	if !ok {
		tb.Fatalf("%T can't be asked", f)
	}
	t := &filters.Stream{}
	t.Reset()
	t.Request.CopyFrom(&s.Request)
	info := s.Info
	info.FilterState, info.Metadata = streaminfo.FilterState{}, streaminfo.Metadata{}
	s.Info.FilterState.All(func(k string, v streaminfo.Object) bool {
		info.FilterState.Set(k, v, streaminfo.SharingNone)
		return true
	})
	for ns, values := range s.Info.Metadata.Namespaces() {
		for k, v := range values {
			info.Metadata.Set(ns, k, v)
		}
	}
	t.Info, t.Route, t.Random = info, s.Route, s.Random
	return &Question{e.Explain(t), t}
}

// Explanation is the answer.
func (q *Question) Explanation() filters.Explanation { return q.x }

// Agrees compares the answer with what became of s: passed tells whether the
// next filter saw it, and seen, which may be nil, what it saw. What a filter
// can't tell beforehand is no disagreement.
func (q *Question) Agrees(tb testing.TB, s *filters.Stream, passed bool, seen *message.Header) {
	tb.Helper()
	switch {
	case q == nil || q.x.Verdict == filters.VerdictUnknown:
	case (q.x.Verdict != filters.VerdictDeny) != passed:
		tb.Errorf("explained as %s (%s) %q; the request passed: %t", q.x.Verdict, q.x.Details, q.x.Text, passed)
	case passed && seen != nil:
		if a, b := fields(seen), fields(&q.twin.Request); a != b {
			tb.Errorf("the next filter sees\n%s\nexplained as\n%s", a, b)
		}
	case !passed && (q.x.Status != s.Info.ResponseCode && !s.Info.IsGRPC || q.x.Details != s.Info.Details):
		tb.Errorf("explained as %d %s, answered %d %s", q.x.Status, q.x.Details, s.Info.ResponseCode, s.Info.Details)
	}
}

func fields(h *message.Header) string {
	var b strings.Builder
	for i := range h.Len() {
		fmt.Fprintf(&b, "%s: %s\n", h.At(i).Name, h.At(i).Value)
	}
	return b.String()
}
