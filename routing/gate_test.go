package routing_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/routing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// typical is what istiod makes of a VirtualService: a prefix with a rewrite,
// header edits and a weighted split.
func typical(t testing.TB, routes int) *routing.Table {
	t.Helper()
	dynamic, err := format.Compile("%REQ(:METHOD)%-%DOWNSTREAM_REMOTE_ADDRESS%")
	if err != nil {
		t.Fatal(err)
	}
	vh := &xdsresource.VirtualHost{Name: "vh", Domains: []string{"svc.example", "svc.example:*"}}
	for i := range routes {
		vh.Routes = append(vh.Routes, &xdsresource.Route{
			Name:  fmt.Sprint("r", i),
			Match: xdsresource.RouteMatch{Path: fmt.Sprintf("/api/v%d/", i), RuntimeFraction: -1},
			Action: &xdsresource.RouteAction{
				Weighted: []xdsresource.WeightedCluster{{Name: "a", Weight: 90}, {
					Name: "b", Weight: 10,
					RequestHeaders: xdsresource.HeaderMutations{Add: []xdsresource.HeaderMutation{{Name: "x-b", Value: format.Literal("1")}}},
				}},
				PrefixRewrite: "/", HostRewrite: xdsresource.HostRewrite{Literal: "inner.example"}, AppendXForwardedHost: true,
			},
			RequestHeaders: xdsresource.HeaderMutations{
				Remove: []string{"x-secret"},
				Add: []xdsresource.HeaderMutation{
					{Name: "x-static", Value: format.Literal("yes"), Action: xdsresource.OverwriteIfExistsOrAdd},
					{Name: "x-dynamic", Value: dynamic},
				},
			},
			ResponseHeaders: xdsresource.HeaderMutations{Add: []xdsresource.HeaderMutation{{Name: "x-served", Value: dynamic}}},
		})
	}
	table, errs := routing.Compile(&xdsresource.RouteConfiguration{VirtualHosts: []*xdsresource.VirtualHost{vh}}, routing.Options{})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return table
}

func fill(s *filters.Stream, path string) {
	s.Request.Reset()
	s.Request.Add(message.Method, "GET")
	s.Request.Add(message.Scheme, "http")
	s.Request.Add(message.Authority, "Svc.example:8080")
	s.Request.Add(message.Path, path)
	s.Request.Add("user-agent", "curl/8.0")
	s.Request.Add("x-secret", "1")
}

var raceEnabled bool

func TestMatchAndFinalizeAllocateNothing(t *testing.T) {
	table := typical(t, 200)
	s := newStream()
	conn := &streaminfo.Conn{}
	resp := s.NewResponse()
	s.Random = 95
	run := func() {
		fill(s, "/api/v150/users?id=1")
		s.Info.Conn = conn
		r := table.Match(s)
		if r == nil || r.ClusterName() != "b" {
			t.Fatal("wrong route")
		}
		s.SelectRoute(r)
		r.FinalizeRequest(s, false)
		resp.Header.Reset()
		resp.Header.Add(message.Status, "200")
		r.FinalizeResponse(s, resp)
	}
	run()
	if p := s.Request.Get(message.Path); p != "/users?id=1" {
		t.Errorf("path %q", p)
	}
	if n := testing.AllocsPerRun(200, run); n != 0 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
}

// The last of 10,000 routes is found as fast as one of 100, exact ones, prefixes
// and, one after the other but still within the time of a request, expressions.
func TestTenThousandRoutesAreNotScanned(t *testing.T) {
	const n = 10_000
	for _, c := range []struct {
		name string
		kind xdsresource.PathKind
		path string
		each time.Duration
	}{{"prefix", xdsresource.PathPrefix, "/api/v%d/", 20 * time.Microsecond}, {"exact", xdsresource.PathExact, "/api/v%d/", 20 * time.Microsecond}, {"expression", xdsresource.PathRegex, "/api/v%d/[a-z]*", 10 * time.Millisecond}} {
		vh := &xdsresource.VirtualHost{Domains: []string{"*"}}
		for i := range n {
			m := xdsresource.RouteMatch{Kind: c.kind, Path: fmt.Sprintf(c.path, i), RuntimeFraction: -1}
			if c.kind == xdsresource.PathRegex {
				re, err := matcher.NewString(matcher.Regex, m.Path, false)
				if err != nil {
					t.Fatal(err)
				}
				m.Regex = &re
			}
			vh.Routes = append(vh.Routes, &xdsresource.Route{Name: fmt.Sprint("r", i), Match: m, Action: &xdsresource.RouteAction{Weighted: []xdsresource.WeightedCluster{{Name: "a", Weight: 1}}}})
		}
		table, errs := routing.Compile(&xdsresource.RouteConfiguration{VirtualHosts: []*xdsresource.VirtualHost{vh}}, routing.Options{})
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		s := newStream()
		fill(s, fmt.Sprintf("/api/v%d/", n-1))
		best := time.Hour
		for range 20 {
			began := time.Now()
			if r := table.Match(s); r == nil || r.Name() != "r9999" {
				t.Fatalf("%s: got %v", c.name, r)
			}
			best = min(best, time.Since(began))
		}
		t.Logf("%s: the last of %d in %v", c.name, n, best)
		if best > c.each && !raceEnabled {
			t.Errorf("%s: the last of %d routes is found in %v, want at most %v", c.name, n, best, c.each)
		}
	}
}

func BenchmarkMatchOf5000Routes(b *testing.B) {
	table := typical(b, 5000)
	s := newStream()
	fill(s, "/api/v4321/users?id=1")
	b.ReportAllocs()
	for b.Loop() {
		if table.Match(s) == nil {
			b.Fatal("no route")
		}
	}
}

func BenchmarkMatchAndFinalize(b *testing.B) {
	table := typical(b, 3)
	s := newStream()
	s.Info.Conn = &streaminfo.Conn{}
	b.ReportAllocs()
	for b.Loop() {
		fill(s, "/api/v2/users?id=1")
		r := table.Match(s)
		s.SelectRoute(r)
		r.FinalizeRequest(s, false)
	}
}
