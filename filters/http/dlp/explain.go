package dlp

import (
	"fmt"
	"log/slog"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// Explain inspects the request, its whole body included, as Do does, without
// counting or reporting. What was found is told without the matches.
func (f *filter) Explain(s *filters.Stream) filters.Explanation {
	x := filters.Explanation{Verdict: filters.VerdictPass}
	if f.cfg.answer != nil {
		x.Text = append(x.Text, "the response would be inspected, too; see --response-body")
	}
	if f.cfg.request == nil {
		return x
	}
	quiet := f.quiet()
	in := quiet.inspect(f.cfg.request, "request")
	in.identify(s)
	r, err := quiet.request(s, in, &gate{})
	if r == nil && err == nil {
		err = drain(&s.Body)
	}
	x.Verdict = filters.VerdictAllow
	x.Text = append(x.Text, in.explain()...)
	if in.stopped() {
		if r == nil {
			r = quiet.refuse(s, in, 415)
		}
		r.Body.Close()
	}
	in.verdict(&x, s, err)
	return x
}

// ExplainResponse inspects a response, its whole body included, as Do does,
// without counting or reporting. It leaves in r what the client would get.
func (f *filter) ExplainResponse(s *filters.Stream, r *filters.Response) filters.Explanation {
	x := filters.Explanation{Verdict: filters.VerdictPass}
	if f.cfg.answer == nil {
		return x
	}
	quiet := f.quiet()
	in := quiet.inspect(f.cfg.answer, "response")
	out, err := quiet.response(s, r, in, s.Request.Get(message.Method) == "HEAD")
	if err == nil && !in.stopped() {
		err = drain(&out.Body)
	}
	if in.stopped() {
		out = quiet.refuse(s, in, 502)
	}
	*r = *out
	x.Verdict = filters.VerdictAllow
	x.Text = append(x.Text, in.explain()...)
	in.verdict(&x, s, err)
	return x
}

// quiet is f without counters and logs.
func (f *filter) quiet() *filter {
	q := *f
	q.logger, q.uninspected = slog.New(slog.DiscardHandler), nil
	q.findings = &findings{policy: f.name, by: map[series]*stats.Counter{}}
	return &q
}

// verdict completes x.
func (in *inspection) verdict(x *filters.Explanation, s *filters.Stream, err error) {
	switch {
	case in.stopped():
		x.Verdict, x.Status, x.Details = filters.VerdictDeny, s.Info.ResponseCode, s.Info.Details
	case err != nil:
		x.Verdict = filters.VerdictUnknown
		x.Text = append(x.Text, "reading the body: "+err.Error())
	case in.f.cfg.dryRun:
		x.Verdict = filters.VerdictPass
		x.Text = append(x.Text, "dry run: the "+in.dir+" passes unchanged")
	}
}

// drain reads a body through the inspection; what comes out of it takes its
// place.
func drain(b *message.Body) error {
	var all []byte
	for {
		p, last, err := (*b).Next()
		if err != nil {
			return err
		}
		all = append(all, p...)
		if last {
			(*b).Close()
			*b = message.Bytes(all)
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
		out = []string{"nothing is found in the " + in.dir}
	}
	return out
}
