package listener

import (
	"net/netip"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

type fcm = xdsresource.FilterChainMatch

// selections follow Envoy's order of criteria: the most specific value of an
// earlier one wins, and a candidate that it drops does not come back.
var selections = []struct {
	name   string
	chains map[string]*fcm
	conn   streaminfo.Conn
	want   string // "" is the default chain
}{
	{"no match is a match", map[string]*fcm{"a": nil}, streaminfo.Conn{}, "a"},
	{"a single chain must match, too", map[string]*fcm{"a": {DestinationPort: 80}}, streaminfo.Conn{Local: netip.MustParseAddrPort("1.1.1.1:81")}, ""},
	{"the port counts more than the address", map[string]*fcm{"port": {DestinationPort: 80}, "ip": {PrefixRanges: prefixes("1.1.1.1/32")}}, streaminfo.Conn{Local: netip.MustParseAddrPort("1.1.1.1:80")}, "port"},
	{"the longest prefix wins", map[string]*fcm{"8": {PrefixRanges: prefixes("10.0.0.0/8")}, "16": {PrefixRanges: prefixes("10.1.0.0/16")}}, streaminfo.Conn{Local: netip.MustParseAddrPort("10.1.2.3:1")}, "16"},
	{"an address that is mapped to IPv6 matches", map[string]*fcm{"8": {PrefixRanges: prefixes("10.0.0.0/8")}}, streaminfo.Conn{Local: netip.MustParseAddrPort("[::ffff:10.1.2.3]:1")}, "8"},
	{"an exact name before a wildcard", map[string]*fcm{"wild": {ServerNames: []string{"*.b.c"}}, "exact": {ServerNames: []string{"a.b.c"}}}, streaminfo.Conn{RequestedServerName: "A.b.c"}, "exact"},
	{"the longest wildcard", map[string]*fcm{"c": {ServerNames: []string{"*.c"}}, "b.c": {ServerNames: []string{"*.b.c"}}}, streaminfo.Conn{RequestedServerName: "a.b.c"}, "b.c"},
	{"a wildcard needs a label", map[string]*fcm{"w": {ServerNames: []string{"*.b.c"}}}, streaminfo.Conn{RequestedServerName: "b.c"}, ""},
	{"no name takes the chain without names", map[string]*fcm{"named": {ServerNames: []string{"a"}}, "any": {}}, streaminfo.Conn{}, "any"},
	{"the transport", map[string]*fcm{"tls": {TransportProtocol: "tls"}, "raw": {TransportProtocol: "raw_buffer"}}, streaminfo.Conn{TransportProtocol: "raw_buffer"}, "raw"},
	{"an application protocol", map[string]*fcm{"h2": {ApplicationProtocols: []string{"h2c"}}, "any": {}}, streaminfo.Conn{ApplicationProtocols: []string{"h2c"}}, "h2"},
	{"another application protocol", map[string]*fcm{"h2": {ApplicationProtocols: []string{"h2c"}}, "any": {}}, streaminfo.Conn{ApplicationProtocols: []string{"http/1.1"}}, "any"},
	{"the socket's peer", map[string]*fcm{"d": {DirectSourceRanges: prefixes("9.0.0.0/8")}, "any": {}}, streaminfo.Conn{Remote: netip.MustParseAddrPort("1.1.1.1:1"), DirectRemote: netip.MustParseAddrPort("9.1.1.1:1")}, "d"},
	{"loopback is local", map[string]*fcm{"local": {SourceType: xdsresource.SourceSameIPOrLoopback}, "out": {SourceType: xdsresource.SourceExternal}}, streaminfo.Conn{Remote: netip.MustParseAddrPort("127.0.0.1:1")}, "local"},
	{"another host is external", map[string]*fcm{"local": {SourceType: xdsresource.SourceSameIPOrLoopback}, "out": {SourceType: xdsresource.SourceExternal}}, streaminfo.Conn{Remote: netip.MustParseAddrPort("9.9.9.9:1"), Local: netip.MustParseAddrPort("1.1.1.1:1")}, "out"},
	{"the client's address and port", map[string]*fcm{"ip": {SourceRanges: prefixes("9.0.0.0/8")}, "both": {SourceRanges: prefixes("9.0.0.0/8"), SourcePorts: []uint32{7}}}, streaminfo.Conn{Remote: netip.MustParseAddrPort("9.9.9.9:7")}, "both"},
	{"a dropped candidate does not come back", map[string]*fcm{"port": {DestinationPort: 80, ServerNames: []string{"x"}}, "any": {}}, streaminfo.Conn{Local: netip.MustParseAddrPort("1.1.1.1:80"), RequestedServerName: "y"}, ""},
}

func TestTheMostSpecificChainIsPicked(t *testing.T) {
	if len(selections) != 17 {
		t.Fatalf("%d cases, want 17", len(selections))
	}
	for _, c := range selections {
		t.Run(c.name, func(t *testing.T) {
			cfg := &Config{Spec: &xdsresource.Listener{}, Default: &Chain{Name: ""}}
			for name, m := range c.chains {
				cfg.Chains = append(cfg.Chains, &Chain{Name: name, Match: m})
			}
			s, err := newSelector(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if got := s.pick(&c.conn).Name; got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
