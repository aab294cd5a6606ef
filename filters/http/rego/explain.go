package rego

import (
	"fmt"
	"log/slog"
	"strconv"

	"github.com/fairlead-mesh/fairlead/filters"
)

// Explain asks the policy as Do does, without counting or logging the decision.
// A policy that may call out of the process is not asked.
func (f *filter) Explain(s *filters.Stream) filters.Explanation {
	if f.network {
		return filters.Explanation{Verdict: filters.VerdictUnknown, Text: []string{"the policy may use builtins that leave the process; it was not asked"}}
	}
	quiet := *f
	quiet.latency, quiet.logger = nil, slog.New(slog.DiscardHandler)
	res, err := quiet.decide(s, f.program.current.Load())
	if err != nil {
		return filters.Explanation{Verdict: filters.VerdictUnknown, Text: []string{err.Error()}}
	}
	return quiet.explain(s, &res)
}

func (f *filter) explain(s *filters.Stream, res *result) filters.Explanation {
	x := filters.Explanation{Verdict: filters.VerdictAllow, Text: []string{"policy " + f.name + " answers: " + outcomeNames[res.outcome]}}
	if res.err != nil {
		x.Text = append(x.Text, res.err.Error())
	}
	d := &res.dec
	for _, h := range d.headers {
		x.Text = append(x.Text, "sets header "+h.name)
	}
	for _, name := range d.remove {
		x.Text = append(x.Text, "removes header "+name)
	}
	for _, h := range d.responseHeaders {
		x.Text = append(x.Text, "adds response header "+h.name)
	}
	if d.body != "" {
		x.Text = append(x.Text, "answers "+strconv.Quote(d.body[:min(len(d.body), 256)]))
	}
	pass := f.passes(res)
	switch {
	case f.cfg.dryRun:
		x.Verdict = filters.VerdictPass
		x.Text = append(x.Text, fmt.Sprintf("dry run: the request passes; enforced, it would pass: %t", pass))
	case !pass:
		r := f.deny(s, res)
		r.Body.Close()
		x.Verdict, x.Status, x.Details = filters.VerdictDeny, s.Info.ResponseCode, s.Info.Details
	case res.outcome == allowed:
		if err := d.applyRequest(s, f); err != nil {
			x.Verdict, x.Status, x.Details = filters.VerdictDeny, f.cfg.denyStatus, "rego_denied{"+outcomeNames[failed]+"}"
			x.Text = append(x.Text, err.Error())
		}
	}
	return x
}
