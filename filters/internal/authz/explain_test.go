package authz

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// A policy that does not match has a reason, and one that matches has none.
func TestExplainAgreesWithDecide(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 2))
	matched, missed := 0, 0
	for range 3000 {
		rules := genAll(r)
		e, err := New(rules)
		if err != nil {
			t.Fatal(err)
		}
		in := genInput(r)
		d, ps := e.Explain(in)
		if d != e.Decide(in) {
			t.Fatalf("%+v, but Decide says %+v", d, e.Decide(in))
		}
		want := naive(rules, in)
		var got []string
		for _, p := range ps {
			if p.Matched != (len(p.Failed) == 0) {
				t.Fatalf("policy %s: matched %v, failed clauses %v\n%+v", p.Name, p.Matched, p.Failed, rules)
			}
			if p.Matched {
				got = append(got, p.Name)
				matched++
			} else {
				missed++
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
		n := Nearest(ps)
		if (n == nil) != (len(got) == len(ps)) {
			t.Fatalf("nearest %v of %+v", n, ps)
		}
	}
	if matched < 500 || missed < 500 {
		t.Fatalf("%d policies matched and %d did not: the generator is no test", matched, missed)
	}
}

func TestTheNearestPolicyMissesTheFewestClauses(t *testing.T) {
	and := func(rs ...Rule) Rule { return Rule{Kind: KindAnd, Rules: rs} }
	or := func(rs ...Rule) Rule { return Rule{Kind: KindOr, Rules: rs} }
	method := func(m string) Rule {
		return Rule{Kind: KindHeader, Header: Header{Name: message.Method, String: String{Text: m}}}
	}
	path := func(p string) Rule { return Rule{Kind: KindPath, String: String{Text: p}} }
	who := func(id string) Rule {
		return Rule{Kind: KindFilterState, Key: "io.istio.peer_principal", String: String{Text: id}}
	}
	rules := &Rules{Policies: []Policy{
		{Name: "far", Permissions: []Rule{and(method("PUT"), path("/c"))}, Principals: []Rule{who("x")}},
		{Name: "near", Permissions: []Rule{and(or(method("GET"), method("HEAD")), path("/b"))}, Principals: []Rule{who("spiffe://a/ns/b/sa/c")}},
		{Name: "who", Permissions: []Rule{and(method("POST"), path("/b"))}, Principals: []Rule{who("y"), who("z")}},
	}}
	e, err := New(rules)
	if err != nil {
		t.Fatal(err)
	}
	_, ps := e.Explain(request("spiffe://a/ns/b/sa/c", header("POST", "h", "/b")))
	want := &filters.PolicyExplanation{Name: "near", Action: "allow", Failed: []filters.Clause{
		{Path: "permissions[0].and[0].or[0]", Want: `header ":method": exactly "GET"`, Have: `"POST"`},
	}}
	if d := cmp.Diff(want, Nearest(ps)); d != "" {
		t.Error(d)
	}
}

func TestExplainingCountsNothingAndPublishesWhatLaterFiltersRead(t *testing.T) {
	reg := &stats.Registry{}
	rules := one(Deny, Rule{Kind: KindAny})
	shadow, err := NewRecorder(rules, RecorderOptions{Namespace: "ns", StatRoot: "envoy_http_", Kind: Shadow, Prefix: "p_", PerRule: true}, reg.Scope(""))
	if err != nil {
		t.Fatal(err)
	}
	in := request("", header("GET", "h", "/"))
	x := filters.Explanation{Verdict: filters.VerdictPass}
	shadow.Explain(in, &x)
	if x.Verdict != filters.VerdictPass || len(x.Policies) != 1 || !x.Policies[0].Shadow || !x.Policies[0].Matched {
		t.Errorf("%+v", x)
	}
	if v, _ := in.Info.Metadata.Lookup("ns", "p_shadow_engine_result"); v != "denied" {
		t.Errorf("metadata %v", in.Info.Metadata.Namespaces())
	}
	var b strings.Builder
	if err := reg.WritePrometheusUsed(&b, func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if b.Len() > 0 {
		t.Errorf("counted:\n%s", b.String())
	}
}

func TestCredentialsAreNotShown(t *testing.T) {
	rules := one(Allow, Rule{Kind: KindHeader, Header: Header{Name: "authorization", String: String{Text: "x"}}})
	e, err := New(rules)
	if err != nil {
		t.Fatal(err)
	}
	_, ps := e.Explain(request("", header("GET", "h", "/", "authorization", "Bearer hush")))
	if have := ps[0].Failed[0].Have; strings.Contains(have, "hush") {
		t.Errorf("shows %q", have)
	}
}
