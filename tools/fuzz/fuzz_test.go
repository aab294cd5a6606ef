package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestTargetsAreFoundWithTheirOracles(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module a\n")
	write("x/go.mod", "module b\n")
	write("p/q/a_test.go", "package q\n\n// FuzzOne: what is read\n// is written.\nfunc FuzzOne(f *testing.F) {}\n\nfunc (x) FuzzNot(f *testing.F) {}\nfunc Fuzzy() {}\n")
	write("x/y/b_test.go", "package y\n\n// FuzzTwo checks.\nfunc FuzzTwo(f *testing.F) {}\n")
	write("p/testdata/c_test.go", "package broken (")
	got, err := find(root)
	if err != nil {
		t.Fatal(err)
	}
	want := []target{
		{Package: "p/q", Name: "FuzzOne", Module: ".", Oracle: "what is read is written."},
		{Package: "x/y", Name: "FuzzTwo", Module: "x", Oracle: "checks."},
	}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %+v", got)
	}
	if a, b := got[0].dirInModule(), got[1].dirInModule(); a != "p/q" || b != "y" {
		t.Errorf("directories %q, %q", a, b)
	}
	write("p/d_test.go", "package p\n\nfunc FuzzThree(f *testing.F) {}\n")
	if _, err := find(root); err == nil {
		t.Error("a target without an oracle is accepted")
	}
}

func TestTheLedgerKeepsWhatWasCounted(t *testing.T) {
	l := &ledger{before: "# X\n", after: "end\n", rows: []row{
		{target: target{Package: "a", Name: "FuzzA", Oracle: "x | y"}, committed: 2, corpus: 30, executions: 1234567, last: "2026-01-02"},
		{target: target{Package: "gone", Name: "FuzzB"}, executions: 5},
		{target: target{Package: "n", Name: "FuzzC", Oracle: "o"}},
	}}
	text := l.String()
	again, err := readLedger(text)
	if err != nil {
		t.Fatal(err)
	}
	again.adopt([]target{{Package: "a", Name: "FuzzA", Oracle: "new"}, {Package: "b", Name: "FuzzD", Oracle: "d"}})
	if len(again.rows) != 2 || again.rows[0].executions != 1234567 || again.rows[0].last != "2026-01-02" || again.rows[0].Oracle != "new" || again.rows[1].executions != 0 {
		t.Errorf("%+v", again.rows)
	}
	if again.before != l.before || again.after != l.after {
		t.Error("the text around the table changed")
	}
	if _, err := readLedger("# no table\n"); err == nil {
		t.Error("a document without a ledger is accepted")
	}
}

func TestExecutionsAreReadFromTheOutput(t *testing.T) {
	const out = "fuzz: elapsed: 0s, gathering baseline coverage: 0/9 completed\nfuzz: elapsed: 3s, execs: 57411 (19137/sec), new interesting: 3 (total: 12)\nfuzz: elapsed: 4s, execs: 60000 (1/sec), new interesting: 4 (total: 13)\nPASS\n"
	if r := parseOutput(out); r != (result{60000, 13}) {
		t.Errorf("%+v", r)
	}
}
