package archtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEveryFieldOfAFiltersMessageIsNamed: what Envoy's message of a filter has is
// read, or named as reported, by the filter or by what it shares with others.
func TestEveryFieldOfAFiltersMessageIsNamed(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/envoyproxy/go-control-plane/envoy").Output()
	if err != nil {
		t.Fatal(err)
	}
	envoy := strings.TrimSpace(string(dir))
	read := func(pattern string) string {
		files, _ := filepath.Glob(pattern)
		var all strings.Builder
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(b)
		}
		return all.String()
	}
	root := "../.."
	shared := read(root+"/filters/internal/*/*.go") + read(root+"/internal/ratelimit/*.go") + read(root+"/internal/matcher/*.go")
	imported := regexp.MustCompile(`(\w+)\s+"github\.com/envoyproxy/go-control-plane/envoy/(extensions/filters/[^"]+)"`)
	fieldOf := regexp.MustCompile(`\n\t([A-Z]\w+) +[^\n]*protobuf:"[^"]*name=(\w+)`)
	configs, _ := filepath.Glob(root + "/filters/*/*/config.go")
	// Without any effect that a peer or an operator could see; the READMEs say so.
	tuning := map[string]bool{"initial_read_buffer_size": true}
	fields := 0
	for _, config := range configs {
		src := read(filepath.Dir(config) + "/*.go")
		for _, imp := range imported.FindAllStringSubmatch(read(config), -1) {
			pb := read(filepath.Join(envoy, imp[2], "*.pb.go"))
			for _, msg := range regexp.MustCompile(`&`+imp[1]+`\.(\w+)\{\}`).FindAllStringSubmatch(src, -1) {
				_, body, _ := strings.Cut(pb, "\ntype "+msg[1]+" struct {")
				body, _, _ = strings.Cut(body, "\n}")
				for _, f := range fieldOf.FindAllStringSubmatch(body, -1) {
					fields++
					if get := "Get" + f[1] + "()"; !strings.Contains(src+shared, get) && !strings.Contains(src, `"`+f[2]+`"`) && !tuning[f[2]] {
						t.Errorf("%s: %s of %s is silently accepted", config, f[2], msg[1])
					}
				}
			}
		}
	}
	if fields < 150 {
		t.Errorf("%d fields, want 150 or more: are they found?", fields)
	}
	t.Logf("%d fields", fields)
}
