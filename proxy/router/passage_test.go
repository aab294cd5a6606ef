package router

import (
	"context"
	"crypto/tls"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/accesslog"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/hcm"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
	"github.com/fairlead-mesh/fairlead/routing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// cannedConn is a connection without a socket: it gives its answer for what is
// written, or its request again and again.
type cannedConn struct {
	netio.Conn // nil
	in         []byte
	n          int // requests left
	ready      bool
}

func (c *cannedConn) Loop(f func() bool) error {
	for c.n > 0 {
		c.ready = true
		if !f() {
			return nil
		}
	}
	return io.EOF
}

func (c *cannedConn) TryRead(p []byte) (int, error) {
	if !c.ready {
		return 0, netio.ErrWouldBlock
	}
	c.ready = false
	c.n--
	return copy(p, c.in), nil
}

func (c *cannedConn) Quiet() bool                 { return true }
func (c *cannedConn) Write(p []byte) (int, error) { return len(p), nil }
func (c *cannedConn) Close() error                { return nil }
func (c *cannedConn) Reset()                      {}
func (c *cannedConn) Interrupt(error)             {}
func (c *cannedConn) CloseWrite() error           { return nil }
func (c *cannedConn) LocalAddr() netip.AddrPort   { return netip.MustParseAddrPort("127.0.0.1:1") }
func (c *cannedConn) RemoteAddr() netip.AddrPort  { return c.LocalAddr() }
func (c *cannedConn) TLS() *tls.ConnectionState   { return nil }
func (c *cannedConn) WriteRead(_, in []byte) (int, bool, error) {
	return copy(in, c.in), true, nil
}

const istioFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% ` +
	`%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ` +
	`%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" ` +
	`"%UPSTREAM_HOST%" %UPSTREAM_CLUSTER% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% ` +
	"%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"

// passage is a request between two sockets that are none: both codecs, connection
// manager, routing, router, pool, timers, statistics and log. serve sends n
// requests, answered counts those that had a 2xx.
func passage(tb testing.TB) (serve func(n int), answered func() uint64) {
	tb.Helper()
	answer := "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nserver: origin\r\nx-internal: 1\r\ncontent-length: 1024\r\n\r\n" + string(make([]byte, 1024))
	w := newWorld(tb, &origin{})
	m := upstream.NewManager(upstream.Options{Dial: func(context.Context, netip.AddrPort, netio.DialOptions) (netio.Conn, error) {
		return &cannedConn{in: []byte(answer)}, nil
	}})
	tb.Cleanup(m.Close)
	m.Apply([]*xdsresource.Cluster{clusterOf("c", "10.0.0.1:80")})
	reg := &stats.Registry{}
	router := New(nil, Deps{Clusters: m, Stats: reg.Scope("http_")})
	w.retry(xdsresource.RetryPolicy{On: xdsresource.RetryConnectFailure, NumRetries: 2})
	table, errs := routing.Compile(w.rc, routing.Options{Chain: func([]xdsresource.Overrides) ([]filters.HTTPFilter, error) {
		return []filters.HTTPFilter{router}, nil
	}})
	if len(errs) > 0 {
		tb.Fatal(errs)
	}
	sinks := accesslog.NewSinks(nil)
	tb.Cleanup(func() { _ = sinks.Close() })
	file, err := accesslog.NewText("/dev/null", istioFormat)
	if err != nil {
		tb.Fatal(err)
	}
	log, err := sinks.Logger(file, nil)
	if err != nil {
		tb.Fatal(err)
	}
	routes := &hcm.Routes{}
	routes.Set(table)
	spec := &xdsresource.HTTPConnectionManager{Codec: xdsresource.CodecHTTP1, NormalizePath: true, MergeSlashes: true, GenerateRequestID: true, StreamIdleTimeout: 5 * time.Minute}
	hm, err := hcm.New(hcm.Config{Spec: spec, Routes: routes, AccessLogs: []hcm.AccessLogger{log}, Stats: reg.Scope("http_")})
	if err != nil {
		tb.Fatal(err)
	}
	const request = "GET /api/items?q=1 HTTP/1.1\r\nhost: reviews.app.svc.cluster.local\r\nuser-agent: bench/1.0\r\naccept: */*\r\nx-forwarded-for: 10.1.2.3\r\n\r\n"
	serve = func(n int) {
		info := &streaminfo.Info{Conn: &streaminfo.Conn{Local: netip.MustParseAddrPort("10.0.0.9:80"), Remote: netip.MustParseAddrPort("10.0.0.8:5000")}}
		done := make(chan struct{})
		hm.Serve(&filters.Connection{Conn: &cannedConn{in: []byte(request), n: n}, Info: info}, func() { close(done) })
		<-done
	}
	good := reg.Scope("http_").Counter("downstream_rq_xx", stats.Label{Name: "envoy_response_code_class", Value: "2"})
	return serve, good.Value
}

// TestPassage holds what BenchmarkPassage measures.
func TestPassage(t *testing.T) {
	serve, answered := passage(t)
	if serve(10); answered() != 10 {
		t.Errorf("%d answers for 10 requests", answered())
	}
}

// BenchmarkPassage is what a request costs without sockets.
func BenchmarkPassage(b *testing.B) {
	serve, answered := passage(b)
	serve(100)
	b.ReportAllocs()
	b.ResetTimer()
	serve(b.N)
	b.StopTimer()
	if n := answered(); n < uint64(b.N) {
		b.Fatalf("%d answers for %d requests", n, b.N)
	}
}
