package report

import (
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fairlead-mesh/fairlead/bench/plot"
)

// Plots writes SVG files to dir: latency-WORKLOAD.svg for each paced workload,
// cpu.svg, and memory-routes.svg if that was measured.
func (r *Report) Plots(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // files to look at
		return err
	}
	var errs []error
	for _, w := range r.workloads() {
		if strings.Contains(w, "paced") {
			name := strings.NewReplacer(" ", "-", "/", "", "×", "x").Replace(w)
			errs = append(errs, write(filepath.Join(dir, "latency-"+name+".svg"), r.latency(w)))
		}
	}
	for _, closed := range []bool{true, false} {
		if c := r.cpu(closed); len(c.Groups) > 0 {
			name := map[bool]string{true: "cpu-closed.svg", false: "cpu-paced.svg"}[closed]
			errs = append(errs, write(filepath.Join(dir, name), c))
		}
	}
	if c := r.memory(); len(c.Series) > 0 {
		errs = append(errs, write(filepath.Join(dir, "memory-routes.svg"), c))
	}
	return errors.Join(errs...)
}

func write(file string, c interface{ Write(w io.Writer) error }) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(c.Write(f), f.Close())
}

func (r *Report) latency(w string) *plot.Lines {
	l := &plot.Lines{Title: "Latency: " + w, X: "µs", Y: "% of requests", LogX: true}
	for _, c := range r.contenders() {
		s := plot.Series{Name: c}
		for i, q := range Quantiles {
			var at []float64
			for k := range r.Samples {
				if m := &r.Samples[k]; m.Workload == w && m.Contender == c && i < len(m.Latency) {
					at = append(at, m.Latency[i])
				}
			}
			if len(at) > 0 {
				s.Points = append(s.Points, plot.Point{X: Median(at), Y: q})
			}
		}
		if len(s.Points) > 0 {
			l.Series = append(l.Series, s)
		}
	}
	return l
}

// cpu leaves large bodies out: their bars would dwarf the others.
func (r *Report) cpu(closed bool) *plot.Bars {
	b := &plot.Bars{Title: "Processor time a request, saturated", Y: "µs", Series: r.contenders()}
	if !closed {
		b.Title = "Processor time a request, paced"
	}
	for _, w := range r.workloads() {
		if strings.HasSuffix(w, "closed") != closed || strings.Contains(w, "64k") || strings.Contains(w, "1m") {
			continue
		}
		row := make([]float64, len(b.Series))
		for i, c := range b.Series {
			row[i] = math.NaN()
			if v := r.values(w, c); len(v) > 0 {
				row[i] = median(v)
			}
		}
		b.Groups, b.Values = append(b.Groups, w), append(b.Values, row)
	}
	return b
}

func (r *Report) memory() *plot.Lines {
	l := &plot.Lines{Title: "Memory when ready", X: "routes", Y: unitMB}
	for _, c := range distinct(r.Figures, func(f *Figure) string { return f.Contender }) {
		s := plot.Series{Name: c}
		for _, at := range []struct {
			routes float64
			figure string
		}{{1, ReadyRSS}, {1000, Routes1000RSS}, {5000, Routes5000RSS}} {
			if v := r.values(at.figure, c); len(v) > 0 {
				s.Points = append(s.Points, plot.Point{X: at.routes, Y: median(v)})
			}
		}
		if len(s.Points) > 1 {
			l.Series = append(l.Series, s)
		}
	}
	slices.SortFunc(l.Series, func(a, b plot.Series) int { return strings.Compare(a.Name, b.Name) })
	return l
}
