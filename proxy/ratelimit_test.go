package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	rlsv3pb "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
)

// limiter is a rate limit service: a descriptor with "stop" is over its limit.
type limiter struct {
	rlsv3pb.UnimplementedRateLimitServiceServer
	mu   sync.Mutex
	seen []string
}

func (l *limiter) ShouldRateLimit(_ context.Context, q *rlsv3pb.RateLimitRequest) (*rlsv3pb.RateLimitResponse, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &rlsv3pb.RateLimitResponse{OverallCode: rlsv3pb.RateLimitResponse_OK}
	for _, d := range q.GetDescriptors() {
		var es []string
		for _, e := range d.GetEntries() {
			es = append(es, e.GetKey()+"="+e.GetValue())
			if e.GetValue() == "stop" {
				r.OverallCode = rlsv3pb.RateLimitResponse_OVER_LIMIT
			}
		}
		if o := d.GetLimit(); o != nil {
			es = append(es, fmt.Sprintf("limit %d %s", o.GetRequestsPerUnit(), o.GetUnit()))
		}
		if h := d.GetHitsAddend(); h != nil {
			es = append(es, fmt.Sprintf("hits %d", h.GetValue()))
		}
		l.seen = append(l.seen, strings.Join(es, ","))
	}
	return r, nil
}

func (l *limiter) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.seen
	l.seen = nil
	return out
}

const limitedYAML = `
node: {id: edge, cluster: gateway}
static_resources:
  clusters:
  - {name: app, type: STATIC, load_assignment: {cluster_name: app, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]s}}}}]}]}}
  - name: rls
    type: STATIC
    typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}}
    load_assignment: {cluster_name: rls, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[3]d}}}}]}]}
  listeners:
  - name: edge
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: edge
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              rate_limits: [{actions: [{generic_key: {descriptor_value: host}}]}]
              routes:
              - match: {prefix: /host}
                route: {cluster: app}
              - match: {prefix: /}
                metadata: {filter_metadata: {tier: {name: gold}}}
                route:
                  cluster: app
                  rate_limits:
                  - {actions: [{source_cluster: {}}, {destination_cluster: {}}, {remote_address: {}}, {masked_remote_address: {v4_prefix_mask_len: 8}}], limit: {rate_limit: {requests_per_unit: 3, unit: HOUR}}}
                  - {actions: [{request_headers: {header_name: X-User, descriptor_key: user}}], hits_addend: {number: 2}}
                  - {actions: [{generic_key: {descriptor_key: a, descriptor_value: b}}, {request_headers: {header_name: x-none, descriptor_key: none, skip_if_absent: true}}]}
                  - {actions: [{header_value_match: {descriptor_value: many, headers: [{name: x-user, string_match: {prefix: s}}]}}]}
                  - {actions: [{header_value_match: {descriptor_value: other, expect_match: false, headers: [{name: x-user, string_match: {prefix: s}}]}}]}
                  - {actions: [{query_parameters: {query_parameter_name: q, descriptor_key: query}}, {query_parameter_value_match: {descriptor_value: isone, query_parameters: [{name: q, string_match: {exact: one}}]}}]}
                  - {actions: [{metadata: {descriptor_key: tier, source: ROUTE_ENTRY, metadata_key: {key: tier, path: [{key: name}]}}}]}
                  - {actions: [{metadata: {descriptor_key: dyn, default_value: none, metadata_key: {key: x, path: [{key: y}]}}}]}
                  - {actions: [{remote_address_match: {descriptor_value: local, address_matcher: {ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}]}}}]}
                  - {actions: [{generic_key: {descriptor_value: late}}], stage: 1}
          http_filters:
          - name: limit
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit
              domain: edge
              failure_mode_deny: true
              timeout: 5s
              rate_limit_service: {transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: rls}}}
          - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
`

func TestRoutesAreLimitedByAService(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "app") }))
	t.Cleanup(origin.Close)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	svc, g := &limiter{}, grpc.NewServer()
	rlsv3pb.RegisterRateLimitServiceServer(g, svc)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(lis) }()
	t.Cleanup(func() { g.Stop(); <-done })
	port, _ := freePort(t), 0
	addr, _ := lis.Addr().(*net.TCPAddr)
	startProxy(t, fmt.Sprintf(limitedYAML, port, strings.TrimPrefix(origin.URL, "http://127.0.0.1:"), addr.Port), nil)
	ask := func(path, user string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-User", user)
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusTooManyRequests && resp.Header.Get("X-Envoy-Ratelimited") != "true" {
			t.Errorf("%v", resp.Header)
		}
		return resp.StatusCode
	}
	if got := ask("/x?q=one", "me"); got != 200 {
		t.Errorf("within the limits: %d", got)
	}
	want := []string{
		"source_cluster=gateway,destination_cluster=app,remote_address=127.0.0.1,masked_remote_address=127.0.0.0/8,limit 3 HOUR",
		"user=me,hits 2", "a=b", "header_match=other", "query=one,query_match=isone", "tier=gold", "dyn=none", "remote_address_match=local",
	}
	if got := svc.take(); !slices.Equal(got, want) {
		t.Errorf("descriptors\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := ask("/x", "stop"); got != 429 {
		t.Errorf("over the limit: %d", got)
	}
	if got := svc.take(); !slices.Contains(got, "header_match=many") || slices.Contains(got, "header_match=other") || slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "query") }) {
		t.Errorf("descriptors %q", got)
	}
	if got := ask("/host", "me"); got != 200 || !slices.Equal(svc.take(), []string{"generic_key=host"}) {
		t.Errorf("limits of the virtual host: %d", got)
	}
	g.Stop()
	if got := ask("/x", "me"); got != 500 {
		t.Errorf("without the service: %d", got)
	}
}
