package routing_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/routing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// noted is a filter that remembers what it was compiled from.
type noted struct{ overrides []xdsresource.Overrides }

func (*noted) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) { return next.Do(s) }

// last is a terminal filter.
type last struct{}

func (last) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	return s.LocalReply(200, "forwarded", "", 0), nil
}

func chain(overrides []xdsresource.Overrides) ([]filters.HTTPFilter, error) {
	for _, o := range overrides {
		if _, ok := o["bad"]; ok {
			return nil, errors.New("filter bad: doesn't compile")
		}
	}
	return []filters.HTTPFilter{&noted{overrides}, last{}}, nil
}

func overrides(names ...string) xdsresource.Overrides {
	o := xdsresource.Overrides{}
	for _, n := range names {
		o[n] = xdsresource.Override{}
	}
	return o
}

func prefix(p string) xdsresource.RouteMatch {
	return xdsresource.RouteMatch{Path: p, RuntimeFraction: -1}
}

func get(t *testing.T, table *routing.Table, path string) (*routing.Route, *filters.Stream) {
	t.Helper()
	s := newStream()
	s.Request.Add(message.Method, "GET")
	s.Request.Add(message.Scheme, "http")
	s.Request.Add(message.Authority, "x")
	s.Request.Add(message.Path, path)
	r := table.Match(s)
	if r != nil {
		s.SelectRoute(r)
	}
	return r, s
}

func compile(t *testing.T, vh *xdsresource.VirtualHost, rc xdsresource.RouteConfiguration) (*routing.Table, []error) {
	t.Helper()
	if vh.Domains == nil {
		vh.Domains = []string{"*"}
	}
	rc.Name, rc.VirtualHosts = "rc", []*xdsresource.VirtualHost{vh}
	return routing.Compile(&rc, routing.Options{Chain: chain})
}

func TestChainsAreBuiltFromAllLevels(t *testing.T) {
	table, errs := compile(t, &xdsresource.VirtualHost{
		Overrides: overrides("vh"),
		Routes: []*xdsresource.Route{
			{Match: prefix("/w"), Overrides: overrides("route"), Action: &xdsresource.RouteAction{Weighted: []xdsresource.WeightedCluster{{Name: "a", Weight: 1, Overrides: overrides("cluster")}}}},
			{Match: prefix("/"), Action: &xdsresource.RouteAction{Cluster: "b"}},
		},
	}, xdsresource.RouteConfiguration{Overrides: overrides("config")})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	for path, want := range map[string]string{"/w": "config vh route cluster", "/x": "config vh - -"} {
		r, _ := get(t, table, path)
		f, ok := r.Chain()[0].(*noted)
		if !ok || len(r.Chain()) != 2 {
			t.Fatalf("chain %v", r.Chain())
		}
		var got []string
		for _, o := range f.overrides {
			name := "-"
			for n := range o {
				name = n
			}
			got = append(got, name)
		}
		if g := strings.Join(got, " "); g != want {
			t.Errorf("%s: overrides %s, want %s", path, g, want)
		}
	}
}

func TestWhatCannotBeCompiledAnswers500WhereItMatches(t *testing.T) {
	table, errs := compile(t, &xdsresource.VirtualHost{Name: "vh", Routes: []*xdsresource.Route{
		{Name: "chain", Match: prefix("/chain"), Overrides: overrides("bad"), Action: &xdsresource.RouteAction{Cluster: "c"}},
		{Name: "broken", Match: prefix("/broken"), Broken: "cluster_specifier_plugin is not supported"},
		{Name: "weights", Match: prefix("/weights"), Action: &xdsresource.RouteAction{Weighted: []xdsresource.WeightedCluster{{Name: "a"}}}},
		{Name: "nonforwarding", Match: prefix("/nonforwarding"), NonForwarding: true},
		{Name: "rest", Match: prefix("/"), Action: &xdsresource.RouteAction{Cluster: "c"}},
	}}, xdsresource.RouteConfiguration{})
	var text []string
	for _, err := range errs {
		text = append(text, err.Error())
	}
	want := []string{
		"route configuration rc: virtual host vh: routes[0] chain: filter bad: doesn't compile",
		"route configuration rc: virtual host vh: routes[1] broken: cluster_specifier_plugin is not supported",
		"route configuration rc: virtual host vh: routes[2] weights: weighted_clusters: the sum of weights is 0",
	}
	if strings.Join(text, "\n") != strings.Join(want, "\n") {
		t.Errorf("errors:\n%s", strings.Join(text, "\n"))
	}
	for path, c := range map[string]struct {
		status  int
		details string
	}{
		"/chain": {500, "route_not_executable"}, "/broken": {500, "route_not_executable"}, "/weights": {500, "route_not_executable"},
		"/nonforwarding": {404, "route_not_forwarding"}, "/other": {200, ""},
	} {
		r, s := get(t, table, path)
		if r == nil {
			t.Fatalf("%s: a later or no route matched", path)
		}
		resp, err := filters.Start(s)
		if err != nil || resp.Status() != c.status || s.Info.Details != c.details {
			t.Errorf("%s: %v, %d, %q", path, err, resp.Status(), s.Info.Details)
		}
	}
	// Filters with an eye on every stream still run on a broken route.
	if r, _ := get(t, table, "/broken"); len(r.Chain()) != 2 {
		t.Errorf("chain %v", r.Chain())
	}
}

func TestDomainsAreUnique(t *testing.T) {
	for _, ds := range [][]string{{"a", "A"}, {"*", "*"}, {"*.a", "*.a"}, {"a.*", "a.*"}} {
		_, errs := routing.Compile(&xdsresource.RouteConfiguration{Resource: xdsresource.Resource{Name: "rc"}, VirtualHosts: []*xdsresource.VirtualHost{
			{Name: "1", Domains: ds[:1]}, {Name: "2", Domains: ds[1:]},
		}}, routing.Options{})
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), "virtual host 2: domain") {
			t.Errorf("%v: %v", ds, errs)
		}
	}
}

func TestRoutesInheritFromTheVirtualHost(t *testing.T) {
	vhRetry, own := &xdsresource.RetryPolicy{NumRetries: 1}, &xdsresource.RetryPolicy{NumRetries: 7}
	table, _ := compile(t, &xdsresource.VirtualHost{
		RetryPolicy: vhRetry, RequestMirrors: []xdsresource.Mirror{{Cluster: "m1"}},
		Routes: []*xdsresource.Route{
			{Match: prefix("/own"), Action: &xdsresource.RouteAction{Cluster: "c", Retry: own, Mirrors: []xdsresource.Mirror{{Cluster: "m2"}}}},
			{Match: prefix("/"), Action: &xdsresource.RouteAction{
				Weighted: []xdsresource.WeightedCluster{{Name: "w", Weight: 1}},
			}},
		},
	}, xdsresource.RouteConfiguration{})
	r, _ := get(t, table, "/own")
	if r.Retry() != own || r.Mirrors()[0].Cluster != "m2" {
		t.Error("the route's own policies are not used")
	}
	r, _ = get(t, table, "/")
	if r.Retry() != vhRetry || r.Mirrors()[0].Cluster != "m1" {
		t.Error("the virtual host's policies are not used")
	}
}

func TestStreamConditions(t *testing.T) {
	yes, no := true, false
	v, err := matcher.NewString(matcher.Exact, "v", false)
	if err != nil {
		t.Fatal(err)
	}
	md, err := matcher.NewMetadata("ns", []string{"k"}, matcher.StringValue(v), false)
	if err != nil {
		t.Fatal(err)
	}
	fs, err := matcher.NewFilterState("fk", v)
	if err != nil {
		t.Fatal(err)
	}
	mtls := &streaminfo.Conn{TLS: &streaminfo.TLS{Peer: streaminfo.Certificate{Digest: "x"}}}
	oneway := &streaminfo.Conn{TLS: &streaminfo.TLS{}}
	for _, c := range []struct {
		name string
		m    xdsresource.RouteMatch
		prep func(*filters.Stream)
		want bool
	}{
		{"presented", xdsresource.RouteMatch{TLSPresented: &yes}, func(s *filters.Stream) { s.Info.Conn = mtls }, true},
		{"not presented", xdsresource.RouteMatch{TLSPresented: &yes}, func(s *filters.Stream) { s.Info.Conn = oneway }, false},
		{"plain text presents nothing", xdsresource.RouteMatch{TLSPresented: &no}, func(*filters.Stream) {}, true},
		{"validated", xdsresource.RouteMatch{TLSValidated: &yes}, func(s *filters.Stream) { s.Info.Conn = mtls }, true},
		{"metadata", xdsresource.RouteMatch{DynamicMetadata: []matcher.Metadata{md}}, func(s *filters.Stream) { s.Info.Metadata.Set("ns", "k", "v") }, true},
		{"no metadata", xdsresource.RouteMatch{DynamicMetadata: []matcher.Metadata{md}}, func(*filters.Stream) {}, false},
		{"filter state", xdsresource.RouteMatch{FilterState: []matcher.FilterState{fs}}, func(s *filters.Stream) {
			s.Info.FilterState.Set("fk", streaminfo.String("v"), 0)
		}, true},
		{"no filter state", xdsresource.RouteMatch{FilterState: []matcher.FilterState{fs}}, func(*filters.Stream) {}, false},
	} {
		c.m.Path, c.m.RuntimeFraction = "/", -1
		table, _ := compile(t, &xdsresource.VirtualHost{Routes: []*xdsresource.Route{{Match: c.m, Action: &xdsresource.RouteAction{}}}}, xdsresource.RouteConfiguration{})
		s := newStream()
		s.Request.Add(message.Authority, "x")
		s.Request.Add(message.Path, "/")
		c.prep(s)
		if got := table.Match(s) != nil; got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestHashesAreEnvoys(t *testing.T) {
	ttl := 10 * time.Second
	re, err := matcher.NewSubstitution("^u-(.*)$", `\1`)
	if err != nil {
		t.Fatal(err)
	}
	x := xxhash.Sum64String
	seeded := func(seed uint64, s string) uint64 {
		d := xxhash.NewWithSeed(seed)
		_, _ = d.WriteString(s)
		return d.Sum64()
	}
	rot := func(h uint64) uint64 { return h<<1 | h>>63 }
	cookieValue := fmt.Sprintf("%016x", x("10.0.0.9:99"+"10.0.0.1:80"))
	for _, c := range []struct {
		name   string
		p      []xdsresource.HashPolicy
		hash   uint64
		ok     bool
		cookie string
	}{
		{"none", nil, 0, false, ""},
		{"header", []xdsresource.HashPolicy{{Header: "X-User"}}, x("u-7"), true, ""},
		{"missing header", []xdsresource.HashPolicy{{Header: "x-none"}}, 0, false, ""},
		{"rewritten header", []xdsresource.HashPolicy{{Header: "x-user", HeaderRegex: &xdsresource.RegexRewrite{Pattern: re}}}, x("7"), true, ""},
		{"repeated header, sorted", []xdsresource.HashPolicy{{Header: "x-two"}}, seeded(x("a"), "b"), true, ""},
		{"authority", []xdsresource.HashPolicy{{Header: "host"}}, x("h.example"), true, ""},
		{"source ip", []xdsresource.HashPolicy{{SourceIP: true}}, x("10.0.0.9"), true, ""},
		{"query", []xdsresource.HashPolicy{{QueryParameter: "q"}}, x("1"), true, ""},
		{"filter state", []xdsresource.HashPolicy{{FilterState: "k"}}, x("v"), true, ""},
		{"cookie", []xdsresource.HashPolicy{{Cookie: &xdsresource.HashCookie{Name: "id", TTL: &ttl}}}, x("abc"), true, ""},
		{"missing cookie", []xdsresource.HashPolicy{{Cookie: &xdsresource.HashCookie{Name: "no"}}}, 0, false, ""},
		{
			"new cookie",
			[]xdsresource.HashPolicy{{Cookie: &xdsresource.HashCookie{Name: "no", TTL: &ttl, Path: "/p", Attributes: [][2]string{{"SameSite", "Lax"}, {"Secure", ""}}}}},
			x(cookieValue), true, `no="` + cookieValue + `"; Max-Age=10; Path=/p; SameSite=Lax; Secure; HttpOnly`,
		},
		{"two", []xdsresource.HashPolicy{{Header: "x-user"}, {QueryParameter: "q"}}, rot(x("u-7")) ^ x("1"), true, ""},
		{"terminal", []xdsresource.HashPolicy{{Header: "x-user", Terminal: true}, {QueryParameter: "q"}}, x("u-7"), true, ""},
		{"terminal without a hash", []xdsresource.HashPolicy{{Header: "x-none", Terminal: true}, {QueryParameter: "q"}}, x("1"), true, ""},
	} {
		table, _ := compile(t, &xdsresource.VirtualHost{Routes: []*xdsresource.Route{{Match: prefix("/"), Action: &xdsresource.RouteAction{HashPolicy: c.p}}}}, xdsresource.RouteConfiguration{})
		s := newStream()
		for _, kv := range [][2]string{
			{message.Authority, "h.example"}, {message.Path, "/a?q=1&q=2"}, {"x-user", "u-7"}, {"x-two", "b"}, {"x-two", "a"}, {"cookie", `x=y; id="abc"`},
		} {
			s.Request.Add(kv[0], kv[1])
		}
		s.Info.Conn = &streaminfo.Conn{Remote: netip.MustParseAddrPort("10.0.0.9:99"), Local: netip.MustParseAddrPort("10.0.0.1:80")}
		s.Info.FilterState.Set("k", streaminfo.String("v"), 0)
		hash, ok, cookie := table.Match(s).Hash(s)
		if hash != c.hash || ok != c.ok || cookie != c.cookie {
			t.Errorf("%s: %x %v %q, want %x %v %q", c.name, hash, ok, cookie, c.hash, c.ok, c.cookie)
		}
	}
}

func TestAutomaticHostRewriteIsLeftToThePicker(t *testing.T) {
	table, _ := compile(t, &xdsresource.VirtualHost{Routes: []*xdsresource.Route{{
		Match: prefix("/"), Action: &xdsresource.RouteAction{Cluster: "c", HostRewrite: xdsresource.HostRewrite{Auto: true}, AppendXForwardedHost: true},
	}}}, xdsresource.RouteConfiguration{})
	r, s := get(t, table, "/")
	r.FinalizeRequest(s, false)
	if !r.AutoHostRewrite() || s.Request.Get(message.Authority) != "x" {
		t.Error("rewritten too early")
	}
	r.RewriteHost(s, "picked.example", true)
	if s.Request.Get(message.Authority) != "picked.example" || s.Request.Get("x-forwarded-host") != "x" || s.Request.Has("x-envoy-original-host") {
		t.Errorf("%v", s.Request)
	}
}

func TestEnvoyHeadersCanBeSuppressed(t *testing.T) {
	table, _ := compile(t, &xdsresource.VirtualHost{Routes: []*xdsresource.Route{{
		Match: prefix("/a"), Action: &xdsresource.RouteAction{Cluster: "c", HostRewrite: xdsresource.HostRewrite{Literal: "h"}, PrefixRewrite: "/b"},
	}}}, xdsresource.RouteConfiguration{})
	r, s := get(t, table, "/a")
	r.FinalizeRequest(s, true)
	if s.Request.Get(message.Path) != "/b" || s.Request.Has("x-envoy-original-path") || s.Request.Has("x-envoy-original-host") {
		t.Errorf("%v", s.Request)
	}
}

// "/pub../x" by prefix "/pub" to "/" would be "/../x", which no policy has seen.
func TestARewriteMakesNoDotSegments(t *testing.T) {
	table, _ := compile(t, &xdsresource.VirtualHost{Routes: []*xdsresource.Route{
		{Match: prefix("/pub"), Action: &xdsresource.RouteAction{Cluster: "c", PrefixRewrite: "/"}},
	}}, xdsresource.RouteConfiguration{})
	for path, want := range map[string]struct {
		path string
		ok   bool
	}{
		"/pub../x": {"/../x", false}, "/pub./x": {"/./x", false}, "/pub..": {"/..", false}, "/pub.": {"/.", false}, "/pub..?x": {"/..?x", false},
		"/pub.x": {"/.x", true}, "/pub...": {"/...", true}, "/pub..x/y": {"/..x/y", true}, "/pubx?a=/../": {"/x?a=/../", true}, "/pub/../x": {"//../x", true}, "/pub": {"/", true},
	} {
		r, s := get(t, table, path)
		if ok := r.FinalizeRequest(s, true); ok != want.ok || s.Request.Get(message.Path) != want.path {
			t.Errorf("%s: %v, %s", path, ok, s.Request.Get(message.Path))
		}
	}
}
