package upstream

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/stats"
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

func TestBrokenClustersAreRefused(t *testing.T) {
	m := newTestManager(t, &origin{}, nil)
	a := cluster("a", "10.0.0.1:80")
	a.Broken = "cluster_type is unknown"
	m.Apply([]*xdsresource.Cluster{a})
	var be *BrokenError
	if _, err := m.Cluster("a").Pick(&PickContext{}); !errors.As(err, &be) {
		t.Error(err)
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
	spec.Matches = []xdsresource.TransportSocketMatch{{Match: map[string]any{"tlsMode": "istio"}, Socket: xdsresource.TransportSocket{TLS: &xdsresource.UpstreamTLS{}}}}
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
		{"auto_sni ignores names that are too long", func(c *xdsresource.Cluster) { c.HTTP.AutoSNI = true }, ConnectOptions{Authority: strings.Repeat("a", 256)}, "", ""},
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

func TestCalloutRoundTripAndItsBreaker(t *testing.T) { synctest.Test(t, testCallouts) } // a moment is short

func testCallouts(t *testing.T) {
	status := 200
	o := &origin{answer: func(h *message.Header, body []byte) (int, string) { return status, h.Get(message.Path) + string(body) }}
	m := newTestManager(t, o, nil)
	defer m.Close()
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
	status = 500
	for range 40 {
		if r, err = call(100, 0); err != nil || r.Status != 500 {
			t.Fatalf("an answer is no failure: %+v %v", r, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for range 40 {
		if _, err = m.RoundTrip(ctx, "a", &filters.Callout{}, 1); errors.Is(err, gobreaker.ErrOpenState) {
			t.Fatal("callers that go away opened the breaker")
		}
	}
	status = 503
	for range 40 {
		if r, err = call(100, 0); err != nil || r.Status != 503 {
			t.Fatalf("failures of one moment: %+v %v", r, err)
		}
	}
	status = 200
	if _, err = call(100, 0); err != nil {
		t.Fatal(err)
	}
	status = 503
	for range 10 {
		_, _ = call(100, 0)
	}
	time.Sleep(moment)
	if r, err = call(100, 0); err != nil || r.Status != 503 {
		t.Errorf("the last failure: %+v %v", r, err)
	}
	if r, err = call(100, 0); !errors.Is(err, gobreaker.ErrOpenState) {
		t.Errorf("after failures for a while: %+v %v", r, err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = call(100, 0) }); n > 12 {
		t.Errorf("%v allocations while the breaker is open", n)
	}
}

func TestAProbeThatHangsDoesNotHoldTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		status := 503
		o := &origin{answer: func(*message.Header, []byte) (int, string) { return status, "" }}
		m := newTestManager(t, o, nil)
		m.Apply([]*xdsresource.Cluster{cluster("a", "10.0.0.1:80")})
		call := func() error {
			_, err := m.RoundTrip(context.Background(), "a", &filters.Callout{Timeout: time.Hour}, 100)
			return err
		}
		for range 11 {
			_ = call()
			time.Sleep(moment / 5)
		}
		if err := call(); !errors.Is(err, gobreaker.ErrOpenState) {
			t.Fatalf("not open: %v", err)
		}
		time.Sleep(restPeriod)
		status = 0 // no answer
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = call()
		}()
		synctest.Wait()
		start := time.Now()
		if err := call(); !errors.Is(err, gobreaker.ErrTooManyRequests) {
			t.Errorf("beside the probe: %v", err)
		}
		<-done
		if took := time.Since(start); took != probeTime {
			t.Errorf("the probe took %v", took)
		}
		time.Sleep(restPeriod)
		status = 200
		time.Sleep(time.Millisecond)
		if err := call(); err != nil {
			t.Errorf("well again: %v", err)
		}
	})
}

func TestCalloutsAreRepeatedAsTheirPolicySays(t *testing.T) {
	var answers []int
	o := &origin{answer: func(*message.Header, []byte) (int, string) {
		status := answers[0]
		answers = answers[1:]
		return status, ""
	}}
	m := newTestManager(t, o, nil)
	m.Apply([]*xdsresource.Cluster{cluster("a", "10.0.0.1:80")})
	for _, tc := range []struct {
		name       string
		retry      *filters.Retry
		answers    []int
		left, want int
	}{
		{"no policy", nil, []int{500, 200}, 1, 500},
		{"until it is well", &filters.Retry{Times: 3, Base: 1, Max: 1}, []int{500, 503, 200, 200}, 1, 200},
		{"as often as allowed", &filters.Retry{Times: 1, Base: 1, Max: 1}, []int{500, 503, 200}, 1, 503},
		{"not what was refused", &filters.Retry{Times: 3, Base: 1, Max: 1}, []int{403, 200}, 1, 403},
	} {
		answers = tc.answers
		r, err := m.RoundTrip(context.Background(), "a", &filters.Callout{Retry: tc.retry}, 100)
		if err != nil || r.Status != tc.want || len(answers) != tc.left {
			t.Errorf("%s: %+v %v, %d answers left", tc.name, r, err, len(answers))
		}
	}
	answers = []int{500, 500, 500}
	start := time.Now()
	_, err := m.RoundTrip(context.Background(), "a", &filters.Callout{Timeout: 20 * time.Millisecond, Retry: &filters.Retry{Times: 2, Base: time.Hour, Max: time.Hour}}, 100)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the timeout is for all attempts: %v, %v", took, err)
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

// As Envoy 1.40: one of three hosts is healthy, and nothing goes to it.
func TestTrafficFailsOnPanicIfSoConfigured(t *testing.T) {
	spec := cluster("a", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")
	spec.LB.PanicThreshold, spec.LB.FailOnPanic = 50, true
	for i := range 2 {
		spec.Assignment.Localities[0].Endpoints[1+i].Health = xdsresource.HealthUnhealthy
	}
	m := newTestManager(t, &origin{}, func(o *Options) { o.Stats = (&stats.Registry{}).Scope("") })
	m.Apply([]*xdsresource.Cluster{spec})
	c := m.Cluster("a")
	if h, err := c.Pick(&PickContext{}); !errors.Is(err, ErrNoHealthyHost) {
		t.Errorf("%v, %v", h, err)
	}
	if s := c.stats(); s.lbPanic.Value() != 1 || s.cxNoneHealthy.Value() != 1 {
		t.Errorf("lb_healthy_panic %d, none healthy %d", s.lbPanic.Value(), s.cxNoneHealthy.Value())
	}
}
