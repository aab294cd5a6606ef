package matcher_test

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func act(name string) matcher.OnMatch { return matcher.OnMatch{Action: name} }

func sub(t *matcher.TreeSpec) matcher.OnMatch { return matcher.OnMatch{Tree: t} }

func prefixes(ps ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// mainInternal is the shape that istiod gives a waypoint's main_internal.
func mainInternal() *matcher.TreeSpec {
	byProtocol := func(http, tcp string) *matcher.TreeSpec {
		onNoMatch := act(tcp)
		return &matcher.TreeSpec{
			Input:     matcher.Input{Kind: matcher.InputApplicationProtocol},
			Exact:     map[string]matcher.OnMatch{"'h2c'": act(http), "'http/1.1'": act(http)},
			OnNoMatch: &onNoMatch,
		}
	}
	port := matcher.Input{Kind: matcher.InputDestinationPort}
	return &matcher.TreeSpec{
		Input: matcher.Input{Kind: matcher.InputDestinationIP},
		IP: []matcher.IPRange{
			{Ranges: prefixes("10.96.1.1/32", "240.240.0.1/32"), OnMatch: sub(&matcher.TreeSpec{Input: port, Exact: map[string]matcher.OnMatch{
				"80": act("vip1-80"), "90": sub(byProtocol("vip1-90-http", "vip1-90-tcp")),
			}})},
			{Ranges: prefixes("10.96.0.0/16"), OnMatch: sub(&matcher.TreeSpec{Input: port, Exact: map[string]matcher.OnMatch{"99": act("wide-99")}})},
			{Ranges: prefixes("10.1.0.0/16", "fd00::/8"), OnMatch: sub(byProtocol("direct-http", "direct-tcp"))},
		},
	}
}

func TestWaypointTree(t *testing.T) {
	tree := must(matcher.CompileTree(mainInternal()))
	if got := strings.Join(tree.Actions(), " "); got != "direct-http direct-tcp vip1-80 vip1-90-http vip1-90-tcp wide-99" {
		t.Error(got)
	}
	for _, c := range []struct {
		dest   string
		protos []string
		want   string
	}{
		{"10.96.1.1:80", nil, "vip1-80"},
		{"[::ffff:10.96.1.1]:80", nil, "vip1-80"},
		{"240.240.0.1:90", []string{"h2c"}, "vip1-90-http"},
		{"10.96.1.1:90", []string{"http/1.1"}, "vip1-90-http"},
		{"10.96.1.1:90", []string{"http/1.0"}, "vip1-90-tcp"},
		{"10.96.1.1:90", []string{"h2c", "http/1.1"}, "vip1-90-tcp"},
		{"10.96.1.1:90", nil, "vip1-90-tcp"},
		{"10.96.1.1:99", nil, "wide-99"}, // the more specific range leads nowhere
		{"10.96.1.1:7", nil, ""},
		{"10.96.2.2:99", nil, "wide-99"},
		{"10.1.2.3:1", []string{"h2c"}, "direct-http"},
		{"[fd00::1]:1", nil, "direct-tcp"},
		{"192.168.0.1:80", nil, ""},
	} {
		conn := &streaminfo.Conn{Local: netip.MustParseAddrPort(c.dest), ApplicationProtocols: c.protos}
		got, ok := tree.Match(conn)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%s %q: %q, want %q", c.dest, c.protos, got, c.want)
		}
		if n := testing.AllocsPerRun(10, func() { tree.Match(conn) }); n != 0 {
			t.Errorf("%s: %v allocations", c.dest, n)
		}
	}
	if _, ok := tree.Match(&streaminfo.Conn{LocalName: "svc.example:80"}); ok {
		t.Error("an address that is no IP matches")
	}
}

func TestInputs(t *testing.T) {
	conn := &streaminfo.Conn{
		Local: netip.MustParseAddrPort("10.0.0.1:80"), Remote: netip.MustParseAddrPort("10.0.0.2:1234"), DirectRemote: netip.MustParseAddrPort("10.0.0.3:5"),
		RequestedServerName: "sni", TransportProtocol: "tls", ApplicationProtocols: []string{"h2", "http/1.1"},
		TLS: &streaminfo.TLS{Peer: streaminfo.Certificate{URISANs: []string{"u1", "u2"}, DNSSANs: []string{"d"}, Subject: "CN=x"}},
	}
	conn.FilterState.Set("k", streaminfo.String("v"), streaminfo.SharingNone)
	conn.FilterState.Set("p", &streaminfo.Peer{Workload: "w"}, streaminfo.SharingNone)
	empty := &streaminfo.Conn{}
	for _, c := range []struct {
		in   matcher.Input
		want string
	}{
		{matcher.Input{Kind: matcher.InputDestinationIP}, "10.0.0.1"},
		{matcher.Input{Kind: matcher.InputDestinationPort}, "80"},
		{matcher.Input{Kind: matcher.InputSourceIP}, "10.0.0.2"},
		{matcher.Input{Kind: matcher.InputSourcePort}, "1234"},
		{matcher.Input{Kind: matcher.InputDirectSourceIP}, "10.0.0.3"},
		{matcher.Input{Kind: matcher.InputServerName}, "sni"},
		{matcher.Input{Kind: matcher.InputTransportProtocol}, "tls"},
		{matcher.Input{Kind: matcher.InputApplicationProtocol}, "'h2','http/1.1'"},
		{matcher.Input{Kind: matcher.InputFilterState, Key: "k"}, "v"},
		{matcher.Input{Kind: matcher.InputFilterState, Key: "p", Field: "workload"}, "w"},
		{matcher.Input{Kind: matcher.InputURISAN}, "u1,u2"},
		{matcher.Input{Kind: matcher.InputDNSSAN}, "d"},
		{matcher.Input{Kind: matcher.InputSubject}, "CN=x"},
	} {
		none := act("none")
		tree := must(matcher.CompileTree(&matcher.TreeSpec{Input: c.in, Exact: map[string]matcher.OnMatch{c.want: act("yes")}, OnNoMatch: &none}))
		if got, _ := tree.Match(conn); got != "yes" {
			t.Errorf("input %d is not %q", c.in.Kind, c.want)
		}
		if got, _ := tree.Match(empty); got != "none" {
			t.Errorf("input %d is there on an empty connection", c.in.Kind)
		}
	}
	local := must(matcher.CompileTree(&matcher.TreeSpec{Input: matcher.Input{Kind: matcher.InputSourceType}, Exact: map[string]matcher.OnMatch{"local": act("yes")}}))
	for remote, want := range map[string]bool{"127.0.0.9:1": true, "10.0.0.1:1": true, "10.0.0.2:1": false, "[::1]:1": true} {
		if _, ok := local.Match(&streaminfo.Conn{Local: conn.Local, Remote: netip.MustParseAddrPort(remote)}); ok != want {
			t.Errorf("source %s is local: %v", remote, ok)
		}
	}
}

func TestListsAndPrefixesFallThrough(t *testing.T) {
	sni := matcher.Input{Kind: matcher.InputServerName}
	port := matcher.Input{Kind: matcher.InputDestinationPort}
	dead := &matcher.TreeSpec{Input: port, Exact: map[string]matcher.OnMatch{"1": act("one")}}
	last := act("last")
	tree := must(matcher.CompileTree(&matcher.TreeSpec{
		List: []matcher.FieldMatch{
			{Predicate: matcher.Predicate{And: []matcher.Predicate{
				{Input: sni, Value: str(matcher.Suffix, ".a")}, {Not: &matcher.Predicate{Input: port, Value: str(matcher.Exact, "2")}},
			}}, OnMatch: sub(dead)},
			{Predicate: matcher.Predicate{Or: []matcher.Predicate{
				{Input: sni, Value: str(matcher.Exact, "x.a")}, {Input: matcher.Input{Kind: matcher.InputSourceIP}, IPs: matcher.NewCIDRSet(prefixes("10.0.0.0/8"))},
			}}, OnMatch: act("second")},
			{Predicate: matcher.Predicate{Input: sni, Value: str(matcher.Prefix, "p")}, OnMatch: sub(&matcher.TreeSpec{Input: sni, Prefix: map[string]matcher.OnMatch{
				"p": act("p"), "pp": sub(dead), "ppp": act("ppp"),
			}})},
		},
		OnNoMatch: &last,
	}))
	for _, c := range []struct {
		sni, dest, src, want string
	}{
		{"z.a", "1.1.1.1:1", "1.1.1.1:1", "one"},
		{"x.a", "1.1.1.1:9", "1.1.1.1:1", "second"}, // the first entry leads nowhere
		{"x.a", "1.1.1.1:2", "1.1.1.1:1", "second"},
		{"z.a", "1.1.1.1:9", "1.1.1.1:1", "last"},
		{"", "1.1.1.1:9", "10.1.1.1:1", "second"},
		{"pppp", "1.1.1.1:9", "1.1.1.1:1", "ppp"},
		{"ppx", "1.1.1.1:1", "1.1.1.1:1", "one"},
		{"ppx", "1.1.1.1:9", "1.1.1.1:1", "p"}, // "pp" leads nowhere
		{"q", "1.1.1.1:9", "1.1.1.1:1", "last"},
	} {
		got, _ := tree.Match(&streaminfo.Conn{RequestedServerName: c.sni, Local: netip.MustParseAddrPort(c.dest), Remote: netip.MustParseAddrPort(c.src)})
		if got != c.want {
			t.Errorf("%+v: got %s", c, got)
		}
	}
}

func TestExclusiveRangesMatchOnlyIfMostSpecific(t *testing.T) {
	dead := sub(&matcher.TreeSpec{Input: matcher.Input{Kind: matcher.InputServerName}, Exact: map[string]matcher.OnMatch{"x": act("x")}})
	tree := must(matcher.CompileTree(&matcher.TreeSpec{Input: matcher.Input{Kind: matcher.InputSourceIP}, IP: []matcher.IPRange{
		{Ranges: prefixes("0.0.0.0/0"), OnMatch: act("all")},
		{Ranges: prefixes("10.0.0.0/8"), OnMatch: act("ten"), Exclusive: true},
		{Ranges: prefixes("10.1.0.0/16"), OnMatch: dead},
		{Ranges: prefixes("10.1.0.0/16"), OnMatch: act("second")}, // same range: after the first
	}}))
	for src, want := range map[string]string{"10.2.0.1:1": "ten", "10.1.0.1:1": "second", "11.0.0.1:1": "all", "[::1]:1": ""} {
		if got, _ := tree.Match(&streaminfo.Conn{Remote: netip.MustParseAddrPort(src)}); got != want {
			t.Errorf("%s: %q, want %q", src, got, want)
		}
	}
}

func TestIPMatcherAgreesWithScanning(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		var ranges []matcher.IPRange
		for i := range 1 + r.IntN(25) {
			o := act(strconv.Itoa(i))
			if r.IntN(3) == 0 { // leads nowhere for most
				o = sub(&matcher.TreeSpec{Input: matcher.Input{Kind: matcher.InputSourcePort}, Exact: map[string]matcher.OnMatch{"1": o}})
			}
			ranges = append(ranges, matcher.IPRange{Ranges: []netip.Prefix{randomPrefix(r)}, OnMatch: o, Exclusive: r.IntN(5) == 0})
		}
		tree := must(matcher.CompileTree(&matcher.TreeSpec{Input: matcher.Input{Kind: matcher.InputSourceIP}, IP: ranges}))
		for range 40 {
			src := netip.AddrPortFrom(randomAddr(r), uint16(1+r.IntN(3)))
			got, _ := tree.Match(&streaminfo.Conn{Remote: src})
			if want := scanIP(ranges, src); got != want {
				t.Fatalf("%v in %+v: %q, want %q", src, ranges, got, want)
			}
		}
	}
}

func scanIP(ranges []matcher.IPRange, src netip.AddrPort) string {
	var hits []matcher.IPRange
	for _, r := range ranges {
		if r.Ranges[0].Masked().Contains(src.Addr()) {
			hits = append(hits, r)
		}
	}
	slices.SortStableFunc(hits, func(a, b matcher.IPRange) int { return b.Ranges[0].Bits() - a.Ranges[0].Bits() })
	for i, h := range hits {
		switch {
		case i > 0 && h.Exclusive:
		case h.OnMatch.Tree == nil:
			return h.OnMatch.Action
		case src.Port() == 1:
			return h.OnMatch.Tree.Exact["1"].Action
		}
	}
	return ""
}

func TestBrokenTreesNameTheField(t *testing.T) {
	sni := matcher.Input{Kind: matcher.InputServerName}
	deep := &matcher.TreeSpec{Input: sni, Exact: map[string]matcher.OnMatch{"a": act("x")}}
	for range 70 {
		deep = &matcher.TreeSpec{Input: sni, Exact: map[string]matcher.OnMatch{"a": sub(deep)}}
	}
	for _, c := range []struct {
		spec *matcher.TreeSpec
		want string
	}{
		{&matcher.TreeSpec{}, "neither branches nor on_no_match"},
		{&matcher.TreeSpec{Exact: map[string]matcher.OnMatch{"a": act("x")}}, "matcher_tree: input"},
		{&matcher.TreeSpec{Input: sni, Exact: map[string]matcher.OnMatch{}, IP: []matcher.IPRange{}}, "more than one"},
		{&matcher.TreeSpec{Input: sni, Exact: map[string]matcher.OnMatch{"a": {}}}, `exact_match_map["a"]: on_match: neither`},
		{&matcher.TreeSpec{Input: sni, Prefix: map[string]matcher.OnMatch{"a": {Action: "x", Tree: deep}}}, `prefix_match_map["a"]: on_match: both`},
		{&matcher.TreeSpec{Input: sni, IP: []matcher.IPRange{{Ranges: []netip.Prefix{{}}, OnMatch: act("x")}}}, "range_matchers[0]: invalid range"},
		{&matcher.TreeSpec{List: []matcher.FieldMatch{{OnMatch: act("x")}}}, "matchers[0]: predicate: input"},
		{&matcher.TreeSpec{List: []matcher.FieldMatch{{Predicate: matcher.Predicate{Input: sni}, OnMatch: act("x")}}}, "no value to match"},
		{&matcher.TreeSpec{OnNoMatch: &matcher.OnMatch{}}, "on_no_match: on_match: neither"},
		{deep, "nested more than"},
	} {
		if _, err := matcher.CompileTree(c.spec); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
}
