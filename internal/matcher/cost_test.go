package matcher_test

import (
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

// spent is the processor time of this thread so far.
func spent(t *testing.T) time.Duration {
	t.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(1, &r); err != nil { // RUSAGE_THREAD
		t.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// TestExpressionsCostWhatTheirInputIsLong: patterns that need exponential time in
// other engines, and long ones, on values as large as a head may be.
func TestExpressionsCostWhatTheirInputIsLong(t *testing.T) {
	if testing.Short() {
		t.Skip("it measures")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	many := make([]string, 1500)
	for i := range many {
		many[i] = fmt.Sprintf("a%da", i%10)
	}
	for _, c := range []struct{ name, src, unit, end string }{
		{"nested repetition", "(a+)+$", "a", "b"},
		{"alternatives that overlap", "(a|aa)+$", "a", "b"},
		{"repetition of everything", "(.*)*x", "a", "b"},
		{"1,024 and more characters", strings.Repeat("(a?)", 256) + strings.Repeat("a", 256) + "b*", "a", "c"},
		{"1,500 alternatives", "(" + strings.Join(many, "|") + ")*", "a1a", "b"},
		{"a counted repetition", "(a{1,50}){1,20}b", "a", "c"},
		{"letters of any language", `(\pL|\pN|\pS)*x`, "a", "-"},
	} {
		m, err := matcher.NewString(matcher.Regex, c.src, false)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		least := func(n, times int) time.Duration {
			s := strings.Repeat(c.unit, n/len(c.unit)) + c.end
			best := time.Hour
			for range 2 {
				began := spent(t)
				for range times {
					if m.Match(s) {
						t.Fatalf("%s matches", c.name)
					}
				}
				best = min(best, spent(t)-began)
			}
			return best
		}
		times := 1 // to be more than the clock's ticks
		for least(30<<10, times) < 30*time.Millisecond {
			times *= 2
		}
		one, two := least(30<<10, times), least(60<<10, times)
		t.Logf("%s: 30 KiB in %v, 60 KiB in %v", c.name, one/time.Duration(times), two/time.Duration(times))
		if two > 3*one { // quadratic would be four times as much
			t.Errorf("%s: twice the input costs %v instead of %v", c.name, two, one)
		}
	}
}
