package setfilterstate

import (
	"net/netip"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// connectAuthority is what istiod configures on connect_terminate.
const connectAuthority = `{"onRequestHeaders":[
{"formatString":{"textFormatSource":{"inlineString":"%REQ(:AUTHORITY)%"}},"objectKey":"envoy.filters.listener.original_dst.local_ip","sharedWithUpstream":"ONCE"},
{"factoryKey":"istio.hashable_string","formatString":{"textFormatSource":{"inlineString":"%REQ(:AUTHORITY)%"}},"objectKey":"io.istio.connect_authority","sharedWithUpstream":"ONCE"},
{"formatString":{"textFormatSource":{"inlineString":"%DOWNSTREAM_REMOTE_ADDRESS%"}},"objectKey":"envoy.filters.listener.original_dst.remote_ip","sharedWithUpstream":"ONCE"},
{"factoryKey":"istio.hashable_string","formatString":{"textFormatSource":{"inlineString":"%DOWNSTREAM_PEER_URI_SAN%"}},"objectKey":"io.istio.peer_principal","sharedWithUpstream":"ONCE"},
{"factoryKey":"istio.hashable_string","formatString":{"textFormatSource":{"inlineString":"%DOWNSTREAM_LOCAL_URI_SAN%"}},"objectKey":"io.istio.local_principal","sharedWithUpstream":"ONCE"}]}`

type terminal struct{}

func (terminal) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	return s.NewResponse(), nil
}

func run(t *testing.T, c *streaminfo.Conn, config string) *filters.Stream {
	t.Helper()
	cfg, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, Value: []byte(config), JSON: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Factory{}.Compile(nil, cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = c
	s.Request.Add(message.Method, "CONNECT")
	s.Request.Add(message.Authority, "10.96.1.1:9080")
	s.SetChain([]filters.HTTPFilter{f, terminal{}})
	if _, err := filters.Start(s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTheTunnelsIdentityCrossesTheHop(t *testing.T) {
	c := &streaminfo.Conn{Remote: netip.MustParseAddrPort("10.1.2.3:4567"), TLS: &streaminfo.TLS{
		Peer:      streaminfo.Certificate{URISANs: []string{"spiffe://td/ns/a/sa/b"}, Digest: "x"},
		LocalCert: streaminfo.Certificate{URISANs: []string{"spiffe://td/ns/w/sa/w"}, Digest: "y"},
	}}
	s := run(t, c, connectAuthority)
	var hop streaminfo.FilterState
	s.Info.FilterState.ShareInto(&hop)
	for key, want := range map[string]string{
		"envoy.filters.listener.original_dst.local_ip":  "10.96.1.1:9080",
		"envoy.filters.listener.original_dst.remote_ip": "10.1.2.3:4567",
		"io.istio.connect_authority":                    "10.96.1.1:9080",
		"io.istio.peer_principal":                       "spiffe://td/ns/a/sa/b",
		"io.istio.local_principal":                      "spiffe://td/ns/w/sa/w",
	} {
		if got := hop.GetString(key); got != want {
			t.Errorf("%s = %q, want %q", key, got, want)
		}
	}
}

func TestNoCertificateMeansNoPrincipal(t *testing.T) {
	s := run(t, &streaminfo.Conn{}, connectAuthority)
	if o := s.Info.FilterState.Get("io.istio.peer_principal"); o != nil {
		t.Errorf("peer principal is %q", o.Serialize())
	}
}

func TestClearRouteCache(t *testing.T) {
	for config, want := range map[bool]int{true: 1, false: 0} {
		_ = want
		clear := "false"
		if config {
			clear = "true"
		}
		cfg, err := Factory{}.Decode(filters.Any{JSON: true, Value: []byte(`{"clearRouteCache":` + clear + `,"onRequestHeaders":[{"objectKey":"k","factoryKey":"envoy.string","formatString":{"textFormatSource":{"inlineString":"x"}}}]}`)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		f, err := Factory{}.Compile(nil, cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		s := &filters.Stream{}
		s.Reset()
		s.Info.Conn = &streaminfo.Conn{}
		s.Reselect = func(*filters.Stream) { n++ }
		s.SetChain([]filters.HTTPFilter{f, terminal{}})
		if _, err := filters.Start(s); err != nil || n != want {
			t.Errorf("clear_route_cache %v: selected %d times, %v", config, n, err)
		}
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and what is accepted compiles and lets requests pass.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(connectAuthority), true)
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool) {
		c, err := decodetest.Forms(t, filters.Any{TypeURL: typeURL, JSON: isJSON, Value: b}, Factory{}.Decode)
		if err != nil {
			return
		}
		fl, err := Factory{}.Compile(nil, c, nil)
		if err != nil {
			t.Fatal(err)
		}
		s := &filters.Stream{}
		s.Reset()
		s.Info.Conn = &streaminfo.Conn{}
		s.SetChain([]filters.HTTPFilter{fl, terminal{}})
		if _, err := filters.Start(s); err != nil {
			t.Fatal(err)
		}
	})
}
