package proxy_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

const wasmTypes = `config_discovery: {config_source: {ads: {}}, type_urls: [type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm]}`

// nativePlugin is an ECDS resource as istiod makes it of a WasmPlugin.
func nativePlugin(t *testing.T, name, filter, policy, config string) *xdsresource.ExtensionConfig {
	t.Helper()
	return decode[*xdsresource.ExtensionConfig](t, xdsresource.ExtensionConfigType, fmt.Sprintf(`{name: %s, typed_config: {
"@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm, config: {failure_policy: %s, vm_config: {code: {local: {filename: /go-native/%s}}},
configuration: {"@type": type.googleapis.com/google.protobuf.StringValue, value: %q}}}}`, name, policy, filter, config))
}

func regoPlugin(allow string) string {
	return fmt.Sprintf(`{"timeout": "10s", "policy": {"sources": [{"inline_string": "package envoy.authz\nallow := %s"}]}}`, allow)
}

// Discovered filters change as often as their owners edit them; that must not
// cost the connections of the whole listener.
func TestDiscoveredFiltersChangeUnderTheirConnections(t *testing.T) {
	w := newWorld(t)
	port := freePort(t)
	w.listen("l", port, "", chainYAML("c", "{}", `{name: p, `+wasmTypes+`},`,
		`route_config: {name: r, virtual_hosts: [{name: v, domains: [a], routes: [{match: {prefix: /routed}, direct_response: {status: 200, body: {inline_string: ok}}}]}]}`))
	w.mustApply()
	chain := w.Listener("l").Config().Chains[0]
	c := dial(t, port)
	defer c.Close()
	expect := func(what string, routed, other int) {
		t.Helper()
		if status, body := c.get("/routed"); status != routed {
			t.Errorf("%s: %d %q, want %d", what, status, body, routed)
		}
		if status, body := c.get("/other"); status != other {
			t.Errorf("%s, without a route: %d %q, want %d", what, status, body, other)
		}
	}
	expect("before it has arrived", 500, 500)
	for _, step := range []struct {
		what, filter, policy, config string
		routed, other                int
		severity, diag               string
	}{
		{"it allows", "rego", "FAIL_CLOSED", regoPlugin("true"), 200, 404, "", ""},
		{"it denies", "rego", "FAIL_CLOSED", regoPlugin("false"), 403, 403, "", ""},
		{"it allows again", "rego", "FAIL_CLOSED", regoPlugin("true"), 200, 404, "", ""},
		{"an unknown filter", "nosuch", "FAIL_CLOSED", "{}", 403, 403, "error", "fairlead.nosuch.v1.Config is not supported"},
		{"an unknown filter that fails open", "nosuch", "FAIL_OPEN", "{}", 200, 404, "warning", "FAIL_OPEN"},
		{"a broken policy", "rego", "FAIL_CLOSED", regoPlugin("{"), 403, 403, "error", "rego"},
		{"a broken policy that fails open", "rego", "FAIL_OPEN", regoPlugin("{"), 200, 404, "warning", "FAIL_OPEN"},
		{"one that fails open, and denies", "rego", "FAIL_OPEN", regoPlugin("false"), 403, 403, "", ""},
	} {
		w.res.Extensions["p"] = nativePlugin(t, "p", step.filter, step.policy, step.config)
		w.mustApply()
		expect(step.what, step.routed, step.other)
		if step.diag != "" && !w.diagnosed(step.severity, step.diag) {
			t.Errorf("%s: no %s that names %q in %v", step.what, step.severity, step.diag, w.Snapshot().Diagnostics)
		}
		if step.diag == "" && len(w.Snapshot().Diagnostics) > 0 {
			t.Errorf("%s: %v", step.what, w.Snapshot().Diagnostics)
		}
		time.Sleep(100 * time.Millisecond) // longer than the drain time
	}
	delete(w.res.Extensions, "p")
	w.mustApply()
	expect("after it was taken away", 500, 500)
	if w.Listener("l").Config().Chains[0] != chain {
		t.Error("the chain was replaced")
	}
}
