package istio

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// setRevision changes the route: requests get another x-revision.
func (s *scenario) setRevision(t *testing.T, n int) {
	t.Helper()
	routes := s.istiod.KubeClient().GatewayAPI().GatewayV1().HTTPRoutes("app")
	r, err := routes.Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r = r.DeepCopy()
	r.Spec.Rules[0].Filters[0].RequestHeaderModifier.Set = []gatewayv1.HTTPHeader{{Name: "x-revision", Value: strconv.Itoa(n)}}
	r.Generation++
	if _, err := routes.Update(t.Context(), r, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// setReady makes pods of the service web ready, and the others unready.
func (s *scenario) setReady(t *testing.T, pods ...string) {
	t.Helper()
	slices := s.istiod.KubeClient().Kube().DiscoveryV1().EndpointSlices("app")
	e, err := slices.Get(t.Context(), "web-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e = e.DeepCopy()
	for i := range e.Endpoints {
		ready := false
		for _, p := range pods {
			ready = ready || e.Endpoints[i].TargetRef.Name == p
		}
		e.Endpoints[i].Conditions = discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready}
	}
	if _, err := slices.Update(t.Context(), e, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// load is steady traffic on connections that stay open.
type load struct {
	sent, failed atomic.Int64
	opened       atomic.Int64
	// last is what each connection's last answer said: pod and revision.
	last    []atomic.Pointer[answer]
	stop    context.CancelFunc
	workers sync.WaitGroup
	mu      sync.Mutex
	errs    []string
}

func startLoad(t *testing.T, c *client, connections int) *load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{last: make([]atomic.Pointer[answer], connections), stop: cancel}
	for i := range connections {
		own := newClient(c.proxy) // one worker, one connection
		l.workers.Go(func() {
			defer func() {
				l.opened.Add(own.opened.Load())
				own.http.CloseIdleConnections()
			}()
			for ctx.Err() == nil {
				a, err := own.try(http.MethodGet, web+"/load")
				l.sent.Add(1)
				if err != nil || a.Status != 200 {
					l.failed.Add(1)
					l.mu.Lock()
					l.errs = append(l.errs, fmt.Sprintf("%d %q %v", a.Status, a.Body, err))
					l.mu.Unlock()
				}
				l.last[i].Store(&a)
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	return l
}

// await waits until every connection's last answer is ok.
func (l *load) await(t *testing.T, what string, ok func(*answer) bool) time.Duration {
	t.Helper()
	began := time.Now()
	for time.Since(began) < 20*time.Second {
		n := 0
		for i := range l.last {
			if a := l.last[i].Load(); a != nil && ok(a) {
				n++
			}
		}
		if n == len(l.last) {
			return time.Since(began)
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Errorf("%s was not seen by all connections within 20 s", what)
	return time.Since(began)
}

func TestPushesUnderLoad(t *testing.T) {
	s := begin(t, "push")
	echo := func(a *app) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("x-pod", a.pod)
			fmt.Fprint(w, r.Header.Get("x-revision"))
		}
	}
	s.web1.reset(echo(s.web1))
	s.web2.reset(echo(s.web2))
	const connections, changes = 6, 25
	l := startLoad(t, s.shop, connections)
	l.await(t, "the load", func(a *answer) bool { return a.Body == "0" })
	var slowest time.Duration
	for i := 1; i <= changes; i++ {
		s.setRevision(t, i)
		d := l.await(t, fmt.Sprintf("route change %d", i), func(a *answer) bool { return a.Body == strconv.Itoa(i) })
		slowest = max(slowest, d)
		pod := []string{"web-1", "web-2"}[i%2]
		s.setReady(t, pod)
		d = l.await(t, fmt.Sprintf("endpoint change %d", i), func(a *answer) bool { return a.Header.Get("x-pod") == pod })
		slowest = max(slowest, d)
		if i%5 == 0 {
			s.setReady(t, "web-1", "web-2")
		}
	}
	l.stop()
	l.workers.Wait()
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed: %s", n, l.sent.Load(), strings.Join(l.errs[:min(len(l.errs), 5)], "; "))
	}
	if n := l.opened.Load(); n != connections {
		t.Errorf("%d connections were opened for %d workers: some were drained", n, connections)
	}
	t.Logf("%d requests over %d route and as many endpoint changes, the slowest seen after %v", l.sent.Load(), changes, slowest.Round(time.Millisecond))
}
