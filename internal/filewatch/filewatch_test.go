package filewatch

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func run(t *testing.T, w *Watcher) <-chan struct{} {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	hits, done := make(chan struct{}, 100), make(chan struct{})
	w.Prime()
	go func() {
		defer close(done)
		_ = w.Run(ctx, func() { hits <- struct{}{} })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return hits
}

func want(t *testing.T, hits <-chan struct{}, what string) {
	t.Helper()
	timer := time.NewTimer(20 * time.Second)
	defer timer.Stop()
	select {
	case <-hits:
	case <-timer.C:
		t.Fatalf("%s was not noticed", what)
	}
}

func write(t *testing.T, path, s string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestNoticesWritesReplacementsAndRemovals(t *testing.T) {
	for _, poll := range []time.Duration{time.Hour, 20 * time.Millisecond} {
		dir := t.TempDir()
		p := filepath.Join(dir, "a")
		write(t, p, "1")
		hits := run(t, &Watcher{Paths: []string{p}, Poll: poll, Settle: 10 * time.Millisecond})
		write(t, p, "2")
		want(t, hits, "a write")
		write(t, p+".new", "3")
		if err := os.Rename(p+".new", p); err != nil {
			t.Fatal(err)
		}
		want(t, hits, "a rename")
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
		want(t, hits, "a removal")
	}
}

func TestNoticesTheSwapOfAKubernetesVolume(t *testing.T) {
	dir := t.TempDir()
	link := func(target string) {
		tmp := filepath.Join(dir, "..data_tmp")
		if err := os.Symlink(target, tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range []string{"v1", "v2"} {
		if err := os.Mkdir(filepath.Join(dir, v), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, v, "a"), v)
	}
	link("v1")
	if err := os.Symlink("..data/a", filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	hits := run(t, &Watcher{Paths: []string{filepath.Join(dir, "a")}, Poll: time.Hour, Settle: 10 * time.Millisecond})
	link("v2")
	want(t, hits, "the swap")
}

func TestSameContentIsNoChange(t *testing.T) {
	p := filepath.Join(t.TempDir(), "a")
	write(t, p, "1")
	hits := run(t, &Watcher{Paths: []string{p}, Poll: 10 * time.Millisecond, Settle: time.Millisecond})
	write(t, p+".new", "1") // what is written in place may be seen half
	if err := os.Rename(p+".new", p); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	select {
	case <-hits:
		t.Error("noticed a change")
	default:
	}
	if err := (&Watcher{}).Run(t.Context(), nil); err == nil {
		t.Error("watching nothing is no error")
	}
}
