package proxy_test

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// selfMade is a request that the proxy answers by itself.
type selfMade struct {
	listener string
	// send is the request without its version and host, or, if it has lines,
	// all its bytes.
	send    string
	status  int
	details string
	// limit is the one that the event names.
	limit string
}

// What the listeners of selfMadeWorld are for.
var selfMadeRequests = []selfMade{
	{"router", "GET /nowhere", 404, "route_not_found", ""},
	{"router", "GET /missing", 503, "cluster_not_found", ""},
	{"router", "GET /missing500", 500, "cluster_not_found", ""},
	{"router", "GET /broken", 500, "route_not_executable", ""},
	{"router", "GET /empty", 503, "no_healthy_upstream", ""},
	{"router", "GET /unusable", 503, "cluster_not_usable", ""},
	{"router", "GET /down", 503, "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}", ""},
	{"router", "GET /full", 503, "upstream_reset_before_response_started{overflow}", "circuit breaker max_pending_requests"},
	{"router", "GET /ending", 503, "upstream_reset_before_response_started{connection_termination}", ""},
	{"router", "GET /garbage", 502, "upstream_reset_before_response_started{protocol_error}", ""},
	{"router", "GET /dropped", 503, "unconditional_drop_overload", ""},
	{"router", "GET /slow", 504, "response_timeout", "route timeout 50ms"},
	{"router", "GET /try", 504, "upstream_per_try_timeout", "per-try timeout 50ms"},
	{"router", "GET /idletry", 504, "upstream_per_try_idle_timeout", "per-try idle timeout 50ms"},
	{"router", "GET /duration", 504, "max_duration_timeout", "max stream duration 50ms"},
	{"router", "GET /age", 504, "upstream_max_stream_duration_reached", "max stream duration of the cluster 50ms"},
	{"router", "GET /idle", 504, "stream_idle_timeout", "stream idle timeout 400ms"},
	{"router", "GET /slow HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 10.0.0.1\r\nx-envoy-upstream-rq-timeout-ms: soon\r\n\r\n", 400, "request_headers_failed_strict_check", ""},
	{"router", "POST /idle HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n", 408, "stream_idle_timeout", "stream idle timeout 400ms"},
	{"duration", "GET /", 504, "max_duration_timeout", "max stream duration 50ms"},
	{"request", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n", 408, "request_overall_timeout", "request timeout 50ms"},
	{"router", "GET / HTTP/1.1\r\n\r\n", 400, "missing_host_header", ""},
	{"router", "h2 get /", 400, "method_in_lower_case", ""},
	{"router", "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", 404, "absolute_path_rejected", ""},
	{"router", "GET / HTTP/1.1\r\nhost: a..\r\n\r\n", 400, "invalid_host", ""},
	{"router", "GET /rewrite../x", 400, "rewritten_path_has_dot_segments", ""},
	{"strict", "GET /%00", 400, "path_normalization_failed", ""},
	{"strict", "GET /a%2fb", 400, "path_normalization_failed", ""},
	{"strict", "GET / HTTP/1.1\r\nhost: a\r\nx_y: z\r\n\r\n", 400, "http1.unexpected_underscore", ""},
	{"router", "GET /empty HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 403, "upgrade_failed", ""},
	{"router", "\x16\x03\x01 HTTP/1.1\r\n\r\n", 400, "http1.codec_error", ""},
	{"router", "GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 501, "http1.invalid_transfer_encoding", ""},
	{"router", "GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n", 400, "http1.content_length_and_chunked_not_allowed", ""},
	{"router", "GET / HTTP/1.1\r\nhost: a\r\nx: " + strings.Repeat("x", 70<<10) + "\r\n\r\n", 431, "http1.headers_too_large", ""},
	{"router", "GET / HTTP/1.1\r\nhost: a\r\n" + strings.Repeat("x: y\r\n", 200) + "\r\n", 431, "http1.too_many_headers", ""},
	{"router", "GET ftp://a/ HTTP/1.1\r\nhost: a\r\n\r\n", 400, "http1.invalid_scheme", ""},
	{"router", "GET http:/// HTTP/1.1\r\nhost: a\r\n\r\n", 400, "http1.invalid_url", ""},
	{"router", "GET / HTTP/1.1\r\nhost: a b\r\n\r\n", 400, "http.invalid_authority", ""},
	{"router", "GET / HTTP/1.1\r\nhost: a\r\nx: \x00\r\n\r\n", 400, "http1.invalid_characters", ""},
	{"router", "GET / HTTP/1.1\r\nhost: a\r\nconnection: host\r\n\r\n", 400, "http1.connection_header_rejected", ""},
	{"router", "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\ntransfer-encoding: chunked\r\n\r\n", 400, "http1.transfer_encoding_not_allowed", ""},
	{"router", "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\ncontent-length: 1\r\n\r\n", 400, "http1.body_disallowed", ""},
	{"router", "GET / HTTP/1.0\r\nhost: a\r\n\r\n", 426, "low_version", ""},
	{"headers", "GET / HTTP/1.1\r\nhost: a\r\n", 408, "request_header_timeout", ""},
	{"fault", "GET /", 503, "fault_filter_abort", ""},
	{"grpcweb", "POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc-web-text\r\ncontent-length: 4\r\n\r\n!!!!", 400, "grpc_base_64_decode_failed", ""},
	{"late", "GET /", 500, "no_filter_config_found", ""},
	{"unknown", "GET /", 403, "filter_not_executable{acme}", ""},
	{"panic", "GET /", 500, "internal_error_panic", ""},
	{"error", "GET /", 500, "filter_chain_error", ""},
	{"limited", "GET /", 429, "local_rate_limited", "1 requests, 1 more each 1h0m0s"},
	{"authz", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nab", 413, "request_payload_too_large", ""},
	{"authz", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\na", 403, "ext_authz_error", ""},
	{"names", "GET http://nosuch.invalid/", 503, "dns_resolution_failure", ""},
	{"wasm", "GET / HTTP/1.1\r\nhost: a\r\nx-do: local\r\n\r\n", 403, "by_guest", ""},
	{"wasm", "GET / HTTP/1.1\r\nhost: a\r\nx-do: trap\r\n\r\n", 503, "wasm_fail_stream", ""},
}

// sites are the places that make such answers, "package: details". A details
// that is no constant stands as its expression. The value says which request
// above drives it, or which test does.
var selfMadeSites = map[string]string{
	"filters/http/adaptiveconcurrency: details":    "filters/http/adaptiveconcurrency",
	"filters/http/dlp: in.details()":               "TestTheFailClosedMatrix", // dlp_blocked, dlp_uninspectable
	"filters/http/extauthz: ext_authz_":            "TestTheFailClosedMatrix", // ext_authz_denied
	"filters/http/extauthz: ext_authz_invalid":     "filters/http/extauthz",
	"filters/http/jwtauthn: st.details()":          "TestTheFailClosedMatrix", // jwt_authn_access_denied
	"filters/http/ratelimit: rate_limiter_error":   "TestRoutesAreLimitedByAService",
	"filters/http/ratelimit: request_rate_limited": "TestRoutesAreLimitedByAService",
	"filters/http/rbac: details":                   "TestTheFailClosedMatrix", // rbac_access_denied_matched_policy
	"filters/http/rego: details":                   "TestTheFailClosedMatrix", // rego_denied
	"filters/http/rego: rego_denied{policy}":       "TestTheFailClosedMatrix",
	"filters/http/fault: abortDetails":             "fault_filter_abort",
	"filters/internal/proxywasm: details":          "by_guest",
	"proxy: r.details()":                           "filter_not_executable{acme}",
	"proxy/hcm: re.Detail":                         "http1.codec_error", // of a body that is malformed
	"proxy/hcm: codecName(s.Info.Protocol)":        "http1.unexpected_underscore",
	"proxy/router: details":                        "unconditional_drop_overload", // and what abort is given
	"proxy/router: tryDetail(try)":                 "upstream_per_try_timeout",
	"proxy/hcm: overload":                          "TestWhileMemoryIsShortTunnelsAreRefusedAndThenRequests",
	// What an operator configured is not the proxy's own.
	"routing: details":   "none",
	"routing: a.details": "none",
}

// probeModule is a Proxy-Wasm module that does what a header of the request says.
const probeModule = "../filters/internal/proxywasm/testdata/probe.wasm"

func selfMadeWorld(t *testing.T) (w *world, log *eventLog, ports map[string]int) {
	log = &eventLog{}
	reg := builtin.Registry()
	reg.RegisterHTTP(saboteurHTTP{})
	s, err := proxy.New(proxy.Options{Registry: reg, DrainTime: 50 * time.Millisecond, Stats: &stats.Registry{}, Logger: slog.New(slog.DiscardHandler), Events: slog.New(slog.NewJSONHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	w = &world{Server: s, t: t, res: proxy.Resources{
		Listeners: map[string]*xdsresource.Listener{}, Clusters: map[string]*xdsresource.Cluster{},
		Routes: map[string]*xdsresource.RouteConfiguration{}, Extensions: map[string]*xdsresource.ExtensionConfig{},
	}}
	dec := xdsresource.NewDecoder(reg, xdsresource.Options{})
	add := func(typeURL, doc string) any {
		v, err := dec.FromYAML(typeURL, []byte(doc))
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		return v
	}
	at := func(port int) string {
		return fmt.Sprintf(`endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}]}]`, port)
	}
	silent, sv := silentServer(t), newServices(t)
	for name, c := range map[string][2]string{
		"empty": {}, "silent": {at(silent)}, "down": {at(sv.port["refused"])}, "full": {at(silent), "circuit_breakers: {thresholds: [{max_pending_requests: 0}]},"},
		"ending": {at(endingServer(t, ""))}, "garbage": {at(sv.port["raw"])},
		"dropped":  {at(silent) + ", policy: {drop_overloads: [{category: x, drop_percentage: {numerator: 100}}]}"},
		"age":      {at(silent), `typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, common_http_protocol_options: {max_stream_duration: 0.05s}, explicit_http_config: {http_protocol_options: {}}}},`},
		"unusable": {at(silent), "lb_subset_config: {fallback_policy: ANY_ENDPOINT},"},
	} {
		assign := strings.TrimSuffix("cluster_name: "+name+", "+c[0], ", ")
		w.res.Clusters[name], _ = add(xdsresource.ClusterType, fmt.Sprintf(`{name: %s, type: STATIC, connect_timeout: 1s, %s load_assignment: {%s}}`, name, c[1], assign)).(*xdsresource.Cluster)
	}
	w.res.Clusters["names"], _ = add(xdsresource.ClusterType, `{name: names, lb_policy: CLUSTER_PROVIDED, cluster_type: {name: envoy.clusters.dynamic_forward_proxy, typed_config: {
"@type": type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, dns_cache_config: {name: c, dns_lookup_family: V4_ONLY}}}}`).(*xdsresource.Cluster)

	to := func(cluster, more string) string {
		return fmt.Sprintf(`route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: %s %s}}]}]}`, cluster, more)
	}
	f := func(name, typeURL, fields string) string {
		return fmt.Sprintf(`{name: %s, typed_config: {"@type": %s%s, %s}},`, name, google, typeURL, fields)
	}
	ports = map[string]int{}
	for name, l := range map[string][2]string{
		"router": {"", `stream_idle_timeout: 0.4s, internal_address_config: {cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}, route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [
  {match: {prefix: /missing500}, route: {cluster: nosuch, cluster_not_found_response_code: INTERNAL_SERVER_ERROR}}, {match: {prefix: /missing}, route: {cluster: nosuch}},
  {match: {prefix: /broken}, filter_action: {}},
  {match: {prefix: /rewrite}, route: {cluster: silent, prefix_rewrite: /a/}}, {match: {prefix: /empty}, route: {cluster: empty}}, {match: {prefix: /unusable}, route: {cluster: unusable}}, {match: {prefix: /down}, route: {cluster: down}},
  {match: {prefix: /full}, route: {cluster: full}}, {match: {prefix: /ending}, route: {cluster: ending}}, {match: {prefix: /garbage}, route: {cluster: garbage}},
  {match: {prefix: /dropped}, route: {cluster: dropped}}, {match: {prefix: /slow}, route: {cluster: silent, timeout: 0.05s}},
  {match: {prefix: /try}, route: {cluster: silent, timeout: 0s, retry_policy: {per_try_timeout: 0.05s}}},
  {match: {prefix: /idletry}, route: {cluster: silent, timeout: 0s, retry_policy: {per_try_idle_timeout: 0.05s}}},
  {match: {prefix: /duration}, route: {cluster: silent, timeout: 0s, max_stream_duration: {max_stream_duration: 0.05s}}},
  {match: {prefix: /age}, route: {cluster: age, timeout: 0s}}, {match: {prefix: /idle}, route: {cluster: silent, timeout: 0s}}]}]}`},
		"duration": {"", `common_http_protocol_options: {max_stream_duration: 0.05s}, ` + to("silent", ", timeout: 0s")},
		"request":  {"", `request_timeout: 0.05s, ` + to("silent", ", timeout: 0s")},
		"headers":  {"", `request_headers_timeout: 0.05s, ` + to("silent", "")},
		"strict":   {"", `normalize_path: true, path_with_escaped_slashes_action: REJECT_REQUEST, common_http_protocol_options: {headers_with_underscores_action: REJECT_REQUEST}, ` + to("silent", "")},
		"fault":    {f("fault", "envoy.extensions.filters.http.fault.v3.HTTPFault", `abort: {http_status: 503, percentage: {numerator: 100}}`), to("silent", "")},
		"grpcweb":  {f("grpc_web", "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb", ""), to("silent", "")},
		"late":     {discovered(regoT, ""), to("silent", "")},
		"unknown":  {f("acme", "udpa.type.v1.TypedStruct", "type_url: type.googleapis.com/acme.Unknown, value: {}"), to("silent", "")},
		"panic":    {sabotages("itself"), to("silent", "")},
		"error":    {sabotages("error"), to("silent", "")},
		"limited": {f("lrl", "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit", `stat_prefix: few, token_bucket: {max_tokens: 1, tokens_per_fill: 1, fill_interval: 3600s},
filter_enabled: {default_value: {numerator: 100}}, filter_enforced: {default_value: {numerator: 100}}`), direct("ok")},
		"authz": {f("a", "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz", `transport_api_version: V3, with_request_body: {max_request_bytes: 1}, http_service: {server_uri: {uri: "http://x", cluster: down, timeout: 1s}}`), to("silent", "")},
		"wasm":  {f("w", "envoy.extensions.filters.http.wasm.v3.Wasm", "config: {name: w, vm_config: {code: {local: {filename: "+probeModule+"}}}}"), direct("ok")},
		"names": {f("dfp", "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig", `dns_cache_config: {name: c, dns_lookup_family: V4_ONLY}`), to("names", "")},
	} {
		ports[name] = freePort(t)
		chain := strings.Replace(chainYAML("c", "null", l[0], l[1]), `v3.Router}`, `v3.Router, strict_check_headers: [x-envoy-upstream-rq-timeout-ms]}`, 1)
		w.res.Listeners[name], _ = add(xdsresource.ListenerType, fmt.Sprintf(
			`{name: %s, address: {socket_address: {address: 127.0.0.1, port_value: %d}}, filter_chains: [%s]}`, name, ports[name], chain)).(*xdsresource.Listener)
	}
	w.mustApply()
	return w, log, ports
}

// TestEveryAnswerOfOurOwnHasItsCauseAndItsEvent makes the proxy answer by itself
// in every way that there is.
func TestEveryAnswerOfOurOwnHasItsCauseAndItsEvent(t *testing.T) {
	_, log, ports := selfMadeWorld(t)
	if status, _ := request(t, ports["limited"], "/"); status != 200 {
		t.Errorf("the one request that is allowed: %d", status)
	}
	driven, failures := map[string]bool{}, 0
	for _, c := range selfMadeRequests {
		name := c.listener + " " + strconv.Quote(c.send[:min(len(c.send), 60)])
		details, _, _ := strings.Cut(c.details, "{")
		driven[details], driven[c.details] = true, true
		if c.status >= 500 {
			failures++
		}
		t.Run(name, func(t *testing.T) {
			if method, ok := strings.CutPrefix(c.send, "h2 "); ok {
				if status := answerToHTTP2(t, ports[c.listener], strings.Fields(method)[0]); status != c.status {
					t.Errorf("the client got %d, want %d", status, c.status)
				}
				checkEvent(t, log, c)
				return
			}
			raw := c.send
			if !strings.Contains(raw, "\r\n") {
				raw += " HTTP/1.1\r\nhost: a\r\n\r\n"
			}
			if status := answerTo(t, ports[c.listener], raw); status != c.status {
				t.Errorf("the client got %d, want %d", status, c.status)
			}
			checkEvent(t, log, c)
		})
	}
	if failures < 22 {
		t.Errorf("%d kinds of 5xx", failures)
	}
	// Whoever makes a new kind of answer has to add it here.
	sites := maps.Clone(selfMadeSites)
	for site := range selfMadeDetails(t) {
		by, ok := sites[site]
		if !ok {
			_, by, _ = strings.Cut(site, ": ")
		}
		if !ok || !strings.HasPrefix(by, "Test") && !strings.Contains(by, "/") && by != "none" {
			if !driven[by] {
				t.Errorf("%s: no request is answered so", site)
			}
		}
		delete(sites, site)
	}
	for site := range sites {
		t.Errorf("%s is no longer there", site)
	}
}

// A response that has begun can't become a 5xx: it is cut off, and told of.
func TestAResponseThatIsCutOffHasItsEvent(t *testing.T) {
	w, log, _ := selfMadeWorld(t)
	ending := make(chan bool, 4)
	sv := &services{}
	port := sv.serve(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(rw, "a part")
		_ = http.NewResponseController(rw).Flush()
		if r.URL.Path == "/ending" {
			<-ending
			panic(http.ErrAbortHandler)
		}
		<-r.Context().Done()
	}))
	w.res.Clusters["part"] = decode[*xdsresource.Cluster](t, xdsresource.ClusterType, fmt.Sprintf(`{name: part, type: STATIC, connect_timeout: 1s, load_assignment: {cluster_name: part,
endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}]}]}}`, port))
	at := freePort(t)
	w.listen("parts", at, "", chainYAML("c", "null", "", `stream_idle_timeout: 0.4s, route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [
  {match: {prefix: /route}, route: {cluster: part, timeout: 0.05s}},
  {match: {prefix: /duration}, route: {cluster: part, timeout: 0s, max_stream_duration: {max_stream_duration: 0.05s}}},
  {match: {prefix: /}, route: {cluster: part, timeout: 0s}}]}]}`))
	w.mustApply()
	for path, want := range map[string][3]string{
		"/route": {"response_timeout", "route timeout 50ms", "WARN"}, "/duration": {"max_duration_timeout", "max stream duration 50ms", "WARN"},
		"/idle": {"stream_idle_timeout", "stream idle timeout 400ms", "WARN"}, "/ending": {"upstream_reset_after_response_started{", "", "INFO"},
	} {
		ending <- true
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", at, path))
		if err != nil {
			t.Fatal(err)
		}
		if _, err = io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s: the client took the part for the whole", path)
		}
		_ = resp.Body.Close()
		ev := log.next(t, path)
		details, _ := ev["response_code_details"].(string)
		limit, _ := ev["limit"].(string)
		if ev["msg"] != "response cut off" || ev["status"] != 200.0 || !strings.HasPrefix(details, want[0]) || limit != want[1] || ev["level"] != want[2] {
			t.Errorf("%s: %v, want %q", path, ev, want)
		}
	}
}

// checkEvent wants the one event about c.
func checkEvent(t *testing.T, log *eventLog, c selfMade) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); len(log.events()) == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	evs := log.take()
	if len(evs) != 1 {
		t.Fatalf("%d events: %v", len(evs), evs)
	}
	ev := evs[0]
	limit, _ := ev["limit"].(string)
	if ev["status"] != float64(c.status) || ev["response_code_details"] != c.details || limit != c.limit || ev["listener"] != c.listener || ev["source"] == nil || ev["destination"] == nil {
		t.Errorf("want %d %s %q, the event is %v", c.status, c.details, c.limit, ev)
	}
	if want := map[bool]string{true: "WARN", false: "INFO"}[c.status >= 500]; ev["level"] != want && ev["filter"] == nil {
		t.Errorf("told as %v, want %s", ev["level"], want)
	}
}

// answerToHTTP2 sends a request with a method of any form.
func answerToHTTP2(t *testing.T, port int, method string) int {
	t.Helper()
	p := &http.Protocols{}
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// take returns the events and forgets them.
func (l *eventLog) take() []map[string]any {
	evs := l.events()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Reset()
	return evs
}

// answerTo sends bytes and returns the status of the answer.
func answerTo(t *testing.T, port int, raw string) int {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	go func() { _, _ = io.WriteString(c, raw) }()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode
}

// selfMadeDetails finds in the sources what answers of the proxy's own give as
// their cause.
func selfMadeDetails(t *testing.T) map[string]bool {
	// The argument that holds it, by function.
	arg := map[string]int{"LocalReply": 2, "Deny": 2, "abort": 4, "timeoutReply": 0}
	out := map[string]bool{}
	for _, root := range []string{"../filters", "../routing", "."} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, "explain.go") {
				return err
			}
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			pkg := strings.TrimPrefix(filepath.ToSlash(filepath.Join("proxy", filepath.Dir(path))), "../")
			add := func(e ast.Expr) {
				for {
					b, ok := e.(*ast.BinaryExpr)
					if !ok {
						break
					}
					e = b.X
				}
				var b strings.Builder
				if err := printer.Fprint(&b, fset, e); err != nil {
					t.Error(err)
				}
				text := b.String()
				if s, err := strconv.Unquote(text); err == nil {
					text = s
				}
				out[pkg+": "+text] = true
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					_, is := arg[n.Name.Name]
					return !is || pkg != "filters" && pkg != "proxy/router" // those hand on what they are given
				case *ast.CallExpr:
					name := ""
					switch f := n.Fun.(type) {
					case *ast.SelectorExpr:
						name = f.Sel.Name
					case *ast.Ident:
						name = f.Name
					}
					if i, ok := arg[name]; ok && len(n.Args) > i {
						add(n.Args[i])
					}
				case *ast.CompositeLit:
					if id, ok := n.Type.(*ast.Ident); ok && id.Name == "parseError" && len(n.Elts) == 2 {
						add(n.Elts[1])
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(out) < 40 {
		t.Errorf("%d places found", len(out))
	}
	return out
}
