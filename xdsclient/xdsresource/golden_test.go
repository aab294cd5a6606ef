package xdsresource_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// scenarios are dumps of what istiod programs; see testdata/istiod.
var scenarios = []string{
	"waypoint-minimal", "waypoint-baggage", "waypoint-layered-authz", "waypoint-rich", "waypoint-multinetwork",
	"ingress", "ingress-multinetwork", "eastwest", "egress",
}

var dumpTypes = map[string]string{
	"lds": xdsresource.ListenerType, "rds": xdsresource.RouteType, "cds": xdsresource.ClusterType,
	"eds": xdsresource.EndpointsType, "sds": xdsresource.SecretType, "ecds": xdsresource.ExtensionConfigType,
}

type dumped struct {
	Name     string
	Resource json.RawMessage
}

// readDump returns the resources of one type, none if there are none.
func readDump(t testing.TB, scenario, kind string) []dumped {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "istiod", scenario, kind+".json.gz"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	var out []dumped
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// found is what decoding one scenario gave.
type found struct {
	counts  map[string]int
	unknown map[string]bool // type URLs
	broken  []string
	ignored map[string]bool
	values  map[string]any // by kind/name
}

func decodeScenario(t *testing.T, scenario string) *found {
	t.Helper()
	d := xdsresource.NewDecoder(builtin.Registry(), xdsresource.Options{})
	f := &found{counts: map[string]int{}, unknown: map[string]bool{}, ignored: map[string]bool{}, values: map[string]any{}}
	for kind, typeURL := range dumpTypes {
		for _, r := range readDump(t, scenario, kind) {
			v, err := d.FromYAML(typeURL, r.Resource)
			if err != nil {
				t.Errorf("%s %s: %v", kind, r.Name, err)
				continue
			}
			f.counts[kind]++
			f.values[kind+"/"+r.Name] = v
			f.visit(v)
		}
	}
	return f
}

func (f *found) typed(c *xdsresource.TypedConfig) {
	if c != nil && c.Unknown != "" {
		url := strings.TrimPrefix(c.TypeURL, "type.googleapis.com/")
		if c.Unknown != "type "+c.TypeURL+" is not supported" && !strings.HasPrefix(c.Unknown, "Wasm modules") {
			url += ": " + c.Unknown
		}
		f.unknown[url] = true
	}
}

func (f *found) add(r *xdsresource.Resource, broken string) {
	if broken != "" {
		f.broken = append(f.broken, r.Name+": "+broken)
	}
	for _, ig := range r.Ignored {
		f.ignored[ig.Path+": "+ig.Reason] = true
	}
}

func (f *found) overrides(o xdsresource.Overrides) {
	for _, v := range o {
		f.typed(&v.TypedConfig)
	}
}

func (f *found) visit(v any) {
	switch v := v.(type) {
	case *xdsresource.Listener:
		f.add(&v.Resource, "")
		for i := range v.ListenerFilters {
			f.typed(&v.ListenerFilters[i].TypedConfig)
		}
		for _, c := range append(slices.Clone(v.FilterChains), v.DefaultFilterChain) {
			if c != nil {
				f.chain(v, c)
			}
		}
	case *xdsresource.RouteConfiguration:
		f.add(&v.Resource, "")
		f.routes(v)
	case *xdsresource.Cluster:
		f.add(&v.Resource, v.Broken)
		f.add(&v.Resource, v.TransportSocket.Unknown)
		for i := range v.Matches {
			f.add(&v.Resource, v.Matches[i].Socket.Unknown)
		}
	case *xdsresource.ClusterLoadAssignment:
		f.add(&v.Resource, "")
	case *xdsresource.Secret:
		f.add(&v.Resource, "")
	case *xdsresource.ExtensionConfig:
		f.add(&v.Resource, "")
		f.typed(&v.TypedConfig)
	}
}

func (f *found) chain(l *xdsresource.Listener, c *xdsresource.FilterChain) {
	f.add(&xdsresource.Resource{Name: l.Name + "/" + c.Name}, c.Broken)
	if c.TransportSocket != nil {
		f.add(&xdsresource.Resource{Name: l.Name + "/" + c.Name}, c.TransportSocket.Unknown)
	}
	for i := range c.Filters {
		n := &c.Filters[i]
		f.typed(&n.TypedConfig)
		if n.HCM == nil {
			continue
		}
		for j := range n.HCM.HTTPFilters {
			f.typed(&n.HCM.HTTPFilters[j].TypedConfig)
		}
		if n.HCM.RouteConfig != nil {
			f.routes(n.HCM.RouteConfig)
		}
	}
}

func (f *found) routes(rc *xdsresource.RouteConfiguration) {
	f.overrides(rc.Overrides)
	for _, vh := range rc.VirtualHosts {
		f.overrides(vh.Overrides)
		for _, r := range vh.Routes {
			f.add(&xdsresource.Resource{Name: rc.Name + "/" + vh.Name + "/" + r.Name}, r.Broken)
			f.overrides(r.Overrides)
			if r.Action != nil {
				for i := range r.Action.Weighted {
					f.overrides(r.Action.Weighted[i].Overrides)
				}
			}
		}
	}
}

func sorted(m map[string]bool) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// wantCounts is how many resources of each scenario decode: all of them.
var wantCounts = map[string]map[string]int{
	"waypoint-minimal":       {"cds": 6, "eds": 1, "lds": 5},
	"waypoint-baggage":       {"cds": 6, "eds": 1, "lds": 5},
	"waypoint-layered-authz": {"cds": 6, "eds": 1, "lds": 5},
	"waypoint-rich":          {"cds": 61, "ecds": 4, "eds": 46, "lds": 6, "sds": 3},
	"waypoint-multinetwork":  {"cds": 7, "eds": 2, "lds": 5},
	"ingress":                {"cds": 36, "eds": 34, "lds": 10, "rds": 5, "sds": 5},
	"ingress-multinetwork":   {"cds": 40, "eds": 36, "lds": 12, "rds": 5, "sds": 5},
	"eastwest":               {"cds": 11, "eds": 7, "lds": 3},
	"egress":                 {"cds": 16, "eds": 1, "lds": 5, "sds": 3},
}

// notBuiltIn are the extension types in the dumps that no built-in filter
// handles; chains with one fail closed.
var notBuiltIn = []string{
	"acme.dlp.v1.Config",
	"acme.rego.v1.Config",
	"envoy.extensions.filters.http.lua.v3.Lua",
	"envoy.extensions.filters.http.ratelimit.v3.RateLimit",
	"envoy.extensions.filters.http.wasm.v3.Wasm",
	"fairlead.tcpfilter.v1.Config",
}

func TestIstiodDumpsDecodeWhole(t *testing.T) {
	unknown := map[string]bool{}
	for _, sc := range scenarios {
		t.Run(sc, func(t *testing.T) {
			f := decodeScenario(t, sc)
			if diff := cmp.Diff(wantCounts[sc], f.counts); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
			for u := range f.unknown {
				unknown[u] = true
			}
			for _, ig := range sorted(f.ignored) {
				if strings.Contains(ig, "not known to this version") {
					t.Error(ig)
				}
			}
			for _, b := range f.broken {
				t.Errorf("broken: %s", b)
			}
		})
	}
	for _, u := range sorted(unknown) {
		if !slices.Contains(notBuiltIn, u) {
			t.Errorf("no built-in filter decodes %s any more", u)
		}
	}
	for _, u := range notBuiltIn {
		if !unknown[u] {
			t.Logf("%s is built in now: take it off the list", u)
		}
	}
}
