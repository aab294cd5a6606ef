package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/examples"
	"github.com/fairlead-mesh/fairlead/ztunnel"
)

// fairlead runs the command line and returns what it prints.
func fairlead(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := root()
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&out)
	err := c.ExecuteContext(t.Context())
	if err != nil {
		report(&out, err)
	}
	return out.String(), err
}

func TestTheExamplesValidate(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../examples")); err != nil {
		t.Fatal(err)
	}
	if err := examples.WriteCertificates(filepath.Join(dir, "certs")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	files, err := filepath.Glob("*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case bytes.Contains(b, []byte("\nstatic_resources:")):
			n++
			if out, err := fairlead(t, "config", "validate", f); err != nil || !strings.Contains(out, f+": ok") || !strings.Contains(out, " 0 ignored fields") {
				t.Errorf("%s: %v\n%s", f, err, out)
			}
		case bytes.Contains(b, []byte("\nworkloads:")):
			n++
			if _, err := ztunnel.Parse(b); err != nil {
				t.Errorf("%s: %v", f, err)
			}
		}
	}
	if n != 16 {
		t.Errorf("%d configurations, want 16", n)
	}
}
