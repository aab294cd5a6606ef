package rego

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// files writes log files without a buffer.
type files struct{}

func (files) Lines(path string) (func([]byte) bool, error) {
	return func(p []byte) bool {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return false
		}
		_, err = f.Write(p)
		return errors.Join(err, f.Close()) == nil
	}, nil
}

// logged compiles a policy with a decision log of the given JSON fields, sends
// one request with secrets, and returns what was logged.
func logged(t *testing.T, policy, log string, more ...string) (events []map[string]any, raw string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "log")
	f := compileJSON(t, env(), conf(policy, append(more, fmt.Sprintf(`"decisionLog":{"filename":%q%s}`, name, log))...), "")
	s := secretRequest().stream()
	run(t, f, s)
	b, err := os.ReadFile(name)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if id, _ := s.Info.Metadata.Lookup("envoy.filters.http.ext_authz", "decision_id"); id != e["decision_id"] {
			t.Errorf("decision_id %v in the log, %v in the metadata", e["decision_id"], id)
		}
		events = append(events, e)
	}
	return events, string(b)
}

const readsSecrets = v1allow + "allow if { input.attributes.request.http.headers; input.parsed_body.card }\n"

func TestDecisionLog(t *testing.T) {
	events, raw := logged(t, readsSecrets,
		`,"includeInput":true,"includeResult":true,"mask":["/input/attributes/request/http/headers/x-key"],"headers":["X-Shown","authorization"]`)
	if len(events) != 1 {
		t.Fatalf("%d events: %s", len(events), raw)
	}
	e := events[0]
	for k, v := range map[string]any{
		"policy": "rego", "outcome": "allowed", "passed": true, "dry_run": false, "path": "envoy/authz/allow", "result": true,
		"source_principal": "spiffe://td/ns/a/sa/client", "requested_by": "10.0.0.1:40000", "type": "openpolicyagent.org/decision_logs",
		"request": map[string]any{"id": "req-1", "method": "POST", "host": "reviews.default", "path": "/p", "headers": map[string]any{"x-shown": "seen"}},
		"erased": []any{
			"/input/attributes/request/http/headers/x-key", "/input/attributes/request/http/headers/authorization",
			"/input/attributes/request/http/headers/cookie", "/input/parsed_body", "/request/headers/authorization",
		},
	} {
		if diff := cmp.Diff(v, e[k]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", k, diff)
		}
	}
	if id, _ := e["decision_id"].(string); !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(id) {
		t.Errorf("decision_id %q", id)
	}
	for _, secret := range []string{"BODYSECRET", "AUTHSECRET", "COOKIESECRET", "KEYSECRET"} {
		if strings.Contains(raw, secret) {
			t.Errorf("%s is in the log: %s", secret, raw)
		}
	}
}

// TestMasks: pointers of the configuration and of the policy's own rule.
func TestMasks(t *testing.T) {
	const all = `,"includeInput":true,"includeResult":true,"maskDefaults":"DISABLED"`
	for _, tt := range []struct {
		name, rule, log string
		gone, there     []string
		erased, masked  []any
	}{
		{name: "without masks everything is there", log: all, there: []string{"BODYSECRET", "AUTHSECRET", "COOKIESECRET", "KEYSECRET"}},
		{
			name: "a star is every key", log: all + `,"mask":["/input/attributes/request/http/headers/*","/input/parsed_body/list/*"]`,
			gone: []string{"AUTHSECRET", "COOKIESECRET", "KEYSECRET"}, there: []string{"BODYSECRET"},
			erased: []any{
				"/input/attributes/request/http/headers/:authority", "/input/attributes/request/http/headers/:method", "/input/attributes/request/http/headers/:path",
				"/input/attributes/request/http/headers/:scheme", "/input/attributes/request/http/headers/authorization", "/input/attributes/request/http/headers/content-type",
				"/input/attributes/request/http/headers/cookie", "/input/attributes/request/http/headers/x-key", "/input/attributes/request/http/headers/x-shown",
				"/input/parsed_body/list/0", "/input/parsed_body/list/1", "/input/parsed_body/list/2",
			},
		},
		{
			name: "the policy's rule removes", log: all, rule: `package system.log
mask contains "/input/parsed_body/card"
mask contains "/input/not/there"
mask contains "/nd_builtin_cache"
mask contains {"op": "remove", "path": "/input/attributes/request/http/headers/cookie"} if input.outcome == "allowed"`,
			gone: []string{"BODYSECRET", "COOKIESECRET"}, there: []string{"AUTHSECRET"},
			erased: []any{"/input/parsed_body/card", "/input/attributes/request/http/headers/cookie"},
		},
		{
			name: "the policy's rule replaces", log: all, rule: `package system.log
mask contains {"op": "upsert", "path": "/input/parsed_body/card", "value": concat("", [substring(input.input.parsed_body.card, 0, 2), "****"])}
mask contains {"op": "upsert", "path": "/input/parsed_body/list/1", "value": "X"}`,
			gone: []string{"BODYSECRET", `"b"`}, there: []string{"BO****", `"X"`},
			masked: []any{"/input/parsed_body/card", "/input/parsed_body/list/1"},
		},
		{
			name: "the whole input is removed", log: all, rule: `package system.log
mask contains "/input"`,
			gone: []string{"BODYSECRET", "AUTHSECRET", "COOKIESECRET", "KEYSECRET"}, erased: []any{"/input"},
		},
		{
			name: "a rule of another name", log: all + `,"maskDecision":"my/masks"`, rule: `package my
masks := ["/input/parsed_body"]`,
			gone: []string{"BODYSECRET"}, there: []string{"AUTHSECRET"}, erased: []any{"/input/parsed_body"},
		},
		{
			name: "a rule that conflicts leaves nothing", log: all + `,"headers":["x-key"]`, rule: `package system.log
mask := ["/input/a"] if input.passed
mask := ["/input/b"] if input.policy == "rego"`,
			gone: []string{"BODYSECRET", "AUTHSECRET", "COOKIESECRET", "KEYSECRET"}, there: []string{"log_error"}, erased: []any{"/input", "/result", "/request"},
		},
		{
			name: "a rule that makes no pointers leaves nothing", log: all, rule: `package system.log
mask contains 7`,
			gone: []string{"BODYSECRET", "AUTHSECRET", "KEYSECRET"}, there: []string{"log_error"}, erased: []any{"/input", "/result", "/request"},
		},
		{
			name: "a rule that never ends leaves nothing", log: all, rule: `package system.log
mask contains "/input/a" if count([x | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000); x := i * j]) > 0`,
			gone: []string{"BODYSECRET", "AUTHSECRET", "KEYSECRET"}, there: []string{"log_error"}, erased: []any{"/input", "/result", "/request"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var more []string
			policy := readsSecrets
			if tt.rule != "" {
				// A second source of the same policy.
				a, _ := json.Marshal(policy)
				b, _ := json.Marshal(tt.rule)
				more = append(more, fmt.Sprintf(`"policy":{"sources":[{"inlineString":%s},{"inlineString":%s}]}`, a, b))
			}
			name := filepath.Join(t.TempDir(), "log")
			js := conf(policy, fmt.Sprintf(`"decisionLog":{"filename":%q%s}`, name, tt.log))
			if len(more) > 0 {
				js = fmt.Sprintf(`{%s,"decisionLog":{"filename":%q%s}}`, more[0], name, tt.log)
			}
			f := compileJSON(t, env(), js, "")
			run(t, f, secretRequest().stream())
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var e map[string]any
			if err := json.Unmarshal(b, &e); err != nil {
				t.Fatal(err)
			}
			for _, s := range tt.gone {
				if strings.Contains(string(b), s) {
					t.Errorf("%s is in the log: %s", s, b)
				}
			}
			for _, s := range tt.there {
				if !strings.Contains(string(b), s) {
					t.Errorf("%s is not in the log: %s", s, b)
				}
			}
			for k, want := range map[string][]any{"erased": tt.erased, "masked": tt.masked} {
				got, _ := e[k].([]any)
				slices.SortFunc(got, compareText)
				slices.SortFunc(want, compareText)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", k, diff)
				}
			}
		})
	}
}

// number is what JSON numbers are in documents.
func number(s string) json.Number { return json.Number(s) }

func compareText(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) }

func secretRequest() request {
	return request{
		method: "POST", path: "/p?token=QUERYSECRET", body: []string{`{"card":"BODYSECRET","list":["a","b","c"]}`},
		header: [][2]string{{"content-type", "application/json"}, {"authorization", "Bearer AUTHSECRET"}, {"cookie", "COOKIESECRET"}, {"x-key", "KEYSECRET"}, {"x-shown", "seen"}},
	}
}

func TestWhatIsLogged(t *testing.T) {
	for _, tt := range []struct {
		name, policy, log string
		more              []string
		want              map[string]any // nil: nothing is logged
	}{
		{name: "a denial", policy: v1allow, want: map[string]any{"outcome": "denied", "passed": false, "dry_run": false}},
		{name: "a dry run", policy: v1allow, more: []string{`"dryRun":true`}, want: map[string]any{"outcome": "denied", "passed": true, "dry_run": true}},
		{name: "only denials, and it was allowed", policy: "package envoy.authz\nallow := true", log: `,"deniedOnly":true`},
		{name: "only denials, and it would have been", policy: v1allow, log: `,"deniedOnly":true`, more: []string{`"dryRun":true`}, want: map[string]any{"outcome": "denied"}},
		{name: "an error that passed", policy: "package envoy.authz\nallow := 7", log: `,"deniedOnly":true`, more: []string{`"failureModeAllow":true`}, want: map[string]any{"outcome": "error", "passed": true, "error": "decision is of type number: want boolean or object"}},
		{name: "an object as a result", policy: "package envoy.authz\nallow := {\"allowed\": false, \"reason\": \"no\"}", log: `,"includeResult":true`, want: map[string]any{"result": map[string]any{"allowed": false, "reason": "no"}}},
		{name: "no result unless asked", policy: v1allow, want: map[string]any{"result": nil, "input": nil}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			events, raw := logged(t, tt.policy, tt.log, tt.more...)
			if len(events) != min(len(tt.want), 1) {
				t.Fatalf("%d events: %s", len(events), raw)
			}
			for k, v := range tt.want {
				if diff := cmp.Diff(v, events[0][k]); diff != "" {
					t.Errorf("%s (-want +got):\n%s", k, diff)
				}
			}
			if strings.Contains(raw, "SECRET") {
				t.Errorf("a secret is in the log: %s", raw)
			}
		})
	}
}

func TestThePolicyKeepsEventsOutOfTheLog(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	a, _ := json.Marshal(v1allow + `allow if input.parsed_path[0] == "healthz"`)
	b, _ := json.Marshal("package system.log\ndrop if input.request.path == \"/healthz\"")
	f := compileJSON(t, env(), fmt.Sprintf(`{"policy":{"sources":[{"inlineString":%s},{"inlineString":%s}]},"decisionLog":{"filename":%q}}`, a, b, name), "")
	for _, p := range []string{"/healthz", "/x", "/healthz?y"} {
		run(t, f, request{path: p}.stream())
	}
	got, err := os.ReadFile(name)
	if err != nil || strings.Count(string(got), "\n") != 1 || !strings.Contains(string(got), `"path":"/x"`) {
		t.Errorf("%v\n%s", err, got)
	}
}

// TestRulesAboutTheLogDoNotCountAsReading: the input of these rules is the
// event, so that input.input.parsed_body is no reason to buffer bodies.
func TestRulesAboutTheLogDoNotCountAsReading(t *testing.T) {
	rules := "package system.log\nmask contains \"/input\" if walk(input, [[\"x\"], 1])\n"
	for name, tt := range map[string]struct {
		main string
		all  bool
	}{
		"alone":                      {"", false},
		"used by a decision":         {"allow if data.system.log.mask[\"x\"]\n", true},
		"used by way of data":        {"allow if data[input.parsed_path[0]].log.x\n", true},
		"used by way of the package": {"allow if data.system[_]\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			a, _ := json.Marshal(v1allow + "allow if input.attributes.request.http.method == \"GET\"\n" + tt.main)
			b, _ := json.Marshal(rules)
			c := decode(t, fmt.Sprintf(`{"policy":{"sources":[{"inlineString":%s},{"inlineString":%s}]},"decisionLog":{}}`, a, b)).(*config)
			comp, err := compileInline(&c.policy, c.queries(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if comp.want.needsBody() != tt.all {
				t.Errorf("reads %+v", comp.want)
			}
			if comp.mask == nil {
				t.Error("the rule is not used")
			}
		})
	}
}

func TestErase(t *testing.T) {
	for _, tt := range []struct {
		doc, pointer, want string
		erased             []string
	}{
		{`{"input":{"a":1,"b":2}}`, "/input/a", `{"input":{"b":2}}`, []string{"/input/a"}},
		{`{"input":{"a/b":1,"c~d":2}}`, "/input/a~1b", `{"input":{"c~d":2}}`, []string{"/input/a~1b"}},
		{`{"input":{"c~d":2}}`, "/input/c~0d", `{"input":{}}`, []string{"/input/c~0d"}},
		{`{"input":{"*":2,"x":1}}`, "/input/*", `{"input":{}}`, []string{"/input/*", "/input/x"}},
		{`{"input":[1,2,3]}`, "/input/1", `{"input":[1,3]}`, []string{"/input/1"}},
		{`{"input":[1,2,3]}`, "/input/9", `{"input":[1,2,3]}`, nil},
		{`{"input":[{"p":1,"q":2},{"p":3},4]}`, "/input/*/p", `{"input":[{"q":2},{},4]}`, []string{"/input/0/p", "/input/1/p"}},
		{`{"input":null}`, "/input/a", `{"input":null}`, nil},
		{`{"input":null}`, "/input", `{}`, []string{"/input"}},
		{`{"result":{"headers":{"a":"b"}}}`, "/result/headers/*", `{"result":{"headers":{}}}`, []string{"/result/headers/a"}},
	} {
		var v any
		_ = json.Unmarshal([]byte(tt.doc), &v)
		path, err := splitPointer(tt.pointer)
		if err != nil {
			t.Fatal(err)
		}
		var erased []string
		got, _ := json.Marshal(erase(v, path, nil, &erased))
		if string(got) != tt.want || !slices.Equal(erased, tt.erased) {
			t.Errorf("%s of %s: %s, %q; want %s, %q", tt.pointer, tt.doc, got, erased, tt.want, tt.erased)
		}
	}
}
