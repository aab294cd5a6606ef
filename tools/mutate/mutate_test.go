package main

import (
	"os"
	"path/filepath"
	"testing"
)

// The list is whole, and each bug can still be made: its line is there, once.
func TestEveryBugCanBeMade(t *testing.T) {
	if len(bugs) != 40 {
		t.Errorf("%d bugs, want 40", len(bugs))
	}
	names := map[string]bool{}
	root := filepath.Join("..", "..")
	for _, b := range bugs {
		if names[b.name] {
			t.Errorf("two bugs are called %q", b.name)
		}
		names[b.name] = true
		if _, err := b.replace(root); err != nil {
			t.Errorf("%s: %v", b.name, err)
		}
		if tests, _ := filepath.Glob(filepath.Join(root, filepath.FromSlash(b.pkg), "*_test.go")); len(tests) == 0 {
			t.Errorf("%s: no tests in %s", b.name, b.pkg)
		}
	}
}

// A bug that no test can see is told as missed, and one that doesn't compile is an
// error, not a success.
func TestWhatIsNotCaughtIsNotCalledSo(t *testing.T) {
	if testing.Short() || os.Getenv("CI") != "" {
		t.Skip("it compiles")
	}
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	harmless := bug{"harmless", "internal/overload/overload.go", "	refuseConnections = 0.80", "	refuseConnections = 0.8", "internal/overload", "TestWhatIsInUseIsWhatLives"}
	if seen, by, err := harmless.try(t.Context(), root, filepath.Join(t.TempDir(), "a")); seen || err != nil {
		t.Errorf("caught %t by %s, %v", seen, by, err)
	}
	broken := bug{"broken", "internal/overload/overload.go", "	refuseConnections = 0.80", "	refuseConnections = ", "internal/overload", ""}
	if seen, _, err := broken.try(t.Context(), root, filepath.Join(t.TempDir(), "b")); seen || err == nil {
		t.Errorf("caught %t, %v", seen, err)
	}
}
