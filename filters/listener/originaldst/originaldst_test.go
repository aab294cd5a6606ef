package originaldst

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
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

// FuzzAuthority: the destination is what net says the tunnel's address is, else
// the name and port of its authority, else the socket's own; a remote address
// changes only to what net says it is.
func FuzzAuthority(f *testing.F) {
	f.Add("1.2.3.4:5", "svc:80", "")
	f.Add("[::1]:1", ":", "9.9.9.9:9")
	f.Add("", "a:65536", "x")
	own := netip.MustParseAddrPort("127.0.0.1:15006")
	f.Fuzz(func(t *testing.T, local, authority, remote string) {
		c := &filters.Connection{Info: &streaminfo.Info{Conn: &streaminfo.Conn{Local: own, Remote: own, DirectRemote: own}}}
		for k, v := range map[string]string{filterobjects.OriginalDstLocal: local, filterobjects.ConnectAuthority: authority, filterobjects.OriginalDstRemote: remote} {
			c.Info.Conn.FilterState.Set(k, streaminfo.String(v), streaminfo.SharingNone)
		}
		if err := (filter{}).OnAccept(c); err != nil {
			t.Fatal(err)
		}
		want, name := own, ""
		if a, ok := address(local); ok {
			want = a
		} else if i := strings.LastIndex(authority, ":"); i >= 0 {
			if n, err := strconv.ParseUint(authority[i+1:], 10, 16); err == nil {
				want, name = netip.AddrPortFrom(netip.Addr{}, uint16(n)), authority
			}
		}
		if got := c.Info.Conn; got.Local != want || got.LocalName != name {
			t.Fatalf("%q, %q: %v %q, want %v %q", local, authority, got.Local, got.LocalName, want, name)
		}
		wantRemote := own
		if a, ok := address(remote); ok {
			wantRemote = a
		}
		if got := c.Info.Conn; got.Remote != wantRemote || got.DirectRemote != wantRemote {
			t.Fatalf("%q: %v, want %v", remote, got.Remote, wantRemote)
		}
	})
}

// address is what package net takes for an IP address with a port.
func address(s string) (netip.AddrPort, bool) {
	host, port, err := net.SplitHostPort(s)
	if err != nil || strings.Contains(host, "%") {
		return netip.AddrPort{}, false
	}
	ip, err := netip.ParseAddr(host)
	n, err2 := strconv.ParseUint(port, 10, 16)
	if err != nil || err2 != nil || ip.Is6() != strings.HasPrefix(s, "[") {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(n)), true
}
