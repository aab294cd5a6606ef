package main

import (
	"os"
	"path/filepath"
	"strings"
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
		{target: target{Package: "a", Name: "FuzzA", Oracle: "x | y"}, committed: 2, corpus: 30, executions: 1234567, swept: 89012345, last: "2026-01-02"},
		{target: target{Package: "gone", Name: "FuzzB"}, executions: 5},
		{target: target{Package: "n", Name: "FuzzC", Oracle: "o"}},
	}}
	text := l.String()
	again, err := readLedger(text)
	if err != nil {
		t.Fatal(err)
	}
	again.adopt([]target{{Package: "a", Name: "FuzzA", Oracle: "new"}, {Package: "b", Name: "FuzzD", Oracle: "d"}})
	if len(again.rows) != 2 || again.rows[0].executions != 1234567 || again.rows[0].swept != 89012345 || again.rows[0].last != "2026-01-02" || again.rows[0].Oracle != "new" || again.rows[1].executions != 0 {
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

func TestGoalsAreWrittenIntoTheTextBeforeTheLedger(t *testing.T) {
	of := func(name string, executions, swept int64) row {
		i := strings.LastIndexByte(name, '.')
		return row{target: target{Package: name[:i], Name: name[i+1:]}, executions: executions, swept: swept}
	}
	rows := []row{
		of("proxy/transport/h1.FuzzRequestHead", 1_000_000, 19_000_000), of("proxy/hcm.FuzzXFCC", 1, 2), of("filters/internal/peers.FuzzBaggage", 10, 20), of("a.FuzzA", 9, 9),
	}
	l := &ledger{before: "# X\n" + goalsBegin + "old\n" + goalsEnd + "more\n", rows: rows}
	text := l.String()
	for _, want := range []string{
		"# X\n" + goalsBegin + "1 of 23 goals are reached, with 20,000,033 of 182,500,000 executions.\n", goalsEnd + "more\n" + beginMark,
		"| `proxy/transport/h1.FuzzRequestHead` | 20,000,000 | 1,000,000 | 19,000,000 | 0 |\n", " | 5,000,000 | 11 | 22 | 4,999,967 |\n",
		"4 targets, 1,000,020 executions with guidance, 19,000,031 swept.",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if again, err := readLedger(text); err != nil || again.String() != text {
		t.Errorf("%v: read and written it is\n%s", err, again)
	}
	var n sweepCount
	if err := n.Set("goal"); err != nil || n.of(&rows[0], rows) != 0 || n.of(&rows[1], rows) != 4_999_967 || n.of(&rows[3], rows) != 0 {
		t.Errorf("%v %+v", err, n)
	}
	var some sweepCount
	if err := some.Set("70"); err != nil || some.of(&rows[0], rows) != 70 || some.of(&rows[3], rows) != 0 || some.Set("x") == nil {
		t.Errorf("%v %+v", err, some)
	}
}

func TestGoalsNameTargetsOnce(t *testing.T) {
	targets, err := find(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, t := range targets {
		known[t.Package+"."+t.Name] = true
	}
	for _, g := range goals {
		for _, name := range g.targets {
			if !known[name] {
				t.Errorf("%s: %s is no target, or belongs to two goals", g.id, name)
			}
			known[name] = false
		}
	}
}

func TestASweepsOutputIsRead(t *testing.T) {
	var r sweepResult
	for line := range strings.Lines(`sweep: FuzzX: seed 18446744073709551615, corpus of 49, 8 accepted, hash 82786cf10e5d2a
sweep: FuzzX: executed 712960, skipped 3, accepted 240179, next 712963, 141950/s
sweep: FuzzX: executed 1541888, skipped 7, accepted 519554, next 1541895, 153649/s
--- FAIL: FuzzX (61.22s)
`) {
		r.read(line)
	}
	if r != (sweepResult{executed: 1541888, corpus: 49, seed: 1<<64 - 1, next: 1541895}) {
		t.Errorf("%+v", r)
	}
	if r.read("        sweep.go:273: mutant 9 of seed 2 fails: written to testdata/fuzz/FuzzX/2b16\n"); !r.found {
		t.Error("what was found is not seen")
	}
}
