package rego

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"
	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/explaintest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/fairlead-mesh/fairlead/internal/timer.(*shard).run"),
		goleak.IgnoreAnyFunction("github.com/fairlead-mesh/fairlead/internal/timer.(*wheel).run"))
}

// upstream is the end of the chain: it records what reached it.
type upstream struct {
	called bool
	header map[string]string
	body   string
}

func (u *upstream) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	u.called = true
	u.header = map[string]string{}
	for i := range s.Request.Len() {
		u.header[s.Request.At(i).Name] = strings.Clone(s.Request.At(i).Value)
	}
	for {
		c, last, err := s.Body.Next()
		if err != nil {
			return nil, err
		}
		u.body += string(c)
		if last {
			break
		}
	}
	r := s.NewResponse()
	r.Header.Add(message.Status, "200")
	return r, nil
}

func env() *filters.Env {
	var reg stats.Registry
	return &filters.Env{Name: "rego", Stats: reg.Scope(""), Logger: slog.New(slog.DiscardHandler), Shared: &filters.Shared{}, Logs: files{}}
}

func decode(t testing.TB, js string) filters.Config {
	t.Helper()
	c, err := Factory{}.Decode(filters.Any{TypeURL: TypeURL, Value: []byte(js), JSON: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if cfg, ok := c.(*config); ok && cfg.timeout == defaultTimeout {
		cfg.timeout = maxTimeout // the machine may be busy
	}
	return c
}

func compileJSON(t testing.TB, e *filters.Env, js, over string) filters.HTTPFilter {
	t.Helper()
	var o filters.Config
	if over != "" {
		var err error
		if o, err = (Factory{}).DecodeOverride(filters.Any{TypeURL: PerRouteTypeURL, Value: []byte(over), JSON: true}, nil); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Factory{}.Compile(e, decode(t, js), o)
	if err != nil {
		t.Fatal(err)
	}
	if c, ok := f.(interface{ Close() error }); ok {
		t.Cleanup(func() { _ = c.Close() })
	}
	return f
}

// conf makes a configuration of one inline policy and further JSON fields.
func conf(policy string, more ...string) string {
	p, _ := json.Marshal(policy)
	return fmt.Sprintf(`{"policy":{"sources":[{"inlineString":%s}]}%s}`, p, strings.Join(append([]string{""}, more...), ","))
}

// pieces is a body in chunks.
type pieces struct{ p []string }

func (b *pieces) Next() ([]byte, bool, error) {
	if len(b.p) == 0 {
		return nil, true, nil
	}
	c := b.p[0]
	b.p = b.p[1:]
	return []byte(c), len(b.p) == 0, nil
}
func (b *pieces) Ready() (int, bool)        { return 0, false }
func (b *pieces) Trailers() *message.Header { return nil }
func (b *pieces) Close()                    {}

type request struct {
	method, path string
	header       [][2]string
	body         []string
}

func (r request) stream() *filters.Stream {
	s := &filters.Stream{}
	s.Reset()
	if r.method == "" {
		r.method = "GET"
	}
	if r.path == "" {
		r.path = "/"
	}
	s.Request.Add(message.Method, r.method)
	s.Request.Add(message.Path, r.path)
	s.Request.Add(message.Scheme, "http")
	s.Request.Add(message.Authority, "reviews.default")
	for _, h := range r.header {
		s.Request.Add(h[0], h[1])
	}
	if len(r.body) > 0 {
		s.Body = &pieces{r.body}
	}
	s.Info.Conn = &streaminfo.Conn{
		Remote: netip.MustParseAddrPort("10.0.0.1:40000"), Local: netip.MustParseAddrPort("10.0.0.2:8080"),
		TLS: &streaminfo.TLS{
			Peer:      streaminfo.Certificate{URISANs: []string{"spiffe://td/ns/a/sa/client"}, Digest: "aa"},
			LocalCert: streaminfo.Certificate{URISANs: []string{"spiffe://td/ns/b/sa/server"}, Digest: "bb"},
		},
	}
	s.Info.Protocol = message.HTTP11
	s.Info.RequestID = "req-1"
	s.Info.Start = time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	return s
}

func run(t testing.TB, f filters.HTTPFilter, s *filters.Stream) (*upstream, *filters.Response) {
	t.Helper()
	q := explaintest.Ask(t, f, s)
	u := &upstream{}
	if f == nil {
		s.SetChain([]filters.HTTPFilter{nil, u})
	} else {
		s.SetChain([]filters.HTTPFilter{f, u})
	}
	r, err := filters.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	q.Agrees(t, s, u.called, nil)
	return u, r
}

const v1allow = "package envoy.authz\ndefault allow := false\n"

func TestDecisions(t *testing.T) {
	tests := []struct {
		name, policy string
		more         []string
		req          request
		wantStatus   int
		wantDetails  string
		wantUpstream bool
	}{
		{name: "a boolean true passes", policy: v1allow + `allow if input.attributes.request.http.method == "GET"`, wantStatus: 200, wantUpstream: true},
		{name: "a boolean false denies", policy: v1allow + `allow if input.attributes.request.http.method == "POST"`, wantStatus: 403, wantDetails: "rego_denied{policy}"},
		{name: "a v0 policy is understood", policy: "package envoy.authz\ndefault allow = false\nallow { input.attributes.request.http.method == \"GET\" }", wantStatus: 200, wantUpstream: true},
		{name: "v0 with import rego.v1 is understood", policy: "package envoy.authz\nimport rego.v1\ndefault allow := false\nallow if input.parsed_path[0] == \"\"", wantStatus: 200, wantUpstream: true},
		{name: "an undefined decision denies", policy: "package envoy.authz\nallow if input.attributes.request.http.method == \"POST\"", wantStatus: 403, wantDetails: "rego_denied{undefined}"},
		{name: "an undefined decision denies although failure_mode_allow", policy: "package envoy.authz\nallow if input.attributes.request.http.method == \"POST\"", more: []string{`"failureModeAllow":true`}, wantStatus: 403, wantDetails: "rego_denied{undefined}"},
		{name: "a decision of another type denies", policy: `package envoy.authz` + "\n" + `allow := "yes"`, wantStatus: 403, wantDetails: "rego_denied{error}"},
		{name: "an object without allowed denies", policy: `package envoy.authz` + "\n" + `allow := {"http_status": 200}`, wantStatus: 403, wantDetails: "rego_denied{error}"},
		{name: "an object with a malformed field denies", policy: `package envoy.authz` + "\n" + `allow := {"allowed": true, "headers": "x"}`, wantStatus: 403, wantDetails: "rego_denied{error}"},
		{name: "an object that sets content-length denies", policy: `package envoy.authz` + "\n" + `allow := {"allowed": true, "headers": {"Content-Length": "0"}}`, wantStatus: 403, wantDetails: "rego_denied{error}"},
		{name: "an object that sets a pseudo-header denies", policy: `package envoy.authz` + "\n" + `allow := {"allowed": true, "headers": {":path": "/admin"}}`, wantStatus: 403, wantDetails: "rego_denied{error}"},
		{name: "a header value with a line break denies", policy: `package envoy.authz` + "\n" + `allow := {"allowed": true, "headers": {"x": "a\r\nb: c"}}`, wantStatus: 403, wantDetails: "rego_denied{error}"},
		{name: "an error passes with failure_mode_allow", policy: `package envoy.authz` + "\n" + `allow := "yes"`, more: []string{`"failureModeAllow":true`}, wantStatus: 200, wantUpstream: true},
		{name: "conflicting results are an error", policy: "package envoy.authz\nallow := 1 if input.attributes.request.http.method == \"GET\"\nallow := 2 if input.attributes.request.http.path == \"/\"", wantStatus: 403, wantDetails: "rego_denied{error}"},
		{name: "a denial chooses its status", policy: `package envoy.authz` + "\n" + `allow := {"allowed": false, "http_status": 401, "body": "who?", "headers": {"www-authenticate": "Bearer"}}`, wantStatus: 401, wantDetails: "rego_denied{policy}"},
		{name: "deny_status is the default of denials", policy: v1allow, more: []string{`"denyStatus":404`}, wantStatus: 404, wantDetails: "rego_denied{policy}"},
		{name: "dry run passes what is denied", policy: v1allow, more: []string{`"dryRun":true`}, wantStatus: 200, wantUpstream: true},
		{name: "another query path", policy: "package a.b\nok if input.attributes.request.http.host == \"reviews.default\"", more: []string{`"query":"a/b/ok"`}, wantStatus: 200, wantUpstream: true},
		{
			name: "a JSON field decides", policy: v1allow + `allow if input.parsed_body.user.age > 17`,
			req: request{method: "POST", header: [][2]string{{"content-type", "application/json"}}, body: []string{`{"user":`, `{"age":18}}`}}, wantStatus: 200, wantUpstream: true,
		},
		{
			name: "JSON with a key twice denies", more: []string{`"failureModeAllow":true`}, policy: v1allow + `allow if input.parsed_body.a == 1`,
			req: request{method: "POST", header: [][2]string{{"content-type", "application/json"}}, body: []string{`{"a":2,"a":1}`}}, wantStatus: 400, wantDetails: "rego_denied{bad_request}",
		},
		{
			name: "malformed JSON denies", more: []string{`"failureModeAllow":true`}, policy: v1allow + `allow if not input.parsed_body.a`,
			req: request{method: "POST", header: [][2]string{{"content-type", "application/json"}}, body: []string{`{"a":2`}}, wantStatus: 400, wantDetails: "rego_denied{bad_request}",
		},
		{
			name: "JSON nested too deep denies", more: []string{`"failureModeAllow":true`}, policy: v1allow + `allow if not input.parsed_body.a`,
			req: request{method: "POST", header: [][2]string{{"content-type", "application/json"}}, body: []string{strings.Repeat("[", 1200) + strings.Repeat("]", 1200)}}, wantStatus: 400, wantDetails: "rego_denied{bad_request}",
		},
		{
			name: "a body beyond the limit denies with 413", policy: v1allow + `allow if not contains(input.attributes.request.http.body, "evil")`, more: []string{`"maxRequestBytes":10`, `"failureModeAllow":true`},
			req: request{method: "POST", body: []string{"0123456789", "x"}}, wantStatus: 413, wantDetails: "rego_denied{body_too_large}",
		},
		{
			name: "a body of the limit is read whole", policy: v1allow + `allow if input.attributes.request.http.body == "0123456789"`, more: []string{`"maxRequestBytes":10`},
			req: request{method: "POST", body: []string{"01234", "56789"}}, wantStatus: 200, wantUpstream: true,
		},
		{
			name: "truncation is shown to the policy", policy: v1allow + `allow if { input.truncated_body; input.attributes.request.http.body == "0123456789" }`, more: []string{`"maxRequestBytes":10`, `"bodyOverflow":"TRUNCATE"`},
			req: request{method: "POST", body: []string{"0123456789", "x", "yz"}}, wantStatus: 200, wantUpstream: true,
		},
		{
			name: "truncated JSON is null", policy: v1allow + `allow if { input.truncated_body; input.parsed_body == null }`, more: []string{`"maxRequestBytes":4`, `"bodyOverflow":"TRUNCATE"`},
			req: request{method: "POST", header: [][2]string{{"content-type", "application/json"}}, body: []string{`{"a":`, `1}`}}, wantStatus: 200, wantUpstream: true,
		},
		{
			name: "a form field decides", policy: v1allow + `allow if input.parsed_body.a == ["1", "2"]`,
			req: request{method: "POST", header: [][2]string{{"content-type", "application/x-www-form-urlencoded"}}, body: []string{`a=1&b=3&a=%32`}}, wantStatus: 200, wantUpstream: true,
		},
		{
			name: "a multipart field decides", policy: v1allow + `allow if input.parsed_body.j[0].k == 7`,
			req:        request{method: "POST", header: [][2]string{{"content-type", "multipart/form-data; boundary=BB"}}, body: []string{"--BB\r\nContent-Disposition: form-data; name=\"j\"\r\nContent-Type: application/json\r\n\r\n{\"k\":7}\r\n--BB--\r\n"}},
			wantStatus: 200, wantUpstream: true,
		},
		{
			name: "a principal decides", policy: v1allow + `allow if input.attributes.source.principal == "spiffe://td/ns/a/sa/client"`,
			wantStatus: 200, wantUpstream: true,
		},
		{
			name: "query parameters decide", policy: v1allow + `allow if input.parsed_query.id[0] == "a b"`,
			req: request{path: "/x?id=a+b"}, wantStatus: 200, wantUpstream: true,
		},
		{name: "context extensions decide", policy: v1allow + `allow if input.attributes.contextExtensions.tier == "gold"`, more: []string{`"contextExtensions":{"tier":"gold"}`}, wantStatus: 200, wantUpstream: true},
		{name: "base data decides", policy: v1allow + `allow if data.methods[_] == input.attributes.request.http.method`, wantStatus: 403, wantDetails: "rego_denied{policy}"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := compileJSON(t, env(), conf(tt.policy, tt.more...), "")
			s := tt.req.stream()
			u, r := run(t, f, s)
			if r.Status() != tt.wantStatus || u.called != tt.wantUpstream {
				t.Errorf("status %d, upstream called %v: want %d, %v (details %q)", r.Status(), u.called, tt.wantStatus, tt.wantUpstream, s.Info.Details)
			}
			if !tt.wantUpstream && s.Info.Details != tt.wantDetails {
				t.Errorf("details %q: want %q", s.Info.Details, tt.wantDetails)
			}
			if d := s.Info.Decision; (d == nil) != tt.wantUpstream || d != nil && (d.Filter != "rego" || d.Policy != "rego" || d.Reason == "") {
				t.Errorf("decision %+v", d)
			}
			if want := strings.Join(tt.req.body, ""); tt.wantUpstream && u.body != want {
				t.Errorf("upstream read %q: want %q", u.body, want)
			}
		})
	}
}

// TestFailClosed is the matrix of everything that can go wrong.
func TestFailClosed(t *testing.T) {
	slow := v1allow + `allow if count([x | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000); x := i * j]) > 0`
	for _, open := range []bool{false, true} {
		for _, tt := range []struct {
			name, policy string
			out          outcome
			mayOpen      bool
			body         []string
		}{
			{"undefined", "package envoy.authz\nallow if false", undefined, false, nil},
			{"error", "package envoy.authz\nallow := 7", failed, true, nil},
			{"timeout", slow, timedOut, true, nil},
			{"too large", v1allow + "allow if input.attributes.request.http.body != \"\"", tooLarge, false, []string{strings.Repeat("a", 100)}},
			{"denied", v1allow, denied, false, nil},
			{"a body that does not parse", v1allow + "allow if not input.parsed_body.a", malformed, false, []string{"{"}},
		} {
			t.Run(fmt.Sprintf("%s with failure_mode_allow %v", tt.name, open), func(t *testing.T) {
				timeout := "10s"
				if tt.out == timedOut {
					timeout = "0.02s"
				}
				f := compileJSON(t, env(), conf(tt.policy, fmt.Sprintf(`"failureModeAllow":%v`, open), fmt.Sprintf(`"timeout":%q`, timeout), `"maxRequestBytes":50`), "")
				count := &stats.Counter{}
				f.(*filter).decisions[tt.out] = count
				start := time.Now()
				u, _ := run(t, f, request{method: "POST", header: [][2]string{{"content-type", "application/json"}}, body: tt.body}.stream())
				if want := open && tt.mayOpen; u.called != want {
					t.Errorf("passed %v: want %v", u.called, want)
				}
				if d := time.Since(start); d > time.Minute { // it would take many
					t.Errorf("took %v", d)
				}
				if got := count.Value(); got != 1 {
					t.Errorf("fairlead_policy_decisions_total{result=%q} = %d: want 1", outcomeNames[tt.out], got)
				}
			})
		}
	}
	t.Run("a panic denies", func(t *testing.T) {
		f := compileJSON(t, env(), conf(v1allow+"allow if true"), "").(*filter)
		f.program.current.Store(&compiled{}) // the zero query panics
		s := request{}.stream()
		u, r := run(t, f, s)
		if u.called || r.Status() != 403 || s.Info.Details != "rego_denied{panic}" {
			t.Errorf("passed %v, status %d, details %q", u.called, r.Status(), s.Info.Details)
		}
	})
}

func TestHugeNumbersCostNothing(t *testing.T) {
	const jwt = "eyJhbGciOiJub25lIn0.eyJleHAiOjFlOTk5OTk5OTl9." // {"exp":1e99999999}
	for name, tt := range map[string]struct{ policy, body string }{
		"in parsed_body":       {v1allow + "allow if input.parsed_body.a + 1 > 5", `{"a":1e99999999}`},
		"in json.unmarshal":    {v1allow + "allow if json.unmarshal(input.attributes.request.http.body).a + 1 > 5", `{"a":1e99999999}`},
		"compared":             {v1allow + "allow if json.unmarshal(input.attributes.request.http.body).a > 5", `{"a":1e99999999}`},
		"summed":               {v1allow + "allow if sum([1, json.unmarshal(input.attributes.request.http.body).a]) > 5", `{"a":1e99999999}`},
		"printed":              {v1allow + `allow if sprintf("%d", [json.unmarshal(input.attributes.request.http.body).a]) != ""`, `{"a":1e99999999}`},
		"in a claim":           {v1allow + `allow if io.jwt.decode("` + jwt + `")[1].exp * 1000 > time.now_ns()`, `{}`},
		"in units.parse":       {v1allow + "allow if units.parse(json.unmarshal(input.attributes.request.http.body).a) > 5", `{"a":"1e99999999"}`},
		"in units.parse_bytes": {v1allow + "allow if units.parse_bytes(json.unmarshal(input.attributes.request.http.body).a) > 5", `{"a":"1e99999999"}`},
		"shifted":              {v1allow + "allow if bits.lsh(1, json.unmarshal(input.attributes.request.http.body).a) > 5", `{"a":1e99999999}`},
		"made into a range":    {v1allow + "allow if count(numbers.range(1, json.unmarshal(input.attributes.request.http.body).a)) > 5", `{"a":1e99999999}`},
	} {
		t.Run(name, func(t *testing.T) {
			f := compileJSON(t, env(), conf(tt.policy), "")
			start := time.Now()
			u, _ := run(t, f, request{method: "POST", header: [][2]string{{"content-type", "application/json"}}, body: []string{tt.body}}.stream())
			if d := time.Since(start); d > time.Minute { // nor does a timeout end it
				t.Errorf("took %v", d)
			}
			if u.called {
				t.Error("passed")
			}
		})
	}
}

func TestAClientThatLeavesEndsTheEvaluation(t *testing.T) {
	f := compileJSON(t, env(), conf(v1allow+`allow if count([x | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000); x := i * j]) > 0`, `"timeout":"10s"`), "")
	s := request{}.stream()
	gone := errors.New("gone")
	go func() {
		time.Sleep(30 * time.Millisecond)
		s.Interrupt(gone)
	}()
	s.SetChain([]filters.HTTPFilter{f, &upstream{}})
	if _, err := filters.Start(s); !errors.Is(err, gone) {
		t.Errorf("error %v: want the cause", err)
	}
}

func TestInputDocument(t *testing.T) {
	f := compileJSON(t, env(), conf("package envoy.authz\nallow if count(input) > 0", `"contextExtensions":{"a":"b"}`, `"metadataContextNamespaces":["ns"]`), "").(*filter)
	s := request{
		method: "POST", path: "/a%20b/c?x=1&x=2",
		header: [][2]string{{"content-type", "application/json"}, {"x-multi", "1"}, {"content-length", "7"}, {"x-multi", "2"}},
		body:   []string{`{"n":1}`},
	}.stream()
	s.Info.Metadata.Set("ns", "k", map[string]any{"deep": 1.5})
	c := f.program.current.Load()
	body, err := f.buffer(s, c)
	if err != nil {
		t.Fatal(err)
	}
	v, err := f.buildInput(s, &c.want, body)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ast.JSON(v)
	if err != nil {
		t.Fatal(err)
	}
	var want any
	if err := unmarshalNumbers([]byte(`{
	  "attributes": {
	    "source": {"address": {"socketAddress": {"address": "10.0.0.1", "portValue": 40000}}, "principal": "spiffe://td/ns/a/sa/client"},
	    "destination": {"address": {"socketAddress": {"address": "10.0.0.2", "portValue": 8080}}, "principal": "spiffe://td/ns/b/sa/server"},
	    "contextExtensions": {"a": "b"},
	    "metadataContext": {"filterMetadata": {"ns": {"k": {"deep": 1.5}}}},
	    "request": {
	      "time": {"seconds": 1767323045, "nanos": 6000},
	      "http": {
	        "id": "req-1", "method": "POST", "path": "/a%20b/c?x=1&x=2", "host": "reviews.default", "scheme": "http", "protocol": "HTTP/1.1", "size": 7, "rawBody": "eyJuIjoxfQ==",
	        "headers": {":method": "POST", ":path": "/a%20b/c?x=1&x=2", ":scheme": "http", ":authority": "reviews.default",
	          "content-type": "application/json", "content-length": "7", "x-multi": "1,2"},
	        "body": "{\"n\":1}"
	      }
	    }
	  },
	  "parsed_path": ["a b", "c"], "parsed_query": {"x": ["1", "2"]}, "parsed_body": {"n": 1}, "truncated_body": false,
	  "source_principal": "spiffe://td/ns/a/sa/client",
	  "version": {"ext_authz": "v3", "encoding": "protojson"}
	}`), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("input differs from opa-envoy-plugin's (-want +got):\n%s", diff)
	}
}

func TestPrincipalsComeFromTheTunnelFirst(t *testing.T) {
	f := compileJSON(t, env(), conf(v1allow+`allow if { input.attributes.source.principal == "spiffe://td/ns/x/sa/tunnel"; input.attributes.destination.principal == "spiffe://td/ns/y/sa/local" }`), "")
	s := request{}.stream()
	s.Info.FilterState.Set(peerPrincipalKey, streaminfo.String("spiffe://td/ns/x/sa/tunnel"), streaminfo.SharingNone)
	s.Info.FilterState.Set(localPrincipalKey, streaminfo.String("spiffe://td/ns/y/sa/local"), streaminfo.SharingNone)
	if u, _ := run(t, f, s); !u.called {
		t.Error("denied")
	}
}

func TestAnAllowingDecisionChangesTheRequest(t *testing.T) {
	f := compileJSON(t, env(), conf(`package envoy.authz
allow := {
  "allowed": true,
  "headers": [{"X-User": "u1"}, {"x-list": ["a", "b"]}],
  "request_headers_to_remove": ["X-Secret"],
  "response_headers_to_add": {"x-policy": "v7"},
  "query_parameters_to_set": {"k": "a b", "m": ["1", "2"]},
  "query_parameters_to_remove": ["gone"],
  "dynamic_metadata": {"n": 3, "o": {"p": [4]}},
}`), "")
	s := request{path: "/p?gone=1&keep=%2F&k=old", header: [][2]string{{"x-user", "spoofed"}, {"x-secret", "s"}}}.stream()
	u, r := run(t, f, s)
	if !u.called || u.header["x-user"] != "u1" || s.Request.Count("x-user") != 1 || s.Request.Count("x-list") != 2 {
		t.Errorf("request headers %v", u.header)
	}
	if _, ok := u.header["x-secret"]; ok {
		t.Error("x-secret reached upstream")
	}
	if want := "/p?keep=%2F&k=a+b&m=1&m=2"; u.header[message.Path] != want {
		t.Errorf("path %q: want %q", u.header[message.Path], want)
	}
	if r.Header.Get("x-policy") != "v7" {
		t.Error("no x-policy in the response")
	}
	if v, _ := s.Info.Metadata.Lookup("envoy.filters.http.ext_authz", "n"); v != 3.0 {
		t.Errorf("metadata n = %v", v)
	}
}

func TestPerRoute(t *testing.T) {
	base := conf(v1allow, `"contextExtensions":{"a":"base","b":"base"}`)
	t.Run("disabled is no filter", func(t *testing.T) {
		if f := compileJSON(t, env(), base, `{"disabled":true}`); f != nil {
			t.Errorf("filter %v", f)
		}
	})
	t.Run("policy and extensions replace the base", func(t *testing.T) {
		p, _ := json.Marshal(`package r` + "\n" + `ok if input.attributes.contextExtensions == {"a": "route", "b": "base"}`)
		f := compileJSON(t, env(), base, fmt.Sprintf(`{"query":"data.r.ok","policy":{"sources":[{"inlineString":%s}]},"contextExtensions":{"a":"route"}}`, p))
		if u, _ := run(t, f, request{}.stream()); !u.called {
			t.Error("denied")
		}
	})
	t.Run("routes share one compiled policy", func(t *testing.T) {
		e := env()
		a, b := compileJSON(t, e, base, ""), compileJSON(t, e, base, `{"contextExtensions":{"x":"y"}}`)
		if a.(*filter).program != b.(*filter).program {
			t.Error("compiled twice")
		}
	})
}

type terminal func(s *filters.Stream) (*filters.Response, error)

func (f terminal) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) { return f(s) }

func TestDecisionsAreCounted(t *testing.T) {
	reg := &stats.Registry{}
	e := &filters.Env{Name: "authz", Stats: reg.Scope("")}
	f := compileJSON(t, e, conf(v1allow), "")
	run(t, f, request{}.stream())
	run(t, f, request{}.stream())
	var b strings.Builder
	if err := reg.WritePrometheus(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`policy="authz"`, `result="denied"`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in\n%s", want, b.String())
		}
	}
	if !strings.Contains(b.String(), "fairlead_policy_evaluation_seconds_count{policy=\"authz\"} 2") {
		t.Errorf("no latency in\n%s", b.String())
	}
}
