package message

import "testing"

func TestTrailersThatAProxyWritesItselfAreForbiddenInAllSpellings(t *testing.T) {
	for _, c := range []struct {
		name         string
		any, request bool
	}{
		{"x-forwarded-client-cert", true, true},
		{"x_forwarded_client_cert", true, true},
		{"x-forwarded_client-cert", true, true},
		{"x_forwarded_for", true, true},
		{"x-envoy-peer-metadata", true, true},
		{"x_envoy_internal", true, true},
		{"forwarded", true, true},
		{"authorization", true, true},
		{"content_length", true, true},
		{"transfer_encoding", true, true},
		{"x-request-id", false, true},
		{"x_request_id", false, true},
		{"via", false, true},
		{"traceparent", false, true},
		{"tracestate", false, true},
		{"baggage", false, true},
		{"grpc-status", false, false},
		{"grpc_status", false, false},
		{"x-forwarded", false, false},
		{"x-envoyish", false, false},
		{"x-checksum", false, false},
		{"", false, false},
	} {
		if got := ForbiddenTrailer(c.name); got != c.any {
			t.Errorf("%q: forbidden %t, want %t", c.name, got, c.any)
		}
		if got := ForbiddenRequestTrailer(c.name); got != c.request {
			t.Errorf("%q: forbidden in a request %t, want %t", c.name, got, c.request)
		}
	}
	if n := testing.AllocsPerRun(100, func() { ForbiddenRequestTrailer("grpc-status") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
