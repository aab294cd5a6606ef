package peermetadata

import (
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/filters/internal/peers"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func TestKeepsTheBaggageOfThisWorkload(t *testing.T) {
	env := &filters.Env{Node: &filters.Node{Namespace: "app", Metadata: map[string]any{"CLUSTER_ID": "c1"}}}
	for doc, key := range map[string]string{`{"baggage_key": "io.istio.baggage"}`: "io.istio.baggage", `{}`: ""} {
		cfg, err := Factory{}.Decode(filters.Any{JSON: true, Value: []byte(doc)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		f, err := Factory{}.Compile(env, cfg)
		if err != nil {
			t.Fatal(err)
		}
		c := &filters.Connection{Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}
		if err := f.(filters.NetworkFilter).OnNewConnection(c); err != nil {
			t.Fatal(err)
		}
		got := c.Info.Conn.FilterState.GetString("io.istio.baggage")
		if key == "" && got != "" || key != "" && !strings.Contains(got, "k8s.namespace.name=app") {
			t.Errorf("%s: baggage %q", doc, got)
		}
	}
}

func TestUnknownFieldsAreReported(t *testing.T) {
	var d filters.Decoding
	if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(`{"new": 1}`)}, &d); err != nil || len(d.Ignored()) != 1 {
		t.Errorf("%v, %v", err, d.Ignored())
	}
	for _, doc := range []string{`[]`, `{"baggage_key": 1}`} {
		if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(doc)}, nil); err == nil {
			t.Errorf("%s is accepted", doc)
		}
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and what is accepted compiles.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"baggage_key": "io.istio.baggage"}`), true)
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool) {
		c, err := decodetest.Forms(t, filters.Any{TypeURL: typeURL, JSON: isJSON, Value: b}, Factory{}.Decode)
		if err != nil {
			return
		}
		if _, err := (Factory{}).Compile(nil, c); err != nil {
			t.Fatal(err)
		}
	})
}

// answer is what tcp_proxy keeps of a tunnel's answer.
type answer map[string]string

func (answer) Serialize() string { return "" }

func (a answer) Field(name string) (string, bool) { v, ok := a[name]; return v, ok }

func metadata(ns string, off any) *streaminfo.Metadata {
	md := streaminfo.MetadataFrom(map[string]map[string]any{ns: {disabled: off}})
	return &md
}

// TestTheAnswersBaggageReachesTheConnection connects the filters of cluster and
// listener as an internal hop does.
func TestTheAnswersBaggageReachesTheConnection(t *testing.T) {
	const baggage = "k8s.deployment.name=reviews,k8s.namespace.name=app"
	for _, tc := range []struct {
		name, listener string
		host, cluster  *streaminfo.Metadata
		dynamic        *streaminfo.Metadata
		answer         streaminfo.Object
		ended          bool // without a tunnel
		want, identity string
		over           bool
	}{
		{name: "baggage", listener: "connect_originate", answer: answer{"baggage": baggage}, want: "reviews", identity: "spiffe://a,spiffe://b", over: true},
		{name: "double HBONE", listener: "inner_connect_originate", answer: answer{"baggage": baggage}, want: "reviews", identity: "spiffe://a,spiffe://b", over: true},
		{name: "no baggage", listener: "connect_originate", answer: answer{}, over: true},
		{name: "baggage of others", listener: "connect_originate", answer: answer{"baggage": "user=x"}, over: true},
		{name: "the answer is not kept", listener: "connect_originate", over: true},
		{name: "no tunnel", listener: "connect_originate", ended: true, over: true},
		{name: "turned off by the host", listener: "connect_originate", host: metadata(namespace, true), answer: answer{"baggage": baggage}},
		{name: "turned off by the cluster", listener: "connect_originate", cluster: metadata(namespace, true), answer: answer{"baggage": baggage}},
		{name: "not turned off", listener: "connect_originate", cluster: metadata(namespace, false), host: metadata("istio", true), answer: answer{"baggage": baggage}, want: "reviews", identity: "spiffe://a,spiffe://b", over: true},
		{name: "turned off for the stream", listener: "connect_originate", dynamic: metadata(namespace, true), answer: answer{"baggage": baggage}},
		{name: "another listener", listener: "main_internal", answer: answer{"baggage": baggage}},
	} {
		cfg, err := UpstreamFactory{}.Decode(filters.Any{JSON: true, Value: []byte(`{}`)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		up, err := UpstreamFactory{}.CompileUpstream(nil, cfg)
		if err != nil {
			t.Fatal(err)
		}
		uc := &filters.UpstreamConnection{Internal: tc.listener, HostMetadata: tc.host, ClusterMetadata: tc.cluster}
		up.OnDial(uc)
		c := &filters.Connection{Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}
		uc.State.ShareInto(&c.Info.Conn.FilterState)
		c.Info.FilterState.Reset(&c.Info.Conn.FilterState)
		if tc.dynamic != nil {
			c.Info.Conn.Metadata = *tc.dynamic
		}
		f := &filter{}
		if err := f.OnNewConnection(c); err != nil {
			t.Fatal(err)
		}
		if uc.State.Get(peers.Upstream) != nil {
			t.Errorf("%s: told before the answer", tc.name)
		}
		if tc.answer != nil {
			c.Info.FilterState.Set(tunnelResponse, tc.answer, streaminfo.SharingNone)
		}
		c.Info.Upstream.TLS = &streaminfo.TLS{Peer: streaminfo.Certificate{URISANs: []string{"spiffe://a", "spiffe://b"}}}
		if tc.ended {
			f.OnConnectionEnd(c)
		} else {
			c.Connected()
		}
		if err := up.OnConnected(uc); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{peers.Upstream, peers.UpstreamObj} {
			p := peers.Get(&uc.State, key)
			if got := p != nil; got != (tc.want != "") || got && (p.Workload != tc.want || p.Identity != tc.identity || p.Namespace != "app") {
				t.Errorf("%s: %s is %+v", tc.name, key, p)
			}
		}
		if waits := uc.State.Awaits(peers.Upstream); tc.over && waits {
			t.Errorf("%s: still waits", tc.name)
		}
		f.OnConnectionEnd(c)
		if uc.State.Awaits(peers.Upstream) {
			t.Errorf("%s: waits after the end", tc.name)
		}
	}
}

func TestUnknownFieldsOfAClustersFilterAreReported(t *testing.T) {
	var d filters.Decoding
	if _, err := (UpstreamFactory{}).Decode(filters.Any{JSON: true, Value: []byte(`{"new": 1}`)}, &d); err != nil || len(d.Ignored()) != 1 {
		t.Errorf("%v, %v", err, d.Ignored())
	}
	for _, a := range []filters.Any{{JSON: true, Value: []byte(`[]`)}, {}} {
		if _, err := (UpstreamFactory{}).Decode(a, nil); err == nil {
			t.Errorf("%+v is accepted", a)
		}
	}
}
