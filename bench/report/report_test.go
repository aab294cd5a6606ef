package report

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := Median(tc.in); got != tc.want {
			t.Errorf("%v: got %v, want %v", tc.in, got, tc.want)
		}
	}
}

// A machine that slows down half-way must not change a ratio: rounds are
// compared with themselves.
func TestRatiosAreTakenWithinARound(t *testing.T) {
	r := Report{Baseline: "envoy", Missing: map[string]string{"nginx": "not installed"}}
	for round, slow := range []float64{1, 1, 4, 4, 4} {
		r.Samples = append(
			r.Samples,
			Sample{Workload: "w", Contender: Subject, Round: round, CPU: 5 * slow, RSS: 50 << 20},
			Sample{Workload: "w", Contender: "envoy", Round: round, CPU: 10 * slow, RSS: 100 << 20, Errors: 1},
		)
	}
	rows := r.Rows()
	if len(rows) != 2 || rows[0].Ratio != 0.5 || rows[0].RSSRatio != 0.5 || rows[0].CPU != 20 || rows[1].Ratio != 1 || rows[1].Errors != 5 {
		t.Fatalf("%+v", rows)
	}
	var out strings.Builder
	if err := r.Print(&out, []Bar{{Workload: "w", To: "envoy", Max: 0.6}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0.50", "≤ 0.6 × envoy", "missing: nginx: not installed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	out.Reset()
	if err := r.JSON(&out, nil); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal([]byte(out.String()), &back); err != nil || len(back.Samples) != 10 {
		t.Errorf("%v, %d samples", err, len(back.Samples))
	}
}

func TestJudge(t *testing.T) {
	r := Report{
		Samples: []Sample{
			{Workload: "w", Contender: Subject, Round: 1, CPU: 4, P99: 30},
			{Workload: "w", Contender: Subject, Round: 2, CPU: 8},
			{Workload: "w", Contender: "envoy", Round: 1, CPU: 10, P99: 20},
			{Workload: "w", Contender: "envoy", Round: 2, CPU: 20},
			{Workload: "x", Contender: "haproxy", Round: 1, CPU: 3},
			{Workload: "x", Contender: "haproxy", Round: 3, CPU: 1000},
			{Workload: "y", Contender: "haproxy", Round: 9, CPU: 12},
		},
		Figures: []Figure{{Name: "f", Contender: Subject, Round: 1, Unit: "KiB", Value: 1.5}, {Name: "f", Contender: "envoy", Round: 1, Unit: "KiB", Value: 3}},
	}
	for _, tc := range []struct {
		bar   Bar
		value float64
		state string
		text  string
	}{
		{Bar{Workload: "w", To: "envoy", Max: 0.4}, 0.4, met, "w ≤ 0.4 × envoy: 0.4, met"},
		{Bar{Workload: "w", P99: true, To: "envoy", Max: 1}, 1.5, missed, "w p99 ≤ 1 × envoy: 1.5, missed"},
		{Bar{Workload: "w", Of: "envoy", To: Subject, Max: 2.5}, 2.5, met, "envoy w ≤ 2.5 × fairlead: 2.5, met"},
		{Bar{Workload: "f", Min: 1.6, Unit: "KiB"}, 1.5, missed, "f ≥ 1.6 KiB: 1.5, missed"},
		{Bar{Workload: "f", Min: 1.4, Unit: "KiB"}, 1.5, met, "f ≥ 1.4 KiB: 1.5, met"},
		{Bar{Workload: "w", To: "envoy", Max: 0.39}, 0.4, missed, "w ≤ 0.39 × envoy: 0.4, missed"},
		{Bar{Workload: "w", To: "haproxy", Max: 1}, 0, notMeasured, "w ≤ 1 × haproxy: not measured"},
		{Bar{Workload: "w", To: "haproxy", ToWorkload: "x", Max: 1}, 4. / 3, missed, "w ≤ 1 × haproxy (x): 1.33, missed"},
		{Bar{Workload: "w", To: "haproxy", ToWorkload: "y", Max: 1}, 0.5, met, "w ≤ 1 × haproxy (y): 0.5, met"},
		{Bar{Workload: "f", Max: 1.4, Unit: "KiB"}, 1.5, missed, "f ≤ 1.4 KiB: 1.5, missed"},
		{Bar{Workload: "f", To: "envoy", Max: 0.5}, 0.5, met, "f ≤ 0.5 × envoy: 0.5, met"},
		{Bar{Workload: "g", Max: 1, Unit: "MB"}, 0, notMeasured, "g ≤ 1 MB: not measured"},
	} {
		v := r.Judge([]Bar{tc.bar})[0]
		if v.Value != tc.value || v.State != tc.state || v.String() != tc.text {
			t.Errorf("%s (%v)", v.String(), v.Value)
		}
	}
	var out strings.Builder
	if err := r.Markdown(&out, []Bar{{Workload: "f", Max: 2, Unit: "KiB"}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| f | KiB | 1.50 | 3.00 |", "| f | ≤ 2 KiB | 1.50 | met |", "| w | fairlead | 6.0 |"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

// A bar whose name is misspelt would never be measured.
func TestBarsNameFiguresThatExist(t *testing.T) {
	for _, b := range Bars() {
		known := Units[b.Workload] != ""
		for _, shape := range []string{"hbone-plain ", "hbone-hbone ", "h1-h1 ", "grpc "} {
			known = known || strings.HasPrefix(b.Workload, shape)
		}
		if !known || b.Max <= 0 == (b.Min <= 0) || b.To == "" && b.Unit != Units[b.Workload] {
			t.Errorf("%+v", b)
		}
	}
}

func TestPlots(t *testing.T) {
	r := Report{Figures: []Figure{{Name: ReadyRSS, Contender: "a", Value: 30}, {Name: Routes5000RSS, Contender: "a", Value: 50}, {Name: ReadyRSS, Contender: "b", Value: 1}}}
	for _, w := range []string{"w closed", "w paced 5k/s", "w 1×100 closed", "w 1m closed"} {
		r.Samples = append(r.Samples, Sample{Workload: w, Contender: "a", CPU: 5, Latency: make([]float64, len(Quantiles))})
	}
	dir := t.TempDir()
	if err := r.Plots(dir); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got[f.Name()] = string(b)
	}
	if len(got) != 4 || strings.Contains(got["cpu-closed.svg"], "w 1m") || !strings.Contains(got["cpu-closed.svg"], "w 1×100") ||
		!strings.Contains(got["cpu-paced.svg"], "5k/s") || got["latency-w-paced-5ks.svg"] == "" || strings.Count(got["memory-routes.svg"], "<polyline") != 1 {
		t.Errorf("%v", slices.Sorted(maps.Keys(got)))
	}
}
