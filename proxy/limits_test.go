package proxy_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func appStat(t *testing.T, admin int, name string) int {
	t.Helper()
	n, _ := strconv.Atoi(metric(t, admin, fmt.Sprintf(`envoy_cluster_%s{envoy_cluster_name="app"}`, name)))
	return n
}

// All first attempts fail at once, and the retries that are let through stay at
// the origin: there may be no more of them than the budget says.
func TestARetryBudgetBoundsTheRetriesInFlight(t *testing.T) {
	const clients = 20
	for _, c := range []struct {
		budget      string
		least, most int
	}{
		{"budget_percent: {value: 0}, min_retry_concurrency: 2", 2, 2},
		// A share of the requests in flight, which become fewer meanwhile.
		{"budget_percent: {value: 25}, min_retry_concurrency: 1", 3, 5},
		{"budget_percent: {value: 0}, min_retry_concurrency: 20", clients, clients},
	} {
		t.Run(c.budget, func(t *testing.T) {
			var firsts sync.WaitGroup
			firsts.Add(clients)
			var first, retries atomic.Int32
			release := make(chan struct{})
			origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if first.Add(1) <= clients {
					firsts.Done()
					firsts.Wait()
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				retries.Add(1)
				<-release
			}))
			defer origin.Close()
			port, admin := freePort(t), freePort(t)
			listener := strings.Replace(hcmListener("edge", port, "app", ""), "timeout: 0s", "timeout: 0s, retry_policy: {retry_on: 5xx}", 1)
			cluster := strings.TrimRight(httpCluster("app", urlPort(origin.URL), "http_protocol_options: {}"), "\n") +
				"\n    circuit_breakers: {thresholds: [{retry_budget: {" + c.budget + "}}]}\n"
			startProxy(t, withAdmin("static_resources:\n  listeners:\n"+listener+"  clusters:\n"+cluster, admin), nil)
			var refused, served atomic.Int32
			var done sync.WaitGroup
			for range clients {
				done.Go(func() {
					switch status, _ := fetch(t, fmt.Sprintf("http://127.0.0.1:%d/", port)); status {
					case http.StatusServiceUnavailable:
						refused.Add(1)
					case http.StatusOK:
						served.Add(1)
					}
				})
			}
			within(t, "every request has its answer or its retry", func() bool { return refused.Load()+retries.Load() == clients })
			n := int(retries.Load())
			if n < c.least || n > c.most {
				t.Errorf("%d retries at once", n)
			}
			if o := appStat(t, admin, "upstream_rq_retry_overflow"); o != clients-n {
				t.Errorf("upstream_rq_retry_overflow is %d", o)
			}
			close(release)
			done.Wait()
			if s := int(served.Load()); s != n {
				t.Errorf("%d retries brought an answer", s)
			}
		})
	}
}

// Two of three hosts are ejected. Above the threshold all three get requests
// again, below it only the one that is left.
func TestEjectedHostsServeOnlyInPanic(t *testing.T) {
	for _, c := range []struct {
		threshold string
		panics    bool
	}{{"", true}, {"common_lb_config: {healthy_panic_threshold: {value: 30}}", false}} {
		t.Run(c.threshold, func(t *testing.T) {
			var endpoints []string
			for _, status := range []int{500, 500, 200} {
				s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
				defer s.Close()
				endpoints = append(endpoints, "{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: "+urlPort(s.URL)+"}}}}")
			}
			port, admin := freePort(t), freePort(t)
			startProxy(t, withAdmin(fmt.Sprintf(`
static_resources:
  listeners:
%s
  clusters:
  - name: app
    type: STATIC
    load_assignment: {cluster_name: app, endpoints: [{lb_endpoints: [%s]}]}
    outlier_detection: {consecutive_5xx: 1, max_ejection_percent: 100, base_ejection_time: 3600s, interval: 3600s}
    %s
`, hcmListener("edge", port, "app", ""), strings.Join(endpoints, ", "), c.threshold), admin), nil)
			within(t, "both bad hosts are ejected", func() bool {
				request(t, port, "/")
				return appStat(t, admin, "outlier_detection_ejections_active") == 2
			})
			before, good, bad := appStat(t, admin, "lb_healthy_panic"), 0, 0
			for range 30 {
				switch status, _ := request(t, port, "/"); status {
				case 200:
					good++
				case 500:
					bad++
				}
			}
			panicked := appStat(t, admin, "lb_healthy_panic") - before
			if c.panics && (good != 10 || bad != 20 || panicked != 30) || !c.panics && (good != 30 || panicked != 0) {
				t.Errorf("%d good answers and %d bad ones, %d in panic", good, bad, panicked)
			}
		})
	}
}
