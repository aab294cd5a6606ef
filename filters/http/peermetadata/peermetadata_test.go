package peermetadata

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/peers"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

type workloads map[netip.Addr]*streaminfo.Peer

func (w workloads) Peer(a netip.Addr) *streaminfo.Peer { return w[a] }

var known = workloads{netip.MustParseAddr("10.0.0.1"): {Workload: "client", Namespace: "a", DenseID: 1}, netip.MustParseAddr("10.0.0.2"): {Workload: "server", Namespace: "b", DenseID: 2}}

type manager struct {
	filters.Upstreams
	md *streaminfo.Metadata
}

func (m manager) ClusterMetadata(string) *streaminfo.Metadata { return m.md }

type route struct{ filters.Route }

func (route) ClusterName() string { return "c" }

// upstream answers from 10.0.0.2 with the given headers.
type upstream struct {
	response []string
	state    *streaminfo.FilterState // of the connection
	seen     message.Header
}

func (u *upstream) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	u.seen.CopyFrom(&s.Request)
	s.Info.Upstream.State = u.state
	s.Info.Upstream.Address = netip.MustParseAddrPort("10.0.0.2:80")
	r := s.NewResponse()
	r.Header.Add(message.Status, "200")
	for i := 0; i < len(u.response); i += 2 {
		r.Header.Add(u.response[i], u.response[i+1])
	}
	return r, nil
}

func run(t *testing.T, config string, env *filters.Env, u *upstream, headers ...string) (*filters.Stream, *filters.Response) {
	t.Helper()
	cfg, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(config)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Factory{}.Compile(env, cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{Remote: netip.MustParseAddrPort("10.0.0.1:5")}
	s.Route = route{}
	s.Request.Add(message.Method, "GET")
	for i := 0; i < len(headers); i += 2 {
		s.Request.Add(headers[i], headers[i+1])
	}
	s.SetChain([]filters.HTTPFilter{f, u})
	r, err := filters.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	return s, r
}

func environment() *filters.Env {
	return &filters.Env{Workloads: known, Upstreams: manager{}, Node: &filters.Node{ID: "me~1", Namespace: "n", WorkloadName: "gw", Network: "net1", Labels: map[string]string{"app": "gw"}}}
}

func TestWorkloadDiscoveryOfBothEnds(t *testing.T) {
	s, _ := run(t, `{"downstream_discovery":[{"workload_discovery":{}}],"upstream_discovery":[{"workload_discovery":{}}],"shared_with_upstream":true}`, environment(), &upstream{})
	for key, want := range map[string]string{peers.Downstream: "client", peers.DownstreamObj: "client", peers.Upstream: "server", peers.UpstreamObj: "server"} {
		if got := s.Info.FilterState.GetString(key); got != want {
			t.Errorf("%s = %q, want %q", key, got, want)
		}
	}
	var hop streaminfo.FilterState
	s.Info.FilterState.ShareInto(&hop)
	if hop.Get(peers.Downstream) == nil {
		t.Error("shared_with_upstream is not honoured")
	}
}

func TestAnotherNetworkIsDescribedByBaggage(t *testing.T) {
	const config = `{"downstream_discovery":[{"workload_discovery":{}},{"baggage":{}}]}`
	for network, want := range map[string]string{"net1": "client", "net2": "far"} {
		s, _ := run(t, config, environment(), &upstream{}, "x-forwarded-network", network, "baggage", "k8s.deployment.name=far,service.name=far")
		if got := s.Info.FilterState.GetString(peers.Downstream); got != want {
			t.Errorf("network %s: %q, want %q", network, got, want)
		}
	}
}

func TestGatewayExchangesHeaders(t *testing.T) {
	const config = `{"upstream_discovery":[{"istio_headers":{}},{"workload_discovery":{}}],"upstream_propagation":[{"istio_headers":{}}]}`
	peer := peers.Exchange(&streaminfo.Peer{Workload: "sidecar", CanonicalName: "x"})
	u := &upstream{response: []string{headerPeer, peer, headerPeerID, "sidecar~1"}}
	s, r := run(t, config, environment(), u)
	if u.seen.Get(headerPeerID) != "me~1" || peers.FromExchange(u.seen.Get(headerPeer), nil).Workload != "gw" {
		t.Errorf("upstream saw %+v", u.seen)
	}
	if got := s.Info.FilterState.GetString(peers.Upstream); got != "sidecar" {
		t.Errorf("upstream peer %q", got)
	}
	if r.Header.Has(headerPeer) || r.Header.Has(headerPeerID) {
		t.Error("the exchange leaks to the client")
	}
	s, _ = run(t, config, environment(), &upstream{})
	if got := s.Info.FilterState.GetString(peers.Upstream); got != "server" {
		t.Errorf("without headers the table is asked, got %q", got)
	}
}

func TestNothingIsToldToExternalClusters(t *testing.T) {
	external := streaminfo.MetadataFrom(map[string]map[string]any{"istio": {"external": true}})
	quiet := streaminfo.MetadataFrom(map[string]map[string]any{"istio": {"disable_mx": true}})
	for name, tc := range map[string]struct {
		upstreams filters.Upstreams
		skip      string
	}{
		"external":   {manager{md: &external}, `"skip_external_clusters":true`},
		"disable_mx": {manager{md: &quiet}, ``},
		"unknown":    {nil, ``},
	} {
		env := environment()
		env.Upstreams = tc.upstreams
		u := &upstream{}
		run(t, `{"upstream_propagation":[{"istio_headers":{`+tc.skip+`}}]}`, env, u)
		if u.seen.Has(headerPeer) || u.seen.Has(headerPeerID) {
			t.Errorf("%s: told %+v", name, u.seen)
		}
	}
}

func TestServerAnswersAnExchange(t *testing.T) {
	const config = `{"downstream_discovery":[{"istio_headers":{}}],"downstream_propagation":[{"istio_headers":{}}]}`
	u := &upstream{}
	s, r := run(t, config, environment(), u, headerPeer, peers.Exchange(&streaminfo.Peer{Workload: "w"}), headerPeerID, "x")
	if u.seen.Has(headerPeer) || u.seen.Has(headerPeerID) || s.Info.FilterState.GetString(peers.Downstream) != "w" {
		t.Errorf("upstream saw %+v", u.seen)
	}
	if r.Header.Get(headerPeerID) != "me~1" || r.Header.Get(headerPeer) == "" {
		t.Errorf("answered %+v", r.Header)
	}
	if _, r = run(t, config, environment(), u); r.Header.Has(headerPeer) {
		t.Error("answered nobody's question")
	}
}

func TestAClusterThatIsOutOfTheExchangeIsAnsweredFor(t *testing.T) {
	const config = `{"downstream_discovery":[{"istio_headers":{}}],"downstream_propagation":[{"istio_headers":{"skip_external_clusters":true}}]}`
	for name, md := range map[string]map[string]any{"disable_mx": {"disable_mx": true}, "external": {"external": true}, "": {"disable_mx": false, "external": "true"}} {
		env := environment()
		m := streaminfo.MetadataFrom(map[string]map[string]any{"istio": md})
		env.Upstreams = manager{md: &m}
		_, r := run(t, config, env, &upstream{}, headerPeer, peers.Exchange(&streaminfo.Peer{Workload: "w"}), headerPeerID, "x")
		if told := r.Header.Has(headerPeer) && r.Header.Has(headerPeerID); told != (name == "") {
			t.Errorf("%s: told %v", name, told)
		}
	}
	// Who was found otherwise has asked nothing.
	const table = `{"downstream_discovery":[{"workload_discovery":{}},{"istio_headers":{}}],"downstream_propagation":[{"istio_headers":{}}]}`
	if _, r := run(t, table, environment(), &upstream{}, headerPeer, "x", headerPeerID, "x"); r.Header.Has(headerPeer) || r.Header.Has(headerPeerID) {
		t.Errorf("answered %+v", r.Header)
	}
}

func TestLabelsAndLocalityAreTold(t *testing.T) {
	env := environment()
	env.Node.Labels["team"], env.Node.Labels["other"], env.Node.Region, env.Node.Zone = "red", "x", "r1", "z1"
	u := &upstream{}
	_, r := run(t, `{"upstream_propagation":[{"istio_headers":{}}],"downstream_propagation":[{"baggage":{}}],"additional_labels":["team"]}`, env, u)
	p := peers.FromExchange(u.seen.Get(headerPeer), []string{"team", "other"})
	if p == nil || len(p.Labels) != 1 || p.Labels["team"] != "red" || p.Region != "r1" || p.Zone != "z1" {
		t.Errorf("told %+v", p)
	}
	if got := r.Header.Get("baggage"); !strings.Contains(got, "cloud.region=r1,cloud.availability_zone=z1") {
		t.Errorf("baggage %q", got)
	}
}

func TestWhatTheConnectionKnowsOfUpstreamIsFound(t *testing.T) {
	const config = `{"upstream_discovery":[{"upstream_filter_state":{"peer_metadata_key":"upstream_peer"}}]}`
	state := &streaminfo.FilterState{}
	peers.SetUpstream(state, &streaminfo.Peer{Workload: "told"}, streaminfo.SharingNone)
	s, _ := run(t, config, environment(), &upstream{state: state})
	for _, key := range []string{peers.Upstream, peers.UpstreamObj} {
		if got := s.Info.FilterState.GetString(key); got != "told" {
			t.Errorf("%s = %q", key, got)
		}
	}
	if s, _ = run(t, config, environment(), &upstream{}); s.Info.FilterState.Get(peers.Upstream) != nil {
		t.Error("found without a state")
	}
}

func TestBaggageIsPropagated(t *testing.T) {
	u := &upstream{}
	_, r := run(t, `{"upstream_propagation":[{"baggage":{}}],"downstream_propagation":[{"baggage":{}}]}`, environment(), u)
	want := "k8s.pod.name=gw,service.name=gw,k8s.namespace.name=n"
	if u.seen.Get("baggage") != want || r.Header.Get("baggage") != want {
		t.Errorf("%q %q", u.seen.Get("baggage"), r.Header.Get("baggage"))
	}
}

func TestDecodeReportsAndRefuses(t *testing.T) {
	for doc, n := range map[string]int{
		`{"upstream_discovery":[{"baggage":{}}],"upstream_propagation":[{"workload_discovery":{}}]}`: 2,
		`{"upstream_discovery":[{"new_method":{}}]}`:                                                 2, // the field and the step
		`{"upstream_discovery":[{}]}`:                                                                1,
		`{"x":1}`:                                                                                    1,
		`{"upstreamDiscovery":[{"upstreamFilterState":{"peerMetadataKey":"k"}}],"sharedWithUpstream":true}`:           0,
		`{"upstream_propagation":[{"istio_headers":{"skip_external_clusters":true}}],"additional_labels":["a","aB"]}`: 0,
	} {
		d := &filters.Decoding{}
		if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(doc)}, d); err != nil || len(d.Ignored()) != n {
			t.Errorf("%s: %v %v", doc, err, d.Ignored())
		}
	}
	for _, bad := range []string{`[]`, `{"x":`, `{"upstream_discovery":{}}`, `{"upstream_discovery":[{"baggage":{},"istio_headers":{}}]}`} {
		if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(bad)}, nil); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

func TestDiscoveryDoesNotAllocate(t *testing.T) {
	s, _ := run(t, `{"upstream_discovery":[{"workload_discovery":{}}]}`, environment(), &upstream{})
	f, ok := s.Chain()[0].(*filter)
	if !ok {
		t.Fatal("not a filter")
	}
	r := s.NewResponse()
	if a := testing.AllocsPerRun(100, func() {
		s.Info.FilterState.Reset(nil)
		f.discoverUpstream(s, r)
	}); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

// FuzzDecode: what is accepted compiles, and nobody downstream passes for a
// workload in the headers that the configuration removes.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"downstream_discovery":[{"workload_discovery":{}},{"baggage":{}}],"downstream_propagation":[{"baggage":{}}],"shared_with_upstream":true}`), "baggage")
	f.Fuzz(func(t *testing.T, b []byte, value string) {
		cfg, err := Factory{}.Decode(filters.Any{JSON: true, Value: b}, nil)
		if err != nil {
			return
		}
		fl, err := Factory{}.Compile(environment(), cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		s := &filters.Stream{}
		s.Reset()
		s.Info.Conn = &streaminfo.Conn{}
		s.Request.Add("baggage", value)
		s.Request.Add(headerPeer, value)
		u := &upstream{response: []string{headerPeer, value}}
		s.SetChain([]filters.HTTPFilter{fl, u})
		r, err := filters.Start(s)
		if err != nil {
			t.Fatal(err)
		}
		x := fl.(*filter)
		if got, ok := u.seen.Lookup(headerPeer); x.strips && ok && got != x.exchange {
			t.Fatalf("%s: upstream sees %q", b, got)
		}
		if got, ok := r.Header.Lookup(headerPeer); x.stripsUp && ok && got != x.exchange {
			t.Fatalf("%s: the client sees %q", b, got)
		}
	})
}
