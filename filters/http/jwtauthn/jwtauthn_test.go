package jwtauthn

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/filters/internal/explaintest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func quote(s string) string { b, _ := json.Marshal(s); return string(b) }

// istio is what istiod sends for a RequestAuthentication, with more fields in
// its provider.
func istio(more string) string {
	return `{"bypassCorsPreflight":true,"providers":{"origins-0":{"issuer":"https://issuer.example.com","localJwks":{"inlineString":` + quote(jwks()) + `},"payloadInMetadata":"payload","normalizePayloadInMetadata":{"spaceDelimitedClaims":["permission","scope"]},"clearRouteCache":true` + more + `}},
"rules":[{"match":{"prefix":"/"},"requires":{"requiresAny":{"requirements":[{"providerName":"origins-0"},{"allowMissing":{}}]}}}]}`
}

func strict(more string) string {
	return strings.Replace(istio(more), `"requiresAny":{"requirements":[{"providerName":"origins-0"},{"allowMissing":{}}]}`, `"providerName":"origins-0"`, 1)
}

type upstream struct{ seen message.Header }

func (u *upstream) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	u.seen.CopyFrom(&s.Request)
	r := s.NewResponse()
	r.Header.Add(message.Status, "200")
	return r, nil
}

func compile(t *testing.T, config, override string, env *filters.Env) filters.HTTPFilter {
	t.Helper()
	c, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(config)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var o filters.Config
	if override != "" {
		if o, err = (Factory{}).DecodeOverride(filters.Any{TypeURL: typeURLPerRoute, JSON: true, Value: []byte(override)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Factory{}.Compile(env, c, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func run(t *testing.T, f filters.HTTPFilter, path string, headers ...string) (*filters.Stream, *filters.Response, *upstream) {
	t.Helper()
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	s.Request.Add(message.Method, "GET")
	s.Request.Add(message.Scheme, "http")
	s.Request.Add(message.Authority, "host")
	s.Request.Add(message.Path, path)
	for i := 0; i < len(headers); i += 2 {
		s.Request.Set(headers[i], headers[i+1])
		if strings.HasPrefix(headers[i], "+") {
			s.Request.Del(headers[i])
			s.Request.Add(headers[i][1:], headers[i+1])
		}
	}
	var q *explaintest.Question
	if c, ok := f.(*filter); ok && !slices.ContainsFunc(c.providers, func(p *provider) bool { return p.file != nil }) {
		q = explaintest.Ask(t, f, s) // keys in a file may change before Do
	}
	u := &upstream{}
	s.SetChain([]filters.HTTPFilter{f, u})
	r, err := filters.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	q.Agrees(t, s, !r.Local, &u.seen)
	return s, r, u
}

func body(r *filters.Response) string { b, _, _ := r.Body.Next(); return string(b) }

func TestAnswersLikeEnvoy(t *testing.T) {
	good, old, other := token1(nil), token1(map[string]any{"exp": 1}), token1(map[string]any{"iss": "x"})
	bearer := func(s string) []string { return []string{"authorization", "Bearer " + s} }
	for _, tc := range []struct {
		name, config, path string
		headers            []string
		status             int
		body, challenge    string
	}{
		{"a good token", strict(""), "/a", bearer(good), 200, "", ""},
		{"no token", strict(""), "/a", nil, 401, "Jwt is missing", `Bearer realm="http://host/a"`},
		{"an expired token", strict(""), "/a?x=\"", bearer(old), 401, "Jwt is expired", `Bearer realm="http://host/a?x=%22", error="invalid_token"`},
		{"a foreign token", strict(""), "/a", bearer(other), 401, "Jwt issuer is not configured", `Bearer realm="http://host/a", error="invalid_token"`},
		{"the wrong audience is forbidden", strict(`,"audiences":["other"]`), "/a", bearer(good), 403, "Audiences in Jwt are not allowed", `Bearer realm="http://host/a", error="invalid_token"`},
		{"a token in the query", strict(""), "/a?access_token=" + good, nil, 200, "", ""},
		{"optional: no token", istio(""), "/a", nil, 200, "", ""},
		{"optional: a bad token", istio(""), "/a", bearer(old), 401, "Jwt is expired", `Bearer realm="http://host/a", error="invalid_token"`},
		{"optional: a foreign token", istio(""), "/a", bearer(other), 401, "Jwt issuer is not configured", `Bearer realm="http://host/a", error="invalid_token"`},
		{"optional: nonsense", istio(""), "/a", bearer("x.y.z"), 401, "Jwt header is an invalid Base64url encoded", `Bearer realm="http://host/a", error="invalid_token"`},
		{"optional: no key", strings.Replace(istio(""), quote(jwks()), `"{\"keys\":[]}"`, 1), "/a", bearer(good), 401, "Jwks doesn't have any valid public key", `Bearer realm="http://host/a", error="invalid_token"`},
		{"a second Authorization that is bad", istio(""), "/a", append(bearer(good), "+authorization", "Bearer "+old), 401, "Jwt is expired", `Bearer realm="http://host/a", error="invalid_token"`},
		{"a second parameter that is bad", istio(""), "/a?access_token=" + good + "&access_token=" + old, nil, 401, "Jwt is expired", ""},
		{"good in the header, bad in the query", istio(""), "/a?access_token=" + old, bearer(good), 401, "Jwt is expired", ""},
		{"Bearer with two blanks", strict(""), "/a", []string{"authorization", "Bearer  " + good}, 200, "", ""},
		{"bearer in lower case is no token", strict(""), "/a", []string{"authorization", "bearer " + good}, 401, "Jwt is missing", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, r, u := run(t, compile(t, tc.config, "", nil), tc.path, tc.headers...)
			if r.Status() != tc.status {
				t.Fatalf("status %d, body %q", r.Status(), body(r))
			}
			if tc.status == 200 {
				return
			}
			if got := body(r); got != tc.body || u.seen.Len() > 0 {
				t.Errorf("body %q", got)
			}
			if got := r.Header.Get("www-authenticate"); tc.challenge != "" && got != tc.challenge {
				t.Errorf("challenge %s", got)
			}
			if want := "jwt_authn_access_denied{" + strings.ReplaceAll(tc.body, " ", "_") + "}"; s.Info.Details != want {
				t.Errorf("details %s", s.Info.Details)
			}
		})
	}
}

func TestClaimsReachAuthorization(t *testing.T) {
	selected := 0
	f := compile(t, istio(""), "", nil)
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	s.Reselect = func(*filters.Stream) { selected++ }
	s.Request.Add(message.Path, "/")
	s.Request.Add("authorization", "Bearer "+token1(map[string]any{"exp": nil}))
	s.SetChain([]filters.HTTPFilter{f, &upstream{}})
	if _, err := filters.Start(s); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"payload": map[string]any{"iss": "https://issuer.example.com", "sub": "alice", "aud": "aud1", "scope": []any{"read", "write"}, "groups": []any{"a", "b"}}}
	if d := cmp.Diff(want, s.Info.Metadata.Namespace(Namespace)); d != "" {
		t.Error(d)
	}
	if selected != 1 {
		t.Errorf("the route was selected %d times", selected)
	}
}

func TestForwarding(t *testing.T) {
	const more = `,"forwardPayloadHeader":"x-payload","claimToHeaders":[{"headerName":"x-sub","claimName":"sub"},{"headerName":"X-Deep","claimName":"a.b"},{"headerName":"x-groups","claimName":"groups"},{"headerName":"x-evil","claimName":"evil"}]`
	tok := token1(map[string]any{"a": map[string]any{"b": 7}, "evil": "a\r\nb"})
	f := compile(t, strict(more), "", nil)
	_, _, u := run(t, f, "/p?q=1&access_token="+tok+"&r=%20", "x-sub", "mallory", "x-payload", "spoofed", "x-evil", "spoofed")
	if got := u.seen.Get(message.Path); got != "/p?q=1&r=%20" {
		t.Errorf("path %q", got)
	}
	for name, want := range map[string]string{"x-sub": "alice", "x-deep": "7", "x-groups": "WyJhIiwiYiJd", "x-payload": strings.Split(tok, ".")[1], "x-evil": ""} {
		if got := u.seen.Get(name); got != want || u.seen.Count(name) > 1 {
			t.Errorf("%s = %q (%d times)", name, got, u.seen.Count(name))
		}
	}
	_, _, u = run(t, f, "/", "authorization", "Bearer "+tok)
	if u.seen.Has("authorization") {
		t.Error("the token is forwarded")
	}
	_, _, u = run(t, compile(t, strict(`,"forward":true`), "", nil), "/", "authorization", "Bearer "+tok)
	if !u.seen.Has("authorization") {
		t.Error("the token is not forwarded")
	}
	_, _, u = run(t, compile(t, istio(more), "", nil), "/", "x-sub", "mallory")
	if u.seen.Has("x-sub") {
		t.Error("a claim header of a client without token passes")
	}
}

func TestLocations(t *testing.T) {
	const more = `,"fromHeaders":[{"name":"X-Jwt","valuePrefix":"Token "}],"fromParams":["tok"],"fromCookies":["c"]`
	f, good := compile(t, strict(more), "", nil), token1(nil)
	for _, headers := range [][]string{{"x-jwt", "Token " + good}, {"cookie", "a=b; c=" + good}, {"cookie", `c="` + good + `"`}} {
		if _, r, _ := run(t, f, "/", headers...); r.Status() != 200 {
			t.Errorf("%s: %s", headers[0], body(r))
		}
	}
	if _, r, _ := run(t, f, "/?tok="+good); r.Status() != 200 {
		t.Error("parameter: ", body(r))
	}
	if _, r, _ := run(t, f, "/?t%6Fk="+good); r.Status() != 200 {
		t.Error("escaped parameter: ", body(r))
	}
	if _, r, _ := run(t, f, "/", "authorization", "Bearer "+good); r.Status() != 401 {
		t.Error("the default place counts although others are configured")
	}
}

func TestRequirements(t *testing.T) {
	providers := `"providers":{"a":{"issuer":"a","localJwks":{"inlineString":` + quote(jwks()) + `},"fromHeaders":[{"name":"a"}]},"b":{"issuer":"b","audiences":["x"],"localJwks":{"inlineString":` + quote(jwks()) + `},"fromHeaders":[{"name":"b"}]}}`
	tok := func(iss, aud string) string { return token1(map[string]any{"iss": iss, "aud": aud}) }
	a, b, bad := []string{"a", tok("a", "x")}, []string{"b", tok("b", "x")}, []string{"a", token1(map[string]any{"iss": "a", "exp": 1})}
	both := append(append([]string{}, a...), b...)
	const pa, pb, miss, fail = `{"providerName":"a"}`, `{"providerName":"b"}`, `{"allowMissing":{}}`, `{"allowMissingOrFailed":{}}`
	anyOf := func(rs ...string) string { return `{"requiresAny":{"requirements":[` + strings.Join(rs, ",") + `]}}` }
	allOf := func(rs ...string) string { return `{"requiresAll":{"requirements":[` + strings.Join(rs, ",") + `]}}` }
	for _, tc := range []struct {
		name, requires string
		headers        []string
		want           int
	}{
		{"all: both", allOf(pa, pb), both, 200},
		{"all: one", allOf(pa, pb), a, 401},
		{"any: second", anyOf(pa, pb), b, 200},
		{"any: none", anyOf(pa, pb), nil, 401},
		{"any: a bad one beside a good one", anyOf(pa, pb), append(append([]string{}, bad...), b...), 200},
		{"any or missing: a bad one beside a good one", anyOf(pb, miss), append(append([]string{}, bad...), b...), 200},
		{"missing is allowed", anyOf(pa, miss), nil, 200},
		{"missing is allowed, bad is not", anyOf(pa, miss), bad, 401},
		{"missing or failed", anyOf(pa, fail), bad, 200},
		{"missing alone looks at every provider", miss, bad, 401},
		{"missing alone, good", miss, b, 200},
		{"failed alone", fail, bad, 200},
		{"all of optional ones, one given", allOf(anyOf(pa, miss), anyOf(pb, miss)), a, 200},
		{"all of optional ones, one bad", allOf(anyOf(pa, miss), anyOf(pb, miss)), append(append([]string{}, bad...), b...), 401},
		{"audiences of the requirement", `{"providerAndAudiences":{"providerName":"b","audiences":["y"]}}`, b, 403},
		{"audiences of the requirement, good", `{"providerAndAudiences":{"providerName":"b","audiences":["y"]}}`, []string{"b", tok("b", "y")}, 200},
		{"nothing", `{}`, bad, 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, r, _ := run(t, compile(t, `{`+providers+`,"rules":[{"match":{"prefix":"/"},"requires":`+tc.requires+`}]}`, "", nil), "/", tc.headers...)
			if r.Status() != tc.want {
				t.Errorf("status %d, %s", r.Status(), body(r))
			}
		})
	}
}

func TestRulesAndRoutes(t *testing.T) {
	p := `"providers":{"p":{"issuer":"i","localJwks":{"inlineString":"{\"keys\":[]}"}}}`
	rules := `{` + p + `,"requirementMap":{"r":{"providerName":"p"},"open":{"allowMissing":{}}},"rules":[
		{"match":{"path":"/open"}},
		{"match":{"pathSeparatedPrefix":"/sep"},"requirementName":"r"},
		{"match":{"safeRegex":{"regex":"/re/[a-z]+"}},"requirementName":"r"},
		{"match":{"prefix":"/h","headers":[{"name":"x","presentMatch":true}],"queryParameters":[{"name":"q"}]},"requirementName":"r"}]}`
	f := compile(t, rules, "", nil)
	for path, want := range map[string]int{"/open": 200, "/sep": 401, "/sep/x": 401, "/separate": 200, "/re/abc": 401, "/re/abc?x": 401, "/re/1": 200, "/other": 200, "/h?q": 401, "/h": 200} {
		if _, r, _ := run(t, f, path, "x", "1"); r.Status() != want {
			t.Errorf("%s: %d, want %d", path, r.Status(), want)
		}
	}
	if _, r, _ := run(t, compile(t, rules, `{"requirementName":"r"}`, nil), "/open"); r.Status() != 401 {
		t.Error("the route's requirement does not count")
	}
	if f := compile(t, rules, `{"disabled":true}`, nil); f != nil {
		t.Error("disabled on the route, still there")
	}
	c, _ := Factory{}.Decode(filters.Any{JSON: true, Value: []byte(rules)}, nil)
	if _, err := (Factory{}).Compile(nil, c, &Override{Name: "nope"}); err == nil {
		t.Error("an unknown requirement was accepted")
	}
	state := `{` + p + `,"filterStateRules":{"name":"sel","requires":{"x":{"providerName":"p"}}}}`
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	s.Info.FilterState.Set("sel", streaminfo.String("x"), streaminfo.SharingNone)
	s.SetChain([]filters.HTTPFilter{compile(t, state, "", nil), &upstream{}})
	if r, err := filters.Start(s); err != nil || r.Status() != 401 {
		t.Errorf("filter_state_rules: %v", err)
	}
}

func TestPreflightsBypass(t *testing.T) {
	f := compile(t, strict(""), "", nil)
	if _, r, _ := run(t, f, "/", ":method", "OPTIONS", "origin", "x", "access-control-request-method", "GET"); r.Status() != 200 {
		t.Error("a preflight is refused")
	}
	if _, r, _ := run(t, f, "/", ":method", "OPTIONS", "origin", "x"); r.Status() != 401 {
		t.Error("OPTIONS alone passes")
	}
}

type keyServer struct {
	body    string
	err     error
	fetches int
}

func (k *keyServer) RoundTrip(_ context.Context, cluster string, req *filters.Callout, _ int64) (*filters.CalloutResponse, error) {
	k.fetches++
	if cluster != "idp" || req.Header.Get(message.Path) != "/keys?x" || req.Header.Get(message.Authority) != "idp.example" {
		return nil, errors.New("unexpected request")
	}
	if k.err != nil {
		return nil, k.err
	}
	return &filters.CalloutResponse{Status: 200, Body: []byte(k.body)}, nil
}

func asking(authorization string) *filters.Stream {
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	s.Request.Add(message.Method, "GET")
	s.Request.Add(message.Path, "/")
	s.Request.Add("authorization", authorization)
	return s
}

func TestRemoteKeys(t *testing.T) {
	config := strings.Replace(strict(""), `"localJwks":{"inlineString":`+quote(jwks())+`}`, `"remoteJwks":{"httpUri":{"uri":"https://idp.example/keys?x","cluster":"idp","timeout":"1s"},"cacheDuration":"60s"}`, 1)
	long := token1(map[string]any{"exp": nil})
	synctest.Test(t, func(t *testing.T) {
		srv := &keyServer{err: errors.New("down")}
		f := compile(t, config, "", &filters.Env{Upstreams: srv, Shared: &filters.Shared{}})
		defer func() { _ = f.(io.Closer).Close() }()
		get := func() string {
			_, r, _ := run(t, f, "/", "authorization", "Bearer "+long)
			if r.Status() == 200 {
				return "200"
			}
			return body(r)
		}
		const failed = "Jwks remote fetch is failed"
		x := explaintest.Ask(t, f, asking("Bearer "+long)).Explanation()
		if x.Verdict != filters.VerdictUnknown || !strings.HasSuffix(x.Text[0], "Jwks would be fetched") || srv.fetches != 0 {
			t.Errorf("%+v, %d fetches", x, srv.fetches)
		}
		if got := get(); got != failed {
			t.Errorf("server down: %s", got)
		}
		srv.err, srv.body = nil, `{"keys":[`+rsaJWK("rsa")+`]}`
		if got := get(); got != failed || srv.fetches != 1 {
			t.Errorf("tried again at once: %s, %d", got, srv.fetches)
		}
		time.Sleep(retryAfter)
		if got := get(); !strings.Contains(got, "doesn't have key") || srv.fetches != 2 {
			t.Errorf("another key: %s, %d", got, srv.fetches)
		}
		srv.body = jwks()
		if get(); srv.fetches != 2 {
			t.Errorf("unknown keys cause %d fetches", srv.fetches)
		}
		time.Sleep(retryAfter)
		if got := get(); got != "200" || srv.fetches != 3 {
			t.Errorf("rotated in: %s, %d", got, srv.fetches)
		}
		if got := get(); got != "200" || srv.fetches != 3 {
			t.Errorf("cached: %s, %d", got, srv.fetches)
		}
		time.Sleep(time.Minute)
		srv.body = `{"keys":[` + rsaJWK("rsa") + `]}`
		if got := get(); !strings.Contains(got, "doesn't have key") {
			t.Errorf("a removed key still verifies: %s", got)
		}
		time.Sleep(time.Minute)
		srv.err = errors.New("down")
		if got := get(); got != failed {
			t.Errorf("expired keys still verify: %s", got)
		}
	})
}

func TestDecodeRefuses(t *testing.T) {
	for name, c := range map[string]string{
		"no keys":                    `{"providers":{"p":{"issuer":"i"}}}`,
		"keys from nowhere":          `{"providers":{"p":{"localJwks":{}}}}`,
		"a file without a name":      `{"providers":{"p":{"localJwks":{"filename":""}}}}`,
		"a variable without a name":  `{"providers":{"p":{"localJwks":{"environmentVariable":""}}}}`,
		"a cache for no time":        `{"providers":{"p":{"remoteJwks":{"httpUri":{"uri":"https://x/y","cluster":"c"},"cacheDuration":"0s"}}}}`,
		"refetching without a pause": `{"providers":{"p":{"remoteJwks":{"httpUri":{"uri":"https://x/y","cluster":"c"},"asyncFetch":{"failedRefetchDuration":"0s"}}}}}`,
		"retries without a pause":    `{"providers":{"p":{"remoteJwks":{"httpUri":{"uri":"https://x/y","cluster":"c"},"retryPolicy":{"retryBackOff":{"baseInterval":"0s"}}}}}}`,
		"unknown provider":           `{"rules":[{"match":{"prefix":"/"},"requires":{"providerName":"x"}}]}`,
		"unknown requirement":        `{"rules":[{"match":{"prefix":"/"},"requirementName":"x"}]}`,
		"extraction only":            `{"rules":[{"match":{"prefix":"/"},"requires":{"extractOnlyWithoutValidation":{}}}]}`,
		"no path":                    `{"rules":[{"match":{}}]}`,
		"matcher that is not usable": `{"rules":[{"match":{"prefix":"/","grpc":{}}}]}`,
		"pseudo-header for a claim":  `{"providers":{"p":{"localJwks":{"inlineString":"{\"keys\":[]}"},"claimToHeaders":[{"headerName":":path","claimName":"x"}]}}}`,
		"remote without a cluster":   `{"providers":{"p":{"remoteJwks":{"httpUri":{"uri":"https://x/y"}}}}}`,
	} {
		if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(c)}, nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	d := &filters.Decoding{}
	if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(`{"providers":{"p":{"localJwks":{"inlineString":"garbage"}}}}`)}, d); err != nil || len(d.Ignored()) != 1 {
		t.Errorf("broken keys must be reported: %v %v", err, d.Ignored())
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and what is accepted compiles and ends every request.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(istio("")), true, "Bearer x.y.z", "/?access_token=a")
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool, header, path string) {
		c, err := decodetest.Forms(t, filters.Any{TypeURL: typeURL, JSON: isJSON, Value: b}, Factory{}.Decode)
		if err != nil || slices.ContainsFunc(c.(*Config).Providers, func(p Provider) bool { return p.File != "" || p.Environment != "" }) {
			return
		}
		fl, err := Factory{}.Compile(&filters.Env{Upstreams: &keyServer{err: errors.New("down")}}, c, nil)
		if err != nil {
			t.Fatal(err)
		}
		run(t, fl, path, "authorization", header, "cookie", header)
		_ = fl.(io.Closer).Close()
	})
}

func BenchmarkCachedToken(b *testing.B) {
	c, err := Factory{}.Decode(filters.Any{JSON: true, Value: []byte(istio(`,"forward":true`))}, nil)
	if err != nil {
		b.Fatal(err)
	}
	f, err := Factory{}.Compile(nil, c, nil)
	if err != nil {
		b.Fatal(err)
	}
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	s.Request.Add(message.Path, "/")
	s.Request.Add("authorization", "Bearer "+token1(nil))
	s.SetChain([]filters.HTTPFilter{f, terminal{}})
	b.ReportAllocs()
	for b.Loop() {
		if r, err := filters.Start(s); err != nil || r.Status() != 200 {
			b.Fatal("refused")
		}
	}
}

type terminal struct{}

func (terminal) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	r := s.NewResponse()
	r.Header.Add(message.Status, "200")
	return r, nil
}

// A stream may outlive the configuration that its filter is of.
func TestClosedRemoteKeysAreNotFetched(t *testing.T) {
	srv := &keyServer{}
	r := newRemote(&Remote{Cluster: "idp"}, srv, nil, nil, nil)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, st := r.get(asking(""), &token{}); st != fetchFails {
		t.Errorf("%v", st)
	}
	r.wg.Wait()
	if srv.fetches != 0 {
		t.Errorf("%d fetches for nobody", srv.fetches)
	}
}
