package tcpproxy

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/fairlead-mesh/fairlead/internal/timer.(*wheel).run"))
}

var (
	client = netip.MustParseAddrPort("192.0.2.1:5555")
	dest   = netip.MustParseAddrPort("10.5.5.5:9080")
	local  = netip.MustParseAddrPort("10.0.0.254:4000")
)

// origin is the upstream side: dials give one end of a pipe, the other is
// served by handle.
type origin struct {
	mu     sync.Mutex
	dialed []string
	refuse error
	handle func(c netio.Conn)
	// tunnels
	status  int
	flushed error
	heads   []message.Header
	headers []message.Field
}

func (o *origin) dial(_ context.Context, a netip.AddrPort, _ netio.DialOptions) (netio.Conn, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.dialed = append(o.dialed, a.String())
	if o.refuse != nil {
		return nil, o.refuse
	}
	near, far := netio.Pipe(local, a)
	if o.handle != nil {
		go o.handle(far)
	}
	return near, nil
}

// tunnelConn is an HTTP/2 connection whose streams are pipes.
type tunnelConn struct {
	o   *origin
	raw netio.Conn
	cfg transport.ClientConfig
}

func (c *tunnelConn) NewStream() (transport.ClientStream, error) { return &tunnelStream{c: c}, nil }
func (c *tunnelConn) Available() int                             { return 100 }
func (c *tunnelConn) Active() int                                { return 0 }
func (c *tunnelConn) Drain()                                     { c.Close(nil) }
func (c *tunnelConn) Close(err error)                            { c.raw.Close(); c.cfg.OnClose(c, err) }
func (c *tunnelConn) Done() <-chan struct{}                      { return nil }

type tunnelStream struct {
	transport.ClientStream
	c *tunnelConn
}

func (s *tunnelStream) Version() message.Version { return message.HTTP2 }
func (s *tunnelStream) WriteHeaders(h *message.Header, _ bool) error {
	var head message.Header
	head.CopyFrom(h)
	s.c.o.mu.Lock()
	s.c.o.heads = append(s.c.o.heads, head)
	s.c.o.mu.Unlock()
	return nil
}
func (s *tunnelStream) Flush() error { return s.c.o.flushed }
func (s *tunnelStream) ReadHeaders(h *message.Header) (int, bool, error) {
	h.Add(message.Status, strconv.Itoa(s.c.o.status))
	for _, f := range s.c.o.headers {
		h.AddField(f)
	}
	return s.c.o.status, s.c.o.status != 200, nil
}

func (s *tunnelStream) Tunnel() netio.Conn {
	near, far := netio.Pipe(local, dest)
	go s.c.o.handle(far)
	x, _ := near.(pipeEnd)
	return streamPipe{x}
}

type pipeEnd interface {
	netio.Conn
	netio.Unparker
	netio.Prober
	netio.ReadInterrupter
}

// streamPipe can do what an HTTP/2 stream can.
type streamPipe struct{ pipeEnd }

func (s streamPipe) WriteParts(a, b, c []byte) error {
	return netio.WriteParts(struct{ netio.Conn }{s.pipeEnd}, a, b, c)
}

func (s *tunnelStream) Interrupt(error)  {}
func (s *tunnelStream) Reset()           {}
func (s *tunnelStream) Release()         { s.c.cfg.OnIdle(s.c) }
func (s *tunnelStream) BytesIn() uint64  { return 0 }
func (s *tunnelStream) BytesOut() uint64 { return 0 }

func echo(c netio.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			_, _ = c.Write(buf[:n])
		}
		if err != nil {
			_ = c.CloseWrite()
			_ = c.Close()
			return
		}
	}
}

type lines struct {
	mu    sync.Mutex
	infos []streaminfo.Info
}

func (l *lines) Log(c *format.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.infos = append(l.infos, *c.Info)
}

func (l *lines) all() []streaminfo.Info { l.mu.Lock(); defer l.mu.Unlock(); return l.infos }

const unlimited = 4294967295

func cluster(name string, addrs ...string) *xdsresource.Cluster {
	c := &xdsresource.Cluster{Assignment: &xdsresource.ClusterLoadAssignment{Localities: []xdsresource.LocalityEndpoints{{Weight: 1}}}}
	c.Name = name
	for i := range c.Breakers {
		c.Breakers[i] = xdsresource.CircuitBreaker{MaxConnections: unlimited, MaxPendingRequests: unlimited, MaxRequests: unlimited, MaxRetries: unlimited}
	}
	for _, a := range addrs {
		c.Assignment.Localities[0].Endpoints = append(c.Assignment.Localities[0].Endpoints, xdsresource.Endpoint{Address: netip.MustParseAddrPort(a), Weight: 1})
	}
	return c
}

func manager(t *testing.T, o *origin, cs ...*xdsresource.Cluster) *upstream.Manager {
	m := upstream.NewManager(upstream.Options{
		Dial: o.dial,
		HTTP2: func(c netio.Conn, cfg *transport.ClientConfig) (transport.ClientConn, error) {
			return &tunnelConn{o: o, raw: c, cfg: *cfg}, nil
		},
	})
	t.Cleanup(m.Close)
	m.Apply(cs)
	return m
}

// serve runs one connection through a filter and returns the client's end and
// a channel that is closed at the end.
func serve(t *testing.T, cfg *xdsresource.TCPProxy, d Deps) (netio.Conn, *streaminfo.Info, chan struct{}) {
	t.Helper()
	f, err := New(cfg, d)
	if err != nil {
		t.Fatal(err)
	}
	near, far := netio.Pipe(client, dest)
	info := &streaminfo.Info{Conn: &streaminfo.Conn{Local: dest, Remote: client}, Start: time.Now()}
	info.FilterState.Reset(&info.Conn.FilterState)
	done := make(chan struct{})
	go f.Serve(&filters.Connection{Conn: far, Info: info}, func() { close(done) })
	return near, info, done
}

func wait(t *testing.T, done chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the connection does not end")
	}
}

func roundTrip(t *testing.T, c netio.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len(text))
	for n := 0; n < len(buf); {
		k, err := c.Read(buf[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += k
	}
	if string(buf) != text {
		t.Errorf("got %q", buf)
	}
}

func TestBytesGoToTheClusterAndBack(t *testing.T) {
	o := &origin{handle: echo}
	l := &lines{}
	m := manager(t, o, cluster("c", "10.0.0.1:80"))
	c, _, done := serve(t, &xdsresource.TCPProxy{Cluster: "c"}, Deps{Clusters: m, AccessLogs: []AccessLogger{l}})
	roundTrip(t, c, "hello")
	_ = c.CloseWrite()
	wait(t, done)
	_ = c.Close()
	got := l.all()
	if len(got) != 1 {
		t.Fatalf("%d log lines", len(got))
	}
	i := got[0]
	if i.BytesReceived != 5 || i.BytesSent != 5 || i.Flags != 0 || i.Upstream.Host != "10.0.0.1:80" || i.Upstream.Cluster != "c" || i.Upstream.Local != local || i.End.IsZero() {
		t.Errorf("%+v", i)
	}
	if st := m.Clusters()[0]; st.Breakers[0].Connections != 0 || st.Hosts[0].CxActive != 0 {
		t.Errorf("%+v", st)
	}
}

func TestFailuresAreFlagged(t *testing.T) {
	over := cluster("c", "10.0.0.1:80")
	over.Breakers[0].MaxConnections = 0
	cases := []struct {
		name   string
		o      *origin
		spec   *xdsresource.Cluster
		cfg    xdsresource.TCPProxy
		flags  string
		dials  int
		reason string
	}{
		{"refused", &origin{refuse: errors.New("delayed connect error: Connection refused")}, cluster("c", "10.0.0.1:80"), xdsresource.TCPProxy{Cluster: "c"}, "UF,URX", 1, "delayed_connect_error:_Connection_refused"},
		{"refused thrice", &origin{refuse: errors.New("no")}, cluster("c", "10.0.0.1:80"), xdsresource.TCPProxy{Cluster: "c", MaxConnectAttempts: 3}, "UF,URX", 3, "no"},
		{"no host", &origin{}, cluster("c"), xdsresource.TCPProxy{Cluster: "c"}, "UH", 0, ""},
		{"no cluster", &origin{}, cluster("c"), xdsresource.TCPProxy{Cluster: "gone"}, "NC", 0, ""},
		{"overflow", &origin{}, over, xdsresource.TCPProxy{Cluster: "c", MaxConnectAttempts: 3}, "UO", 0, ""},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c, info, done := serve(t, &tc.cfg, Deps{Clusters: manager(t, tc.o, tc.spec)})
			wait(t, done)
			if info.Flags.String() != tc.flags || len(tc.o.dialed) != tc.dials || info.Upstream.TransportFailureReason != tc.reason {
				t.Errorf("flags %s after %d dials, reason %q", info.Flags, len(tc.o.dialed), info.Upstream.TransportFailureReason)
			}
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("the client's connection is open")
			}
			_ = c.Close()
		})
	}
}

func TestWeightsDivideConnections(t *testing.T) {
	f, err := New(&xdsresource.TCPProxy{Weighted: []xdsresource.WeightedTCPCluster{{Name: "a", Weight: 3}, {Name: "b", Weight: 1}}}, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	n, info := map[string]int{}, &streaminfo.Info{Conn: &streaminfo.Conn{}}
	for range 20000 {
		name := f.(*Filter).route(info)
		n[name]++
	}
	if a := float64(n["a"]) / 20000; a < 0.73 || a > 0.77 || n["a"]+n["b"] != 20000 {
		t.Errorf("%v", n)
	}
	info.FilterState.Set("envoy.tcp_proxy.cluster", streaminfo.String("z"), streaminfo.SharingNone)
	if name := f.(*Filter).route(info); name != "z" {
		t.Errorf("a cluster named by a filter is ignored: %s", name)
	}
}

func TestUnusableConfigurationsAreRefused(t *testing.T) {
	for _, cfg := range []*xdsresource.TCPProxy{{}, {Weighted: []xdsresource.WeightedTCPCluster{{Name: "a"}}}, {Cluster: "a", Tunneling: &xdsresource.Tunneling{}}} {
		if _, err := New(cfg, Deps{}); err == nil {
			t.Errorf("%+v accepted", cfg)
		}
	}
}

func TestMaxConnectionDurationEndsTheConnection(t *testing.T) {
	o := &origin{handle: echo}
	m := manager(t, o, cluster("c", "10.0.0.1:80"))
	c, info, done := serve(t, &xdsresource.TCPProxy{Cluster: "c", MaxConnectionDuration: 500 * time.Millisecond}, Deps{Clusters: m})
	roundTrip(t, c, "x")
	wait(t, done)
	_ = c.Close()
	if info.Flags != streaminfo.DurationTimeout || info.LocalClose != "max_connection_duration_reached" {
		t.Errorf("flags %s details %s", info.Flags, info.LocalClose)
	}
}

func TestIdleTimeoutEndsTheConnection(t *testing.T) { synctest.Test(t, testIdleTimeout) }

func testIdleTimeout(t *testing.T) {
	o := &origin{handle: echo}
	m := manager(t, o, cluster("c", "10.0.0.1:80"))
	c, info, done := serve(t, &xdsresource.TCPProxy{Cluster: "c", IdleTimeout: 6 * time.Second}, Deps{Clusters: m})
	for range 4 {
		time.Sleep(2500 * time.Millisecond)
		roundTrip(t, c, "x")
	}
	wait(t, done)
	_ = c.Close()
	if info.LocalClose != "tcp_session_idle_timeout" || info.BytesReceived != 4 {
		t.Errorf("details %q after %d bytes", info.LocalClose, info.BytesReceived)
	}
	f, err := format.Compile("%UPSTREAM_WIRE_BYTES_RECEIVED% %UPSTREAM_WIRE_BYTES_SENT%")
	if err != nil {
		t.Fatal(err)
	}
	if got := string(f.Append(nil, &format.Context{Info: info})); got != "4 4" {
		t.Errorf("on the wire: %s", got)
	}
}

func TestPeriodicLogLinesShowProgress(t *testing.T) {
	o := &origin{handle: echo}
	l := &lines{}
	m := manager(t, o, cluster("c", "10.0.0.1:80"))
	c, _, done := serve(t, &xdsresource.TCPProxy{Cluster: "c", AccessLogFlushInterval: 20 * time.Millisecond, FlushOnConnected: true}, Deps{Clusters: m, AccessLogs: []AccessLogger{l}})
	roundTrip(t, c, "hello")
	for end := time.Now().Add(10 * time.Second); len(l.all()) < 3 && time.Now().Before(end); { // the first, and two
		time.Sleep(time.Millisecond)
	}
	_ = c.CloseWrite()
	wait(t, done)
	_ = c.Close()
	if got := l.all(); len(got) < 4 {
		t.Errorf("%d lines", len(got))
	}
}

// TestTunnelOfIstiosConnectOriginate is the shape that istiod programs: the
// tunnel's target is where the connection was going, dialed at port 15008.
func TestTunnelOfIstiosConnectOriginate(t *testing.T) {
	o := &origin{handle: echo, status: 200, headers: []message.Field{{Name: "baggage", Value: "k=v"}}}
	spec := cluster("connect_originate")
	spec.Discovery, spec.OriginalDst.PortOverride, spec.HTTP.Version = xdsresource.DiscoveryOriginalDst, 15008, xdsresource.UpstreamHTTP2
	m := manager(t, o, spec)
	host, err := format.Compile("%DOWNSTREAM_LOCAL_ADDRESS%")
	if err != nil {
		t.Fatal(err)
	}
	cfg := &xdsresource.TCPProxy{Cluster: "connect_originate", Tunneling: &xdsresource.Tunneling{
		Hostname: host, PropagateResponseHeaders: true,
		Headers: []xdsresource.HeaderMutation{{Name: "x-istio-source", Value: format.Literal("waypoint"), Action: xdsresource.OverwriteIfExistsOrAdd}, {Name: "empty", Value: format.Literal("")}},
	}}
	for range 2 {
		c, info, done := serve(t, cfg, Deps{Clusters: m})
		roundTrip(t, c, "hello")
		_ = c.CloseWrite()
		wait(t, done)
		_ = c.Close()
		if info.Flags != 0 || info.BytesReceived != 5 || info.Upstream.Host != "10.5.5.5:15008" {
			t.Errorf("%+v", info)
		}
		o2, _ := info.FilterState.Get(responseHeadersKey).(*Headers)
		if v, _ := o2.Field("baggage"); v != "k=v" {
			t.Errorf("response headers %v", o2)
		}
	}
	if len(o.dialed) != 1 || o.dialed[0] != "10.5.5.5:15008" {
		t.Errorf("dialed %v, want one connection for both tunnels", o.dialed)
	}
	h := &o.heads[0]
	if h.Get(message.Method) != "CONNECT" || h.Get(message.Authority) != "10.5.5.5:9080" || h.Get("x-istio-source") != "waypoint" || h.Has("empty") || h.Has(message.Path) || h.Has(message.Scheme) {
		t.Errorf("%+v", h)
	}
}

// A peer that is quick has answered, said all that it has to and stopped the stream
// before the request's head was flushed.
func TestATunnelThatIsAnsweredAtOnceIsUsed(t *testing.T) {
	o := &origin{handle: echo, status: 200, flushed: &transport.ResetError{Reason: transport.RemoteReset, Detail: "NO_ERROR"}}
	spec := cluster("c", "10.0.0.1:15008")
	spec.HTTP.Version = xdsresource.UpstreamHTTP2
	cfg := &xdsresource.TCPProxy{Cluster: "c", Tunneling: &xdsresource.Tunneling{Hostname: format.Literal("svc:80")}}
	c, info, done := serve(t, cfg, Deps{Clusters: manager(t, o, spec)})
	roundTrip(t, c, "hello")
	_ = c.CloseWrite()
	wait(t, done)
	_ = c.Close()
	if info.Flags != 0 || len(o.heads) != 1 {
		t.Errorf("flags %s after %d requests", info.Flags, len(o.heads))
	}
}

func TestARefusedTunnelIsAConnectionFailure(t *testing.T) {
	o := &origin{handle: echo, status: 503}
	spec := cluster("c", "10.0.0.1:15008")
	spec.HTTP.Version = xdsresource.UpstreamHTTP2
	cfg := &xdsresource.TCPProxy{Cluster: "c", MaxConnectAttempts: 2, Tunneling: &xdsresource.Tunneling{Hostname: format.Literal("svc:80")}}
	c, info, done := serve(t, cfg, Deps{Clusters: manager(t, o, spec)})
	wait(t, done)
	_ = c.Close()
	if info.Flags.String() != "UF,URX" || len(o.heads) != 2 {
		t.Errorf("flags %s after %d requests", info.Flags, len(o.heads))
	}
}
