package metadataexchange

import (
	"net/netip"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/filters/internal/peers"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

type workloads map[string]*streaminfo.Peer

func (w workloads) Peer(a netip.Addr) *streaminfo.Peer { return w[a.String()] }

func TestFindsBothEnds(t *testing.T) {
	env := &filters.Env{Workloads: workloads{"10.0.0.1": {Workload: "client"}, "10.0.0.2": {Workload: "server"}}}
	for discovery, want := range map[string]bool{"true": true, "false": false} {
		cfg, err := Factory{}.Decode(filters.Any{JSON: true, Value: []byte(`{"enable_discovery":` + discovery + `,"protocol":"istio-peer-exchange"}`)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		f, err := Factory{}.Compile(env, cfg)
		if err != nil {
			t.Fatal(err)
		}
		c := &filters.Connection{Info: &streaminfo.Info{Conn: &streaminfo.Conn{Remote: netip.MustParseAddrPort("10.0.0.1:9")}}}
		c.Info.FilterState.Reset(&c.Info.Conn.FilterState)
		if err := f.(filters.NetworkFilter).OnNewConnection(c); err != nil {
			t.Fatal(err)
		}
		c.Info.Upstream.Address = netip.MustParseAddrPort("10.0.0.2:9")
		c.Progress()
		f.(filters.ConnectionEnder).OnConnectionEnd(c)
		if got := peers.Get(&c.Info.FilterState, peers.Downstream) != nil && peers.Get(&c.Info.FilterState, peers.UpstreamObj) != nil; got != want {
			t.Errorf("enable_discovery %s: found %v", discovery, got)
		}
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and what is accepted compiles.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"enable_discovery":true,"protocol":"istio-peer-exchange"}`), true)
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
