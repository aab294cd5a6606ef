package dlp

import (
	"fmt"
	"log/slog"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// Explain inspects the request, its whole body included, as Do does, without
// counting or reporting. What was found is told without the matches. A response
// isn't there to be inspected.
func (f *filter) Explain(s *filters.Stream) filters.Explanation {
	x := filters.Explanation{Verdict: filters.VerdictPass}
	if f.cfg.answer != nil {
		x.Text = append(x.Text, "the response would be inspected, too")
	}
	if f.cfg.request == nil {
		return x
	}
	quiet := *f
	quiet.logger, quiet.uninspected = slog.New(slog.DiscardHandler), nil
	quiet.findings = &findings{policy: f.name, by: map[series]*stats.Counter{}}
	in := quiet.inspect(f.cfg.request, "request")
	in.identify(s)
	r, err := quiet.request(s, in, &gate{})
	if r == nil && err == nil {
		err = drain(s)
	}
	x.Verdict = filters.VerdictAllow
	x.Text = append(x.Text, in.explain()...)
	switch {
	case in.stopped():
		if r == nil {
			r = quiet.refuse(s, in, 415)
		}
		r.Body.Close()
		x.Verdict, x.Status, x.Details = filters.VerdictDeny, s.Info.ResponseCode, s.Info.Details
	case err != nil:
		x.Verdict = filters.VerdictUnknown
		x.Text = append(x.Text, "reading the body: "+err.Error())
	case f.cfg.dryRun:
		x.Verdict = filters.VerdictPass
		x.Text = append(x.Text, "dry run: the request passes unchanged")
	}
	return x
}

// drain reads the request's body through the inspection; what comes out of it
// is what later filters see.
func drain(s *filters.Stream) error {
	var all []byte
	for {
		p, last, err := s.Body.Next()
		if err != nil {
			return err
		}
		all = append(all, p...)
		if last {
			s.Body.Close()
			s.Body = message.Bytes(all)
			return nil
		}
	}
}

// explain tells what was found.
func (in *inspection) explain() []string {
	var out []string
	types := in.set.engine.Types()
	for i := range in.tallies {
		t := &in.tallies[i]
		at := placeNames[t.place]
		if t.field != "" {
			at += " " + t.field
		}
		out = append(out, fmt.Sprintf("%d × %s in %s: %s (rule %s, likelihood %s)", t.count, types[t.typ], at, actionNames[t.action], in.set.rules[t.rule].name, t.likelihood))
	}
	if in.dropped > 0 {
		out = append(out, fmt.Sprintf("and %d more findings", in.dropped))
	}
	if in.reason != "" {
		out = append(out, "the body can't be inspected: "+in.reason)
	}
	if out == nil {
		out = []string{"nothing is found in the request"}
	}
	return out
}
