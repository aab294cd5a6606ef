package localratelimit

import (
	"fmt"
	"math/big"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/explaintest"
	"github.com/fairlead-mesh/fairlead/filters/internal/ratelimittest"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

const all = `{"defaultValue":{"numerator":100}}`

func config(bucket, more string) string {
	return `{"statPrefix":"x","tokenBucket":` + bucket + `,"filterEnabled":` + all + `,"filterEnforced":` + all + more + `}`
}

func compile(t *testing.T, base, override string, env *filters.Env) filters.HTTPFilter {
	t.Helper()
	c, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(base)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var o filters.Config
	if override != "" {
		if o, err = (Factory{}).DecodeOverride(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(override)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Factory{}.Compile(env, c, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func run(t *testing.T, f filters.HTTPFilter, edit func(s *filters.Stream)) (*filters.Stream, *filters.Response, *ratelimittest.Upstream) {
	t.Helper()
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{ID: 1, ListenerName: "l", FilterChainName: "c"}
	if edit != nil {
		edit(s)
	}
	q := explaintest.Ask(t, f, s)
	u := &ratelimittest.Upstream{}
	s.SetChain([]filters.HTTPFilter{f, u})
	r, err := filters.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	q.Agrees(t, s, !r.Local, u.Seen())
	return s, r, u
}

func status(t *testing.T, f filters.HTTPFilter, edit func(s *filters.Stream)) int {
	t.Helper()
	_, r, _ := run(t, f, edit)
	return r.Status()
}

func TestBucketIsFilledContinuously(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := compile(t, config(`{"maxTokens":3,"tokensPerFill":2,"fillInterval":"10s"}`, ""), "", nil)
		take := func() (n int) {
			for status(t, f, nil) == 200 {
				n++
			}
			return n
		}
		for i, step := range []struct {
			wait time.Duration
			want int
		}{{0, 3}, {4 * time.Second, 0}, {time.Second, 1}, {10 * time.Second, 2}, {12 * time.Second, 2}, {3 * time.Second, 1}, {1000 * time.Hour, 3}} {
			time.Sleep(step.wait)
			if got := take(); got != step.want {
				t.Errorf("step %d: %d tokens, want %d", i, got, step.want)
			}
		}
	})
}

// What Envoy 1.40 answered in a row of requests, max_tokens 4 and 2 tokens each 4 s:
// milliseconds, status, x-ratelimit-remaining, x-ratelimit-reset.
const envoyFills = `
0 200 3 0
0 200 2 0
0 200 1 0
0 200 0 2
0 429 0 2
500 429 0 2
1000 429 0 1
1500 429 0 1
2000 200 0 2
2500 429 0 2
3010 429 0 1
4010 200 0 2
5010 429 0 1
6020 200 0 2
7030 429 0 1
12030 200 2 0
12030 200 1 0
`

func TestTokensComeAsInEnvoy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := compile(t, config(`{"maxTokens":4,"tokensPerFill":2,"fillInterval":"4s"}`, `,"enableXRatelimitHeaders":"DRAFT_VERSION_03"`), "", nil)
		begin, n := time.Now(), 0
		for line := range strings.Lines(strings.TrimSpace(envoyFills)) {
			var ms int
			if _, err := fmt.Sscan(line, &ms); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(ms)*time.Millisecond - time.Since(begin))
			_, r, _ := run(t, f, nil)
			if got := fmt.Sprintf("%d %d %s %s", ms, r.Status(), r.Header.Get("x-ratelimit-remaining"), r.Header.Get("x-ratelimit-reset")); got != strings.TrimSpace(line) {
				t.Errorf("%s, Envoy %s", got, line)
			}
			n++
		}
		if n != 17 {
			t.Errorf("%d requests", n)
		}
	})
}

func TestAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := compile(t, config(`{"maxTokens":1,"fillInterval":"60s"}`, `,"responseHeadersToAdd":[{"header":{"key":"x-limited","value":"yes"}}],"enableXRatelimitHeaders":"DRAFT_VERSION_03","enableRetryAfterHeader":true`), "", nil)
		_, r, _ := run(t, f, nil)
		if r.Status() != 200 || r.Header.Get("x-ratelimit-limit") != "1" || r.Header.Get("x-ratelimit-remaining") != "0" {
			t.Errorf("%+v", r.Header)
		}
		time.Sleep(500 * time.Millisecond)
		s, r, _ := run(t, f, nil)
		b, _, _ := r.Body.Next()
		if r.Status() != 429 || string(b) != "local_rate_limited" || s.Info.Flags != streaminfo.RateLimited || s.Info.Details != "local_rate_limited" {
			t.Errorf("%d %q %v %q", r.Status(), b, s.Info.Flags, s.Info.Details)
		}
		for k, want := range map[string]string{"x-limited": "yes", "x-ratelimit-reset": "60", "retry-after": "60"} {
			if got := r.Header.Get(k); got != want {
				t.Errorf("%s = %q", k, got)
			}
		}
		_, r, _ = run(t, f, func(s *filters.Stream) { s.Info.IsGRPC = true })
		if r.Header.Get("grpc-status") != "14" {
			t.Errorf("%+v", r.Header)
		}
	})
}

func TestNotEnforced(t *testing.T) {
	f := compile(t, `{"statPrefix":"x","tokenBucket":{"maxTokens":1,"fillInterval":"60s"},"filterEnabled":`+all+`,"requestHeadersToAddWhenNotEnforced":[{"header":{"key":"x-over","value":"1"}}]}`, "", nil)
	run(t, f, nil)
	if _, r, u := run(t, f, nil); r.Status() != 200 || u.Seen().Get("x-over") != "1" {
		t.Errorf("%d %+v", r.Status(), u.Seen())
	}
}

func TestEachPlaceHasItsOwnLimit(t *testing.T) {
	bucket := `{"maxTokens":1,"fillInterval":"60s"}`
	chain := func(name string) func(*filters.Stream) {
		return func(s *filters.Stream) { s.Info.Conn.FilterChainName = name }
	}
	route := func(name string) func(*filters.Stream) {
		return func(s *filters.Stream) { s.Info.RouteName = name }
	}
	conn := func(id uint64) func(*filters.Stream) { return func(s *filters.Stream) { s.Info.Conn.ID = id } }
	f := compile(t, config(bucket, ""), "", nil)
	if status(t, f, chain("a")) != 200 || status(t, f, chain("b")) != 200 || status(t, f, chain("a")) != 429 {
		t.Error("filter chains share a bucket")
	}
	if status(t, f, route("r1")) != 200 || status(t, f, route("r2")) != 429 {
		t.Error("routes without a configuration of their own do not share a bucket")
	}
	f = compile(t, `{"statPrefix":"x"}`, config(bucket, ""), nil)
	if status(t, f, route("r1")) != 200 || status(t, f, route("r2")) != 200 || status(t, f, route("r1")) != 429 {
		t.Error("routes share a bucket")
	}
	f = compile(t, config(bucket, `,"localRateLimitPerDownstreamConnection":true`), "", nil)
	if status(t, f, conn(1)) != 200 || status(t, f, conn(2)) != 200 || status(t, f, conn(1)) != 429 {
		t.Error("connections share a bucket")
	}
}

func TestANewSnapshotGoesOnCounting(t *testing.T) {
	env := &filters.Env{Name: "n", Shared: &filters.Shared{}}
	c := config(`{"maxTokens":1,"fillInterval":"60s"}`, "")
	old := compile(t, c, "", env)
	if status(t, old, nil) != 200 {
		t.Fatal("refused")
	}
	next := compile(t, c, "", env)
	if err := old.(*filter).Close(); err != nil {
		t.Fatal(err)
	}
	if status(t, next, nil) != 429 {
		t.Error("the new filter has a fresh bucket")
	}
}

func TestOff(t *testing.T) {
	for _, c := range []string{`{"statPrefix":"x"}`, `{"statPrefix":"x","tokenBucket":{"maxTokens":1,"fillInterval":"60s"}}`} {
		if f := compile(t, c, "", nil); f != nil {
			t.Errorf("%s: a filter that does nothing", c)
		}
	}
}

func TestDecode(t *testing.T) {
	for _, bad := range []string{`{}`, config(`{}`, ""), config(`{"maxTokens":1,"fillInterval":"0.01s"}`, ""), config(`{"maxTokens":1,"tokensPerFill":0,"fillInterval":"1s"}`, "")} {
		if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(bad)}, nil); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
	d := &filters.Decoding{}
	// What an EnvoyFilter in istiod's documentation carries, and descriptors.
	c := `{"filterEnabled":{"defaultValue":{"numerator":100},"runtimeKey":"local_rate_limit_enabled"},"filterEnforced":{"defaultValue":{"numerator":100},"runtimeKey":"local_rate_limit_enforced"},"statPrefix":"http_local_rate_limiter","tokenBucket":{"fillInterval":"60s","maxTokens":10,"tokensPerFill":10},"descriptors":[{"entries":[{"key":"a"}],"tokenBucket":{"maxTokens":1,"fillInterval":"60s"}}]}`
	if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(c)}, d); err != nil || len(d.Ignored()) != 2 {
		t.Errorf("%v %v", err, d.Ignored())
	}
}

func TestPassingDoesNotAllocate(t *testing.T) {
	f := compile(t, config(`{"maxTokens":4000000000,"fillInterval":"60s"}`, ""), "", nil)
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	u := &ratelimittest.Upstream{}
	s.SetChain([]filters.HTTPFilter{f, u})
	if a := testing.AllocsPerRun(100, func() {
		if _, err := filters.Start(s); err != nil {
			t.Fatal(err)
		}
	}); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

// FuzzBucket: a bucket gives the tokens that its rate makes of the time that
// passed, no more and no fewer.
func FuzzBucket(f *testing.F) {
	f.Add(uint32(3), uint32(2), uint16(100), uint32(12345))
	f.Fuzz(func(t *testing.T, size, fill uint32, interval uint16, wait uint32) {
		c := Bucket{Max: size%1000 + 1, Fill: fill%1000 + 1, Interval: time.Duration(interval)*time.Millisecond + 50*time.Millisecond}
		start := time.Unix(0, 0)
		b := newBucket(c, start)
		for range c.Max {
			if !b.take(1, start) {
				t.Fatal("a full bucket is empty")
			}
		}
		now := start.Add(time.Duration(wait) * time.Millisecond)
		tokens := new(big.Int).Mul(big.NewInt(int64(now.Sub(start))), big.NewInt(int64(c.Fill)))
		want := min(uint64(c.Max), tokens.Div(tokens, big.NewInt(int64(c.Interval))).Uint64())
		var got uint64
		if left, next := b.state(now); uint64(left) != want || (next > 0) != (want == 0) || next > c.Interval+time.Millisecond {
			t.Fatalf("%d left, the next in %v, want %d", left, next, want)
		}
		for b.take(1, now) {
			got++
		}
		if got != want {
			t.Errorf("%d tokens after %dms, want %d: %+v", got, wait, want, c)
		}
	})
}
