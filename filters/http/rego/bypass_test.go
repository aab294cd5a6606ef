package rego

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// inputOf is the document that f's policy would be asked about s.
func inputOf(f *filter, s request) (any, error) {
	st := s.stream()
	c := f.program.current.Load()
	body, err := f.buffer(st, c)
	if err != nil {
		return nil, err
	}
	v, err := f.buildInput(st, &c.want, body)
	if err != nil {
		return nil, err
	}
	return ast.JSON(v)
}

// at is the value below v by keys.
func at(v any, keys ...string) any {
	for _, k := range keys {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	return v
}

const readsAll = "package envoy.authz\nallow if count(input) > 0"

// TestRepeatedHeadersReachThePolicyWhole is about policies that are led astray
// by a header that is there twice.
func TestRepeatedHeadersReachThePolicyWhole(t *testing.T) {
	rep := func(n int, name, value string) (out [][2]string) {
		for range n {
			out = append(out, [2]string{name, value})
		}
		return out
	}
	for _, tt := range []struct {
		name   string
		header [][2]string
		want   string
	}{
		{"one", [][2]string{{"x-role", "user"}}, "user"},
		{"two, in order", [][2]string{{"x-role", "user"}, {"x-other", "o"}, {"x-role", "admin"}}, "user,admin"},
		{"a list", [][2]string{{"x-role", "user,admin"}}, "user,admin"},
		{"an empty last element", [][2]string{{"x-role", "admin,"}}, "admin,"},
		{"the first is empty", [][2]string{{"x-role", ""}, {"x-role", "admin"}}, ",admin"},
		{"a hundred", rep(100, "x-role", "a"), strings.Repeat("a,", 99) + "a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, policy := range []string{readsAll, v1allow + `allow if input.attributes.request.http.headers["x-role"] == "x"`} {
				f := compileJSON(t, env(), conf(policy), "").(*filter)
				in, err := inputOf(f, request{header: tt.header})
				if err != nil {
					t.Fatal(err)
				}
				if got := at(in, "attributes", "request", "http", "headers", "x-role"); got != tt.want {
					t.Errorf("x-role %q: want %q", got, tt.want)
				}
			}
			deny := compileJSON(t, env(), conf("package envoy.authz\nallow if not \"admin\" in split(input.attributes.request.http.headers[\"x-role\"], \",\")"), "")
			if u, _ := run(t, deny, request{header: tt.header}.stream()); u.called == strings.Contains(tt.want, "admin") {
				t.Errorf("passed %v with x-role %q", u.called, tt.want)
			}
		})
	}
}

// TestWhatIsNotUTF8IsReplacedAndNeverLeftOut: all values of the document are
// text, the same one wherever they appear.
func TestWhatIsNotUTF8IsReplacedAndNeverLeftOut(t *testing.T) {
	f := compileJSON(t, env(), conf(readsAll), "").(*filter)
	in, err := inputOf(f, request{
		method: "POST", path: "/\xff/%ff?\xfe=\xfd&%fe=%fd",
		header: [][2]string{{"x-bad", "a\xc0\xafb"}, {"x-bad", "\xed\xa0\x80"}, {"content-type", "application/x-www-form-urlencoded"}},
		body:   []string{"k\xff=evil\xff"},
	})
	if err != nil {
		t.Fatal(err)
	}
	http := at(in, "attributes", "request", "http")
	for name, tt := range map[string]struct{ got, want any }{
		"path":         {at(http, "path"), "/!/%ff?!=!&%fe=%fd"},
		":path":        {at(http, "headers", ":path"), "/!/%ff?!=!&%fe=%fd"},
		"header":       {at(http, "headers", "x-bad"), "a!!b,!!!"},
		"parsed_path":  {at(in, "parsed_path"), []any{"!", "!"}},
		"parsed_query": {at(in, "parsed_query"), map[string]any{"!": []any{"!", "!"}}},
		"body":         {at(http, "body"), "k!=evil!"},
		"rawBody":      {at(http, "rawBody"), "a/89ZXZpbP8="},
		"parsed_body":  {at(in, "parsed_body"), map[string]any{"k!": []any{"evil!"}}},
	} {
		if diff := cmp.Diff(tt.want, tt.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if _, err := json.Marshal(in); err != nil {
		t.Error(err)
	}
	t.Run("a rule about the body fires on what is not text", func(t *testing.T) {
		f := compileJSON(t, env(), conf("package envoy.authz\nallow if not contains(input.attributes.request.http.body, \"evil\")"), "")
		if u, _ := run(t, f, request{method: "POST", body: []string{"evil\xff"}}.stream()); u.called {
			t.Error("passed")
		}
	})
	t.Run("upstream gets the bytes as they came", func(t *testing.T) {
		u, _ := run(t, compileJSON(t, env(), conf(readsAll), ""), request{method: "POST", path: "/\xff", header: [][2]string{{"x-bad", "\xc0"}}, body: []string{"\xff\xfe"}}.stream())
		if !u.called || u.header[message.Path] != "/\xff" || u.header["x-bad"] != "\xc0" || u.body != "\xff\xfe" {
			t.Errorf("called %v, path %q, header %q, body %q", u.called, u.header[message.Path], u.header["x-bad"], u.body)
		}
	})
}

// TestParsedPathIsThatOfUpstream: the path is split as it is, without taking
// it for a URL.
func TestParsedPathIsThatOfUpstream(t *testing.T) {
	f := compileJSON(t, env(), conf(v1allow+`allow if input.parsed_path[0] == "x"`), "").(*filter)
	for path, want := range map[string][]any{
		"//admin/x":       {"admin", "x"},
		"///admin":        {"admin"},
		"/a//b":           {"a", "", "b"},
		"/admin%2fx":      {"admin", "x"},
		"/%61dmin":        {"admin"},
		"/a?b=/admin":     {"a"},
		"/a;b=c/d":        {"a;b=c", "d"},
		"/":               {""},
		"*":               {"*"},
		"/?":              {""},
		"/a#b":            {"a#b"},
		"/@host/b":        {"@host", "b"},
		"//u:p@h:80/b":    {"u:p@h:80", "b"},
		"/a/../admin":     {"a", "..", "admin"},
		"/svc/Method":     {"svc", "Method"},
		"//[::1]/admin":   {"[::1]", "admin"},
		"/a:b":            {"a:b"},
		"http://h/admin":  nil,
		"HTTP://h/admin":  nil,
		"svc/Method":      nil,
		"?a=b":            {""},
		"/admin%zz":       nil,
		"/admin%":         nil,
		"/admin\x7f%0a/x": {"admin\x7f\n", "x"},
	} {
		in, err := inputOf(f, request{path: path})
		switch {
		case (err != nil) != (want == nil):
			t.Errorf("%q: error %v", path, err)
		case err == nil:
			if diff := cmp.Diff(any(want), at(in, "parsed_path")); diff != "" {
				t.Errorf("%q (-want +got):\n%s", path, diff)
			}
		default:
			s := request{path: path}.stream()
			if u, r := run(t, f, s); u.called || r.Status() != 400 || s.Info.Details != "rego_denied{bad_request}" {
				t.Errorf("%q: passed %v, status %d, %s", path, u.called, r.Status(), s.Info.Details)
			}
		}
	}
	t.Run("an absent path has one empty segment", func(t *testing.T) {
		s := request{method: "CONNECT"}.stream()
		s.Request.Del(message.Path)
		v, err := f.buildInput(s, &want{parsedPath: true}, requestBody{})
		if err != nil {
			t.Fatal(err)
		}
		in, _ := ast.JSON(v)
		if diff := cmp.Diff(any([]any{""}), at(in, "parsed_path")); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("a path that is nobody's business is not split", func(t *testing.T) {
		g := compileJSON(t, env(), conf(v1allow+`allow if input.attributes.request.http.method == "GET"`), "")
		if u, _ := run(t, g, request{path: "/%zz?%zz"}.stream()); !u.called {
			t.Error("denied")
		}
	})
}

// TestThePolicySeesTheWholeQueryOrNothingPasses.
func TestThePolicySeesTheWholeQueryOrNothingPasses(t *testing.T) {
	many := make([]string, 10001)
	for i := range many {
		many[i] = "p" + strconv.Itoa(i) + "=1"
	}
	f := compileJSON(t, env(), conf("package envoy.authz\nallow if not \"1\" in input.parsed_query.a", `"failureModeAllow":true`), "").(*filter)
	for _, tt := range []struct {
		query   string
		want    []any // of a; nil: refused
		refused bool
	}{
		{query: "a=1&a=2", want: []any{"1", "2"}},
		{query: "a=2&a=1", want: []any{"2", "1"}},
		{query: "a=1;a=2", refused: true},
		{query: "%61=1", want: []any{"1"}},
		{query: "a=%31", want: []any{"1"}},
		{query: "a[]=1"},
		{query: "a", want: []any{""}},
		{query: "a=1?a=2", want: []any{"1?a=2"}},
		{query: "a=+", want: []any{" "}},
		{query: "a=%zz", refused: true},
		{query: "a=1&b=%", refused: true},
		{query: "a=%00", want: []any{"\x00"}},
		{query: "a=1#a=2", want: []any{"1#a=2"}},
		{query: strings.Join(many, "&") + "&a=1", refused: true},
	} {
		name := tt.query[:min(len(tt.query), 20)]
		t.Run(name, func(t *testing.T) {
			in, err := inputOf(f, request{path: "/x?" + tt.query})
			if (err != nil) != tt.refused {
				t.Fatalf("error %v", err)
			}
			s := request{path: "/x?" + tt.query}.stream()
			u, r := run(t, f, s)
			if tt.refused {
				if u.called || r.Status() != 400 {
					t.Errorf("passed %v, status %d", u.called, r.Status())
				}
				return
			}
			got, _ := at(in, "parsed_query", "a").([]any)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("a (-want +got):\n%s", diff)
			}
			if u.called && u.header[message.Path] != "/x?"+tt.query {
				t.Errorf("upstream got %q", u.header[message.Path])
			}
		})
	}
}

// TestASpoofedHeaderIsGoneInAllSpellings: what a policy sets or removes is not
// undone by the client.
func TestASpoofedHeaderIsGoneInAllSpellings(t *testing.T) {
	f := compileJSON(t, env(), conf(`package envoy.authz
allow := {"allowed": true, "headers": {"X-User-Id": "7"}, "request_headers_to_remove": ["x-secret-key"]}`), "")
	s := request{header: [][2]string{
		{"x-user-id", "1"},
		{"x_user_id", "2"},
		{"x-user_id", "3"},
		{"x-user-id", "4"},
		{"x-user-ida", "other"},
		{"x-secret-key", "1"},
		{"x_secret_key", "2"},
		{"x-secret_key", "3"},
	}}.stream()
	u, _ := run(t, f, s)
	if !u.called || s.Request.Count("x-user-id") != 1 || u.header["x-user-id"] != "7" || u.header["x-user-ida"] != "other" {
		t.Errorf("called %v, headers %v", u.called, u.header)
	}
	trailers := &message.Header{}
	for _, n := range []string{"x-user-id", "x_secret_key", "x-checksum"} {
		trailers.Add(n, "t")
	}
	s = request{method: "POST"}.stream()
	s.Body = &trailed{trailers}
	run(t, f, s)
	if got := s.Body.Trailers(); got.Len() != 1 || !got.Has("x-checksum") {
		t.Errorf("trailers %v", got)
	}
	for _, n := range []string{"x_user_id", "x-user_id", "x-secret-key", "x_secret_key", "x-secret_key"} {
		if _, ok := u.header[n]; ok {
			t.Errorf("%s reached upstream", n)
		}
	}
}

// trailed is a body of trailers only.
type trailed struct{ h *message.Header }

func (b *trailed) Next() ([]byte, bool, error) { return nil, true, nil }
func (b *trailed) Ready() (int, bool)          { return 0, false }
func (b *trailed) Trailers() *message.Header   { return b.h }
func (b *trailed) Close()                      {}

// stoppable is a body that can be interrupted.
type stoppable struct {
	trailed
	text  []byte
	cause error
}

func (b *stoppable) Next() ([]byte, bool, error) { p := b.text; b.text = nil; return p, true, nil }
func (b *stoppable) Interrupt(cause error)       { b.cause = cause }

// What ends a request early ends its body, and not the whole stream for want of
// a way to do so: behind trailers that are cleaned, and a body that was read.
func TestTheBodyCanBeInterruptedBehindTheFilter(t *testing.T) {
	for name, policy := range map[string]string{
		"trailers": `allow := {"allowed": true, "headers": {"X-User-Id": "7"}}`,
		"the body": `default allow := false
allow if input.parsed_body.a == 1`,
	} {
		f := compileJSON(t, env(), conf("package envoy.authz\n"+policy), "")
		s := request{method: "POST", header: [][2]string{{"content-type", "application/json"}}}.stream()
		in, cause := &stoppable{text: []byte(`{"a": 1}`)}, errors.New("over")
		s.Body = in
		if u, _ := run(t, f, s); !u.called {
			t.Fatalf("%s: denied", name)
		}
		i, ok := s.Body.(filters.Interrupter)
		if !ok {
			t.Fatalf("%s: it can't be interrupted any more", name)
		}
		if i.Interrupt(cause); !errors.Is(in.cause, cause) {
			t.Errorf("%s: the body heard %v", name, in.cause)
		}
	}
}

// TestSchemasAreNotFetched: a JSON schema may name others by URL.
func TestSchemasAreNotFetched(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dialled := make(chan struct{}, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			dialled <- struct{}{}
			_ = c.Close()
		}
	}()
	defer l.Close()
	policy := v1allow + fmt.Sprintf(`allow if json.match_schema({"a": 1}, {"$ref": "http://%s/schema.json"})[0]`, l.Addr())
	u, _ := run(t, compileJSON(t, env(), conf(policy), ""), request{}.stream())
	if u.called {
		t.Error("passed")
	}
	select {
	case <-dialled:
		t.Error("the schema was fetched")
	default:
	}
}
