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
	if rows["F"] != 23 || rows["G"] != 29 || rows["H"] != 10 {
		t.Errorf("%v rows, want 23 of F, 29 of G, 10 of H", rows)
	}
	if named < 120 || cases < 100 {
		t.Errorf("%d tests and %d cases are named, want at least 120 and 100", named, cases)
	}
}

func TestEveryRowOfTheEngineTablesHasItsTests(t *testing.T) {
	rows, named, _ := readRows(t, "engine-tests.md")
	if rows["A"] != 14 || rows["B"] != 12 || rows["C"] != 14 || rows["D"] != 18 || rows["E"] != 22 || rows["I"] != 21 || rows["J"] != 18 || rows["K"] != 6 {
		t.Errorf("%v rows, want 14 of A, 12 of B, 14 of C, 18 of D, 22 of E, 21 of I, 18 of J, 6 of K", rows)
	}
	if named < 270 {
		t.Errorf("%d tests are named, want at least 270", named)
	}
}

var (
	cveRow = regexp.MustCompile(`^\| ((?:CVE|GHSA|GO|ISTIO)-[^|]+) \|`)
	cveID  = regexp.MustCompile(`^(?:CVE-20\d\d-\d+|GHSA(?:-[a-z0-9]{4}){3}|GO-20\d\d-\d+|ISTIO-SECURITY-20\d\d-\d{3})$`)
)

// TestEveryListedVulnerabilityHasItsTests holds docs/cve-tests.md to the code.
func TestEveryListedVulnerabilityHasItsTests(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "cve-tests.md"))
	if err != nil {
		t.Fatal(err)
	}
	h := newHolder(filepath.Join("..", ".."))
	ids := map[string]bool{}
	for line := range strings.Lines(string(doc)) {
		m := cveRow.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		for id := range strings.SplitSeq(m[1], ", ") {
			if !cveID.MatchString(id) || ids[id] {
				t.Errorf("%q is no number of a vulnerability, or is there twice", id)
			}
			ids[id] = true
		}
		h.check(t, m[1], line)
	}
	if len(ids) < 110 || h.named < 90 {
		t.Errorf("%d vulnerabilities and %d tests, want at least 110 and 90", len(ids), h.named)
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
	h := newHolder(root)
	for line := range strings.Lines(string(doc)) {
		m := policyRow.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		row := m[1] + m[2]
		if rows[m[1]]++; m[2] != fmt.Sprint(rows[m[1]]) {
			t.Errorf("row %s where %s%d should be", row, m[1], rows[m[1]])
		}
		h.check(t, row, line)
	}
	return rows, h.named, h.cases
}

// holder checks that what rows name as what holds them is there.
type holder struct {
	root         string
	packages     map[string]*testPackage
	named, cases int
}

func newHolder(root string) *holder { return &holder{root: root, packages: map[string]*testPackage{}} }

// check reads the last column of a row.
func (h *holder) check(t *testing.T, row, line string) {
	t.Helper()
	held := line[strings.LastIndex(strings.TrimRight(line, " |\n"), "| "):]
	tests := policyTest.FindAllStringSubmatch(held, -1)
	if len(tests) == 0 || strings.Count(held, "`") != 2*len(tests) {
		t.Errorf("row %s: %d tests in %s", row, len(tests), held)
	}
	for _, x := range tests {
		h.named++
		p := h.packages[x[1]]
		if p == nil {
			p = readTests(t, filepath.Join(h.root, filepath.FromSlash(x[1])))
			h.packages[x[1]] = p
		}
		if !p.funcs[x[2]] {
			t.Errorf("row %s: %s has no %s", row, x[1], x[2])
		}
		for _, c := range policyCase.FindAllStringSubmatch(x[3], -1) {
			h.cases++
			if !strings.Contains(p.text, c[1]) {
				t.Errorf("row %s: no case %q in %s", row, c[1], x[1])
			}
		}
	}
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
