package rego

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"sigs.k8s.io/yaml"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/http/rego/regopb"
)

func TestDecodeErrors(t *testing.T) {
	ok := v1allow
	for name, js := range map[string]string{
		"no policy":                  `{}`,
		"no source":                  `{"policy":{}}`,
		"an empty source":            `{"policy":{"sources":[{}]}}`,
		"an unknown field":           `{"policy":{"sources":[{"inlineString":"package a"}]},"x":1}`,
		"a syntax error":             conf("package envoy.authz\nallow if {"),
		"a type error":               conf("package envoy.authz\nallow if undefined_function(1)"),
		"a network builtin":          conf(`package envoy.authz` + "\n" + `allow if http.send({"method":"GET","url":"http://169.254.169.254"}).status_code == 200`),
		"a look-up builtin":          conf(`package envoy.authz` + "\n" + `allow if net.lookup_ip_addr("a")`),
		"opa.runtime":                conf(`package envoy.authz` + "\n" + `allow if opa.runtime().env.HOME`),
		"a query that names nothing": conf(ok, `"query":"data.envoy.authz.alow"`),
		"a query with a call":        conf(ok, `"query":"data.envoy.authz.allow; true"`),
		"too long a timeout":         conf(ok, `"timeout":"60s"`),
		"a negative timeout":         conf(ok, `"timeout":"-1s"`),
		"too large a body limit":     conf(ok, `"maxRequestBytes":99999999`),
		"a builtin that is no risk":  conf(ok, `"allowBuiltins":["count"]`),
		"a deny status of 200":       conf(ok, `"denyStatus":200`),
		"a mask without slash":       conf(ok, `"decisionLog":{"mask":["x"]}`),
		"only data":                  `{"policy":{"sources":[{"filename":"a.json"}]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			if c, err := (Factory{}).Decode(filters.Any{TypeURL: TypeURL, Value: []byte(js), JSON: true}, nil); err == nil {
				t.Errorf("accepted: %+v", c)
			}
		})
	}
	t.Run("unknown fields on the wire", func(t *testing.T) {
		b, _ := proto.Marshal(&regopb.Config{Policy: &regopb.Policy{Sources: []*regopb.Source{{Source: &regopb.Source_InlineString{InlineString: ok}}}}})
		if _, err := (Factory{}).Decode(filters.Any{TypeURL: TypeURL, Value: b}, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := (Factory{}).Decode(filters.Any{TypeURL: TypeURL, Value: append(b, 0xf8, 0x7f, 1)}, nil); err == nil {
			t.Error("accepted")
		}
	})
	t.Run("allow_builtins enables http.send", func(t *testing.T) {
		decode(t, conf(`package envoy.authz`+"\n"+`allow if http.send({"method":"GET","url":"http://127.0.0.1:1"}).status_code == 200`, `"allowBuiltins":["http.send"]`))
	})
	t.Run("a missing file is an error of Compile", func(t *testing.T) {
		if _, err := (Factory{}).Compile(env(), decode(t, `{"policy":{"sources":[{"filename":"/nonexistent/p.rego"}]}}`), nil); err == nil {
			t.Error("compiled")
		}
	})
}

func TestWhatThePolicyReads(t *testing.T) {
	for _, tt := range []struct {
		name, policy string
		want         want
	}{
		{"nothing", v1allow, want{}},
		{"single fields", v1allow + `allow if { input.attributes.request.http.method == "GET"; input.attributes.request.http.headers["x-a"]; input.attributes.request.http.headers.authorization }`, want{method: true, headers: []string{"authorization", "x-a"}}},
		{"an import", "package envoy.authz\nimport input.attributes.request.http as req\nallow if req.path == \"/\"", want{path: true}},
		{"a local alias", v1allow + `allow if { http := input.attributes.request.http; http.method == "GET"; http.headers.a }`, want{method: true, headers: []string{"a"}}},
		{"a local alias of the headers that is iterated", v1allow + `allow if { h := input.attributes.request.http.headers; some k; h[k] == "x" }`, want{allHeaders: true}},
		{"an alias that is passed on", v1allow + `f(x) := x.body` + "\n" + `allow if { http := input.attributes.request.http; f(http) == "GET" }`, want{method: true, path: true, host: true, scheme: true, protocol: true, id: true, size: true, body: true, rawBody: true, allHeaders: true}},
		{"a variable key", v1allow + `allow if { some h; input.attributes.request.http.headers[h] == "x" }`, want{allHeaders: true}},
		{"a parsed body field", v1allow + `allow if input.parsed_body.a.b == 1`, want{parsedBody: true}},
		{"a body in a comprehension", v1allow + `allow if count([1 | contains(input.attributes.request.http.body, "x")]) == 1`, want{body: true}},
		{"a key made of input", v1allow + `allow if data.x[input.parsed_path[0]]`, want{parsedPath: true}},
		{"else", "package envoy.authz\nallow if input.attributes.request.http.host == \"a\" else := true if input.version.ext_authz == \"v3\"", want{host: true, version: true}},
		{"a function", "package envoy.authz\nf(x) if x == input.attributes.source.principal\nallow if f(\"a\")", want{source: true}},
		{"the head", "package envoy.authz\nallow := {\"allowed\": true, \"headers\": {\"x\": input.attributes.request.http.scheme}}", want{scheme: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := decode(t, conf(tt.policy)).(*config)
			comp, err := compileInline(&c.policy, c.queries(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, comp.want, cmp.AllowUnexported(want{})); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("the whole input", func(t *testing.T) {
		for _, p := range []string{
			v1allow + `allow if walk(input, [["a"], 1])`,
			v1allow + `allow if { some k; input[k] }`,
			v1allow + `allow if { x := input; x.y }`,
			v1allow + `allow if object.get(input, ["a"], 0) == 1`,
		} {
			c := decode(t, conf(p)).(*config)
			comp, err := compileInline(&c.policy, c.queries(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if !comp.want.body || !comp.want.parsedBody || !comp.want.source {
				t.Errorf("%s: reads %+v", p, comp.want)
			}
		}
	})
	t.Run("a policy that ignores the body doesn't hold it", func(t *testing.T) {
		f := compileJSON(t, env(), conf(v1allow+`allow if input.attributes.request.http.method == "POST"`), "")
		s := request{method: "POST", body: []string{"a", "b"}}.stream()
		body := s.Body
		s.SetChain([]filters.HTTPFilter{f, terminal(func(s *filters.Stream) (*filters.Response, error) {
			if s.Body != body {
				t.Error("the body was wrapped")
			}
			return s.NewResponse(), nil
		})})
		if _, err := filters.Start(s); err != nil {
			t.Fatal(err)
		}
	})
}

func TestREADMEExamplesLoad(t *testing.T) {
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, block := range strings.Split(string(b), "```yaml\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		var doc map[string]any
		if err := yaml.Unmarshal([]byte(block), &doc); err != nil {
			t.Fatal(err)
		}
		var visit func(v any)
		visit = func(v any) {
			m, ok := v.(map[string]any)
			if !ok {
				if l, ok := v.([]any); ok {
					for _, e := range l {
						visit(e)
					}
				}
				return
			}
			kind, _ := m["@type"].(string)
			inner := m
			if strings.HasSuffix(kind, "TypedStruct") {
				kind, _ = m["type_url"].(string)
				inner, _ = m["value"].(map[string]any)
			}
			if kind == TypeURL || kind == PerRouteTypeURL {
				delete(inner, "@type")
				js, _ := json.Marshal(inner)
				var err error
				if kind == TypeURL {
					_, err = Factory{}.Decode(filters.Any{TypeURL: kind, Value: js, JSON: true}, nil)
				} else {
					_, err = Factory{}.DecodeOverride(filters.Any{TypeURL: kind, Value: js, JSON: true}, nil)
				}
				if err != nil {
					t.Errorf("%v in\n%s", err, block)
				}
				n++
				return
			}
			for _, e := range m {
				visit(e)
			}
		}
		visit(doc)
	}
	if n < 5 {
		t.Errorf("%d configurations found in README.md: want at least 5", n)
	}
}

func TestDurationsHaveBounds(t *testing.T) {
	for _, d := range []*durationpb.Duration{{Seconds: -1}, {Nanos: 1}, {Seconds: 11}, {Seconds: 1 << 60}} {
		if _, err := duration("x", d, time.Second, time.Millisecond, 10*time.Second); err == nil {
			t.Errorf("%v accepted", d)
		}
	}
}
