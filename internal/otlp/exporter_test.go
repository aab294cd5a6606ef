package otlp

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// fakeCollector answers by answer, which gets how many calls there were before.
type fakeCollector struct {
	mu     sync.Mutex
	bodies []string
	answer func(n int) (*filters.CalloutResponse, error)
}

func (f *fakeCollector) RoundTrip(ctx context.Context, _ string, c *filters.Callout, _ int64) (*filters.CalloutResponse, error) {
	f.mu.Lock()
	n := len(f.bodies)
	f.bodies = append(f.bodies, string(c.Body))
	f.mu.Unlock()
	if f.answer == nil {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	return f.answer(n)
}

func (f *fakeCollector) got() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.bodies, "|")
}

func ok(int) (*filters.CalloutResponse, error) { return &filters.CalloutResponse{Status: 200}, nil }

func exporter(f *fakeCollector, queue int) (e *Exporter[string], sent, dropped, failed *stats.Counter) {
	sent, dropped, failed = new(stats.Counter), new(stats.Counter), new(stats.Counter)
	return New(Config[string]{
		Flush: time.Second, Batch: 3, Queue: queue, What: "words", Upstreams: f, Logger: slog.New(slog.DiscardHandler),
		Encode: func(b []string) ([]byte, error) { return []byte(strings.Join(b, " ")), nil },
		Sent:   sent, Dropped: dropped, Failed: failed,
	}), sent, dropped, failed
}

func TestRecordsLeaveTogetherInTimeAndAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeCollector{answer: ok}
		e, sent, dropped, _ := exporter(f, 10)
		for _, w := range []string{"a", "b", "c", "d"} {
			e.Add(w)
		}
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		if got := f.got(); got != "a b c" {
			t.Errorf("a whole batch: %q", got)
		}
		time.Sleep(600 * time.Millisecond)
		synctest.Wait()
		if got := f.got(); got != "a b c|d" {
			t.Errorf("after the flush interval: %q", got)
		}
		e.Add("e")
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if got := f.got(); got != "a b c|d|e" || sent.Value() != 5 || dropped.Value() != 0 {
			t.Errorf("at the end: %q, %d sent, %d dropped", got, sent.Value(), dropped.Value())
		}
		e.Add("f")
		if dropped.Value() != 1 {
			t.Error("a record after the end isn't counted as dropped")
		}
		_ = e.Close()
	})
}

func TestABatchIsRepeatedAndThenDropped(t *testing.T) {
	for name, c := range map[string]struct {
		answer              func(n int) (*filters.CalloutResponse, error)
		calls               int
		sent, dropped, fail uint64
	}{
		"the third time is a success": {func(n int) (*filters.CalloutResponse, error) {
			return &filters.CalloutResponse{Status: map[bool]int{true: 503, false: 200}[n < 2]}, nil
		}, 3, 1, 0, 2},
		"nobody there":         {func(int) (*filters.CalloutResponse, error) { return nil, errors.New("refused") }, Attempts, 0, 1, Attempts},
		"not to be sent again": {func(int) (*filters.CalloutResponse, error) { return &filters.CalloutResponse{Status: 400}, nil }, 1, 0, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeCollector{answer: c.answer}
				e, sent, dropped, failed := exporter(f, 10)
				e.Add("a")
				time.Sleep(time.Minute)
				synctest.Wait()
				_ = e.Close()
				if n := strings.Count(f.got(), "a"); n != c.calls || sent.Value() != c.sent || dropped.Value() != c.dropped || failed.Value() != c.fail {
					t.Errorf("%d calls, %d sent, %d dropped, %d failed", n, sent.Value(), dropped.Value(), failed.Value())
				}
			})
		})
	}
}

func TestACollectorThatHangsHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeCollector{}
		e, _, dropped, _ := exporter(f, 2)
		for range 3 {
			e.Add("x")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		for range 5 {
			e.Add("y")
		}
		if dropped.Value() < 3 {
			t.Errorf("%d dropped of a full queue", dropped.Value())
		}
		began := time.Now()
		_ = e.Close()
		if d := time.Since(began); d > lastExport+time.Second {
			t.Errorf("the end took %v", d)
		}
	})
}
