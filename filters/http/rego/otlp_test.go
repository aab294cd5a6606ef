package rego

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	commonv1pb "go.opentelemetry.io/proto/otlp/common/v1"
	logsv1pb "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/otlp"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// collector takes OTLP requests.
type collector struct {
	mu       sync.Mutex
	answer   func(n int) (*filters.CalloutResponse, error) // of request n, from 0
	delay    time.Duration
	calls    int
	callouts []filters.Callout
	got      []*logsv1pb.LogRecord
	resource map[string]string
}

func (c *collector) RoundTrip(ctx context.Context, _ string, req *filters.Callout, _ int64) (*filters.CalloutResponse, error) {
	if c.delay > 0 {
		t := time.NewTimer(c.delay)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-t.C:
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.calls
	c.calls++
	var h message.Header
	h.CopyFrom(&req.Header)
	c.callouts = append(c.callouts, filters.Callout{Header: h, Timeout: req.Timeout, HTTP2: req.HTTP2})
	body := req.Body
	if req.HTTP2 {
		if len(body) < 5 || body[0] != 0 || int(binary.BigEndian.Uint32(body[1:])) != len(body)-5 {
			return nil, errors.New("no gRPC message")
		}
		body = body[5:]
	}
	a, err := c.answer(n)
	if err != nil {
		return nil, err
	}
	grpcOK := !req.HTTP2 || a.Trailers.Get("grpc-status") == "0" || a.Header.Get("grpc-status") == "0"
	if a.Status == 200 && grpcOK {
		var d logsv1pb.LogsData
		if err := proto.Unmarshal(body, &d); err != nil {
			return nil, err
		}
		for _, r := range d.ResourceLogs {
			c.resource = map[string]string{}
			for _, kv := range r.Resource.Attributes {
				c.resource[kv.Key] = kv.Value.GetStringValue()
			}
			for _, s := range r.ScopeLogs {
				c.got = append(c.got, s.LogRecords...)
			}
		}
	}
	return a, nil
}

// counts returns how often was called and how many records were taken.
func (c *collector) counts() (calls, records int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls, len(c.got)
}

func httpAnswer(status int) (*filters.CalloutResponse, error) {
	return &filters.CalloutResponse{Status: status}, nil
}

func grpcAnswer(status string) (*filters.CalloutResponse, error) {
	a := &filters.CalloutResponse{Status: 200, Body: []byte{0, 0, 0, 0, 0}}
	a.Trailers.Add("grpc-status", status)
	return a, nil
}

// plain is the Go value of an attribute.
func plain(v *commonv1pb.AnyValue) any {
	switch v := v.GetValue().(type) {
	case *commonv1pb.AnyValue_StringValue:
		return v.StringValue
	case *commonv1pb.AnyValue_BoolValue:
		return v.BoolValue
	case *commonv1pb.AnyValue_IntValue:
		return v.IntValue
	case *commonv1pb.AnyValue_DoubleValue:
		return v.DoubleValue
	case *commonv1pb.AnyValue_KvlistValue:
		out := map[string]any{}
		for _, kv := range v.KvlistValue.Values {
			out[kv.Key] = plain(kv.Value)
		}
		return out
	case *commonv1pb.AnyValue_ArrayValue:
		out := []any{}
		for _, e := range v.ArrayValue.Values {
			out = append(out, plain(e))
		}
		return out
	}
	return nil
}

func otlpEnv(c *collector) (*filters.Env, *stats.Registry) {
	reg := &stats.Registry{}
	e := env()
	e.Stats, e.Upstreams = reg.Scope(""), c
	e.Node = &filters.Node{ID: "waypoint-1", Namespace: "shop", WorkloadName: "waypoint", ClusterID: "c1"}
	return e, reg
}

func exported(t *testing.T, reg *stats.Registry) map[string]string {
	t.Helper()
	var b strings.Builder
	if err := reg.WritePrometheus(&b); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(b.String()) {
		if rest, ok := strings.CutPrefix(line, `fairlead_policy_log_exported_total{cluster="otel",result="`); ok {
			name, n, _ := strings.Cut(rest, `"} `)
			if n = strings.TrimSpace(n); n != "0" {
				out[name] = n
			}
		}
	}
	return out
}

func TestDecisionsGoToACollector(t *testing.T) {
	for _, protocol := range []string{"GRPC", "HTTP"} {
		t.Run(protocol, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &collector{answer: func(int) (*filters.CalloutResponse, error) {
					if protocol == "GRPC" {
						return grpcAnswer("0")
					}
					return httpAnswer(200)
				}}
				e, reg := otlpEnv(c)
				f := compileOnly(t, e, conf(readsSecrets, fmt.Sprintf(
					`"decisionLog":{"includeInput":true,"otlp":{"cluster":"otel","protocol":%q,"credentials":{"token":"T"},"flushInterval":"2s","timeout":"5s"}}`, protocol)))
				defer closeFilter(f)
				s := secretRequest().stream()
				s.Info.TraceID, s.Info.SpanID = "0102030405060708090a0b0c0d0e0f10", "0102030405060708"
				run(t, f, s)
				run(t, f, request{}.stream())
				time.Sleep(1999 * time.Millisecond)
				synctest.Wait()
				if calls, _ := c.counts(); calls != 0 {
					t.Error("exported before the flush interval")
				}
				time.Sleep(time.Millisecond)
				synctest.Wait()
				if calls, records := c.counts(); calls != 1 || records != 2 {
					t.Fatalf("%d calls with %d records: want 1 with 2", calls, records)
				}
				h, want := c.callouts[0].Header, map[string]string{
					message.Method: "POST", message.Authority: "otel", "authorization": "Bearer T",
					message.Path: otlp.LogsExport, "content-type": "application/grpc", "te": "trailers",
				}
				if protocol == "HTTP" {
					want[message.Path], want["content-type"] = "/v1/logs", "application/x-protobuf"
					delete(want, "te")
				}
				for k, v := range want {
					if h.Get(k) != v {
						t.Errorf("%s %q: want %q", k, h.Get(k), v)
					}
				}
				if c.callouts[0].HTTP2 != (protocol == "GRPC") || c.callouts[0].Timeout != 5*time.Second {
					t.Errorf("callout %+v", c.callouts[0])
				}
				if diff := cmp.Diff(map[string]string{"service.name": "waypoint", "service.namespace": "shop", "service.instance.id": "waypoint-1", "k8s.namespace.name": "shop", "k8s.cluster.name": "c1"}, c.resource); diff != "" {
					t.Error(diff)
				}
				r := c.got[0]
				body, _ := plain(r.Body).(map[string]any)
				if r.EventName != eventName || r.SeverityText != "INFO" || len(r.TraceId) != 16 || r.SpanId[7] != 8 || r.TimeUnixNano == 0 || body["outcome"] != "allowed" || body["passed"] != true {
					t.Errorf("record %v", r)
				}
				if got := at(body, "input", "attributes", "request", "http", "headers", "x-shown"); got != "seen" {
					t.Errorf("x-shown %v", got)
				}
				if erased, _ := body["erased"].([]any); len(erased) == 0 || strings.Contains(r.String(), "AUTHSECRET") || strings.Contains(r.String(), "BODYSECRET") {
					t.Errorf("not masked: %v", r)
				}
				if c.got[1].SeverityText != "WARN" || c.got[1].TraceId != nil {
					t.Errorf("record of a denial %v", c.got[1])
				}
				if diff := cmp.Diff(map[string]string{"sent": "2"}, exported(t, reg)); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

func TestExportsThatFail(t *testing.T) {
	partial := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType),
		protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1))
	for _, tt := range []struct {
		name, protocol string
		answer         func(n int) (*filters.CalloutResponse, error)
		calls          int
		want           map[string]string
	}{
		{"an outage is waited for", "HTTP", func(n int) (*filters.CalloutResponse, error) {
			if n < 2 {
				return nil, errors.New("reset")
			}
			return httpAnswer(200)
		}, 3, map[string]string{"failed": "2", "sent": "1"}},
		{"an outage that lasts", "HTTP", func(int) (*filters.CalloutResponse, error) { return httpAnswer(503) }, otlp.Attempts, map[string]string{"failed": "4", "dropped": "1"}},
		{"a refusal is final", "HTTP", func(int) (*filters.CalloutResponse, error) { return httpAnswer(400) }, 1, map[string]string{"failed": "1", "dropped": "1"}},
		{"a gRPC refusal is final", "GRPC", func(int) (*filters.CalloutResponse, error) { return grpcAnswer("3") }, 1, map[string]string{"failed": "1", "dropped": "1"}},
		{"gRPC unavailable is waited for", "GRPC", func(n int) (*filters.CalloutResponse, error) { return grpcAnswer([]string{"14", "0"}[n]) }, 2, map[string]string{"failed": "1", "sent": "1"}},
		{"a gRPC answer of trailers only", "GRPC", func(int) (*filters.CalloutResponse, error) {
			a := &filters.CalloutResponse{Status: 200}
			a.Header.Add("grpc-status", "7")
			return a, nil
		}, 1, map[string]string{"failed": "1", "dropped": "1"}},
		{"a gRPC answer without a status", "GRPC", func(int) (*filters.CalloutResponse, error) { return httpAnswer(200) }, otlp.Attempts, map[string]string{"failed": "4", "dropped": "1"}},
		{"a record is rejected", "HTTP", func(int) (*filters.CalloutResponse, error) {
			return &filters.CalloutResponse{Status: 200, Body: partial}, nil
		}, 1, map[string]string{"dropped": "1"}},
		{"a record is rejected by gRPC", "GRPC", func(int) (*filters.CalloutResponse, error) {
			a, err := grpcAnswer("0")
			a.Body = append(a.Body, partial...)
			return a, err
		}, 1, map[string]string{"dropped": "1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &collector{answer: tt.answer}
				e, reg := otlpEnv(c)
				f := compileOnly(t, e, conf(v1allow, fmt.Sprintf(`"decisionLog":{"otlp":{"cluster":"otel","protocol":%q}}`, tt.protocol)))
				defer closeFilter(f)
				run(t, f, request{}.stream())
				time.Sleep(time.Minute)
				synctest.Wait()
				if calls, _ := c.counts(); calls != tt.calls {
					t.Errorf("%d calls: want %d", calls, tt.calls)
				}
				if diff := cmp.Diff(tt.want, exported(t, reg)); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

func TestTheQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &collector{delay: 5 * time.Second, answer: func(int) (*filters.CalloutResponse, error) { return httpAnswer(200) }}
		e, reg := otlpEnv(c)
		f := compileOnly(t, e, conf(v1allow, `"decisionLog":{"otlp":{"cluster":"otel","protocol":"HTTP","maxBatch":10,"maxQueue":20}}`))
		start := time.Now()
		for range 100 {
			run(t, f, request{}.stream())
			synctest.Wait()
		}
		if d := time.Since(start); d > 0 {
			t.Errorf("requests waited %v for the collector", d)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		// 10 are on their way, 20 wait.
		if diff := cmp.Diff(map[string]string{"sent": "30", "dropped": "70"}, exported(t, reg)); diff != "" {
			t.Error(diff)
		}
		if calls, _ := c.counts(); calls != 3 {
			t.Errorf("%d calls: want 3", calls)
		}
		closeFilter(f)
	})
}

func TestTheEndSendsWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &collector{answer: func(int) (*filters.CalloutResponse, error) { return httpAnswer(200) }}
		e, _ := otlpEnv(c)
		f := compileOnly(t, e, conf(v1allow, `"decisionLog":{"otlp":{"cluster":"otel","protocol":"HTTP","maxBatch":2,"flushInterval":"60s"}}`))
		for range 5 {
			run(t, f, request{}.stream())
		}
		closeFilter(f)
		if _, records := c.counts(); records != 5 {
			t.Errorf("%d records: want 5", records)
		}
	})
	for _, flush := range []string{"60s", "0.001s"} { // waiting for company, or on its way
		synctest.Test(t, func(t *testing.T) {
			c := &collector{delay: time.Hour, answer: func(int) (*filters.CalloutResponse, error) { return httpAnswer(200) }}
			e, reg := otlpEnv(c)
			f := compileOnly(t, e, conf(v1allow, fmt.Sprintf(`"decisionLog":{"otlp":{"cluster":"otel","protocol":"HTTP","flushInterval":%q}}`, flush)))
			run(t, f, request{}.stream())
			time.Sleep(time.Second)
			start := time.Now()
			closeFilter(f)
			if d := time.Since(start); d > 2*time.Second {
				t.Errorf("the end took %v", d)
			}
			if diff := cmp.Diff(map[string]string{"failed": map[string]string{"60s": "1", "0.001s": "2"}[flush], "dropped": "1"}, exported(t, reg)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAFileAndACollectorGetTheSame(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	synctest.Test(t, func(t *testing.T) {
		c := &collector{answer: func(int) (*filters.CalloutResponse, error) { return httpAnswer(200) }}
		e, _ := otlpEnv(c)
		f := compileOnly(t, e, conf(readsSecrets, fmt.Sprintf(`"decisionLog":{"filename":%q,"includeInput":true,"includeResult":true,"otlp":{"cluster":"otel","protocol":"HTTP"}}`, name)))
		run(t, f, secretRequest().stream())
		closeFilter(f)
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var line any
		if err := json.Unmarshal(b, &line); err != nil {
			t.Fatal(err)
		}
		body, _ := json.Marshal(plain(c.got[0].Body))
		var other any
		_ = json.Unmarshal(body, &other)
		if diff := cmp.Diff(line, other); diff != "" {
			t.Errorf("file and collector (-file +collector):\n%s", diff)
		}
	})
}

func TestLogConfigurationsThatAreRefused(t *testing.T) {
	for name, js := range map[string]string{
		"no cluster":                      `"otlp":{}`,
		"a path for gRPC":                 `"otlp":{"cluster":"c","path":"/x"}`,
		"a path without a slash":          `"otlp":{"cluster":"c","protocol":"HTTP","path":"x"}`,
		"an unknown protocol":             `"otlp":{"cluster":"c","protocol":7}`,
		"too large a queue":               `"otlp":{"cluster":"c","maxQueue":10000000}`,
		"too large a batch":               `"otlp":{"cluster":"c","maxBatch":100000}`,
		"too long a timeout":              `"otlp":{"cluster":"c","timeout":"3600s"}`,
		"a mask of something else":        `"mask":["/policy"]`,
		"a mask decision that is a query": `"maskDecision":"data.a.b; true"`,
		"a mask decision that is absent":  `"maskDecision":"a/b"`,
		"a drop decision that is absent":  `"dropDecision":"a/b"`,
		"unknown mask defaults":           `"maskDefaults":9`,
	} {
		t.Run(name, func(t *testing.T) {
			if c, err := (Factory{}).Decode(filters.Any{TypeURL: TypeURL, Value: []byte(conf(v1allow, `"decisionLog":{`+js+`}`)), JSON: true}, nil); err == nil {
				t.Errorf("accepted: %+v", c)
			}
		})
	}
	t.Run("a file that can't be opened is an error of Compile", func(t *testing.T) {
		e := env()
		e.Logs = nil
		if _, err := (Factory{}).Compile(e, decode(t, conf(v1allow, `"decisionLog":{}`)), nil); err == nil {
			t.Error("compiled")
		}
	})
}
