package router

import (
	"errors"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

const connectText = "upstream connect error or disconnect/reset before headers. "

// TestOutcomesMatchEnvoy holds the texts and details seen from Envoy 1.40.
func TestOutcomesMatchEnvoy(t *testing.T) {
	retry5xx := xdsresource.RetryPolicy{On: xdsresource.Retry5xx, NumRetries: 2, BaseInterval: time.Millisecond}
	say := func(a answer) func(*exchange) answer { return func(*exchange) answer { return a } }
	cases := []struct {
		name     string
		edit     func(w *world)
		o        *origin
		status   int
		body     string
		flags    string
		details  string
		attempts int
	}{
		{"a response", nil, &origin{handle: say(answer{status: 200, body: "hi"})}, 200, "hi", "-", "via_upstream", 1},
		{"an empty response", nil, &origin{handle: say(answer{status: 204})}, 204, "", "-", "via_upstream", 1},
		{"no route", func(w *world) { w.vhost().Domains = []string{"other"} }, &origin{}, 404, "", "NR", "route_not_found", 0},
		{"no cluster", func(w *world) { w.action().Cluster = "gone" }, &origin{}, 503, "", "NC", "cluster_not_found", 0},
		{"no cluster with its own status", func(w *world) { w.action().Cluster, w.action().ClusterNotFoundStatus = "gone", 404 }, &origin{}, 404, "", "NC", "cluster_not_found", 0},
		{"a direct response", func(w *world) {
			w.route().Action, w.route().Direct = nil, &xdsresource.DirectResponse{Status: 418, Body: []byte("tea")}
		}, &origin{}, 418, "tea", "-", "direct_response", 0},
		{"a redirect", func(w *world) {
			w.route().Action, w.route().Redirect = nil, &xdsresource.Redirect{Host: "foo", Status: 301}
		}, &origin{}, 301, "", "-", "direct_response", 0},
		{"no healthy upstream", func(w *world) { w.action().Cluster = "empty" }, &origin{}, 503, "no healthy upstream", "UH", "no_healthy_upstream", 0},
		{
			"connection refused", nil, &origin{refuse: errRefused}, 503, connectText + "reset reason: remote connection failure", "UF",
			"upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}", 0,
		},
		{
			"connection ended", nil, &origin{handle: say(answer{err: reset(transport.ConnectionTermination)})}, 503, connectText + "reset reason: connection termination", "UC",
			"upstream_reset_before_response_started{connection_termination}", 1,
		},
		{
			"remote reset", nil, &origin{handle: say(answer{err: reset(transport.RemoteReset)})}, 503, connectText + "reset reason: remote reset", "UR",
			"upstream_reset_before_response_started{remote_reset}", 1,
		},
		{
			"protocol error", nil, &origin{handle: say(answer{err: reset(transport.ProtocolError)})}, 502, connectText + "reset reason: protocol error", "UPE",
			"upstream_reset_before_response_started{protocol_error}", 1,
		},
		{"overflow", func(w *world) {
			c := clusterOf("c", "10.0.0.1:80")
			c.Breakers[0].MaxPendingRequests = 0
			c.Digest = xdsresource.Digest{2}
			w.apply(c)
			w.retry(retry5xx)
		}, &origin{}, 503, connectText + "reset reason: overflow", "UO", "upstream_reset_before_response_started{overflow}", 0},
		{"route timeout", func(w *world) { w.action().Timeout = 300 * time.Millisecond }, &origin{handle: say(answer{hang: true})}, 504, "upstream request timeout", "UT", "response_timeout", 1},
		{"a 503 retried in vain", func(w *world) { w.retry(retry5xx) }, &origin{handle: say(answer{status: 503, body: "no"})}, 503, "no", "URX", "via_upstream", 3},
		{
			"a reset retried in vain", func(w *world) { w.retry(retry5xx) }, &origin{handle: say(answer{err: reset(transport.ConnectionTermination)})}, 503,
			connectText + "retried and the latest reset reason: connection termination", "URX,UC", "upstream_reset_before_response_started{connection_termination}", 3,
		},
		{"per-try timeouts in vain", func(w *world) {
			w.retry(xdsresource.RetryPolicy{On: xdsresource.Retry5xx, NumRetries: 1, PerTryTimeout: 300 * time.Millisecond, BaseInterval: time.Millisecond})
		}, &origin{handle: say(answer{hang: true})}, 504, "upstream request timeout", "URX,UT", "upstream_per_try_timeout", 2},
		{
			"max stream duration", func(w *world) { d := 300 * time.Millisecond; w.action().MaxStreamDuration = &d }, &origin{handle: say(answer{hang: true})},
			504, "downstream duration timeout", "DT", "max_duration_timeout", 1,
		},
		{"max stream duration before the request was complete", func(w *world) {
			d := 300 * time.Millisecond
			w.action().MaxStreamDuration, w.edit = &d, func(s *filters.Stream) { s.Body = newSlowBody() }
		}, &origin{handle: say(answer{hang: true})}, 408, "downstream duration timeout", "DT", "max_duration_timeout", 1},
		{"route timeout with another answer", func(w *world) {
			w.action().Timeout, w.edit = 300*time.Millisecond, func(s *filters.Stream) { s.Request.Add(hdrAltResponse, "") }
		}, &origin{handle: say(answer{hang: true})}, 204, "", "UT", "response_timeout", 1},
		{"a broken route", func(w *world) { w.route().Action, w.route().Broken = nil, "path_match_policy is unknown" }, &origin{}, 500, "", "-", "route_not_executable", 0},
		{"a broken cluster", func(w *world) {
			c := clusterOf("c", "10.0.0.1:80")
			c.Broken, c.Digest = "unknown", xdsresource.Digest{3}
			w.apply(c)
		}, &origin{}, 503, "no healthy upstream", "UH", "cluster_not_usable", 0},
	}
	if len(cases) != 22 {
		t.Errorf("%d cases", len(cases))
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, tc.o)
			if tc.edit != nil {
				tc.edit(w)
			}
			s := newStream()
			if w.edit != nil {
				w.edit(s)
			}
			r := w.do(s)
			if r.err != nil || r.bodyErr != nil || r.status != tc.status || r.body != tc.body || r.info.Flags.String() != tc.flags || r.info.Details != tc.details {
				t.Errorf("got %d %q flags %s details %s err %v %v\nwant %d %q flags %s details %s", r.status, r.body, r.info.Flags, r.info.Details, r.err, r.bodyErr,
					tc.status, tc.body, tc.flags, tc.details)
			}
			if n := tc.o.attempts(); n != tc.attempts {
				t.Errorf("%d attempts, want %d", n, tc.attempts)
			}
			if over := r.header.Get("x-envoy-overloaded"); (over == "true") != (tc.flags == "UO") {
				t.Errorf("x-envoy-overloaded %q", over)
			}
			w.idle()
		})
	}
}

func TestUpstreamInfoIsRecorded(t *testing.T) {
	w := newWorld(t, &origin{handle: func(*exchange) answer { return answer{status: 200, body: "x"} }})
	r := w.do(newStream())
	u := r.info.Upstream
	if u.Cluster != "c" || u.ClusterRaw != "c" || u.Host != "10.0.0.1:80" || u.Address.String() != "10.0.0.1:80" || u.Protocol != message.HTTP11 || !u.Local.IsValid() {
		t.Errorf("%+v", u)
	}
	if r.info.AttemptCount != 1 || r.info.FirstUpstreamRx.IsZero() || r.info.LastUpstreamRx.IsZero() {
		t.Errorf("%+v", r.info)
	}
	if r.header.Get("x-envoy-upstream-service-time") == "" {
		t.Error("no service time")
	}
}

func TestRequestHeadersForUpstream(t *testing.T) {
	var head message.Header
	o := &origin{handle: func(x *exchange) answer { head.CopyFrom(&x.head); return answer{status: 200} }}
	w := newWorld(t, o)
	w.vhost().IncludeAttemptCount, w.vhost().IncludeAttemptCountInResponse = true, true
	r := w.do(newStream("x-envoy-upstream-rq-timeout-ms", "700", "x-envoy-retry-on", "5xx", "x-envoy-max-retries", "3"))
	for name, want := range map[string]string{
		"x-envoy-expected-rq-timeout-ms": "700", "x-envoy-attempt-count": "1", "x-envoy-retry-on": "", "x-envoy-max-retries": "", "x-envoy-upstream-rq-timeout-ms": "",
	} {
		if got := head.Get(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if got := r.header.Get("x-envoy-attempt-count"); got != "1" {
		t.Errorf("attempt count in response %q", got)
	}
	w.f = New(&xdsresource.Router{SuppressEnvoyHeaders: true}, Deps{Clusters: w.m})
	r = w.do(newStream())
	if head.Has("x-envoy-expected-rq-timeout-ms") || r.header.Has("x-envoy-upstream-service-time") {
		t.Error("suppressed headers are there")
	}
}

func TestAutoHostRewriteFollowsTheHost(t *testing.T) {
	var got string
	w := newWorld(t, &origin{handle: func(x *exchange) answer { got = x.head.Get(message.Authority); return answer{status: 200} }})
	c := clusterOf("c", "10.0.0.1:80")
	c.Digest = xdsresource.Digest{9}
	c.Assignment.Localities[0].Endpoints[0].DisplayHost = "db.internal"
	w.apply(c)
	w.action().HostRewrite.Auto = true
	w.do(newStream())
	if got != "db.internal" {
		t.Errorf("authority %q", got)
	}
}

func TestInterruptingTheStreamEndsTheAttempt(t *testing.T) {
	cause := errors.New("client went away")
	for _, stage := range []string{"head", "body", "upload", "back-off"} {
		t.Run(stage, func(t *testing.T) {
			o := &origin{handle: func(x *exchange) answer {
				switch stage {
				case "body":
					return answer{status: 200, body: "x", bodyHang: true}
				case "back-off":
					return answer{status: 503}
				}
				return answer{hang: true}
			}}
			w := newWorld(t, o)
			s := newStream()
			if stage == "upload" {
				s.Body = newSlowBody()
			}
			if stage == "back-off" {
				w.retry(xdsresource.RetryPolicy{On: xdsresource.Retry5xx, NumRetries: 100, BaseInterval: time.Hour})
			}
			time.AfterFunc(300*time.Millisecond, func() { s.Interrupt(cause) })
			r := w.do(s)
			if stage == "body" && !errors.Is(r.bodyErr, cause) || stage != "body" && !errors.Is(r.err, cause) {
				t.Errorf("%v %v", r.err, r.bodyErr)
			}
			w.idle()
		})
	}
}

func TestGRPCTimeoutBoundsTheRequest(t *testing.T) {
	w := newWorld(t, &origin{handle: func(*exchange) answer { return answer{hang: true} }})
	limit := time.Duration(0)
	w.action().GRPCTimeoutMax = &limit
	s := newStream("content-type", "application/grpc", "grpc-timeout", "40m")
	s.Info.IsGRPC = true
	start := time.Now()
	r := w.do(s)
	if d := time.Since(start); d > 10*time.Second || r.status != 200 || r.header.Get("grpc-status") != "14" || r.info.Flags != streaminfo.UpstreamRequestTimeout {
		t.Errorf("after %v: %d grpc-status %q flags %s", d, r.status, r.header.Get("grpc-status"), r.info.Flags)
	}
}

func TestMirrorsGoOutWithTheShadowHost(t *testing.T) {
	type copyOf struct{ host, authority, body string }
	seen := make(chan copyOf, 4)
	o := &origin{handle: func(x *exchange) answer {
		c := copyOf{x.host, x.head.Get(message.Authority), x.body()}
		if x.host == "10.9.9.9:80" {
			seen <- c
		}
		return answer{status: 200}
	}}
	for _, streamed := range []bool{false, true} {
		w := newWorld(t, o)
		w.action().Mirrors = []xdsresource.Mirror{{Cluster: "shadow", Fraction: 1}, {Cluster: "shadow", Fraction: 0}, {Cluster: "gone", Fraction: 1}}
		s := newStream(message.Method, "POST", message.Authority, "svc.test:8080")
		if streamed {
			b := newSlowBody()
			s.Body = b
			go func() { b.c <- "abc"; close(b.c) }()
		} else {
			s.Body = message.Bytes([]byte("abc"))
		}
		if r := w.do(s); r.status != 200 {
			t.Fatalf("%+v", r)
		}
		select {
		case got := <-seen:
			if got != (copyOf{"10.9.9.9:80", "svc.test-shadow:8080", "abc"}) {
				t.Errorf("%+v", got)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("no mirrored request")
		}
		w.idle()
	}
}

func TestUpgradesPassInHTTP1Form(t *testing.T) {
	for _, v := range []message.Version{message.HTTP11, message.HTTP2} {
		var head message.Header
		o := &origin{version: v, tunnel: func() netio.Conn { return rawConn{} }}
		o.handle = func(x *exchange) answer { head.CopyFrom(&x.head); return answer{status: 101} }
		w := newWorld(t, o)
		r := w.do(newStream("upgrade", "websocket", "connection", "Upgrade"))
		if r.status != 101 || r.resp.Tunnel == nil || head.Get(message.Method) != "GET" || head.Get("upgrade") != "websocket" {
			t.Fatalf("response %d, upstream saw %+v", r.status, head)
		}
		r.resp.Tunnel.Abandon()
		w.idle()
	}
}

func TestARefusedUpgradeIsAnOrdinaryResponse(t *testing.T) {
	w := newWorld(t, &origin{handle: func(*exchange) answer { return answer{status: 403, body: "no"} }})
	if r := w.do(newStream("upgrade", "websocket", "connection", "upgrade")); r.status != 403 || r.body != "no" || r.resp.Tunnel != nil {
		t.Errorf("%+v", r)
	}
	w.idle()
}

func TestFastPathAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool forget")
	}
	for _, body := range []string{"", "hello"} {
		o := &origin{}
		w := newWorld(t, o)
		s := newStream()
		w.do(s)
		c := w.conns[0]
		c.fast = &fakeStream{c: c, quick: true, a: answer{body: body}}
		table := w.table()
		route := table.Match(s)
		fields := s.Request
		run := func() {
			s.Reset()
			for i := range fields.Len() {
				s.Request.AddField(fields.At(i))
			}
			s.Info.Conn, s.Info.Start = w.connInfo(), time.Now()
			s.SelectRoute(route)
			resp, err := w.f.Do(s, filters.Next{})
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		run()
		base := testing.AllocsPerRun(200, run)
		want := 0.0
		if body != "" {
			want = 3 // responseBody; the others are the fake's body and its chunk
		}
		if base > want {
			t.Errorf("body %q: %v allocations, want %v", body, base, want)
		}
	}
}

var sharedConn = &streaminfo.Conn{}

func (w *world) connInfo() *streaminfo.Conn { return sharedConn }

func BenchmarkRequest(b *testing.B) {
	o := &origin{}
	w := newWorld(b, o)
	s := newStream()
	w.do(s)
	c := w.conns[0]
	c.fast = &fakeStream{c: c, quick: true}
	w.action().Timeout = 0
	route := w.table().Match(s)
	var fields message.Header
	fields.CopyFrom(&s.Request)
	b.ReportAllocs()
	for b.Loop() {
		s.Reset()
		for i := range fields.Len() {
			s.Request.AddField(fields.At(i))
		}
		s.Info.Conn = sharedConn
		s.SelectRoute(route)
		resp, _ := w.f.Do(s, filters.Next{})
		resp.Body.Close()
	}
}
