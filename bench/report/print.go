package report

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// table is rows of cells with a head.
type table struct {
	head []string
	rows [][]string
}

func (t *table) text(b *strings.Builder) {
	if len(t.rows) == 0 {
		return
	}
	tw := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range append([][]string{t.head}, t.rows...) {
		fmt.Fprintln(tw, strings.Join(row, "\t")+"\t")
	}
	_ = tw.Flush() // a Builder takes everything
	b.WriteByte('\n')
}

func (t *table) markdown(b *strings.Builder) {
	if len(t.rows) == 0 {
		return
	}
	for i, row := range append([][]string{t.head}, t.rows...) {
		fmt.Fprintf(b, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			b.WriteString("|" + strings.Repeat("---|", len(t.head)) + "\n")
		}
	}
	b.WriteByte('\n')
}

func (r *Report) workloadTable() *table {
	t := &table{head: []string{"workload", "contender", "CPU µs/req", "× " + r.Baseline, "requests/s", "p50 µs", "p99 µs", "p99.9 µs", "RSS MB", "RSS × " + r.Baseline}}
	last := ""
	for _, row := range r.Rows() {
		name := row.Workload
		if name == last {
			name = ""
		}
		last = row.Workload
		ratio, mem := "", ""
		if row.Ratio > 0 {
			ratio, mem = fmt.Sprintf("%.2f", row.Ratio), fmt.Sprintf("%.2f", row.RSSRatio)
		}
		who := row.Contender
		if row.Errors > 0 {
			who += fmt.Sprintf(" (%d errors)", row.Errors)
		}
		f := func(v float64) string { return fmt.Sprintf("%.0f", v) }
		t.rows = append(t.rows, []string{name, who, fmt.Sprintf("%.1f", row.CPU), ratio, f(row.Rate), f(row.P50), f(row.P99), f(row.P999), f(row.RSS / (1 << 20)), mem})
	}
	return t
}

// figureTable has a column for each contender.
func (r *Report) figureTable() *table {
	who := distinct(r.Figures, func(f *Figure) string { return f.Contender })
	t := &table{head: append([]string{"figure", "unit"}, who...)}
	for _, name := range distinct(r.Figures, func(f *Figure) string { return f.Name }) {
		row := []string{name, r.unit(name)}
		for _, c := range who {
			cell := ""
			if v := r.values(name, c); len(v) > 0 {
				cell = significant(median(v))
			}
			row = append(row, cell)
		}
		t.rows = append(t.rows, row)
	}
	return t
}

// significant has three digits, without an exponent.
func significant(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (r *Report) unit(name string) string {
	for _, f := range r.Figures {
		if f.Name == name {
			return f.Unit
		}
	}
	return ""
}

func (r *Report) barTable(bars []Bar) *table {
	t := &table{head: []string{"bar", "limit", "measured", "verdict"}}
	for _, v := range r.Judge(bars) {
		value := significant(v.Value)
		if v.State == notMeasured {
			value = ""
		}
		t.rows = append(t.rows, []string{v.what(), v.limit(), value, v.State})
	}
	return t
}

// Print writes tables for people. bars may be nil.
func (r *Report) Print(w io.Writer, bars []Bar) error {
	var b strings.Builder
	for _, t := range []*table{r.workloadTable(), r.figureTable(), r.barTable(bars)} {
		t.text(&b)
	}
	r.gaps(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

// Markdown writes the same tables for a document.
func (r *Report) Markdown(w io.Writer, bars []Bar) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Machine: %s\n\n", r.Machine)
	for _, t := range []*table{r.workloadTable(), r.figureTable(), r.barTable(bars)} {
		t.markdown(&b)
	}
	r.gaps(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

// gaps tells what could not be measured.
func (r *Report) gaps(b *strings.Builder) {
	for _, name := range slices.Sorted(maps.Keys(r.Missing)) {
		fmt.Fprintf(b, "missing: %s: %s\n", name, r.Missing[name])
	}
	for _, name := range slices.Sorted(maps.Keys(r.Skipped)) {
		fmt.Fprintf(b, "not measured: %s: %s\n", name, r.Skipped[name])
	}
}
