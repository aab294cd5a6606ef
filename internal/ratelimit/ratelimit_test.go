package ratelimit

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func text(t *testing.T, src string) *format.String {
	t.Helper()
	s, err := format.Compile(src)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDescriptors(t *testing.T) {
	h := &message.Header{}
	h.Add(message.Path, "/p?q=one")
	h.Add("x-user", "me")
	h.Add("x-hits", "3")
	info := &streaminfo.Info{Conn: &streaminfo.Conn{}}
	info.Conn.Remote = netip.MustParseAddrPort("[2001:db8::1]:1")
	info.Metadata.Set("ns", "name", "gold")
	info.Metadata.Set("ns", "limit", map[string]any{"requests_per_unit": 5.0, "unit": "DAY"})
	info.Metadata.Set("ns", "broken", map[string]any{"requests_per_unit": -1.0, "unit": "DAY"})
	in := &Input{Info: info, Request: h, Cluster: "c", Node: "n"}
	one := func(a Action) *Limit { return &Limit{Actions: []Action{a}} }
	fixed := Action{Kind: Fixed, Key: "k", Value: text(t, "v")}
	seven := uint64(7)
	for _, c := range []struct {
		name string
		l    *Limit
		want string
	}{
		{"no actions", &Limit{}, "none"},
		{"a rendered value", one(Action{Kind: Fixed, Key: "k", Value: text(t, "u-%REQ(x-user)%")}), "k=u-me"},
		{"an empty value with a default", one(Action{Kind: Fixed, Key: "k", Value: text(t, "%REQ(x-none)%"), Default: "d"}), "k=d"},
		{"an empty value", one(Action{Kind: Fixed, Key: "k", Value: text(t, "%REQ(x-none)%")}), "none"},
		{"a missing header", &Limit{Actions: []Action{fixed, {Kind: RequestHeader, Key: "h", Name: "x-none"}}}, "none"},
		{"a missing header that is skipped", &Limit{Actions: []Action{fixed, {Kind: RequestHeader, Key: "h", Name: "x-none", SkipIfAbsent: true}}}, "k=v"},
		{"all is skipped", one(Action{Kind: RequestHeader, Key: "h", Name: "x-none", SkipIfAbsent: true}), "none"},
		{"an address", one(Action{Kind: RemoteAddress, Key: "a"}), "a=2001:db8::1"},
		{"a masked address", one(Action{Kind: MaskedAddress, Key: "a", Mask4: 32, Mask6: 32}), "a=2001:db8::/32"},
		{"an address outside", one(Action{Kind: AddressMatch, Key: "a", Value: text(t, "in"), Expect: true, Ranges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}), "none"},
		{"an address outside, as expected", one(Action{Kind: AddressMatch, Key: "a", Value: text(t, "out"), Ranges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}), "a=out"},
		{"metadata", one(Action{Kind: MetadataValue, Key: "m", Metadata: MetadataKey{"ns", []string{"name"}}}), "m=gold"},
		{"metadata of a route that has none", one(Action{Kind: MetadataValue, Key: "m", FromRoute: true, Metadata: MetadataKey{"ns", []string{"name"}}}), "none"},
		{"metadata that is no string", one(Action{Kind: MetadataValue, Key: "m", Metadata: MetadataKey{"ns", []string{"limit"}}}), "none"},
		{"a query parameter", one(Action{Kind: QueryValue, Key: "q", Name: "q"}), "q=one"},
		{"a limit of metadata", &Limit{Actions: []Action{fixed}, OverrideFrom: &MetadataKey{"ns", []string{"limit"}}}, "k=v 5/4"},
		{"a limit of metadata that is broken", &Limit{Actions: []Action{fixed}, OverrideFrom: &MetadataKey{"ns", []string{"broken"}}}, "k=v"},
		{"a limit", &Limit{Actions: []Action{fixed}, Override: &Override{2, Minute}}, "k=v 2/2"},
		{"hits", &Limit{Actions: []Action{fixed}, Hits: &Hits{Number: &seven, Negative: true}}, "k=v -7"},
		{"hits of a header", &Limit{Actions: []Action{fixed}, Hits: &Hits{Format: text(t, "%REQ(x-hits)%")}}, "k=v +3"},
		{"hits that are no number", &Limit{Actions: []Action{fixed}, Hits: &Hits{Format: text(t, "%REQ(x-user)%")}}, "none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, ok := c.l.Describe(in)
			got := "none"
			if ok {
				var parts []string
				for _, e := range d.Entries {
					parts = append(parts, e.Key+"="+e.Value)
				}
				if o := d.Override; o != nil {
					parts = append(parts, fmt.Sprintf("%d/%d", o.Requests, o.Unit))
				}
				if d.Hits != nil {
					parts = append(parts, map[bool]string{true: "-", false: "+"}[d.Negative]+fmt.Sprint(*d.Hits))
				}
				got = strings.Join(parts, " ")
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
