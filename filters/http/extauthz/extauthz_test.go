package extauthz

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

const (
	enabled = `"filterEnabledMetadata":{"filter":"envoy.filters.http.rbac","path":[{"key":"istio_ext_authz_shadow_effective_policy_id"}],"value":{"stringMatch":{"prefix":"istio-ext-authz-p"}}}`
	grpcSvc = `{` + enabled + `,"grpcService":{"envoyGrpc":{"authority":"a","clusterName":"authz"},"timeout":"600s"},"transportApiVersion":"V3","failureModeAllow":true}`
	// httpSvc is what istiod makes of an envoyExtAuthzHttp provider.
	httpSvc = `{"allowedHeaders":{"patterns":[{"exact":"authorization","ignoreCase":true},{"ignoreCase":true,"prefix":"x-prefix-"}]},` + enabled + `,"httpService":{"authorizationRequest":{"headersToAdd":[{"key":"x-added","value":"yes-please"}]},"authorizationResponse":{"allowedClientHeaders":{"patterns":[{"exact":"content-type","ignoreCase":true},{"exact":"set-cookie","ignoreCase":true}]},"allowedClientHeadersOnSuccess":{"patterns":[{"exact":"x-allowed","ignoreCase":true}]},"allowedUpstreamHeaders":{"patterns":[{"exact":"x-auth-user","ignoreCase":true},{"ignoreCase":true,"prefix":"x-allow-"}]}},"pathPrefix":"/check","serverUri":{"cluster":"authz","timeout":"1s","uri":"http://ext-authz.authz.svc.cluster.local"}},"transportApiVersion":"V3"}`
)

// service answers every question and keeps the last one.
type service struct {
	status  int
	headers []string
	body    string
	err     error
	got     *filters.Callout
}

func (v *service) RoundTrip(_ context.Context, cluster string, c *filters.Callout, _ int64) (*filters.CalloutResponse, error) {
	v.got = c
	if v.err != nil || cluster != "authz" {
		return nil, errors.Join(v.err, errors.New("no answer"))
	}
	r := &filters.CalloutResponse{Status: v.status, Body: []byte(v.body)}
	r.Header.Add(message.Status, "x")
	for i := 0; i < len(v.headers); i += 2 {
		r.Header.Add(v.headers[i], v.headers[i+1])
	}
	return r, nil
}

type upstream struct {
	seen message.Header
	body string
}

func (u *upstream) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	u.seen.CopyFrom(&s.Request)
	for last := false; !last; {
		var p []byte
		var err error
		if p, last, err = s.Body.Next(); err != nil {
			return nil, err
		}
		u.body += string(p)
	}
	r := s.NewResponse()
	r.Header.Add(message.Status, "200")
	return r, nil
}

// chunks is a body of several chunks.
type chunks struct {
	message.Body
	list []string
}

func (c *chunks) Next() ([]byte, bool, error) {
	p := c.list[0]
	c.list = c.list[1:]
	return []byte(p), len(c.list) == 0, nil
}

// trailed is a body of trailers only.
type trailed struct{ h *message.Header }

func (b *trailed) Next() ([]byte, bool, error) { return nil, true, nil }
func (b *trailed) Ready() (int, bool)          { return 0, true }
func (b *trailed) Trailers() *message.Header   { return b.h }
func (b *trailed) Close()                      {}

func compile(t *testing.T, config, override string, v *service) filters.HTTPFilter {
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
	env := &filters.Env{}
	if v != nil {
		env.Upstreams = v
	}
	f, err := Factory{}.Compile(env, c, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func run(t *testing.T, f filters.HTTPFilter, edit func(*filters.Stream)) (*filters.Stream, *filters.Response, *upstream) {
	t.Helper()
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	s.Info.Metadata.Set("envoy.filters.http.rbac", "istio_ext_authz_shadow_effective_policy_id", "istio-ext-authz-p-1")
	s.Request.Add(message.Method, "POST")
	s.Request.Add(message.Authority, "app")
	s.Request.Add(message.Path, "/a?b")
	if edit != nil {
		edit(s)
	}
	u := &upstream{}
	s.SetChain([]filters.HTTPFilter{f, u})
	r, err := filters.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	return s, r, u
}

func TestOnlyRequestsThatConcernItAreChecked(t *testing.T) {
	other := func(s *filters.Stream) {
		s.Info.Metadata.Set("envoy.filters.http.rbac", "istio_ext_authz_shadow_effective_policy_id", "other")
	}
	none := func(s *filters.Stream) { s.Info.Metadata.Reset() }
	for name, config := range map[string]string{"grpc": grpcSvc, "http": httpSvc} {
		v := &service{status: 403}
		f := compile(t, config, "", v)
		for _, edit := range []func(*filters.Stream){other, none} {
			if _, r, _ := run(t, f, edit); r.Status() != 200 || v.got != nil {
				t.Errorf("%s: %d", name, r.Status())
			}
		}
	}
}

func TestServicesThatCannotBeCalledRefuse(t *testing.T) {
	closed := strings.Replace(grpcSvc, `,"failureModeAllow":true`, "", 1)
	for name, f := range map[string]filters.HTTPFilter{
		"no gRPC answer": compile(t, closed, "", &service{status: 200}), "no clusters": compile(t, httpSvc, "", nil), "no clusters for gRPC": compile(t, closed, "", nil),
	} {
		s, r, u := run(t, f, nil)
		if r.Status() != 403 || s.Info.Flags != streaminfo.UnauthorizedExternalService || s.Info.Details != "ext_authz_error" || u.seen.Len() > 0 {
			t.Errorf("%s: %d %v %q", name, r.Status(), s.Info.Flags, s.Info.Details)
		}
	}
}

func TestAllowed(t *testing.T) {
	v := &service{status: 200, headers: []string{"x-auth-user", "alice", "x-allow-a", "1", "x-allow-a", "2", "x-other", "no", "x-allowed", "client", "content-length", "5"}}
	_, r, u := run(t, compile(t, httpSvc, "", v), func(s *filters.Stream) {
		for _, kv := range [][2]string{{"authorization", "t"}, {"x-prefix-a", "p"}, {"cookie", "secret"}, {"x-auth-user", "mallory"}, {"content-length", "3"}} {
			s.Request.Add(kv[0], kv[1])
		}
	})
	for name, want := range map[string]string{message.Method: "POST", message.Path: "/check/a?b", message.Authority: "app", message.Scheme: "http", "authorization": "t", "x-prefix-a": "p", "x-added": "yes-please", "cookie": "", "x-auth-user": "", "content-length": "0"} {
		if got := v.got.Header.Get(name); got != want {
			t.Errorf("the service got %s = %q", name, got)
		}
	}
	joined, _ := u.seen.Joined("x-allow-a")
	if u.seen.Get("x-auth-user") != "alice" || u.seen.Count("x-auth-user") != 1 || joined != "2" || u.seen.Has("x-other") || u.seen.Get("content-length") != "3" {
		t.Errorf("upstream got %+v", u.seen)
	}
	if r.Status() != 200 || r.Header.Get("x-allowed") != "client" {
		t.Errorf("the client got %+v", r.Header)
	}
	trailers := &message.Header{}
	for _, n := range []string{"x-auth-user", "x_auth_user", "x-checksum"} {
		trailers.Add(n, "mallory")
	}
	s, _, _ := run(t, compile(t, httpSvc, "", v), func(s *filters.Stream) { s.Body = &trailed{h: trailers} })
	if got := s.Body.Trailers(); got.Len() != 1 || !got.Has("x-checksum") {
		t.Errorf("trailers %+v", got)
	}
}

func TestDenied(t *testing.T) {
	v := &service{status: 302, body: "go away", headers: []string{"location", "/login", "set-cookie", "a", "set-cookie", "b", "content-type", "text/html", "x-secret", "s", "content-length", "7"}}
	s, r, u := run(t, compile(t, httpSvc, "", v), nil)
	b, _, _ := r.Body.Next()
	cookies, _ := r.Header.Joined("set-cookie")
	if r.Status() != 302 || string(b) != "go away" || s.Info.Flags != streaminfo.UnauthorizedExternalService || s.Info.Details != "ext_authz_denied" || u.seen.Len() > 0 {
		t.Errorf("%d %q %v %q", r.Status(), b, s.Info.Flags, s.Info.Details)
	}
	if r.Header.Get("location") != "/login" || cookies != "a,b" || r.Header.Get("content-type") != "text/html" || r.Header.Count("content-type") != 1 || r.Header.Has("x-secret") || r.Header.Count("content-length") != 1 {
		t.Errorf("%+v", r.Header)
	}
}

func TestErrors(t *testing.T) {
	open := strings.Replace(httpSvc, `"httpService"`, `"failureModeAllow":true,"failureModeAllowHeaderAdd":true,"httpService"`, 1)
	own := strings.Replace(httpSvc, `"httpService"`, `"statusOnError":{"code":"ServiceUnavailable"},"httpService"`, 1)
	for name, v := range map[string]*service{"no answer": {err: errors.New("timeout")}, "500": {status: 500}, "101": {status: 101}} {
		s, r, _ := run(t, compile(t, httpSvc, "", v), nil)
		if r.Status() != 403 || s.Info.Details != "ext_authz_error" {
			t.Errorf("%s: %d", name, r.Status())
		}
		if d := s.Info.Decision; d == nil || d.Filter != "ext_authz" || d.Policy != "authz" || d.Reason != "error" || d.Why == nil || d.Why() == "" {
			t.Errorf("%s: told is %+v", name, d)
		}
		if _, r, _ := run(t, compile(t, own, "", v), nil); r.Status() != 503 {
			t.Errorf("%s with a status of its own: %d", name, r.Status())
		}
		if _, r, u := run(t, compile(t, open, "", v), nil); r.Status() != 200 || u.seen.Get("x-envoy-auth-failure-mode-allowed") != "true" {
			t.Errorf("%s with failure_mode_allow: %d", name, r.Status())
		}
	}
	if _, r, _ := run(t, compile(t, httpSvc, "", &service{status: 201}), nil); r.Status() != 201 {
		t.Error("201 must be a refusal, only 200 allows")
	}
}

func TestBody(t *testing.T) {
	with := func(max, partial string) string {
		return strings.Replace(httpSvc, `"httpService"`, `"withRequestBody":{"maxRequestBytes":`+max+`,"allowPartialMessage":`+partial+`},"httpService"`, 1)
	}
	for _, tc := range []struct {
		name, config, override, sent string
		status                       int
	}{
		{"fits", with("6", "false"), "", "abcdef", 200},
		{"too large", with("5", "false"), "", "", 413},
		{"partial", with("5", "true"), "", "abcde", 200},
		{"not on this route", with("5", "false"), `{"checkSettings":{"disableRequestBodyBuffering":true}}`, "", 200},
		{"another limit on this route", with("5", "false"), `{"checkSettings":{"withRequestBody":{"maxRequestBytes":6}}}`, "abcdef", 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := &service{status: 200}
			_, r, u := run(t, compile(t, tc.config, tc.override, v), func(s *filters.Stream) {
				s.Body = &chunks{Body: message.NoBody, list: []string{"ab", "", "cd", "ef"}}
			})
			if r.Status() != tc.status {
				t.Fatalf("status %d", r.Status())
			}
			if tc.status == 413 {
				return
			}
			if string(v.got.Body) != tc.sent || u.body != "abcdef" {
				t.Errorf("the service got %q, upstream %q", v.got.Body, u.body)
			}
		})
	}
}

func TestPerRouteAndDecoding(t *testing.T) {
	if f := compile(t, httpSvc, `{"disabled":true}`, nil); f != nil {
		t.Error("disabled on the route, still there")
	}
	d := &filters.Decoding{}
	if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(grpcSvc)}, d); err != nil || len(d.Ignored()) != 0 {
		t.Errorf("%v %v", err, d.Ignored())
	}
	for _, bad := range []string{`{}`, `{"httpService":{}}`, `{"httpService":{"serverUri":{"cluster":"c","uri":"x"}},"statusOnError":{"code":"OK"}}`, `{"grpcService":{},"shadowMode":true}`, `{"grpcService":{},"withRequestBody":{}}`} {
		if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(bad)}, nil); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

func TestDenyAtDisableRefusesWhatIsNotAskedAbout(t *testing.T) {
	deny := strings.Replace(httpSvc, `"httpService"`, `"denyAtDisable":{"defaultValue":true,"runtimeKey":"k"},"statusOnError":{"code":"ServiceUnavailable"},"httpService"`, 1)
	v := &service{status: 200}
	s, r, _ := run(t, compile(t, deny, "", v), func(s *filters.Stream) { s.Info.Metadata.Reset() })
	if r.Status() != 503 || v.got != nil || s.Info.Details != "ext_authz_error" {
		t.Errorf("%d %q", r.Status(), s.Info.Details)
	}
}

func TestContextExtensionsOfAllLevelsAddUp(t *testing.T) {
	decode := func(doc string) filters.Config {
		c, err := Factory{}.DecodeOverride(filters.Any{JSON: true, Value: []byte(doc)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	general, specific := decode(`{"checkSettings":{"contextExtensions":{"a":"1","b":"1"},"disableRequestBodyBuffering":true}}`), decode(`{"checkSettings":{"contextExtensions":{"b":"2","c":"2"}}}`)
	got := Factory{}.MergeOverrides(general, specific).(*Override)
	if want := map[string]string{"a": "1", "b": "2", "c": "2"}; !maps.Equal(got.Extensions, want) || got.NoBody {
		t.Errorf("%+v", got)
	}
	if len(general.(*Override).Extensions) != 2 || len(specific.(*Override).Extensions) != 2 {
		t.Error("the merged configurations changed")
	}
	if off := (Factory{}).MergeOverrides(general, decode(`{"disabled":true}`)).(*Override); !off.Disabled {
		t.Error("the nearest is to hold")
	}
}

func TestAnotherServiceOnOneRoute(t *testing.T) {
	v := &service{status: 200}
	f := compile(t, grpcSvc, `{"checkSettings":{"httpService":{"serverUri":{"cluster":"authz","uri":"http://x","timeout":"1s"},"pathOverride":"/other"}}}`, v)
	if _, r, _ := run(t, f, nil); r.Status() != 200 || v.got.Header.Get(message.Path) != "/other" || v.got.HTTP2 {
		t.Errorf("%d %+v", r.Status(), v.got)
	}
}

func TestHTTPServicesAreNotAskedAboutTunnels(t *testing.T) {
	v := &service{status: 200}
	_, r, _ := run(t, compile(t, httpSvc, "", v), func(s *filters.Stream) { s.Request.Set(message.Method, "CONNECT") })
	if r.Status() != 403 || v.got != nil {
		t.Errorf("%d", r.Status())
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and what is accepted compiles and answers.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(httpSvc), true, uint16(200))
	f.Add([]byte(grpcSvc), true, uint16(403))
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool, status uint16) {
		c, err := decodetest.Forms(t, filters.Any{TypeURL: typeURL, JSON: isJSON, Value: b}, Factory{}.Decode)
		if err != nil {
			return
		}
		fl, err := Factory{}.Compile(&filters.Env{Upstreams: &service{status: int(status), headers: []string{"a", "b"}}}, c, nil)
		if err != nil {
			t.Fatal(err)
		}
		run(t, fl, nil)
	})
}
