package proxy_test

import (
	"fmt"
	"strings"
)

func regoCells() []cell {
	const f, perRoute, lax = "rego", google + "fairlead.rego.v1.PerRoute", ", failure_mode_allow: true"
	policy := func(src string) string {
		return fmt.Sprintf(`policy: {sources: [{inline_string: "package envoy.authz\n%s"}]}`, src)
	}
	filter := func(src, more string) string {
		if !strings.Contains(more, "timeout: ") {
			more += ", timeout: 10s" // the machine may be busy
		}
		return native(regoT, policy(src)+more)
	}
	bundled := func(cluster, more string) string {
		return native(regoT, `policy: {bundles: [{http: {cluster: `+cluster+`, path: /b.tar.gz, timeout: `+patience(cluster)+`}, max_bytes: 1048576}]}`+more)
	}
	const (
		conflict = `allow := true if input.attributes.request.http.method == \"GET\"\nallow := false if input.attributes.request.http.path == \"/\"`
		endless  = `allow if { some i in numbers.range(1, 20000); some j in numbers.range(1, 20000); i + j == 0 }`
		reader   = `default allow := true\nallow := false if input.parsed_body.a == 1`
	)
	good := filter("allow := true", "")
	out := []cell{
		{failure: "control", name: "it allows", http: good, status: 200},
		{failure: "control", name: "it denies", http: filter("allow := false", ""), status: 403, details: "rego_denied"},
		{failure: "error", name: "two rules contradict", http: filter(conflict, ""), status: 403, details: "rego_denied{error}"},
		{failure: "error", name: "two rules contradict, failure_mode_allow", http: filter(conflict, lax), status: 200},
		{failure: "error", name: "two rules contradict, dry_run", http: filter(conflict, ", dry_run: true"), status: 200},
		{failure: "error", name: "undefined", http: filter("allow if false", ""), status: 403, details: "rego_denied{undefined}"},
		{failure: "error", name: "undefined is a denial, with failure_mode_allow", http: filter("allow if false", lax), status: 403, details: "rego_denied{undefined}"},
		{failure: "error", name: "a denial is none, with failure_mode_allow", http: filter("allow := false", lax), status: 403},
		{failure: "error", name: "a denial, dry_run", http: filter("allow := false", ", dry_run: true"), status: 200},
		{failure: "timeout", name: "an endless policy", http: filter(endless, ", timeout: 0.05s"), status: 403, details: "rego_denied{timeout}"},
		{failure: "timeout", name: "an endless policy, failure_mode_allow", http: filter(endless, ", timeout: 0.05s"+lax), status: 200},
		{failure: "garbage", name: "a policy that does not compile", http: filter("allow if {", ""), status: 403, details: inexecutable},
		{failure: "garbage", name: "a policy that does not compile, failure_mode_allow", http: filter("allow if {", lax), status: 403, details: inexecutable},
		{failure: "garbage", name: "a built-in function that is not allowed", http: filter(`allow := http.send({\"url\": \"http://127.0.0.1\", \"method\": \"GET\"}).status_code == 200`, ""), status: 403, details: inexecutable},
		{failure: "garbage", name: "a decision of another type", http: filter(`allow := \"yes\"`, ""), status: 403, details: "rego_denied{error}"},
		{failure: "garbage", name: "a decision of another type, failure_mode_allow", http: filter(`allow := \"yes\"`, lax), status: 200},
		{failure: "garbage", name: "an object that does not say whether", http: filter(`allow := {\"headers\": {}}`, ""), status: 403, details: "rego_denied{error}"},
		{failure: "garbage", name: "a decision that sets the path", http: filter(`allow := {\"allowed\": true, \"headers\": {\":path\": \"/x\"}}`, ""), status: 403},
		{failure: "garbage", name: "a body that does not parse", http: filter(reader, ""), body: `{"a":`, status: 400, details: "rego_denied{bad_request}"},
		{failure: "garbage", name: "a body that does not parse, with failure_mode_allow", http: filter(reader, lax), body: `{"a":`, status: 400},
		{failure: "garbage", name: "a body with a key twice", http: filter(reader, ""), body: `{"a":1,"a":2}`, status: 400, details: "rego_denied{bad_request}"},
		{failure: "missing", name: "the file", http: native(regoT, `policy: {sources: [{filename: "${DIR}/none.rego"}]}`), status: 403, details: inexecutable},
		{failure: "missing", name: "the rule", http: filter("deny := true", ""), status: 403, details: inexecutable},
		{failure: "missing", name: "the policy", http: native(regoT, "name: x"), status: 403, details: inexecutable},
		{failure: "oversize", name: "a large body", http: filter(reader, ", max_request_bytes: 4"), body: `{"a":2}`, status: 413, details: "rego_denied{body_too_large}"},
		{failure: "oversize", name: "a large body, with failure_mode_allow", http: filter(reader, ", max_request_bytes: 4"+lax), body: `{"a":2}`, status: 413},
		{failure: "oversize", name: "a large body, TRUNCATE", http: filter(reader, ", max_request_bytes: 4, body_overflow: TRUNCATE"), body: `{"a":2}`, status: 200},
		{failure: "panic", name: "while it reads the body", http: sabotages("body") + filter(reader, ""), body: `{"a":2}`, status: 500, details: panicked},
		{failure: "panic", name: "while it reads the body, with failure_mode_allow", http: sabotages("body") + filter(reader, lax), body: `{"a":2}`, status: 500, details: panicked},
		{failure: "override", name: "a broken policy", http: good, route: override(typedSt, `type_url: `+perRoute+`, value: {`+policy("allow if {")+`}`), status: 403, details: inexecutable},
		{failure: "override", name: "a query of no rule", http: good, route: override(typedSt, `type_url: `+perRoute+`, value: {query: data.envoy.authz.none}`), status: 403, details: inexecutable},
		{failure: "override", name: "disabled", http: filter("allow := false", ""), route: override(typedSt, `type_url: `+perRoute+`, value: {disabled: true}`), status: 200},
		{failure: "missing", name: "a bundle that has not come, dry_run", http: bundled("refused", ", dry_run: true"), status: 200},
	}
	for _, k := range append([][2]string{{"garbage", "garbage"}}, authorizers...) {
		out = append(out,
			cell{failure: k[0], name: "the server of bundles is " + k[1], http: bundled(k[1], ""), status: 403, details: "rego_denied{no_policy}"},
			cell{failure: k[0], name: "the server of bundles is " + k[1] + ", failure_mode_allow", http: bundled(k[1], lax), status: 403, details: "rego_denied{no_policy}"})
	}
	return named(f, append(out, everyFamily(f, regoT, good, out[1])...))
}

func dlpCells() []cell {
	const f, perRoute = "dlp", google + "fairlead.dlp.v1.PerRoute"
	filter := func(fields, more string) string {
		return native(dlpT, fmt.Sprintf(`rules: [{name: r, info_types: [CREDIT_CARD_NUMBER], %s}]%s`, fields, more))
	}
	const block, mask, card = "action: BLOCK", "action: MASK", "card 4111 1111 1111 1111"
	const lax = ", on_uninspectable: PASS"
	good := filter(block, "")
	out := []cell{
		{failure: "control", name: "it passes what is clean", http: good, body: "hello", status: 200},
		{failure: "control", name: "it blocks", http: good, body: card, status: 403, details: "dlp_blocked"},
		{failure: "control", name: "it blocks answers", http: good, answer: card + " ok", status: 403, details: "dlp_blocked", reached: true},
		{failure: "error", name: "an unknown coding", http: good, body: "opaque", encoding: "lzw", status: 415, details: "dlp_uninspectable"},
		{failure: "error", name: "an unknown coding, where it masks", http: filter(mask, ""), body: "opaque", encoding: "lzw", status: 415, details: "dlp_uninspectable"},
		{failure: "error", name: "an unknown coding, where it reports", http: filter("action: REPORT", ""), body: card, encoding: "lzw", status: 200},
		{failure: "error", name: "an unknown coding, PASS", http: filter(block, lax), body: "opaque", encoding: "lzw", status: 200},
		{failure: "error", name: "an unknown coding, dry_run", http: filter(block, ", dry_run: true"), body: card, encoding: "lzw", status: 200},
		{failure: "error", name: "an unknown coding of the answer", http: good, answer: "opaque ok", answerEncoding: "lzw", status: 502, details: "dlp_uninspectable", reached: true},
		{failure: "garbage", name: "a coding that is not there", http: good, body: card, encoding: "gzip", status: 415, details: "dlp_uninspectable"},
		{failure: "garbage", name: "a coding that ends early", http: good, body: zipped(5000)[:20], encoding: "gzip", status: 415, details: "dlp_uninspectable"},
		{failure: "garbage", name: "a coding of the answer that is not there", http: good, answer: card + " ok", answerEncoding: "gzip", status: 502, details: "dlp_uninspectable", reached: true},
		{failure: "garbage", name: "an unknown detector", http: native(dlpT, "rules: [{name: r, info_types: [NO_SUCH_TYPE], action: BLOCK}]"), status: 403, details: inexecutable},
		{failure: "garbage", name: "a bad pattern", http: native(dlpT, `rules: [{name: r, regexes: [{info_type: X, pattern: "("}], action: BLOCK}]`), status: 403, details: inexecutable},
		{failure: "missing", name: "no rules", http: native(dlpT, "rules: []"), status: 403, details: inexecutable},
		{failure: "missing", name: "the file of the key", http: filter(block, `, hash_key_file: "${DIR}/none"`), status: 403, details: inexecutable},
		{failure: "oversize", name: "a bomb", http: good, body: zipped(16 << 20), encoding: "gzip", status: 413, details: "dlp_uninspectable"},
		{failure: "oversize", name: "a bomb, in a request that is masked", http: filter(mask, ""), body: zipped(16 << 20), encoding: "gzip", status: 413, details: "dlp_uninspectable"},
		{failure: "oversize", name: "a bomb of the answer", http: good, answer: zipped(16 << 20), answerEncoding: "gzip", status: 0, early: 502, reached: true},
		{failure: "panic", name: "while it reads the body", http: sabotages("body") + good, body: "hello", status: 500, details: panicked},
		{failure: "panic", name: "while it reads the body, PASS", http: sabotages("body") + filter(block, lax), body: "hello", status: 500, details: panicked},
		{failure: "panic", name: "while it reads the answer", http: good + sabotages("answer"), answer: "ok", status: 500, details: panicked, reached: true},
		{failure: "override", name: "a broken one", http: good, route: override(typedSt, `type_url: `+perRoute+`, value: {config: {rules: []}}`), status: 403, details: inexecutable},
		{failure: "override", name: "disabled", http: good, body: card, route: override(typedSt, `type_url: `+perRoute+`, value: {disabled: true}`), status: 200},
	}
	return named(f, append(out, everyFamily(f, dlpT, good, out[1])...))
}

func pluginCells() []cell {
	plugin := func(policy, file, config string) string {
		return fmt.Sprintf(`{name: late, typed_config: {"@type": %s, config: {failure_policy: %s, vm_config: {code: {local: {filename: %s}}},
configuration: {"@type": type.googleapis.com/google.protobuf.StringValue, value: '%s'}}}}`, wasmT, policy, file, config)
	}
	const allows = `{"policy": {"sources": [{"inline_string": "package envoy.authz\nallow := true"}]}}`
	http := discovered(wasmT, "")
	var out []cell
	for _, k := range []struct{ failure, name, file, config string }{
		{"missing", "an unknown filter", "/go-native/nosuch", "{}"},
		{"missing", "a module that is not there", "/opt/plugin.wasm", "{}"},
		{"garbage", "a file that is no module", "failclosed_test.go", "{}"},
		{"error", "a guest that refuses its configuration", probeModule, "refuse"},
		{"panic", "a guest that traps when it is configured", probeModule, "trap"},
		{"garbage", "a broken configuration", "/go-native/dlp", `{"rules": 7}`},
		{"garbage", "a configuration that is no JSON", "/go-native/rego", `{`},
		{"error", "a policy that does not compile", "/go-native/rego", `{"policy": {"sources": [{"inline_string": "package envoy.authz\nallow if {"}]}}`},
	} {
		out = append(out,
			cell{failure: k.failure, name: k.name, http: http, ecds: plugin("FAIL_CLOSED", k.file, k.config), status: 403, details: inexecutable},
			cell{failure: k.failure, name: k.name + ", FAIL_RELOAD", http: http, ecds: plugin("FAIL_RELOAD", k.file, k.config), status: 403, details: inexecutable},
			cell{failure: k.failure, name: k.name + ", FAIL_OPEN", http: http, ecds: plugin("FAIL_OPEN", k.file, k.config), status: 200})
	}
	const networkT = google + "envoy.extensions.filters.network.wasm.v3.Wasm"
	network := discovered(networkT, "")
	forConnections := func(policy, file string) string {
		return strings.Replace(plugin(policy, file, allows), wasmT, networkT, 1)
	}
	out = append(out,
		cell{failure: "missing", name: "an unknown filter of connections", network: network, ecds: forConnections("FAIL_CLOSED", "/go-native/nosuch")},
		cell{failure: "missing", name: "an unknown filter of connections, FAIL_OPEN", network: network, ecds: forConnections("FAIL_OPEN", "/go-native/nosuch"), status: 200},
		cell{failure: "garbage", name: "an HTTP filter for connections", network: network, ecds: forConnections("FAIL_CLOSED", "/go-native/rego")},
		cell{failure: "garbage", name: "an HTTP filter for connections, FAIL_OPEN", network: network, ecds: forConnections("FAIL_OPEN", "/go-native/rego"), status: 200},
		cell{failure: "ecds", name: "it never arrives for connections", network: network})
	const denies = `{"policy": {"sources": [{"inline_string": "package envoy.authz\nallow := false"}]}}`
	return named("plugin", append(out,
		cell{failure: "control", name: "it denies, whatever its strategy", http: http, ecds: plugin("FAIL_OPEN", "/go-native/rego", denies), status: 403, details: "rego_denied"},
		cell{failure: "ecds", name: "it never arrives", http: http, status: 500, details: "no_filter_config_found"},
		cell{failure: "ecds", name: "another type arrives, FAIL_OPEN", http: discovered(regoT, ""), ecds: plugin("FAIL_OPEN", "/go-native/dlp", "{}"), status: 403, details: inexecutable},
		cell{failure: "panic", name: "of a filter beside it", http: http + sabotages("itself"), ecds: plugin("FAIL_OPEN", "/go-native/nosuch", "{}"), status: 500, details: panicked},
	))
}
