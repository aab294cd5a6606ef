package ratelimit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	rlsv3pb "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/explaintest"
	"github.com/fairlead-mesh/fairlead/filters/internal/ratelimittest"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/ratelimit"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// service is a rate limit service with one answer.
type service struct {
	answer string // JSON of a RateLimitResponse
	err    error
	asked  []string
}

func (v *service) RoundTrip(_ context.Context, cluster string, c *filters.Callout, _ int64) (*filters.CalloutResponse, error) {
	var q rlsv3pb.RateLimitRequest
	if err := proto.Unmarshal(c.Body[5:], &q); err != nil {
		return nil, err
	}
	var ds []string
	for _, d := range q.GetDescriptors() {
		var es []string
		for _, e := range d.GetEntries() {
			es = append(es, e.GetKey()+"="+e.GetValue())
		}
		if d.GetHitsAddend() != nil {
			es = append(es, fmt.Sprintf("hits %d", d.GetHitsAddend().GetValue()))
		}
		if l := d.GetLimit(); l != nil {
			es = append(es, fmt.Sprintf("limit %d %s", l.GetRequestsPerUnit(), l.GetUnit()))
		}
		ds = append(ds, strings.Join(es, ","))
	}
	v.asked = append(v.asked, cluster+" "+q.GetDomain()+" "+strings.Join(ds, ";"))
	if v.err != nil {
		return nil, v.err
	}
	var m rlsv3pb.RateLimitResponse
	if err := protojson.Unmarshal([]byte(v.answer), &m); err != nil {
		return nil, err
	}
	b, err := proto.Marshal(&m)
	if err != nil {
		return nil, err
	}
	r := &filters.CalloutResponse{Status: 200, Body: append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)}
	r.Trailers.Add("grpc-status", "0")
	return r, nil
}

const base = `"domain":"edge","rateLimitService":{"transportApiVersion":"V3","grpcService":{"envoyGrpc":{"clusterName":"rls"}}}`

func compile(t *testing.T, config, override string, u filters.Upstreams) filters.HTTPFilter {
	t.Helper()
	c, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte("{" + base + config + "}")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var o filters.Config
	if override != "" {
		if o, err = (Factory{}).DecodeOverride(filters.Any{TypeURL: typeURLPerRoute, JSON: true, Value: []byte(override)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Factory{}.Compile(&filters.Env{Upstreams: u, Node: &filters.Node{Cluster: "me"}}, c, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func fixed(v string) *ratelimit.Limit { return ratelimittest.Fixed("generic_key", v, 0) }

func run(t *testing.T, f filters.HTTPFilter, p *ratelimit.Policy, edit func(*filters.Stream)) (*filters.Stream, *filters.Response, *ratelimittest.Upstream) {
	t.Helper()
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	s.Request.Add(message.Method, "GET")
	s.Request.Add(message.Path, "/x?q=1")
	if edit != nil {
		edit(s)
	}
	u := ratelimittest.Select(s, f, p)
	q := explaintest.Ask(t, f, s)
	r, err := filters.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	q.Agrees(t, s, !r.Local, u.Seen())
	return s, r, u
}

const expr = `{"extension":{"name":"e","typedConfig":{"@type":"type.googleapis.com/envoy.extensions.rate_limit_descriptors.expr.v3.Descriptor",`

// ownLimits were asked of Envoy 1.40, which made of them for a GET what the tests
// want.
const ownLimits = `,"rateLimits":[{"actions":[{"genericKey":{"descriptorValue":"own"}}]},
{"actions":[` + expr + `"descriptorKey":"num","text":"request.size + 7"}}},` + expr + `"descriptorKey":"s","skipIfError":true,"text":"request.headers['none']"}}}]},
{"actions":[` + expr + `"descriptorKey":"b","text":"request.method == 'GET'"}}}]},
{"actions":[{"genericKey":{"descriptorValue":"gone"}},` + expr + `"descriptorKey":"s","text":"request.headers['none']"}}}]}]`

func TestWhichLimitsCount(t *testing.T) {
	r, v := []*ratelimit.Limit{fixed("r")}, []*ratelimit.Limit{fixed("v")}
	staged := fixed("s")
	staged.Stage = 1
	for _, c := range []struct {
		name, config, override string
		policy                 *ratelimit.Policy
		want                   string
	}{
		{"no limits", "", "", nil, ""},
		{"the route's", "", "", &ratelimit.Policy{Route: r, VirtualHost: v}, "rls edge generic_key=r"},
		{"the virtual host's if the route has none", "", "", &ratelimit.Policy{VirtualHost: v}, "rls edge generic_key=v"},
		{"both by the route's field", "", "", &ratelimit.Policy{Route: r, VirtualHost: v, IncludeVirtualHost: true}, "rls edge generic_key=r;generic_key=v"},
		{"both by override", "", `{"vhRateLimits":"INCLUDE"}`, &ratelimit.Policy{Route: r, VirtualHost: v}, "rls edge generic_key=r;generic_key=v"},
		{"ignored by override", "", `{"vhRateLimits":"IGNORE"}`, &ratelimit.Policy{VirtualHost: v}, ""},
		{"another domain", "", `{"domain":"other"}`, &ratelimit.Policy{Route: r}, "rls other generic_key=r"},
		{"another stage", "", "", &ratelimit.Policy{Route: []*ratelimit.Limit{staged}}, ""},
		{"this stage", `,"stage":1`, "", &ratelimit.Policy{Route: []*ratelimit.Limit{staged}}, "rls edge generic_key=s"},
		{"internal requests only", `,"requestType":"internal"`, "", &ratelimit.Policy{Route: r}, ""},
		{"external requests only", `,"requestType":"external"`, "", &ratelimit.Policy{Route: r}, "rls edge generic_key=r"},
		{"the filter's own", ownLimits, "", &ratelimit.Policy{Route: r, VirtualHost: v}, "rls edge generic_key=own;num=7;b=true"},
		{"the filter's own for a route without any", ownLimits, "", nil, "rls edge generic_key=own;num=7;b=true"},
		{"those of the override", ownLimits, `{"rateLimits":[{"actions":[{"genericKey":{"descriptorValue":"per-route"}}]}]}`, &ratelimit.Policy{Route: r}, "rls edge generic_key=per-route"},
		{"the stage is of those of routes", ownLimits + `,"stage":1`, "", nil, "rls edge generic_key=own;num=7;b=true"},
		{"none of a share", `,"filterEnabled":{"defaultValue":{"numerator":100}}`, "", &ratelimit.Policy{Route: r}, "rls edge generic_key=r"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sv := &service{answer: `{"overallCode":"OK"}`}
			_, resp, _ := run(t, compile(t, c.config, c.override, sv), c.policy, nil)
			if got := strings.Join(sv.asked, " | "); got != c.want || resp.Status() != 200 {
				t.Errorf("asked %q, want %q; status %d", got, c.want, resp.Status())
			}
		})
	}
}

func TestWhatAnAnswerDoes(t *testing.T) {
	p := &ratelimit.Policy{Route: []*ratelimit.Limit{fixed("r")}}
	const over = `{"overallCode":"OVER_LIMIT","statuses":[{"currentLimit":{"requestsPerUnit":5,"unit":"MINUTE","name":"a"},"limitRemaining":0,"durationUntilReset":"7s"},{"currentLimit":{"requestsPerUnit":9,"unit":"HOUR"},"limitRemaining":3}],"responseHeadersToAdd":[{"key":"X-Svc","value":"1"},{"key":":status","value":"200"}],"rawBody":"c2xvdw==","dynamicMetadata":{"k":"v"}}`
	sv := &service{answer: over}
	s, r, _ := run(t, compile(t, `,"enableXRatelimitHeaders":"DRAFT_VERSION_03","responseHeadersToAdd":[{"header":{"key":"x-mine","value":"2"}}]`, "", sv), p, nil)
	b, _, _ := r.Body.Next()
	if r.Status() != 429 || string(b) != "slow" || s.Info.Details != "request_rate_limited" || s.Info.Flags != streaminfo.RateLimited {
		t.Errorf("%d %q %s %v", r.Status(), b, s.Info.Details, s.Info.Flags)
	}
	for k, want := range map[string]string{
		"x-envoy-ratelimited": "true", "x-svc": "1", "x-mine": "2", "x-ratelimit-limit": `5, 5;w=60;name="a", 9;w=3600`, "x-ratelimit-remaining": "0", "x-ratelimit-reset": "7",
	} {
		if got := r.Header.Get(k); got != want {
			t.Errorf("%s = %q, want %q", k, got, want)
		}
	}
	if v, _ := s.Info.Metadata.Lookup("envoy.filters.http.ratelimit", "k"); v != "v" {
		t.Errorf("metadata %v", v)
	}
	_, r, _ = run(t, compile(t, `,"rateLimitedStatus":{"code":503},"disableXEnvoyRatelimitedHeader":true`, "", sv), p, nil)
	if r.Status() != 503 || r.Header.Has("x-envoy-ratelimited") {
		t.Errorf("%+v", r.Header)
	}
	_, r, _ = run(t, compile(t, `,"rateLimitedAsResourceExhausted":true`, "", sv), p, func(s *filters.Stream) { s.Info.IsGRPC = true })
	if r.Header.Get("grpc-status") != "8" {
		t.Errorf("%+v", r.Header)
	}
	_, r, _ = run(t, compile(t, `,"filterEnforced":{"defaultValue":{"numerator":0}}`, "", sv), p, nil)
	if r.Status() != 200 {
		t.Errorf("not enforced: %d", r.Status())
	}
	sv.answer = `{"overallCode":"OK","requestHeadersToAdd":[{"key":"x-left","value":"4"},{"key":"content-length","value":"9"}]}`
	_, _, u := run(t, compile(t, "", "", sv), p, nil)
	if u.Seen().Get("x-left") != "4" || u.Seen().Has("content-length") {
		t.Errorf("upstream sees %+v", u.Seen())
	}
	sv.err = errors.New("down")
	_, r, _ = run(t, compile(t, "", "", sv), p, nil)
	if r.Status() != 200 {
		t.Errorf("a failure denies: %d", r.Status())
	}
	s, r, _ = run(t, compile(t, `,"failureModeDeny":true`, "", sv), p, nil)
	if r.Status() != 500 || s.Info.Details != "rate_limiter_error" || s.Info.Flags != streaminfo.RateLimitServiceError {
		t.Errorf("%d %s %v", r.Status(), s.Info.Details, s.Info.Flags)
	}
	_, r, _ = run(t, compile(t, `,"failureModeDeny":true,"statusOnError":{"code":503}`, "", sv), p, nil)
	if r.Status() != 503 {
		t.Errorf("status_on_error: %d", r.Status())
	}
}

// As Envoy 1.40: the service is asked about the others before, and about these
// when the request has ended, whatever became of it.
func TestLimitsThatApplyOnStreamDone(t *testing.T) {
	done := fixed("done")
	done.OnDone = true
	n, err := format.Compile("%RESPONSE_CODE%")
	if err != nil {
		t.Fatal(err)
	}
	counted := fixed("counted")
	counted.OnDone, counted.Hits = true, &ratelimit.Hits{Format: n}
	for _, c := range []struct {
		name, config string
		policy       *ratelimit.Policy
		denied       bool
		want         string
	}{
		{"beside another", "", &ratelimit.Policy{Route: []*ratelimit.Limit{fixed("r"), done}}, false, "rls edge generic_key=r | rls edge generic_key=done"},
		{"alone", "", &ratelimit.Policy{Route: []*ratelimit.Limit{done}}, false, "rls edge generic_key=done"},
		{"of the virtual host", "", &ratelimit.Policy{VirtualHost: []*ratelimit.Limit{done}}, false, "rls edge generic_key=done"},
		{"with the response", "", &ratelimit.Policy{Route: []*ratelimit.Limit{counted}}, false, "rls edge generic_key=counted,hits 200"},
		{"of a request that was limited", "", &ratelimit.Policy{Route: []*ratelimit.Limit{fixed("r"), done}}, true, "rls edge generic_key=r | rls edge generic_key=done"},
		{"of another stage", `,"stage":1`, &ratelimit.Policy{Route: []*ratelimit.Limit{done}}, false, ""},
		{"of the filter", `,"rateLimits":[{"applyOnStreamDone":true,"actions":[{"genericKey":{"descriptorValue":"own"}}]}]`, nil, false, "rls edge generic_key=own"},
	} {
		synctest.Test(t, func(t *testing.T) {
			sv := &service{answer: `{"overallCode":"OK"}`}
			if c.denied {
				sv.answer = `{"overallCode":"OVER_LIMIT"}`
			}
			f := compile(t, c.config, "", sv)
			s, r, _ := run(t, f, c.policy, nil)
			s.Info.ResponseCode = r.Status()
			e, ok := f.(filters.StreamEnder)
			if !ok {
				t.Fatal("no end of streams is told to the filter")
			}
			e.OnStreamEnd(s, r)
			synctest.Wait()
			if got := strings.Join(sv.asked, " | "); got != c.want {
				t.Errorf("%s: asked %q, want %q", c.name, got, c.want)
			}
		})
	}
}

func TestAStreamThatTheFilterDidNotSeeIsNotToldOf(t *testing.T) {
	done := fixed("done")
	done.OnDone = true
	sv := &service{answer: `{"overallCode":"OK"}`}
	f := compile(t, "", "", sv)
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	ratelimittest.Select(s, f, &ratelimit.Policy{Route: []*ratelimit.Limit{done}})
	if e, ok := f.(filters.StreamEnder); ok {
		e.OnStreamEnd(s, nil)
	}
	if len(sv.asked) != 0 {
		t.Errorf("asked %q", sv.asked)
	}
}

// As Envoy 1.40 answered.
func TestRetryAfterIsOfTheDescriptorsThatAreOver(t *testing.T) {
	p := &ratelimit.Policy{Route: []*ratelimit.Limit{fixed("r")}}
	const statuses = `{"overallCode":"OVER_LIMIT","statuses":[{"code":"OVER_LIMIT","durationUntilReset":"2.700s"},{"code":"OK","durationUntilReset":"9s"},{"code":"OVER_LIMIT","durationUntilReset":"0.100s"}]`
	for _, c := range []struct{ name, config, answer, want string }{
		{"the longest", `,"enableRetryAfterHeader":true`, statuses + `}`, "2"},
		{"off", "", statuses + `}`, ""},
		{"another status", `,"enableRetryAfterHeader":true,"rateLimitedStatus":{"code":503}`, statuses + `}`, ""},
		{"at least a second", `,"enableRetryAfterHeader":true`, `{"overallCode":"OVER_LIMIT","statuses":[{"code":"OVER_LIMIT","durationUntilReset":"0.100s"}]}`, "1"},
		{"none is over", `,"enableRetryAfterHeader":true`, `{"overallCode":"OVER_LIMIT","statuses":[{"code":"OK","durationUntilReset":"9s"}]}`, ""},
		{"the service's own", `,"enableRetryAfterHeader":true`, statuses + `,"responseHeadersToAdd":[{"key":"retry-after","value":"77"}]}`, "77"},
	} {
		if _, r, _ := run(t, compile(t, c.config, "", &service{answer: c.answer}), p, nil); r.Header.Get("retry-after") != c.want {
			t.Errorf("%s: %q, want %q", c.name, r.Header.Get("retry-after"), c.want)
		}
	}
}

func TestAShareOfFailuresIsDenied(t *testing.T) {
	p := &ratelimit.Policy{Route: []*ratelimit.Limit{fixed("r")}}
	for config, want := range map[string][2]int{
		`,"failureModeDeny":true,"failureModeDenyPercent":{"defaultValue":{"numerator":0}}`: {0, 0},
		`,"failureModeDenyPercent":{"defaultValue":{"numerator":100}}`:                      {1000, 1000},
		`,"failureModeDenyPercent":{"defaultValue":{"numerator":50}}`:                       {400, 600},
	} {
		f, denied := compile(t, config, "", &service{err: errors.New("down")}), 0
		for range 1000 {
			if _, r, _ := run(t, f, p, nil); r.Status() == 500 {
				denied++
			}
		}
		if denied < want[0] || denied > want[1] {
			t.Errorf("%s: %d of 1000 are denied", config, denied)
		}
	}
}

func TestWhatIsNotExecutedIsRefused(t *testing.T) {
	for config, want := range map[string]string{
		`"rateLimitService":{"transportApiVersion":"V3","grpcService":{"envoyGrpc":{"clusterName":"rls"}}}`: "domain: ",
		`"domain":"x"`:                 "rate_limit_service.",
		base + `,"stage":11`:           "stage: ",
		base + `,"requestType":"some"`: "request_type: ",
		base + `,"rateLimits":[{"stage":1,"actions":[{"remoteAddress":{}}]}]`:                                                                 "rate_limits[0].stage: ",
		base + `,"rateLimits":[{"actions":[{"extension":{"name":"x","typedConfig":{"@type":"type.googleapis.com/google.protobuf.Empty"}}}]}]`: "rate_limits[0].actions[0].extension.typed_config.type_url: ",
		base + `,"rateLimits":[{"actions":[` + expr + `"descriptorKey":"a","text":"("}}}]}]`:                                                  "rate_limits[0].actions[0].extension.typed_config.text: ",
		base + `,"statusOnError":{"code":200}`:                                                                                                "status_on_error.code: ",
		base + `,"timeout":"-1s"`:                                                                                                             "timeout: ",
		`"domain":"x","rateLimitService":{"transportApiVersion":"V3","grpcService":{"googleGrpc":{"targetUri":"a"}}}`:                         "google_grpc",
	} {
		_, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte("{" + config + "}")}, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", config, err)
		}
	}
	for config, want := range map[string]string{`{"rateLimits":[{"stage":1}]}`: "rate_limits[0].stage: ", `{"vhRateLimits":9}`: "vh_rate_limits: "} {
		_, err := Factory{}.DecodeOverride(filters.Any{TypeURL: typeURLPerRoute, JSON: true, Value: []byte(config)}, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", config, err)
		}
	}
	var bounded filters.Decoding
	if _, err := (Factory{}).Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(`{"domain":"x","rateLimitService":{"transportApiVersion":"V3","grpcService":{"envoyGrpc":{"clusterName":"rls","maxReceiveMessageLength":5}}}}`)}, &bounded); err != nil || len(bounded.Ignored()) != 1 {
		t.Errorf("max_receive_message_length: %v, %v", bounded.Ignored(), err)
	}
	var d filters.Decoding
	if _, err := (Factory{}).DecodeOverride(filters.Any{TypeURL: typeURLPerRoute, JSON: true, Value: []byte(`{"overrideOption":"INCLUDE_POLICY"}`)}, &d); err != nil || len(d.Ignored()) != 1 || d.Ignored()[0].Path != "override_option" {
		t.Errorf("override_option: %v, %v", d.Ignored(), err)
	}
}

// FuzzParse: an answer that is taken means the same when its message is written
// again, and no window is negative.
func FuzzParse(f *testing.F) {
	f.Add([]byte{8, 2})
	f.Add([]byte{8, 1, 26, 6, 10, 1, 'a', 18, 1, 'b'})
	f.Add([]byte{18, 12, 18, 10, 16, 6, 34, 6, 8, 255, 255, 255, 255, 15}) // 4 billion years
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parse(b)
		if (a == nil) == (err == nil) {
			t.Fatalf("%v, %v", a, err)
		}
		if err != nil {
			return
		}
		m := &rlsv3pb.RateLimitResponse{}
		if err := proto.Unmarshal(b, m); err != nil {
			t.Fatal(err)
		}
		again, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parse(again); err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", a) {
			t.Fatalf("%+v became %+v, %v", a, got, err)
		}
		for _, s := range a.statuses {
			if s.window < 0 {
				t.Fatalf("%+v", s)
			}
		}
	})
}
