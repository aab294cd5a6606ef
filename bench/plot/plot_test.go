package plot

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
)

// wellFormed returns the names of the elements.
func wellFormed(t *testing.T, doc string) []string {
	t.Helper()
	var names []string
	d := xml.NewDecoder(strings.NewReader(doc))
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if e, ok := tok.(xml.StartElement); ok {
			names = append(names, e.Name.Local)
		}
	}
}

func TestLines(t *testing.T) {
	l := &Lines{Title: "a < b & c", X: "µs", Y: "%", LogX: true, Series: []Series{
		{"one", []Point{{0, 1}, {10, 0}, {100, 50}, {1000, 100}, {math.NaN(), 3}, {50, math.Inf(1)}}},
		{"<two>", []Point{{20, 10}, {200, 90}}},
		{"empty", nil},
	}}
	var b strings.Builder
	if err := l.Write(&b); err != nil {
		t.Fatal(err)
	}
	names := wellFormed(t, b.String())
	lines := slices.DeleteFunc(names, func(n string) bool { return n != "polyline" })
	if len(lines) != 3 || strings.Contains(b.String(), "NaN") || strings.Contains(b.String(), "Inf") {
		t.Error(b.String())
	}
	// 10 is the lower edge, 1000 the right one: 0 is no point of a logarithmic axis.
	if want := `points="70.0,350.0 380.0,195.0 690.0,40.0"`; !strings.Contains(b.String(), want) {
		t.Errorf("no %s in\n%s", want, b.String())
	}
	var again strings.Builder
	if err := l.Write(&again); err != nil || again.String() != b.String() {
		t.Error("two drawings differ")
	}
}

func TestBars(t *testing.T) {
	var b strings.Builder
	if err := (&Bars{Title: "t", Y: "µs", Groups: []string{"g1", "g2"}, Series: []string{"a", "b"}, Values: [][]float64{{1, 2}, {math.NaN(), 4}}}).Write(&b); err != nil {
		t.Fatal(err)
	}
	wellFormed(t, b.String())
	if n := strings.Count(b.String(), "<title>"); n != 3 || !strings.Contains(b.String(), "g2, b: 4") {
		t.Errorf("%d bars in\n%s", n, b.String())
	}
	for _, c := range []interface{ Write(io.Writer) error }{&Bars{}, &Lines{}, &Lines{LogX: true}, &Bars{Groups: []string{"g"}, Series: []string{"s"}, Values: [][]float64{{0}}}} {
		b.Reset()
		if err := c.Write(&b); err != nil {
			t.Fatal(err)
		}
		wellFormed(t, b.String())
		if strings.Contains(b.String(), "NaN") {
			t.Error(b.String())
		}
	}
}

func TestTicks(t *testing.T) {
	for _, tc := range []struct {
		log       bool
		low, high float64
		want      []float64
	}{
		{false, 3, 47, []float64{0, 10, 20, 30, 40, 50}},
		{false, 0, 0.9, []float64{0, 0.2, 0.4, 0.6, 0.8, 1}},
		{true, 12, 3000, []float64{10, 100, 1000, 10000}},
		{true, 10, 10, []float64{10, 100}},
	} {
		a := fit(tc.log, func(yield func(float64)) { yield(tc.low); yield(tc.high) })
		got := a.ticks()
		if len(got) != len(tc.want) {
			t.Errorf("%v…%v: %v", tc.low, tc.high, got)
			continue
		}
		for i := range got {
			if math.Abs(got[i]-tc.want[i]) > 1e-9*tc.want[i]+1e-12 {
				t.Errorf("%v…%v: %v", tc.low, tc.high, got)
			}
		}
	}
}
