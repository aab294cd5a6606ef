package originaldst

import (
	"net/netip"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/filterobjects"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

type redirected struct {
	netio.Conn
	to netip.AddrPort
}

func (r redirected) OriginalDst() (netip.AddrPort, bool) { return r.to, r.to.IsValid() }

func TestRestoresAddresses(t *testing.T) {
	hop := netip.MustParseAddrPort("127.0.0.1:15008")
	for _, tc := range []struct {
		name          string
		state         map[string]string
		conn          netio.Conn
		local, remote string
		localName     string
	}{
		{"from the tunnel", map[string]string{filterobjects.OriginalDstLocal: "10.96.1.1:80", filterobjects.OriginalDstRemote: "10.0.0.9:333"}, nil, "10.96.1.1:80", "10.0.0.9:333", ""},
		{"the tunnel's word counts more than the socket's", map[string]string{filterobjects.OriginalDstLocal: "10.96.1.1:80"}, redirected{to: netip.MustParseAddrPort("10.9.9.9:9")}, "10.96.1.1:80", hop.String(), ""},
		{"from the kernel", nil, redirected{to: netip.MustParseAddrPort("10.9.9.9:9")}, "10.9.9.9:9", hop.String(), ""},
		{"not redirected", nil, redirected{}, hop.String(), hop.String(), ""},
		{"a tunnel to a name", map[string]string{filterobjects.ConnectAuthority: "svc.ns:8080"}, nil, "invalid AddrPort", hop.String(), "svc.ns:8080"},
		{"a broken address is no address", map[string]string{filterobjects.OriginalDstLocal: "x", filterobjects.OriginalDstRemote: "y"}, nil, hop.String(), hop.String(), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, err := Factory{}.Compile(nil, &Config{})
			if err != nil {
				t.Fatal(err)
			}
			c := &filters.Connection{Conn: tc.conn, Info: &streaminfo.Info{Conn: &streaminfo.Conn{Local: hop, Remote: hop, DirectRemote: hop}}}
			for k, v := range tc.state {
				c.Info.Conn.FilterState.Set(k, streaminfo.String(v), streaminfo.SharingNone)
			}
			if err := f.OnAccept(c); err != nil {
				t.Fatal(err)
			}
			ci := c.Info.Conn
			if ci.Local.String() != tc.local || ci.Remote.String() != tc.remote || ci.DirectRemote.String() != tc.remote || ci.LocalName != tc.localName {
				t.Errorf("local %v, remote %v, direct %v, name %q", ci.Local, ci.Remote, ci.DirectRemote, ci.LocalName)
			}
		})
	}
}

func TestEndpointMetadataNamesTheDestination(t *testing.T) {
	for state, want := range map[string]string{"": "10.98.0.11:8080", "10.96.1.1:80": "10.96.1.1:80"} {
		c := &filters.Connection{Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}
		c.Info.Conn.Metadata.Set("envoy.filters.listener.original_dst", "local", "10.98.0.11:8080")
		if state != "" {
			c.Info.Conn.FilterState.Set(filterobjects.OriginalDstLocal, streaminfo.String(state), streaminfo.SharingNone)
		}
		if err := (filter{}).OnAccept(c); err != nil {
			t.Fatal(err)
		}
		if got := c.Info.Conn.Local.String(); got != want {
			t.Errorf("filter state %q: got %s, want %s", state, got, want)
		}
	}
}

func FuzzAuthority(f *testing.F) {
	f.Add("1.2.3.4:5", "svc:80")
	f.Add("[::1]:1", ":")
	f.Fuzz(func(t *testing.T, local, authority string) {
		c := &filters.Connection{Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}
		c.Info.Conn.FilterState.Set(filterobjects.OriginalDstLocal, streaminfo.String(local), streaminfo.SharingNone)
		c.Info.Conn.FilterState.Set(filterobjects.ConnectAuthority, streaminfo.String(authority), streaminfo.SharingNone)
		if err := (filter{}).OnAccept(c); err != nil {
			t.Fatal(err)
		}
		if _, err := (Factory{}).Decode(filters.Any{Value: []byte(local)}, nil); err != nil {
			return
		}
	})
}
