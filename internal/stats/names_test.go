package stats_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var metricName = regexp.MustCompile(`^[a-z][a-z0-9_]*[a-z0-9]$`)

// TestMetricNamesInTheSource holds every name that is written in the code to
// Prometheus's conventions. Envoy's and Istio's names are what they are; our
// own begin with "fairlead_".
func TestMetricNamesInTheSource(t *testing.T) {
	root := filepath.Join("..", "..")
	seen := 0
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			kind, name, ok := metricCall(n)
			if ok {
				seen++
				checkName(t, p, kind, name)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 20 {
		t.Errorf("found %d names only: did the handles' methods get other names?", seen)
	}
}

// metricCall recognizes x.Counter("name", …) and its relatives.
func metricCall(n ast.Node) (kind, name string, ok bool) {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) == 0 {
		return "", "", false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return "", "", false
	}
	lit, ok := call.Args[0].(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", "", false
	}
	switch kind = strings.TrimSuffix(strings.TrimSuffix(sel.Sel.Name, "Family"), "Func"); kind {
	case "Counter", "Gauge", "Histogram":
		name, err := strconv.Unquote(lit.Value)
		return kind, name, err == nil
	}
	return "", "", false
}

func checkName(t *testing.T, file, kind, name string) {
	t.Helper()
	if !metricName.MatchString(name) {
		t.Errorf("%s: %q: want lower case words joined by _", file, name)
	}
	if !strings.HasPrefix(name, "fairlead_") {
		return
	}
	total := strings.HasSuffix(name, "_total")
	unit := strings.HasSuffix(name, "_seconds") || strings.HasSuffix(name, "_bytes") || strings.HasSuffix(name, "_ratio")
	switch {
	case kind == "Counter" && !total:
		t.Errorf("%s: counter %s: want the suffix _total", file, name)
	case kind != "Counter" && total:
		t.Errorf("%s: %s is no counter: _total is misleading", file, name)
	case kind == "Histogram" && !unit:
		t.Errorf("%s: histogram %s: want a base unit at the end, _seconds or _bytes", file, name)
	}
}
