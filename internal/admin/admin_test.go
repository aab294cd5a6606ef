package admin_test

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/internal/admin"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type calls struct{ log []string }

func (c *calls) add(s string) { c.log = append(c.log, s) }

func handler(state admin.State, c *calls) http.Handler {
	r := &stats.Registry{}
	s := r.Scope("envoy_cluster_", stats.Label{Name: "envoy_cluster_name", Value: "a|b"})
	s.Counter("upstream_rq_total").Add(3)
	s.Counter("upstream_rq_xx", stats.Label{Name: "envoy_response_code_class", Value: "5"})
	h := s.Histogram("upstream_rq_time", nil)
	for range 100 {
		h.Observe(7)
	}
	r.Scope("fairlead_").Gauge("live").Set(1)
	return admin.New(admin.Source{
		Info: func() admin.ServerInfo {
			return admin.ServerInfo{Version: "v1", State: state, Start: time.Now().Add(-3 * time.Second), Node: map[string]any{"id": "n"}}
		},
		ConfigDump: func(eds bool) []any { return []any{map[string]any{"@type": "x", "eds": eds}} },
		Clusters: func() []admin.Cluster {
			return []admin.Cluster{{
				Name: "b", AddedViaAPI: true, Default: admin.Limits{MaxConnections: 1024, MaxPendingRequests: 1024, MaxRequests: 1024, MaxRetries: 3},
				Hosts: []admin.Host{
					{Address: "10.0.0.1:80", Weight: 1, SuccessRate: -1, Region: "r", Stats: admin.HostStats{CxActive: 1, RqTotal: 9}},
					{Address: "envoy://connect_originate/10.0.0.2:80", Weight: 2, SuccessRate: -1, Health: []string{"failed_eds_health", "failed_outlier_check"}},
				},
			}, {Name: "a"}}
		},
		Listeners: func() []admin.Listener {
			return []admin.Listener{{Name: "l", Addresses: []string{"0.0.0.0:15008", "[::]:15008"}}}
		},
		Certs:       func() any { return map[string]any{"certificates": []any{}} },
		Unsupported: func() any { return []string{"x"} },
		Memory: func() admin.MemoryUse {
			return admin.MemoryUse{
				Listeners: []admin.BufferUse{{Name: "l", Connections: 2, Streams: 3, Read: 4, Write: 5, Bound: 600}},
				Streams:   []admin.StreamUse{{In: "listener l", Peer: "10.0.0.1:9", Stream: 7, Held: 4, Bound: 100}},
				Others:    []admin.StoreUse{{Name: "access logs", Held: 8, Bound: 1000}, {Name: "configuration", Held: 9}},
			}
		},
		Stats:   r,
		Logging: admin.LevelVar{V: new(slog.LevelVar)},
		Drain: func(in, graceful bool) {
			if in && graceful {
				c.add("drain inbound gracefully")
			}
		},
		FailHealth: func(f bool) {
			if f {
				c.add("fail")
			}
		},
		Quit: func() { c.add("quit") },
	})
}

func TestEndpoints(t *testing.T) {
	for _, c := range []struct {
		method, path string
		state        admin.State
		status       int
		want         string // part of the body
	}{
		{"GET", "/ready", admin.Live, 200, "LIVE\n"},
		{"GET", "/ready", admin.PreInitializing, 503, "PRE_INITIALIZING\n"},
		{"GET", "/server_info", admin.Draining, 200, `"state": "DRAINING"`},
		{"GET", "/server_info", admin.Live, 200, `"uptime_current_epoch": "3s"`},
		{"GET", "/config_dump", admin.Live, 200, `"@type": "x"`},
		{"GET", "/config_dump?include_eds", admin.Live, 200, `"eds": true`},
		{"GET", "/config_dump?resource=x", admin.Live, 400, "not supported"},
		{"GET", "/clusters", admin.Live, 200, "b::default_priority::max_retries::3\n"},
		{"GET", "/clusters", admin.Live, 200, "b::10.0.0.1:80::rq_total::9\nb::10.0.0.1:80::hostname::\nb::10.0.0.1:80::health_flags::healthy\n"},
		{"GET", "/clusters", admin.Live, 200, "b::envoy://connect_originate/10.0.0.2:80::health_flags::/failed_eds_health/failed_outlier_check\n"},
		{"GET", "/clusters?format=json", admin.Live, 200, `"envoy_internal_address"`},
		{"GET", "/listeners", admin.Live, 200, "l::0.0.0.0:15008,[::]:15008\n"},
		{"GET", "/listeners?format=json", admin.Live, 200, `"additional_local_addresses"`},
		{"GET", "/certs", admin.Live, 200, "certificates"},
		{"GET", "/debug/unsupported", admin.Live, 200, `"x"`},
		{"GET", "/stats", admin.Live, 200, "cluster.a|b.upstream_rq_total: 3\n"},
		{"GET", "/stats", admin.Live, 200, `cluster.a|b.upstream_rq_5xx: 0` + "\n"},
		{"GET", "/stats", admin.Live, 200, "cluster.a|b.upstream_rq_time: P0(nan,5) P25(nan,6.25) P50(nan,7.5)"},
		{"GET", "/debug/memory", admin.Live, 200, "listener l: connections 2, streams 3, read 4, write 5, bound 600\nstream 7 of 10.0.0.1:9 in listener l: held 4, bound 100\naccess logs: held 8, bound 1000\nconfiguration: held 9, bound as configured\n"},
		{"GET", "/debug/memory", admin.Live, 200, "\nheap_live: "},
		{"GET", "/debug/memory?format=json", admin.Live, 200, `"clusters": []`},
		{"GET", "/debug/memory?format=json", admin.Live, 200, `"bound": 600`},
		{"GET", "/stats?format=json&filter=live", admin.Live, 200, `"name": "fairlead_live"`},
		{"GET", "/stats?filter=(", admin.Live, 400, "filter:"},
		{"GET", "/stats/prometheus", admin.Live, 200, `envoy_cluster_upstream_rq_total{envoy_cluster_name="a|b"} 3`},
		{"GET", "/stats?format=prometheus", admin.Live, 200, "# TYPE"},
		{"GET", "/help", admin.Live, 200, "/quitquitquit (POST): exit the server\n"},
		{"GET", "/", admin.Live, 200, "<table>"},
		{"GET", "/nope", admin.Live, 404, ""},
		{"GET", "/quitquitquit", admin.Live, 405, "use POST"},
		{"GET", "/logging", admin.Live, 405, ""},
		{"GET", "/drain_listeners", admin.Live, 405, ""},
		{"POST", "/logging", admin.Live, 200, "active loggers:\n  default: info\n"},
		{"POST", "/logging?level=debug", admin.Live, 200, "  default: debug\n"},
		{"POST", "/logging?level=loud", admin.Live, 400, "unknown level"},
		{"POST", "/logging?router=debug", admin.Live, 400, "unknown logger"},
		{"POST", "/drain_listeners?inboundonly&graceful", admin.Live, 200, "OK"},
		{"POST", "/healthcheck/fail", admin.Live, 200, "OK"},
		{"POST", "/quitquitquit", admin.Live, 200, "OK"},
		{"GET", "/memory", admin.Live, 200, "allocated"},
		{"GET", "/debug/pprof/", admin.Live, 200, "goroutine"},
		{"GET", "/debug/pprof/goroutine?debug=1", admin.Live, 200, "goroutine profile"},
	} {
		rec := httptest.NewRecorder()
		handler(c.state, &calls{}).ServeHTTP(rec, httptest.NewRequest(c.method, c.path, nil))
		if rec.Code != c.status || !strings.Contains(rec.Body.String(), c.want) {
			t.Errorf("%s %s: %d, want %d with %q:\n%s", c.method, c.path, rec.Code, c.status, c.want, rec.Body)
		}
		if strings.HasPrefix(rec.Header().Get("Content-Type"), "application/json") && !json.Valid(rec.Body.Bytes()) {
			t.Errorf("%s: not JSON", c.path)
		}
	}
}

func TestUnusedSeriesAreLeftOutOnRequest(t *testing.T) {
	rec := httptest.NewRecorder()
	handler(admin.Live, &calls{}).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/stats/prometheus?usedonly", nil))
	if b := rec.Body.String(); strings.Contains(b, "upstream_rq_xx") || !strings.Contains(b, "upstream_rq_total") {
		t.Error(b)
	}
}

func TestEndpointsThatActDoSo(t *testing.T) {
	c := &calls{}
	h := handler(admin.Live, c)
	for _, p := range []string{"/drain_listeners?inboundonly&graceful", "/healthcheck/fail", "/healthcheck/ok", "/quitquitquit"} {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, p, nil))
	}
	if got := strings.Join(c.log, ","); got != "drain inbound gracefully,fail,quit" {
		t.Error(got)
	}
}

func TestWebPagesMayNotAct(t *testing.T) {
	c := &calls{}
	req := httptest.NewRequest(http.MethodPost, "/quitquitquit", nil)
	req.Header.Set("Origin", "https://evil.example")
	rec := httptest.NewRecorder()
	handler(admin.Live, c).ServeHTTP(rec, req)
	if rec.Code != http.StatusForbidden || len(c.log) != 0 {
		t.Errorf("%d, %v", rec.Code, c.log)
	}
}

func TestMissingSourcesAreNotFound(t *testing.T) {
	h := admin.New(admin.Source{})
	h.Handle("/extra", "more", false, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "extra") }))
	for path, want := range map[string]int{"/clusters": 404, "/ready": 404, "/stats": 404, "/help": 200, "/extra": 200} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
		if rec.Code != want {
			t.Errorf("%s: %d", path, rec.Code)
		}
	}
}

func get(t *testing.T, method, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestServerServesUntilClosed(t *testing.T) {
	s, err := admin.Serve("127.0.0.1:0", handler(admin.Live, &calls{}), nil)
	if err != nil {
		t.Fatal(err)
	}
	if code, body := get(t, http.MethodGet, "http://"+s.Addr().String()+"/ready"); code != 200 || body != "LIVE\n" {
		t.Errorf("%d %q", code, body)
	}
	if _, err := admin.Serve(s.Addr().String(), http.NotFoundHandler(), nil); err == nil || !strings.Contains(err.Error(), "another proxy") {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestProbesAndAgentEndpoints(t *testing.T) {
	var down error
	quits := 0
	r := &stats.Registry{}
	r.Scope("").Counter("x_total").Inc()
	s, err := admin.Serve("127.0.0.1:0", admin.AgentHandler(r, func() error { return down }, func() { quits++ }), nil)
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + s.Addr().String()
	if code, _ := get(t, http.MethodGet, url+"/healthz/ready"); code != 200 {
		t.Errorf("ready: %d", code)
	}
	down = errors.New("no listeners yet")
	if code, body := get(t, http.MethodGet, url+"/healthz/ready"); code != 503 || !strings.Contains(body, "no listeners yet") {
		t.Errorf("not ready: %d %q", code, body)
	}
	if _, body := get(t, http.MethodGet, url+"/stats/prometheus"); !strings.Contains(body, "x_total 1") {
		t.Error(body)
	}
	if code, _ := get(t, http.MethodGet, url+"/quitquitquit"); code != 405 || quits != 0 {
		t.Errorf("GET quit: %d, %d", code, quits)
	}
	if code, _ := get(t, http.MethodPost, url+"/quitquitquit"); code != 200 || quits != 1 {
		t.Errorf("POST quit: %d, %d", code, quits)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	rec := httptest.NewRecorder()
	admin.HealthHandler(func() error { return nil }).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/healthz/ready", nil))
	if rec.Code != 200 {
		t.Error(rec.Code)
	}
}
