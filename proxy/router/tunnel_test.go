package router

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

var (
	hereAddr  = netip.MustParseAddrPort("192.0.2.1:5555")
	thereAddr = netip.MustParseAddrPort("10.0.0.1:80")
)

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

// through sends text through the tunnel of r and expects it back.
func through(t *testing.T, r result, text string) {
	t.Helper()
	if r.resp == nil || r.resp.Tunnel == nil {
		t.Fatalf("no tunnel: %d %v %s", r.status, r.err, r.info.Details)
	}
	client, server := netio.Pipe(hereAddr, thereAddr)
	done := make(chan struct{})
	go r.resp.Tunnel.TakeOver(server, func() { close(done) })
	if _, err := client.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	_ = client.CloseWrite()
	got := ""
	buf := make([]byte, 64)
	for {
		n, err := client.Read(buf)
		got += string(buf[:n])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if got != text {
		t.Errorf("got %q through the tunnel", got)
	}
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("the tunnel does not end")
	}
	_ = client.Close()
}

func TestAnUpgradedStreamCarriesBytesBothWays(t *testing.T) {
	for _, v := range []message.Version{message.HTTP11, message.HTTP2} {
		o := &origin{version: v, tunnel: func() netio.Conn {
			near, far := netio.Pipe(hereAddr, thereAddr)
			go echo(far)
			return near
		}}
		o.handle = func(*exchange) answer { return answer{status: 101} }
		w := newWorld(t, o)
		w.action().Timeout = 300 * time.Millisecond // must not end an upgraded stream
		s := newStream("upgrade", "websocket", "connection", "upgrade")
		r := w.do(s)
		time.Sleep(500 * time.Millisecond)
		through(t, r, "frames")
		w.idle()
	}
}

func TestConnectEndsHere(t *testing.T) {
	o := &origin{}
	w := newWorld(t, o)
	m := upstream.NewManager(upstream.Options{Dial: func(context.Context, netip.AddrPort, netio.DialOptions) (netio.Conn, error) {
		near, far := netio.Pipe(hereAddr, thereAddr)
		go echo(far)
		return near, nil
	}})
	t.Cleanup(m.Close)
	m.Apply([]*xdsresource.Cluster{clusterOf("c", "10.0.0.1:80")})
	w.m = m
	w.f = New(nil, Deps{Clusters: m})
	w.action().Upgrades = []xdsresource.Upgrade{{Type: "connect", Enabled: true, Connect: true}}
	w.route().Match = xdsresource.RouteMatch{Kind: xdsresource.PathConnect, RuntimeFraction: -1}
	r := w.do(newStream(message.Method, "CONNECT"))
	if r.status != 200 || r.info.Upstream.Host != "10.0.0.1:80" {
		t.Errorf("%d %+v", r.status, r.info.Upstream)
	}
	through(t, r, "opaque")
	r.info.BytesReceived, r.info.BytesSent = 6, 5 // the connection manager's
	if got := wire(t, r.info); got != "5 6" {
		t.Errorf("on the wire: %s", got)
	}
	if n := m.Clusters()[0].Breakers[0].Connections; n != 0 {
		t.Errorf("%d connections at rest", n)
	}
}

// nowhere is a connection whose address can't be told.
type nowhere struct{ netio.Conn }

func (nowhere) LocalAddr() netip.AddrPort { panic("nowhere") }

func TestAPanicAfterConnectingLeavesNoConnection(t *testing.T) {
	w := newWorld(t, &origin{})
	near, far := netio.Pipe(hereAddr, thereAddr)
	w.m = upstream.NewManager(upstream.Options{Dial: func(context.Context, netip.AddrPort, netio.DialOptions) (netio.Conn, error) {
		return nowhere{near}, nil
	}})
	t.Cleanup(w.m.Close)
	w.m.Apply([]*xdsresource.Cluster{clusterOf("c", "10.0.0.1:80")})
	w.f = New(nil, Deps{Clusters: w.m})
	w.action().Upgrades = []xdsresource.Upgrade{{Type: "connect", Enabled: true, Connect: true}}
	w.route().Match = xdsresource.RouteMatch{Kind: xdsresource.PathConnect, RuntimeFraction: -1}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		w.do(newStream(message.Method, "CONNECT"))
	}()
	if n := w.m.Clusters()[0].Breakers[0].Connections; n != 0 {
		t.Errorf("%d connections are held", n)
	}
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, netio.ErrReset) {
		t.Errorf("%v", err)
	}
}

type hop struct {
	listener string
	shared   string
	err      error
}

func (h *hop) DialInternal(context.Context, string, *upstream.Host, *upstream.ConnectOptions) (netio.Conn, error) {
	return nil, errors.New("not used")
}

func (h *hop) TakeOver(name string, _ *upstream.Host, c netio.Conn, o *upstream.ConnectOptions, done func()) error {
	if h.err != nil {
		return h.err
	}
	h.listener = name
	var far streaminfo.FilterState
	o.FilterState.ShareInto(&far)
	h.shared = far.GetString("io.istio.peer_principal")
	go func() {
		echo(c)
		done()
	}()
	return nil
}

// TestConnectToAnInternalClusterIsHandedOver is a waypoint's way in:
// connect_terminate to main_internal.
func TestConnectToAnInternalClusterIsHandedOver(t *testing.T) {
	for _, fails := range []bool{false, true} {
		h := &hop{}
		if fails {
			h.err = errors.New("no such listener")
		}
		w := newWorld(t, &origin{})
		spec := clusterOf("c")
		spec.Digest = xdsresource.Digest{7}
		spec.TransportSocket.Internal = &xdsresource.InternalUpstream{}
		spec.Assignment.Localities[0].Endpoints = []xdsresource.Endpoint{{InternalListener: "main_internal", Weight: 1}}
		w.m.SetInternal(h)
		w.apply(spec)
		w.action().Upgrades = []xdsresource.Upgrade{{Type: "connect", Enabled: true, Connect: true}}
		w.route().Match = xdsresource.RouteMatch{Kind: xdsresource.PathConnect, RuntimeFraction: -1}
		s := newStream(message.Method, "CONNECT")
		s.Info.FilterState.Set("io.istio.peer_principal", streaminfo.String("spiffe://td/ns/a/sa/b"), streaminfo.SharingOnce)
		r := w.do(s)
		if r.status != 200 || r.info.Upstream.Host != "envoy://main_internal/" {
			t.Fatalf("%d %+v", r.status, r.info.Upstream)
		}
		if fails {
			client, server := netio.Pipe(hereAddr, thereAddr)
			done := make(chan struct{})
			r.resp.Tunnel.TakeOver(server, func() { close(done) })
			<-done
			if _, err := client.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("a tunnel that could not be handed over ended with %v, want a reset", err)
			}
			_ = client.Close()
			continue
		}
		through(t, r, "opaque")
		if h.listener != "main_internal" || h.shared != "spiffe://td/ns/a/sa/b" {
			t.Errorf("%+v", h)
		}
		st := w.m.Clusters()
		for _, c := range st {
			if c.Breakers[0].Connections != 0 {
				t.Errorf("%s holds connections", c.Name)
			}
		}
	}
}

func TestAFailedConnectAnswers503(t *testing.T) {
	w := newWorld(t, &origin{refuse: &transport.ResetError{Reason: transport.ConnectionFailure, Detail: "x"}})
	w.action().Upgrades = []xdsresource.Upgrade{{Type: "connect", Enabled: true, Connect: true}}
	w.route().Match = xdsresource.RouteMatch{Kind: xdsresource.PathConnect, RuntimeFraction: -1}
	if r := w.do(newStream(message.Method, "CONNECT")); r.status != 503 || r.info.Flags != streaminfo.UpstreamConnectionFailure {
		t.Errorf("%d %s", r.status, r.info.Flags)
	}
}
