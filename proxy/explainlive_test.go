package proxy_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/explain"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// seen is what an origin got.
type seen struct {
	Cluster, Method, Path, Host, Body string
	Header                            map[string]string
}

// liveFilters are the configurations that are asked and sent to, by name; ${JWKS}
// is a set of keys.
var liveFilters = map[string]string{
	"routes": "",
	"rbac": `
{name: deny, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: DENY, policies: {
  "ns[app]-policy[deny]-rule[0]": {permissions: [{and_rules: {rules: [{url_path: {path: {prefix: /admin}}}, {not_rule: {header: {name: ":method", string_match: {exact: GET}}}}]}}], principals: [{any: true}]},
  "ns[app]-policy[deny]-rule[1]": {permissions: [{header: {name: x-team, string_match: {exact: red}}}], principals: [{not_id: {header: {name: x-badge, present_match: true}}}]}}}}},
{name: allow, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: ALLOW, policies: {
  "ns[app]-policy[allow]-rule[0]": {permissions: [{or_rules: {rules: [{url_path: {path: {suffix: /item}}}, {url_path: {path: {exact: /admin}}}]}}], principals: [{any: true}]},
  "ns[app]-policy[allow]-rule[1]": {permissions: [{any: true}], principals: [{and_ids: {ids: [{header: {name: x-team, string_match: {safe_regex: {regex: "b.*"}}}}, {direct_remote_ip: {address_prefix: 127.0.0.0, prefix_len: 8}}]}}]},
  "ns[app]-policy[allow]-rule[2]": {permissions: [{uri_template: {name: t, typed_config: {"@type": type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: "/shop/*"}}}], principals: [{any: true}]}}}}},
`,
	"jwt": `
{name: jwt, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication,
  providers: {p: {issuer: i, forward: true, payload_in_metadata: payload, claim_to_headers: [{header_name: x-user, claim_name: sub}], local_jwks: {inline_string: '${JWKS}'}}},
  rules: [{match: {prefix: /admin}, requires: {provider_name: p}}, {match: {prefix: /}, requires: {requires_any: {requirements: [{provider_name: p}, {allow_missing: {}}]}}}]}},
{name: allow, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: ALLOW, policies: {
  "ns[app]-policy[alice]-rule[0]": {permissions: [{any: true}], principals: [{metadata: {filter: envoy.filters.http.jwt_authn, path: [{key: payload}, {key: sub}], value: {string_match: {exact: alice}}}}]},
  "ns[app]-policy[open]-rule[0]": {permissions: [{not_rule: {url_path: {path: {prefix: /shop}}}}], principals: [{any: true}]}}}}},
`,
	"rego": `
{name: fairlead.rego, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/fairlead.rego.v1.Config, value: {name: live, timeout: 10s, max_request_bytes: 64, policy: {sources: [{inline_string: "package envoy.authz
import input.attributes.request.http as http
default allow := false
allow if http.method == \"GET\"
allow if input.parsed_body.amount < 100
allow := {\"allowed\": true, \"headers\": {\"x-team\": \"blue\"}, \"request_headers_to_remove\": [\"x-badge\"]} if http.headers[\"x-team\"] == \"green\"
allow := {\"allowed\": false, \"http_status\": 451, \"body\": \"no\"} if startswith(http.path, \"/admin\")
"}]}}}},
`,
	"dlp": `
{name: fairlead.dlp, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/fairlead.dlp.v1.Config, value: {rules: [
  {name: cards, info_types: [CREDIT_CARD_NUMBER], direction: REQUEST, action: MASK, mask: {keep_last: 4}},
  {name: keys, info_types: [AWS_CREDENTIALS], direction: REQUEST, action: BLOCK, block_status: 451}]}}},
`,
	"mixed": `
{name: cors, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}},
{name: mutate, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation, mutations: {request_mutations: [
  {append: {header: {key: x-seen, value: "%REQ(x-team)%"}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}}, {remove: x-badge}]}}},
{name: fault, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, headers: [{name: x-team, string_match: {exact: red}}], abort: {http_status: 503, percentage: {numerator: 100}}}},
{name: deny, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: DENY, policies: {"ns[app]-policy[token]-rule[0]": {permissions: [{header: {name: x-badge, present_match: true}}], principals: [{any: true}]}}}}},
{name: limit, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: lrl, token_bucket: {max_tokens: 100000, tokens_per_fill: 1, fill_interval: 3600s},
  filter_enabled: {default_value: {numerator: 100}}, filter_enforced: {default_value: {numerator: 100}}}},
`,
}

const liveRoutes = `normalize_path: true, merge_slashes: true, path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT, strip_any_host_port: true,
local_reply_config: {body_format: {text_format_source: {inline_string: "%RESPONSE_CODE_DETAILS%"}}},
route_config: {name: r, request_headers_to_add: [{header: {key: x-route, value: "%ROUTE_NAME%"}}], virtual_hosts: [
{name: shop, domains: [shop.test, "*.shop.test"], routes: [
  {name: old, match: {path: /old}, redirect: {path_redirect: /shop/item, response_code: FOUND}},
  {name: teapot, match: {path: /tea}, direct_response: {status: 418}},
  {name: by-header, match: {prefix: /, headers: [{name: x-team, string_match: {exact: blue}}]}, route: {cluster: b, prefix_rewrite: /team/}},
  {name: by-query, match: {prefix: /, query_parameters: [{name: v, string_match: {exact: "2"}}]}, route: {cluster: c, host_rewrite_literal: c.test}},
  {name: by-regex, match: {safe_regex: {regex: "/[0-9]+/item"}}, route: {cluster: b, regex_rewrite: {pattern: {regex: "^/([0-9]+)/item"}, substitution: '/item/\1'}}},
  {name: nobody, match: {path_separated_prefix: /nobody}, route: {cluster: empty}},
  {name: nowhere, match: {path_separated_prefix: /nowhere}, route: {cluster: nosuch}},
  {name: posts, match: {prefix: /shop, headers: [{name: ":method", string_match: {exact: POST}}]}, route: {cluster: c}},
  {name: shop, match: {prefix: /shop}, route: {cluster: a}, request_headers_to_add: [{header: {key: x-added, value: here}}], request_headers_to_remove: [x-drop]},
  {name: admin, match: {prefix: /admin}, route: {cluster: a, timeout: 3s}, typed_per_filter_config: {
    mutate: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}, fairlead.rego: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: false, config: {}}}}]},
{name: rest, domains: [rest.test], require_tls: NONE, typed_per_filter_config: {fairlead.dlp: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/fairlead.dlp.v1.PerRoute, value: {disabled_rules: [keys]}}},
  routes: [{name: rest, match: {prefix: /}, route: {cluster: c}}]},
{name: tls, domains: [tls.test], require_tls: ALL, routes: [{name: tls, match: {prefix: /}, route: {cluster: c}}]}]}`

// liveWorld serves one configuration in front of three origins.
func liveWorld(t *testing.T, name string, reg *stats.Registry) (s *proxy.Server, sv *services, port int) {
	s, err := proxy.New(proxy.Options{Registry: builtin.Registry(), DrainTime: 50 * time.Millisecond, Stats: reg, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	w := &world{Server: s, t: t, res: proxy.Resources{
		Listeners: map[string]*xdsresource.Listener{}, Clusters: map[string]*xdsresource.Cluster{},
		Routes: map[string]*xdsresource.RouteConfiguration{}, Extensions: map[string]*xdsresource.ExtensionConfig{},
	}}
	sv = newServices(t)
	for _, c := range []string{"a", "b", "c", "empty"} {
		endpoint := ""
		if c != "empty" {
			at := sv.serve(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				e := seen{Cluster: c, Method: r.Method, Path: r.RequestURI, Host: r.Host, Body: string(b), Header: map[string]string{}}
				for k, v := range r.Header {
					e.Header[strings.ToLower(k)] = strings.Join(v, ",")
				}
				rw.Header().Set("x-origin", c)
				_ = json.NewEncoder(rw).Encode(e)
			}))
			endpoint = fmt.Sprintf(`{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}`, at)
		}
		w.res.Clusters[c] = decode[*xdsresource.Cluster](t, xdsresource.ClusterType, fmt.Sprintf(
			`{name: %[1]s, type: STATIC, connect_timeout: 1s, load_assignment: {cluster_name: %[1]s, endpoints: [{lb_endpoints: [%[2]s]}]}}`, c, endpoint))
	}
	filters := strings.ReplaceAll(liveFilters[name], "${JWKS}", sv.jwks())
	routes := liveRoutes
	if name != "mixed" { // an override needs its filter
		routes = strings.Replace(routes, `mutate: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}, `, "", 1)
	}
	if name != "rego" {
		routes = strings.Replace(routes, `fairlead.rego: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: false, config: {}}`, "", 1)
	} else {
		routes = strings.Replace(routes, `disabled: false, config: {}`, `config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/fairlead.rego.v1.PerRoute, value: {context_extensions: {a: b}}}`, 1)
	}
	if name != "dlp" {
		routes = strings.Replace(routes, `typed_per_filter_config: {fairlead.dlp: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/fairlead.dlp.v1.PerRoute, value: {disabled_rules: [keys]}}},`, "", 1)
	}
	port = freePort(t)
	w.listen("live", port, "", chainYAML("c", "null", filters, routes))
	w.mustApply()
	if d := s.Snapshot().Diagnostics; len(d) > 0 {
		t.Fatal(d)
	}
	return s, sv, port
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// generated is a request that somebody might send.
func generated(r *rand.Rand, sv *services) *explain.Request {
	q := &explain.Request{
		Source: explain.Source{Address: "127.0.0.1"},
		Method: pick(r, "GET", "GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"), HTTP1: true,
		Host: pick(r, "shop.test", "shop.test", "shop.test:8080", "a.shop.test", "SHOP.test", "shop.test.", "rest.test", "tls.test", "else.test"),
		Path: pick(r, "/shop/item", "/shop/", "/shop/a/item", "/admin", "/admin/x", "/a/../admin/x", "//admin", "/%61dmin/x", "/shop%2fitem", "/old", "/tea", "/7/item", "/77/item?v=3", "/nobody", "/nobody/x", "/nowhere/x", "/other", "/", "/shop/..;/admin"),
	}
	if r.IntN(4) == 0 && !strings.Contains(q.Path, "?") {
		q.Path += pick(r, "?v=2", "?v=1", "?v=2&v=1", "?q=4111111111111111", "?key="+matrixKey, "?")
	}
	add := func(odds int, lines ...string) {
		if r.IntN(odds) == 0 {
			q.Headers = append(q.Headers, pick(r, lines...))
		}
	}
	add(2, "x-team: blue", "x-team: red", "x-team: green", "x-team: b", "x-team:")
	add(4, "x-badge: 1")
	add(4, "x-drop: 1")
	add(8, "x-note: "+matrixKey, "x-note: card 4111 1111 1111 1111")
	add(6, "origin: http://a.test")
	add(3, "authorization: Bearer "+sv.token(), "authorization: Bearer "+sv.token()+"AA", "authorization: Bearer x.y.z", "authorization: Basic abc")
	if q.Method == http.MethodPost || q.Method == http.MethodPut {
		q.Headers = append(q.Headers, "content-type: "+pick(r, "application/json", "application/json", "text/plain"))
		q.Body = pick(r, `{"amount": 5}`, `{"amount": 500}`, `{"amount":`, `{"card":"4111 1111 1111 1111"}`, `{"key":"`+matrixKey+`"}`, `{"pad":"`+strings.Repeat("x", 100)+`"}`, "")
	}
	return q
}

const matrixKey = "AKIA" + "QYLPMN5HHHFPZAM2"

// sent is what came of a request.
type sent struct {
	status   int
	location string
	details  string // if the proxy answered
	origin   *seen  // if it did not
}

func sendLive(t *testing.T, port int, q *explain.Request) *sent {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nhost: %s\r\n", q.Method, q.Path, q.Host)
	for _, h := range q.Headers {
		b.WriteString(h + "\r\n")
	}
	if q.Body != "" {
		fmt.Fprintf(&b, "content-length: %d\r\n", len(q.Body))
	}
	_, _ = io.WriteString(c, b.String()+"\r\n"+q.Body)
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: q.Method})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	out := &sent{status: resp.StatusCode, location: resp.Header.Get("location")}
	if resp.Header.Get("x-origin") == "" {
		out.details = string(body)
		return out
	}
	out.origin = &seen{Cluster: resp.Header.Get("x-origin")}
	_ = json.Unmarshal(body, out.origin) // HEAD has none
	return out
}

// agreesLive compares the answer with what happened.
func agreesLive(t *testing.T, q *explain.Request, r *explain.Report, got *sent) {
	t.Helper()
	last := r.Hops[len(r.Hops)-1]
	switch r.Outcome {
	case explain.Forward:
		if got.origin == nil {
			t.Errorf("explained as forwarded to %s, answered %d %s", last.Upstream.Cluster, got.status, got.details)
			return
		}
		up := last.Upstream
		if got.origin.Cluster != up.Cluster {
			t.Errorf("explained cluster %s, it went to %s", up.Cluster, got.origin.Cluster)
		}
		if q.Method == http.MethodHead {
			return
		}
		if got.origin.Path != up.Request.Path || got.origin.Host != up.Request.Authority || got.origin.Method != up.Request.Method {
			t.Errorf("explained as %s %s%s, the origin saw %s %s%s", up.Request.Method, up.Request.Authority, up.Request.Path, got.origin.Method, got.origin.Host, got.origin.Path)
		}
		if route := last.Routing.Route.Name; got.origin.Header["x-route"] != route {
			t.Errorf("explained route %s, it took %s", route, got.origin.Header["x-route"])
		}
		explained := map[string]string{}
		for _, l := range up.Request.Headers {
			k, v, _ := strings.Cut(l, ":")
			if v = strings.TrimSpace(v); explained[k] != "" {
				v = explained[k] + "," + v
			}
			explained[k] = v
		}
		for _, k := range []string{"x-team", "x-badge", "x-drop", "x-note", "x-user", "x-added", "x-seen", "x-route", "origin", "content-type"} {
			if explained[k] != got.origin.Header[k] {
				t.Errorf("explained %s: %q, the origin saw %q", k, explained[k], got.origin.Header[k])
			}
		}
	case explain.Deny, explain.Answer:
		details := r.Details
		if q.Method == http.MethodHead {
			details = ""
		}
		if got.origin != nil || got.status != r.Status || got.details != details && got.details != "" {
			t.Errorf("explained as %s by %s: %d %s; got %d %q, origin %v", r.Outcome, r.Decider, r.Status, r.Details, got.status, got.details, got.origin)
		}
	default:
		t.Errorf("explained as %s by %s, got %d %s", r.Outcome, r.Decider, got.status, got.details)
	}
}

// TestExplainAgreesWithTraffic asks about requests, sends them, and compares:
// verdict, status and details, route, cluster, and what the origin sees.
func TestExplainAgreesWithTraffic(t *testing.T) {
	const each, configurations = 150, 6
	asked, series, verdicts, details := 0, 0, map[string]int{}, map[string]bool{}
	names := make([]string, 0, len(liveFilters))
	for name := range liveFilters {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		t.Run(name, func(t *testing.T) {
			reg := &stats.Registry{}
			s, sv, port := liveWorld(t, name, reg)
			r := rand.New(rand.NewPCG(7, uint64(i)))
			for n := range each {
				q := generated(r, sv)
				q.Destination = fmt.Sprintf("127.0.0.1:%d", port)
				rep, err := s.Explain(q)
				if err != nil {
					t.Fatal(err)
				}
				before := t.Failed()
				agreesLive(t, q, rep, sendLive(t, port, q))
				if t.Failed() && !before {
					b, _ := json.Marshal(q)
					t.Logf("request %d: %s", n, b)
				}
				asked++
				verdicts[rep.Outcome]++
				d, _, _ := strings.Cut(rep.Details, "{")
				details[d] = true
			}
			series += boundedSeries(t, reg)
		})
	}
	if asked != each*configurations {
		t.Errorf("%d requests, want %d", asked, each*configurations)
	}
	if series < 20 {
		t.Errorf("%d series count what was denied and found", series)
	}
	// The corpus is worth something only if it comes to every verdict.
	for v, least := range map[string]int{explain.Forward: 200, explain.Deny: 150, explain.Answer: 100} {
		if verdicts[v] < least {
			t.Errorf("%d are explained as %s, want %d", verdicts[v], v, least)
		}
	}
	for _, d := range []string{"rego_denied", "dlp_blocked", "jwt_authn_access_denied", "rbac_access_denied_matched_policy[none]", "fault_filter_abort", "route_not_found", "cluster_not_found", "no_healthy_upstream", "direct_response"} {
		if !details[d] {
			t.Errorf("nothing ends by %s", d)
		}
	}
	t.Logf("%d requests: %v", asked, verdicts)
}

// boundedSeries counts the series about policies, findings and answers of our
// own. Their labels hold what the configuration says, and nothing that a request
// brought, so that no client can make more of them.
func boundedSeries(t *testing.T, reg *stats.Registry) (n int) {
	t.Helper()
	var b strings.Builder
	if err := reg.WritePrometheusUsed(&b, func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, "#") || strings.Contains(line, "_bucket{") || !strings.HasPrefix(line, "fairlead_policy_") && !strings.HasPrefix(line, "fairlead_dlp_") && !strings.HasPrefix(line, "fairlead_local_replies_") {
			continue
		}
		n++
		labels, _, _ := strings.Cut(line, "} ")
		for _, of := range []string{".test", "/", "alice", "blue", "green", "4111", matrixKey, "x.y.z"} {
			if strings.Contains(labels, of) && !strings.Contains(labels, `policy="app/`) {
				t.Errorf("%q of a request is in %s", of, line)
			}
		}
	}
	if n > 40 {
		t.Errorf("150 requests made %d series", n)
	}
	return n
}
