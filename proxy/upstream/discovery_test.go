package upstream

import (
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func TestOriginalDstFindsTheDestination(t *testing.T) {
	local := netip.MustParseAddrPort("10.1.1.1:8080")
	md := func(v any) *streaminfo.Conn {
		c := &streaminfo.Conn{Local: local}
		c.Metadata.Set("envoy.filters.listener.original_dst", "waypoint", v)
		return c
	}
	state := &streaminfo.Conn{Local: local}
	state.FilterState.Set(originalDstKey, streaminfo.String("10.3.3.3:443"), streaminfo.SharingNone)
	header := &filters.Stream{}
	header.Request.Add("x-envoy-original-dst-host", "10.4.4.4:90")
	cases := []struct {
		name string
		p    PickContext
		port uint32
		want string
	}{
		{"the connection's destination", PickContext{Conn: &streaminfo.Conn{Local: local}}, 0, "10.1.1.1:8080"},
		{"with the port overridden", PickContext{Conn: &streaminfo.Conn{Local: local}}, 15008, "10.1.1.1:15008"},
		{"metadata wins over the destination", PickContext{Conn: md("10.2.2.2:15008")}, 15008, "10.2.2.2:15008"},
		{"malformed metadata is no host", PickContext{Conn: md("nonsense")}, 0, ""},
		{"filter state wins over all", PickContext{Conn: state}, 0, "10.3.3.3:443"},
		{"a header wins over the destination", PickContext{Conn: &streaminfo.Conn{Local: local}, Stream: header}, 0, "10.4.4.4:90"},
		{"nothing is no host", PickContext{Conn: &streaminfo.Conn{LocalName: "svc:80"}}, 0, ""},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			spec := cluster("a")
			spec.Discovery = xdsresource.DiscoveryOriginalDst
			spec.OriginalDst = xdsresource.OriginalDst{
				UseHTTPHeader: true, PortOverride: tc.port,
				MetadataNS: "envoy.filters.listener.original_dst", MetadataPath: []string{"waypoint"},
			}
			c := serving(t, &origin{}, spec)
			h, err := c.Pick(&tc.p)
			if tc.want == "" {
				if !errors.Is(err, ErrNoHealthyHost) {
					t.Errorf("got %v, %v", h, err)
				}
				return
			}
			if err != nil || h.String() != tc.want {
				t.Errorf("got %v, %v, want %s", h, err, tc.want)
			}
			if again, _ := c.Pick(&tc.p); again != h {
				t.Error("the same destination gave two hosts")
			}
		})
	}
}

func TestUnusedOriginalDstHostsAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spec := cluster("a")
		spec.Discovery, spec.CleanupInterval = xdsresource.DiscoveryOriginalDst, 60*time.Second
		m := newTestManager(t, &origin{}, nil)
		m.Apply([]*xdsresource.Cluster{spec})
		c := m.Cluster("a")
		p := &PickContext{Conn: &streaminfo.Conn{Local: netip.MustParseAddrPort("10.1.1.1:80")}}
		if _, err := c.Pick(p); err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Second)
		if c.hostCount() != 1 {
			t.Error("dropped early")
		}
		time.Sleep(62 * time.Second)
		synctest.Wait()
		if c.hostCount() != 0 {
			t.Error("an unused host stays")
		}
		m.Close()
	})
}
