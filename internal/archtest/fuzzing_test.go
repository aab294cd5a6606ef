package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// parsers must have a fuzz target: what reads bytes of clients, upstreams,
// peers, the control plane or operators.
var parsers = map[string][]string{
	"proxy/transport/h1":                     {"FuzzRequestHead", "FuzzResponseHead", "FuzzChunked"},
	"proxy/transport/h2":                     {"FuzzServer", "FuzzClient", "FuzzHpackDecodeAgreesWithXNet", "FuzzFrameHeadersAgreeWithXNet", "FuzzRequestsBecomeCanonicalHTTP1"},
	"proxy/transport":                        {"FuzzAuthority"},
	"proxy/hcm":                              {"FuzzCanonicalPath", "FuzzXFCC"},
	"proxy/router":                           {"FuzzRequestHeaders"},
	"proxy/tlscontext":                       {"FuzzDistinguishedName"},
	"proxy/secret":                           {"FuzzParseCRLs"},
	"proxy/bootstrap":                        {"FuzzParse"},
	"proxy/agent":                            {"FuzzParse"},
	"proxy":                                  {"FuzzQuestion"},
	"xdsclient":                              {"FuzzBookkeeping"},
	"xdsclient/filesource":                   {"FuzzParse"},
	"xdsclient/xdsresource":                  {"FuzzDecode", "FuzzYAML"},
	"routing":                                {"FuzzMatchAgreesWithTheReference"},
	"internal/tracing":                       {"FuzzTraceparent"},
	"internal/otlp":                          {"FuzzCollectorAnswer"},
	"internal/format":                        {"FuzzCompile"},
	"internal/identity":                      {"FuzzParseID"},
	"internal/matcher":                       {"FuzzRegexShortcuts", "FuzzURITemplateAgreesWithEnvoysRegex"},
	"internal/wasmmodule":                    {"FuzzUnpack", "FuzzPullSecret"},
	"internal/workload":                      {"FuzzDecode"},
	"filters/internal/peers":                 {"FuzzBaggage", "FuzzExchange"},
	"filters/internal/authz":                 {"FuzzDecodeRules", "FuzzEngineAgreesWithTheNaiveEvaluator"},
	"filters/internal/authcheck":             {"FuzzAnswer"},
	"filters/internal/dlp":                   {"FuzzStreamInvariance", "FuzzChunkInvariance"},
	"filters/internal/filterobjects":         {"FuzzParseAddress"},
	"filters/internal/proxywasm":             {"FuzzMeter", "FuzzPairs"},
	"filters/internal/istio/istiometrics":    {"FuzzDecode"},
	"filters/http/dlp":                       {"FuzzDo", "FuzzEncoded", "FuzzGRPC"},
	"filters/http/grpcstats":                 {"FuzzParser"},
	"filters/http/grpcweb":                   {"FuzzDecode"},
	"filters/http/jwtauthn":                  {"FuzzDecode", "FuzzParse", "FuzzAMutatedTokenIsNeverAccepted"},
	"filters/http/rego":                      {"FuzzDo", "FuzzGRPCBody", "FuzzReadBundle"},
	"filters/listener/proxyprotocol":         {"FuzzParse"},
	"filters/listener/httpinspector":         {"FuzzInspect"},
	"filters/listener/tlsinspector":          {"FuzzParse"},
	"filters/listener/originaldst":           {"FuzzAuthority"},
	"filters/network/snidynamicforwardproxy": {"FuzzDecode"},
	"ztunnel":                                {"FuzzParse", "FuzzSplitAuthority", "FuzzFronts"},
	"conformance/behaviour":                  {"FuzzParse"},
	"bench/h2wire":                           {"FuzzReadFrame"},
}

// fuzzTargets finds every func FuzzXxx(*testing.F) below the root, with its doc
// comment as one line.
func fuzzTargets(t *testing.T) map[[2]string]string {
	t.Helper()
	root := filepath.Join("..", "..")
	found := map[[2]string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(p, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, filepath.Dir(p))
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Fuzz") && len(fn.Type.Params.List) == 1 {
				found[[2]string{filepath.ToSlash(rel), fn.Name.Name}] = strings.Join(strings.Fields(fn.Doc.Text()), " ")
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestEveryFuzzTargetIsInTheLedger holds docs/fuzzing.md to the source: it lists
// all targets with the oracles that their comments name, and each has been run.
func TestEveryFuzzTargetIsInTheLedger(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "fuzzing.md"))
	if err != nil {
		t.Fatal(err)
	}
	listed := map[[2]string][]string{}
	for line := range strings.Lines(string(doc)) {
		cells := strings.Split(strings.Trim(line, "|\n"), " | ")
		if len(cells) == 8 && strings.HasPrefix(line, "| `") {
			listed[[2]string{strings.Trim(cells[0], " `"), strings.Trim(cells[1], " `")}] = cells
		}
	}
	found := fuzzTargets(t)
	if len(found) < 70 {
		t.Fatalf("only %d targets are found", len(found))
	}
	for k, oracle := range found {
		cells := listed[k]
		if cells == nil {
			t.Errorf("%s %s is not in docs/fuzzing.md: make fuzz FUZZ='%s.%s$'", k[0], k[1], k[0], k[1])
			continue
		}
		want := strings.TrimLeft(strings.TrimPrefix(oracle, k[1]), ": ")
		if want == "" || strings.TrimSpace(cells[2]) != strings.ReplaceAll(want, "|", "&#124;") {
			t.Errorf("%s %s: docs/fuzzing.md says %q, the comment %q", k[0], k[1], cells[2], want)
		}
		if n, err := strconv.ParseInt(strings.ReplaceAll(strings.TrimSpace(cells[5]), ",", ""), 10, 64); err != nil || n == 0 {
			t.Errorf("%s %s has never been run: make fuzz FUZZ='%s.%s$'", k[0], k[1], k[0], k[1])
		}
	}
	for k := range listed {
		if _, ok := found[k]; !ok {
			t.Errorf("docs/fuzzing.md lists %s %s, which is not there", k[0], k[1])
		}
	}
}

// TestGoalsAreMadeOfTargetsThatCanBeSwept: a target of the table of goals is
// there, and its function is wrapped for sweeps.
func TestGoalsAreMadeOfTargetsThatCanBeSwept(t *testing.T) {
	root := filepath.Join("..", "..")
	doc, err := os.ReadFile(filepath.Join(root, "docs", "fuzzing.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(doc), "<!-- goals: written by make fuzz -->\n")
	table, _, _ = strings.Cut(table, "<!-- end of goals -->\n")
	goals := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(line, "|\n"), " | ")
		if len(cells) != 7 || !strings.HasPrefix(line, "| N") {
			continue
		}
		goals++
		for name := range strings.FieldsSeq(strings.ReplaceAll(cells[2], "`", "")) {
			at := strings.LastIndexByte(name, '.')
			if !sweeps(t, filepath.Join(root, name[:at]), name[at+1:]) {
				t.Errorf("%s: no such target, or it calls f.Fuzz without sweep.Around", name)
			}
		}
	}
	if goals < 23 {
		t.Errorf("docs/fuzzing.md has %d goals", goals)
	}
}

// sweeps reports whether the target in dir calls sweep.Around.
func sweeps(t *testing.T, dir, target string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range files {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		_, body, ok := strings.Cut(string(b), "\nfunc "+target+"(f *testing.F) {\n")
		if body, _, _ = strings.Cut(body, "\n}\n"); ok {
			return strings.Contains(body, "f.Fuzz(sweep.Around(f, ")
		}
	}
	return false
}

func TestEveryParserIsFuzzed(t *testing.T) {
	found := fuzzTargets(t)
	for pkg, names := range parsers {
		for _, name := range names {
			if _, ok := found[[2]string{pkg, name}]; !ok {
				t.Errorf("%s: %s is gone", pkg, name)
			}
		}
	}
}
