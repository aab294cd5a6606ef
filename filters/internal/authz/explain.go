package authz

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
)

var actionNames = [...]string{Allow: "allow", Deny: "deny", Log: "log"}

// Explain decides as Decide does and says why: every policy with the clauses for
// want of which it does not match. A nil Engine allows and says nothing.
func (e *Engine) Explain(in Input) (Decision, []filters.PolicyExplanation) {
	d := e.Decide(in)
	if e == nil {
		return d, nil
	}
	out := make([]filters.PolicyExplanation, len(e.policies))
	for i := range e.policies {
		p := &e.policies[i]
		out[i] = filters.PolicyExplanation{Name: p.name, Action: actionNames[e.action], Matched: e.matches(i, in)}
		if !out[i].Matched {
			x := explainer{in: in, doubt: e.action != Allow}
			out[i].Failed = append(x.list(p.rules.Permissions, "permissions", x.doubt), x.list(p.rules.Principals, "principals", x.doubt)...)
		}
	}
	return d, out
}

// Nearest returns the policy that misses the fewest clauses, nil if there is
// none. Of equal ones it is the first that some principal, or else some
// permission, of matches.
func Nearest(ps []filters.PolicyExplanation) *filters.PolicyExplanation {
	var best *filters.PolicyExplanation
	cost := func(p *filters.PolicyExplanation) int {
		n := 4 * len(p.Failed)
		if slices.ContainsFunc(p.Failed, func(c filters.Clause) bool { return strings.HasPrefix(c.Path, "principals") }) {
			n++ // who asks is nearer than what is asked for
		}
		return n
	}
	for i := range ps {
		if !ps[i].Matched && (best == nil || cost(&ps[i]) < cost(best)) {
			best = &ps[i]
		}
	}
	return best
}

// maxReasoned bounds the policies that why looks at.
const maxReasoned = 256

// why says in one line by which clauses policy i refused, or, for -1, which
// policy came closest to allowing and what it missed.
func (e *Engine) why(in Input, i int) string {
	if i < 0 {
		near := e
		if len(e.policies) > maxReasoned {
			near = &Engine{action: e.action, policies: e.policies[:maxReasoned]}
		}
		_, ps := near.Explain(in)
		n := Nearest(ps)
		if n == nil {
			return "there is no policy that could allow"
		}
		parts := make([]string, len(n.Failed))
		for k, c := range n.Failed {
			parts[k] = c.Want + ", has " + c.Have
		}
		return "nearest " + n.Name + " misses " + strings.Join(parts, "; ")
	}
	p := e.policies[i].rules
	x := explainer{in: in, doubt: e.action != Allow}
	return x.holding(p.Permissions, "permissions") + " and " + x.holding(p.Principals, "principals")
}

// holding names the first of rules that holds.
func (x *explainer) holding(rules []Rule, path string) string {
	for i := range rules {
		at := fmt.Sprintf("%s[%d]", path, i)
		if len(x.rule(&rules[i], at, x.doubt)) == 0 {
			want, _ := describe(&rules[i], x.in)
			return at + " (" + want + ")"
		}
	}
	return path
}

// explainer finds the clauses that fail. It evaluates single rules with the
// compiler's own matchers.
type explainer struct {
	in    Input
	doubt bool
}

// list explains an "or": the alternative that misses the fewest clauses.
func (x *explainer) list(rules []Rule, path string, doubt bool) []filters.Clause {
	var best []filters.Clause
	for i := range rules {
		failed := x.rule(&rules[i], fmt.Sprintf("%s[%d]", path, i), doubt)
		if len(failed) == 0 {
			return nil
		}
		if best == nil || len(failed) < len(best) {
			best = failed
		}
	}
	if best == nil {
		return []filters.Clause{{Path: path, Want: "one of no alternatives"}}
	}
	return best
}

// rule returns what keeps r from matching, nothing if it matches.
func (x *explainer) rule(r *Rule, path string, doubt bool) []filters.Clause {
	switch r.Kind {
	case KindAnd:
		var out []filters.Clause
		for i := range r.Rules {
			out = append(out, x.rule(&r.Rules[i], fmt.Sprintf("%s.and[%d]", path, i), doubt)...)
		}
		return out
	case KindOr:
		return x.list(r.Rules, path+".or", doubt)
	default:
	}
	m, err := compile(r, doubt)
	if err == nil && m(x.in) {
		return nil
	}
	want, have := describe(r, x.in)
	return []filters.Clause{{Path: path, Want: want, Have: have}}
}

// describe says what a rule wants, and what the request has.
func describe(r *Rule, in Input) (want, have string) {
	c := in.Info.Conn
	switch r.Kind {
	case KindAny:
		return "anything", ""
	case KindAnd, KindOr:
		var wants, haves []string
		for i := range r.Rules {
			w, h := describe(&r.Rules[i], in)
			wants = append(wants, w)
			if h != "" && !slices.Contains(haves, h) {
				haves = append(haves, h)
			}
		}
		if len(wants) == 1 {
			return wants[0], strings.Join(haves, ", ")
		}
		return "(" + strings.Join(wants, map[Kind]string{KindAnd: " and ", KindOr: " or "}[r.Kind]) + ")", strings.Join(haves, ", ")
	case KindNot:
		want, have = describe(&r.Rules[0], in)
		return "not " + want, have
	case KindHeader:
		return "header " + strconv.Quote(r.Header.Name) + ": " + describeHeader(&r.Header), haveHeader(in, r.Header.Name)
	case KindPath:
		p, ok := requestPath(in)
		return "path: " + describeString(r.String), quoted(p, ok)
	case KindTemplate:
		p, ok := requestPath(in)
		return fmt.Sprintf("path: template %q", fmt.Sprint(r.Template)), quoted(p, ok)
	case KindPort:
		if r.PortEnd == r.PortStart+1 {
			return fmt.Sprintf("destination port: %d", r.PortStart), strconv.Itoa(int(c.Local.Port()))
		}
		return fmt.Sprintf("destination port: %d to %d", r.PortStart, r.PortEnd-1), strconv.Itoa(int(c.Local.Port()))
	case KindDestinationIP:
		return "destination address: in " + r.Prefix.String(), address(c.Local.Addr().String())
	case KindSourceIP:
		return "source address: in " + r.Prefix.String(), address(c.Remote.Addr().String())
	case KindDirectRemoteIP:
		return "direct remote address: in " + r.Prefix.String(), address(c.DirectRemote.Addr().String())
	case KindRemoteIP:
		return "remote address: in " + r.Prefix.String(), address(c.Remote.Addr().String())
	case KindServerName:
		return "server name (SNI): " + describeString(r.String), quoted(c.RequestedServerName, c.RequestedServerName != "")
	case KindMetadata:
		return describeMetadata(&r.Metadata), haveMetadata(in, &r.Metadata)
	case KindFilterState:
		return describeFilterState(r), haveFilterState(in, r.Key)
	case KindAuthenticated:
		if r.AnyName {
			return "a TLS connection", "plaintext"
		}
		return "peer certificate: " + describeString(r.String), havePeer(in)
	}
	return fmt.Sprintf("rule kind %d", r.Kind), ""
}

func describeString(s String) string {
	m, err := newString(s)
	if err != nil {
		return err.Error()
	}
	return m.Describe()
}

func describeHeader(h *Header) string {
	w := ""
	switch h.Kind {
	case HeaderString:
		w = describeString(h.String)
	case HeaderRange:
		w = fmt.Sprintf("a number from %d to below %d", h.RangeStart, h.RangeEnd)
	case HeaderPresent:
		w = "present"
	case HeaderAbsent:
		w = "absent"
	}
	if h.Invert {
		return "not " + w
	}
	return w
}

func quoted(v string, ok bool) string {
	if !ok {
		return "none"
	}
	return strconv.Quote(v)
}

func address(s string) string {
	if s == "invalid IP" {
		return "unknown"
	}
	return s
}

func haveHeader(in Input, name string) string {
	if in.Request == nil {
		return "none (not HTTP)"
	}
	switch name {
	case "authorization", "cookie", "proxy-authorization":
		if in.Request.Has(name) {
			return "another value (not shown)"
		}
		return "none"
	}
	v, ok := in.Request.Joined(name)
	return quoted(v, ok)
}

// istioPrincipal is the filter-state key of the source identity in a waypoint.
const istioPrincipal = "io.istio.peer_principal"

func describeFilterState(r *Rule) string {
	what := "filter state " + strconv.Quote(r.Key)
	if r.Key == istioPrincipal {
		what = "source identity"
	}
	if r.Prefixes == nil {
		return what + ": " + describeString(r.String)
	}
	in := "in "
	if r.InvertPrefixes {
		in = "not in "
	}
	var ps []string
	for _, p := range r.Prefixes {
		ps = append(ps, p.String())
	}
	return what + ": " + in + strings.Join(ps, ", ")
}

func haveFilterState(in Input, key string) string {
	o := filterState(in, key)
	if o == nil {
		return "none"
	}
	return strconv.Quote(objectString(o))
}

func describeMetadata(m *Metadata) string {
	not := ""
	if m.Invert {
		not = "not "
	}
	return not + "metadata " + m.Namespace + ": " + strings.Join(m.Path, ".") + ": " + describeValue(&m.Value)
}

func describeValue(v *Value) string {
	switch v.Kind {
	case ValueNull:
		return "null"
	case ValueNumber:
		return strconv.FormatFloat(v.Min, 'g', -1, 64)
	case ValueRange:
		return fmt.Sprintf("a number from %g to below %g", v.Min, v.Max)
	case ValueString:
		return describeString(v.String)
	case ValueBool:
		return strconv.FormatBool(v.Bool)
	case ValuePresent:
		return "present"
	case ValueOneOf:
		return "a list with " + describeValue(&v.Values[0])
	case ValueOr:
		var parts []string
		for i := range v.Values {
			parts = append(parts, describeValue(&v.Values[i]))
		}
		return strings.Join(parts, " or ")
	}
	return "?"
}

func haveMetadata(in Input, m *Metadata) string {
	var v any
	var ok bool
	if m.Route {
		v, ok = in.Route.Lookup(m.Namespace, m.Path...)
	} else {
		v, ok = dynamic(in, m.Namespace, m.Path)
	}
	if !ok {
		return "none"
	}
	if s, is := v.(string); is {
		return strconv.Quote(s)
	}
	return fmt.Sprint(v)
}

func havePeer(in Input) string {
	t := in.Info.Conn.TLS
	switch {
	case t == nil:
		return "plaintext"
	case !t.Peer.Present():
		return "no certificate"
	}
	names := append(slices.Clip(t.Peer.URISANs), t.Peer.DNSSANs...)
	if len(names) == 0 {
		return strconv.Quote(t.Peer.Subject)
	}
	return strings.Join(names, ", ")
}
