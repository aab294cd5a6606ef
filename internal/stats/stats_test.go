package stats_test

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/fairlead-mesh/fairlead/internal/stats"
)

func scrape(t *testing.T, r *stats.Registry) string {
	t.Helper()
	var b strings.Builder
	if err := r.WritePrometheus(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestExpositionIsSortedAndEscaped(t *testing.T) {
	r := &stats.Registry{}
	s := r.Scope("envoy_cluster_", stats.Label{Name: "envoy_cluster_name", Value: "b\"\\\n"})
	s.Counter("upstream_rq_total").Add(3)
	r.Scope("envoy_cluster_", stats.Label{Name: "envoy_cluster_name", Value: "a"}).Counter("upstream_rq_total").Inc()
	s.Gauge("upstream_cx_active").Set(-2)
	h := s.Histogram("upstream_rq_time", []float64{1, 10})
	for _, v := range []float64{0.5, 1, 5, 11.5} {
		h.Observe(v)
	}
	r.Describe("envoy_cluster_upstream_rq_time", "a\\b\nc")
	want := `# HELP envoy_cluster_upstream_cx_active Cluster upstream cx active.
# TYPE envoy_cluster_upstream_cx_active gauge
envoy_cluster_upstream_cx_active{envoy_cluster_name="b\"\\\n"} -2
# HELP envoy_cluster_upstream_rq_time a\\b\nc
# TYPE envoy_cluster_upstream_rq_time histogram
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="b\"\\\n",le="1"} 2
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="b\"\\\n",le="10"} 3
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="b\"\\\n",le="+Inf"} 4
envoy_cluster_upstream_rq_time_sum{envoy_cluster_name="b\"\\\n"} 18
envoy_cluster_upstream_rq_time_count{envoy_cluster_name="b\"\\\n"} 4
# HELP envoy_cluster_upstream_rq_total Requests sent to the cluster.
# TYPE envoy_cluster_upstream_rq_total counter
envoy_cluster_upstream_rq_total{envoy_cluster_name="a"} 1
envoy_cluster_upstream_rq_total{envoy_cluster_name="b\"\\\n"} 3
`
	if d := cmp.Diff(want, scrape(t, r)); d != "" {
		t.Error(d)
	}
}

func TestExpositionParses(t *testing.T) {
	r := &stats.Registry{}
	r.RegisterProcess()
	s := r.Scope("x_", stats.Label{Name: "bad name!", Value: "v\xff"})
	s.Counter("weird-name.total").Inc()
	s.Histogram("h_seconds", nil).ObserveMillis(time.Second)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	fams, err := parser.TextToMetricFamilies(strings.NewReader(scrape(t, r)))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"x_weird_name_total", "x_h_seconds", "process_resident_memory_bytes", "process_open_fds", "go_goroutines"} {
		if fams[n] == nil {
			t.Errorf("%s is missing", n)
		}
	}
	if v := fams["process_resident_memory_bytes"].GetMetric()[0].GetGauge().GetValue(); v < 1<<20 {
		t.Errorf("resident memory is %v", v)
	}
}

func TestProcessMetricsPassPromlint(t *testing.T) {
	r := &stats.Registry{}
	r.RegisterProcess()
	problems, err := promlint.New(strings.NewReader(scrape(t, r))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestSameNameAndLabelsGiveTheSameHandle(t *testing.T) {
	r := &stats.Registry{}
	l := stats.Label{Name: "a", Value: "1"}
	if r.Scope("x_", l).Counter("n") != r.Scope("x_").Scope("", l).Counter("n") {
		t.Error("two handles of one counter")
	}
	if r.Scope("x_", l).Counter("n") != r.Scope("").Counter("x_n", l) {
		t.Error("prefix and name make a difference")
	}
	if r.Scope("x_", l).Counter("n") == r.Scope("x_").Counter("n") {
		t.Error("labels make no difference")
	}
	c := r.Scope("x_").Histogram("n", nil) // taken by a counter
	c.Observe(1)
	if c == nil || strings.Contains(scrape(t, r), "histogram") {
		t.Error("a metric of another kind took over")
	}
}

func TestNilDiscards(t *testing.T) {
	var s *stats.Scope
	s.Scope("x").Counter("c").Inc()
	s.Gauge("g").Set(1)
	s.Histogram("h", nil).Observe(1)
	s.GaugeFunc("f", func() float64 { return 1 })
	s.CounterFamily("c", "", "a").With("x").Inc()
	s.HistogramFamily("c", "", nil, "a").With("x").Observe(1)
	if (*stats.Registry)(nil).Scope("x") != nil {
		t.Error("a nil registry has a scope")
	}
}

func TestCardinalityIsBoundedByAnOverflowSeries(t *testing.T) {
	r := &stats.Registry{MaxFamilySeries: 3}
	f := r.Scope("").CounterFamily("reqs_total", "Requests.", "user")
	for i := range 10 {
		f.With(fmt.Sprint(i)).Inc()
	}
	out := scrape(t, r)
	if !strings.Contains(out, `reqs_total{user="overflow"} 7`) || strings.Count(out, "reqs_total{") != 4 {
		t.Error(out)
	}
}

func TestForgottenSeriesDisappearAndComeBackEmpty(t *testing.T) {
	r := &stats.Registry{}
	s := r.Scope("c_", stats.Label{Name: "name", Value: "x"})
	old := s.Counter("n_total")
	old.Inc()
	r.Forget(stats.Label{Name: "name", Value: "x"})
	old.Inc()
	if out := scrape(t, r); out != "" {
		t.Error(out)
	}
	s.Counter("n_total").Add(5)
	if out := scrape(t, r); !strings.Contains(out, `c_n_total{name="x"} 5`) {
		t.Error(out)
	}
}

func TestSeriesOfAReleasedObjectDisappearAndThoseOfOthersStay(t *testing.T) {
	r := &stats.Registry{}
	of := func(name string) *stats.Scope { return r.Scope("c_", stats.Label{Name: "name", Value: name}).Own() }
	x, y := of("x"), of("y")
	held := x.Counter("n_total")
	held.Inc()
	x.Counter("codes_total", stats.Label{Name: "code", Value: "200"}).Inc()
	y.Counter("n_total").Inc()
	r.Scope("other_", stats.Label{Name: "name", Value: "x"}).Counter("n_total").Inc()
	stats.Release(x, nil)
	held.Inc()
	x.Counter("late_total").Inc()
	x.Counter("codes_total", stats.Label{Name: "code", Value: "500"}).Inc()
	if out := scrape(t, r); strings.Contains(out, `c_n_total{name="x"}`) || strings.Contains(out, "codes_total{") || strings.Contains(out, "late_total{") ||
		!strings.Contains(out, `c_n_total{name="y"} 1`) || !strings.Contains(out, `other_n_total{name="x"} 1`) {
		t.Error(out)
	}
	of("x").Counter("n_total").Add(5) // it came back
	if out := scrape(t, r); !strings.Contains(out, `c_n_total{name="x"} 5`) {
		t.Error(out)
	}
}

func TestUnusedSeriesCanBeLeftOut(t *testing.T) {
	r := &stats.Registry{}
	s := r.Scope("")
	s.Counter("a_total")
	s.Counter("b_total").Inc()
	s.Gauge("c")
	s.Histogram("d", nil)
	var b strings.Builder
	if err := r.WritePrometheusUsed(&b, func(n string) bool { return n != "c" }); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != "# HELP b_total B total.\n# TYPE b_total counter\nb_total 1\n" {
		t.Error(got)
	}
}

func TestContendedMetricsLoseNothing(t *testing.T) {
	r := &stats.Registry{}
	c, h := r.Scope("").Counter("c"), r.Scope("").Histogram("h", nil)
	var wg sync.WaitGroup
	const workers, each = 8, 20000
	for range workers {
		wg.Go(func() {
			for range each {
				c.Inc()
				h.Observe(2)
			}
		})
	}
	wg.Wait()
	if c.Value() != workers*each {
		t.Errorf("counter is %d", c.Value())
	}
	if d := h.Distribution(); d.Count != workers*each || d.Sum != 2*workers*each {
		t.Errorf("histogram has %d, %v", d.Count, d.Sum)
	}
}

type key struct{ src, dst, code uint32 }

func TestCacheMakesEachValueOnce(t *testing.T) {
	var c stats.Cache[key, int]
	made := map[key]int{}
	var mu sync.Mutex
	get := func(k key) *int {
		return c.Get(k, func(k key) *int {
			mu.Lock()
			defer mu.Unlock()
			made[k]++
			v := int(k.src)
			return &v
		})
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 5000 {
				k := key{src: uint32(i % 300)}
				if v := get(k); *v != i%300 {
					t.Errorf("key %d has %d", i%300, *v)
				}
			}
		})
	}
	wg.Wait()
	if len(made) != 300 {
		t.Errorf("%d keys were made", len(made))
	}
	for k, n := range made {
		if n != 1 {
			t.Errorf("%v was made %d times", k, n)
		}
	}
}

func TestFullCacheStartsAgain(t *testing.T) {
	c := stats.Cache[int, int]{Max: 4}
	n := 0
	for i := range 100 {
		c.Get(i, func(int) *int { n++; return new(int) })
	}
	if n != 100 {
		t.Errorf("made %d", n)
	}
}

// istioKey is what tells Istio's series apart, as integers.
type istioKey struct {
	source, destination, service uint32
	code                         uint16
	flags                        uint64
	protocol, security           uint8
}

type istioHandles struct {
	requests            *stats.Counter
	duration, req, resp *stats.Histogram
}

func istioMetrics(r *stats.Registry) func(istioKey) *istioHandles {
	labels := make([]string, 24)
	values := make([]string, 24)
	for i := range labels {
		labels[i], values[i] = fmt.Sprintf("l%d", i), "v"
	}
	s := r.Scope("istio_")
	reqs := s.CounterFamily("requests_total", "", labels...)
	dur := s.HistogramFamily("request_duration_milliseconds", "", nil, labels...)
	rq := s.HistogramFamily("request_bytes", "", nil, labels...)
	rs := s.HistogramFamily("response_bytes", "", nil, labels...)
	var cache stats.Cache[istioKey, istioHandles]
	create := func(k istioKey) *istioHandles {
		v := append([]string(nil), values...)
		v[0] = fmt.Sprint(k)
		return &istioHandles{reqs.With(v...), dur.With(v...), rq.With(v...), rs.With(v...)}
	}
	return func(k istioKey) *istioHandles { return cache.Get(k, create) }
}

func record(get func(istioKey) *istioHandles, k istioKey) {
	h := get(k)
	h.requests.Inc()
	h.duration.ObserveMillis(3 * time.Millisecond)
	h.req.Observe(812)
	h.resp.Observe(1400)
}

func TestRecordingAWarmSeriesAllocatesNothing(t *testing.T) {
	get := istioMetrics(&stats.Registry{})
	k := istioKey{source: 1, destination: 2, service: 3, code: 200}
	for range 10 {
		record(get, k)
	}
	if n := testing.AllocsPerRun(1000, func() { record(get, k) }); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}

func BenchmarkFourIstioMetricsOf24Labels(b *testing.B) {
	get := istioMetrics(&stats.Registry{})
	keys := make([]istioKey, 64)
	for i := range keys {
		keys[i] = istioKey{source: uint32(i), destination: 2, service: 3, code: 200}
		for range 200 {
			record(get, keys[i])
		}
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		record(get, keys[i&63])
		i++
	}
}

func BenchmarkCounterContended(b *testing.B) {
	c := (&stats.Registry{}).Scope("").Counter("c")
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c.Inc()
		}
	})
}

func TestTenThousandClustersStaySmall(t *testing.T) {
	if testing.Short() {
		t.Skip("allocates")
	}
	r := &stats.Registry{}
	before := heap()
	const clusters, metrics = 10000, 50
	for i := range clusters {
		s := r.Scope("envoy_cluster_", stats.Label{Name: "envoy_cluster_name", Value: fmt.Sprintf("outbound|80||svc-%d.ns.svc.cluster.local", i)})
		for k := range metrics {
			s.Counter(names[k])
		}
	}
	per := (heap() - before) / clusters
	t.Logf("%d bytes a cluster of %d counters", per, metrics)
	if per > 6000 {
		t.Errorf("%d bytes a cluster", per)
	}
}

var names = func() (ns [50]string) {
	for i := range ns {
		ns[i] = fmt.Sprintf("upstream_metric_%d", i)
	}
	return ns
}()

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
