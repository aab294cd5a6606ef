package rego

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
)

// reading is a part of the input, and the value that it has in readingRequest.
type reading struct {
	path  []string
	value string // in Rego
}

var readings = []reading{
	{[]string{"parsed_body", "card"}, `"x1"`},
	{[]string{"parsed_body", "deep", "er"}, `7`},
	{[]string{"truncated_body"}, `false`},
	{[]string{"attributes", "request", "http", "body"}, `"{\"card\":\"x1\",\"deep\":{\"er\":7}}"`},
	{[]string{"attributes", "request", "http", "rawBody"}, `"eyJjYXJkIjoieDEiLCJkZWVwIjp7ImVyIjo3fX0="`},
	{[]string{"attributes", "request", "http", "headers", "x-a"}, `"1,2"`},
	{[]string{"attributes", "request", "http", "method"}, `"POST"`},
	{[]string{"attributes", "request", "http", "size"}, `29`},
	{[]string{"attributes", "request", "http", "protocol"}, `"HTTP/1.1"`},
	{[]string{"attributes", "request", "time", "nanos"}, `6000`},
	{[]string{"attributes", "source", "principal"}, `"spiffe://td/ns/a/sa/client"`},
	{[]string{"attributes", "destination", "principal"}, `"spiffe://td/ns/b/sa/server"`},
	{[]string{"attributes", "contextExtensions", "e"}, `"ext"`},
	{[]string{"source_principal"}, `"spiffe://td/ns/a/sa/client"`},
	{[]string{"parsed_path"}, `["a", "b"]`},
	{[]string{"parsed_query", "q"}, `["1"]`},
	{[]string{"version", "ext_authz"}, `"v3"`},
}

func readingRequest() request {
	return request{method: "POST", path: "/a/b?q=1", header: [][2]string{{"content-type", "application/json"}, {"x-a", "1"}, {"x-a", "2"}, {"content-length", "29"}}, body: []string{`{"card":"x1",`, `"deep":{"er":7}}`}}
}

// indirections are ways of a policy to a value of the input: REF is the
// reference, PATH the path as an array, FIRST and REST parts of it, VALUE what
// must be there. They are the body of a rule, or, with a colon, whole rules.
var indirections = map[string]string{
	"a reference":                          `REF == VALUE`,
	"the other way round":                  `VALUE == REF`,
	"unified":                              `VALUE = REF`,
	"a local variable":                     `x := REF; x == VALUE`,
	"a chain of variables":                 `a := input; b := a; b.FIRST; c := b; object.get(c, PATH, null) == VALUE`,
	"an alias of the first step":           `a := input[FIRSTSTR]; object.get({FIRSTSTR: a}, PATH, null) == VALUE`,
	"a key in a variable":                  `k := FIRSTSTR; x := input[k]; object.get({k: x}, PATH, null) == VALUE`,
	"a key from data":                      `x := input[data.first]; object.get({data.first: x}, PATH, null) == VALUE`,
	"any key":                              `some k; x := input[k]; object.get({k: x}, PATH, null) == VALUE`,
	"some in":                              `some k, x in input; object.get({k: x}, PATH, null) == VALUE`,
	"every":                                `every k, v in {0: input} { k == 0; object.get(v, PATH, null) == VALUE }`,
	"walk":                                 `walk(input, [p, v]); p == PATH; v == VALUE`,
	"walk as a relation":                   `walk(input, [PATH, VALUE])`,
	"walk below":                           `walk(input[FIRSTSTR], [p, v]); array.concat([FIRSTSTR], p) == PATH; v == VALUE`,
	"object.get":                           `object.get(input, PATH, null) == VALUE`,
	"json.filter":                          `object.get(json.filter(input, [concat("/", PATH)]), PATH, null) == VALUE`,
	"json.remove":                          `json.remove(input, [concat("/", PATH)]) != input`,
	"object.union":                         `object.get(object.union(input, {}), PATH, null) == VALUE`,
	"object.keys":                          `FIRSTSTR in object.keys(input)`,
	"an array":                             `[a, b] := [1, REF]; a == 1; b == VALUE`,
	"an object":                            `{"k": x} = {"k": REF}; x == VALUE`,
	"a comprehension":                      `[x | x := REF] == [VALUE]`,
	"a comprehension over the input":       `o := {p: v | walk(input, [p, v])}; o[PATH] == VALUE`,
	"nested comprehensions":                `count([1 | a := input; count([1 | object.get(a, PATH, null) == VALUE]) == 1]) == 1`,
	"a negation":                           `not REF != VALUE; not object.get(input, PATH, null) == null`,
	"an argument":                          `f(REF)` + "\n:f(x) if x == VALUE",
	"an argument that is the whole":        `f(input)` + "\n:f(x) if object.get(x, PATH, null) == VALUE",
	"a function without arguments to it":   `f(1)` + "\n:f(_) if REF == VALUE",
	"a function's result":                  `f(1) == VALUE` + "\n:f(_) := REF",
	"a function's default":                 `f(2) == VALUE` + "\n:default f(_) := false\nf(1) := true\nf(2) := REF",
	"a rule":                               `r == VALUE` + "\n:r := REF",
	"a rule that is the input":             `object.get(r, PATH, null) == VALUE` + "\n:r := input",
	"a partial set":                        `VALUE in s` + "\n:s contains REF",
	"a partial object":                     `o.k == VALUE` + "\n:o.k := REF",
	"a key of a partial object":            `some k; o[k] == 1; k == VALUE` + "\n:o[k] := 1 if k := REF",
	"an else":                              `r == VALUE` + "\n:r := 1 if false else := REF",
	"a condition of an else":               `r == 2` + "\n:r := 1 if false else := 2 if REF == VALUE",
	"with another input":                   `r == VALUE with input as input` + "\n:r := REF",
	"with a part of the input":             `r == VALUE with input.zzz as 1` + "\n:r := REF",
	"with data of the input":               `data.other == VALUE with data.other as REF`,
	"with a function":                      `f(1) with f as g` + "\n:f(_) := false\ng(_) if REF == VALUE",
	"by way of data":                       `data.envoy.authz.r == VALUE` + "\n:r := REF",
	"by way of a key of data":              `k := "r"; data.envoy.authz[k] == VALUE` + "\n:r := REF",
	"sprintf":                              `sprintf("%v", [REF]) == sprintf("%v", [VALUE])`,
	"json.marshal of the input":            `object.get(json.unmarshal(json.marshal(input)), PATH, null) == VALUE`,
	"a ternary by array index":             `[0, REF][1] == VALUE`,
	"an object's index":                    `{"a": REF}["a"] == VALUE`,
	"a set's element":                      `VALUE in {REF}`,
	"a reference into a call":              `json.unmarshal(json.marshal(input))REST == VALUE`,
	"an alias of http in a comprehension":  `[1 | h := input.attributes.request.http; h.method == "POST"; REF == VALUE] == [1]`,
	"an alias used by another rule's name": `h := REF; r == h` + "\n:r := h if h := REF",
}

// TestWhatAPolicyReadsIsThere: however a policy gets at the input, it is given
// what it reads. A part that the analysis overlooks would be missing, and the
// rule undefined.
func TestWhatAPolicyReadsIsThere(t *testing.T) {
	n := 0
	for name, way := range indirections {
		for _, r := range readings {
			if n++; raced && n%8 != 0 {
				continue // there is one goroutine
			}
			quoted := make([]string, len(r.path))
			ref, rest := "input", ""
			for i, k := range r.path {
				quoted[i] = fmt.Sprintf("%q", k)
				ref += "[" + quoted[i] + "]"
				rest += "[" + quoted[i] + "]"
			}
			rule, more, _ := strings.Cut(way, "\n:")
			text := "package envoy.authz\ndefault allow := false\nallow if { " + rule + " }\n" + more
			text = strings.NewReplacer("REF", ref, "PATH", "["+strings.Join(quoted, ", ")+"]", "FIRSTSTR", quoted[0], "FIRST", r.path[0], "REST", rest, "VALUE", r.value).Replace(text)
			if name == "a chain of variables" && r.value == "false" {
				text = strings.Replace(text, "b."+r.path[0]+";", "", 1) // is not true
			}
			js := conf(text, `"contextExtensions":{"e":"ext"}`)
			js = strings.Replace(js, `{"policy":{`, fmt.Sprintf(`{"policy":{"data":{"first":%s},`, quoted[0]), 1)
			f := compileJSON(t, env(), js, "").(*filter)
			if u, _ := run(t, f, readingRequest().stream()); !u.called {
				c := *f.program.current.Load()
				c.want.everything()
				f.program.current.Store(&c)
				u, _ := run(t, f, readingRequest().stream())
				t.Errorf("%s: %s is not seen (but with everything: %v) by\n%s", name, ref, u.called, text)
			}
			w := f.program.current.Load().want
			reads := strings.Contains(strings.Join(r.path, "."), "ody")
			if name == "a reference" && w.needsBody() != reads {
				t.Errorf("%s: the body is read: %v", ref, w.needsBody())
			}
		}
	}
	if want := len(indirections) * len(readings); n != want || n < 800 {
		t.Errorf("%d cases: want %d", n, want)
	}
}

// TestTheTimeLimitEndsWhateverThePolicyDoes: each of these would take seconds,
// years, or all memory.
func TestTheTimeLimitEndsWhateverThePolicyDoes(t *testing.T) {
	for name, rule := range map[string]string{
		"a comprehension":          `count([x | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000); x := i * j]) > 0`,
		"a search without results": `some i in numbers.range(1, 100000); some j in numbers.range(1, 100000); i * j == -1`,
		"functions":                `f(1) + f(2) > 0` + "\n:f(x) := sum([y | some i in numbers.range(1, 3000); y := g(x + i)])\ng(x) := sum([y | some i in numbers.range(1, 3000); y := x * i])",
		"every":                    `every i in numbers.range(1, 100000) { every j in numbers.range(1, 100000) { i + j > 0 } }`,
		"a range":                  `count(numbers.range(1, 100000000000)) > 0`,
		"a range with steps":       `count(numbers.range_step(1, 100000000000, 1)) > 0`,
		"all addresses":            `count(net.cidr_expand("0.0.0.0/0")) > 0`,
		"all addresses of IPv6":    `count(net.cidr_expand("::/0")) > 0`,
		"a shift":                  `bits.lsh(1, 100000000000) > 0`,
		"a shift by all":           `bits.lsh(1, 9223372036854775807) > 0`,
		"products":                 `x := product([9e399 | some i in numbers.range(1, 3000)]); count([y | some i in numbers.range(1, 100000); y := product([x, x, i])]) > 0`,
		"walks":                    `count([1 | some i in numbers.range(1, 100000); walk([numbers.range(1, 1000)], [p, v]); i == v]) == -1`,
		"strings":                  `s := concat("", ["a" | some i in numbers.range(1, 60000)]); some i in numbers.range(1, 100000); contains(concat("", [s, format_int(i, 10)]), "b")`,
		"separators":               `s := concat("", ["a" | some i in numbers.range(1, 60000)]); x := [s | some i in numbers.range(1, 10000)]; count(concat(s, split(s, ""))) > count(x)`,
		"many replacements":        `s := concat("", ["a" | some i in numbers.range(1, 60000)]); t := concat("", [s, s, s, s]); count(strings.replace_n({"a": s}, t)) > 0`,
		"replacements":             `s := concat("", ["a" | some i in numbers.range(1, 60000)]); t := concat("", [s, s, s, s]); count(replace(t, "", s)) > 0`,
		"expressions":              `s := concat("", ["a" | some i in numbers.range(1, 60000)]); some i in numbers.range(1, 100000); regex.match("(a|aa)+b", concat("", [s, format_int(i, 10)]))`,
	} {
		t.Run(name, func(t *testing.T) {
			rule, more, _ := strings.Cut(rule, "\n:")
			f := compileJSON(t, env(), conf("package envoy.authz\ndefault allow := false\nallow if { "+rule+" }\n"+more, `"timeout":"0.03s"`), "")
			start := time.Now()
			s, u := request{}.stream(), &upstream{}
			s.SetChain([]filters.HTTPFilter{f, u})
			r, err := filters.Start(s)
			if err != nil {
				t.Fatal(err)
			}
			if d := time.Since(start); d > time.Minute { // the machine may be busy
				t.Errorf("took %v", d)
			}
			if u.called || r.Status() != 403 || s.Info.Details != "rego_denied{timeout}" && s.Info.Details != "rego_denied{error}" {
				t.Errorf("passed %v, status %d, details %q", u.called, r.Status(), s.Info.Details)
			}
		})
	}
}

// TestANumberOutOfBoundsSilencesNoRule: a rule that denies must not become
// undefined by what a client writes.
func TestANumberOutOfBoundsSilencesNoRule(t *testing.T) {
	const denies = "package envoy.authz\ndefault allow := true\nallow := false if deny\n"
	for name, rule := range map[string]string{
		"a sum":         `deny if json.unmarshal(input.attributes.request.http.body).a + 1 > 1000`,
		"a shift":       `deny if bits.lsh(1, input.parsed_body.n) > 1000`,
		"a negation":    `deny if not json.unmarshal(input.attributes.request.http.body).a * 2 < 1000`,
		"a replacement": `deny if contains(replace(input.parsed_body.s, "", input.parsed_body.s), "evil")`,
	} {
		t.Run(name, func(t *testing.T) {
			f := compileJSON(t, env(), conf(denies+rule), "")
			body := `{"n":100000000000,"s":"evil` + strings.Repeat("a", 50000) + `"}`
			if strings.Contains(rule, ".a ") {
				body = `{"a":1e401}`
			}
			s := request{method: "POST", header: [][2]string{{"content-type", "application/json"}}, body: []string{body}}.stream()
			if u, r := run(t, f, s); u.called || r.Status() != 403 {
				t.Errorf("passed %v, status %d, details %q", u.called, r.Status(), s.Info.Details)
			}
		})
	}
}
