// Package report turns measurements into medians, ratios, a table and JSON.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
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
}

// Bar is a limit for the ratio of CPU to the baseline.
type Bar struct {
	Workload, Contender string
	Max                 float64
}

// Report is a whole run.
type Report struct {
	// Baseline is the contender that ratios are to.
	Baseline string   `json:"baseline"`
	Samples  []Sample `json:"samples"`
	// Missing says which contenders could not run, and why.
	Missing map[string]string `json:"missing,omitempty"`
	// Machine describes where it ran.
	Machine string `json:"machine"`
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

// order returns the distinct values of key in order of appearance.
func (r *Report) order(key func(*Sample) string) []string {
	var out []string
	for i := range r.Samples {
		if k := key(&r.Samples[i]); !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
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

// Rows computes the table.
func (r *Report) Rows() []Row {
	var rows []Row
	for _, w := range r.order(func(s *Sample) string { return s.Workload }) {
		base := map[int]Sample{}
		for _, s := range r.Samples {
			if s.Workload == w && s.Contender == r.Baseline {
				base[s.Round] = s
			}
		}
		for _, c := range r.order(func(s *Sample) string { return s.Contender }) {
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
			if len(cpu) == 0 {
				continue
			}
			row.CPU, row.Rate, row.RSS, row.P50, row.P99, row.P999 = Median(cpu), Median(rate), Median(rss), Median(p50), Median(p99), Median(p999)
			row.Ratio, row.RSSRatio = Median(ratio), Median(mem)
			rows = append(rows, row)
		}
	}
	return rows
}

// Print writes the table. bars may be nil.
func (r *Report) Print(w io.Writer, bars []Bar) error {
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(tw, "workload\tcontender\tCPU µs/req\t× %s\taim\trequests/s\tp50 µs\tp99 µs\tRSS MB\t× %s\terrors\t\n", r.Baseline, r.Baseline)
	last := ""
	for _, row := range r.Rows() {
		name := row.Workload
		if name == last {
			name = ""
		}
		last = row.Workload
		aim := ""
		for _, bar := range bars {
			if bar.Workload == row.Workload && bar.Contender == row.Contender {
				aim = fmt.Sprintf("≤ %.2f", bar.Max)
			}
		}
		ratio, mem := "", ""
		if row.Ratio > 0 {
			ratio, mem = fmt.Sprintf("%.2f", row.Ratio), fmt.Sprintf("%.2f", row.RSSRatio)
		}
		fmt.Fprintf(tw, "%s\t%s\t%.1f\t%s\t%s\t%.0f\t%.0f\t%.0f\t%.0f\t%s\t%d\t\n", name, row.Contender, row.CPU, ratio, aim, row.Rate, row.P50, row.P99, row.RSS/(1<<20), mem, row.Errors)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for name, why := range r.Missing {
		fmt.Fprintf(&b, "missing: %s: %s\n", name, why)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// JSON writes the samples.
func (r *Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	return e.Encode(r)
}
