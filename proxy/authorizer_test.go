package proxy_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A dead authorizer costs its timeout a few times only; what it does not allow
// stays refused.
func TestADeadAuthorizerCostsNoTimeouts(t *testing.T) {
	const timeout = 20 * time.Millisecond
	for _, c := range []struct{ name, service string }{
		{"gRPC", "grpc_service: {envoy_grpc: {cluster_name: authz}, timeout: 0.02s}"},
		{"HTTP", "http_service: {server_uri: {uri: http://authz, cluster: authz, timeout: 0.02s}}"},
	} {
		t.Run(c.name, func(t *testing.T) {
			port, admin := freePort(t), freePort(t)
			filter := "{name: authz, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz, transport_api_version: V3, " + c.service + "}}, "
			doc := withAdmin("node: {id: a, cluster: a}\nstatic_resources:\n  listeners:"+
				strings.Replace(hcmListener("main", port, "app", ""), "http_filters: [", "http_filters: ["+filter, 1)+
				"\n  clusters:"+httpCluster("app", "1", "http_protocol_options: {}")+httpCluster("authz", strconv.Itoa(silentServer(t)), "http_protocol_options: {}"), admin)
			startProxy(t, doc, nil)
			state := func() string {
				return metric(t, admin, `fairlead_callout_breaker_state{envoy_cluster_name="authz"}`)
			}
			denied := func(cl *client) time.Duration {
				start := time.Now()
				if status, body := cl.get("/"); status != 403 {
					t.Fatalf("%d %q", status, body)
				}
				return time.Since(start)
			}
			cl := dial(t, port)
			defer cl.Close()
			if took := denied(cl); took < timeout {
				t.Errorf("the first request was refused after %v, before the timeout", took)
			}
			if s := state(); s != "0" {
				t.Errorf("after one failure: breaker_state %q", s)
			}
			for range 9 {
				denied(cl)
			}
			if s := state(); s != "2" {
				t.Errorf("after ten failures within %v: breaker_state %q", 10*timeout, s)
			}
			fastest := time.Hour
			for n := 0; n < 50 || n < 2000 && fastest >= time.Millisecond; n++ { // a busy machine may spoil many
				fastest = min(fastest, denied(cl))
			}
			t.Logf("refused after %v", fastest)
			if fastest >= time.Millisecond {
				t.Errorf("with an open breaker, the fastest refusal took %v", fastest)
			}
			for name, least := range map[string]int{"breaker_opened_total": 1, "rejected_total": 50, "failed_total": 10} {
				v := metric(t, admin, fmt.Sprintf(`fairlead_callout_%s{envoy_cluster_name="authz"}`, name))
				if n, err := strconv.Atoi(v); err != nil || n < least {
					t.Errorf("%s is %q", name, v)
				}
			}
		})
	}
}
