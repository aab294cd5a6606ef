package rego

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	oparego "github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"sigs.k8s.io/yaml"

	"github.com/fairlead-mesh/fairlead/filters/http/rego/regopb"
)

// restrictedBuiltins reach the network or tell about the host; they are
// enabled one by one.
var restrictedBuiltins = []string{"http.send", "net.lookup_ip_addr", "opa.runtime"}

// maxSourceBytes bounds one policy or data file.
const maxSourceBytes = 8 << 20

// compiled is one prepared query: immutable, used by many streams at once.
type compiled struct {
	query oparego.PreparedEvalQuery
	want  want
}

// source is one input of a compilation, read.
type source struct {
	name string
	text string
	data bool
}

func isData(filename string) bool {
	switch filepath.Ext(filename) {
	case ".json", ".yaml", ".yml":
		return true
	}
	return false
}

// readSources reads the files of p.
func readSources(p *policyConfig) ([]source, error) {
	out := make([]source, 0, len(p.sources))
	for i, s := range p.sources {
		if s.filename == "" {
			out = append(out, source{name: "inline_" + strconv.Itoa(i) + ".rego", text: s.inline})
			continue
		}
		b, err := readFile(s.filename)
		if err != nil {
			return nil, fmt.Errorf("sources[%d].filename: %w", i, err)
		}
		out = append(out, source{name: s.filename, text: string(b), data: isData(s.filename)})
	}
	return out, nil
}

func readFile(name string) ([]byte, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if st.Size() > maxSourceBytes {
		return nil, fmt.Errorf("%s has %d bytes: the limit is %d", name, st.Size(), maxSourceBytes)
	}
	return os.ReadFile(name)
}

func compileInline(p *policyConfig, query string, allow []string) (*compiled, error) {
	srcs, err := readSources(p)
	if err != nil {
		return nil, err
	}
	return compileSources(srcs, p, query, allow)
}

// compileSources parses, checks and prepares a policy.
func compileSources(srcs []source, p *policyConfig, query string, allow []string) (*compiled, error) {
	guardArithmetic()
	caps := ast.CapabilitiesForThisVersion()
	caps.Builtins = slices.DeleteFunc(caps.Builtins, func(b *ast.Builtin) bool {
		return slices.Contains(restrictedBuiltins, b.Name) && !slices.Contains(allow, b.Name)
	})
	if !slices.Contains(allow, "http.send") {
		caps.AllowNet = []string{} // no remote JSON schemas either; nil would be any host
	}
	data := map[string]any{}
	if len(p.data) > 0 {
		if err := unmarshalNumbers(p.data, &data); err != nil {
			return nil, fmt.Errorf("data: %w", err)
		}
	}
	modules := map[string]*ast.Module{}
	for i, s := range srcs {
		if s.data {
			if err := mergeData(data, s); err != nil {
				return nil, err
			}
			continue
		}
		m, err := parseModule(s, p.version, caps)
		if err != nil {
			return nil, fmt.Errorf("sources[%d]: %w", i, err)
		}
		modules[strconv.Itoa(i)+":"+s.name] = m
	}
	comp := ast.NewCompiler().WithCapabilities(caps).WithUseTypeCheckAnnotations(true).WithDefaultRegoVersion(ast.RegoV1)
	if comp.Compile(modules); comp.Failed() {
		return nil, comp.Errors
	}
	if err := checkDecision(comp, query); err != nil {
		return nil, err
	}
	pq, err := oparego.New(
		oparego.Query(query),
		oparego.Compiler(comp),
		oparego.Capabilities(caps),
		oparego.Store(inmem.NewFromObjectWithOpts(data, inmem.OptReturnASTValuesOnRead(true), inmem.OptRoundTripOnWrite(false))),
		oparego.GenerateJSON(keepTerm),
	).PrepareForEval(context.Background())
	if err != nil {
		return nil, err
	}
	return &compiled{query: pq, want: analyze(comp.Modules)}, nil
}

// keepTerm leaves the decision as it is: most are booleans, and conversion to
// JSON values would only cost.
func keepTerm(t *ast.Term, _ *oparego.EvalContext) (any, error) { return t.Value, nil }

// parseModule parses s as Rego v1, and as v0 if the configuration allows it.
func parseModule(s source, v regopb.Policy_RegoVersion, caps *ast.Capabilities) (*ast.Module, error) {
	parse := func(rv ast.RegoVersion) (*ast.Module, error) {
		m, err := ast.ParseModuleWithOpts(s.name, s.text, ast.ParserOptions{RegoVersion: rv, Capabilities: caps})
		if err == nil && m == nil {
			err = errors.New("empty module")
		}
		return m, err
	}
	switch v {
	case regopb.Policy_V0:
		return parse(ast.RegoV0)
	case regopb.Policy_V1:
		return parse(ast.RegoV1)
	default:
	}
	m, err := parse(ast.RegoV1)
	if err == nil {
		return m, nil
	}
	if m, err0 := parse(ast.RegoV0); err0 == nil {
		return m, nil
	}
	return nil, err
}

// checkQuery accepts ground references below data.
func checkQuery(q string) error {
	ref, err := ast.ParseRef(q)
	if err != nil {
		return fmt.Errorf("%q: %w", q, err)
	}
	if len(ref) < 2 || !ref[0].Equal(ast.DefaultRootDocument) || !ref.IsGround() {
		return fmt.Errorf("%q: want the path of one rule, for example %q", q, defaultQuery)
	}
	return nil
}

// checkDecision rejects a query that no rule can ever define: a misspelt path
// would deny everything without a hint.
func checkDecision(comp *ast.Compiler, q string) error {
	ref, err := ast.ParseRef(q)
	if err != nil {
		return fmt.Errorf("query %q: %w", q, err)
	}
	if len(comp.GetRulesForVirtualDocument(ref)) > 0 || len(comp.GetRulesWithPrefix(ref)) > 0 {
		return nil
	}
	var have []string
	for _, m := range comp.Modules {
		have = append(have, m.Package.Path.String())
	}
	slices.Sort(have)
	return fmt.Errorf("query %q names no rule; packages are %s", q, strings.Join(have, ", "))
}

func unmarshalNumbers(b []byte, v any) error {
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.UseNumber()
	return d.Decode(v)
}

func mergeData(into map[string]any, s source) error {
	b, err := yaml.YAMLToJSON([]byte(s.text))
	if err != nil {
		return fmt.Errorf("data file %s: %w", s.name, err)
	}
	var m map[string]any
	if err := unmarshalNumbers(b, &m); err != nil {
		return fmt.Errorf("data file %s: not an object: %w", s.name, err)
	}
	return merge(into, m, s.name)
}

func merge(into, from map[string]any, name string) error {
	for k, v := range from {
		old, ok := into[k]
		if !ok {
			into[k] = v
			continue
		}
		a, okA := old.(map[string]any)
		b, okB := v.(map[string]any)
		if !okA || !okB {
			return fmt.Errorf("data file %s: %q is defined twice", name, k)
		}
		if err := merge(a, b, name+": "+k); err != nil {
			return err
		}
	}
	return nil
}

// eval runs the query on input. A nil value without error is undefined.
func (c *compiled) eval(ctx context.Context, input ast.Value, cancel topdown.Cancel) (v ast.Value, err error) {
	defer func() {
		if p := recover(); p != nil {
			v, err = nil, &panicError{p}
		}
	}()
	rs, err := c.query.Eval(ctx, oparego.EvalParsedInput(input), oparego.EvalExternalCancel(cancel), oparego.EvalMetrics(metrics.NoOp()))
	if err != nil {
		return nil, err
	}
	if len(rs) == 0 {
		return nil, nil
	}
	if len(rs) > 1 || len(rs[0].Expressions) != 1 {
		return nil, fmt.Errorf("query has %d results of %d expressions: want one", len(rs), len(rs[0].Expressions))
	}
	v, ok := rs[0].Expressions[0].Value.(ast.Value)
	if !ok {
		return nil, fmt.Errorf("decision of type %T", rs[0].Expressions[0].Value)
	}
	return v, nil
}

type panicError struct{ v any }

func (p *panicError) Error() string { return fmt.Sprintf("panic in evaluation: %v", p.v) }
