// Command fuzz runs every fuzz target of the repository, one after the other,
// and keeps the ledger in docs/fuzzing.md: what each target holds its parser
// to, how many inputs it knows, and how often it has been executed.
//
// A target is any func FuzzXxx(f *testing.F) in a _test.go file; its doc
// comment is its oracle. Targets are found in the source, so none is forgotten.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

func main() {
	root := flag.String("root", "..", "`directory` of the repository")
	each := flag.Duration("time", 0, "`time` to fuzz each target; 0 writes the table only")
	only := flag.String("only", "", "fuzz the targets only whose package and name match this `regexp`")
	keep := flag.Int("keep", 6, "keep so `many` found inputs of a target in its testdata/fuzz")
	var mutants sweepCount
	flag.Var(&mutants, "sweep", "execute so `many` mutants of each target that has a goal, or goal: what its goal lacks")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *root, *each, mutants, *only, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root string, each time.Duration, mutants sweepCount, only string, keep int) error {
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	targets, err := find(root)
	if err != nil {
		return err
	}
	doc := filepath.Join(root, "docs", "fuzzing.md")
	text, err := os.ReadFile(doc)
	if err != nil {
		return err
	}
	led, err := readLedger(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", doc, err)
	}
	led.adopt(targets)
	for i := range led.rows {
		led.rows[i].committed = committed(root, led.rows[i].target)
	}
	save := func() error { return os.WriteFile(doc, []byte(led.String()), 0o644) }
	if err := save(); err != nil {
		return err
	}
	var failed []string
	for i := range led.rows {
		r := &led.rows[i]
		if !match.MatchString(r.Package+"."+r.Name) || ctx.Err() != nil {
			continue
		}
		if n := mutants.of(r, led.rows); n > 0 {
			if err := r.sweep(ctx, root, n); err != nil && ctx.Err() == nil {
				failed = append(failed, r.Package+"."+r.Name)
				fmt.Println(err)
			}
		}
		if each > 0 {
			if err := r.fuzz(ctx, root, each); err != nil {
				failed = append(failed, r.Package+"."+r.Name)
			}
			if err := keepCorpus(root, r.target, keep); err != nil {
				return err
			}
		}
		r.committed = committed(root, r.target)
		if err := save(); err != nil {
			return err
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("failed: %s", strings.Join(failed, ", "))
	}
	return ctx.Err()
}

// sweep executes n mutants of r and counts them.
func (r *row) sweep(ctx context.Context, root string, n int64) error {
	res, err := sweep(ctx, root, r.target, n)
	if res.executed > 0 {
		r.swept += res.executed
		r.last = time.Now().UTC().Format(time.DateOnly)
	}
	return err
}

// fuzz has the engine fuzz r for a time, and counts its executions.
func (r *row) fuzz(ctx context.Context, root string, each time.Duration) error {
	out, err := fuzz(ctx, root, r.target, each)
	res := parseOutput(out)
	fmt.Printf("%s %s: %d executions, corpus of %d\n", r.Package, r.Name, res.execs, res.corpus)
	if res.execs > 0 {
		r.executions += res.execs
		r.corpus = res.corpus
		r.last = time.Now().UTC().Format(time.DateOnly)
	}
	if err == nil || ctx.Err() != nil || outOfTime(out) {
		return nil
	}
	fmt.Println(out)
	return err
}

// outOfTime recognises a run whose time was over while an input was being
// minimized, which the go command calls a failure.
func outOfTime(out string) bool {
	return strings.Contains(out, "context deadline exceeded") && !strings.Contains(out, "Failing input written")
}

// fuzz runs one target and returns what it printed.
func fuzz(ctx context.Context, root string, t target, each time.Duration) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run=^$", "-fuzz=^"+t.Name+"$", "-fuzztime="+each.String(),
		"-fuzzminimizetime=2s", "-parallel=1", "./"+t.dirInModule())
	cmd.Dir = filepath.Join(root, t.Module)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// keepCorpus copies some of the inputs that were found beside the target, up to
// keep in all: small ones, spread over the time of their discovery, because
// late ones got furthest.
func keepCorpus(root string, t target, keep int) error {
	const largest = 1 << 10
	dst := filepath.Join(root, t.Package, "testdata", "fuzz", t.Name)
	room := keep - committed(root, t)
	if room <= 0 {
		return nil
	}
	src, err := foundDir(root, t)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(src)
	if os.IsNotExist(err) {
		return nil
	} else if err != nil {
		return err
	}
	type input struct {
		name string
		at   time.Time
	}
	var found []input
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(dst, e.Name())); err != nil && info.Size() <= largest {
			found = append(found, input{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(found, func(a, b input) int {
		if c := a.at.Compare(b.at); c != 0 {
			return c
		}
		return strings.Compare(a.name, b.name)
	})
	for i := range min(room, len(found)) {
		f := found[len(found)-1-i*len(found)/min(room, len(found))]
		b, err := os.ReadFile(filepath.Join(src, f.name))
		if err != nil {
			return err
		}
		if err := os.MkdirAll(dst, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dst, f.name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// committed counts the inputs that are kept beside the target.
func committed(root string, t target) int {
	entries, _ := os.ReadDir(filepath.Join(root, t.Package, "testdata", "fuzz", t.Name))
	return len(entries)
}
