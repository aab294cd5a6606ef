package report

import (
	"encoding/json"
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
			Sample{Workload: "w", Contender: "a", Round: round, CPU: 5 * slow, RSS: 50 << 20},
			Sample{Workload: "w", Contender: "envoy", Round: round, CPU: 10 * slow, RSS: 100 << 20, Errors: 1},
		)
	}
	rows := r.Rows()
	if len(rows) != 2 || rows[0].Ratio != 0.5 || rows[0].RSSRatio != 0.5 || rows[0].CPU != 20 || rows[1].Ratio != 1 || rows[1].Errors != 5 {
		t.Fatalf("%+v", rows)
	}
	var out strings.Builder
	if err := r.Print(&out, []Bar{{"w", "a", 0.6}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0.50", "≤ 0.60", "missing: nginx: not installed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	out.Reset()
	if err := r.JSON(&out); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal([]byte(out.String()), &back); err != nil || len(back.Samples) != 10 {
		t.Errorf("%v, %d samples", err, len(back.Samples))
	}
}
