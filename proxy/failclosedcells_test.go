package proxy_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
)

// What the matrix must hold.
const (
	deniedCells = 195
	passedCells = 69
)

var (
	families = []string{"rbac", "network rbac", "jwt", "ext_authz http", "ext_authz grpc", "ext_authz network", "rego", "dlp", "plugin"}
	failures = []string{"error", "timeout", "garbage", "missing", "oversize", "panic", "override", "ecds"}
	// inapplicable are the fields that can't exist: nothing is waited for, a
	// connection has no route, a plugin is judged by the filter that it stands for.
	inapplicable = map[string]string{
		"rbac": "timeout", "network rbac": "timeout override", "ext_authz network": "override", "dlp": "timeout", "plugin": "timeout oversize override",
	}
)

const (
	google  = "type.googleapis.com/"
	rbacT   = google + "envoy.extensions.filters.http.rbac.v3.RBAC"
	jwtT    = google + "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"
	authzT  = google + "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"
	regoT   = google + "fairlead.rego.v1.Config"
	dlpT    = google + "fairlead.dlp.v1.Config"
	wasmT   = google + "envoy.extensions.filters.http.wasm.v3.Wasm"
	typedSt = google + "udpa.type.v1.TypedStruct"

	inexecutable = "filter_not_executable"
	panicked     = "internal_error_panic"
)

// typed is a filter entry; native one whose message has no Go type.
func typed(typeURL, fields string) string {
	return fmt.Sprintf(`{name: f, typed_config: {"@type": %s, %s}},`, typeURL, fields)
}

func native(typeURL, value string) string {
	return typed(typedSt, fmt.Sprintf(`type_url: %s, value: {%s}`, typeURL, value))
}

func discovered(typeURL, more string) string {
	return fmt.Sprintf(`{name: late, config_discovery: {config_source: {ads: {}}, type_urls: [%s] %s}},`, typeURL, more)
}

func override(typeURL, fields string) string {
	return fmt.Sprintf(`f: {"@type": %s, %s}`, typeURL, fields)
}

// everyFamily adds what is the same for each kind of HTTP filter.
//
// denying is a cell of the family that denies.
func everyFamily(family, typeURL, good string, denying cell) []cell {
	denying.family, denying.failure, denying.name = family, "override", "of an unknown type, optional: it still denies"
	denying.route = override(google+"envoy.config.route.v3.FilterConfig", `is_optional: true, config: {"@type": `+typedSt+`, type_url: `+google+`acme.v1.Unknown, value: {}}`)
	return []cell{
		denying,
		{family: family, failure: "ecds", name: "it never arrives", http: discovered(typeURL, ""), status: 500, details: "no_filter_config_found"},
		{family: family, failure: "ecds", name: "another type arrives", http: discovered(typeURL, ""), ecds: `{name: late, typed_config: {"@type": ` + google + `envoy.extensions.filters.http.cors.v3.Cors}}`, status: 403, details: inexecutable},
		{family: family, failure: "ecds", name: "it arrives broken", http: discovered(typeURL, ""), ecds: `{name: late, typed_config: {"@type": ` + typedSt + `, type_url: ` + typeURL + `, value: {no_such_field: 1}}}`, status: 403, details: inexecutable},
		{family: family, failure: "override", name: "of an unknown type", http: good, route: override(typedSt, `type_url: `+google+`acme.v1.Unknown, value: {}`), status: 403, details: inexecutable},
		{family: family, failure: "override", name: "switched off by the route", http: good + sabotages("itself"), route: `f: {"@type": ` + google + `envoy.config.route.v3.FilterConfig, disabled: true}, saboteur: {"@type": ` + google + `envoy.config.route.v3.FilterConfig, disabled: true}`, status: 200},
		{family: family, failure: "garbage", name: "an unknown field", http: native(typeURL, `no_such_field: 1`), status: 403, details: inexecutable},
		{family: family, failure: "garbage", name: "an unknown field of an optional filter", http: `{name: f, is_optional: true, typed_config: {"@type": ` + typedSt + `, type_url: ` + typeURL + `, value: {no_such_field: 1}}},`, status: 200},
	}
}

func matrix() []cell {
	var out []cell
	for _, f := range []func() []cell{rbacCells, networkRBACCells, jwtCells, httpAuthzCells, grpcAuthzCells, networkAuthzCells, regoCells, dlpCells, pluginCells} {
		out = append(out, f()...)
	}
	return out
}

func rules(action, permission, principal string) string {
	return fmt.Sprintf(`rules: {action: %s, policies: {p: {permissions: [%s], principals: [%s]}}}`, action, permission, principal)
}

const (
	everything = `{any: true}`
	bombState  = `{filter_state: {key: bomb, string_match: {exact: x}}}`
	noState    = `{filter_state: {key: absent, string_match: {exact: x}}}`
)

func rbacCells() []cell {
	const f = "rbac"
	perRoute := func(fields string) string { return override(rbacT+"PerRoute", fields) }
	good := typed(rbacT, rules("ALLOW", everything, everything))
	out := []cell{
		{failure: "control", name: "it allows", http: good, status: 200},
		{failure: "control", name: "it denies", http: typed(rbacT, rules("DENY", everything, everything)), status: 403, details: "rbac_access_denied"},
		{failure: "error", name: "metadata that is not there", http: typed(rbacT, rules("ALLOW", everything, `{metadata: {filter: x, path: [{key: y}], value: {string_match: {exact: z}}}}`)), status: 403, details: "rbac_access_denied"},
		{failure: "error", name: "filter state that is not there", http: typed(rbacT, rules("ALLOW", everything, noState)), status: 403, details: "rbac_access_denied"},
		{failure: "error", name: "an identity that is not there", http: typed(rbacT, rules("ALLOW", everything, `{authenticated: {}}`)), status: 403, details: "rbac_access_denied"},
		{failure: "garbage", name: "a condition", http: typed(rbacT, `rules: {policies: {p: {permissions: [{any: true}], principals: [{any: true}], condition: {const_expr: {bool_value: true}}}}}`), status: 403, details: inexecutable},
		{failure: "garbage", name: "a bad regular expression", http: typed(rbacT, rules("ALLOW", `{url_path: {path: {safe_regex: {regex: "("}}}}`, everything)), status: 403, details: inexecutable},
		{failure: "garbage", name: "a permission of no kind", http: typed(rbacT, rules("ALLOW", `{}`, everything)), status: 403, details: inexecutable},
		{failure: "missing", name: "no principals", http: typed(rbacT, rules("DENY", everything, "")), status: 403, details: inexecutable},
		{failure: "missing", name: "no policies", http: typed(rbacT, `rules: {action: ALLOW}`), status: 403, details: "rbac_access_denied"},
		{failure: "missing", name: "no rules, which is no policy", http: typed(rbacT, `rules_stat_prefix: x`), status: 200},
		{failure: "oversize", name: "a huge regular expression", http: typed(rbacT, rules("DENY", `{url_path: {path: {safe_regex: {regex: "((a{100}){100}){100}"}}}}`, everything)), status: 403, details: inexecutable},
		{failure: "panic", name: "in ALLOW", http: sabotages("state") + typed(rbacT, rules("ALLOW", everything, bombState)), status: 500, details: panicked},
		{failure: "panic", name: "in DENY", http: sabotages("state") + typed(rbacT, rules("DENY", everything, bombState)), status: 500, details: panicked},
		{failure: "override", name: "a broken one", http: good, route: perRoute("rbac: {" + rules("ALLOW", `{}`, everything) + "}"), status: 403, details: inexecutable},
		{failure: "override", name: "an empty one switches it off", http: typed(rbacT, rules("DENY", everything, everything)), route: perRoute(""), status: 200},
		{failure: "ecds", name: "the default denies until it arrives", http: discovered(rbacT, `, apply_default_config_without_warming: true, default_config: {"@type": `+rbacT+`, rules: {}}`), status: 403, details: "rbac_access_denied"},
	}
	return named(f, append(out, everyFamily(f, rbacT, good, out[1])...))
}

// named sets the family of cells.
func named(family string, cells []cell) []cell {
	for i := range cells {
		cells[i].family = family
	}
	return cells
}

func networkRBACCells() []cell {
	const url = google + "envoy.extensions.filters.network.rbac.v3.RBAC"
	filter := func(fields string) string { return typed(url, "stat_prefix: tcp., "+fields) }
	return named("network rbac", []cell{
		{failure: "control", name: "it allows", network: filter(rules("ALLOW", everything, everything)), status: 200},
		{failure: "control", name: "it denies", network: filter(rules("DENY", everything, everything))},
		{failure: "error", name: "filter state that is not there", network: filter(rules("ALLOW", everything, noState))},
		{failure: "garbage", name: "a condition", network: filter(`rules: {policies: {p: {permissions: [{any: true}], principals: [{any: true}], condition: {const_expr: {bool_value: true}}}}}`)},
		{failure: "garbage", name: "a permission of no kind", network: filter(rules("ALLOW", `{}`, everything))},
		{failure: "missing", name: "no principals", network: filter(rules("DENY", everything, ""))},
		{failure: "missing", name: "no policies", network: filter(`rules: {action: ALLOW}`)},
		{failure: "missing", name: "no rules, which is no policy", network: filter(`shadow_rules_stat_prefix: x`), status: 200},
		{failure: "oversize", name: "a huge regular expression", network: filter(rules("DENY", everything, `{filter_state: {key: a, string_match: {safe_regex: {regex: "((a{100}){100}){100}"}}}}`))},
		{failure: "panic", name: "in ALLOW", network: sabotages("state") + filter(rules("ALLOW", everything, bombState))},
		{failure: "panic", name: "in DENY", network: sabotages("state") + filter(rules("DENY", everything, bombState))},
		{failure: "panic", name: "of a filter beside it", network: filter(rules("ALLOW", everything, everything)) + sabotages("itself")},
		{failure: "ecds", name: "it never arrives", network: discovered(url, "")},
		{failure: "ecds", name: "it arrives broken", network: discovered(url, ""), ecds: `{name: late, typed_config: {"@type": ` + typedSt + `, type_url: ` + url + `, value: {no_such_field: 1}}}`},
	})
}

// patience is how long a service is waited for: one that answers may take its time
// on a busy machine.
func patience(cluster string) string {
	if cluster == "slow" {
		return "0.2s"
	}
	return "10s"
}

func jwtCells() []cell {
	const f = "jwt"
	filter := func(provider, requires, more string) string {
		return typed(jwtT, fmt.Sprintf(`providers: {p: {issuer: i, %s}}, rules: [{match: {prefix: /}, requires: {%s}}], %s`, provider, requires, more))
	}
	const required, lax = "provider_name: p", "requires_any: {requirements: [{provider_name: p}, {allow_missing_or_failed: {}}]}"
	remote := func(cluster string) string {
		return fmt.Sprintf(`remote_jwks: {http_uri: {uri: "http://x/jwks", cluster: %s, timeout: %s}}`, cluster, patience(cluster))
	}
	const local, token = `local_jwks: {inline_string: '${JWKS}'}`, "${TOKEN}"
	good := filter(local, required, "")
	out := []cell{
		{failure: "control", name: "a good token", http: filter(remote("good"), required, ""), token: token, status: 200},
		{failure: "control", name: "no token", http: filter(remote("good"), required, ""), status: 401, details: "jwt_authn_access_denied"},
		{failure: "garbage", name: "a token that is none", http: good, token: "x.y.z", status: 401, details: "jwt_authn_access_denied"},
		{failure: "garbage", name: "a token with another signature", http: good, token: token + "AAAA", status: 401, details: "jwt_authn_access_denied"},
		{failure: "garbage", name: "a provider without keys", http: filter("forward: true", required, ""), token: token, status: 403, details: inexecutable},
		{failure: "garbage", name: "a rule of an unknown provider", http: filter(local, "provider_name: q", ""), token: token, status: 403, details: inexecutable},
		{failure: "missing", name: "an empty set of keys", http: filter(`local_jwks: {inline_string: '{"keys":[]}'}`, required, ""), token: token, status: 401, details: "jwt_authn_access_denied"},
		{failure: "missing", name: "a file of keys", http: filter(`local_jwks: {filename: "${DIR}/none"}`, required, ""), token: token, status: 401, details: "jwt_authn_access_denied"},
		{failure: "panic", name: "while it selects the route again", http: sabotages("reselect") + filter(local+", clear_route_cache: true, payload_in_metadata: x", required, ""), token: token, status: 500, details: panicked},
		{failure: "panic", name: "also where a failed token may pass", http: sabotages("reselect") + filter(local+", clear_route_cache: true, payload_in_metadata: x", lax, ""), token: token, status: 500, details: panicked},
		{failure: "override", name: "an unknown requirement", http: good, route: override(google+"envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig", "requirement_name: q"), token: token, status: 403, details: inexecutable},
		{failure: "missing", name: "a token that may be missing", http: filter(local, "requires_any: {requirements: [{provider_name: p}, {allow_missing: {}}]}", ""), status: 200},
		{failure: "error", name: "a server of keys that fails, and the token only may be missing", http: filter(remote("failing"), "requires_any: {requirements: [{provider_name: p}, {allow_missing: {}}]}", ""), token: token, status: 401},
	}
	for _, k := range [][2]string{{"error", "failing"}, {"error", "refused"}, {"timeout", "slow"}, {"garbage", "garbage"}, {"garbage", "raw"}, {"missing", "nowhere"}, {"oversize", "huge"}} {
		out = append(out,
			cell{failure: k[0], name: "the server of keys is " + k[1], http: filter(remote(k[1]), required, ""), token: token, status: 401, details: "jwt_authn_access_denied"},
			cell{failure: k[0], name: "the server of keys is " + k[1] + ", allow_missing_or_failed", http: filter(remote(k[1]), lax, ""), token: token, status: 200})
	}
	return named(f, append(out, everyFamily(f, jwtT, good, out[1])...))
}

// authorizers are the ways in which a service may fail.
var authorizers = [][2]string{{"error", "failing"}, {"error", "refused"}, {"timeout", "slow"}, {"garbage", "raw"}, {"missing", "nowhere"}, {"oversize", "huge"}}

func authzCells(family string, filter func(cluster, more string) string) []cell {
	const body, lax = "with_request_body: {max_request_bytes: 4}", "failure_mode_allow: true"
	out := []cell{
		{failure: "control", name: "it allows", http: filter("good", ""), status: 200},
		{failure: "control", name: "it denies", http: filter("denying", ""), status: 403, details: "ext_authz_denied"},
		{failure: "error", name: "a denial is none, with failure_mode_allow", http: filter("denying", lax), status: 403, details: "ext_authz_denied"},
		{failure: "error", name: "a status of its own", http: filter("failing", "status_on_error: {code: 503}"), status: 503, details: "ext_authz_error"},
		{failure: "oversize", name: "a large request", http: filter("good", body), body: "12345", status: 413},
		{failure: "oversize", name: "a large request, with failure_mode_allow", http: filter("good", body+", "+lax), body: "12345", status: 413},
		{failure: "oversize", name: "a large request, allow_partial_message", http: filter("good", "with_request_body: {max_request_bytes: 4, allow_partial_message: true}"), body: "12345", status: 200},
		{failure: "panic", name: "while it reads the body", http: sabotages("body") + filter("good", body), body: "123", status: 500, details: panicked},
		{failure: "panic", name: "while it reads the body, with failure_mode_allow", http: sabotages("body") + filter("good", body+", "+lax), body: "123", status: 500, details: panicked},
		{failure: "garbage", name: "no service", http: typed(authzT, "transport_api_version: V3"), status: 403, details: inexecutable},
		{failure: "override", name: "a broken one", http: filter("good", ""), route: override(authzT+"PerRoute", "check_settings: {with_request_body: {max_request_bytes: 0}}"), status: 403, details: inexecutable},
		{failure: "override", name: "disabled", http: filter("denying", ""), route: override(authzT+"PerRoute", "disabled: true"), status: 200},
	}
	for _, k := range authorizers {
		out = append(out,
			cell{failure: k[0], name: "the service is " + k[1], http: filter(k[1], ""), status: 403, details: "ext_authz_error"},
			cell{failure: k[0], name: "the service is " + k[1] + ", failure_mode_allow", http: filter(k[1], lax), status: 200})
	}
	return named(family, append(out, everyFamily(family, authzT, filter("good", ""), out[1])...))
}

func httpAuthzCells() []cell {
	return authzCells("ext_authz http", func(cluster, more string) string {
		return typed(authzT, fmt.Sprintf(`transport_api_version: V3, http_service: {server_uri: {uri: "http://x", cluster: %s, timeout: %s}}, %s`, cluster, patience(cluster), more))
	})
}

func grpcAuthzCells() []cell {
	filter := func(cluster, more string) string {
		return typed(authzT, fmt.Sprintf(`transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: %s}, timeout: %s}, %s`, cluster, patience(cluster), more))
	}
	return append(authzCells("ext_authz grpc", filter), named("ext_authz grpc", []cell{
		{failure: "garbage", name: "the answer is no message", http: filter("garbage", ""), status: 403, details: "ext_authz_error"},
		{failure: "garbage", name: "the answer is no message, failure_mode_allow", http: filter("garbage", "failure_mode_allow: true"), status: 200},
	})...)
}

func networkAuthzCells() []cell {
	const url = google + "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz"
	filter := func(cluster, more string) string {
		return typed(url, fmt.Sprintf(`stat_prefix: tcp., transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: %s}, timeout: %s, initial_metadata: [{key: x, value: "%%FILTER_STATE(bomb:PLAIN)%%"}]}, %s`, cluster, patience(cluster), more))
	}
	out := []cell{
		{failure: "control", name: "it allows", network: filter("good", ""), status: 200},
		{failure: "control", name: "it denies", network: filter("denying", "")},
		{failure: "error", name: "a denial is none, with failure_mode_allow", network: filter("denying", "failure_mode_allow: true")},
		{failure: "panic", name: "while it asks", network: sabotages("state") + filter("good", "")},
		{failure: "panic", name: "while it asks, with failure_mode_allow", network: sabotages("state") + filter("good", "failure_mode_allow: true")},
		{failure: "garbage", name: "no service", network: typed(url, "stat_prefix: x, transport_api_version: V3")},
		{failure: "ecds", name: "it never arrives", network: discovered(url, "")},
		{failure: "ecds", name: "it arrives broken", network: discovered(url, ""), ecds: `{name: late, typed_config: {"@type": ` + typedSt + `, type_url: ` + url + `, value: {no_such_field: 1}}}`},
	}
	for _, k := range append([][2]string{{"garbage", "garbage"}}, authorizers...) {
		out = append(out,
			cell{failure: k[0], name: "the service is " + k[1], network: filter(k[1], "")},
			cell{failure: k[0], name: "the service is " + k[1] + ", failure_mode_allow", network: filter(k[1], "failure_mode_allow: true"), status: 200})
	}
	return named("ext_authz network", out)
}

func zipped(n int) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(make([]byte, n))
	_ = z.Close()
	return b.String()
}
