// Package plot draws lines and bars as SVG, without anything but the standard
// library. The output depends on the input alone.
package plot

import (
	"fmt"
	"html"
	"io"
	"math"
	"strings"
)

// Point of a line.
type Point struct{ X, Y float64 }

// Series is a line.
type Series struct {
	Name   string
	Points []Point
}

// Lines is a chart of lines. Points that are not finite, or not positive on a
// logarithmic axis, are left out.
type Lines struct {
	Title, X, Y string
	LogX        bool
	Series      []Series
}

// Bars is a chart of groups of bars: Values[i][j] is series j in group i; NaN is
// no bar.
type Bars struct {
	Title, Y       string
	Groups, Series []string
	Values         [][]float64
}

const (
	width, height            = 880, 420
	left, right, top, bottom = 70, 190, 40, 70
	plotW, plotH             = width - left - right, height - top - bottom
)

// Colours that people with any colour vision can tell apart.
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"}

func colour(i int) string { return colours[i%len(colours)] }

type canvas struct{ b strings.Builder }

func (c *canvas) printf(format string, args ...any) { fmt.Fprintf(&c.b, format, args...) }

func (c *canvas) open(title string) {
	c.printf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height, width, height)
	c.printf(`<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	c.printf(`<text x="%d" y="22" font-size="15">%s</text>`+"\n", left, html.EscapeString(title))
	c.printf(`<rect x="%d" y="%d" width="%d" height="%d" fill="none" stroke="#888"/>`+"\n", left, top, plotW, plotH)
}

func (c *canvas) text(x, y float64, anchor, s string) {
	c.printf(`<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, html.EscapeString(s))
}

func (c *canvas) legend(names []string) {
	for i, n := range names {
		y := float64(top + 10 + 18*i)
		c.printf(`<rect x="%d" y="%.1f" width="12" height="12" fill="%s"/>`+"\n", width-right+14, y-9, colour(i))
		c.text(width-right+32, y+1, "start", n)
	}
}

func (c *canvas) yAxis(a axis, label string) {
	for _, v := range a.ticks() {
		y := top + plotH*(1-a.at(v))
		c.printf(`<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#ddd"/>`+"\n", left, y, left+plotW, y)
		c.text(left-6, y+4, "end", tick(v))
	}
	c.printf(`<text x="16" y="%d" text-anchor="middle" transform="rotate(-90 16 %d)">%s</text>`+"\n", top+plotH/2, top+plotH/2, html.EscapeString(label))
}

func (c *canvas) close(w io.Writer) error {
	c.printf("</svg>\n")
	_, err := io.WriteString(w, c.b.String())
	return err
}

// axis maps values to 0…1.
type axis struct {
	low, high float64
	log       bool
}

func (a axis) at(v float64) float64 {
	if a.log {
		return math.Log(v/a.low) / math.Log(a.high/a.low)
	}
	return (v - a.low) / (a.high - a.low)
}

func (a axis) usable(v float64) bool {
	return !math.IsNaN(v) && !math.IsInf(v, 0) && (!a.log || v > 0)
}

// fit makes an axis for values.
func fit(log bool, values func(yield func(float64))) axis {
	a := axis{low: math.Inf(1), high: math.Inf(-1), log: log}
	values(func(v float64) {
		if a.usable(v) {
			a.low, a.high = min(a.low, v), max(a.high, v)
		}
	})
	switch {
	case a.low > a.high:
		a.low, a.high = 1, 10
	case log:
		a.low, a.high = math.Pow(10, math.Floor(math.Log10(a.low))), math.Pow(10, math.Ceil(math.Log10(a.high)))
		if a.low == a.high {
			a.high *= 10
		}
	default:
		a.low = min(a.low, 0)
		if a.high <= a.low {
			a.high = a.low + 1
		}
		step := a.step()
		a.high = math.Ceil(a.high/step) * step
	}
	return a
}

// step between the ticks of a linear axis: 1, 2 or 5 times a power of ten.
func (a axis) step() float64 {
	raw := (a.high - a.low) / 6
	p := math.Pow(10, math.Floor(math.Log10(raw)))
	for _, k := range []float64{1, 2, 5} {
		if k*p >= raw {
			return k * p
		}
	}
	return 10 * p
}

func (a axis) ticks() []float64 {
	var out []float64
	if a.log {
		for v := a.low; v <= a.high*1.001; v *= 10 {
			out = append(out, v)
		}
		return out
	}
	step := a.step()
	for i := math.Ceil(a.low / step); i*step <= a.high*1.0001; i++ {
		out = append(out, i*step)
	}
	return out
}

func tick(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%gM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%gk", v/1e3)
	}
	return fmt.Sprintf("%.4g", v)
}

// Write draws the chart.
func (l *Lines) Write(w io.Writer) error {
	x := fit(l.LogX, func(yield func(float64)) {
		for _, s := range l.Series {
			for _, p := range s.Points {
				yield(p.X)
			}
		}
	})
	y := fit(false, func(yield func(float64)) {
		for _, s := range l.Series {
			for _, p := range s.Points {
				yield(p.Y)
			}
		}
	})
	var c canvas
	c.open(l.Title)
	c.yAxis(y, l.Y)
	for _, v := range x.ticks() {
		px := left + plotW*x.at(v)
		c.printf(`<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#ddd"/>`+"\n", px, top, px, top+plotH)
		c.text(px, top+plotH+16, "middle", tick(v))
	}
	c.text(left+plotW/2, height-28, "middle", l.X)
	var names []string
	for i, s := range l.Series {
		names = append(names, s.Name)
		var at []string
		for _, p := range s.Points {
			if x.usable(p.X) && y.usable(p.Y) {
				at = append(at, fmt.Sprintf("%.1f,%.1f", left+plotW*x.at(p.X), top+plotH*(1-y.at(p.Y))))
			}
		}
		c.printf(`<polyline fill="none" stroke="%s" stroke-width="1.8" points="%s"/>`+"\n", colour(i), strings.Join(at, " "))
	}
	c.legend(names)
	return c.close(w)
}

// Write draws the chart.
func (b *Bars) Write(w io.Writer) error {
	y := fit(false, func(yield func(float64)) {
		for _, g := range b.Values {
			for _, v := range g {
				yield(v)
			}
		}
	})
	var c canvas
	c.open(b.Title)
	c.yAxis(y, b.Y)
	group := float64(plotW) / float64(max(len(b.Groups), 1))
	bar := group * 0.84 / float64(max(len(b.Series), 1))
	for i, name := range b.Groups {
		x := left + group*(float64(i)+0.08)
		for j := range b.Series {
			if i >= len(b.Values) || j >= len(b.Values[i]) || !y.usable(b.Values[i][j]) {
				continue
			}
			h := plotH * y.at(b.Values[i][j])
			c.printf(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"><title>%s, %s: %.4g</title></rect>`+"\n",
				x+bar*float64(j), top+plotH-h, bar, h, colour(j), html.EscapeString(name), html.EscapeString(b.Series[j]), b.Values[i][j])
		}
		px, py := left+group*(float64(i)+0.5), top+plotH+14
		c.printf(`<text x="%.1f" y="%d" text-anchor="end" font-size="10" transform="rotate(-25 %.1f %d)">%s</text>`+"\n", px, py, px, py, html.EscapeString(name))
	}
	c.legend(b.Series)
	return c.close(w)
}
