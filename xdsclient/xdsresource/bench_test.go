package xdsresource_test

import (
	"testing"

	listenerv3pb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// BenchmarkDecodeListener decodes main_internal of waypoint-rich: 44 filter
// chains, about 25 HTTP connection managers.
func BenchmarkDecodeListener(b *testing.B) {
	var raw []byte
	for _, r := range readDump(b, "waypoint-rich", "lds") {
		if r.Name == "main_internal" {
			var m listenerv3pb.Listener
			if err := xdsresource.Unmarshal(r.Resource, &m); err != nil {
				b.Fatal(err)
			}
			var err error
			if raw, err = proto.Marshal(&m); err != nil {
				b.Fatal(err)
			}
		}
	}
	d := xdsresource.NewDecoder(builtin.Registry(), xdsresource.Options{})
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Listener(raw); err != nil {
			b.Fatal(err)
		}
	}
}
