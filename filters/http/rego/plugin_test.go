package rego

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"
)

// pluginCases are what opa-envoy-plugin made of requests and decisions.
type pluginCases struct {
	Inputs []struct {
		Name    string
		Request struct {
			Method, Path, Body string
			Headers            [][2]string
			Extensions         json.RawMessage `json:"context_extensions"`
		}
		Input json.RawMessage
		Error bool
	}
	Decisions []struct {
		Name        string
		Decision    json.RawMessage
		Allowed     bool
		Error       bool
		Status      int
		Body        string
		Headers     []string
		Add         []string        `json:"response_headers_to_add"`
		Remove      []string        `json:"request_headers_to_remove"`
		QuerySet    []string        `json:"query_parameters_to_set"`
		QueryRemove []string        `json:"query_parameters_to_remove"`
		Metadata    json.RawMessage `json:"dynamic_metadata"`
	}
}

func readPluginCases(t *testing.T) *pluginCases {
	t.Helper()
	b, err := os.ReadFile("testdata/plugin.json")
	if err != nil {
		t.Fatal(err)
	}
	var c pluginCases
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	if len(c.Inputs) != 30 || len(c.Decisions) != 32 {
		t.Fatalf("%d inputs and %d decisions: want 30 and 32", len(c.Inputs), len(c.Decisions))
	}
	return &c
}

// TestTheInputIsThePlugins compares whole documents; README.md names what is
// taken out first.
func TestTheInputIsThePlugins(t *testing.T) {
	for _, c := range readPluginCases(t).Inputs {
		t.Run(c.Name, func(t *testing.T) {
			var more []string
			if len(c.Request.Extensions) > 0 {
				more = append(more, `"contextExtensions":`+string(c.Request.Extensions))
			}
			f := compileJSON(t, env(), conf(readsAll, more...), "").(*filter)
			r := request{method: c.Request.Method, path: c.Request.Path, header: c.Request.Headers}
			if c.Request.Body != "" {
				r.body = []string{c.Request.Body}
			}
			got, err := inputOf(f, r)
			if (err != nil) != c.Error {
				t.Fatalf("error %v, the plugin's %v", err, c.Error)
			}
			if err != nil {
				return
			}
			delete(at(got, "attributes", "request", "http").(map[string]any), "rawBody")
			delete(at(got, "attributes").(map[string]any), "metadataContext")
			http := at(got, "attributes", "request", "http").(map[string]any)
			if http["size"] == json.Number("0") {
				delete(http, "size")
			}
			var want any
			if err := unmarshalNumbers(c.Input, &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-plugin +filter:\n%s", diff)
			}
		})
	}
}

// TestDecisionsMeanWhatThePluginMakesOfThem compares every form of a decision.
func TestDecisionsMeanWhatThePluginMakesOfThem(t *testing.T) {
	flat := func(hs []header, sep string) (out []string) {
		for _, h := range hs {
			out = append(out, h.name+sep+h.value)
		}
		return out
	}
	lower := func(ss []string) (out []string) {
		for _, s := range ss {
			name, value, _ := strings.Cut(s, ": ")
			if name = strings.ToLower(name); value != "" {
				name += ": " + value
			}
			out = append(out, name)
		}
		return out
	}
	for _, c := range readPluginCases(t).Decisions {
		t.Run(c.Name, func(t *testing.T) {
			var j any
			if err := unmarshalNumbers(c.Decision, &j); err != nil {
				t.Fatal(err)
			}
			v, err := ast.InterfaceToValue(j)
			if err != nil {
				t.Fatal(err)
			}
			d, err := parseDecision(v)
			if (err != nil) != c.Error || d.allowed != c.Allowed {
				t.Fatalf("allowed %v, error %v; the plugin's %v, %v", d.allowed, err, c.Allowed, c.Error)
			}
			if err != nil {
				return
			}
			if d.status != c.Status || d.body != c.Body {
				t.Errorf("status %d, body %q", d.status, d.body)
			}
			for what, tt := range map[string][2][]string{
				"headers": {lower(c.Headers), flat(d.headers, ": ")}, "response_headers_to_add": {lower(c.Add), flat(d.responseHeaders, ": ")},
				"request_headers_to_remove": {lower(c.Remove), d.remove}, "query_parameters_to_set": {c.QuerySet, flat(d.querySet, "=")},
				"query_parameters_to_remove": {c.QueryRemove, d.queryRemove},
			} {
				if diff := cmp.Diff(tt[0], tt[1]); diff != "" {
					t.Errorf("%s (-plugin +filter):\n%s", what, diff)
				}
			}
			var md map[string]any
			_ = json.Unmarshal(c.Metadata, &md)
			if diff := cmp.Diff(md, d.metadata); diff != "" {
				t.Errorf("dynamic_metadata (-plugin +filter):\n%s", diff)
			}
		})
	}
}
