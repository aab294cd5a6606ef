package upstream

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// telling is a Manager that counts, and says which series there are of clusters.
func telling(t *testing.T) (m *Manager, series func() string) {
	t.Helper()
	reg := &stats.Registry{}
	m = newTestManager(t, &origin{}, func(o *Options) { o.Stats = reg.Scope("") })
	return m, func() string {
		var all, ours strings.Builder
		if err := reg.WritePrometheus(&all); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(all.String()) {
			if strings.Contains(line, "envoy_cluster_name=") {
				ours.WriteString(line)
			}
		}
		return ours.String()
	}
}

func TestARemovedClusterCountsNothingAnyMore(t *testing.T) {
	waits := cluster("a")
	waits.Discovery, waits.Assignment = xdsresource.DiscoveryEDS, nil
	for name, tc := range map[string]struct {
		spec  *xdsresource.Cluster
		early bool // counts before it is removed
	}{
		"that was never used": {cluster("a", "10.0.0.1:80"), false},
		"that was used":       {cluster("a", "10.0.0.1:80"), true},
		"that never served":   {waits, true},
	} {
		m, series := telling(t)
		m.Apply([]*xdsresource.Cluster{tc.spec})
		c := m.Cluster("a")
		if c == nil {
			m.mu.Lock()
			c = m.warming["a"]
			m.mu.Unlock()
		}
		if tc.early {
			c.CountCode(200, false)
		}
		m.Apply(nil)
		c.CountCode(404, false) // a stream that has it still
		c.stats().retried(503)
		if s := series(); s != "" {
			t.Errorf("a removed cluster %s has metrics:\n%s", name, s)
		}
		m.Apply([]*xdsresource.Cluster{cluster("a", "10.0.0.1:80")})
		m.Cluster("a").CountCode(200, false)
		if s := series(); !strings.Contains(s, `envoy_cluster_upstream_rq{envoy_cluster_name="a",envoy_response_code="200"} 1`) {
			t.Errorf("after a removed cluster %s a new one counts\n%s", name, s)
		}
	}
}

func TestCalloutsToARemovedClusterAreForgotten(t *testing.T) {
	m, series := telling(t)
	call := func() error {
		_, err := m.RoundTrip(context.Background(), "a", &filters.Callout{}, 100)
		return err
	}
	known := func() (n int) {
		m.callouts.Range(func(any, any) bool { n++; return true })
		return n
	}
	for range 3 {
		m.Apply([]*xdsresource.Cluster{cluster("a", "10.0.0.1:80")})
		if err := call(); err != nil {
			t.Fatal(err)
		}
		if n := known(); n != 1 || !strings.Contains(series(), `fairlead_callout_breaker_state{envoy_cluster_name="a"} 0`) {
			t.Errorf("%d clusters are called, with\n%s", n, series())
		}
		m.Apply(nil)
		if err := call(); !errors.Is(err, ErrNoSuchCluster) {
			t.Error(err)
		}
		m.guard("a").failed.Inc() // as by a call that had found the cluster
		if n := known(); n != 0 || series() != "" {
			t.Errorf("%d clusters are called, with\n%s", n, series())
		}
	}
}

// Calls go on while their cluster comes and goes.
func TestNothingIsKeptOfCallsWhileTheirClusterIsRemoved(t *testing.T) {
	m, series := telling(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = m.RoundTrip(context.Background(), "a", &filters.Callout{}, 100)
				}
			}
		})
	}
	for range 200 {
		m.Apply([]*xdsresource.Cluster{cluster("a", "10.0.0.1:80")})
		m.Apply(nil)
	}
	close(stop)
	wg.Wait()
	n := 0
	m.callouts.Range(func(any, any) bool { n++; return true })
	if s := series(); n != 0 || s != "" {
		t.Errorf("%d breakers, and metrics\n%s", n, s)
	}
}
