package rego

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// compiled is one prepared policy: immutable, used by many streams at once.
type compiled struct {
	query oparego.PreparedEvalQuery
	want  want
	// mask and drop are the rules about the decision log, nil if there are none.
	mask, drop *oparego.PreparedEvalQuery
	// bundles are the revisions as decision logs tell them.
	bundles map[string]any
}

// queries are the rules that are asked for.
type queries struct {
	decision string
	// mask and drop are empty if there is no decision log. They may be absent
	// from the policy unless they are required.
	mask, drop                 string
	maskRequired, dropRequired bool
}

// parts are what a policy is compiled of.
type parts struct {
	sources []source
	bundles []*loadedBundle
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

func readFile(name string) ([]byte, error) { return readBounded(name, maxSourceBytes) }

func compileInline(p *policyConfig, q queries, allow []string) (*compiled, error) {
	srcs, err := readSources(p)
	if err != nil {
		return nil, err
	}
	return compileParts(parts{sources: srcs}, p, q, allow)
}

// parseInline finds syntax errors in inline modules of a policy that is not
// complete yet.
func parseInline(p *policyConfig) error {
	for i, s := range p.sources {
		if s.inline == "" {
			continue
		}
		if _, err := parseModule(source{name: "inline_" + strconv.Itoa(i) + ".rego", text: s.inline}, p.version, ast.CapabilitiesForThisVersion()); err != nil {
			return fmt.Errorf("sources[%d]: %w", i, err)
		}
	}
	return nil
}

// capabilities is what policies may do.
func capabilities(allow []string) *ast.Capabilities {
	caps := ast.CapabilitiesForThisVersion()
	caps.Builtins = slices.DeleteFunc(caps.Builtins, func(b *ast.Builtin) bool {
		return slices.Contains(restrictedBuiltins, b.Name) && !slices.Contains(allow, b.Name)
	})
	if !slices.Contains(allow, "http.send") {
		caps.AllowNet = []string{} // no remote JSON schemas either; nil would be any host
	}
	return caps
}

// compileParts parses, checks and prepares a policy.
func compileParts(ps parts, p *policyConfig, q queries, allow []string) (c *compiled, err error) {
	defer func() {
		if v := recover(); v != nil { // a policy from outside; see docs/adr/0009-panics.md
			c, err = nil, &panicError{v}
		}
	}()
	guardArithmetic()
	caps := capabilities(allow)
	modules, data, err := assemble(ps, p, caps)
	if err != nil {
		return nil, err
	}
	comp := ast.NewCompiler().WithCapabilities(caps).WithUseTypeCheckAnnotations(true).WithDefaultRegoVersion(ast.RegoV1)
	if comp.Compile(modules); comp.Failed() {
		return nil, comp.Errors
	}
	if err := checkDecision(comp, q.decision); err != nil {
		return nil, err
	}
	store := inmem.NewFromObjectWithOpts(data, inmem.OptReturnASTValuesOnRead(true), inmem.OptRoundTripOnWrite(false))
	prepare := func(query string, more ...func(*oparego.Rego)) (oparego.PreparedEvalQuery, error) {
		return oparego.New(append([]func(*oparego.Rego){
			oparego.Query(query), oparego.Compiler(comp), oparego.Capabilities(caps), oparego.Store(store),
		}, more...)...).PrepareForEval(context.Background())
	}
	optional := func(query string, required bool) (*oparego.PreparedEvalQuery, error) {
		if query == "" || !required && !defines(comp, query) {
			return nil, nil
		}
		if err := checkDecision(comp, query); err != nil {
			return nil, err
		}
		pq, err := prepare(query)
		return &pq, err
	}
	c = &compiled{want: analyze(comp.Modules, q), bundles: map[string]any{}}
	if c.query, err = prepare(q.decision, oparego.GenerateJSON(keepTerm)); err != nil {
		return nil, err
	}
	if c.mask, err = optional(q.mask, q.maskRequired); err != nil {
		return nil, fmt.Errorf("mask_decision: %w", err)
	}
	if c.drop, err = optional(q.drop, q.dropRequired); err != nil {
		return nil, fmt.Errorf("drop_decision: %w", err)
	}
	for _, b := range ps.bundles {
		c.bundles[b.name] = map[string]any{"revision": b.revision}
	}
	return c, nil
}

// assemble makes one set of modules and one document of the parts.
func assemble(ps parts, p *policyConfig, caps *ast.Capabilities) (map[string]*ast.Module, map[string]any, error) {
	data := map[string]any{}
	if len(p.data) > 0 {
		if err := unmarshalNumbers(p.data, &data); err != nil {
			return nil, nil, fmt.Errorf("data: %w", err)
		}
	}
	modules := map[string]*ast.Module{}
	for i, s := range ps.sources {
		if s.data {
			if err := mergeData(data, s); err != nil {
				return nil, nil, err
			}
			continue
		}
		m, err := parseModule(s, p.version, caps)
		if err != nil {
			return nil, nil, fmt.Errorf("sources[%d]: %w", i, err)
		}
		modules[strconv.Itoa(i)+":"+s.name] = m
	}
	if err := checkRoots(ps.bundles, modules, data); err != nil {
		return nil, nil, err
	}
	for i, b := range ps.bundles {
		for name, m := range b.modules {
			modules["bundles["+strconv.Itoa(i)+"]:"+name] = m
		}
		if err := mergeTrees(data, b.data, "bundle "+b.name); err != nil {
			return nil, nil, err
		}
	}
	return modules, data, nil
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
	if defines(comp, q) {
		return nil
	}
	var have []string
	for _, m := range comp.Modules {
		have = append(have, m.Package.Path.String())
	}
	slices.Sort(have)
	return fmt.Errorf("query %q names no rule; packages are %s", q, strings.Join(have, ", "))
}

// defines reports whether a rule can define q.
func defines(comp *ast.Compiler, q string) bool {
	ref, err := ast.ParseRef(q)
	return err == nil && (len(comp.GetRulesForVirtualDocument(ref)) > 0 || len(comp.GetRulesWithPrefix(ref)) > 0)
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
	return mergeTrees(into, m, "data file "+s.name)
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
