package examples

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An example that no test runs is one that may not work: each file of each is
// named in some test, here or of a genuine istiod.
func TestEveryExampleIsRun(t *testing.T) {
	var tests strings.Builder
	for _, pattern := range []string{"*_test.go", "../conformance/istio/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatal(pattern, err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			tests.Write(b)
		}
	}
	// Served by others of the example, or for istiod.
	indirectly := map[string]string{
		"egress-guard/gateway.yaml": "the Gateway for plugins.yaml, whose plugins conformance/istio runs at its own",
		"egress/payments.yaml":      `"egress/" + f + ".yaml"`, "egress/reports.yaml": `"egress/" + f + ".yaml"`, "egress/sandbox.yaml": `"egress/" + f + ".yaml"`,
	}
	files, err := filepath.Glob("*/*.yaml")
	if err != nil || len(files) < 15 {
		t.Fatal(len(files), err)
	}
	for _, f := range files {
		f = filepath.ToSlash(f)
		if !strings.Contains(tests.String(), `"`+f+`"`) && indirectly[f] == "" {
			t.Errorf("%s is run by no test", f)
		}
	}
}
