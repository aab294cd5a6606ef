package istio

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v3 "istio.io/istio/pilot/pkg/xds/v3"
	"istio.io/istio/pkg/config/schema/gvk"
)

const (
	card   = "4111 1111 1111 1111"
	masked = "**** **** **** 1111"
	key    = "AKIAQYLPMN5HHHFPZAM2"
)

// clear forgets what the applications saw. They answer with what x-answer says
// in base64, which no filter sees through, and as x-decided says.
func (s *scenario) clear() {
	echo := func(w http.ResponseWriter, r *http.Request) {
		b, _ := base64.StdEncoding.DecodeString(r.Header.Get("x-answer"))
		w.Header().Set("content-type", "text/plain")
		fmt.Fprintf(w, "%s%s", b, r.Header.Get("x-decided"))
	}
	s.web1.reset(echo)
	s.web2.reset(echo)
	s.external.reset(echo)
}

// seen returns what the applications saw.
func (s *scenario) seen() []request {
	return append(append(s.web1.requests(), s.web2.requests()...), s.external.requests()...)
}

// exchange is a request through a guarded route and what is to come of it.
type exchange struct {
	name         string
	as           *client
	method, url  string
	send, answer string // the body of the request, and what the application answers
	header       string // one more of the request
	status       int
	body         string // what the client gets, or a part of it
	got          string // the body that the application gets, if it gets the request
	refused      bool   // it does not
}

func (s *scenario) exchange(t *testing.T, c exchange) {
	t.Helper()
	s.clear()
	headers := []string{"x-answer: " + base64.StdEncoding.EncodeToString([]byte(c.answer))}
	if c.header != "" {
		headers = append(headers, c.header)
	}
	a, err := c.as.send(c.method, c.url, c.send, headers...)
	if err != nil || a.Status != c.status || !strings.Contains(a.Body, c.body) || c.body == "" && a.Status == 200 && a.Body != "" {
		t.Errorf("the client got %+v, %v; want %d %q", a, err, c.status, c.body)
	}
	seen := s.seen()
	if c.refused {
		if len(seen) > 0 {
			t.Errorf("an application saw %+v", seen)
		}
		return
	}
	if len(seen) != 1 || seen[0].Body != c.got {
		t.Errorf("the applications saw %+v, want one request with the body %q", seen, c.got)
	}
}

func TestFiltersAttachedByEnvoyFilter(t *testing.T) {
	s := begin(t, "envoyfilter")
	const v1, v2 = "http://web-v1.app.svc.cluster.local", "http://web-v2.app.svc.cluster.local"
	for _, c := range []exchange{
		{name: "whom the policy allows", as: s.shop, method: "GET", url: web + "/", answer: "hello", status: 200, body: "hello"},
		{name: "whom it does not", as: s.stranger, method: "GET", url: web + "/", status: 403, refused: true},
		{name: "a card in the request", as: s.shop, method: "POST", url: web + "/", send: "card " + card, status: 200, got: "card " + masked},
		{name: "a card in the response", as: s.shop, method: "GET", url: web + "/", answer: "card " + card, status: 200, body: "card " + masked},
		{name: "a key in the request", as: s.shop, method: "POST", url: web + "/", send: "key " + key, status: 451, body: "", refused: true},
		{name: "the route that opens the policy", as: s.stranger, method: "GET", url: web + "/open", answer: "hello", status: 200, body: "hello"},
		{name: "the route without a rule", as: s.shop, method: "POST", url: web + "/open", send: "card " + card, status: 200, got: "card " + card},
		{name: "the route's other rule", as: s.shop, method: "POST", url: web + "/open", send: "key " + key, status: 451, refused: true},
		{name: "a discovered filter allows", as: s.stranger, method: "GET", url: v1 + "/", answer: "hello", status: 200, body: "hello"},
		{name: "a discovered filter denies", as: s.stranger, method: "POST", url: v1 + "/", status: 403, refused: true},
		{name: "a filter that nobody knows", as: s.shop, method: "GET", url: web + ":81/", status: 403, body: "filter not executable: acme.unknown", refused: true},
		{name: "a service without a filter", as: s.stranger, method: "POST", url: v2 + "/", send: "card " + card, status: 200, got: "card " + card},
	} {
		t.Run(c.name, func(t *testing.T) { s.exchange(t, c) })
	}
}

func TestFiltersAttachedByPlugins(t *testing.T) {
	s := begin(t, "plugin")
	const v1 = "http://web-v1.app.svc.cluster.local"
	for _, c := range []exchange{
		{name: "whom the policy allows", as: s.shop, method: "GET", url: web + "/", answer: "hello", status: 200, body: "hello, by class"},
		{name: "whom it does not", as: s.stranger, method: "GET", url: web + "/", status: 403, refused: true},
		{name: "what a client says of the first plugin", as: s.shop, method: "GET", url: web + "/", header: "x-steps: two", answer: "hello", status: 200, body: "hello, by class"},
		{name: "a body that the policy allows", as: s.stranger, method: "POST", url: web + "/", header: "content-type: application/json", send: `{"amount": 99}`, status: 200, body: ", by class", got: `{"amount": 99}`},
		{name: "a body that it does not", as: s.shop, method: "POST", url: web + "/", header: "content-type: application/json", send: `{"amount": 101}`, status: 403, refused: true},
		{name: "a card in the request", as: s.stranger, method: "POST", url: web + "/", header: "content-type: application/json", send: `{"amount":1,"card":"` + card + `"}`, status: 200, body: ", by class", got: `{"amount":1,"card":"` + masked + `"}`},
		{name: "a card in the response", as: s.shop, method: "GET", url: web + "/", answer: "card " + card, status: 200, body: "card " + masked + ", by class"},
		{name: "a key in the request", as: s.shop, method: "GET", url: web + "/?q=" + key, status: 451, refused: true},
		{name: "a key in a header", as: s.shop, method: "GET", url: web + "/", header: "x-note: " + key, status: 451, refused: true},
		{name: "a key in the response", as: s.shop, method: "GET", url: web + "/", answer: "key " + key, status: 451},
		{name: "Istio's policies come before the phase STATS", as: s.shop, method: "GET", url: web + "/closed?q=" + key, status: 403, body: denied, refused: true},
		{name: "a service that is no target", as: s.stranger, method: "POST", url: v1 + "/", send: "card " + card, status: 200, body: ", by class", got: "card " + card},
		{name: "a host outside of the mesh that is a target", as: s.stranger, method: "POST", url: "http://external.example/", send: "card " + card, status: 200, body: ", by class", got: "card [card]"},
	} {
		t.Run(c.name, func(t *testing.T) { s.exchange(t, c) })
	}
}

// plugin is the WasmPlugin of the scenario plugin-live or plugin-broken.
func plugin(name, url, strategy, config string) string {
	return fmt.Sprintf(`apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: %s, namespace: app}
spec:
  targetRefs: [{kind: Service, group: "", name: web}]
  url: %s
  phase: AUTHZ
  failStrategy: %s
  pluginConfig: %s
`, name, url, strategy, config)
}

// sets is the configuration of a Rego plugin that sets a header.
func sets(name, value string) string {
	return fmt.Sprintf(`{policy: {sources: [{inline_string: "package envoy.authz\nallow := {\"allowed\": true, \"headers\": {\"%s\": \"%s\"}}"}]}}`, name, value)
}

// put creates or replaces a WasmPlugin.
func (s *scenario) put(t *testing.T, doc string) {
	t.Helper()
	cs, err := istioConfigs(doc)
	if err != nil {
		t.Fatal(err)
	}
	if old := s.istiod.Store().Get(gvk.WasmPlugin, cs[0].Name, cs[0].Namespace); old != nil {
		cs[0].ResourceVersion = old.ResourceVersion
		_, err = s.istiod.Store().Update(cs[0])
	} else {
		_, err = s.istiod.Store().Create(cs[0])
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestAPluginIsEditedUnderLoad(t *testing.T) {
	s := begin(t, "plugin-live")
	echo := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-more", r.Header.Get("x-more"))
		fmt.Fprint(w, r.Header.Get("x-revision"))
	}
	s.web1.reset(echo)
	s.web2.reset(echo)
	const connections, edits = 6, 20
	l := startLoad(t, s.shop, connections)
	l.await(t, "the load", func(a *answer) bool { return a.Body == "0" })
	var slowest time.Duration
	for i := 1; i <= edits; i++ {
		s.put(t, plugin("revision", "file:///go-native/rego", "FAIL_CLOSE", sets("x-revision", strconv.Itoa(i))))
		d := l.await(t, fmt.Sprintf("edit %d", i), func(a *answer) bool { return a.Body == strconv.Itoa(i) })
		slowest = max(slowest, d)
		if i%5 != 0 {
			continue
		}
		// A further plugin is a new filter, whose configuration is waited for.
		s.put(t, plugin("more", "file:///go-native/rego", "FAIL_CLOSE", sets("x-more", "yes")))
		slowest = max(slowest, l.await(t, "a further plugin", func(a *answer) bool { return a.Header.Get("x-more") == "yes" }))
		if err := s.istiod.Store().Delete(gvk.WasmPlugin, "more", "app", nil); err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, l.await(t, "its end", func(a *answer) bool { return a.Header.Get("x-more") == "" }))
	}
	l.stop()
	l.workers.Wait()
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed: %s", n, l.sent.Load(), strings.Join(l.errs[:min(len(l.errs), 5)], "; "))
	}
	// A further plugin is a change of the chain, which drains; an edit is none.
	if n := l.opened.Load(); n > connections*(1+2*edits/5) {
		t.Errorf("%d connections were opened for %d workers: edits drained some", n, connections)
	}
	t.Logf("%d requests over %d edits, the slowest seen after %v; %d connections for %d workers", l.sent.Load(), edits, slowest.Round(time.Millisecond), l.opened.Load(), connections)
}

// refusal waits for what the proxy last said to istiod about a type of resources.
func (s *scenario) refusal(t *testing.T, typeURL string) string {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		for _, c := range s.istiod.Discovery.AllClients() {
			if w := c.Proxy().DeepCloneWatchedResources()[typeURL]; w.LastError != "" {
				return w.LastError
			}
		}
	}
	t.Error("istiod was told of no error")
	return ""
}

// A broken edit is refused with its name, and the configuration of before stays,
// whatever the strategy: both are safer with it than without.
func TestABrokenEditLeavesThePluginAsItWas(t *testing.T) {
	for _, strategy := range []string{"FAIL_CLOSE", "FAIL_OPEN"} {
		t.Run(strategy, func(t *testing.T) {
			const rego = "file:///go-native/rego"
			s := begin(t, "plugin-broken", "${URL}", rego, "${STRATEGY}", strategy, "${CONFIG}", sets("x-decided", "decided"))
			decided := exchange{as: s.shop, method: "GET", url: web + "/", status: 200, body: "decided"}
			s.exchange(t, decided)
			s.put(t, plugin("subject", rego, strategy, "{policy: {sources: [{inline_string: \"package envoy.authz\\nallow if {\"}]}}"))
			if why := s.refusal(t, v3.ExtensionConfigurationType); !strings.Contains(why, "trafficextension/app.subject") || !strings.Contains(why, "policy") {
				t.Errorf("istiod was told %q", why)
			}
			time.Sleep(100 * time.Millisecond)
			s.exchange(t, decided)
			s.put(t, plugin("subject", rego, strategy, sets("x-decided", "mended")))
			for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				if s.shop.get(t, web+"/").Body == "mended" {
					return
				}
			}
			t.Error("the mended configuration is not in force")
		})
	}
}

func TestAPluginThatCannotRun(t *testing.T) {
	const v1 = "http://web-v1.app.svc.cluster.local"
	good := sets("x-decided", "decided")
	for _, c := range []struct {
		name, url, strategy, config string
		status                      int
		body                        string
	}{
		{"an unknown filter", "file:///go-native/nosuch", "FAIL_CLOSE", "{a: b}", 403, "filter not executable"},
		{"an unknown filter, by default", "file:///go-native/nosuch", "", "{a: b}", 403, "filter not executable"},
		{"an unknown filter that fails open", "file:///go-native/nosuch", "FAIL_OPEN", "{a: b}", 200, "hello"},
		{"an unknown field", "file:///go-native/rego", "FAIL_CLOSE", "{polcy: {}}", 500, ""},
		{"an unknown field, open", "file:///go-native/rego", "FAIL_OPEN", "{polcy: {}}", 200, "hello"},
		{"no configuration", "file:///go-native/rego", "FAIL_CLOSE", "{}", 500, ""},
		{"a policy that does not compile", "file:///go-native/rego", "FAIL_CLOSE", `{policy: {sources: [{inline_string: "package x\nallow if {"}]}}`, 500, ""},
		{"a module that is not there", "file:///opt/plugin.wasm", "FAIL_CLOSE", "{a: b}", 500, ""},
		{"a module that can't be had, open", "oci://" + moduleAddress + "/plugin:v1", "FAIL_OPEN", "{a: b}", 200, "hello"},
		{"one that runs", "file:///go-native/rego", "FAIL_OPEN", good, 200, "decided"},
	} {
		t.Run(c.name, func(t *testing.T) {
			strategy := c.strategy
			if strategy == "" {
				strategy = "null"
			}
			s := begin(t, "plugin-broken", "${URL}", c.url, "${STRATEGY}", strategy, "${CONFIG}", c.config)
			s.exchange(t, exchange{as: s.shop, method: "GET", url: web + "/", answer: "hello", status: c.status, body: c.body, refused: c.status != 200})
			s.exchange(t, exchange{as: s.shop, method: "GET", url: v1 + "/", answer: "hello", status: 200, body: "hello"})
		})
	}
}

// A WasmPlugin whose module is a file of the proxy's is run.
func TestAWasmModuleRuns(t *testing.T) {
	guest, err := os.ReadFile("../../filters/internal/proxywasm/testdata/probe.wasm")
	if err != nil {
		t.Fatal(err)
	}
	s := control(t, "plugin-broken", 20*time.Millisecond, "${URL}", "file:///guest.wasm", "${STRATEGY}", "FAIL_CLOSE", "${CONFIG}", "{a: b}")
	if err := os.WriteFile(filepath.Join(s.root("waypoint-0"), "guest.wasm"), guest, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.startWaypoint(t); err != nil {
		t.Fatal(err)
	}
	for _, c := range []exchange{
		{name: "it looks on", as: s.shop, method: "GET", url: web + "/", answer: "hello", status: 200, body: "hello"},
		{name: "it answers by itself", as: s.shop, method: "GET", url: web + "/", header: "x-do: local", status: 403, body: "denied by guest", refused: true},
		{name: "it answers because of the body", as: s.shop, method: "POST", url: web + "/", header: "x-do: body-deny", send: "a body", status: 403, body: "body denied", refused: true},
		{name: "it traps", as: s.shop, method: "GET", url: web + "/", header: "x-do: trap", status: 503, refused: true},
		{name: "it has failed", as: s.shop, method: "GET", url: web + "/", status: 503, refused: true},
		{name: "a service that is no target", as: s.shop, method: "GET", url: "http://web-v1.app.svc.cluster.local/", answer: "hello", status: 200, body: "hello"},
	} {
		t.Run(c.name, func(t *testing.T) { s.exchange(t, c) })
	}
}

// The plugins of examples/egress-guard target the Gateway of a waypoint, and so
// all that goes through it.
func TestAnEgressWaypointThatIsGuarded(t *testing.T) {
	const external = "http://external.example"
	here := []string{"namespace: egress}", "namespace: app}", "name: egress-guard}]", "name: waypoint}]"}
	t.Run("the namespace may reach the host", func(t *testing.T) {
		s := begin(t, "egress-guard", append(here, `"payments": {"api.bank.example"`, `"client": {"external.example"`)...)
		for _, c := range []exchange{
			{name: "an allowed host", as: s.shop, method: "GET", url: external + "/", answer: "hello", status: 200, body: "hello"},
			{name: "in capitals, with its port", as: s.shop, method: "GET", url: external + "/", header: "host: External.Example:80", answer: "hello", status: 200, body: "hello"},
			{name: "another host at the same address", as: s.shop, method: "GET", url: external + "/", header: "host: evil.example", status: 403, refused: true},
			{name: "a host of another namespace", as: s.shop, method: "GET", url: external + "/", header: "host: api.stats.example", status: 403, refused: true},
			{name: "a card and a key", as: s.shop, method: "POST", url: external + "/", send: "card " + card + ", key " + key, status: 200, got: "card " + masked + ", key " + strings.Repeat("*", len(key))},
			{name: "an answer is not masked", as: s.shop, method: "GET", url: external + "/", answer: "card " + card, status: 200, body: card},
			{name: "the Gateway's other services are guarded, too", as: s.shop, method: "GET", url: web + "/", status: 403, refused: true},
		} {
			t.Run(c.name, func(t *testing.T) { s.exchange(t, c) })
		}
	})
	t.Run("nothing is allowed by default", func(t *testing.T) {
		s := begin(t, "egress-guard", here...)
		s.exchange(t, exchange{as: s.shop, method: "GET", url: external + "/", status: 403, refused: true})
		s.exchange(t, exchange{as: s.stranger, method: "GET", url: external + "/", status: 403, refused: true})
	})
}

func TestAnIngressGatewayWithFilters(t *testing.T) {
	s := beginIngress(t, "ingress")
	const shop, blue = "http://shop.example", "x-team: blue"
	c := newOutsider("127.16.0.40:80")
	defer c.http.CloseIdleConnections()
	for _, c := range []exchange{
		{name: "whom the policy allows", as: c, method: "GET", url: shop + "/", header: blue, answer: "hello", status: 200, body: "hello"},
		{name: "whom it does not", as: c, method: "GET", url: shop + "/", status: 403, refused: true},
		{name: "a card in the request", as: c, method: "POST", url: shop + "/", header: blue, send: "card " + card, status: 200, got: "card " + masked},
		{name: "a card in the response", as: c, method: "GET", url: shop + "/", header: blue, answer: "card " + card, status: 200, body: "card " + masked},
		{name: "a key in the request", as: c, method: "POST", url: shop + "/", header: blue, send: "key " + key, status: 451, refused: true},
		{name: "a key in the response", as: c, method: "GET", url: shop + "/", header: blue, answer: "key " + key, status: 451},
		{name: "the route that opens the policy", as: c, method: "GET", url: shop + "/open", answer: "hello", status: 200, body: "hello"},
		{name: "the route without a rule", as: c, method: "POST", url: shop + "/open", send: "card " + card, status: 200, got: "card " + card},
		{name: "the route's other rule", as: c, method: "POST", url: shop + "/open", send: "key " + key, status: 451, refused: true},
		{name: "a host that nobody has", as: c, method: "GET", url: "http://else.example/", header: blue, status: 404, refused: true},
	} {
		t.Run(c.name, func(t *testing.T) { s.exchange(t, c) })
	}
}
