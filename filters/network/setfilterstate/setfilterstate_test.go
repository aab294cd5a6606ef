package setfilterstate

import (
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func run(t *testing.T, c *filters.Connection, config string) {
	t.Helper()
	cfg, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, Value: []byte(config), JSON: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Factory{}.Compile(nil, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.(filters.NetworkFilter).OnNewConnection(c); err != nil {
		t.Fatal(err)
	}
}

func connection() *filters.Connection {
	c := &filters.Connection{Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}
	c.Info.FilterState.Reset(&c.Info.Conn.FilterState)
	return c
}

func TestEndpointMetadataIsPropagated(t *testing.T) {
	c := connection()
	c.Info.Conn.Metadata.Set("envoy.filters.listener.original_dst", "local", "10.0.0.1:80")
	c.Info.Conn.Metadata.Set("istio", "double_hbone", map[string]any{"hbone_target_address": "svc.ns:80"})
	run(t, c, `{"onNewConnection":[
{"formatString":{"textFormatSource":{"inlineString":"%DYNAMIC_METADATA(envoy.filters.listener.original_dst:local)%"}},"objectKey":"envoy.filters.listener.original_dst.local_ip","sharedWithUpstream":"TRANSITIVE"},
{"factoryKey":"istio.hashable_string","formatString":{"textFormatSource":{"inlineString":"%DYNAMIC_METADATA(istio:double_hbone:hbone_target_address)%"}},"objectKey":"istio.double_hbone.hbone_target_address","sharedWithUpstream":"TRANSITIVE"}]}`)
	var hop streaminfo.FilterState
	c.Info.FilterState.ShareInto(&hop)
	if hop.GetString("envoy.filters.listener.original_dst.local_ip") != "10.0.0.1:80" || hop.GetString("istio.double_hbone.hbone_target_address") != "svc.ns:80" {
		t.Errorf("%+v", hop)
	}
}

func TestAnObjectCanBeSharedAgain(t *testing.T) {
	c := connection()
	c.Info.Conn.FilterState.Set("envoy.filters.listener.original_dst.local_ip", streaminfo.String("10.0.0.1:80"), streaminfo.SharingNone)
	run(t, c, `{"onNewConnection":[{"formatString":{"textFormatSource":{"inlineString":"%FILTER_STATE(envoy.filters.listener.original_dst.local_ip:PLAIN)%"}},"objectKey":"envoy.filters.listener.original_dst.local_ip","sharedWithUpstream":"ONCE"}]}`)
	var hop streaminfo.FilterState
	c.Info.FilterState.ShareInto(&hop)
	if hop.GetString("envoy.filters.listener.original_dst.local_ip") != "10.0.0.1:80" {
		t.Error("not shared")
	}
}

func TestDestinationByExpression(t *testing.T) {
	// What istiod sends on multi-network chains.
	const config = `{"onNewConnection":[{"formatString":{"formatters":[{"name":"envoy.formatter.cel","typedConfig":{"@type":"type.googleapis.com/envoy.extensions.formatter.cel.v3.Cel"}}],"textFormatSource":{"inlineString":"%CEL('envoy.filters.listener.original_dst.local_ip' in filter_state ? filter_state['envoy.filters.listener.original_dst.local_ip']: r'10.96.7.1:9080')%"}},"objectKey":"envoy.network.transport_socket.original_dst_address"}]}`
	for local, want := range map[string]string{"": "10.96.7.1:9080", "10.0.0.5:80": "10.0.0.5:80"} {
		c := connection()
		if local != "" {
			c.Info.Conn.FilterState.Set("envoy.filters.listener.original_dst.local_ip", streaminfo.String(local), streaminfo.SharingNone)
		}
		run(t, c, config)
		if got := c.Info.FilterState.GetString("envoy.network.transport_socket.original_dst_address"); got != want {
			t.Errorf("local %q: %q, want %q", local, got, want)
		}
	}
}

func TestOnDownstreamDataIsRefused(t *testing.T) {
	_, err := Factory{}.Decode(filters.Any{JSON: true, Value: []byte(`{"onDownstreamData":[{"objectKey":"k","factoryKey":"envoy.string","formatString":{"textFormatSource":{"inlineString":"x"}}}]}`)}, nil)
	if err == nil {
		t.Error("accepted")
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and what is accepted compiles and takes a connection.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"onNewConnection":[{"objectKey":"k","factoryKey":"envoy.string","formatString":{"textFormatSource":{"inlineString":"x"}}}]}`), true)
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool) {
		c, err := decodetest.Forms(t, filters.Any{TypeURL: typeURL, JSON: isJSON, Value: b}, Factory{}.Decode)
		if err != nil {
			return
		}
		fl, err := Factory{}.Compile(nil, c)
		if err != nil {
			t.Fatal(err)
		}
		if err := fl.(filters.NetworkFilter).OnNewConnection(connection()); err != nil {
			t.Fatal(err)
		}
	})
}
