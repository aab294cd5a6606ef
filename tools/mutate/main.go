// Command mutate tries whether the tests would notice: each of its bugs replaces a
// line or two of the source, in an overlay, and the tests of one package must then
// fail.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// bug is a replacement in a file, and the package whose tests must see it.
type bug struct {
	name     string
	file     string // from the root of the repository
	old, new string // old is there once
	pkg      string
	run      string // of the tests, "" for all
}

// mayMiss is how many of all bugs may stay unseen.
const mayMiss = 1

func main() {
	root := flag.String("root", "..", "`directory` of the repository")
	only := flag.String("only", "", "try the bugs only whose name or package matches this `regexp`")
	jobs := flag.Int("jobs", 2, "try so `many` bugs at once")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *root, *only, *jobs); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root, only string, jobs int) error {
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	if root, err = filepath.Abs(root); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "mutate")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var broken []error
	tried, caught := 0, 0
	slots := make(chan struct{}, max(jobs, 1))
	for i := range bugs {
		b := &bugs[i]
		if !match.MatchString(b.name) && !match.MatchString(b.pkg) {
			continue
		}
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		tried++
		wg.Go(func() {
			defer func() { <-slots }()
			began := time.Now()
			seen, by, err := b.try(ctx, root, filepath.Join(tmp, fmt.Sprint(i)))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				broken = append(broken, fmt.Errorf("%s: %w", b.name, err))
				fmt.Printf("broken  %s: %v\n", b.name, err)
			case seen:
				caught++
				fmt.Printf("caught  %s, by %s in %s\n", b.name, by, time.Since(began).Round(time.Second))
			default:
				fmt.Printf("MISSED  %s, by all tests of %s\n", b.name, b.pkg)
			}
		})
	}
	wg.Wait()
	fmt.Printf("%d of %d caught\n", caught, tried)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case len(broken) > 0:
		return errors.Join(broken...)
	case tried == 0:
		return errors.New("there is no such bug")
	case caught < tried-mayMiss:
		return fmt.Errorf("%d bugs are not caught, at most %d may", tried-caught, mayMiss)
	}
	return nil
}

// replace returns the file with the bug in it.
func (b *bug) replace(root string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(b.file)))
	if err != nil {
		return nil, err
	}
	if n := strings.Count(string(text), b.old); n != 1 {
		return nil, fmt.Errorf("%s has %d times %q, want once", b.file, n, b.old)
	}
	return []byte(strings.Replace(string(text), b.old, b.new, 1)), nil
}

var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)

// try runs the tests with the bug. seen says that they failed, by names a test.
func (b *bug) try(ctx context.Context, root, dir string) (seen bool, by string, err error) {
	text, err := b.replace(root)
	if err != nil {
		return false, "", err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return false, "", err
	}
	file, overlay := filepath.Join(dir, filepath.Base(b.file)), filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return false, "", err
	}
	o, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(root, filepath.FromSlash(b.file)): file}})
	if err != nil {
		return false, "", err
	}
	if err := os.WriteFile(overlay, o, 0o644); err != nil {
		return false, "", err
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-vet=off", "-failfast", "-count=1", "-short", "-timeout=90s", "-overlay="+overlay, "-run="+b.run, "./"+b.pkg)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return false, "", nil
	case ctx.Err() != nil:
		return false, "", ctx.Err()
	}
	if m := failed.FindSubmatch(out); m != nil {
		return true, string(m[1]), nil
	}
	if strings.Contains(string(out), "panic: ") {
		return true, "a panic", nil
	}
	return false, "", fmt.Errorf("the tests could not be run: %s", out)
}
