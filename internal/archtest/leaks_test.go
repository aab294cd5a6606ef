package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// unwatched packages start goroutines without a check for leaks.
var unwatched = map[string]string{
	"cmd/fairlead": "its timer gives memory back once, in a process that goes on",
	"filters":      "has no tests of its own; what it starts it waits for",
}

// starters are what starts a goroutine besides the go statement.
var starters = []string{"Go", "AfterFunc"}

// TestPackagesThatStartGoroutinesLookForLeaks asks for goleak in TestMain of
// every package whose code or tests have a go statement or a WaitGroup's Go.
func TestPackagesThatStartGoroutinesLookForLeaks(t *testing.T) {
	root := filepath.Join("..", "..")
	starts, watched := map[string]bool{}, map[string]bool{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, p)
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != root && (strings.HasPrefix(d.Name(), ".") || slices.Contains([]string{"testdata", "bin", "bench", "conformance", "tools"}, rel)):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(p, ".go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(rel))
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				starts[dir] = true
			case *ast.CallExpr:
				sel, ok := n.Fun.(*ast.SelectorExpr)
				if !ok {
					break
				}
				x, _ := sel.X.(*ast.Ident)
				if slices.Contains(starters, sel.Sel.Name) {
					starts[dir] = true
				}
				watched[dir] = watched[dir] || strings.HasSuffix(p, "_test.go") && x != nil && x.Name == "goleak" && sel.Sel.Name == "VerifyTestMain"
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir := range starts {
		why, known := unwatched[dir]
		switch {
		case watched[dir] && known:
			t.Errorf("%s looks for leaks: take it out of the list", dir)
		case !watched[dir] && !known:
			t.Errorf("%s starts goroutines: its TestMain must call goleak.VerifyTestMain", dir)
		case !watched[dir] && why == "":
			t.Errorf("%s: say why it need not", dir)
		}
	}
	if len(starts) < 20 {
		t.Errorf("only %d packages start goroutines", len(starts))
	}
}
