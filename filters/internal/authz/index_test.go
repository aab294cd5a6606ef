package authz

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// counted is a permission that counts how often it is asked.
type counted struct {
	asked *int
	path  string
}

func (c counted) Match(path string) bool {
	*c.asked++
	return path == c.path
}

// policyShapes are ways to tell policies apart, by the number of the policy,
// with a request for it.
var policyShapes = []struct {
	name string
	rule func(i int) Rule
	edit func(i int, in *Input)
}{
	{"principal", func(i int) Rule {
		return Rule{Kind: KindFilterState, Key: "io.istio.peer_principal", String: String{Text: fmt.Sprintf("spiffe://td/ns/a/sa/%d", i)}}
	}, func(i int, in *Input) { *in = request(fmt.Sprintf("spiffe://td/ns/a/sa/%d", i), in.Request) }},
	{"suffix of the principal", func(i int) Rule {
		return Rule{Kind: KindFilterState, Key: "io.istio.peer_principal", String: String{Kind: matcher.Suffix, Text: fmt.Sprintf("/ns/a/sa/%d", i)}}
	}, func(i int, in *Input) { *in = request(fmt.Sprintf("spiffe://td/ns/a/sa/%d", i), in.Request) }},
	{"namespace", func(i int) Rule {
		return Rule{Kind: KindFilterState, Key: "io.istio.peer_principal", String: String{Kind: matcher.Regex, Text: fmt.Sprintf(".*/ns/n%d/.*", i)}}
	}, func(i int, in *Input) { *in = request(fmt.Sprintf("spiffe://td/ns/n%d/sa/b", i), in.Request) }},
	{"host", func(i int) Rule {
		return Rule{Kind: KindHeader, Header: Header{Name: ":authority", String: String{Text: fmt.Sprintf("h%d.example", i), IgnoreCase: true}}}
	}, func(i int, in *Input) { in.Request.Set(":authority", fmt.Sprintf("H%d.example", i)) }},
	{"another header", func(i int) Rule {
		return Rule{Kind: KindHeader, Header: Header{Name: "x-tenant", String: String{Text: fmt.Sprintf("t%d", i)}}}
	}, func(i int, in *Input) { in.Request.Set("x-tenant", fmt.Sprintf("t%d", i)) }},
	{"claim", func(i int) Rule {
		v := Value{Kind: ValueString, String: String{Text: fmt.Sprintf("i%d", i)}}
		return Rule{Kind: KindMetadata, Metadata: Metadata{Namespace: "envoy.filters.http.jwt_authn", Path: []string{"payload", "iss"}, Value: Value{Kind: ValueOr, Values: []Value{v, {Kind: ValueOneOf, Values: []Value{v}}}}}}
	}, func(i int, in *Input) {
		in.Info.Metadata.Set("envoy.filters.http.jwt_authn", "payload", map[string]any{"iss": []any{"x", fmt.Sprintf("i%d", i)}})
	}},
	{"claim, as istiod writes several values", func(i int) Rule {
		v := Value{Kind: ValueOr, Values: []Value{{Kind: ValueString, String: String{Text: fmt.Sprintf("i%d", i)}}, {Kind: ValueString, String: String{Text: fmt.Sprintf("j%d", i)}}}}
		return Rule{Kind: KindMetadata, Metadata: Metadata{Namespace: "envoy.filters.http.jwt_authn", Path: []string{"payload", "iss"}, Value: Value{Kind: ValueOr, Values: []Value{{Kind: ValueOneOf, Values: []Value{v}}, v}}}}
	}, func(i int, in *Input) {
		in.Info.Metadata.Set("envoy.filters.http.jwt_authn", "payload", map[string]any{"iss": fmt.Sprintf("j%d", i)})
	}},
	{"client address", func(i int) Rule {
		return Rule{Kind: KindRemoteIP, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)}
	}, func(i int, in *Input) {
		in.Info.Conn.Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 7}), 1)
	}},
	{"socket's address", func(i int) Rule {
		return Rule{Kind: KindDirectRemoteIP, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 7}), 32)}
	}, func(i int, in *Input) {
		in.Info.Conn.DirectRemote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 7}), 1)
	}},
	{"port", func(i int) Rule { return Rule{Kind: KindPort, PortStart: uint32(1000 + i), PortEnd: uint32(1001 + i)} }, func(i int, in *Input) {
		in.Info.Conn.Local = netip.AddrPortFrom(in.Info.Conn.Local.Addr(), uint16(1000+i))
	}},
	{"SNI", func(i int) Rule { return Rule{Kind: KindServerName, String: String{Text: fmt.Sprintf("s%d", i)}} }, func(i int, in *Input) {
		in.Info.Conn.RequestedServerName = fmt.Sprintf("s%d", i)
	}},
	{"path", func(i int) Rule {
		return Rule{Kind: KindPath, String: String{Kind: matcher.Prefix, Text: fmt.Sprintf("/p%04d/", i)}}
	}, func(i int, in *Input) { in.Request.Set(":path", fmt.Sprintf("/p%04d/", i)) }},
}

// Whatever tells a thousand policies apart, one request looks at a few of them.
func TestAThousandPoliciesAreNotScanned(t *testing.T) {
	if len(policyShapes) != 12 {
		t.Errorf("%d shapes, want 12", len(policyShapes))
	}
	for _, shape := range policyShapes {
		for _, action := range []Action{Allow, Deny} {
			asked := 0
			rules := &Rules{Action: action}
			const target = 777
			in := request("", header("GET", "a", "/"))
			shape.edit(target, &in)
			for i := range 1000 {
				rules.Policies = append(rules.Policies, Policy{
					Name:        fmt.Sprintf("p%04d", i),
					Permissions: []Rule{{Kind: KindAnd, Rules: []Rule{{Kind: KindTemplate, Template: counted{&asked, in.Request.Get(":path")}}, shape.rule(i)}}},
					Principals:  []Rule{{Kind: KindAny}},
				})
			}
			e, err := New(rules)
			if err != nil {
				t.Fatal(err)
			}
			if d := e.Decide(in); d.Policy != target || asked > 2 {
				t.Errorf("%s, action %d: policy %d, %d of 1000 policies were looked at", shape.name, action, d.Policy, asked)
			}
			if n := testing.AllocsPerRun(50, func() { e.Decide(in) }); n != 0 {
				t.Errorf("%s: %v allocations", shape.name, n)
			}
		}
	}
}

// indexed are n policies that are told apart by rule, in an engine that has an
// index.
func indexed(t *testing.T, a Action, rule func(i int) Rule) *Engine {
	t.Helper()
	r := &Rules{Action: a}
	for i := range 2 * indexFrom {
		r.Policies = append(r.Policies, Policy{Name: fmt.Sprintf("p%02d", i), Permissions: []Rule{rule(i)}, Principals: []Rule{{Kind: KindAny}}})
	}
	e, err := New(r)
	if err != nil || e.index == nil {
		t.Fatal("no index", err)
	}
	return e
}

func TestAnIndexFindsWhatOnlyTheWholeOfARepeatedHeaderIs(t *testing.T) {
	e := indexed(t, Deny, func(i int) Rule {
		return Rule{Kind: KindHeader, Header: Header{Name: "x", String: String{Text: fmt.Sprintf("a,b%d", i)}}}
	})
	in := request("", header("GET", "a", "/", "x", "a", "x", "b7"))
	if d := e.Decide(in); d.Policy != 7 {
		t.Errorf("%+v", d)
	}
}

func TestAnIndexKeepsMetadataOfRoutesAndRequestsApart(t *testing.T) {
	e := indexed(t, Allow, func(i int) Rule {
		v := Value{Kind: ValueString, String: String{Text: fmt.Sprintf("v%d", i)}}
		return Rule{Kind: KindMetadata, Metadata: Metadata{Namespace: "n", Path: []string{"k"}, Value: v, Route: i%2 == 1}}
	})
	for _, c := range []struct{ of, route, want string }{{"v4", "v5", "p04"}, {"v5", "v7", "p07"}, {"v5", "v4", ""}} {
		in := request("", header("GET", "a", "/"))
		in.Info.Metadata.Set("n", "k", c.of)
		md := streaminfo.MetadataFrom(map[string]map[string]any{"n": {"k": c.route}})
		in.Route = &md
		if got := e.PolicyName(e.Decide(in).Policy); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}
