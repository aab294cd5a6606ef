package corpus

import (
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

var update = flag.Bool("update", false, "write testdata/unsupported.txt")

var places = regexp.MustCompile(`\[[^\]]*\]`)

// unsupported lists what /debug/unsupported has for a dump: each kind once, with
// the first object that it is in.
func unsupported(t *testing.T, name string) map[string]string {
	t.Helper()
	s := loadScenario(t, name, strings.NewReplacer())
	dec := xdsresource.NewDecoder(builtin.Registry(), xdsresource.Options{})
	res := &proxy.Resources{
		Listeners: map[string]*xdsresource.Listener{}, Clusters: map[string]*xdsresource.Cluster{}, Routes: map[string]*xdsresource.RouteConfiguration{},
		Extensions: map[string]*xdsresource.ExtensionConfig{}, Secrets: map[string]*xdsresource.Secret{}, Endpoints: map[string]*xdsresource.ClusterLoadAssignment{},
	}
	take := func(v any, err error) {
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		switch v := v.(type) {
		case *xdsresource.Listener:
			res.Listeners[v.Name] = v
		case *xdsresource.Cluster:
			res.Clusters[v.Name] = v
		case *xdsresource.RouteConfiguration:
			res.Routes[v.Name] = v
		case *xdsresource.ExtensionConfig:
			res.Extensions[v.Resource.Name] = v
		case *xdsresource.Secret:
			res.Secrets[v.Name] = v
		case *xdsresource.ClusterLoadAssignment:
			res.Endpoints[v.Name] = v
		}
	}
	for _, m := range s.listeners {
		take(dec.Message(m))
	}
	for _, m := range s.clusters {
		take(dec.Message(m))
	}
	for _, m := range s.routes {
		take(dec.Message(m))
	}
	for _, m := range s.endpoints {
		take(dec.Message(m))
	}
	for _, r := range s.rest {
		if r.TypeURL == xdstest.Secret || r.TypeURL == xdstest.ExtensionCfg {
			take(dec.Decode(r.TypeURL, r.Value))
		}
	}
	srv, err := proxy.New(proxy.Options{Offline: true, Registry: builtin.Registry(), Node: filters.Node{ID: "x"}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	if err := srv.Compile(res); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, d := range append(srv.Snapshot().Diagnostics, res.IgnoredFields()...) {
		kind, _, _ := strings.Cut(d.Resource, " ")
		what := fmt.Sprintf("%s: %s: %s: %s", d.Severity, kind, places.ReplaceAllString(d.Path, "[]"), d.Message)
		if at, ok := out[what]; !ok || d.Resource < at {
			out[what] = d.Resource
		}
	}
	return out
}

// What istiod sends and isn't executed is known, and each of it names its
// source. A new line here is a decision: execute it, or say what it means.
func TestWhatOfTheDumpsIsNotExecutedIsListed(t *testing.T) {
	dirs, err := fs.ReadDir(os.DirFS(dumps), ".")
	if err != nil {
		t.Fatal(err)
	}
	in := map[string][]string{}
	at := map[string]string{}
	n := 0
	for _, d := range dirs {
		if !d.IsDir() {
			continue
		}
		n++
		for what, resource := range unsupported(t, d.Name()) {
			if resource == "" {
				t.Errorf("%s: %s has no source", d.Name(), what)
			}
			in[what] = append(in[what], d.Name())
			if at[what] == "" {
				at[what] = resource
			}
		}
	}
	if n != 9 {
		t.Errorf("%d dumps", n)
	}
	var b strings.Builder
	for _, what := range slices.Sorted(maps.Keys(in)) {
		fmt.Fprintf(&b, "%s\n    in %s, first in %s\n", what, strings.Join(in[what], " "), at[what])
	}
	file := filepath.Join("testdata", "unsupported.txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != b.String() {
		t.Errorf("testdata/unsupported.txt is not current: run with -update and look at the difference\n%s", b.String())
	}
}
