package metadataexchange

import (
	"crypto/tls"
	"net/netip"
	"slices"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/conntest"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/filters/internal/peers"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

type workloads map[string]*streaminfo.Peer

func (w workloads) Peer(a netip.Addr) *streaminfo.Peer { return w[a.String()] }

// secure is a connection whose TLS session negotiated a protocol.
type secure struct {
	conntest.Conn
	protocol string
}

func (s *secure) TLS() *tls.ConnectionState {
	return &tls.ConnectionState{NegotiatedProtocol: s.protocol}
}

func compile(t *testing.T, doc string, scope *stats.Scope) (filters.NetworkFilter, filters.UpstreamFilter) {
	t.Helper()
	d := &filters.Decoding{}
	cfg, err := Factory{}.Decode(filters.Any{JSON: true, Value: []byte(doc)}, d)
	if err != nil || len(d.Ignored()) != 0 {
		t.Fatal(err, d.Ignored())
	}
	env := &filters.Env{Stats: scope, Node: &filters.Node{ID: "me"}, Workloads: workloads{"10.0.0.1": {Workload: "client"}, "10.0.0.2": {Workload: "server"}}}
	f, err := Factory{}.Compile(env, cfg)
	if err != nil {
		t.Fatal(err)
	}
	u, err := Factory{}.CompileUpstream(env, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f.(filters.NetworkFilter), u
}

// pass is a connection from 10.0.0.1 to 10.0.0.2 with both filters.
func pass(t *testing.T, doc string, scope *stats.Scope, down, up *secure) (c *filters.Connection, uc *filters.UpstreamConnection) {
	t.Helper()
	f, u := compile(t, doc, scope)
	c = &filters.Connection{Conn: down, Info: &streaminfo.Info{Conn: &streaminfo.Conn{Remote: netip.MustParseAddrPort("10.0.0.1:9")}}}
	c.Info.FilterState.Reset(&c.Info.Conn.FilterState)
	if err := f.OnNewConnection(c); err != nil {
		t.Fatal(err)
	}
	uc = &filters.UpstreamConnection{Conn: up, Address: netip.MustParseAddrPort("10.0.0.2:9")}
	u.OnDial(uc)
	if err := u.OnConnected(uc); err != nil {
		t.Fatal(err)
	}
	c.Info.Upstream.Address, c.Info.Upstream.State = uc.Address, &uc.State
	c.Connected()
	return c, uc
}

func workload(p *streaminfo.Peer) string {
	if p == nil {
		return ""
	}
	return p.Workload
}

func TestBothEndsAreKnown(t *testing.T) {
	const on, off = `{"protocol":"x","enable_discovery":true}`, `{"protocol":"x"}`
	for _, tc := range []struct {
		name, doc, protocol string
		down, up            string
		sent                bool
	}{
		{"by exchange", on, "x", "sleep", "sleep", true},
		{"by exchange, without the table", off, "x", "sleep", "sleep", true},
		{"by the table", on, "y", "client", "server", false},
		{"neither agreed nor asked for", off, "", "", "", false},
	} {
		set := &stats.Registry{}
		down, up := &secure{conntest.Conn{In: framed(told) + "request"}, tc.protocol}, &secure{conntest.Conn{In: framed(told) + "response"}, tc.protocol}
		c, uc := pass(t, tc.doc, set.Scope(""), down, up)
		info := c.Info
		if awaited := peers.Awaited(info, peers.Downstream) && peers.Awaited(info, peers.Upstream); awaited != tc.sent {
			t.Errorf("%s: awaited %v", tc.name, awaited)
		}
		p := make([]byte, 100)
		for _, read := range []func([]byte) (int, error){c.TryRead, uc.TryRead} {
			if n, err := read(p); err != nil || !tc.sent && n < 20 || tc.sent && !slices.Contains([]string{"request", "response"}, string(p[:n])) {
				t.Errorf("%s: read %q, %v", tc.name, p[:n], err)
			}
		}
		for _, key := range []string{peers.Downstream, peers.DownstreamObj} {
			if got := workload(peers.Get(&info.FilterState, key)); got != tc.down {
				t.Errorf("%s: %s is %q, want %q", tc.name, key, got, tc.down)
			}
		}
		for _, key := range []string{peers.Upstream, peers.UpstreamObj} {
			if got := workload(peers.Get(&info.FilterState, key)); got != tc.up {
				t.Errorf("%s: %s is %q, want %q", tc.name, key, got, tc.up)
			}
			if got := workload(peers.Get(&uc.State, key)); got != tc.up {
				t.Errorf("%s: %s of the connection is %q, want %q", tc.name, key, got, tc.up)
			}
		}
		if sent := len(down.Out) > 8 && len(up.Out) > 8; sent != tc.sent {
			t.Errorf("%s: sent %q and %q", tc.name, down.Out, up.Out)
		}
		count := func(name string) uint64 { return set.Scope("").Counter("envoy_metadata_exchange_" + name).Value() }
		agreed := count("alpn_protocol_found")
		if want := map[bool]uint64{true: 2}[tc.sent]; agreed != want || count("alpn_protocol_not_found") != 2-want {
			t.Errorf("%s: agreed %d times", tc.name, agreed)
		}
		if want := map[bool]uint64{true: 2}[tc.down != ""]; count("metadata_added") != want {
			t.Errorf("%s: metadata_added %d, want %d", tc.name, count("metadata_added"), want)
		}
	}
}

func TestWithoutAFilterOfTheClusterTheTableSaysWhoUpstreamIs(t *testing.T) {
	f, _ := compile(t, `{"protocol":"x","enable_discovery":true}`, nil)
	c := &filters.Connection{Conn: &conntest.Conn{}, Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}
	if err := f.OnNewConnection(c); err != nil {
		t.Fatal(err)
	}
	c.Info.Upstream.Address = netip.MustParseAddrPort("10.0.0.2:9")
	f.(filters.ConnectionEnder).OnConnectionEnd(c) // it never got an upstream connection
	if got := workload(peers.Get(&c.Info.FilterState, peers.Upstream)); got != "server" {
		t.Errorf("upstream is %q", got)
	}
}

func TestAGatewayOfAnotherNetworkIsNotLookedUp(t *testing.T) {
	_, u := compile(t, `{"protocol":"x","enable_discovery":true}`, nil)
	md := streaminfo.MetadataFrom(map[string]map[string]any{"istio": {"double_hbone": map[string]any{}}})
	uc := &filters.UpstreamConnection{Conn: &conntest.Conn{}, Address: netip.MustParseAddrPort("10.0.0.2:9"), HostMetadata: &md}
	if err := u.OnConnected(uc); err != nil || uc.State.Get(peers.Upstream) != nil {
		t.Errorf("%v, %v", err, uc.State.Get(peers.Upstream))
	}
}

func TestAWorkloadThatAnEarlierHopKnowsIsKept(t *testing.T) {
	f, _ := compile(t, `{"protocol":"x"}`, nil)
	c := &filters.Connection{Conn: &secure{conntest.Conn{In: framed(told) + "x"}, "x"}, Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}
	peers.SetDownstream(&c.Info.Conn.FilterState, &streaminfo.Peer{Workload: "far"}, streaminfo.SharingNone)
	if err := f.OnNewConnection(c); err != nil {
		t.Fatal(err)
	}
	if _, err := c.TryRead(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if got := workload(peers.Get(&c.Info.Conn.FilterState, peers.Downstream)); got != "far" {
		t.Errorf("downstream is %q", got)
	}
}

func TestDecodeReadsLabelsInBothForms(t *testing.T) {
	for doc, want := range map[string][]string{
		`{"protocol":"x","additional_labels":["a","b"]}`: {"a", "b"},
		`{"protocol":"x","additionalLabels":["a"]}`:      {"a"},
		`{"protocol":"x","additional_labels":null}`:      nil,
	} {
		c, err := Factory{}.Decode(filters.Any{JSON: true, Value: []byte(doc)}, nil)
		if err != nil || !slices.Equal(c.(*Config).Labels, want) {
			t.Errorf("%s: %+v, %v", doc, c, err)
		}
	}
	d := &filters.Decoding{}
	c, err := Factory{}.Decode(filters.Any{Value: []byte(field(1, "x") + field(3, "a") + field(3, "b"))}, d)
	if err != nil || !slices.Equal(c.(*Config).Labels, []string{"a", "b"}) || len(d.Ignored()) != 0 {
		t.Errorf("%+v, %v, %v", c, err, d.Ignored())
	}
	for _, doc := range []string{`{"protocol":"x","additional_labels":"a"}`, `{"additional_labels":["a"]}`, `{}`, `[]`} {
		if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(doc)}, nil); err == nil {
			t.Errorf("%s is accepted", doc)
		}
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and what is accepted compiles.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"enable_discovery":true,"protocol":"istio-peer-exchange"}`), true)
	f.Add([]byte(`{"protocol":"istio-peer-exchange","additional_labels":["a"]}`), true)
	f.Add([]byte(field(1, "x")+field(3, "a")), false)
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool) {
		a := filters.Any{TypeURL: typeURL, JSON: isJSON, Value: b}
		c, err := Factory{}.Decode(a, nil)
		// The linked message has no additional_labels: what is left without them is
		// held to it.
		split := splitWire
		if isJSON {
			split = splitJSON
		}
		rest, labels, serr := split(b)
		if serr != nil && err == nil {
			t.Fatalf("%q is accepted: %v", b, serr)
		}
		if a.Value = rest; serr == nil {
			other, err2 := decodetest.Forms(t, a, Factory{}.Decode)
			if (err2 == nil) != (err == nil) || err == nil && (other.(*Config).Protocol != c.(*Config).Protocol || !slices.Equal(labels, c.(*Config).Labels)) {
				t.Fatalf("%q: %+v %v, without labels %+v %v", b, c, err, other, err2)
			}
		}
		if err != nil {
			return
		}
		if _, err := (Factory{}).Compile(nil, c); err != nil {
			t.Fatal(err)
		}
	})
}
