package alpn

import (
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/filters/internal/explaintest"
	"github.com/fairlead-mesh/fairlead/filters/internal/filterobjects"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// config is what istiod sends to a gateway.
const config = `{"alpnOverride":[{"alpnOverride":["istio-http/1.0","istio","http/1.0"]},{"alpnOverride":["istio-http/1.1","istio","http/1.1"],"upstreamProtocol":"HTTP11"},{"alpnOverride":["istio-h2","istio","h2"],"upstreamProtocol":"HTTP2"}]}`

type manager struct {
	filters.Upstreams
	md      streaminfo.Metadata
	version message.Version
}

func (m *manager) ClusterMetadata(string) *streaminfo.Metadata { return &m.md }

func (m *manager) HTTPVersion(string, message.Version) message.Version { return m.version }

type route struct {
	filters.Route
	cluster string
}

func (r route) ClusterName() string { return r.cluster }

type terminal struct{ offered string }

func (u *terminal) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	u.offered = s.Info.FilterState.GetString(filterobjects.ApplicationProtocols)
	return s.NewResponse(), nil
}

func compile(tb testing.TB, doc string, m *manager) filters.HTTPFilter {
	tb.Helper()
	d := &filters.Decoding{}
	c, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(doc)}, d)
	if err != nil || len(d.Ignored()) != 0 {
		tb.Fatalf("%v %v", err, d.Ignored())
	}
	f, err := Factory{}.Compile(&filters.Env{Upstreams: m}, c, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

func TestOffersWhatIsListedForTheUpstreamProtocol(t *testing.T) {
	for _, tc := range []struct {
		name, doc, cluster string
		version            message.Version
		override           any
		want               string
	}{
		{"HTTP/1.1", config, "c", message.HTTP11, nil, "istio-http/1.1,istio,http/1.1"},
		{"HTTP/2", config, "c", message.HTTP2, nil, "istio-h2,istio,h2"},
		{"the cluster says no", config, "c", message.HTTP2, "false", ""},
		{"the cluster says something else", config, "c", message.HTTP2, "true", "istio-h2,istio,h2"},
		{"the cluster says false as a boolean, which Envoy doesn't read", config, "c", message.HTTP2, false, "istio-h2,istio,h2"},
		{"nothing listed for HTTP/2", `{"alpnOverride":[{"alpnOverride":["a"],"upstreamProtocol":"HTTP11"}]}`, "c", message.HTTP2, nil, ""},
		{"nothing listed for HTTP/1.1", `{"alpnOverride":[{"alpnOverride":["a"],"upstreamProtocol":"HTTP2"}]}`, "c", message.HTTP11, nil, ""},
		{"the first entry of a protocol holds", `{"alpnOverride":[{"alpnOverride":["a"],"upstreamProtocol":"HTTP2"},{"alpnOverride":["b"],"upstreamProtocol":"HTTP2"}]}`, "c", message.HTTP2, nil, "a"},
		{"a route without cluster", config, "", message.HTTP2, nil, ""},
		{"an unknown cluster", config, "c", 0, nil, ""},
	} {
		m := &manager{version: tc.version}
		if tc.override != nil {
			m.md.Set("istio", "alpn_override", tc.override)
		}
		f := compile(t, tc.doc, m)
		s := &filters.Stream{}
		s.Reset()
		s.Info.Conn = &streaminfo.Conn{}
		s.Route = route{cluster: tc.cluster}
		q := explaintest.Ask(t, f, s)
		u := &terminal{}
		s.SetChain([]filters.HTTPFilter{f, u})
		if _, err := filters.Start(s); err != nil {
			t.Fatal(err)
		}
		q.Agrees(t, s, true, nil)
		if u.offered != tc.want {
			t.Errorf("%s: offers %q, want %q", tc.name, u.offered, tc.want)
		}
		if told := strings.Join(q.Explanation().Text, ""); strings.HasSuffix(told, tc.want) != true || (tc.want == "") != (told == "") {
			t.Errorf("%s: explains %q", tc.name, told)
		}
	}
}

func TestWithoutRouteOrListsNothingIsReplaced(t *testing.T) {
	if f := compile(t, `{}`, &manager{}); f != nil {
		t.Errorf("%v", f)
	}
	f := compile(t, config, &manager{version: message.HTTP2})
	s := &filters.Stream{}
	s.Reset()
	u := &terminal{}
	s.SetChain([]filters.HTTPFilter{f, u})
	if _, err := filters.Start(s); err != nil || u.offered != "" {
		t.Errorf("%v, offers %q without a route", err, u.offered)
	}
}

func TestNamesThatAreNoneAreRefused(t *testing.T) {
	for _, doc := range []string{
		`{"alpnOverride":[{"alpnOverride":[""]}]}`,
		`{"alpnOverride":[{"alpnOverride":["a,b"]}]}`,
		`{"alpnOverride":[{"alpnOverride":["` + strings.Repeat("a", 256) + `"]}]}`,
		`{"alpnOverride":[{"alpnOverride":[` + strings.Repeat(`"`+strings.Repeat("a", 255)+`",`, 256) + `"a"]}]}`,
		`{"alpnOverride":[{"upstreamProtocol":9}]}`,
	} {
		if _, err := (Factory{}).Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(doc)}, nil); err == nil {
			t.Errorf("%.80s is accepted", doc)
		}
	}
}

func TestARequestDoesNotAllocate(t *testing.T) {
	f := compile(t, config, &manager{version: message.HTTP11})
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	s.Route = route{cluster: "c"}
	x := f.(*filter)
	if a := testing.AllocsPerRun(100, func() {
		s.Info.FilterState.Reset(nil)
		x.replace(s)
	}); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and what is accepted compiles.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(config), true)
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool) {
		c, err := decodetest.Forms(t, filters.Any{TypeURL: typeURL, JSON: isJSON, Value: b}, Factory{}.Decode)
		if err != nil {
			return
		}
		if _, err := (Factory{}).Compile(&filters.Env{Upstreams: &manager{}}, c, nil); err != nil {
			t.Fatal(err)
		}
	})
}
