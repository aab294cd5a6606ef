package proxy_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/proxy"
)

// storm is a version of the whole configuration: whatever a request meets says
// which one it is. %[1]s is the version, %[2]s the chain's stat_prefix.
const storm = `
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: edge
  address: {socket_address: {address: 127.0.0.1, port_value: ${PORT}}}
  enable_reuse_port: false
  filter_chains:
  - filters:
    - name: hcm
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: "%[2]s"
        route_config:
          name: inline
          response_headers_to_add: [{header: {key: x-table, value: "%[1]s"}}]
          virtual_hosts:
          - name: all
            domains: ["*"]
            request_headers_to_add: [{header: {key: x-request, value: "%[1]s"}}]
            response_headers_to_add: [{header: {key: x-host, value: "%[1]s"}}]
            routes:
            - match: {prefix: /}
              route: {cluster: "app-%[1]s"}
              response_headers_to_add: [{header: {key: x-route, value: "%[1]s"}}]
              typed_per_filter_config:
                mutate: {"@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute, mutations: {
                  request_mutations: [{append: {header: {key: x-filter, value: "%[1]s"}}}], response_mutations: [{append: {header: {key: x-answer, value: "%[1]s"}}}]}}
        http_filters:
        - {name: mutate, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation}}
        - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
- {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: "app-%[1]s", type: EDS, eds_cluster_config: {eds_config: {ads: {}}}}
- {"@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: "app-%[1]s", endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: ${ORIGIN}}}}}]}]}
`

// barrage sends requests at a rate and looks at each answer.
type barrage struct {
	port     int
	requests atomic.Int64
	mu       sync.Mutex
	versions map[string]bool
	failures []string
}

func (l *barrage) fail(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, fmt.Sprintf(format, args...))
}

// check demands that an answer is of one version.
func (l *barrage) check(proto string, status int, h http.Header, body string) {
	l.requests.Add(1)
	want := h.Get("X-Table")
	seen := []string{h.Get("X-Host"), h.Get("X-Route"), h.Get("X-Answer")}
	seen = append(seen, strings.Split(body, ",")...)
	if status != http.StatusOK || want == "" || len(seen) != 5 {
		l.fail("%s: %d, version %q, %q", proto, status, want, body)
		return
	}
	for _, v := range seen {
		if v != want {
			l.fail("versions are mixed: %s, %v", want, seen)
			return
		}
	}
	l.mu.Lock()
	l.versions[want] = true
	l.mu.Unlock()
}

// pace calls f every d until ctx ends.
func pace(ctx context.Context, d time.Duration, f func()) {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			f()
		}
	}
}

// http1 keeps one connection for as long as the server does; nothing is
// repeated.
func (l *barrage) http1(ctx context.Context, t *testing.T, every time.Duration) {
	var c *client
	defer func() {
		if c != nil {
			_ = c.Close()
		}
	}()
	pace(ctx, every, func() {
		if c == nil {
			n, err := connect(t, l.port)
			if err != nil {
				l.fail("connecting: %v", err)
				return
			}
			c = n
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, err := io.WriteString(c, "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi")
		var resp *http.Response
		if err == nil {
			resp, err = http.ReadResponse(c.br, nil)
		}
		var body []byte
		if err == nil {
			body, err = io.ReadAll(resp.Body)
		}
		if err != nil {
			l.fail("http/1: %v", err)
			_ = c.Close()
			c = nil
			return
		}
		l.check(resp.Proto, resp.StatusCode, resp.Header, string(body))
		if resp.Close {
			_ = c.Close()
			c = nil
		}
	})
}

func (l *barrage) http2(ctx context.Context, every time.Duration) {
	tr := &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}
	defer tr.CloseIdleConnections()
	pace(ctx, every, func() {
		req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/x", l.port), nil)
		if err != nil {
			l.fail("%v", err)
			return
		}
		resp, err := tr.RoundTrip(req)
		var body []byte
		if err == nil {
			body, err = io.ReadAll(resp.Body)
			_ = resp.Body.Close()
		}
		if err != nil {
			l.fail("http/2: %v", err)
			return
		}
		l.check(resp.Proto, resp.StatusCode, resp.Header, string(body))
	})
}

// orphaned is for how long at most the route in force named a cluster that had been
// removed: its successor had not been sent, or not been taken up. After two seconds
// nobody is held liable for that.
func orphaned(ctx context.Context, s *proxy.Server) (longest time.Duration) {
	since := time.Now()
	pace(ctx, 5*time.Millisecond, func() {
		res := s.Snapshot().Resources
		l := res.Listeners["edge"]
		if l == nil || res.Cluster(l.FilterChains[0].Filters[0].HCM.RouteConfig.VirtualHosts[0].Routes[0].Action.Cluster) != nil {
			longest, since = max(longest, time.Since(since)), time.Now()
		}
	})
	return max(longest, time.Since(since))
}

// pushes is how many pushes a test sends: FAIRLEAD_PUSHES, or few.
func pushes() int {
	if n, err := strconv.Atoi(os.Getenv("FAIRLEAD_PUSHES")); err == nil && n > 0 {
		return n
	}
	if testing.Short() {
		return 100
	}
	return 300
}

// Each push replaces routes, their cluster and its endpoints; one in ten is
// refused, one in forty replaces the filter chain. With FAIRLEAD_PUSHES=1000 it
// is 1,000 pushes, 100 of them bad, at 1,000 requests a second.
func TestPushesUnderLoadFailNothingAndMixNothing(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s,%s", r.Header.Get("X-Request"), r.Header.Get("X-Filter"))
	}))
	t.Cleanup(origin.Close)
	w := &pushed{t: t, port: freePort(t), cp: xdstest.New(t, xdstest.Options{})}
	w.vars = map[string]string{"PORT": fmt.Sprint(w.port), "ORIGIN": strings.TrimPrefix(origin.URL, "http://127.0.0.1:")}
	w.set(fmt.Sprintf(storm, "0", "edge"))
	w.p, w.log = launch(t, fmt.Sprintf(adsBootstrap, portOf(w.cp)))
	eventually(t, "ready", func() bool { return w.p.Ready() == nil })

	l := &barrage{port: w.port, versions: map[string]bool{}}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() { l.http1(ctx, t, 8*time.Millisecond) })
	}
	for range 2 {
		wg.Go(func() { l.http2(ctx, 8*time.Millisecond) })
	}
	var alone time.Duration
	wg.Go(func() { alone = orphaned(ctx, w.p.Server()) })
	start, n, bad, last := time.Now(), pushes(), 0, "0"
	for i := 1; i <= n; i++ {
		v, prefix := strconv.Itoa(i), "edge"+strconv.Itoa(i/40)
		if i%10 == 0 {
			bad++
			rs, err := xdstest.Load([]byte(fmt.Sprintf(storm, v, "")), w.vars)
			if err != nil {
				t.Fatal(err)
			}
			w.cp.Update(rs[:1], nil) // the listener
		} else {
			rs, err := xdstest.Load([]byte(fmt.Sprintf(storm, v, prefix)), w.vars)
			if err != nil {
				t.Fatal(err)
			}
			w.cp.Update(rs, []xdstest.Key{{TypeURL: xdstest.Cluster, Name: "app-" + last}, {TypeURL: xdstest.Endpoints, Name: "app-" + last}})
			last = v
		}
		time.Sleep(5 * time.Millisecond)
	}
	eventually(t, "the last version", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.versions[last] })
	took := time.Since(start)
	cancel()
	wg.Wait()
	w.cp.Await(10*time.Second, func(rs []xdstest.Request) bool { // the last is on its way
		n := 0
		for _, r := range rs {
			if r.IsNACK() {
				n++
			}
		}
		return n >= bad
	})
	nacks := 0
	for _, r := range w.cp.Requests() {
		if !r.IsNACK() {
			continue
		}
		nacks++
		if m := r.GetErrorDetail().GetMessage(); !strings.Contains(m, "edge: filter_chains[0].filters[0].typed_config.stat_prefix: ") {
			t.Errorf("a NACK says %q", m)
		}
	}
	if nacks != bad {
		t.Errorf("%d NACKs for %d bad pushes", nacks, bad)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if alone > 1500*time.Millisecond {
		t.Logf("%v without the cluster that the route names: a failure may be due to that", alone)
		l.failures = slices.DeleteFunc(l.failures, func(f string) bool { return strings.Contains(f, ": 503, ") })
	}
	for i, f := range l.failures {
		if i == 10 {
			t.Errorf("and %d more", len(l.failures)-i)
			break
		}
		t.Error(f)
	}
	if len(l.versions) < n/100 {
		t.Errorf("only %d versions were seen", len(l.versions))
	}
	t.Logf("%d pushes, %d bad, in %v; %d requests (%.0f a second), %d failed; %d versions answered", n, bad, took.Round(time.Millisecond), l.requests.Load(), float64(l.requests.Load())/took.Seconds(), len(l.failures), len(l.versions))
}
