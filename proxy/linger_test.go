package proxy_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// A removed cluster waits for the chains that may have streams to it, not for
// those that are replaced later: in a mesh that changes all the time it would
// stay for ever, with its connections.
func TestARemovedClusterDoesNotWaitForChainsThatAreReplacedLater(t *testing.T) {
	w := newWorld(t)
	port := freePort(t)
	w.res.Clusters["a"] = decode[*xdsresource.Cluster](t, xdsresource.ClusterType, `{name: a, type: STATIC, load_assignment: {cluster_name: a}}`)
	chain := func(i int) {
		w.listen("l", port, "", chainYAML("c", "{}", fmt.Sprintf("{name: f%d, disabled: true, typed_config: %s},", i, unknownFilter), direct("ok")))
		w.mustApply()
	}
	chain(0)
	if !w.Clusters().HasCluster("a") {
		t.Fatal("the cluster is not there")
	}
	delete(w.res.Clusters, "a")
	end := time.Now().Add(10 * time.Second)
	for i := 1; w.Clusters().HasCluster("a"); i++ {
		if time.Now().After(end) {
			t.Fatal("the cluster is still there")
		}
		chain(i)
		time.Sleep(5 * time.Millisecond)
	}
}

// A control plane that goes away may have removed a cluster and not yet sent the
// routes without it. The cluster stays until that has been heard of.
func TestARemovedClusterStaysWhileItsControlPlaneIsAway(t *testing.T) {
	var away atomic.Bool
	away.Store(true)
	w := newWorldWith(t, proxy.Options{Registry: builtin.Registry(), RemovalGrace: 20 * time.Millisecond, Away: away.Load})
	w.res.Clusters["a"] = decode[*xdsresource.Cluster](t, xdsresource.ClusterType, `{name: a, type: STATIC, load_assignment: {cluster_name: a}}`)
	w.listen("l", freePort(t), "", chainYAML("c", "{}", "", `route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: a}}]}]}`))
	w.mustApply()
	delete(w.res.Clusters, "a")
	w.mustApply()
	for range 50 {
		if !w.Clusters().HasCluster("a") {
			t.Fatal("the cluster is gone")
		}
		time.Sleep(5 * time.Millisecond)
	}
	away.Store(false)
	for end := time.Now().Add(10 * time.Second); w.Clusters().HasCluster("a"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the cluster is still there")
		}
	}
}
