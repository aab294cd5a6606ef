package bypass

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// policies are AuthorizationPolicies as istiod writes them.
var policies = map[string]string{
	"none": "",
	// action: DENY, to: [{operation: {paths: ["/admin*"]}}]
	"deny": `{name: rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: DENY, policies: {"ns[a]-policy[p]-rule[0]":
      {permissions: [{and_rules: {rules: [{or_rules: {rules: [{url_path: {path: {prefix: /admin}}}]}}]}}], principals: [{and_ids: {ids: [{any: true}]}}]}}}}},`,
	// action: ALLOW, to: [{operation: {notPaths: ["/admin*"]}}]
	"allow": `{name: rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {policies: {"ns[a]-policy[p]-rule[0]":
      {permissions: [{and_rules: {rules: [{not_rule: {or_rules: {rules: [{url_path: {path: {prefix: /admin}}}]}}}]}}], principals: [{and_ids: {ids: [{any: true}]}}]}}}}},`,
	// action: DENY by host, method and header
	"attributes": `{name: rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: DENY, policies: {
      "host": {permissions: [{or_rules: {rules: [{header: {name: ":authority", string_match: {exact: secret.test, ignore_case: true}}}, {header: {name: ":authority", string_match: {prefix: "secret.test:", ignore_case: true}}}]}}], principals: [{any: true}]},
      "method": {permissions: [{or_rules: {rules: [{header: {name: ":method", string_match: {exact: DELETE}}}]}}], principals: [{any: true}]},
      "header": {permissions: [{any: true}], principals: [{or_ids: {ids: [{header: {name: x-role, string_match: {exact: admin}}}, {header: {name: x-role, string_match: {contains: admin}}}]}}]}}}}},`,
}

// listener normalizes as pathNormalization DECODE_AND_MERGE_SLASHES does.
const listener = `
  - name: l%[1]d
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: l%[1]d, normalize_path: true, merge_slashes: true, path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD,
      route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: c%[2]d, timeout: 5s}}]}]},
      http_filters: [%[3]s {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]`

const cluster = `
  - name: c%[1]d
    type: STATIC
    load_assignment: {cluster_name: c%[1]d, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}}}]}]}`

// door is a listener with a policy in front of a back end.
type door struct {
	backend, policy string
	address         string
}

// doors starts Fairlead with a listener for each pair.
func doors(t *testing.T, backends map[string]int, ps ...string) []door {
	t.Helper()
	var out []door
	ls, cs := "", ""
	last := 0
	for name, port := range backends {
		cs += fmt.Sprintf(cluster, port)
		for _, p := range ps {
			last = running.FreePort(t)
			ls += fmt.Sprintf(listener, last, port, policies[p])
			out = append(out, door{name, p, running.Address(last)})
		}
	}
	running.Start(t, "static_resources:\n  listeners:"+ls+"\n  clusters:"+cs+"\n", last)
	return out
}

// share calls f for each index on a few goroutines, each with a client of its own.
func share(n int, address string, f func(i int, c *client)) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 6 {
		wg.Go(func() {
			c := &client{address: address}
			defer c.close()
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				f(i, c)
			}
		})
	}
	wg.Wait()
}

func TestNoSpellingOfAPathGetsPastAPolicy(t *testing.T) {
	root := site(t)
	backends := map[string]int{"Go": serveGo(t, fileServer(root)), "credulous": serveGo(t, handler(credulous))}
	if port := nginx(t, root); port != 0 {
		backends["nginx"] = port
	} else {
		t.Log("nginx isn't installed: without it")
	}
	ts := targets()
	if len(ts) != wantTargets {
		t.Errorf("%d targets, want %d", len(ts), wantTargets)
	}
	requests := 0
	for _, d := range doors(t, backends, "none", "deny", "allow") {
		for _, version := range []string{"HTTP/1.1", "HTTP/2"} {
			var got, served, refused atomic.Int64
			share(len(ts), d.address, func(i int, c *client) {
				var body []byte
				var err error
				if version == "HTTP/2" {
					_, body, err = c.http2([][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "h.example"}, {":path", ts[i]}})
				} else {
					_, body, err = c.http1("GET " + ts[i] + " HTTP/1.1\r\nHost: h.example\r\n")
				}
				switch {
				case err != nil:
					t.Errorf("%s: %q: %v", version, ts[i], err)
				case bytes.Contains(body, []byte(secret)):
					got.Add(1)
					if d.policy != "none" {
						t.Errorf("bypass: %s, %s, policy %s: %q", d.backend, version, d.policy, ts[i])
					}
				case bytes.Contains(body, []byte(public)):
					served.Add(1)
				default:
					refused.Add(1)
				}
			})
			t.Logf("%s, %s, policy %s: %d got the secret, %d got public text, %d refused or not found", d.backend, version, d.policy, got.Load(), served.Load(), refused.Load())
			requests += len(ts)
			if d.policy == "none" && got.Load() < 400 {
				t.Errorf("%s, %s: only %d spellings reach the secret without a policy: the corpus does not test what it should", d.backend, version, got.Load())
			}
			if served.Load() < 40 {
				t.Errorf("%s, %s, policy %s: only %d requests got what everybody may have", d.backend, version, d.policy, served.Load())
			}
		}
	}
	t.Logf("%d requests", requests)
}

func TestNoSpellingOfAHostMethodOrHeaderGetsPastAPolicy(t *testing.T) {
	backends := map[string]int{"Go": serveGo(t, handler(attributes))}
	if port := nginx(t, site(t)); port != 0 {
		backends["nginx"] = port
	}
	var heads []string
	for _, h := range hosts {
		heads = append(heads, "GET /public/x HTTP/1.1\r\nHost: "+h+"\r\n", "GET http://"+h+"/public/x HTTP/1.1\r\nHost: public.test\r\n", "GET http://"+h+"/public/x HTTP/1.1\r\nHost: "+h+"\r\n")
	}
	for _, m := range methods {
		heads = append(heads, m+" /public/x HTTP/1.1\r\nHost: public.test\r\n", "GET /public/x HTTP/1.1\r\nHost: public.test\r\nX-HTTP-Method-Override: "+m+"\r\n")
	}
	for _, r := range roles {
		heads = append(heads, "GET /public/x HTTP/1.1\r\nHost: public.test\r\n"+r)
	}
	for _, x := range upgrades {
		heads = append(heads, "GET /public/x HTTP/1.1\r\nHost: secret.test\r\n"+x, "GET /public/x HTTP/1.1\r\nHost: public.test\r\nX-Role: admin\r\n"+x)
	}
	if len(heads) != wantHeads {
		t.Errorf("%d requests, want %d", len(heads), wantHeads)
	}
	for _, d := range doors(t, backends, "none", "attributes") {
		var got, served atomic.Int64
		share(len(heads), d.address, func(i int, c *client) {
			_, body, err := c.http1(heads[i])
			switch {
			case err != nil:
				t.Errorf("%q: %v", heads[i], err)
			case bytes.Contains(body, []byte(secret)):
				got.Add(1)
				if d.policy != "none" {
					t.Errorf("bypass: %s: %q", d.backend, heads[i])
				}
			case strings.Contains(string(body), public):
				served.Add(1)
			}
		})
		t.Logf("%s, policy %s: %d got the secret, %d got public text", d.backend, d.policy, got.Load(), served.Load())
		if d.policy == "none" && got.Load() < 10 || served.Load() < 10 {
			t.Errorf("%s, policy %s: %d secrets, %d public texts: the corpus does not test what it should", d.backend, d.policy, got.Load(), served.Load())
		}
	}
}
