package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// sweepCount is the value of -sweep: how many mutants of each target.
type sweepCount struct {
	n      int64
	toGoal bool // as many as its goal lacks
}

func (c *sweepCount) String() string { return "" }

// Set implements flag.Value.
func (c *sweepCount) Set(s string) (err error) {
	if s == "goal" {
		c.toGoal = true
		return nil
	}
	c.n, err = strconv.ParseInt(s, 10, 64)
	return err
}

// of is how many mutants of r are to be executed.
func (c *sweepCount) of(r *row, rows []row) int64 {
	g := goalOf(r.target)
	switch {
	case g == nil:
		return 0 // it has no sweep
	case c.toGoal:
		return g.left(rows)
	}
	return c.n
}

var (
	sweptRE = regexp.MustCompile(`^sweep: \w+: executed (\d+), .* next (\d+),`)
	seedRE  = regexp.MustCompile(`^sweep: \w+: seed (\d+), corpus of (\d+),`)
)

// sweepResult is what a sweep said.
type sweepResult struct {
	executed   int64
	corpus     int
	seed, next uint64
	found      bool // a failing input was written
}

// read takes one line of a sweep's output.
func (r *sweepResult) read(line string) {
	if m := seedRE.FindStringSubmatch(line); m != nil {
		r.seed, _ = strconv.ParseUint(m[1], 10, 64)
		r.corpus, _ = strconv.Atoi(m[2])
	}
	if m := sweptRE.FindStringSubmatch(line); m != nil {
		r.executed, _ = strconv.ParseInt(m[1], 10, 64)
		r.next, _ = strconv.ParseUint(m[2], 10, 64)
	}
	r.found = r.found || strings.Contains(line, "written to testdata")
}

// sweep executes n mutants of t; see package internal/sweep. An input that fails
// is left in testdata/fuzz.
func sweep(ctx context.Context, root string, t target, n int64) (sweepResult, error) {
	dir, err := os.MkdirTemp("", "sweep")
	if err != nil {
		return sweepResult{}, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // temporary
	// A copy, because what the engine adds meanwhile would change the mutants.
	src, err := foundDir(root, t)
	if err != nil {
		return sweepResult{}, err
	}
	corpus := filepath.Join(dir, "corpus")
	if err := os.CopyFS(corpus, os.DirFS(src)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return sweepResult{}, err
	}
	args := []string{"test", "-c", "-o", filepath.Join(dir, "test")}
	if g := goalOf(t); g != nil && g.race {
		args = append(args, "-race")
	}
	build := exec.CommandContext(ctx, "go", append(args, "./"+t.dirInModule())...)
	build.Dir = filepath.Join(root, t.Module)
	if out, err := build.CombinedOutput(); err != nil {
		return sweepResult{}, fmt.Errorf("%s: %w\n%s", t.Package, err, out)
	}
	env := []string{"FUZZ_SWEEP=" + strconv.FormatInt(n, 10), "FUZZ_SWEEP_CORPUS=" + corpus}
	res, err := execute(ctx, filepath.Join(root, t.Package), filepath.Join(dir, "test"), t.Name, env)
	if err == nil || res.found || ctx.Err() != nil {
		return res, err
	}
	// It ended the process: the same mutants again, each written before it is
	// executed.
	fmt.Printf("%s %s ended its process: looking for the input\n", t.Package, t.Name)
	env = append(env, fmt.Sprintf("FUZZ_SWEEP_SEED=%d", res.seed), fmt.Sprintf("FUZZ_SWEEP_FROM=%d", res.next), "FUZZ_SWEEP_TRACE=1")
	if _, again := execute(ctx, filepath.Join(root, t.Package), filepath.Join(dir, "test"), t.Name, env); again == nil {
		err = fmt.Errorf("%w, but not the second time", err)
	}
	return res, err
}

// execute runs a test binary at low priority and shows what it prints.
func execute(ctx context.Context, dir, bin, name string, env []string) (res sweepResult, err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return res, err
	}
	cmd := exec.CommandContext(ctx, "nice", "-n", "15", bin, "-test.run=^"+name+"$", "-test.timeout=0")
	cmd.Dir = dir
	// Collections are rare with a bound instead of a rate: there is little to keep.
	cmd.Env = append(append(os.Environ(), "GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=256MiB"), env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		return res, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return res, err
	}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		res.read(line)
		fmt.Print(line)
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return res, err
		}
	}
	return res, cmd.Wait()
}

// foundDir is where the go command keeps what fuzzing t has found.
func foundDir(root string, t target) (string, error) {
	cache, err := exec.Command("go", "env", "GOCACHE").Output()
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "list", "./"+t.dirInModule())
	cmd.Dir = filepath.Join(root, t.Module)
	path, err := cmd.Output()
	if err != nil {
		return "", err
	}
	return filepath.Join(strings.TrimSpace(string(cache)), "fuzz", strings.TrimSpace(string(path)), t.Name), nil
}
