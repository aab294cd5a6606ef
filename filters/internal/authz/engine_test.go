package authz

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	rbacv3pb "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func checkAgainstNaive(t *testing.T, rules *Rules, e *Engine, in Input) (matched bool) {
	t.Helper()
	want := naive(rules, in)
	got := e.Decide(in)
	name := ""
	if len(want) > 0 {
		name = want[0]
	}
	if e.PolicyName(got.Policy) != name {
		t.Fatalf("effective policy %q, the naive evaluator says %q\nrules: %+v\ninput: %+v %+v", e.PolicyName(got.Policy), name, rules, in.Info.Conn, in.Request)
	}
	allowed := map[Action]bool{Allow: name != "", Deny: name == "", Log: true}[rules.Action]
	if got.Allowed != allowed {
		t.Fatalf("allowed = %v with policy %q and action %d", got.Allowed, name, rules.Action)
	}
	return name != ""
}

func TestEngineAgreesWithTheNaiveEvaluator(t *testing.T) {
	const sets, requests = 3000, 40
	r := rand.New(rand.NewPCG(1, 2))
	pairs, hits := 0, 0
	for range sets {
		rules := genAll(r)
		e, err := New(rules)
		if err != nil {
			t.Fatal(err)
		}
		for range requests {
			if checkAgainstNaive(t, rules, e, genInput(r)) {
				hits++
			}
			pairs++
		}
	}
	if pairs != 120_000 {
		t.Fatalf("%d pairs, want 120000", pairs)
	}
	if hits < pairs/20 || hits > pairs*19/20 {
		t.Fatalf("%d of %d pairs match a policy: the generator is one-sided", hits, pairs)
	}
	t.Logf("%d pairs, %d with a matching policy", pairs, hits)
}

func FuzzEngineAgreesWithTheNaiveEvaluator(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		r := rand.New(rand.NewPCG(a, b))
		rules := genAll(r)
		e, err := New(rules)
		if err != nil {
			t.Fatal(err)
		}
		for range 8 {
			checkAgainstNaive(t, rules, e, genInput(r))
		}
	})
}

func FuzzDecodeRules(f *testing.F) {
	seed, _ := proto.Marshal(&rbacv3pb.RBAC{Policies: map[string]*rbacv3pb.Policy{"p": {
		Permissions: []*rbacv3pb.Permission{{Rule: &rbacv3pb.Permission_Any{Any: true}}},
		Principals:  []*rbacv3pb.Principal{{Identifier: &rbacv3pb.Principal_Any{Any: true}}},
	}}})
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &rbacv3pb.RBAC{}
		if proto.Unmarshal(b, m) != nil {
			return
		}
		r, err := DecodeRules(m, "rules", nil)
		if err != nil {
			return
		}
		e, err := New(r)
		if err != nil {
			t.Fatalf("decoded rules do not compile: %v", err)
		}
		h := header("GET", "a", "/x")
		e.Decide(Input{Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}, Request: h})
		e.Decide(Input{Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}})
	})
}

func header(method, authority, path string, kv ...string) *message.Header {
	h := &message.Header{}
	h.Add(message.Method, method)
	h.Add(message.Authority, authority)
	h.Add(message.Path, path)
	for i := 0; i < len(kv); i += 2 {
		h.Add(kv[i], kv[i+1])
	}
	return h
}

func request(principal string, h *message.Header) Input {
	c := &streaminfo.Conn{Local: netip.MustParseAddrPort("10.96.1.1:9080"), Remote: netip.MustParseAddrPort("10.0.0.1:1"), DirectRemote: netip.MustParseAddrPort("10.0.0.1:1")}
	if principal != "" {
		c.FilterState.Set("io.istio.peer_principal", streaminfo.String(principal), streaminfo.SharingNone)
	}
	in := Input{Info: &streaminfo.Info{Conn: c}, Request: h}
	in.Info.FilterState.Reset(&c.FilterState)
	return in
}

func one(a Action, r Rule) *Rules {
	return &Rules{Action: a, Policies: []Policy{{Name: "p", Permissions: []Rule{r}, Principals: []Rule{{Kind: KindAny}}}}}
}

func TestRepeatedHeadersCannotBypassAPolicy(t *testing.T) {
	exact := func(v string) Rule {
		return Rule{Kind: KindHeader, Header: Header{Name: "x-role", String: String{Kind: matcher.Exact, Text: v}}}
	}
	not := func(r Rule) Rule { return Rule{Kind: KindNot, Rules: []Rule{r}} }
	for _, tc := range []struct {
		name    string
		rules   *Rules
		values  []string
		allowed bool
	}{
		{"deny fires on the second of two fields", one(Deny, exact("admin")), []string{"user", "admin"}, false},
		{"deny fires on an element of a list", one(Deny, exact("admin")), []string{"user,admin"}, false},
		{"deny fires on a list with a trailing comma", one(Deny, exact("admin")), []string{"admin,"}, false},
		{"deny fires on the joined value", one(Deny, exact("a,b")), []string{"a", "b"}, false},
		{"deny lets another value pass", one(Deny, exact("admin")), []string{"user", "guest"}, true},
		{"allow needs every field", one(Allow, exact("user")), []string{"user", "admin"}, false},
		{"allow of a list is not an allow of its element", one(Allow, exact("user")), []string{"user,admin"}, false},
		{"allow passes equal fields", one(Allow, exact("user")), []string{"user", "user"}, true},
		{"allow with an empty first field is refused", one(Allow, exact("user")), []string{"", "user"}, false},
		{"allow unless admin refuses a hidden admin", one(Allow, not(exact("admin"))), []string{"user", "admin"}, false},
		{"deny unless user refuses a mixture", one(Deny, not(exact("user"))), []string{"user", "admin"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, err := New(tc.rules)
			if err != nil {
				t.Fatal(err)
			}
			h := header("GET", "a", "/")
			for _, v := range tc.values {
				h.Add("x-role", v)
			}
			if got := e.Decide(request("", h)).Allowed; got != tc.allowed {
				t.Errorf("allowed = %v", got)
			}
		})
	}
}

func TestMatchDetails(t *testing.T) {
	ip := func(k Kind, p string) Rule { return Rule{Kind: k, Prefix: netip.MustParsePrefix(p)} }
	str := func(k Kind, s String) Rule { return Rule{Kind: k, String: s} }
	base := func() Input { return request("spiffe://td/ns/a/sa/b", header("GET", "Host.Example", "/a/b?c=/admin")) }
	for _, tc := range []struct {
		name  string
		rule  Rule
		edit  func(in *Input)
		allow bool // ALLOW with this rule admits
		deny  bool // DENY with this rule admits
	}{
		{"the query is not part of the path", str(KindPath, String{Kind: matcher.Suffix, Text: "/admin"}), nil, false, true},
		{"a regex matches the whole string", str(KindPath, String{Kind: matcher.Regex, Text: "a"}), nil, false, true},
		{"IPv4-mapped addresses are IPv4", ip(KindRemoteIP, "10.0.0.0/8"), func(in *Input) { in.Info.Conn.Remote = netip.MustParseAddrPort("[::ffff:10.1.1.1]:5") }, true, false},
		{"an unknown address neither grants nor escapes", ip(KindDestinationIP, "10.0.0.0/8"), func(in *Input) { in.Info.Conn.Local = netip.AddrPort{} }, false, false},
		{"not of an unknown address neither grants nor escapes", Rule{Kind: KindNot, Rules: []Rule{ip(KindDestinationIP, "10.0.0.0/8")}}, func(in *Input) { in.Info.Conn.Local = netip.AddrPort{} }, false, false},
		{"source_ip cannot be granted by x-forwarded-for", ip(KindSourceIP, "192.0.2.0/24"), func(in *Input) { in.Info.Conn.Remote = netip.MustParseAddrPort("192.0.2.1:1") }, false, false},
		{"only the URI SAN grants if there is one", str(KindAuthenticated, String{Text: "dns.example"}), func(in *Input) {
			in.Info.Conn.TLS = &streaminfo.TLS{Peer: streaminfo.Certificate{URISANs: []string{"spiffe://x"}, DNSSANs: []string{"dns.example"}}}
		}, false, false},
		{"no TLS is not authenticated", Rule{Kind: KindAuthenticated, AnyName: true}, nil, false, true},
		{"a header match on TCP sees no header", Rule{Kind: KindHeader, Header: Header{Name: ":method", String: String{Text: "GET"}}}, func(in *Input) { in.Request = nil }, false, true},
		{"hosts compare without case", Rule{Kind: KindHeader, Header: Header{Name: ":authority", String: String{Text: "HOST.example", IgnoreCase: true}}}, nil, true, false},
		{"an inverted match of an absent header does not match", Rule{Kind: KindHeader, Header: Header{Name: "x", Invert: true, String: String{Text: "y"}}}, nil, false, true},
		{"a principal of a connection is seen by its streams", str(KindFilterState, String{}), func(in *Input) {}, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for action, want := range map[Action]bool{Allow: tc.allow, Deny: tc.deny} {
				e, err := New(one(action, tc.rule))
				if err != nil {
					t.Fatal(err)
				}
				in := base()
				if tc.edit != nil {
					tc.edit(&in)
				}
				if got := e.Decide(in).Allowed; got != want {
					t.Errorf("action %d: allowed = %v", action, got)
				}
			}
		})
	}
}

func TestNoPolicies(t *testing.T) {
	in := request("", header("GET", "a", "/"))
	for a, want := range map[Action]bool{Allow: false, Deny: true, Log: true} {
		e, err := New(&Rules{Action: a})
		if err != nil {
			t.Fatal(err)
		}
		if d := e.Decide(in); d.Allowed != want || d.Policy != -1 {
			t.Errorf("action %d without policies: %+v", a, d)
		}
	}
	var none *Engine
	if d := none.Decide(in); !d.Allowed {
		t.Error("no rules must allow")
	}
	if got := ResponseDetails("a b  c"); got != "rbac_access_denied_matched_policy[a_b_c]" {
		t.Error(got)
	}
}

// istioRules are n policies as istiod writes them: principal, namespace, path
// and method.
func istioRules(n int) *Rules {
	out := &Rules{}
	for i := range n {
		p := Policy{
			Name: fmt.Sprintf("ns[app]-policy[p%04d]-rule[0]", i),
			Permissions: []Rule{{Kind: KindAnd, Rules: []Rule{
				{Kind: KindOr, Rules: []Rule{{Kind: KindHeader, Header: Header{Name: ":method", String: String{Text: "GET"}}}}},
				{Kind: KindOr, Rules: []Rule{{Kind: KindPath, String: String{Kind: matcher.Prefix, Text: fmt.Sprintf("/svc%d/", i)}}}},
			}}},
			Principals: []Rule{{Kind: KindAnd, Rules: []Rule{{Kind: KindOr, Rules: []Rule{
				{Kind: KindFilterState, Key: "io.istio.peer_principal", String: String{Text: fmt.Sprintf("spiffe://cluster.local/ns/app/sa/sa%d", i)}},
				{Kind: KindFilterState, Key: "io.istio.peer_principal", String: String{Kind: matcher.Regex, Text: fmt.Sprintf(".*/ns/n%d/.*", i)}},
			}}}}},
		}
		out.Policies = append(out.Policies, p)
	}
	return out
}

func TestDecideDoesNotAllocate(t *testing.T) {
	for _, n := range []int{1, 1000} {
		e, err := New(istioRules(n))
		if err != nil {
			t.Fatal(err)
		}
		hit := request(fmt.Sprintf("spiffe://cluster.local/ns/app/sa/sa%d", n-1), header("GET", "a", fmt.Sprintf("/svc%d/x?y", n-1)))
		miss := request("spiffe://cluster.local/ns/other/sa/none", header("GET", "a", "/nothing"))
		if !e.Decide(hit).Allowed || e.Decide(miss).Allowed {
			t.Fatal("wrong decision")
		}
		if a := testing.AllocsPerRun(200, func() { e.Decide(hit); e.Decide(miss) }); a != 0 {
			t.Errorf("%d policies: %v allocations", n, a)
		}
	}
}

func TestAThousandPoliciesCostAboutAsMuchAsOne(t *testing.T) {
	if testing.Short() {
		t.Skip("timing")
	}
	cost := func(n int) time.Duration {
		e, err := New(istioRules(n))
		if err != nil {
			t.Fatal(err)
		}
		in := request(fmt.Sprintf("spiffe://cluster.local/ns/app/sa/sa%d", n/2), header("GET", "a", fmt.Sprintf("/svc%d/x", n/2)))
		best := time.Hour
		for range 20 {
			start := time.Now()
			for range 2000 {
				e.Decide(in)
			}
			best = min(best, time.Since(start)/2000)
		}
		return best
	}
	one, thousand := cost(1), cost(1000)
	t.Logf("1 policy: %v, 1000 policies: %v", one, thousand)
	if thousand > 6*one+time.Microsecond { // the goal is 3x; the rest is for busy machines
		t.Errorf("1000 policies cost %v, one costs %v", thousand, one)
	}
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			e, err := New(istioRules(n))
			if err != nil {
				b.Fatal(err)
			}
			in := request(fmt.Sprintf("spiffe://cluster.local/ns/app/sa/sa%d", n/2), header("GET", "a", fmt.Sprintf("/svc%d/x", n/2)))
			b.ReportAllocs()
			for b.Loop() {
				e.Decide(in)
			}
		})
	}
}
