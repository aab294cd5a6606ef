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
	"github.com/fairlead-mesh/fairlead/internal/dns"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

type names map[string][]netip.Addr

type fakeDNS struct {
	mu    sync.Mutex
	m     names
	ttl   time.Duration
	err   error
	asked int
	ttls  map[string]time.Duration
}

func (f *fakeDNS) set(m names, err error) { f.mu.Lock(); f.m, f.err = m, err; f.mu.Unlock() }

func (f *fakeDNS) Lookup(_ context.Context, host string, t dns.Type) (dns.Answer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	if f.err != nil {
		return dns.Answer{}, f.err
	}
	out := dns.Answer{TTL: f.ttl}
	if d, ok := f.ttls[host]; ok {
		out.TTL = d
	}
	for _, a := range f.m[host] {
		if a.Is4() == (t == dns.IPv4) {
			out.Addrs = append(out.Addrs, a)
		}
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
			server := &fakeDNS{}
			server.set(names{"svc.test": addrs("10.0.0.1", "10.0.0.2", "fd00::1")}, nil)
			m := newTestManager(t, &origin{}, func(o *Options) { o.Resolver = server })
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
			server.set(nil, errors.New("SERVFAIL"))
			time.Sleep(61 * time.Second)
			synctest.Wait()
			if len(c.hosts()) != want {
				t.Error("a failure dropped the last good answer")
			}
			server.set(names{"svc.test": addrs("10.0.0.9", "10.0.0.1")}, nil)
			time.Sleep(61 * time.Second)
			synctest.Wait()
			if c.hosts()[0] != first {
				t.Error("an address that is still there lost its host")
			}
			server.set(names{"svc.test": addrs("10.0.0.9")}, nil)
			time.Sleep(61 * time.Second)
			synctest.Wait()
			if c.hosts()[0].String() != "10.0.0.9:8080" || len(c.hosts()) != 1 {
				t.Errorf("%v", c.hosts())
			}
			m.Close()
		})
	}
}

func TestDynamicForwardProxyResolvesTheAuthority(t *testing.T) {
	server := &fakeDNS{}
	server.set(names{"www.test": addrs("10.0.0.7")}, nil)
	m := newTestManager(t, &origin{}, func(o *Options) { o.Resolver = server })
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

// resolving runs one DNS cluster with the given settings.
func resolving(t *testing.T, server *fakeDNS, kind xdsresource.Discovery, d xdsresource.DNS, names ...string) (*Manager, *Cluster) {
	t.Helper()
	m := newTestManager(t, &origin{}, func(o *Options) { o.Resolver = server })
	spec := cluster("a")
	spec.Discovery, spec.DNS = kind, d
	spec.Assignment.Localities[0].Endpoints = nil
	for _, n := range names {
		spec.Assignment.Localities[0].Endpoints = append(spec.Assignment.Localities[0].Endpoints, xdsresource.Endpoint{HostName: n, Port: 8080, Weight: 1})
	}
	if kind == xdsresource.DiscoveryDynamicForwardProxy {
		spec.Assignment = nil
	}
	m.Apply([]*xdsresource.Cluster{spec})
	synctest.Wait()
	return m, m.Cluster("a")
}

// pace lets time pass in steps of half a second and returns at which of them names
// were asked for.
func (f *fakeDNS) pace(d time.Duration) (at []time.Duration) {
	count := func() int { f.mu.Lock(); defer f.mu.Unlock(); return f.asked }
	before := count()
	for now := time.Duration(0); now < d; {
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		now += 500 * time.Millisecond
		if n := count(); n != before {
			before = n
			at = append(at, now)
		}
	}
	return at
}

// Envoy 1.40 against a name server that counts: TTL 3 s and dns_refresh_rate 2 s.
func TestNamesAreResolvedAgainWhenTheirTTLIsOver(t *testing.T) {
	for _, tc := range []struct {
		name string
		d    xdsresource.DNS
		ttl  time.Duration
		want time.Duration
	}{
		{"not respected", xdsresource.DNS{RefreshRate: 2 * time.Second}, 3 * time.Second, 2 * time.Second},
		{"respected", xdsresource.DNS{RefreshRate: 2 * time.Second, RespectTTL: true}, 3 * time.Second, 3 * time.Second},
		{"none, as from the hosts file", xdsresource.DNS{RefreshRate: 2 * time.Second, RespectTTL: true}, 0, 2 * time.Second},
		{"shorter than the least", xdsresource.DNS{RefreshRate: 2 * time.Second, RespectTTL: true, MinRefreshRate: 7 * time.Second}, 3 * time.Second, 7 * time.Second},
		{"longer than the least", xdsresource.DNS{RefreshRate: 2 * time.Second, RespectTTL: true, MinRefreshRate: 7 * time.Second}, 9 * time.Second, 9 * time.Second},
	} {
		for _, kind := range []xdsresource.Discovery{xdsresource.DiscoveryStrictDNS, xdsresource.DiscoveryLogicalDNS} {
			synctest.Test(t, func(t *testing.T) {
				server := &fakeDNS{ttl: tc.ttl}
				server.set(names{"svc.test": addrs("10.0.0.1")}, nil)
				tc.d.Family = xdsresource.DNSV4Only
				m, _ := resolving(t, server, kind, tc.d, "svc.test")
				if at := server.pace(20 * time.Second); len(at) < 2 || at[0] != tc.want || at[1] != 2*tc.want {
					t.Errorf("%s: asked at %v, want each %v", tc.name, at, tc.want)
				}
				m.Close()
			})
		}
	}
}

func TestEachNameHasItsOwnPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fakeDNS{}
		server.set(names{"a.test": addrs("10.0.0.1"), "b.test": addrs("10.0.0.2")}, nil)
		server.ttls = map[string]time.Duration{"a.test": 2 * time.Second, "b.test": 60 * time.Second}
		m, c := resolving(t, server, xdsresource.DiscoveryStrictDNS, xdsresource.DNS{Family: xdsresource.DNSV4Only, RespectTTL: true}, "a.test", "b.test", "a.test")
		if len(c.hosts()) != 2 { // the third is a duplicate
			t.Fatalf("%v", c.hosts())
		}
		server.set(names{"a.test": addrs("10.0.0.3"), "b.test": addrs("10.0.0.4")}, nil)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if c.hosts()[0].String() != "10.0.0.3:8080" || c.hosts()[1].String() != "10.0.0.2:8080" {
			t.Errorf("%v", c.hosts())
		}
		m.Close()
	})
}

// As Envoy 1.40, seen with a name server that answers NXDOMAIN and without
// addresses: a STRICT_DNS cluster loses its hosts, a LOGICAL_DNS one keeps its own.
func TestANameWithoutAddressesEmptiesStrictDNSOnly(t *testing.T) {
	for kind, want := range map[xdsresource.Discovery]int{xdsresource.DiscoveryStrictDNS: 0, xdsresource.DiscoveryLogicalDNS: 1} {
		synctest.Test(t, func(t *testing.T) {
			server := &fakeDNS{}
			server.set(names{"svc.test": addrs("10.0.0.1")}, nil)
			m, c := resolving(t, server, kind, xdsresource.DNS{}, "svc.test")
			server.set(nil, nil)
			time.Sleep(6 * time.Second)
			synctest.Wait()
			if len(c.hosts()) != want {
				t.Errorf("%v: %d hosts, want %d", kind, len(c.hosts()), want)
			}
			m.Close()
		})
	}
}

func TestPausesAfterFailuresGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pause{d: &xdsresource.DNS{RefreshRate: 9 * time.Second, FailureBase: time.Second, FailureMax: 4 * time.Second}}
		for _, limit := range []time.Duration{1, 2, 4, 4, 4} {
			if got := p.failed(); got <= 0 || got >= limit*time.Second {
				t.Errorf("%v is not within %v s", got, limit)
			}
			if p.step != limit*time.Second {
				t.Errorf("step %v, want %v s", p.step, limit)
			}
		}
		if got := p.answered(true, 0); got != 9*time.Second || p.step != 0 {
			t.Errorf("after an answer %v", got)
		}
		p = pause{d: &xdsresource.DNS{RefreshRate: 9 * time.Second, Jitter: time.Second}}
		if got := p.failed(); got != 9*time.Second {
			t.Errorf("a failure without a rate of its own: %v", got)
		}
		sum := time.Duration(0)
		for range 100 {
			d := p.answered(true, time.Hour) - 9*time.Second
			if d < 0 || d >= time.Second {
				t.Fatalf("jitter %v", d)
			}
			sum += d
		}
		if sum < 20*time.Second || sum > 80*time.Second {
			t.Errorf("jitter is %v on average", sum/100)
		}
	})
}

// ask picks a host of a dynamic_forward_proxy cluster.
func ask(c *Cluster, authority string) (string, error) {
	s := &filters.Stream{}
	s.Request.Add(message.Authority, authority)
	defer s.Reset()
	h, err := c.Pick(&PickContext{Stream: s})
	if err != nil {
		return "", err
	}
	return h.String(), nil
}

func TestDynamicForwardProxyResolvesAgainInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fakeDNS{ttl: 10 * time.Second}
		server.set(names{"a.test": addrs("10.0.0.1")}, nil)
		d := xdsresource.DNS{Family: xdsresource.DNSV4Only, RefreshRate: time.Minute, RespectTTL: true, MinRefreshRate: 5 * time.Second}
		d.Cache.HostTTL = 30 * time.Second
		m, c := resolving(t, server, xdsresource.DiscoveryDynamicForwardProxy, d)
		want := func(when, addr string) {
			t.Helper()
			if got, err := ask(c, "a.test"); got != addr+":80" {
				t.Errorf("%s: %s, %v, want %s", when, got, err, addr)
			}
		}
		want("at first", "10.0.0.1")
		server.set(names{"a.test": addrs("10.0.0.2")}, nil)
		want("within the TTL", "10.0.0.1")
		if at := server.pace(11 * time.Second); len(at) != 1 || at[0] != 10*time.Second {
			t.Errorf("asked at %v", at)
		}
		want("after it", "10.0.0.2")
		server.set(nil, errors.New("SERVFAIL"))
		time.Sleep(10 * time.Second)
		want("after a failure", "10.0.0.2")
		server.set(nil, nil)
		time.Sleep(65 * time.Second)
		synctest.Wait()
		if n := len(c.dynamic.names.names); n != 0 {
			t.Errorf("%d names although none is used", n)
		}
		if _, err := ask(c, "a.test"); !errors.Is(err, ErrDNS) {
			t.Errorf("a name without addresses: %v", err)
		}
		m.Close()
	})
}

func TestDynamicForwardProxyLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fakeDNS{}
		server.set(names{"a.test": addrs("10.0.0.1"), "b.test": addrs("10.0.0.2"), "c.test": addrs("10.0.0.3")}, nil)
		d := xdsresource.DNS{Family: xdsresource.DNSV4Only, RefreshRate: time.Minute, Cache: xdsresource.DNSCache{MaxHosts: 2, ForgetFailures: true, Preresolve: []string{"A.test"}}}
		m, c := resolving(t, server, xdsresource.DiscoveryDynamicForwardProxy, d)
		if server.asked != 1 {
			t.Errorf("%d names are resolved at once", server.asked)
		}
		server.set(server.m, errors.New("SERVFAIL"))
		if _, err := ask(c, "c.test"); !errors.Is(err, ErrDNS) {
			t.Errorf("%v", err)
		}
		server.set(server.m, nil)
		if got, err := ask(c, "b.test"); got != "10.0.0.2:80" {
			t.Errorf("the name that failed keeps its place: %v", err)
		}
		if _, err := ask(c, "c.test"); !errors.Is(err, errNamesOverflow) {
			t.Errorf("a third name: %v", err)
		}
		m.Close()
	})
}

func TestClustersShareResolvers(t *testing.T) {
	m := newTestManager(t, &origin{}, func(o *Options) { o.DNS = &dns.Config{TCP: true} })
	own := &xdsresource.DNS{Resolver: &dns.Config{Servers: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:53")}}}
	same := &xdsresource.DNS{Resolver: &dns.Config{Servers: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:53")}}}
	if m.resolver(own) != m.resolver(same) || m.resolver(own) == m.resolver(&xdsresource.DNS{}) ||
		m.resolver(&xdsresource.DNS{}) != m.resolver(&xdsresource.DNS{Resolver: &dns.Config{TCP: true}}) {
		t.Error("resolvers don't follow the configuration")
	}
}
