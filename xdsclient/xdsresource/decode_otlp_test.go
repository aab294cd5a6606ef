package xdsresource

import (
	"testing"
	"time"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

func TestACollectorIsNamedWithAndWithoutAScheme(t *testing.T) {
	for uri, want := range map[string][3]string{
		"http://otel.example:4318/v1/traces":  {"http", "otel.example:4318", "/v1/traces"},
		"https://otel.example/v1/traces?x=1":  {"https", "otel.example", "/v1/traces?x=1"},
		"otel.ns.svc.cluster.local/v1/traces": {"http", "otel.ns.svc.cluster.local", "/v1/traces"}, // istiod's form
		"otel.example:4318/v1/traces":         {"http", "otel.example:4318", "/v1/traces"},
		"otel.example":                        {"http", "otel.example", "/"},
		"/v1/traces":                          {},
		"":                                    {},
		"http://%zz/":                         {},
	} {
		s := &scope{d: NewDecoder(nil, Options{})}
		got := s.httpCollector(&corev3pb.HttpService{HttpUri: &corev3pb.HttpUri{
			Uri: uri, HttpUpstreamType: &corev3pb.HttpUri_Cluster{Cluster: "c"}, Timeout: durationpb.New(time.Second),
		}})
		switch {
		case got == nil && want != [3]string{}:
			t.Errorf("%q is no collector", uri)
		case got != nil && [3]string{got.Scheme, got.Authority, got.Path} != want:
			t.Errorf("%q is %s %s %s", uri, got.Scheme, got.Authority, got.Path)
		}
	}
}
