package proxy_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// policyStats are the series that Envoy 1.40 had for the requests of
// TestPoliciesCountAsInEnvoy. What it has beside them stays 0 or is of features
// that the filters' READMEs list as not executed.
var policyStats = []string{
	`envoy_rbac_allowed{envoy_rbac_prefix="foo"} 4`,
	`envoy_rbac_denied{envoy_rbac_prefix="foo"} 0`,
	`envoy_rbac_istio_dry_run_allow__shadow_allowed{envoy_rbac_prefix="foo"} 4`,
	`envoy_rbac_istio_dry_run_allow__shadow_denied{envoy_rbac_prefix="foo"} 0`,
	`envoy_http_rbac_allowed{envoy_http_conn_manager_prefix="main"} 3`,
	`envoy_http_rbac_denied{envoy_http_conn_manager_prefix="main"} 0`,
	`envoy_http_rbac_allowed{envoy_http_conn_manager_prefix="main",envoy_rbac_http_prefix="pre"} 3`,
	`envoy_http_rbac_denied{envoy_http_conn_manager_prefix="main",envoy_rbac_http_prefix="pre"} 1`,
	`envoy_http_rbac_policy_denied{envoy_http_conn_manager_prefix="main",envoy_rbac_http_prefix="pre",envoy_rbac_policy_name="ns[a]-policy[b]-rule[0]"} 1`,
	`envoy_http_rbac_policy_shadow_denied{envoy_http_conn_manager_prefix="main",envoy_rbac_http_prefix="istio_dry_run_deny_",envoy_rbac_policy_name="sh"} 1`,
	`envoy_http_rbac_shadow_allowed{envoy_http_conn_manager_prefix="main",envoy_rbac_http_prefix="istio_dry_run_deny_"} 3`,
	`envoy_http_rbac_shadow_denied{envoy_http_conn_manager_prefix="main",envoy_rbac_http_prefix="istio_dry_run_deny_"} 1`,
	`envoy_http_rbac_shadow_allowed{envoy_http_conn_manager_prefix="main"} 2`,
	`envoy_http_rbac_shadow_denied{envoy_http_conn_manager_prefix="main"} 1`,
	`envoy_http_jwt_authn_allowed{envoy_http_conn_manager_prefix="main"} 2`,
	`envoy_http_jwt_authn_denied{envoy_http_conn_manager_prefix="main"} 1`,
	`envoy_http_jwt_authn_cors_preflight_bypassed{envoy_http_conn_manager_prefix="main"} 0`,
	`envoy_http_jwt_authn_jwks_fetch_failed{envoy_http_conn_manager_prefix="main"} 0`,
	`envoy_http_jwt_authn_jwks_fetch_success{envoy_http_conn_manager_prefix="main"} 0`,
	`envoy_http_jwt_authn_jwt_cache_hit{envoy_http_conn_manager_prefix="main"} 0`,
	`envoy_http_jwt_authn_jwt_cache_miss{envoy_http_conn_manager_prefix="main"} 0`,
	`envoy_cluster_ext_authz_error{envoy_cluster_name="app"} 2`,
	`envoy_cluster_ext_authz_error{envoy_cluster_name="app",envoy_ext_authz_prefix="mine"} 2`,
	`envoy_cluster_ext_authz_failure_mode_allowed{envoy_cluster_name="app"} 2`,
	`envoy_cluster_ext_authz_failure_mode_allowed{envoy_cluster_name="app",envoy_ext_authz_prefix="mine"} 2`,
	`envoy_http_ext_authz_denied{envoy_http_conn_manager_prefix="main"} 0`,
	`envoy_http_ext_authz_disabled{envoy_http_conn_manager_prefix="main"} 0`,
	`envoy_http_ext_authz_error{envoy_http_conn_manager_prefix="main"} 2`,
	`envoy_http_ext_authz_error{envoy_http_conn_manager_prefix="main",envoy_ext_authz_prefix="mine"} 2`,
	`envoy_http_ext_authz_failure_mode_allowed{envoy_http_conn_manager_prefix="main"} 2`,
	`envoy_http_ext_authz_failure_mode_allowed{envoy_http_conn_manager_prefix="main",envoy_ext_authz_prefix="mine"} 2`,
	`envoy_http_ext_authz_ignored_dynamic_metadata{envoy_http_conn_manager_prefix="main"} 0`,
	`envoy_http_ext_authz_invalid{envoy_http_conn_manager_prefix="main"} 0`,
	`envoy_http_ext_authz_ok{envoy_http_conn_manager_prefix="main"} 0`,
	`envoy_http_ext_authz_ok{envoy_http_conn_manager_prefix="main",envoy_ext_authz_prefix="mine"} 0`,
}

func TestPoliciesCountAsInEnvoy(t *testing.T) {
	const anybody = `principals: [{any: true}]`
	rbac := func(more string) string {
		return `{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, ` + more + `}}, `
	}
	shadow := `shadow_rules: {action: DENY, policies: {sh: {permissions: [{url_path: {path: {prefix: /a}}}], ` + anybody + `}}}`
	authz := func(more string) string {
		return `{name: ea, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz, transport_api_version: V3, ` + more +
			`grpc_service: {envoy_grpc: {cluster_name: none}, timeout: 0.3s}, failure_mode_allow: true}}, `
	}
	http := rbac(`track_per_rule_stats: true, rules_stat_prefix: pre, rules: {action: DENY, policies: {"ns[a]-policy[b]-rule[0]": {permissions: [{url_path: {path: {prefix: /no}}}], `+anybody+`}}}, `+
		shadow+`, shadow_rules_stat_prefix: istio_dry_run_deny_`) +
		rbac(`rules: {action: LOG, policies: {x: {permissions: [{url_path: {path: {prefix: /a}}}], `+anybody+`}}}, `+shadow) +
		`{name: jwt, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication,
            providers: {p: {issuer: i, local_jwks: {inline_string: '{"keys":[]}'}}}, rules: [{match: {prefix: /jwt}, requires: {provider_name: p}}]}}, ` +
		authz("stat_prefix: mine, ") + authz("")
	all := `{policies: {all: {permissions: [{any: true}], ` + anybody + `}}}`
	tcp := `{name: n, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: foo., rules: ` + all + `, shadow_rules: ` + all + `, shadow_rules_stat_prefix: istio_dry_run_allow_}}`
	port, admin := freePort(t), freePort(t)
	listener := strings.Replace(hcmListener("main", port, "app", ""), "http_filters: [", "http_filters: ["+http, 1)
	listener = strings.Replace(listener, "filters:\n", "filters:\n      - "+tcp+"\n", 1)
	startProxy(t, withAdmin("node: {id: a, cluster: a}\nstatic_resources:\n  listeners:"+listener+"\n  clusters:"+
		httpCluster("app", strconv.Itoa(freePort(t)), "http_protocol_options: {}")+httpCluster("none", strconv.Itoa(freePort(t)), "http2_protocol_options: {}"), admin), nil)
	for path, want := range map[string]int{"/no": 403, "/a": 503, "/b": 503, "/jwt": 401} {
		if status, body := request(t, port, path); status != want {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	_, body := fetch(t, fmt.Sprintf("http://127.0.0.1:%d/stats/prometheus", admin))
	for _, line := range policyStats {
		if !strings.Contains("\n"+body, "\n"+line+"\n") {
			t.Errorf("missing: %s", line)
		}
	}
	if t.Failed() {
		for line := range strings.Lines(body) {
			if strings.Contains(line, "rbac_") || strings.Contains(line, "authz_") || strings.Contains(line, "jwt_") {
				t.Log(strings.TrimSpace(line))
			}
		}
	}
}
