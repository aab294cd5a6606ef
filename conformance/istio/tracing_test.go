package istio

import (
	"encoding/hex"
	"net/http"
	"strings"
	"testing"
	"time"

	logsv1pb "go.opentelemetry.io/proto/otlp/logs/v1"
	tracev1pb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// collect makes web-2 an OpenTelemetry collector: of traces over HTTP, of logs
// over gRPC.
func (s *scenario) collect() {
	s.web2.reset(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/opentelemetry.") {
			return
		}
		w.Header().Set("content-type", "application/grpc")
		w.Header().Set("trailer", "grpc-status")
		_, _ = w.Write([]byte{0, 0, 0, 0, 0})
		w.Header().Set("grpc-status", "0")
	})
}

// spans are those that the collector has.
func (s *scenario) spans(t *testing.T) (out []*tracev1pb.Span) {
	t.Helper()
	for _, r := range s.web2.requests() {
		if r.Target != "/v1/traces" {
			continue
		}
		var d tracev1pb.TracesData
		if err := proto.Unmarshal([]byte(r.Body), &d); err != nil {
			t.Fatal(err)
		}
		for _, rs := range d.GetResourceSpans() {
			for _, ss := range rs.GetScopeSpans() {
				out = append(out, ss.GetSpans()...)
			}
		}
	}
	return out
}

// records are the bodies and labels of the log records that the collector has.
func (s *scenario) records(t *testing.T) (out []string) {
	t.Helper()
	for _, r := range s.web2.requests() {
		if r.Target != "/opentelemetry.proto.collector.logs.v1.LogsService/Export" || len(r.Body) < 5 {
			continue
		}
		var d logsv1pb.LogsData
		if err := proto.Unmarshal([]byte(r.Body[5:]), &d); err != nil {
			t.Fatal(err)
		}
		for _, rl := range d.GetResourceLogs() {
			for _, sl := range rl.GetScopeLogs() {
				for _, l := range sl.GetLogRecords() {
					line := l.GetBody().GetStringValue()
					for _, a := range l.GetAttributes() {
						line += " " + a.GetKey() + "=" + a.GetValue().GetStringValue()
					}
					out = append(out, line)
				}
			}
		}
	}
	return out
}

func attributes(sp *tracev1pb.Span) map[string]string {
	out := map[string]string{}
	for _, a := range sp.GetAttributes() {
		out[a.GetKey()] = a.GetValue().GetStringValue()
	}
	return out
}

// await waits for f, for exports are batched.
func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

const callersTrace, callersSpan = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

func TestSpansAndLogsGoToACollector(t *testing.T) {
	s := begin(t, "tracing")
	s.collect()
	const v1 = "http://web-v1.app.svc.cluster.local"
	if a := s.shop.get(t, v1+"/traced?x=1", "x-user: ann", "traceparent: 00-"+callersTrace+"-"+callersSpan+"-01", "tracestate: a=b"); a.Status != 200 {
		t.Fatalf("%+v", a)
	}
	var mine []*tracev1pb.Span
	await(t, "the span", func() bool {
		mine = nil
		for _, sp := range s.spans(t) {
			if hex.EncodeToString(sp.GetTraceId()) == callersTrace {
				mine = append(mine, sp)
			}
		}
		return len(mine) > 0
	})
	// The chain of parents: the caller, the waypoint's span (or spans), the application.
	byParent := map[string]*tracev1pb.Span{}
	for _, sp := range mine {
		byParent[hex.EncodeToString(sp.GetParentSpanId())] = sp
	}
	last, length := callersSpan, 0
	for sp := byParent[last]; sp != nil; sp = byParent[last] {
		last = hex.EncodeToString(sp.GetSpanId())
		length++
	}
	if length != len(mine) {
		t.Errorf("the spans are no chain below the caller's: %v", mine)
	}
	app := saw(t, s.web1, 1)[0]
	if got, want := app.Header.Get("traceparent"), "00-"+callersTrace+"-"+last+"-01"; got != want || app.Header.Get("tracestate") != "a=b" {
		t.Errorf("the application got %q, %q, want %q", got, app.Header.Get("tracestate"), want)
	}
	tags := attributes(byParent[callersSpan])
	for k, want := range map[string]string{"shop": "corner", "user": "ann", "http.method": "GET", "http.status_code": "200"} {
		if tags[k] != want {
			t.Errorf("tag %s is %q, want %q in %v", k, tags[k], want, tags)
		}
	}
	if tags["http.url"] != v1+"/traced?x=1" {
		t.Errorf("http.url is %q", tags["http.url"])
	}
	await(t, "the log record", func() bool {
		for _, r := range s.records(t) {
			if strings.HasPrefix(r, "GET /traced?x=1 200 inbound-vip|80|http|web-v1.app.svc.cluster.local route=") {
				return true
			}
		}
		return false
	})
}

func TestRequestsThatAreNotSampledHaveNoSpan(t *testing.T) {
	s := begin(t, "tracing", "randomSamplingPercentage: 100", "randomSamplingPercentage: 0")
	s.collect()
	const v1 = "http://web-v1.app.svc.cluster.local"
	s.shop.get(t, v1+"/unsampled")
	s.shop.get(t, v1+"/sampled", "traceparent: 00-"+callersTrace+"-"+callersSpan+"-01")
	await(t, "the span of the caller's trace", func() bool { return len(s.spans(t)) > 0 })
	for _, sp := range s.spans(t) {
		if hex.EncodeToString(sp.GetTraceId()) != callersTrace {
			t.Errorf("a span of a request that was not sampled: %v", sp)
		}
	}
	if r := saw(t, s.web1, 2)[0]; strings.HasSuffix(r.Header.Get("traceparent"), "-01") {
		t.Errorf("the application got %q", r.Header.Get("traceparent"))
	}
}
