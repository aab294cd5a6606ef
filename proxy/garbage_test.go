package proxy_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
	"weak"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// A configuration that was replaced is garbage at once, however long chains may
// drain: chains that were kept, that were replaced and that wait for their streams
// refer to none. Chains are replaced at different times: if one referred to the
// configuration that it came with, all that came before could be reached.
func TestReplacedConfigurationsAreGarbage(t *testing.T) {
	w := newWorldWith(t, proxy.Options{Registry: builtin.Registry(), DrainTime: time.Hour})
	ports := [...]int{freePort(t), freePort(t)}
	var snaps []weak.Pointer[proxy.Snapshot]
	var tables []weak.Pointer[xdsresource.RouteConfiguration]
	const versions = 40
	for i := range versions {
		for k, every := range []int{4, 6} { // of one the table is kept, of the other replaced
			routes := []string{direct("ok"), "rds: {route_config_name: table, config_source: {ads: {}}}"}[k]
			w.listen(fmt.Sprintf("l%d", k), ports[k], "", strings.Replace(chainYAML("c", "{}", mutation("set", "base")+",", routes), "stat_prefix: x", fmt.Sprintf("stat_prefix: x%d", i/every), 1))
		}
		clear(w.res.Clusters)
		name := fmt.Sprintf("a%d", i)
		w.res.Clusters[name] = decode[*xdsresource.Cluster](t, xdsresource.ClusterType, fmt.Sprintf(`{name: %[1]s, type: STATIC, load_assignment: {cluster_name: %[1]s}}`, name))
		rc := decode[*xdsresource.RouteConfiguration](t, xdsresource.RouteType, fmt.Sprintf(`{name: table, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: %s}, typed_per_filter_config: {mutate: %s}}]}]}`, name, mutationOf(name)))
		w.res.Routes["table"] = rc
		w.mustApply()
		snaps, tables = append(snaps, weak.Make(w.Snapshot())), append(tables, weak.Make(rc))
	}
	alive := func() (s, r int) {
		runtime.GC()
		for i := range versions {
			if snaps[i].Value() != nil {
				s++
			}
			if tables[i].Value() != nil {
				r++
			}
		}
		return s, r
	}
	// Replaced chains have their last table, and the one in force the table that
	// its tunnels were judged by.
	const most = versions/6 + 2
	s, r := alive()
	for end := time.Now().Add(10 * time.Second); (s > 1 || r > most) && time.Now().Before(end); s, r = alive() {
		time.Sleep(10 * time.Millisecond)
	}
	if s > 1 || r > most {
		t.Errorf("%d snapshots and %d tables of %d are left", s, r, versions)
	}
}

func mutation(name, value string) string {
	return fmt.Sprintf(`{name: mutate, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation, mutations: {response_mutations: [{append: {header: {key: %s, value: %s}}}]}}}`, name, value)
}

func mutationOf(value string) string {
	return fmt.Sprintf(`{"@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute, mutations: {response_mutations: [{append: {header: {key: x-v, value: %s}}}]}}`, value)
}
