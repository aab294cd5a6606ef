package upstream

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func TestApplyKeepsUnchangedClustersAndDrainsRemovedOnes(t *testing.T) {
	o := &origin{}
	m := newTestManager(t, o, nil)
	a, b := cluster("a", "10.0.0.1:80"), cluster("b", "10.0.0.2:80")
	m.Apply([]*xdsresource.Cluster{a, b})
	ca, cb := m.Cluster("a"), m.Cluster("b")
	finish(t, open(t, ca))
	finish(t, open(t, cb))
	again := *a
	changed := cluster("c", "10.0.0.3:80")
	m.Apply([]*xdsresource.Cluster{&again, changed})
	if m.Cluster("a") != ca {
		t.Error("an unchanged cluster was replaced")
	}
	if m.Cluster("b") != nil || cb.hosts()[0].st.cxActive.Load() != 0 {
		t.Error("a removed cluster still serves or keeps idle connections")
	}
	finish(t, open(t, ca))
	if o.count() != 2 {
		t.Errorf("%d dials: the pool of the unchanged cluster was lost", o.count())
	}
	changed2 := cluster("c", "10.0.0.4:80")
	changed2.Digest = xdsresource.Digest{2}
	m.Apply([]*xdsresource.Cluster{&again, changed2})
	if got := pick(t, m.Cluster("c")).String(); got != "10.0.0.4:80" {
		t.Errorf("changed cluster picks %s", got)
	}
}

func TestAChangedEDSClusterServesItsFormerVersionWhileItWarms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newTestManager(t, &origin{}, nil)
		v1 := cluster("a")
		v1.Discovery, v1.EDSServiceName = xdsresource.DiscoveryEDS, "svc-1"
		m.Apply([]*xdsresource.Cluster{v1})
		m.UpdateEndpoints("svc-1", assignment("10.0.0.1:80"))
		first := m.Cluster("a")
		v2 := cluster("a")
		v2.Discovery, v2.EDSServiceName, v2.Digest = xdsresource.DiscoveryEDS, "svc-2", xdsresource.Digest{2}
		m.Apply([]*xdsresource.Cluster{v2})
		if m.Cluster("a") != first {
			t.Fatal("the former version is gone before the new one is warm")
		}
		time.Sleep(15 * time.Second)
		synctest.Wait()
		if c := m.Cluster("a"); c == first {
			t.Error("the new version does not start when its endpoints don't arrive")
		} else if _, err := c.Pick(&PickContext{}); !errors.Is(err, ErrNoHealthyHost) {
			t.Errorf("empty cluster: %v", err)
		}
		m.Close()
	})
}

func TestBrokenAndSubsetClustersAreRefused(t *testing.T) {
	m := newTestManager(t, &origin{}, nil)
	a, b := cluster("a", "10.0.0.1:80"), cluster("b", "10.0.0.1:80")
	a.Broken = "cluster_type is unknown"
	b.LB.Subset = true
	m.Apply([]*xdsresource.Cluster{a, b})
	for _, name := range []string{"a", "b"} {
		var be *BrokenError
		if _, err := m.Cluster(name).Pick(&PickContext{}); !errors.As(err, &be) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRetryPredicateAvoidsHostsAsOftenAsAllowed(t *testing.T) {
	c := serving(t, &origin{}, cluster("a", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"))
	bad := c.hosts()[1]
	for range 50 {
		h, err := c.Pick(&PickContext{Avoid: bad.Same, Attempts: 5})
		if err != nil || h == bad {
			t.Fatalf("picked %v, %v", h, err)
		}
	}
}

func TestOverrideHostHeaderNamesTheHost(t *testing.T) {
	spec := cluster("a", "10.0.0.1:80", "10.0.0.2:80")
	spec.LB.OverrideHostHeader = "x-gateway-destination-endpoint"
	c := serving(t, &origin{}, spec)
	s := &filters.Stream{}
	s.Request.Add("x-gateway-destination-endpoint", "10.9.9.9:80, 10.0.0.2:80")
	for range 10 {
		if h, _ := c.Pick(&PickContext{Stream: s}); h.String() != "10.0.0.2:80" {
			t.Fatalf("picked %s", h)
		}
	}
}

func outlier() *xdsresource.OutlierDetection {
	return &xdsresource.OutlierDetection{
		Consecutive5xx: 3, ConsecutiveGatewayFailure: 2, ConsecutiveLocalOriginFailure: 2,
		EnforcingConsecutive5xx: 100, EnforcingConsecutiveLocalOriginFailure: 100,
		Interval: 10 * time.Second, BaseEjectionTime: 30 * time.Second, MaxEjectionTime: 300 * time.Second, MaxEjectionPercent: 50,
	}
}

func TestConsecutive5xxEjectsForAGrowingTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spec := cluster("a", "10.0.0.1:80", "10.0.0.2:80")
		spec.Outlier = outlier()
		m := newTestManager(t, &origin{}, nil)
		m.Apply([]*xdsresource.Cluster{spec})
		c := m.Cluster("a")
		bad := c.hosts()[0]
		fail := func() {
			for range 3 {
				c.Status(bad, 500)
			}
		}
		c.Status(bad, 500)
		c.Status(bad, 500)
		c.Status(bad, 200)
		c.Status(bad, 500)
		if !bad.Healthy() {
			t.Fatal("ejected though a success came in between")
		}
		fail()
		for i, want := range []time.Duration{30 * time.Second, 60 * time.Second, 90 * time.Second} {
			if i > 0 {
				fail()
			}
			if bad.Healthy() {
				t.Fatalf("round %d: not ejected", i)
			}
			for range 20 {
				if pick(t, c) == bad {
					t.Fatal("picked an ejected host")
				}
			}
			start := time.Now()
			for !bad.Healthy() {
				time.Sleep(time.Second)
				synctest.Wait()
			}
			if d := time.Since(start); d < want || d > want+10*time.Second {
				t.Errorf("round %d: back after %v, want %v and at most an interval", i, d, want)
			}
		}
		m.Close()
	})
}

func TestMaxEjectionPercentHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spec := cluster("a", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")
		spec.Outlier = outlier()
		m := newTestManager(t, &origin{}, nil)
		m.Apply([]*xdsresource.Cluster{spec})
		c := m.Cluster("a")
		for _, h := range c.hosts() {
			for range 3 {
				c.Status(h, 503)
			}
		}
		n := 0
		for _, h := range c.hosts() {
			if !h.Healthy() {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d of 3 ejected with 50 %%", n)
		}
		m.Close()
	})
}

func TestLocalOriginFailures(t *testing.T) {
	for _, split := range []bool{false, true} {
		spec := cluster("a", "10.0.0.1:80", "10.0.0.2:80")
		spec.Outlier = outlier()
		spec.Outlier.SplitExternalLocalOrigin = split
		c := serving(t, &origin{}, spec)
		h := c.hosts()[0]
		c.Failed(h, FailureConnect)
		c.Failed(h, FailureTimeout)
		if got := !h.Healthy(); got != split {
			t.Errorf("split %v: ejected %v after two", split, got)
		}
		c.Failed(h, FailureReset)
		if h.Healthy() {
			t.Errorf("split %v: not ejected after three", split)
		}
	}
}

func TestSuccessRateAndFailurePercentageEject(t *testing.T) {
	for _, kind := range []string{"success rate", "failure percentage"} {
		synctest.Test(t, func(t *testing.T) {
			spec := cluster("a", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80", "10.0.0.5:80")
			spec.Outlier = outlier()
			spec.Outlier.Consecutive5xx = 0
			if kind == "success rate" {
				spec.Outlier.EnforcingSuccessRate, spec.Outlier.SuccessRateMinimumHosts, spec.Outlier.SuccessRateRequestVolume, spec.Outlier.SuccessRateStdevFactor = 100, 5, 10, 1900
			} else {
				spec.Outlier.EnforcingFailurePercentage, spec.Outlier.FailurePercentageMinimumHosts, spec.Outlier.FailurePercentageRequestVolume, spec.Outlier.FailurePercentageThreshold = 100, 5, 10, 85
			}
			m := newTestManager(t, &origin{}, nil)
			m.Apply([]*xdsresource.Cluster{spec})
			c := m.Cluster("a")
			for i, h := range c.hosts() {
				for n := range 20 {
					status := 200
					if i == 4 && n < 18 {
						status = 500
					}
					c.Status(h, status)
				}
			}
			time.Sleep(10 * time.Second)
			synctest.Wait()
			for i, h := range c.hosts() {
				if h.Healthy() == (i == 4) {
					t.Errorf("%s: host %d healthy %v", kind, i, h.Healthy())
				}
			}
			m.Close()
		})
	}
}

func TestRetryBudget(t *testing.T) {
	b := &breaker{budget: &xdsresource.RetryBudget{Percent: 20, MinRetryConcurrency: 3}}
	b.requests.max, b.pending.max = 1000, 1000
	n := 0
	for b.takeRetry() {
		n++
	}
	if n != 3 {
		t.Errorf("%d retries without requests, want the minimum of 3", n)
	}
	for range 50 {
		b.requests.take()
	}
	for b.takeRetry() {
		n++
	}
	if n != 10 {
		t.Errorf("%d retries for 50 requests, want 20 %%", n)
	}
}

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
		s.End()
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

type hop struct {
	mu   sync.Mutex
	seen []ConnectOptions
	name string
}

func (d *hop) DialInternal(_ context.Context, name string, _ *Host, o *ConnectOptions) (netio.Conn, error) {
	d.mu.Lock()
	d.seen, d.name = append(d.seen, *o), name
	d.mu.Unlock()
	return &rawConn{}, nil
}

func (d *hop) TakeOver(string, *Host, netio.Conn, *ConnectOptions, func()) error { return nil }

func TestInternalEndpointsCarryWhatIsSharedAndKeepItApart(t *testing.T) {
	d := &hop{}
	m := newTestManager(t, &origin{}, func(o *Options) { o.Internal = d })
	spec := cluster("a")
	spec.TransportSocket.Internal = &xdsresource.InternalUpstream{Passthrough: []xdsresource.PassthroughMetadata{{Host: true, Name: "istio"}}}
	spec.Assignment.Localities[0].Endpoints = []xdsresource.Endpoint{{InternalListener: "connect_originate", EndpointID: "10.0.0.1:80", Weight: 1}}
	m.Apply([]*xdsresource.Cluster{spec})
	c := m.Cluster("a")
	h := pick(t, c)
	if h.String() != "envoy://connect_originate/10.0.0.1:80" || h.Address().String() != "10.0.0.1:80" {
		t.Errorf("host %s address %s", h, h.Address())
	}
	for _, who := range []string{"spiffe://a", "spiffe://a", "spiffe://b", ""} {
		info := &streaminfo.Info{Conn: &streaminfo.Conn{}}
		info.FilterState.Reset(&info.Conn.FilterState)
		info.FilterState.Set("private", streaminfo.String("x"), streaminfo.SharingNone)
		if who != "" {
			info.Conn.FilterState.Set("peer", streaminfo.String(who), streaminfo.SharingOnce)
		}
		s, err := c.NewStream(context.Background(), h, &ConnectOptions{Conn: info.Conn, Info: info, FilterState: &info.FilterState})
		if err != nil {
			t.Fatal(err)
		}
		finish(t, s)
	}
	if len(d.seen) != 3 || d.name != "connect_originate" {
		t.Fatalf("%d dials to %q for three different peers", len(d.seen), d.name)
	}
	for i, want := range []string{"spiffe://a", "spiffe://b", ""} {
		o := d.seen[i]
		var far streaminfo.FilterState
		if o.FilterState != nil {
			o.FilterState.ShareInto(&far)
		}
		if far.GetString("peer") != want || far.Get("private") != nil || len(o.Passthrough) != 1 || o.ClusterMetadata == nil || o.Conn != nil {
			t.Errorf("hop %d: peer %q, want %q; %+v", i, far.GetString("peer"), want, o)
		}
	}
}

func TestTransportSocketMatchFollowsEndpointMetadata(t *testing.T) {
	spec := cluster("a", "10.0.0.1:80", "10.0.0.2:80")
	spec.Matches = []xdsresource.TransportSocketMatch{{Name: "tls", Match: map[string]any{"tlsMode": "istio"}, Socket: xdsresource.TransportSocket{TLS: &xdsresource.UpstreamTLS{}}}}
	spec.Assignment.Localities[0].Endpoints[1].Metadata.Set("envoy.transport_socket_match", "tlsMode", "istio")
	c := serving(t, &origin{}, spec)
	if c.hosts()[0].Secure() || !c.hosts()[1].Secure() {
		t.Error("the socket does not follow the endpoint's metadata")
	}
	_, err := c.NewStream(context.Background(), c.hosts()[1], &ConnectOptions{})
	if err == nil {
		t.Error("a socket without TLS context connected")
	}
}

func TestServerNames(t *testing.T) {
	cases := []struct {
		name        string
		edit        func(*xdsresource.Cluster)
		o           ConnectOptions
		sni, verify string
	}{
		{"nothing automatic", func(*xdsresource.Cluster) {}, ConnectOptions{Authority: "a.test:443"}, "", ""},
		{"auto_sni drops the port", func(c *xdsresource.Cluster) { c.HTTP.AutoSNI = true }, ConnectOptions{Authority: "a.test:443"}, "a.test", ""},
		{"auto_sni ignores addresses", func(c *xdsresource.Cluster) { c.HTTP.AutoSNI, c.HTTP.AutoSANValidation = true, true }, ConnectOptions{Authority: "[::1]:443"}, "", "::1"},
		{"auto_san_validation", func(c *xdsresource.Cluster) { c.HTTP.AutoSNI, c.HTTP.AutoSANValidation = true, true }, ConnectOptions{Authority: "a.test"}, "a.test", "a.test"},
		{"auto_host_sni", func(c *xdsresource.Cluster) {
			c.TransportSocket.TLS.AutoHostSNI, c.TransportSocket.TLS.AutoSNISANValidation = true, true
		}, ConnectOptions{}, "h.test", "h.test"},
		{"filter state wins", func(c *xdsresource.Cluster) { c.HTTP.AutoSNI = true }, ConnectOptions{Authority: "a.test", SNI: "b.test"}, "b.test", ""},
	}
	for _, tc := range cases {
		spec := cluster("a", "10.0.0.1:443")
		spec.TransportSocket.TLS = &xdsresource.UpstreamTLS{}
		spec.Assignment.Localities[0].Endpoints[0].DisplayHost = "h.test"
		tc.edit(spec)
		c := serving(t, &origin{}, spec)
		if sni, verify := c.names(c.hosts()[0], &tc.o); sni != tc.sni || verify != tc.verify {
			t.Errorf("%s: %q %q, want %q %q", tc.name, sni, verify, tc.sni, tc.verify)
		}
	}
}

func TestCalloutRoundTripAndItsBreaker(t *testing.T) {
	status := 200
	o := &origin{answer: func(h *message.Header, body []byte) (int, string) { return status, h.Get(message.Path) + string(body) }}
	m := newTestManager(t, o, nil)
	m.Apply([]*xdsresource.Cluster{cluster("a", "10.0.0.1:80")})
	call := func(limit int64, timeout time.Duration) (*filters.CalloutResponse, error) {
		req := &filters.Callout{Body: []byte("+body"), Timeout: timeout}
		req.Header.Add(message.Path, "/check")
		return m.RoundTrip(context.Background(), "a", req, limit)
	}
	r, err := call(100, time.Second)
	if err != nil || r.Status != 200 || string(r.Body) != "/check+body" {
		t.Fatalf("%+v %v", r, err)
	}
	if _, err := call(5, 0); !errors.Is(err, ErrResponseTooLarge) {
		t.Errorf("over the limit: %v", err)
	}
	if _, err := m.RoundTrip(context.Background(), "nobody", &filters.Callout{}, 1); !errors.Is(err, ErrNoSuchCluster) {
		t.Errorf("unknown cluster: %v", err)
	}
	status = 0
	if _, err := call(5, 20*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("timeout: %v", err)
	}
	status = 503
	for range 40 {
		r, err = call(100, 0)
	}
	if !errors.Is(err, gobreaker.ErrOpenState) {
		t.Errorf("after 40 failures: %+v %v", r, err)
	}
}

func TestStatusListsClustersAndHosts(t *testing.T) {
	m := newTestManager(t, &origin{}, nil)
	eds := cluster("b")
	eds.Discovery = xdsresource.DiscoveryEDS
	m.Apply([]*xdsresource.Cluster{eds, cluster("a", "10.0.0.1:80")})
	finish(t, open(t, m.Cluster("a")))
	st := m.Clusters()
	if len(st) != 2 || st[0].Name != "a" || !st[1].Warming {
		t.Fatalf("%+v", st)
	}
	h := st[0].Hosts[0]
	if h.Address != "10.0.0.1:80" || h.CxActive != 1 || h.RqTotal != 1 || h.Health != "healthy" || h.SuccessRate != -1 {
		t.Errorf("%+v", h)
	}
}
