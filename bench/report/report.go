// Package report turns measurements into medians, ratios, tables, plots and
// JSON.
package report

import (
	"encoding/json"
	"io"
	"slices"
)

// Sample is one run of one contender.
type Sample struct {
	Workload  string `json:"workload"`
	Contender string `json:"contender"`
	Round     int    `json:"round"`
	// CPU is microseconds of processor time of the proxy's process a request.
	CPU float64 `json:"cpu_us_per_request"`
	// Rate is requests a second.
	Rate float64 `json:"requests_per_second"`
	// RSS is in bytes, after the run.
	RSS uint64 `json:"rss_bytes"`
	// P50, P99 and P999 are microseconds, seen by the client.
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
	P999     float64 `json:"p999_us"`
	Requests uint64  `json:"requests"`
	Errors   uint64  `json:"errors"`
	// Latency holds the values at Quantiles, in microseconds.
	Latency []float64 `json:"latency_us,omitempty"`
}

// Quantiles are where Sample.Latency is taken, in percent.
var Quantiles = []float64{1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.9}

// Figure is a measurement that is no workload: memory, a time.
type Figure struct {
	Name      string  `json:"name"`
	Contender string  `json:"contender"`
	Round     int     `json:"round"`
	Unit      string  `json:"unit"`
	Value     float64 `json:"value"`
}

// Report is a whole run.
type Report struct {
	// Baseline is the contender that ratios are to.
	Baseline string   `json:"baseline"`
	Samples  []Sample `json:"samples"`
	Figures  []Figure `json:"figures,omitempty"`
	// Missing says which contenders could not run, and why; Skipped the same of
	// workloads and figures.
	Missing map[string]string `json:"missing,omitempty"`
	Skipped map[string]string `json:"skipped,omitempty"`
	// Machine describes where it ran.
	Machine string `json:"machine"`
	// Verdicts is filled by JSON.
	Verdicts []Verdict `json:"bars,omitempty"`
}

// Median of v; 0 for none. v is not changed.
func Median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Clone(v)
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// distinct returns the distinct values of key in order of appearance.
func distinct[T any](all []T, key func(*T) string) []string {
	var out []string
	for i := range all {
		if k := key(&all[i]); !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
}

func (r *Report) workloads() []string {
	return distinct(r.Samples, func(s *Sample) string { return s.Workload })
}

func (r *Report) contenders() []string {
	return distinct(r.Samples, func(s *Sample) string { return s.Contender })
}

// Row is a workload's medians for one contender.
type Row struct {
	Workload, Contender            string
	CPU, Rate, RSS, P50, P99, P999 float64
	Errors                         uint64
	// Ratio is the median over rounds of the CPU ratio to the baseline in the
	// same round, RSSRatio that of memory; 0 without a baseline.
	Ratio, RSSRatio float64
}

// Rows computes the table of workloads.
func (r *Report) Rows() []Row {
	var rows []Row
	for _, w := range r.workloads() {
		base := map[int]Sample{}
		for _, s := range r.Samples {
			if s.Workload == w && s.Contender == r.Baseline {
				base[s.Round] = s
			}
		}
		for _, c := range r.contenders() {
			if row, ok := r.row(w, c, base); ok {
				rows = append(rows, row)
			}
		}
	}
	return rows
}

func (r *Report) row(w, c string, base map[int]Sample) (Row, bool) {
	var cpu, rate, rss, p50, p99, p999, ratio, mem []float64
	row := Row{Workload: w, Contender: c}
	for _, s := range r.Samples {
		if s.Workload != w || s.Contender != c {
			continue
		}
		cpu, rate, rss = append(cpu, s.CPU), append(rate, s.Rate), append(rss, float64(s.RSS))
		p50, p99, p999 = append(p50, s.P50), append(p99, s.P99), append(p999, s.P999)
		row.Errors += s.Errors
		if b, ok := base[s.Round]; ok && b.CPU > 0 && b.RSS > 0 {
			ratio, mem = append(ratio, s.CPU/b.CPU), append(mem, float64(s.RSS)/float64(b.RSS))
		}
	}
	row.CPU, row.Rate, row.RSS, row.P50, row.P99, row.P999 = Median(cpu), Median(rate), Median(rss), Median(p50), Median(p99), Median(p999)
	row.Ratio, row.RSSRatio = Median(ratio), Median(mem)
	return row, len(cpu) > 0
}

// values returns what was measured of a contender, by round: CPU a request of a
// workload, or a figure.
func (r *Report) values(name, contender string) map[int]float64 {
	v := map[int]float64{}
	for _, s := range r.Samples {
		if s.Workload == name && s.Contender == contender {
			v[s.Round] = s.CPU
		}
	}
	for _, f := range r.Figures {
		if f.Name == name && f.Contender == contender {
			v[f.Round] = f.Value
		}
	}
	return v
}

// p99s returns the 99th percentiles of a workload's latency, by round.
func (r *Report) p99s(workload, contender string) map[int]float64 {
	v := map[int]float64{}
	for _, s := range r.Samples {
		if s.Workload == workload && s.Contender == contender {
			v[s.Round] = s.P99
		}
	}
	return v
}

func median(v map[int]float64) float64 {
	var all []float64
	for _, x := range v {
		all = append(all, x)
	}
	return Median(all)
}

// ratio is the median over the rounds that both have; of medians if there is no
// such round. ok is false if one of them was not measured.
func ratio(v, to map[int]float64) (x float64, ok bool) {
	var both []float64
	for round, a := range v {
		if b := to[round]; b > 0 {
			both = append(both, a/b)
		}
	}
	if len(both) > 0 {
		return Median(both), true
	}
	if b := median(to); len(v) > 0 && b > 0 {
		return median(v) / b, true
	}
	return 0, false
}

// JSON writes every sample and figure, and the verdicts about bars.
func (r *Report) JSON(w io.Writer, bars []Bar) error {
	out := *r
	out.Verdicts = r.Judge(bars)
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	return e.Encode(&out)
}
