package explain

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
)

// WriteText writes r for people: the outcome first, then every hop.
func (r *Report) WriteText(w io.Writer) error {
	t := &writer{}
	t.line(0, "%s", r.headline())
	for _, n := range r.Notes {
		t.line(0, "note: %s", n)
	}
	for i := range r.Hops {
		t.line(0, "")
		t.hop(&r.Hops[i])
	}
	_, err := io.WriteString(w, t.b.String())
	return err
}

// headline is the outcome in one sentence.
func (r *Report) headline() string {
	by := ""
	if r.Decider != "" {
		by = " by " + r.Decider
	}
	status := ""
	if r.Status != 0 {
		status = fmt.Sprintf(" with %d", r.Status)
	}
	details := ""
	if r.Details != "" {
		details = " (" + r.Details + ")"
	}
	switch r.Outcome {
	case Forward:
		to := ""
		if n := len(r.Hops); n > 0 && r.Hops[n-1].Upstream != nil {
			to = " to cluster " + r.Hops[n-1].Upstream.Cluster
		}
		return "FORWARDED" + to
	case Deny:
		return "DENIED" + by + status + details
	case Answer:
		return "ANSWERED" + by + status + details
	case Close:
		return "CONNECTION CLOSED" + by + details
	}
	return "UNDECIDED: it depends on " + r.Decider
}

type writer struct{ b strings.Builder }

func (t *writer) line(indent int, format string, args ...any) {
	if format == "" {
		t.b.WriteByte('\n')
		return
	}
	t.b.WriteString(strings.Repeat("  ", indent))
	fmt.Fprintf(&t.b, format+"\n", args...)
}

func (t *writer) hop(h *Hop) {
	t.line(0, "listener %s", h.Listener)
	if h.Destination != "" {
		t.line(1, "destination: %s", h.Destination)
	}
	if h.Protocol == "" && h.FilterChain == "" {
		t.line(1, "filter chain: none of %d", h.Chains)
		return
	}
	name := h.FilterChain
	if name == "" {
		name = "(unnamed)"
	}
	t.line(1, "filter chain: %s (of %d)", name, h.Chains)
	for i := range h.NetworkFilters {
		t.filter("network filter", &h.NetworkFilters[i])
	}
	if q := h.Request; q != nil {
		t.line(1, "request: %s %s%s", q.Method, q.Authority, q.Path)
	}
	if h.Reply != nil {
		t.line(1, "answered by the connection manager: %s", h.Reply.text())
		return
	}
	if h.Routing != nil {
		t.routing(h.Routing)
	}
	for i := range h.Filters {
		t.filter("http filter", &h.Filters[i])
	}
	for i := range h.ResponseFilters {
		t.filter("response in http filter", &h.ResponseFilters[i])
	}
	if h.Upstream != nil {
		t.upstream(h.Upstream)
	}
}

func (r *Reply) text() string {
	out := strconv.Itoa(r.Status)
	if r.Details != "" {
		out += " (" + r.Details + ")"
	}
	if r.Location != "" {
		out += ", location " + r.Location
	}
	return out
}

func (t *writer) routing(r *Routing) {
	if r.VirtualHost != "" {
		t.line(1, "virtual host: %s (domain %s)", r.VirtualHost, r.Domain)
	} else if r.Route == nil {
		t.line(1, "virtual host: none")
	}
	for _, x := range r.Rejected {
		t.line(2, "rejected: routes[%d] %s: %s", x.Index, nameOr(x.Name, x.Match), x.Reason)
	}
	rt := r.Route
	if rt == nil {
		t.line(2, "route: none matches")
		return
	}
	again := ""
	if r.Reselected {
		again = ", selected again after a filter changed the request"
	}
	if rt.Index >= 0 {
		t.line(2, "route: routes[%d] %s (%s%s)", rt.Index, nameOr(rt.Name, "(unnamed)"), rt.Match, again)
	} else {
		t.line(2, "route: %s", rt.Match)
	}
	var total uint64
	for _, c := range rt.Weighted {
		total += c.Weight
	}
	for _, c := range rt.Weighted {
		mark := ""
		if c.Chosen {
			mark = " (explained here)"
		}
		t.line(3, "%.4g %%: %s%s", 100*float64(c.Weight)/float64(max(total, 1)), c.Cluster, mark)
	}
	if rt.Broken != "" {
		t.line(3, "not executable: %s", rt.Broken)
	}
}

func nameOr(name, other string) string {
	if name == "" {
		return other
	}
	return name
}

func (t *writer) filter(kind string, f *Filter) {
	state := string(f.Verdict)
	switch {
	case f.State == Off:
		state = "off on this route"
	case f.State == NotExplained:
		state = "not explained"
	case f.Verdict == filters.VerdictDeny && f.Status != 0:
		state = fmt.Sprintf("deny %d (%s)", f.Status, f.Details)
	case f.Verdict == filters.VerdictDeny:
		state = fmt.Sprintf("deny (%s)", f.Details)
	}
	if !f.Reached {
		state += " [not reached]"
	}
	t.line(1, "%s %s: %s", kind, f.Name, state)
	for _, s := range f.Text {
		t.line(2, "%s", s)
	}
	for i := range f.Policies {
		t.policy(&f.Policies[i])
	}
	if f.Nearest != nil {
		t.line(2, "nearest: %s misses", f.Nearest.Name)
		for _, c := range f.Nearest.Failed {
			t.line(3, "%s, has %s", c.Want, nameOr(c.Have, "something else"))
		}
	}
}

func (t *writer) policy(p *PolicyExplanation) {
	what, shadow := "does not match", ""
	if p.Matched {
		what = "matches"
	}
	if p.Shadow {
		shadow = " (shadow)"
	}
	why := ""
	if len(p.Failed) > 0 {
		c := p.Failed[0]
		why = ": " + c.Want + ", has " + nameOr(c.Have, "something else")
	}
	t.line(2, "%s %s%s %s%s", p.Action, p.Name, shadow, what, why)
}

// PolicyExplanation is filters.PolicyExplanation.
type PolicyExplanation = filters.PolicyExplanation

func (t *writer) upstream(u *Upstream) {
	if u.Cluster != "" {
		tls := ""
		if u.TLS {
			tls = ", TLS"
		}
		t.line(1, "cluster: %s (%s%s)", u.Cluster, nameOr(u.Type, "unknown"), tls)
	}
	if u.Problem != "" {
		t.line(2, "problem: %s", u.Problem)
	}
	if u.Reply != nil {
		t.line(1, "answer: %s", u.Reply.text())
	}
	const most = 20
	for i, h := range u.Hosts {
		if i == most {
			t.line(2, "and %d more endpoints", len(u.Hosts)-most)
			break
		}
		more := ""
		if h.Hostname != "" {
			more += ", " + h.Hostname
		}
		if h.Locality != "" {
			more += ", " + h.Locality
		}
		if h.Priority > 0 {
			more += fmt.Sprintf(", priority %d", h.Priority)
		}
		t.line(2, "endpoint: %s, %s, weight %d%s", h.Address, h.Health, h.Weight, more)
	}
	if x := u.Timeouts; x != nil {
		t.line(2, "timeouts: %s", x.text())
	}
	if x := u.Retry; x != nil {
		codes := ""
		if len(x.Codes) > 0 {
			codes = fmt.Sprintf(" %v", x.Codes)
		}
		t.line(2, "retries: %d on %s%s, back-off %s to %s", x.Attempts, strings.Join(x.On, ","), codes, x.BackOff, x.MaxWait)
	} else if u.Timeouts != nil && u.Reply == nil {
		t.line(2, "retries: none")
	}
	for _, m := range u.Mirrors {
		t.line(2, "mirrored to: %s", m)
	}
	if q := u.Request; q != nil && u.Next == "" {
		t.line(2, "upstream sees: %s %s%s", q.Method, q.Authority, q.Path)
	}
	if u.Next != "" {
		t.line(2, "goes on in listener %s", u.Next)
	}
}

func (t *Timeouts) text() string {
	out := []string{"route " + t.Route.String()}
	for _, x := range []struct {
		name string
		d    Duration
	}{{"per try", t.PerTry}, {"per try idle", t.PerTryIdle}, {"max stream duration", t.MaxDuration}, {"stream idle", t.StreamIdle}, {"request", t.Request}, {"connect", t.Connect}} {
		if x.d != 0 {
			out = append(out, x.name+" "+x.d.String())
		}
	}
	return strings.Join(out, ", ")
}
