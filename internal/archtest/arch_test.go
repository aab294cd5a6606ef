package archtest

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"strings"
	"testing"
)

const module = "github.com/fairlead-mesh/fairlead/"

// layers lists package patterns from the bottom up. A package may import only
// packages of a strictly lower layer. Patterns are path.Match patterns.
var layers = [][]string{
	{"internal/footprint", "internal/hamt", "internal/message", "internal/timer", "internal/stats", "internal/leaktest", "internal/linked", "internal/sweep", "internal/hbonetest", "internal/filewatch", "internal/dns", "internal/usage", "internal/workload/workloadpb"},
	{"internal/netio", "internal/overload", "internal/streaminfo", "internal/workload/authzpb"},
	{"internal/conntest", "internal/matcher", "internal/format", "internal/identity", "internal/workload", "xdsclient"},
	{"internal/accesslog", "internal/admin", "internal/ratelimit", "internal/refusal", "filters", "proxy/transport"},
	{"filters/internal/*", "filters/http/*/*pb", "internal/explain", "internal/otlp", "internal/wasmmodule", "proxy/transport/*", "proxy/upstream/lb"},
	{"filters/internal/istio/*", "internal/tracing"},
	{"filters/http/*", "filters/network/*", "filters/listener/*", "xdsclient/xdsresource"},
	{"filters/builtin", "xdsclient/configdump", "xdsclient/filesource", "routing", "proxy/hbone", "proxy/secret"},
	{"proxy/tlscontext", "proxy/listener", "proxy/bootstrap"},
	{"proxy/upstream", "proxy/hcm", "proxy/agent", "ztunnel"},
	{"proxy/router", "proxy/tcpproxy"},
	{"proxy"},
	{"internal/xdstest"},
	{"demo", "examples", "internal/corpus"},
	{"cmd/*", "examples/*", "internal/archtest"},
}

// forbidden dependencies, direct or not, of the package matching the key.
var forbidden = map[string]map[string]string{
	"cmd/fairlead": {"k8s.io/": "the data plane talks xDS only"},
	"ztunnel":      {module + "filters": "ztunnel is L4", module + "routing": "ztunnel is L4"},
	"routing":      {"net/http/httputil": "routing is pure", module + "proxy": "wrong way"},
	"xdsclient":    {module: "the transport knows no resource type"},
}

// neutral packages know nothing that a package above could be forbidden to know.
var neutral = map[string]bool{module + "internal/hamt": true}

type pkg struct {
	ImportPath    string
	Imports, Deps []string
}

func load(t *testing.T, args ...string) []pkg {
	t.Helper()
	if args == nil {
		args = []string{module + "..."}
	}
	out, err := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps"}, args...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	var ps []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return ps
		} else if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
}

// testers may import testing although they are linked into the binary.
var testers = map[string]string{
	"github.com/envoyproxy/go-control-plane/pkg/log": "holds a logger for tests beside the interface; the linker drops it",
}

func TestTheBinaryHoldsNoTestCode(t *testing.T) {
	found := map[string]bool{}
	for _, p := range load(t, "-deps", module+"cmd/fairlead") {
		for _, imp := range p.Imports {
			if imp != "testing" {
				continue
			}
			found[p.ImportPath] = true
			if testers[p.ImportPath] == "" {
				t.Errorf("%s imports testing and is part of cmd/fairlead", p.ImportPath)
			}
		}
	}
	for p := range testers {
		if !found[p] {
			t.Errorf("%s does not import testing any more: take it out of the list", p)
		}
	}
}

func layerOf(rel string) int {
	for i, pats := range layers {
		for _, p := range pats {
			if ok, _ := path.Match(p, rel); ok {
				return i
			}
		}
	}
	return -1
}

func TestLayers(t *testing.T) {
	used := map[string]bool{}
	for _, p := range load(t) {
		rel := strings.TrimPrefix(p.ImportPath, module)
		from := layerOf(rel)
		if from < 0 {
			t.Errorf("%s has no layer: add it to the table, and to docs/ARCHITECTURE.md", rel)
			continue
		}
		for _, pat := range layers[from] {
			if ok, _ := path.Match(pat, rel); ok {
				used[pat] = true
			}
		}
		for _, imp := range p.Imports {
			to, ok := strings.CutPrefix(imp, module)
			if ok && layerOf(to) >= from {
				t.Errorf("%s (layer %d) imports %s (layer %d)", rel, from, to, layerOf(to))
			}
		}
		for pat, why := range forbidden[rel] {
			for _, dep := range p.Deps {
				if neutral[dep] {
					continue
				}
				if dep == strings.TrimSuffix(pat, "/") || strings.HasSuffix(pat, "/") && strings.HasPrefix(dep, pat) {
					t.Errorf("%s depends on %s: %s", rel, dep, why)
				}
			}
		}
	}
	for _, pats := range layers {
		for _, pat := range pats {
			if !used[pat] {
				t.Logf("layer pattern %q matches no package", pat)
			}
		}
	}
}
