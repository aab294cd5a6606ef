package routing_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/sweep"
	"github.com/fairlead-mesh/fairlead/routing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// reference selects a virtual host and a route by the words of Envoy's
// documentation, scanning everything.
func reference(rc *xdsresource.RouteConfiguration, s *filters.Stream) (*xdsresource.VirtualHost, *xdsresource.Route) {
	host := strings.ToLower(s.Request.Get(message.Authority))
	if rc.IgnorePortInHost {
		if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
			host = host[:i]
		}
	}
	var best *xdsresource.VirtualHost
	rank := -1 // exact 3000, suffix 2000+length, prefix 1000+length, any 0
	for _, vh := range rc.VirtualHosts {
		for _, d := range vh.Domains {
			r := -1
			switch rest := strings.Trim(d, "*"); {
			case d == "*":
				r = 0
			case strings.HasPrefix(d, "*") && strings.HasSuffix(host, rest) && len(host) > len(rest):
				r = 2000 + len(rest)
			case strings.HasPrefix(d, "*"):
			case strings.HasSuffix(d, "*") && strings.HasPrefix(host, rest) && len(host) > len(rest):
				r = 1000 + len(rest)
			case d == host && host != "":
				r = 3000
			}
			if r > rank {
				best, rank = vh, r
			}
		}
	}
	if best == nil {
		return nil, nil
	}
	target, has := s.Request.Lookup(message.Path)
	path, query, _ := strings.Cut(target, "?")
	for _, r := range best.Routes {
		if referenceMatch(&r.Match, s, path, query, has) {
			return best, r
		}
	}
	return best, nil
}

func referenceMatch(m *xdsresource.RouteMatch, s *filters.Stream, path, query string, has bool) bool {
	want := m.Path
	if m.IgnoreCase && m.Kind != xdsresource.PathRegex {
		path, want = strings.ToLower(path), strings.ToLower(want)
	}
	var ok bool
	switch m.Kind {
	case xdsresource.PathPrefix:
		ok = has && strings.HasPrefix(path, want)
	case xdsresource.PathExact:
		ok = has && path == want
	case xdsresource.PathSeparatedPrefix:
		ok = has && (path == want || strings.HasPrefix(path, want+"/"))
	case xdsresource.PathRegex:
		ok = has && m.Regex.Match(path)
	case xdsresource.PathTemplate:
		ok = has && m.Template.Match(path)
	case xdsresource.PathConnect:
		ok = s.Request.Get(message.Method) == "CONNECT"
	}
	for i := range m.Headers {
		ok = ok && m.Headers[i].Match(&s.Request)
	}
	for i := range m.Query {
		ok = ok && m.Query[i].Match(query)
	}
	return ok
}

// generator makes configurations and requests that often meet.
type generator struct{ *rand.Rand }

func (g generator) pick(of ...string) string { return of[g.IntN(len(of))] }

func (g generator) path() string {
	var b strings.Builder
	for range 1 + g.IntN(4) {
		b.WriteString(g.pick("/", "/a", "/b", "/ab", "/abc", "/A", "/c/d"))
	}
	return b.String()
}

// regexes are those that were compiled already: compiling takes longer than the
// rest of a table.
var regexes sync.Map

func regexOf(t testing.TB, src string) *matcher.String {
	t.Helper()
	if re, ok := regexes.Load(src); ok {
		return re.(*matcher.String)
	}
	re, err := matcher.NewString(matcher.Regex, src, false)
	if err != nil {
		t.Fatal(err)
	}
	regexes.Store(src, &re)
	return &re
}

func (g generator) routes(t testing.TB, n int) []*xdsresource.Route {
	t.Helper()
	var rs []*xdsresource.Route
	for i := range n {
		m := xdsresource.RouteMatch{Path: g.path(), RuntimeFraction: -1, IgnoreCase: g.IntN(8) == 0}
		switch g.IntN(10) {
		case 0, 1, 2, 3:
			m.Kind = xdsresource.PathPrefix
		case 4, 5:
			m.Kind = xdsresource.PathExact
		case 6, 7:
			m.Kind = xdsresource.PathSeparatedPrefix
			m.Path = strings.TrimSuffix(m.Path, "/")
		case 8:
			m.Kind = xdsresource.PathRegex
			m.Regex = regexOf(t, m.Path+"(/a)*")
		case 9:
			m.Kind = xdsresource.PathConnect
		}
		if g.IntN(4) == 0 {
			v, _ := matcher.NewString(matcher.Exact, g.pick("1", "2"), false)
			h, err := matcher.NewHeader(matcher.HeaderSpec{Name: "x-h", String: &v, Invert: g.IntN(4) == 0})
			if err != nil {
				t.Fatal(err)
			}
			m.Headers = append(m.Headers, h)
		}
		if g.IntN(6) == 0 {
			q, err := matcher.NewQueryParameter("q", nil, g.IntN(2) == 0)
			if err != nil {
				t.Fatal(err)
			}
			m.Query = append(m.Query, q)
		}
		rs = append(rs, &xdsresource.Route{Name: fmt.Sprint(i), Match: m, Action: &xdsresource.RouteAction{Cluster: "c"}})
	}
	return rs
}

var domains = []string{
	"a.example", "b.example", "a.example:80", "*.example", "*", "*-x.example", "a.*", "a.example:*", "*a.example", "b.*", "[::1]:80", "*.b.example",
}

func (g generator) config(t testing.TB) *xdsresource.RouteConfiguration {
	t.Helper()
	rc := &xdsresource.RouteConfiguration{IgnorePortInHost: g.IntN(3) == 0}
	free := append([]string(nil), domains...)
	g.Shuffle(len(free), func(i, j int) { free[i], free[j] = free[j], free[i] })
	for i := range 1 + g.IntN(4) {
		n := 1 + g.IntN(3)
		rc.VirtualHosts = append(rc.VirtualHosts, &xdsresource.VirtualHost{Name: fmt.Sprint(i), Domains: free[:n], Routes: g.routes(t, g.IntN(40))})
		free = free[n:]
	}
	return rc
}

func (g generator) request(s *filters.Stream) {
	s.Reset()
	s.Random = g.Uint64()
	m := "GET"
	if g.IntN(8) == 0 {
		m = "CONNECT"
	}
	s.Request.Add(message.Method, m)
	s.Request.Add(message.Authority, g.pick("a.example", "A.Example:80", "b.example", "c-x.example", "q.b.example", "[::1]:80", "other", ".example", "a.example:99", ""))
	if m == "GET" || g.IntN(2) == 0 {
		p := g.path()
		if g.IntN(3) == 0 {
			p += g.pick("?", "?q", "?q=1", "?p=1&q=2")
		}
		s.Request.Add(message.Path, p)
	}
	if g.IntN(2) == 0 {
		s.Request.Add("x-h", g.pick("1", "2"))
	}
}

func newStream() *filters.Stream {
	s := &filters.Stream{}
	s.Reset()
	return s
}

func compareWithReference(t *testing.T, seed1, seed2 uint64) {
	t.Helper()
	g := generator{rand.New(rand.NewPCG(seed1, seed2))}
	rc := g.config(t)
	table, errs := routing.Compile(rc, routing.Options{})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	s := newStream()
	for range 20 {
		g.request(s)
		vh, want := reference(rc, s)
		got := table.Match(s)
		switch {
		case want == nil && got == nil:
		case want == nil || got == nil || got.Config != want || got.VirtualHost != vh:
			t.Fatalf("%v %v%v: got %s, want %s", s.Request.Get(message.Method), s.Request.Get(message.Authority), s.Request.Get(message.Path), show(got), showRoute(vh, want))
		}
	}
}

func show(r *routing.Route) string {
	if r == nil {
		return "nothing"
	}
	return showRoute(r.VirtualHost, r.Config)
}

func showRoute(vh *xdsresource.VirtualHost, r *xdsresource.Route) string {
	if r == nil {
		return "nothing"
	}
	return fmt.Sprintf("virtual host %s %v, route %s %+v", vh.Name, vh.Domains, r.Name, r.Match)
}

func TestIndexAgreesWithTheReference(t *testing.T) {
	for i := range uint64(1800) {
		compareWithReference(t, i, 1)
	}
}

// FuzzMatchAgreesWithTheReference: a random table routes random requests as a
// linear reference does.
func FuzzMatchAgreesWithTheReference(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(sweep.Around(f, compareWithReference))
}

func TestDeepPrefixesFallBackToScanning(t *testing.T) {
	var rs []*xdsresource.Route
	p := ""
	never, _ := matcher.NewHeader(matcher.HeaderSpec{Name: "never"})
	for i := range 60 {
		p += "/a"
		rs = append(rs, &xdsresource.Route{Name: fmt.Sprint(i), Match: xdsresource.RouteMatch{Path: p, RuntimeFraction: -1, Headers: []matcher.Header{never}}, Action: &xdsresource.RouteAction{}})
	}
	rs[59].Match.Headers = nil
	table, _ := routing.Compile(&xdsresource.RouteConfiguration{VirtualHosts: []*xdsresource.VirtualHost{{Domains: []string{"*"}, Routes: rs}}}, routing.Options{})
	s := newStream()
	s.Request.Add(message.Authority, "x")
	s.Request.Add(message.Path, p+"/b")
	if r := table.Match(s); r == nil || r.Name() != "59" {
		t.Errorf("got %s", show(r))
	}
}
