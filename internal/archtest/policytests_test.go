package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	policyRow  = regexp.MustCompile(`^\| ([A-Z])(\d+) \|`)
	policyTest = regexp.MustCompile("`([a-z0-9/]+) ((?:Test|Fuzz)\\w+)((?: \"[^\"]+\")*)`")
	policyCase = regexp.MustCompile(`"([^"]+)"`)
)

// TestEveryRowOfThePolicyTablesHasItsTests holds docs/policy-tests.md to the
// code: no row is missing, and the tests and cases that it names are there.
func TestEveryRowOfThePolicyTablesHasItsTests(t *testing.T) {
	rows, named, cases := readRows(t, "policy-tests.md")
	if rows["F"] != 22 || rows["G"] != 28 || rows["H"] != 10 {
		t.Errorf("%v rows, want 22 of F, 28 of G, 10 of H", rows)
	}
	if named < 120 || cases < 100 {
		t.Errorf("%d tests and %d cases are named, want at least 120 and 100", named, cases)
	}
}

func TestEveryRowOfTheEngineTablesHasItsTests(t *testing.T) {
	rows, named, _ := readRows(t, "engine-tests.md")
	if rows["A"] != 14 || rows["B"] != 12 || rows["C"] != 14 || rows["D"] != 18 || rows["E"] != 22 || rows["I"] != 20 || rows["J"] != 18 || rows["K"] != 5 {
		t.Errorf("%v rows, want 14 of A, 12 of B, 14 of C, 18 of D, 22 of E, 20 of I, 18 of J, 5 of K", rows)
	}
	if named < 270 {
		t.Errorf("%d tests are named, want at least 270", named)
	}
}

// readRows checks the tables of a document, and returns how many rows there are
// of each letter, and how many tests and cases they name.
func readRows(t *testing.T, name string) (rows map[string]int, named, cases int) {
	t.Helper()
	root := filepath.Join("..", "..")
	doc, err := os.ReadFile(filepath.Join(root, "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	rows = map[string]int{}
	packages := map[string]*testPackage{}
	for line := range strings.Lines(string(doc)) {
		m := policyRow.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		row := m[1] + m[2]
		if rows[m[1]]++; m[2] != fmt.Sprint(rows[m[1]]) {
			t.Errorf("row %s where %s%d should be", row, m[1], rows[m[1]])
		}
		held := line[strings.LastIndex(strings.TrimRight(line, " |\n"), "| "):]
		tests := policyTest.FindAllStringSubmatch(held, -1)
		if len(tests) == 0 || strings.Count(held, "`") != 2*len(tests) {
			t.Errorf("row %s: %d tests in %s", row, len(tests), held)
		}
		for _, x := range tests {
			named++
			p := packages[x[1]]
			if p == nil {
				p = readTests(t, filepath.Join(root, filepath.FromSlash(x[1])))
				packages[x[1]] = p
			}
			if !p.funcs[x[2]] {
				t.Errorf("row %s: %s has no %s", row, x[1], x[2])
			}
			for _, c := range policyCase.FindAllStringSubmatch(x[3], -1) {
				cases++
				if !strings.Contains(p.text, c[1]) {
					t.Errorf("row %s: no case %q in %s", row, c[1], x[1])
				}
			}
		}
	}
	return rows, named, cases
}

// testPackage is what the tests of a package are called, and their text.
type testPackage struct {
	funcs map[string]bool
	text  string
}

func readTests(t *testing.T, dir string) *testPackage {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	p := &testPackage{funcs: map[string]bool{}}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, b, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		p.text += string(b)
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				p.funcs[fn.Name.Name] = true
			}
		}
	}
	return p
}
