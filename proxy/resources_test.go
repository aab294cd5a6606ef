package proxy

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/xdsclient"
	"github.com/fairlead-mesh/fairlead/xdsclient/filesource"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

var resourceNames = []string{"a", "b", "c", "d", "e"}

// viewed is a control plane with clusters and endpoints at random, and a client.
type viewed struct {
	t     *testing.T
	rnd   *rand.Rand
	dec   *xdsresource.Decoder
	cp    *xdstest.Server
	views chan *xdsclient.View
	step  int
}

func newViewed(t *testing.T) *viewed {
	v := &viewed{t: t, rnd: rand.New(rand.NewPCG(5, 6)), dec: xdsresource.NewDecoder(builtin.Registry(), xdsresource.Options{}), cp: xdstest.New(t, xdstest.Options{}), views: make(chan *xdsclient.View)}
	ctx, cancel := context.WithCancel(t.Context())
	decode := func(typeURL string) xdsclient.Decoder {
		return func(_ string, b []byte) (any, []xdsclient.Key, error) {
			r, err := v.dec.Decode(typeURL, b)
			return r, nil, err
		}
	}
	c, err := xdsclient.New(xdsclient.Config{
		Target: v.cp.Addr(), Node: xdsclient.Node{ID: "n"}, Quiet: time.Millisecond,
		Types: []xdsclient.ResourceType{
			{TypeURL: xdsresource.ClusterType, Wildcard: true, Decode: decode(xdsresource.ClusterType)},
			{TypeURL: xdsresource.EndpointsType, Names: append([]string{"marker"}, resourceNames...), Decode: decode(xdsresource.EndpointsType)},
		},
		OnView: func(x *xdsclient.View) {
			select {
			case v.views <- x:
			case <-ctx.Done():
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return v
}

// clusterYAML is one at random: of a file's secret or an agent's, with a field that
// has no effect, or without.
func (v *viewed) clusterYAML(name string) string {
	extra := ""
	if v.rnd.IntN(2) == 0 {
		extra = ", circuit_breakers: {thresholds: [{max_connection_pools: 3}]}"
	}
	if v.rnd.IntN(2) == 0 {
		source := []string{"path_config_source: {path: /f}", "api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: agent}}]}"}[v.rnd.IntN(2)]
		extra += fmt.Sprintf(`, transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {
tls_certificate_sds_secret_configs: [{name: s%d, sds_config: {%s}}]}}}`, v.rnd.IntN(2), source)
	}
	return fmt.Sprintf(`{name: %s, type: STATIC, connect_timeout: %ds%s}`, name, 1+v.rnd.IntN(3), extra)
}

func (v *viewed) cluster(name string) *xdsresource.Cluster {
	c, err := v.dec.FromYAML(xdsresource.ClusterType, []byte(v.clusterYAML(name)))
	if err != nil {
		v.t.Fatal(err)
	}
	return c.(*xdsresource.Cluster)
}

// next changes what the control plane has and returns the View of that.
func (v *viewed) next() *xdsclient.View {
	v.step++
	const endpoints = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	doc := fmt.Sprintf(`
- {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: marker, type: STATIC, connect_timeout: %[1]ds}
- {"@type": %[2]s, cluster_name: marker, endpoints: [{priority: 0, load_balancing_weight: %[1]d}]}
`, v.step, endpoints)
	var remove []xdstest.Key
	for _, n := range resourceNames {
		switch v.rnd.IntN(4) {
		case 0:
			remove = append(remove, xdstest.Key{TypeURL: xdstest.Cluster, Name: n}, xdstest.Key{TypeURL: xdstest.Endpoints, Name: n})
		case 1:
			doc += strings.Replace("- "+v.clusterYAML(n)+"\n", "{", `{"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, `, 1)
		case 2:
			doc += fmt.Sprintf("- {\"@type\": %s, cluster_name: %s, endpoints: [{load_balancing_weight: %d}]}\n", endpoints, n, 1+v.rnd.IntN(9))
		}
	}
	rs, err := xdstest.Load([]byte(doc), nil)
	if err != nil {
		v.t.Fatal(err)
	}
	v.cp.Update(rs, remove)
	for end := time.After(20 * time.Second); ; {
		select {
		case x := <-v.views:
			r := &Resources{view: x}
			c, a := r.Cluster("marker"), r.endpoints("marker")
			if c != nil && a != nil && c.ConnectTimeout == time.Duration(v.step)*time.Second && int(a.Localities[0].Weight) == v.step {
				return x
			}
		case <-end:
			v.t.Fatal("no view of the last change")
		}
	}
}

// What is kept up to date by differences of views is what a look at everything says.
func TestDifferencesOfViewsAddUp(t *testing.T) {
	v := newViewed(t)
	all := append([]string{"marker", "none"}, resourceNames...)
	before, inView, told := &Resources{}, 0, 0
	var held *Resources
	var other elsewhere
	own := map[string]*xdsresource.Cluster{}
	for step := range 60 {
		held = resourcesOf(v.next(), held)
		own = maps.Clone(own)
		switch n := resourceNames[v.rnd.IntN(len(resourceNames))]; v.rnd.IntN(3) {
		case 0:
			own[n] = v.cluster(n)
		case 1:
			delete(own, n)
		}
		now := merge(&Resources{Clusters: own}, held)

		var want []string
		for _, n := range all {
			if before.Cluster(n) != now.Cluster(n) {
				want = append(want, n)
			}
		}
		slices.Sort(want)
		if got := changedClusters(before, now); !slices.Equal(got, want) {
			t.Fatalf("step %d: changed are %q, want %q", step, got, want)
		}
		var ignored int
		ignored, inView = now.ignored(before, inView)
		if n := len(now.IgnoredFields()); ignored != n {
			t.Fatalf("step %d: %d ignored fields are counted, there are %d", step, ignored, n)
		}
		for _, n := range all {
			if c := own[n]; c != nil && now.Cluster(n) != c {
				t.Fatalf("step %d: %s is not the static one", step, n)
			}
		}
		other.follow(held.view)
		var r refs
		for x := range held.view.All(xdsresource.ClusterType) {
			r.elsewhere(x.Value)
		}
		servers, files := slices.SortedFunc(maps.Keys(other.apis), compareRefs), slices.SortedFunc(maps.Keys(other.files), filesource.Compare)
		slices.SortFunc(r.apis, compareRefs)
		slices.SortFunc(r.files, filesource.Compare)
		if !slices.Equal(servers, slices.Compact(r.apis)) || !slices.Equal(files, slices.Compact(r.files)) {
			t.Fatalf("step %d: elsewhere is %v, %v, want %v, %v", step, servers, files, r.apis, r.files)
		}
		if before = now; len(servers) > 0 && len(files) > 0 && inView > 0 {
			told++
		}
	}
	if told == 0 {
		t.Error("at no time anything referred elsewhere, and was ignored")
	}
}
