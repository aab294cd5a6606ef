package adaptiveconcurrency

import (
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/filters/internal/explaintest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// one lets a single request in.
const one = `"gradientControllerConfig":{"concurrencyLimitParams":{"concurrencyUpdateInterval":"0.1s","maxConcurrencyLimit":1},"minRttCalcParams":{"interval":"60s","minConcurrency":1}}`

func compile(t testing.TB, config string) *filter {
	t.Helper()
	cfg, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(config)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Factory{}.Compile(nil, cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f.(*filter) //nolint:forcetypeassert // a test
}

// upstream answers as do says.
type upstream func(s *filters.Stream) (*filters.Response, error)

func (u upstream) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) { return u(s) }

// answer has a body, nil for none.
func answer(b message.Body) upstream {
	return func(s *filters.Stream) (*filters.Response, error) {
		r := s.NewResponse()
		r.Header.Add(message.Status, "200")
		if b != nil {
			r.Body = b
		}
		return r, nil
	}
}

func stream(f filters.HTTPFilter, u upstream) *filters.Stream {
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	s.SetChain([]filters.HTTPFilter{f, u})
	return s
}

// slow is a body that does not come at once.
type slow struct {
	chunks []string
	err    error
	closed int
}

func (b *slow) Next() ([]byte, bool, error) {
	if b.err != nil {
		return nil, false, b.err
	}
	p := b.chunks[0]
	b.chunks = b.chunks[1:]
	return []byte(p), len(b.chunks) == 0, nil
}
func (*slow) Ready() (int, bool)        { return 0, false }
func (*slow) Trailers() *message.Header { return nil }
func (b *slow) Close()                  { b.closed++ }

// full is a filter of one, and the response that takes its place.
func full(t *testing.T, config string) (f *filter, holder *filters.Response) {
	t.Helper()
	f = compile(t, config)
	r, err := filters.Start(stream(f, answer(&slow{chunks: []string{"a", "b"}})))
	if err != nil || r.Local {
		t.Fatalf("%v, %v", r, err)
	}
	return f, r
}

func TestARequestOverTheLimitIsAnswered(t *testing.T) {
	for _, c := range []struct {
		name, config string
		grpc         bool
		status       int
		grpcStatus   string
	}{
		{"by default", `{` + one + `}`, false, 503, ""},
		{"gRPC", `{` + one + `}`, true, 200, "14"},
		{"with a status", `{` + one + `,"concurrencyLimitExceededStatus":{"code":"TooManyRequests"}}`, false, 429, ""},
		{"with a status that is no error", `{` + one + `,"concurrencyLimitExceededStatus":{"code":"OK"}}`, false, 503, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, holder := full(t, c.config)
			s := stream(f, func(*filters.Stream) (*filters.Response, error) {
				t.Error("it went on")
				return nil, errors.New("it went on")
			})
			s.Info.IsGRPC = c.grpc
			q := explaintest.Ask(t, f, s)
			r, err := filters.Start(s)
			if err != nil {
				t.Fatal(err)
			}
			q.Agrees(t, s, false, nil)
			if text := strings.Join(q.Explanation().Text, " "); text != "1 requests are in flight, the limit is 1 requests at once" {
				t.Errorf("explained as %q", text)
			}
			if r.Status() != c.status || r.Header.Get("grpc-status") != c.grpcStatus || s.Info.Details != "reached_concurrency_limit" || s.Info.Flags != 0 {
				t.Errorf("%d %q %q %v", r.Status(), r.Header.Get("grpc-status"), s.Info.Details, s.Info.Flags)
			}
			if d := s.Info.Decision; d == nil || d.Filter != "adaptive_concurrency" || d.Reason != "concurrency_limit" || s.Info.Limit != "1 requests at once" {
				t.Errorf("%+v, limit %q", d, s.Info.Limit)
			}
			if !c.grpc {
				if b, _, err := r.Body.Next(); string(b) != "reached concurrency limit" || err != nil {
					t.Errorf("%q, %v", b, err)
				}
			}
			holder.Body.Close()
		})
	}
}

// A place is free again when all of the response has been read, or nobody will.
func TestAPlaceIsHeldUntilTheResponseEnds(t *testing.T) {
	free := func(f *filter) bool { return f.x.outstanding.Load() == 0 }
	f, r := full(t, `{`+one+`}`)
	inner := r.Body.(*body).Body.(*slow) //nolint:forcetypeassert // a test
	if _, last, err := r.Body.Next(); last || err != nil || free(f) {
		t.Errorf("after the first chunk: last %t, %v, free %t", last, err, free(f))
	}
	if _, last, err := r.Body.Next(); !last || err != nil || !free(f) || f.x.hist.n != 1 {
		t.Errorf("after the last chunk: last %t, %v, free %t, %d samples", last, err, free(f), f.x.hist.n)
	}
	if r.Body.Close(); !free(f) || inner.closed != 1 {
		t.Errorf("after the end: free %t, closed %d times", free(f), inner.closed)
	}
	f, r = full(t, `{`+one+`}`)
	if r.Body.Close(); !free(f) || f.x.hist.n != 0 {
		t.Errorf("a response that was given up: free %t, %d samples", free(f), f.x.hist.n)
	}
	f = compile(t, `{`+one+`}`)
	broken := errors.New("broken")
	r, err := filters.Start(stream(f, answer(&slow{err: broken})))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Body.Next(); !errors.Is(err, broken) {
		t.Error(err)
	}
	if r.Body.Close(); !free(f) || f.x.hist.n != 0 {
		t.Errorf("a response that broke off: free %t, %d samples", free(f), f.x.hist.n)
	}
}

func TestAPlaceIsFreeWhateverTheRequestComesTo(t *testing.T) {
	for _, c := range []struct {
		name    string
		u       upstream
		samples uint64
	}{
		{"no body", answer(nil), 1},
		{"a whole body", answer(message.Bytes([]byte("whole"))), 1},
		{"an answer of a filter", func(s *filters.Stream) (*filters.Response, error) { return s.LocalReply(403, "no", "no", 0), nil }, 1},
		{"an upgrade", func(s *filters.Stream) (*filters.Response, error) {
			r := s.NewResponse()
			r.Tunnel, r.Body = tunnel{}, &slow{chunks: []string{"a"}}
			return r, nil
		}, 1},
		{"an error", func(*filters.Stream) (*filters.Response, error) { return nil, errors.New("gone") }, 0},
		{"no response", func(*filters.Stream) (*filters.Response, error) { return nil, nil }, 0}, //nolint:nilnil // a test
		{"a panic", func(*filters.Stream) (*filters.Response, error) { panic("a test") }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := compile(t, `{`+one+`}`)
			func() {
				defer func() { _ = recover() }()
				_, _ = filters.Start(stream(f, c.u))
			}()
			if n := f.x.outstanding.Load(); n != 0 || f.x.hist.n != c.samples {
				t.Errorf("%d in flight, %d samples, want %d", n, f.x.hist.n, c.samples)
			}
		})
	}
}

type tunnel struct{ filters.Tunnel }

// Requests that arrived together and need the processor alone count as many: the
// first does not do its work before the others are looked at.
func TestRequestsThatWaitForTheProcessorCount(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for limit := time.Now().Add(10 * time.Second); ; {
		served, refused := together(t, 40)
		if served >= 5 && refused >= 10 {
			return
		}
		if time.Now().After(limit) { // who created them may have been interrupted all the time
			t.Fatalf("%d were served, %d refused", served, refused)
		}
	}
}

// together sends n requests to a filter of five, of which each takes a processor for a
// moment.
func together(t *testing.T, n int) (served, refused int64) {
	t.Helper()
	f := compile(t, strings.ReplaceAll(`{`+one+`}`, `:1}`, `:5}`))
	var wg sync.WaitGroup
	var counts [2]atomic.Int64
	for range n {
		wg.Go(func() {
			r, err := filters.Start(stream(f, func(s *filters.Stream) (*filters.Response, error) {
				for began := time.Now(); time.Since(began) < 100*time.Microsecond; {
				}
				return answer(nil)(s)
			}))
			switch {
			case err != nil:
				t.Error(err)
			case r.Local:
				counts[1].Add(1)
			default:
				counts[0].Add(1)
			}
		})
	}
	wg.Wait()
	return counts[0].Load(), counts[1].Load()
}

func TestWhatPassesDoesNotAllocate(t *testing.T) {
	f := compile(t, `{`+one+`}`)
	s := stream(f, answer(nil))
	chain := s.Chain()
	if n := testing.AllocsPerRun(1000, func() {
		s.Info.Flags = 0
		s.SetChain(chain)
		if r, err := filters.Start(s); err != nil || r.Local {
			t.Fatalf("%v, %v", r, err)
		}
	}); n > 0 {
		t.Errorf("%g allocations a request", n)
	}
}

func BenchmarkPassage(b *testing.B) {
	f := compile(b, `{`+one+`}`)
	s := stream(f, answer(nil))
	for b.Loop() {
		_, _ = filters.Start(s)
	}
}

func TestDecode(t *testing.T) {
	const limits = `"concurrencyLimitParams":{"concurrencyUpdateInterval":"0.1s"}`
	for _, c := range []struct{ name, config, want string }{
		{"nothing", `{}`, "gradient_controller_config: must be set"},
		{"no limits", `{"gradientControllerConfig":{"minRttCalcParams":{"interval":"1s"}}}`, "gradient_controller_config.concurrency_limit_params: must be set"},
		{"no minimum", `{"gradientControllerConfig":{` + limits + `}}`, "gradient_controller_config.min_rtt_calc_params: must be set"},
		{"neither interval nor value", `{"gradientControllerConfig":{` + limits + `,"minRttCalcParams":{}}}`, "min_rtt_calc_params.interval: must be set, or fixed_value"},
		{"no window", `{"gradientControllerConfig":{"concurrencyLimitParams":{},"minRttCalcParams":{"interval":"1s"}}}`, "concurrency_update_interval: must be set"},
		{"a window of nothing", `{"gradientControllerConfig":{"concurrencyLimitParams":{"concurrencyUpdateInterval":"0s"},"minRttCalcParams":{"interval":"1s"}}}`, "concurrency_update_interval: 0s is less than 1ns"},
		{"a minimum that is too small", `{"gradientControllerConfig":{` + limits + `,"minRttCalcParams":{"fixedValue":"0.0005s"}}}`, "fixed_value: 500µs is less than 1ms"},
		{"an interval that is too small", `{"gradientControllerConfig":{` + limits + `,"minRttCalcParams":{"interval":"0.0005s"}}}`, "interval: 500µs is less than 1ms"},
		{"a percentile", `{"gradientControllerConfig":{` + limits + `,"minRttCalcParams":{"interval":"1s"},"sampleAggregatePercentile":{"value":101}}}`, "sample_aggregate_percentile: 101 is not between 0 and 100"},
		{"jitter", `{"gradientControllerConfig":{` + limits + `,"minRttCalcParams":{"interval":"1s","jitter":{"value":-1}}}}`, "jitter: -1 is not between 0 and 100"},
		{"a buffer", `{"gradientControllerConfig":{` + limits + `,"minRttCalcParams":{"interval":"1s","buffer":{"value":"NaN"}}}}`, "buffer: NaN is not between 0 and 100"},
		{"no requests", `{"gradientControllerConfig":{` + limits + `,"minRttCalcParams":{"interval":"1s","requestCount":0}}}`, "request_count: must be positive"},
		{"none at once", `{"gradientControllerConfig":{` + limits + `,"minRttCalcParams":{"interval":"1s","minConcurrency":0}}}`, "min_concurrency: must be positive"},
		{"a limit of none", `{"gradientControllerConfig":{"concurrencyLimitParams":{"concurrencyUpdateInterval":"1s","maxConcurrencyLimit":0},"minRttCalcParams":{"interval":"1s"}}}`, "max_concurrency_limit: must be positive"},
		{"a least limit of none", `{"gradientControllerConfig":{"concurrencyLimitParams":{"concurrencyUpdateInterval":"1s","minConcurrencyLimit":0},"minRttCalcParams":{"interval":"1s"}}}`, "min_concurrency_limit: must be positive"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(c.config)}, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	var d filters.Decoding
	got, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(`{"enabled":{"defaultValue":true,"runtimeKey":"x"},"gradientControllerConfig":{` + limits + `,"minRttCalcParams":{"interval":"60s"}}}`)}, &d)
	want := Config{Status: 503, Gradient: Gradient{Percentile: 0.5, Update: 100 * time.Millisecond, Min: 3, Max: 1000, Interval: time.Minute, Jitter: 0.15, Requests: 50, Probe: 3, Buffer: 0.25}}
	if c, ok := got.(*Config); err != nil || !ok || *c != want || len(d.Ignored()) != 1 {
		t.Errorf("%+v, %v, %v", got, err, d.Ignored())
	}
	if _, err := (Factory{}).DecodeOverride(filters.Any{}, nil); err == nil {
		t.Error("a route has a configuration of its own")
	}
}

func TestADisabledFilterIsNone(t *testing.T) {
	cfg, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(`{"enabled":{"defaultValue":false},` + one + `}`)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := (Factory{}).Compile(nil, cfg, nil); f != nil || err != nil {
		t.Errorf("%v, %v", f, err)
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and what is accepted compiles and lets the first request pass.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{`+one+`}`), true)
	f.Add([]byte(`{"enabled":{"defaultValue":false},`+one+`}`), true)
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool) {
		c, err := decodetest.Forms(t, filters.Any{TypeURL: typeURL, JSON: isJSON, Value: b}, Factory{}.Decode)
		if err != nil {
			return
		}
		fl, err := Factory{}.Compile(nil, c, nil)
		if err != nil {
			t.Fatal(err)
		}
		if fl == nil {
			return
		}
		if r, err := filters.Start(stream(fl, answer(nil))); err != nil || r.Local {
			t.Fatalf("%v, %v", r, err)
		}
	})
}
