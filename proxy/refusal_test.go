package proxy_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/explain"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// eventLog is a log that other goroutines write.
type eventLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *eventLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// events are the ones about requests, connections, responses and tunnels, as JSON.
func (l *eventLog) events() []map[string]any {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []map[string]any
	for line := range strings.Lines(l.buf.String()) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) != nil {
			continue
		}
		for _, kind := range []string{"request ", "connection ", "response ", "tunnel "} {
			if msg, _ := m["msg"].(string); strings.HasPrefix(msg, kind) {
				out = append(out, m)
			}
		}
	}
	return out
}

// next waits for the event about path (or, without one, about a connection) and
// empties the log.
func (l *eventLog) next(t *testing.T, path string) map[string]any {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		l.mu.Lock()
		for line := range strings.Lines(l.buf.String()) {
			var m map[string]any
			if json.Unmarshal([]byte(line), &m) != nil {
				continue
			}
			if msg, _ := m["msg"].(string); path != "" && m["path"] == path || path == "" && strings.HasPrefix(msg, "connection ") {
				l.buf.Reset()
				l.mu.Unlock()
				return m
			}
		}
		l.mu.Unlock()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t.Fatalf("no event about %q in\n%s", path, l.buf.String())
	return nil
}

const refusingFilters = `
{name: envoy.filters.http.rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: DENY, policies: {"ns[app]-policy[deny]-rule[0]": {
  permissions: [{url_path: {path: {exact: /other}}}, {url_path: {path: {prefix: /denied}}}], principals: [{any: true}]}}}}},
{name: envoy.filters.http.rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: ALLOW, policies: {
  "ns[app]-policy[allow]-rule[0]": {permissions: [{not_rule: {url_path: {path: {exact: /unallowed}}}}], principals: [{any: true}]},
  "ns[app]-policy[far]-rule[0]": {permissions: [{and_rules: {rules: [{url_path: {path: {exact: /never}}}, {header: {name: x-a, string_match: {exact: b}}}]}}], principals: [{any: true}]}}}}},
{name: envoy.filters.http.jwt_authn, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication,
  providers: {p: {issuer: i, local_jwks: {inline_string: '{"keys":[{"kty":"oct","k":"AAAA","alg":"HS256"}]}'}}}, rules: [{match: {prefix: /jwt}, requires: {provider_name: p}}]}},
{name: envoy.filters.http.local_ratelimit, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: lrl}},
`

const refusingRoutes = `stream_idle_timeout: 0.2s, route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [
  {name: limited, match: {prefix: /limited}, direct_response: {status: 200}, typed_per_filter_config: {envoy.filters.http.local_ratelimit: {"@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit,
    stat_prefix: few, token_bucket: {max_tokens: 1, tokens_per_fill: 1, fill_interval: 3600s}, filter_enabled: {default_value: {numerator: 100}}, filter_enforced: {default_value: {numerator: 100}}}}},
  {name: empty, match: {prefix: /empty}, route: {cluster: empty}},
  {name: silent, match: {prefix: /silent}, route: {cluster: silent, timeout: 0.1s}},
  {name: idle, match: {prefix: /idle}, route: {cluster: silent, timeout: 10s}},
  {name: full, match: {prefix: /full}, route: {cluster: full}},
  {name: configured, match: {prefix: /configured}, direct_response: {status: 503}},
  {name: down, match: {prefix: /down}, route: {cluster: down}}]}]}`

// TestEveryRefusalHasItsEvent sends requests that are refused, and looks at the
// one event about each.
func TestEveryRefusalHasItsEvent(t *testing.T) {
	log, reg := &eventLog{}, &stats.Registry{}
	s, err := proxy.New(proxy.Options{Registry: builtin.Registry(), DrainTime: 50 * time.Millisecond, Stats: reg, Logger: slog.New(slog.NewJSONHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	w := &world{Server: s, t: t, res: proxy.Resources{
		Listeners: map[string]*xdsresource.Listener{}, Clusters: map[string]*xdsresource.Cluster{},
		Routes: map[string]*xdsresource.RouteConfiguration{}, Extensions: map[string]*xdsresource.ExtensionConfig{},
	}}
	cluster := func(name, endpoints, more string) {
		w.res.Clusters[name] = decode[*xdsresource.Cluster](t, xdsresource.ClusterType, fmt.Sprintf(
			`{name: %s, type: STATIC, connect_timeout: 1s, load_assignment: {cluster_name: %s, endpoints: [{lb_endpoints: [%s]}]} %s}`, name, name, endpoints, more))
	}
	silent := silentServer(t)
	at := func(port int) string {
		return fmt.Sprintf(`{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}`, port)
	}
	cluster("empty", "", "")
	cluster("silent", at(silent), "")
	cluster("down", at(freePort(t)), "")
	cluster("full", at(silent), ", circuit_breakers: {thresholds: [{max_pending_requests: 0}]}")
	port, tcp := freePort(t), freePort(t)
	w.listen("http", port, "", chainYAML("main", "null", refusingFilters, refusingRoutes))
	w.listen("tcp", tcp, "", `{name: opaque, filters: [{name: rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: "tcp.",
	  rules: {action: DENY, policies: {"ns[app]-policy[tcp]-rule[2]": {permissions: [{any: true}], principals: [{any: true}]}}}}},
	  {name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: y, cluster: empty}}]}`)
	w.mustApply()

	for _, c := range []struct {
		path   string
		status int
		want   map[string]any
	}{
		{"/denied", 403, map[string]any{
			"msg": "request denied", "filter": "rbac", "policy": "app/deny", "rule": "0", "reason": "matched_policy",
			"clause": `permissions[1] (path: prefix "/denied") and principals[0] (anything)`, "listener": "http", "filter_chain": "main",
		}},
		{"/unallowed", 403, map[string]any{
			"msg": "request denied", "filter": "rbac", "reason": "no_policy_matched", "response_code_details": "rbac_access_denied_matched_policy[none]",
			"clause": `nearest ns[app]-policy[allow]-rule[0] misses not path: exactly "/unallowed", has "/unallowed"`,
		}},
		{"/jwt", 401, map[string]any{"msg": "request denied", "filter": "jwt_authn", "policy": "p", "reason": "jwt_is_missing"}},
		{"/limited", 429, map[string]any{"msg": "request denied", "filter": "local_ratelimit", "policy": "few", "limit": "1 requests, 1 more each 1h0m0s", "route": "limited", "response_flags": "RL"}},
		{"/empty", 503, map[string]any{"msg": "request failed", "level": "WARN", "response_code_details": "no_healthy_upstream", "response_flags": "UH", "route": "empty"}},
		{"/silent", 504, map[string]any{"msg": "request failed", "response_code_details": "response_timeout", "limit": "route timeout 100ms", "response_flags": "UT"}},
		{"/idle", 504, map[string]any{"msg": "request failed", "response_code_details": "stream_idle_timeout", "limit": "stream idle timeout 200ms", "response_flags": "SI"}},
		{"/full", 503, map[string]any{"msg": "request failed", "limit": "circuit breaker max_pending_requests", "response_flags": "UO"}},
		{"/down", 503, map[string]any{"msg": "request failed", "response_flags": "UF"}},
		{"/nowhere", 404, map[string]any{"msg": "request rejected", "level": "INFO", "response_code_details": "route_not_found", "response_flags": "NR"}},
	} {
		t.Run(c.path, func(t *testing.T) {
			status, _ := request(t, port, c.path)
			if c.path == "/limited" { // the second time
				status, _ = request(t, port, c.path)
			}
			if status != c.status {
				t.Errorf("status %d, want %d", status, c.status)
			}
			ev := log.next(t, c.path)
			agrees(t, s, port, c.path, ev)
			for k, v := range c.want {
				if ev[k] != v {
					t.Errorf("%s is %q, want %q", k, ev[k], v)
				}
			}
			if ev["status"] != float64(c.status) || ev["source"].(map[string]any)["address"] == nil || ev["destination"].(map[string]any)["address"] != fmt.Sprintf("127.0.0.1:%d", port) {
				t.Errorf("%v", ev)
			}
		})
	}
	t.Run("a connection", func(t *testing.T) {
		if status, _ := request(t, tcp, "/"); status != 0 {
			t.Errorf("status %d", status)
		}
		ev := log.next(t, "")
		for k, v := range map[string]any{"msg": "connection denied", "filter": "rbac", "policy": "app/tcp", "rule": "2", "termination_details": "rbac_access_denied_matched_policy[ns[app]-policy[tcp]-rule[2]]", "filter_chain": "opaque"} {
			if ev[k] != v {
				t.Errorf("%s is %q, want %q", k, ev[k], v)
			}
		}
	})
	t.Run("what is configured is no refusal", func(t *testing.T) {
		if status, _ := request(t, port, "/configured"); status != 503 {
			t.Errorf("status %d", status)
		}
	})
	var b strings.Builder
	if err := reg.WritePrometheusUsed(&b, func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	for _, m := range []string{
		`fairlead_policy_denials_total{filter="rbac",policy="app/deny",reason="matched_policy"} 1`,
		`fairlead_policy_denials_total{filter="rbac",policy="app/tcp",reason="matched_policy"} 1`,
		`fairlead_policy_denials_total{filter="local_ratelimit",policy="few",reason="rate_limited"} 1`,
		`fairlead_local_replies_total{reason="upstream_reset_before_response_started",response_code="503"} 2`,
	} {
		if !strings.Contains(b.String(), m+"\n") {
			t.Errorf("no metric %s", m)
		}
	}
	if strings.Contains(b.String(), `reason="direct_response"`) {
		t.Error("a direct response is counted")
	}
}

// agrees asks s what it would do with the request that ev is about.
func agrees(t *testing.T, s *proxy.Server, port int, path string, ev map[string]any) {
	t.Helper()
	r, err := s.Explain(&explain.Request{Destination: fmt.Sprintf("127.0.0.1:%d", port), Host: "a", Path: path, HTTP1: true})
	if err != nil {
		t.Fatal(err)
	}
	switch path {
	case "/silent", "/idle", "/full", "/down": // known only when it is tried
		if r.Outcome != explain.Forward {
			t.Errorf("explain says %s by %s", r.Outcome, r.Decider)
		}
		return
	}
	if ev["status"] != float64(r.Status) || ev["response_code_details"] != r.Details {
		t.Errorf("explain says %s by %s: %d %s, the event %v %v", r.Outcome, r.Decider, r.Status, r.Details, ev["status"], ev["response_code_details"])
	}
}
