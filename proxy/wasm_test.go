package proxy_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

const guests = "../filters/internal/proxywasm/testdata/"

// wasmYAML is a Wasm filter's configuration: code is its code, config the guest's.
func wasmYAML(t *testing.T, code, policy, config string) string {
	t.Helper()
	if !strings.Contains(code, "remote:") {
		file, err := filepath.Abs(guests + code + ".wasm")
		if err != nil {
			t.Fatal(err)
		}
		code = "local: {filename: " + file + "}"
	}
	text := `{"@type": type.googleapis.com/google.protobuf.StringValue, value: "%s"}`
	vm, ok := strings.CutPrefix(config, "vm:")
	if !ok {
		vm = ""
	} else {
		config = ""
	}
	return fmt.Sprintf(`{"@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm, config: {name: p, failure_policy: %s,
configuration: `+text+`, vm_config: {runtime: envoy.wasm.runtime.v8, code: {%s}, configuration: `+text+`}}}`, policy, config, code, vm)
}

var brokenGuests = []struct{ module, config, want string }{
	{"probe", "refuse", "proxy_on_configure returned false"},
	{"probe", "vm:refuse", "proxy_on_vm_start returned false"},
	{"probe", "trap", "proxy_on_configure: wasm error: unreachable"},
	{"noalloc", "", "exports neither malloc nor proxy_on_memory_allocate"},
	{"future", "", "made for version 0.9.0 of the Proxy-Wasm ABI"},
}

// As in Envoy, whatever the failure policy is.
func TestAModuleThatIsThereAndCantStartIsRefused(t *testing.T) {
	cp := xdstest.New(t, xdstest.Options{})
	startProxy(t, adsYAML(cp), nil)
	plugged := `{name: p, ` + wasmTypes + `},`
	ports := freePorts(t, 2)
	at := map[string]int{"inline": ports[0], "ecds": ports[1]}
	push := func(config string) {
		serve(t, cp, listenerYAML("inline", at["inline"], chainYAML("c", "{}", inline(config), direct("ok"))))
		serve(t, cp, listenerYAML("ecds", at["ecds"], chainYAML("c", "{}", plugged, direct("ok")))+pluginYAML(config))
	}
	first := true
	for _, policy := range []string{"FAIL_CLOSED", "FAIL_OPEN", "FAIL_RELOAD"} {
		for _, c := range brokenGuests {
			seen := len(cp.Requests())
			push(wasmYAML(t, c.module, policy, c.config))
			for _, url := range []string{xdstest.Listener, xdstest.ExtensionCfg} {
				if !cp.Await(20*time.Second, func(rs []xdstest.Request) bool {
					return slices.ContainsFunc(rs[seen:], func(r xdstest.Request) bool {
						return r.IsNACK() && r.GetTypeUrl() == url && strings.Contains(r.GetErrorDetail().GetMessage(), c.want)
					})
				}) {
					t.Fatalf("%s, %s, %s: %s is not refused", c.module, c.config, policy, url)
				}
			}
			if first {
				if c, err := connect(t, at["inline"]); err == nil {
					_ = c.Close()
					t.Error("the listener serves")
				}
				awaitGuest(t, at["ecds"], "500")
				push(wasmYAML(t, "header", "FAIL_CLOSED", ""))
				awaitGuest(t, at["inline"], "200")
				awaitGuest(t, at["ecds"], "200")
				first = false
				continue
			}
			for name, port := range at {
				if status, body := request(t, port, "/"); status != 200 {
					t.Errorf("%s, %s, %s, %s: %d %q, and not the former", c.module, c.config, policy, name, status, body)
				}
			}
		}
	}
}

// A module that was fetched and can't start is a matter of the failure policy, as in
// Envoy; only that an edit of an extension configuration leaves the former one in
// force, where Envoy runs none.
func TestAFetchedModuleThatCantStartIsAMatterOfTheFailurePolicy(t *testing.T) {
	files := httptest.NewServer(http.FileServer(http.Dir(guests)))
	defer files.Close()
	code := func(module string) string {
		return "remote: {http_uri: {uri: " + files.URL + "/" + module + ".wasm, cluster: _, timeout: 10s}}"
	}
	extension := func(t *testing.T, config string) *xdsresource.ExtensionConfig {
		t.Helper()
		return decode[*xdsresource.ExtensionConfig](t, xdsresource.ExtensionConfigType, `{name: p, typed_config: `+config+`}`)
	}
	for policy, want := range map[string]int{"FAIL_CLOSED": 503, "FAIL_RELOAD": 503, "FAIL_OPEN": 200} {
		for _, c := range brokenGuests {
			t.Run(policy+" "+c.module+" "+c.config, func(t *testing.T) {
				w := newWorld(t)
				ports := freePorts(t, 2)
				config := wasmYAML(t, code(c.module), policy, c.config)
				severity := "error"
				if want == 200 {
					severity = "warning"
				}
				w.listen("inline", ports[0], "", chainYAML("c", "{}", "", direct("ok")))
				w.listen("ecds", ports[1], "", chainYAML("c", "{}", "", direct("ok")))
				w.mustApply()
				w.listen("inline", ports[0], "", chainYAML("c", "{}", inline(config), direct("ok")))
				w.listen("ecds", ports[1], "", chainYAML("c", "{}", `{name: p, `+wasmTypes+`},`, direct("ok")))
				w.res.Extensions["p"] = extension(t, config)
				w.mustApply()
				within(t, "it is told", func() bool {
					return w.diagnosed(severity, "listener inline: filter chain c: http_filters[p]") && w.diagnosed(severity, "listener ecds: filter chain c: http_filters[p]") && w.diagnosed(severity, c.want)
				})
				for _, port := range ports {
					if status, body := request(t, port, "/"); status != want {
						t.Errorf("%d %q, want %d", status, body, want)
					}
				}
				w.res.Extensions["p"] = extension(t, wasmYAML(t, code("header"), policy, ""))
				w.mustApply()
				within(t, "one that runs", func() bool {
					status, _ := request(t, ports[1], "/")
					return status == 200 && !w.diagnosed(severity, "listener ecds")
				})
				w.res.Extensions["p"] = extension(t, config)
				w.mustApply()
				within(t, "the edit is told of", func() bool {
					return w.diagnosed("warning", "extension_config p: typed_config: the former") && w.diagnosed("warning", c.want)
				})
				if status, body := request(t, ports[1], "/"); status != 200 {
					t.Errorf("after the edit: %d %q", status, body)
				}
			})
		}
	}
}

// What is here already is refused, as what came with the configuration: Envoy, too,
// looks at once at what it has in its cache.
func TestAFetchedModuleThatIsHereAndCantStartIsRefused(t *testing.T) {
	files := httptest.NewServer(http.FileServer(http.Dir(guests)))
	defer files.Close()
	cp := xdstest.New(t, xdstest.Options{})
	startProxy(t, adsYAML(cp), nil)
	port := freePort(t)
	probe := func(config string) string {
		return pluginYAML(wasmYAML(t, "remote: {http_uri: {uri: "+files.URL+"/probe.wasm, cluster: _, timeout: 10s}}", "FAIL_OPEN", config))
	}
	serve(t, cp, listenerYAML("l", port, chainYAML("c", "{}", `{name: p, `+wasmTypes+`},`, direct("ok")))+probe("fine"))
	within(t, "the first", func() bool {
		c, err := connect(t, port)
		if err != nil {
			return false
		}
		defer c.Close()
		status, _ := c.get("/")
		return status == 200
	})
	serve(t, cp, probe("refuse"))
	awaitNACK(t, cp, xdstest.ExtensionCfg, "p: filter p: wasm: plugin \"p\": the guest refuses its configuration")
}
