package jwtauthn

import (
	"slices"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
)

// Explain verifies tokens as Do does, with the keys that are here: none are
// fetched. It says what became of each provider that is asked for.
func (f *filter) Explain(s *filters.Stream) filters.Explanation {
	f.clean(s)
	if f.c.BypassCORSPreflight && preflight(&s.Request) {
		return filters.Explanation{Verdict: filters.VerdictPass, Text: []string{"a CORS preflight needs no token"}}
	}
	r := f.requirement(s)
	if r == nil {
		return filters.Explanation{Verdict: filters.VerdictPass, Text: []string{"no rule asks for a token"}}
	}
	quiet := *f
	quiet.hit, quiet.miss = nil, nil
	x := filters.Explanation{Verdict: filters.VerdictAllow}
	seen := map[int]bool{}
	f.providersOf(r, func(i int, one *Requirement) {
		if seen[i] {
			return
		}
		seen[i] = true
		v := verification{f: &quiet, s: s, now: time.Now()}
		x.Text = append(x.Text, "provider "+f.providers[i].Name+" (issuer "+f.providers[i].Issuer+"): "+v.run(one).String())
	})
	v := verification{f: &quiet, s: s, now: time.Now()}
	switch st := v.run(r); st {
	case ok:
		v.apply()
	case unfetched:
		x.Verdict = filters.VerdictUnknown
	default:
		x.Verdict, x.Status, x.Details = filters.VerdictDeny, st.code(), st.details()
	}
	return x
}

// providersOf calls yield for every provider below r, each with a requirement
// for it alone.
func (f *filter) providersOf(r *Requirement, yield func(i int, one *Requirement)) {
	switch r.Kind {
	case RequireProvider:
		yield(r.Providers[0], r)
	case AllowMissing, AllowMissingOrFailed:
		for _, i := range r.Providers {
			yield(i, &Requirement{Kind: RequireProvider, Providers: []int{i}})
		}
	case RequireAny, RequireAll:
		for _, c := range r.Children {
			f.providersOf(c, yield)
		}
	case RequireNothing:
	}
}

// names returns the names of the providers below r, joined by commas.
func (f *filter) names(r *Requirement) string {
	var out []string
	f.providersOf(r, func(i int, _ *Requirement) {
		if n := f.providers[i].Name; !slices.Contains(out, n) {
			out = append(out, n)
		}
	})
	return strings.Join(out, ",")
}
