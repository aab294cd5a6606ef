package dlp

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// workOf returns the steps that scanning text takes an operator's expressions.
func workOf(t *testing.T, e *Engine, text string) int64 {
	t.Helper()
	s := e.NewScanner(func(Finding, []byte) Edit { return Edit{} })
	defer s.Free()
	for p := text; len(p) > 0; {
		n := min(4<<10, len(p))
		if _, err := s.Write([]byte(p[:n]), n == len(p)); err != nil {
			t.Logf("%.30q…: %v", text, err)
			return -1
		}
		p = p[n:]
	}
	return s.work
}

// TestExpressionsTakeLinearTime tries what makes backtracking engines stall:
// twice the data is at most 2.3 times the steps, or it is refused.
func TestExpressionsTakeLinearTime(t *testing.T) {
	n, measured := 0, 0
	for _, tt := range []struct{ pattern, text string }{
		{`a+b`, "a"},
		{`(a+)+b`, "a"},
		{`(a|aa)+b`, "a"},
		{`(a|a?)+b`, "ac"},
		{`a.*a.*a.*b`, "ax"},
		{`(x+x+)+y`, "x"},
		{`[a-z]+[a-z]+[a-z]+!`, "abc "},
		{`(\d+)*-`, "1"},
		{`((ab)*)*c`, "ab"},
		{`(a{1,100}){1,10}b`, "a"},
	} {
		e, err := New(Options{Regexes: []Regex{{Type: "X", Pattern: tt.pattern, MaxLength: 16}}})
		if err != nil {
			t.Logf("%s: %v", tt.pattern, err) // refused at once
			n++
			continue
		}
		size := 64 << 10
		if raceEnabled {
			size = 8 << 10
		}
		once, twice := workOf(t, e, strings.Repeat(tt.text, size/len(tt.text))), workOf(t, e, strings.Repeat(tt.text, 2*size/len(tt.text)))
		if once > 0 && twice > 0 && float64(twice) > 2.3*float64(once) {
			t.Errorf("%s: %d steps for %d bytes, %d for twice that", tt.pattern, once, size, twice)
		}
		n++
		measured += btoi(once > 0 && twice > 0)
	}
	if n != 10 || measured < 5 {
		t.Errorf("%d expressions, %d of them measured: want 10 and at least 5", n, measured)
	}
}

func TestAThousandExpressions(t *testing.T) {
	var o Options
	for i := range 1000 {
		o.Regexes = append(o.Regexes, Regex{Type: fmt.Sprint("X", i), Pattern: fmt.Sprintf(`\bk%03x-[a-z]+\d{3}`, i)})
	}
	e, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	text := string(cleanText(4<<20)) + " k3e7-abc123"
	start := time.Now()
	out := scan(e, text, nil, nil)
	if len(out.findings) != 1 {
		t.Errorf("found %v", out.findings)
	}
	t.Logf("%.0f MB/s", float64(len(text))/1e6/time.Since(start).Seconds())
}

// TestOnePassBeatsExpressions compares with one expression for each of ten of
// the kinds: the machine may be slow, but then both are.
func TestOnePassBeatsExpressions(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector slows both in its own way")
	}
	data := cleanText(256 << 10)
	var res []*regexp.Regexp
	for _, p := range naivePatterns {
		res = append(res, regexp.MustCompile(p))
	}
	e, err := New(Options{Types: Builtin()})
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := time.Hour, time.Hour
	for range 3 {
		start := time.Now()
		for range 8 {
			scan(e, string(data), nil, nil)
		}
		ours = min(ours, time.Since(start)/8)
		start = time.Now()
		for _, re := range res {
			_ = re.FindAllIndex(data, -1)
		}
		theirs = min(theirs, time.Since(start))
	}
	t.Logf("%d kinds at %.0f MB/s, ten expressions at %.1f MB/s", len(e.Types()), float64(len(data))/1e6/ours.Seconds(), float64(len(data))/1e6/theirs.Seconds())
	if theirs < 10*ours {
		t.Errorf("one pass takes %v, ten expressions %v: want a tenth at most", ours, theirs)
	}
}
