package router

import (
	"math"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/internal/sweep"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func TestRetryConditions(t *testing.T) {
	cases := []struct {
		name  string
		on    xdsresource.RetryOn
		first answer
		want  bool
	}{
		{"5xx on 500", xdsresource.Retry5xx, answer{status: 500}, true},
		{"5xx not on 404", xdsresource.Retry5xx, answer{status: 404}, false},
		{"5xx on reset", xdsresource.Retry5xx, answer{err: reset(transport.RemoteReset)}, true},
		{"gateway-error on 503", xdsresource.RetryGatewayError, answer{status: 503}, true},
		{"gateway-error not on 500", xdsresource.RetryGatewayError, answer{status: 500}, false},
		{"reset on reset", xdsresource.RetryReset, answer{err: reset(transport.ConnectionTermination)}, true},
		{"reset not on 503", xdsresource.RetryReset, answer{status: 503}, false},
		{"reset-before-request not when sent", xdsresource.RetryResetBeforeRequest, answer{err: reset(transport.RemoteReset)}, false},
		{"connect-failure not on reset", xdsresource.RetryConnectFailure, answer{err: reset(transport.RemoteReset)}, false},
		{"refused-stream on refused", xdsresource.RetryRefusedStream, answer{err: reset(transport.RemoteRefused)}, true},
		{"refused-stream not on reset", xdsresource.RetryRefusedStream, answer{err: reset(transport.RemoteReset)}, false},
		{"retriable-4xx on 409", xdsresource.RetryRetriable4xx, answer{status: 409}, true},
		{"retriable-4xx not on 429", xdsresource.RetryRetriable4xx, answer{status: 429}, false},
		{"status codes", xdsresource.RetryRetriableStatusCodes, answer{status: 418}, true},
		{"other status codes", xdsresource.RetryRetriableStatusCodes, answer{status: 419}, false},
		{"ratelimited 429 only on its own condition", xdsresource.Retry5xx, answer{status: 503, fields: []message.Field{{Name: "x-envoy-ratelimited", Value: "true"}}}, false},
		{"envoy-ratelimited", xdsresource.RetryEnvoyRateLimited, answer{status: 429, fields: []message.Field{{Name: "x-envoy-ratelimited", Value: "true"}}}, true},
		{"grpc unavailable", xdsresource.RetryGRPCUnavailable, answer{status: 200, fields: []message.Field{{Name: "grpc-status", Value: "14"}}}, true},
		{"grpc unavailable not on ok", xdsresource.RetryGRPCUnavailable, answer{status: 200, fields: []message.Field{{Name: "grpc-status", Value: "0"}}}, false},
		{"grpc cancelled", xdsresource.RetryGRPCCancelled, answer{status: 200, fields: []message.Field{{Name: "grpc-status", Value: "1"}}}, true},
		{"grpc deadline", xdsresource.RetryGRPCDeadlineExceeded, answer{status: 200, fields: []message.Field{{Name: "grpc-status", Value: "4"}}}, true},
		{"grpc exhausted", xdsresource.RetryGRPCResourceExhausted, answer{status: 200, fields: []message.Field{{Name: "grpc-status", Value: "8"}}}, true},
		{"grpc internal", xdsresource.RetryGRPCInternal, answer{status: 200, fields: []message.Field{{Name: "grpc-status", Value: "13"}}}, true},
		{"never on protocol errors without a condition", 0, answer{err: reset(transport.ProtocolError)}, false},
	}
	if len(cases) != 24 {
		t.Errorf("%d cases", len(cases))
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			o := &origin{handle: func(x *exchange) answer {
				if x.n == 1 {
					return tc.first
				}
				return answer{status: 200, body: "second"}
			}}
			w := newWorld(t, o)
			w.retry(xdsresource.RetryPolicy{On: tc.on, NumRetries: 1, StatusCodes: []int{418}, BaseInterval: time.Millisecond})
			r := w.do(newStream())
			if got := r.body == "second"; got != tc.want {
				t.Errorf("retried %v", got)
			}
			if tc.want && r.info.Flags != 0 {
				t.Errorf("flags %s after success", r.info.Flags)
			}
			w.idle()
		})
	}
}

func TestRetryHeadersOfTheRequest(t *testing.T) {
	o := &origin{handle: func(x *exchange) answer { return answer{status: 503} }}
	w := newWorld(t, o)
	w.do(newStream("x-envoy-retry-on", "gateway-error", "x-envoy-max-retries", "3"))
	if n := o.attempts(); n != 4 {
		t.Errorf("%d attempts, want 4", n)
	}
	o2 := &origin{handle: func(x *exchange) answer { return answer{status: 404} }}
	w = newWorld(t, o2)
	w.do(newStream("x-envoy-retry-on", "retriable-status-codes", "x-envoy-retriable-status-codes", "404, 405"))
	if n := o2.attempts(); n != 2 {
		t.Errorf("%d attempts, want 2", n)
	}
}

func TestConnectFailureIsRetriedOnAnotherHost(t *testing.T) {
	o := &origin{refuse: errRefused, refuseN: 1}
	w := newWorld(t, o, "10.0.0.1:80", "10.0.0.2:80")
	w.retry(xdsresource.RetryPolicy{On: xdsresource.RetryConnectFailure, NumRetries: 2, PreviousHosts: true, HostSelectionAttempts: 5, BaseInterval: time.Millisecond})
	r := w.do(newStream())
	if r.status != 200 || len(o.hosts) != 2 || o.hosts[0] == o.hosts[1] {
		t.Errorf("%d via %v", r.status, o.hosts)
	}
	if r.info.Upstream.TransportFailureReason != "" || r.info.AttemptCount != 2 {
		t.Errorf("%+v", r.info)
	}
}

func TestRetryBreakerOverflows(t *testing.T) {
	o := &origin{handle: func(x *exchange) answer { return answer{status: 503} }}
	w := newWorld(t, o)
	c := clusterOf("c", "10.0.0.1:80")
	c.Breakers[0].MaxRetries, c.Digest = 0, xdsresource.Digest{5}
	w.apply(c)
	w.retry(xdsresource.RetryPolicy{On: xdsresource.Retry5xx, NumRetries: 3, BaseInterval: time.Millisecond})
	r := w.do(newStream())
	if r.info.Flags != streaminfo.UpstreamOverflow || o.attempts() != 1 {
		t.Errorf("flags %s after %d attempts", r.info.Flags, o.attempts())
	}
}

func TestRateLimitedBackoffWaitsAsAsked(t *testing.T) {
	o := &origin{handle: func(x *exchange) answer {
		if x.n == 1 {
			return answer{status: 503, fields: []message.Field{{Name: "retry-after", Value: "1"}}}
		}
		return answer{status: 200}
	}}
	w := newWorld(t, o)
	w.retry(xdsresource.RetryPolicy{On: xdsresource.Retry5xx, NumRetries: 1, RateLimitedReset: []xdsresource.RateLimitedReset{{Name: "retry-after"}}})
	start := time.Now()
	r := w.do(newStream())
	if d := time.Since(start); r.status != 200 || d < time.Second || d > 10*time.Second {
		t.Errorf("%d after %v", r.status, d)
	}
}

func TestAStaleConnectionIsReplacedForSafeMethodsOnly(t *testing.T) {
	for _, tc := range []struct {
		name, method   string
		fails          int
		policy         *xdsresource.RetryPolicy
		want, attempts int // as counted
		sent           int // after the first
	}{
		{"GET", "GET", 1, nil, 200, 1, 2},
		{"HEAD", "HEAD", 1, nil, 200, 1, 2},
		{"only once", "GET", 2, nil, 503, 1, 2},
		{"POST may have been executed", "POST", 1, nil, 503, 1, 1},
		{"a policy that covers it decides", "GET", 1, &xdsresource.RetryPolicy{On: xdsresource.RetryReset, NumRetries: 1}, 200, 2, 2},
		{"a policy that does not cover it", "GET", 1, &xdsresource.RetryPolicy{On: xdsresource.RetryConnectFailure, NumRetries: 1}, 200, 1, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := &origin{}
			o.handle = func(x *exchange) answer {
				if x.n >= 2 && x.n < 2+tc.fails {
					return answer{err: reset(transport.ConnectionTermination)}
				}
				return answer{status: 200}
			}
			w := newWorld(t, o)
			if tc.policy != nil {
				w.retry(*tc.policy)
			}
			w.do(newStream())
			r := w.do(newStream(message.Method, tc.method))
			if r.status != tc.want || r.info.AttemptCount != tc.attempts || o.attempts() != 1+tc.sent {
				t.Errorf("%d after %d attempts, %d requests", r.status, r.info.AttemptCount, o.attempts()-1)
			}
			w.idle()
		})
	}
}

func TestGRPCTimeoutParsing(t *testing.T) {
	for in, want := range map[string]time.Duration{"1S": time.Second, "20m": 20 * time.Millisecond, "1H": time.Hour, "99999999n": 99999999, "1n": time.Millisecond, "3M": 3 * time.Minute, "5000u": 5 * time.Millisecond} {
		if d, ok := grpcTimeout(in); !ok || d != want {
			t.Errorf("%s: %v %v", in, d, ok)
		}
	}
	for _, in := range []string{"", "S", "1", "1s", "-1S", "123456789S", "1 S"} {
		if _, ok := grpcTimeout(in); ok {
			t.Errorf("%q accepted", in)
		}
	}
}

var grpcTimeoutForm = regexp.MustCompile(`^([0-9]{1,8})([HMSmun])$`)

// FuzzRequestHeaders: the headers that set retries are taken out, and a gRPC
// timeout is what its grammar says.
func FuzzRequestHeaders(f *testing.F) {
	f.Add("5xx,gateway-error", "14", "200,x", "1S")
	f.Add("unavailable,,", "-1", ",", "99999999H")
	f.Fuzz(sweep.Around(f, func(t *testing.T, on, max, codes, timeout string) {
		var h message.Header
		for n, v := range map[string]string{hdrRetryOn: on, hdrRetryGRPCOn: on, hdrMaxRetries: max, hdrStatusCodes: codes, hdrHeaderNames: codes} {
			h.Add(n, v)
		}
		var r retryState
		r.init(nil, &h, true)
		if h.Len() != 0 {
			t.Error("headers are left")
		}
		r.wouldRetryResponse(503, &h)
		d, ok := grpcTimeout(timeout)
		m := grpcTimeoutForm.FindStringSubmatch(timeout)
		if ok != (m != nil) {
			t.Fatalf("%q: %v, %t", timeout, d, ok)
		}
		if ok {
			n, _ := strconv.Atoi(m[1])
			unit := map[string]float64{"H": 3600, "M": 60, "S": 1, "m": 1e-3, "u": 1e-6, "n": 1e-9}[m[2]]
			if want := min(float64(n)*unit, longest.Seconds()); d < 0 || n == 0 != (d == 0) || want >= 1e-3 && math.Abs(d.Seconds()-want) > want*1e-9 {
				t.Errorf("%q is %v, want %v s", timeout, d, want)
			}
		}
	}))
}
