package upstream

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

type names map[string][]netip.Addr

type fakeDNS struct {
	mu  sync.Mutex
	m   names
	err error
}

func (f *fakeDNS) set(m names, err error) { f.mu.Lock(); f.m, f.err = m, err; f.mu.Unlock() }

func (f *fakeDNS) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil, f.err
	}
	var out []netip.Addr
	for _, a := range f.m[host] {
		if a.Is4() == (network == "ip4") {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no such host")
	}
	return out, nil
}

func addrs(ss ...string) (out []netip.Addr) {
	for _, s := range ss {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestDNSClustersFollowTheirNames(t *testing.T) {
	for _, logical := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			dns := &fakeDNS{}
			dns.set(names{"svc.test": addrs("10.0.0.1", "10.0.0.2", "fd00::1")}, nil)
			m := newTestManager(t, &origin{}, func(o *Options) { o.Resolver = dns })
			spec := cluster("a")
			spec.Discovery = xdsresource.DiscoveryStrictDNS
			if logical {
				spec.Discovery = xdsresource.DiscoveryLogicalDNS
			}
			spec.DNS.Family, spec.DNS.RefreshRate = xdsresource.DNSV4Only, 60*time.Second
			spec.Assignment.Localities[0].Endpoints = []xdsresource.Endpoint{{HostName: "svc.test", Port: 8080, Weight: 1}}
			m.Apply([]*xdsresource.Cluster{spec})
			synctest.Wait()
			c := m.Cluster("a")
			want := map[bool]int{false: 2, true: 1}[logical]
			if c == nil || len(c.hosts()) != want || c.hosts()[0].String() != "10.0.0.1:8080" || c.hosts()[0].Endpoint.DisplayHost != "svc.test" {
				t.Fatalf("logical %v: %v", logical, c.hosts())
			}
			first := c.hosts()[0]
			dns.set(nil, errors.New("SERVFAIL"))
			time.Sleep(61 * time.Second)
			synctest.Wait()
			if len(c.hosts()) != want {
				t.Error("a failure dropped the last good answer")
			}
			dns.set(names{"svc.test": addrs("10.0.0.9", "10.0.0.1")}, nil)
			time.Sleep(61 * time.Second)
			synctest.Wait()
			if c.hosts()[0] != first {
				t.Error("an address that is still there lost its host")
			}
			dns.set(names{"svc.test": addrs("10.0.0.9")}, nil)
			time.Sleep(61 * time.Second)
			synctest.Wait()
			if c.hosts()[0].String() != "10.0.0.9:8080" || len(c.hosts()) != 1 {
				t.Errorf("%v", c.hosts())
			}
			m.Close()
		})
	}
}

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

func TestDynamicForwardProxyResolvesTheAuthority(t *testing.T) {
	dns := &fakeDNS{}
	dns.set(names{"www.test": addrs("10.0.0.7")}, nil)
	m := newTestManager(t, &origin{}, func(o *Options) { o.Resolver = dns })
	spec := cluster("a")
	spec.Discovery = xdsresource.DiscoveryDynamicForwardProxy
	m.Apply([]*xdsresource.Cluster{spec})
	for authority, want := range map[string]string{"www.test": "10.0.0.7:80", "WWW.test:8443": "10.0.0.7:8443", "10.2.3.4:99": "10.2.3.4:99", "[fd00::2]": "[fd00::2]:80", "gone.test": "", "www.test:bad": "", "": ""} {
		s := &filters.Stream{}
		s.Request.Add(message.Authority, authority)
		h, err := m.Cluster("a").Pick(&PickContext{Stream: s})
		s.Reset()
		if want == "" {
			if err == nil {
				t.Errorf("%q gave %v", authority, h)
			}
			if authority == "gone.test" && !errors.Is(err, ErrDNS) {
				t.Errorf("%q: %v", authority, err)
			}
			continue
		}
		if err != nil || h.String() != want {
			t.Errorf("%q gave %v, %v, want %s", authority, h, err, want)
		}
	}
}
