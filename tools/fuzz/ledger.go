package main

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// row is a target's line of the ledger.
type row struct {
	target
	// committed are inputs in testdata/fuzz, corpus all that the last run knew:
	// those, the seeds in the source, and what was found.
	committed, corpus int
	// executions are those of Go's fuzzing engine, swept those of mutants
	// without guidance.
	executions, swept int64
	// last is the day of the last run, "" if there was none.
	last string
}

// ledger is docs/fuzzing.md: the table between its two markers, and what
// stands around it.
type ledger struct {
	before, after string
	rows          []row
}

const (
	beginMark = "<!-- ledger: written by make fuzz -->\n"
	endMark   = "<!-- end of ledger -->\n"
	header    = "| package | target | oracle | committed inputs | corpus | executions | swept | last run |\n|---|---|---|---|---|---|---|---|\n"
)

func readLedger(text string) (*ledger, error) {
	before, rest, ok1 := strings.Cut(text, beginMark)
	table, after, ok2 := strings.Cut(rest, endMark)
	if !ok1 || !ok2 {
		return nil, errors.New("the markers of the ledger are missing")
	}
	l := &ledger{before: before, after: after}
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(line, "|\n"), " | ")
		if len(cells) != 8 || !strings.HasPrefix(strings.TrimSpace(cells[0]), "`") {
			continue
		}
		for i := range cells {
			cells[i] = strings.Trim(cells[i], " `")
		}
		var r row
		var err error
		r.Package, r.Name, r.Oracle, r.last = cells[0], cells[1], cells[2], cells[7]
		if r.corpus, err = strconv.Atoi(cells[4]); err != nil {
			return nil, fmt.Errorf("%s %s: corpus: %w", r.Package, r.Name, err)
		}
		if r.executions, err = strconv.ParseInt(strings.ReplaceAll(cells[5], ",", ""), 10, 64); err != nil {
			return nil, fmt.Errorf("%s %s: executions: %w", r.Package, r.Name, err)
		}
		if r.swept, err = strconv.ParseInt(strings.ReplaceAll(cells[6], ",", ""), 10, 64); err != nil {
			return nil, fmt.Errorf("%s %s: swept: %w", r.Package, r.Name, err)
		}
		l.rows = append(l.rows, r)
	}
	return l, nil
}

// adopt makes targets the ledger's rows; what was counted for those that are
// known is kept.
func (l *ledger) adopt(targets []target) {
	old := l.rows
	l.rows = nil
	for _, t := range targets {
		r := row{target: t}
		for _, o := range old {
			if o.Package == t.Package && o.Name == t.Name {
				r.committed, r.corpus, r.executions, r.swept, r.last = o.committed, o.corpus, o.executions, o.swept, o.last
			}
		}
		l.rows = append(l.rows, r)
	}
}

func (l *ledger) String() string {
	var b strings.Builder
	b.WriteString(withGoals(l.before, l.rows) + beginMark)
	var guided, swept int64
	for _, r := range l.rows {
		guided += r.executions
		swept += r.swept
	}
	fmt.Fprintf(&b, "%d targets, %s executions with guidance, %s swept.\n\n%s", len(l.rows), thousands(guided), thousands(swept), header)
	for _, r := range l.rows {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %d | %d | %s | %s | %s |\n", r.Package, r.Name, strings.ReplaceAll(r.Oracle, "|", "&#124;"),
			r.committed, r.corpus, thousands(r.executions), thousands(r.swept), r.last)
	}
	b.WriteString(endMark + l.after)
	return b.String()
}

func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// result is what a run of a target said.
type result struct {
	execs  int64
	corpus int
}

var (
	execsRE  = regexp.MustCompile(`execs: (\d+) `)
	corpusRE = regexp.MustCompile(`\(total: (\d+)\)`)
)

func parseOutput(out string) (r result) {
	for line := range strings.Lines(out) {
		if m := execsRE.FindStringSubmatch(line); m != nil {
			r.execs, _ = strconv.ParseInt(m[1], 10, 64)
		}
		if m := corpusRE.FindStringSubmatch(line); m != nil {
			r.corpus, _ = strconv.Atoi(m[1])
		}
	}
	return r
}
