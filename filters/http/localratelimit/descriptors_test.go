package localratelimit

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/explaintest"
	"github.com/fairlead-mesh/fairlead/filters/internal/ratelimittest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/ratelimit"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// byHeaders are rate_limits that yield {user: x-user}, {path: x-path, user:
// x-user} and {cost: yes} with the hits of x-cost, each if the headers are there.
const byHeaders = `,"rateLimits":[
	{"actions":[{"requestHeaders":{"headerName":"x-user","descriptorKey":"user"}}]},
	{"actions":[{"requestHeaders":{"headerName":"x-path","descriptorKey":"path"}},{"requestHeaders":{"headerName":"x-user","descriptorKey":"user"}}]},
	{"actions":[{"requestHeaders":{"headerName":"x-cost","descriptorKey":"cost"}}],"hitsAddend":{"format":"%REQ(x-cost)%"}},
	{"actions":[{"requestHeaders":{"headerName":"x-back","descriptorKey":"back"}}],"hitsAddend":{"number":2,"isNegativeHits":true}}]`

// descriptor has a bucket of max tokens that gets fill more each minute.
func descriptor(entries, bucket string) string {
	var es []string
	for e := range strings.SplitSeq(entries, " ") {
		k, v, _ := strings.Cut(e, "=")
		es = append(es, fmt.Sprintf(`{"key":%q,"value":%q}`, k, v))
	}
	return `{"entries":[` + strings.Join(es, ",") + `],"tokenBucket":` + bucket + `}`
}

func minutely(n int) string {
	return fmt.Sprintf(`{"maxTokens":%d,"tokensPerFill":%d,"fillInterval":"60s"}`, n, n)
}

func headers(kv string) func(*filters.Stream) {
	return func(s *filters.Stream) {
		for f := range strings.FieldsSeq(kv) {
			k, v, _ := strings.Cut(f, "=")
			s.Request.Add("x-"+k, v)
		}
	}
}

func TestDescriptorsHaveBucketsOfTheirOwn(t *testing.T) {
	user1, user2 := descriptor("user=a", minutely(1)), descriptor("user=b", minutely(2))
	both := descriptor("path=p user=a", minutely(3))
	const alone = `,"alwaysConsumeDefaultTokenBucket":false`
	n := 0
	for _, c := range []struct {
		name, bucket string
		descriptors  []string
		more         string
		// requests are headers, and the answer: + passes, - is limited.
		requests string
	}{
		{"what matches none takes of the default bucket", minutely(2), []string{user1}, "", "user=c+ user=c+ user=c- -"},
		{"each has its own bucket", minutely(9), []string{user1, user2}, "", "user=a+ user=a- user=b+ user=b+ user=b-"},
		{"the default bucket counts what matches, too", minutely(2), []string{user2}, "", "user=b+ + user=b- -"},
		{"the default bucket does not count it if so configured", minutely(1), []string{user2}, alone, "user=b+ user=b+ user=b- + -"},
		{"a limited descriptor takes nothing of the default bucket", minutely(2), []string{user1}, "", "user=a+ user=a- user=a- + -"},
		{"no default bucket", "null", []string{user1}, "", "user=a+ user=a- + +"},
		{"entries match whole, not in part", minutely(9), []string{both}, "", "user=a+ user=a+ user=a+ user=a+ user=a,path=p+ user=a,path=p+ user=a,path=p+ user=a,path=p-"},
		{"the order of entries matters", minutely(9), []string{descriptor("user=a path=p", minutely(1))}, "", "user=a,path=p+ user=a,path=p+"},
		{"the slowest bucket is asked first and spares the others", minutely(9), []string{descriptor("user=a", minutely(3)), descriptor("cost=1", minutely(1))}, "", "user=a,cost=1+ user=a,cost=1- user=a,cost=1- user=a+ user=a+ user=a-"},
		{"an empty value matches all, each with its bucket", minutely(9), []string{descriptor("user=", minutely(1))}, "", "user=x+ user=y+ user=x- user=y- +"},
		{"a value comes before an empty one", minutely(9), []string{descriptor("user=", minutely(1)), user2}, "", "user=b+ user=b+ user=b- user=x+ user=x-"},
		{"an empty value beside a fixed one", minutely(9), []string{descriptor("path=p user=", minutely(1))}, "", "user=x,path=p+ user=x,path=p- user=x,path=q+ user=x,path=q+"},
		{"values that were not met for long begin anew", minutely(99), []string{descriptor("user=", minutely(1))}, `,"maxDynamicDescriptors":2`, "user=x+ user=y+ user=x- user=z+ user=x- user=y+"},
		{"hits count as many tokens", minutely(9), []string{descriptor("cost=3", minutely(7))}, "", "cost=3+ cost=3+ cost=3-"},
		{"nobody passes by no hits", minutely(9), []string{descriptor("cost=0", minutely(7))}, "", "cost=0- cost=0- +"},
		{"hits that are no number limit nothing", minutely(9), []string{descriptor("cost=x", minutely(1))}, "", "cost=x+ cost=x+"},
		{"negative hits put tokens back, up to the size", minutely(99), []string{descriptor("user=a", minutely(2)), descriptor("back=a", minutely(1))}, "", "back=a+ back=a+ back=a+"},
		{"no tokens at all", minutely(9), []string{descriptor("user=a", `{"maxTokens":0,"fillInterval":"1s"}`)}, "", "user=a- +"},
		{"a default bucket without tokens", `{"maxTokens":0,"fillInterval":"1s"}`, []string{user1}, alone, "user=a+ user=a- -"},
		{"a shadow counts only", minutely(9), []string{strings.TrimSuffix(user1, "}") + `,"shadowMode":true}`}, "", "user=a+ user=a+ user=a+"},
		{"a shadow does not hide other limits", minutely(9), []string{strings.TrimSuffix(user1, "}") + `,"shadowMode":true}`, both}, "", "user=a,path=p+ user=a,path=p+ user=a,path=p+ user=a,path=p-"},
		{"a shadow does not hide the default bucket", minutely(2), []string{strings.TrimSuffix(user1, "}") + `,"shadowMode":true}`}, "", "user=a+ user=a+ user=a-"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := compile(t, config(c.bucket, byHeaders+`,"descriptors":[`+strings.Join(c.descriptors, ",")+`]`+c.more), "", nil)
			rest := c.requests
			for i := 0; rest != ""; i++ {
				at := strings.IndexAny(rest, "+-")
				want := map[byte]int{'+': 200, '-': 429}[rest[at]]
				if got := status(t, f, headers(strings.ReplaceAll(rest[:at], ",", " "))); got != want {
					t.Errorf("request %d of %q: %d", i, c.requests, got)
				}
				n++
				rest = rest[at+1:]
			}
		})
	}
	if n != 89 {
		t.Errorf("%d requests", n)
	}
}

func TestABucketThatIsRefilledByHits(t *testing.T) {
	now := time.Unix(0, 0)
	b := newBucket(Bucket{Max: 3, Fill: 1, Interval: time.Minute}, now)
	for _, c := range []struct {
		give, take uint64
		want       bool
		left       uint32
	}{{0, 3, true, 0}, {0, 1, false, 0}, {2, 1, true, 1}, {1 << 60, 4, false, 3}, {0, 0, false, 3}, {0, 1 << 40, false, 3}} {
		b.give(c.give, now)
		got := b.take(c.take, now)
		if left, _ := b.state(now); got != c.want || left != c.left {
			t.Errorf("%+v: %t, %d left", c, got, left)
		}
	}
}

func TestDescriptorsAreFilledAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := compile(t, config(minutely(99), byHeaders+`,"descriptors":[`+descriptor("user=", `{"maxTokens":2,"fillInterval":"10s"}`)+`]`), "", nil)
		for i, c := range []struct {
			wait time.Duration
			want int
		}{{0, 200}, {0, 200}, {9 * time.Second, 429}, {time.Second, 200}, {0, 429}, {time.Hour, 200}} {
			time.Sleep(c.wait)
			if got := status(t, f, headers("user=x")); got != c.want {
				t.Errorf("request %d: %d", i, got)
			}
		}
	})
}

func fixed(v string, stage uint32) *ratelimit.Limit { return ratelimittest.Fixed("k", v, stage) }

func TestWhichLimitsOfARouteCount(t *testing.T) {
	r, v := []*ratelimit.Limit{fixed("r", 0)}, []*ratelimit.Limit{fixed("v", 0)}
	cluster := &ratelimit.Limit{Actions: []ratelimit.Action{{Kind: ratelimit.SourceCluster, Key: "source_cluster"}, {Kind: ratelimit.DestinationCluster, Key: "destination_cluster"}}}
	for _, c := range []struct {
		name, config string
		policy       *ratelimit.Policy
		want         string // the limited descriptors
	}{
		{"no limits", "", nil, ""},
		{"the route's", "", &ratelimit.Policy{Route: r, VirtualHost: v}, "r"},
		{"the virtual host's if the route has none", "", &ratelimit.Policy{VirtualHost: v}, "v"},
		{"both by the route's field", "", &ratelimit.Policy{Route: r, VirtualHost: v, IncludeVirtualHost: true}, "r v"},
		{"both by the filter's field", `,"vhRateLimits":"INCLUDE"`, &ratelimit.Policy{Route: r, VirtualHost: v}, "r v"},
		{"the route's only", `,"vhRateLimits":"IGNORE"`, &ratelimit.Policy{VirtualHost: v}, ""},
		{"another stage", `,"stage":1`, &ratelimit.Policy{Route: r}, ""},
		{"this stage", `,"stage":1`, &ratelimit.Policy{Route: []*ratelimit.Limit{fixed("r", 1), fixed("v", 0)}}, "r"},
		{"the filter's own in place of the route's", `,"rateLimits":[{"actions":[{"genericKey":{"descriptorKey":"k","descriptorValue":"v"}}]}]`, &ratelimit.Policy{Route: r}, "v"},
		{"the filter's own whatever its stage", `,"stage":1,"rateLimits":[{"actions":[{"genericKey":{"descriptorKey":"k","descriptorValue":"v"}}]}]`, nil, "v"},
		{"clusters of both sides", "", &ratelimit.Policy{Route: []*ratelimit.Limit{cluster}}, "app"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for d, entries := range map[string]string{"r": "k=r", "v": "k=v", "app": "source_cluster=me destination_cluster=app"} {
				f := compile(t, config(minutely(9), c.config+`,"descriptors":[`+descriptor(entries, `{"maxTokens":0,"fillInterval":"1s"}`)+`]`), "",
					&filters.Env{Node: &filters.Node{Cluster: "me"}})
				if _, r := routed(t, f, c.policy); r.Status() == 429 {
					got = append(got, d)
				}
			}
			slices.Sort(got)
			if g := strings.Join(got, " "); g != c.want {
				t.Errorf("limited: %q, want %q", g, c.want)
			}
		})
	}
}

// routed sends a request by a route with limits.
func routed(t *testing.T, f filters.HTTPFilter, p *ratelimit.Policy) (*filters.Stream, *filters.Response) {
	t.Helper()
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	s.Request.Add(message.Path, "/")
	u := ratelimittest.Select(s, f, p)
	q := explaintest.Ask(t, f, s)
	r, err := filters.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	q.Agrees(t, s, !r.Local, u.Seen())
	return s, r
}

func TestTheBucketThatDecidesIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		more := byHeaders + `,"enableXRatelimitHeaders":"DRAFT_VERSION_03","enableRetryAfterHeader":true,"descriptors":[` +
			descriptor("user=", `{"maxTokens":3,"tokensPerFill":3,"fillInterval":"30s"}`) + "," +
			descriptor("path=p user=a", `{"maxTokens":4,"fillInterval":"90s"}`) + "," + // slower, though larger
			descriptor("path=q user=b", `{"maxTokens":1,"fillInterval":"90s"}`) + "]"
		f := compile(t, config(minutely(9), more), "", nil)
		for i, c := range []struct{ request, want, limit string }{
			{"", "200 9 8 0 ", ""},
			{"user=a", "200 3 2 0 ", ""},
			{"user=a path=p", "200 4 3 0 ", ""},
			{"user=a path=p", "200 4 2 0 ", ""},
			{"user=b", "200 3 2 0 ", ""},
			{"user=b path=q", "200 1 0 90 ", ""},
			{"user=b path=q", "429 1 0 90 90", "1 requests, 1 more each 1m30s, for path=q, user=b"},
			{"user=a path=p", "429 3 0 10 10", "3 requests, 3 more each 30s, for each user"},
		} {
			if i == 1 {
				time.Sleep(time.Second)
			}
			s, r, _ := run(t, f, headers(c.request))
			got := fmt.Sprint(r.Status())
			for _, h := range []string{"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "retry-after"} {
				got += " " + r.Header.Get(h)
			}
			if got != c.want || s.Info.Limit != c.limit {
				t.Errorf("request %d: %q %q, want %q %q", i, got, s.Info.Limit, c.want, c.limit)
			}
		}
	})
}

func TestRetryAfter(t *testing.T) {
	for _, c := range []struct{ name, more, want string }{
		{"is a second at least", "", "1"},
		{"is for 429 only", `,"status":{"code":503}`, ""},
		{"does not replace a configured one", `,"responseHeadersToAdd":[{"header":{"key":"retry-after","value":"7"}}]`, "7"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := compile(t, config(`{"maxTokens":0,"fillInterval":"0.1s"}`, `,"enableRetryAfterHeader":true`+c.more), "", nil)
			if _, r, _ := run(t, f, nil); r.Header.Get("retry-after") != c.want {
				t.Errorf("%+v", r.Header)
			}
		})
	}
}

func TestRoutesAndConnectionsHaveDescriptorsOfTheirOwn(t *testing.T) {
	d := byHeaders + `,"descriptors":[` + descriptor("user=", minutely(1)) + `]`
	as := func(route string, conn uint64) func(*filters.Stream) {
		return func(s *filters.Stream) {
			headers("user=a")(s)
			s.Info.RouteName, s.Info.Conn.ID = route, conn
		}
	}
	f := compile(t, `{"statPrefix":"x"}`, config(minutely(9), d), nil)
	if status(t, f, as("r1", 1)) != 200 || status(t, f, as("r2", 1)) != 200 || status(t, f, as("r1", 2)) != 429 {
		t.Error("routes share a bucket")
	}
	f = compile(t, config(minutely(9), d+`,"localRateLimitPerDownstreamConnection":true`), "", nil)
	if status(t, f, as("r1", 1)) != 200 || status(t, f, as("r1", 2)) != 200 || status(t, f, as("r1", 1)) != 429 {
		t.Error("connections share a bucket")
	}
}

func TestANewSnapshotGoesOnCountingDescriptors(t *testing.T) {
	env := &filters.Env{Name: "n", Shared: &filters.Shared{}}
	with := func(max int) string {
		return config(minutely(9), byHeaders+`,"descriptors":[`+descriptor("user=", minutely(max))+`]`)
	}
	if status(t, compile(t, with(1), "", env), headers("user=a")) != 200 {
		t.Fatal("refused")
	}
	if status(t, compile(t, with(1), "", env), headers("user=a")) != 429 {
		t.Error("the same configuration has fresh buckets")
	}
	if status(t, compile(t, with(2), "", env), headers("user=a")) != 200 {
		t.Error("another configuration has the buckets of the first")
	}
}

func TestCounters(t *testing.T) {
	st := &stats.Registry{}
	shadow := strings.TrimSuffix(descriptor("user=s", minutely(1)), "}") + `,"shadowMode":true}`
	f := compile(t, config(minutely(9), byHeaders+`,"descriptors":[`+descriptor("user=a", minutely(1))+","+shadow+`]`), "", &filters.Env{Stats: st.Scope("")})
	for _, h := range []string{"", "user=a", "user=a", "user=s", "user=s"} {
		run(t, f, headers(h))
	}
	x, _ := f.(*filter)
	if got := fmt.Sprint(x.enabled.Value(), x.ok.Value(), x.limited.Value(), x.enforced.Value(), x.shadow.Value()); got != "5 3 2 1 1" {
		t.Error(got)
	}
}

func TestBucketsAreBounded(t *testing.T) {
	count := func(tb *table) (n int) {
		for _, l := range tb.m {
			for _, b := range append(l.exact, l.fallback) {
				if b != nil {
					n++
				}
			}
			for i := range l.wild {
				if len(l.wild[i].m) != l.wild[i].order.Len() {
					t.Fatal("index and order differ")
				}
				n += len(l.wild[i].m)
			}
		}
		return n
	}
	// 3 buckets for each connection to begin with, and a thousand values on each.
	f := compile(t, config(minutely(9), byHeaders+`,"localRateLimitPerDownstreamConnection":true,"maxDynamicDescriptors":4000000000,"descriptors":[`+
		descriptor("user=", minutely(1))+","+descriptor("user=a", minutely(1))+`]`), "", nil)
	tb := f.(*filter).buckets
	now := time.Now()
	peak := 0
	for conn := range uint64(40) {
		l := tb.get(place{connection: conn}, now)
		for v := range 1000 {
			l.decide([]ratelimit.Descriptor{{Entries: []ratelimit.Entry{{Key: "user", Value: fmt.Sprint(v)}}}}, now)
		}
		peak = max(peak, count(tb))
	}
	if peak > maxBuckets || peak < maxBuckets*9/10 {
		t.Errorf("%d buckets at most, want up to %d", peak, maxBuckets)
	}
}

func TestDescriptorsThatAreRefused(t *testing.T) {
	one := descriptor("a=b", minutely(1))
	for more, want := range map[string]string{
		`,"descriptors":[{"tokenBucket":` + minutely(1) + `}]`:                                  "descriptors[0].entries: ",
		`,"descriptors":[` + descriptor("=b", minutely(1)) + `]`:                                "descriptors[0].entries[0].key: ",
		`,"descriptors":[{"entries":[{"key":"a"}]}]`:                                            "descriptors[0].token_bucket: ",
		`,"descriptors":[` + descriptor("a=b", `{"maxTokens":1,"fillInterval":"0.009s"}`) + `]`: "fill_interval",
		`,"descriptors":[` + descriptor("a=b", `{"maxTokens":0}`) + `]`:                         "descriptors[0].token_bucket.fill_interval: ",
		`,"descriptors":[` + one + "," + one + `]`:                                              "descriptors[1].entries: ",
		`,"stage":11`:                                          "stage: ",
		`,"maxDynamicDescriptors":0`:                           "max_dynamic_descriptors: ",
		`,"vhRateLimits":7`:                                    "vh_rate_limits: ",
		`,"rateLimits":[{"stage":0}]`:                          "rate_limits[0].stage: ",
		`,"rateLimits":[{"disableKey":"k"}]`:                   "rate_limits[0].disable_key: ",
		`,"rateLimits":[{"limit":{}}]`:                         "rate_limits[0].limit: ",
		`,"rateLimits":[{"actions":[{"dynamicMetadata":{}}]}]`: "rate_limits[0].actions[0].dynamic_metadata: ",
		`,"rateLimits":[{},{"actions":[{}]}]`:                  "rate_limits[1].actions[0].action_specifier: ",
		`,"rateLimits":[{"actions":[{"genericKey":{"descriptorValue":"%NONSENSE%"}}]}]`: "rate_limits[0].actions[0].generic_key.descriptor_value: ",
	} {
		_, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(config(minutely(1), more))}, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", more, err, want)
		}
	}
}

func TestAnOptionOfHeadersIsReported(t *testing.T) {
	d := &filters.Decoding{}
	c := config(minutely(1), `,"rateLimits":[{"actions":[{"sourceCluster":{}}],"xRatelimitOption":"OFF"}]`)
	if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(c)}, d); err != nil || len(d.Ignored()) != 1 {
		t.Errorf("%v %v", err, d.Ignored())
	}
}
