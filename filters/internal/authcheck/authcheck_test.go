package authcheck

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

type answering filters.CalloutResponse

func (a *answering) RoundTrip(context.Context, string, *filters.Callout, int64) (*filters.CalloutResponse, error) {
	return (*filters.CalloutResponse)(a), nil
}

func response(status int, body string, trailers ...string) *answering {
	a := &answering{Status: status, Body: []byte(body)}
	for i := 0; i < len(trailers); i += 2 {
		a.Trailers.Add(trailers[i], trailers[i+1])
	}
	return a
}

func check(u filters.Upstreams) (*Answer, error) {
	v := &Service{Cluster: "c", Authority: "c", Timeout: time.Second}
	return v.Check(context.Background(), u, make([]byte, FrameSize), nil)
}

func TestOnlyAWholeGRPCAnswerIsADecision(t *testing.T) {
	const ok = "\x00\x00\x00\x00\x00"
	if a, err := check(response(200, ok, "grpc-status", "0")); err != nil || a.Kind != OK {
		t.Fatalf("%+v %v", a, err)
	}
	only := response(200, ok)
	only.Header.Add("grpc-status", "0")
	if a, err := check(only); err != nil || a.Kind != OK {
		t.Errorf("grpc-status among the headers: %+v %v", a, err)
	}
	for name, u := range map[string]filters.Upstreams{
		"no clusters":              nil,
		"another HTTP status":      response(403, ok, "grpc-status", "0"),
		"a gRPC status":            response(200, ok, "grpc-status", "14", "grpc-message", "down"),
		"no gRPC status":           response(200, ok),
		"no message":               response(200, "", "grpc-status", "0"),
		"half a frame":             response(200, "\x00\x00\x00", "grpc-status", "0"),
		"a longer frame":           response(200, "\x00\x00\x00\x00\x01", "grpc-status", "0"),
		"two messages":             response(200, ok+ok, "grpc-status", "0"),
		"compressed":               response(200, "\x01\x00\x00\x00\x00", "grpc-status", "0"),
		"bytes that are no answer": response(200, "\x00\x00\x00\x00\x01\x0a", "grpc-status", "0"),
	} {
		if a, err := check(u); err == nil {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

// field returns the bytes of all fields of that number.
func field(b []byte, path ...protowire.Number) (out [][]byte) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return append(out, []byte("malformed"))
		}
		b = b[n:]
		m := protowire.ConsumeFieldValue(num, typ, b)
		if m < 0 {
			return append(out, []byte("malformed"))
		}
		if num == path[0] {
			v := b[:m]
			if typ == protowire.BytesType {
				v, _ = protowire.ConsumeBytes(b)
			}
			if len(path) > 1 {
				out = append(out, field(v, path[1:]...)...)
			} else {
				out = append(out, v)
			}
		}
		b = b[m:]
	}
	return out
}

func stream() *filters.Stream {
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{RequestedServerName: "sni.test", TLS: &streaminfo.TLS{Peer: streaminfo.Certificate{URISANs: []string{"spiffe://a/b"}, PEM: "-----BEGIN CERTIFICATE-----\nA+/=\n"}}}
	s.Info.Conn.Metadata.Set("of.conn", "k", "v")
	s.Info.Conn.Metadata.Set("both", "k", "of the connection")
	s.Info.Metadata.Set("both", "k", "of the request")
	s.Request.Add(message.Method, "POST")
	s.Request.Add(message.Authority, "app")
	s.Request.Add(message.Path, "/a?b")
	s.Request.Add("x-long", strings.Repeat("x", 300))
	s.Request.Add(partialBody, "false")
	return s
}

func TestAQuestionTellsWhatIsConfigured(t *testing.T) {
	s := stream()
	all := Telling{
		PeerCertificate: true, TLSSession: true, Namespaces: []string{"of.conn", "both", "none"},
		Labels: [][2]string{{"app", "a"}}, Extensions: [][2]string{{"e", "f"}},
	}
	for _, tc := range []struct {
		name string
		tell Telling
		body *Body
		path []protowire.Number
		want []string
	}{
		{"principal", Telling{}, nil, []protowire.Number{1, 1, 4}, []string{"spiffe://a/b"}},
		{"no certificate", Telling{}, nil, []protowire.Number{1, 1, 5}, nil},
		{"certificate", all, nil, []protowire.Number{1, 1, 5}, []string{"-----BEGIN%20CERTIFICATE-----%0AA%2B%2F%3D%0A"}},
		{"labels", all, nil, []protowire.Number{1, 2, 3, 2}, []string{"a"}},
		{"no session", Telling{}, nil, []protowire.Number{1, 12, 1}, nil},
		{"session", all, nil, []protowire.Number{1, 12, 1}, []string{"sni.test"}},
		{"extensions", all, nil, []protowire.Number{1, 10, 2}, []string{"f"}},
		{"metadata", all, nil, []protowire.Number{1, 11, 1, 2, 1, 2, 3}, []string{"v", "of the request"}},
		{"headers", Telling{}, nil, []protowire.Number{1, 4, 2, 3, 1}, []string{":method", ":authority", ":path", "x-long"}},
		{"long values", Telling{}, nil, []protowire.Number{1, 4, 2, 3, 2}, []string{"POST", "app", "/a?b", strings.Repeat("x", 300)}},
		{"no headers", Telling{AllowedSet: true}, nil, []protowire.Number{1, 4, 2, 3, 1}, nil},
		{"body", Telling{}, &Body{Bytes: []byte("a\xff")}, []protowire.Number{1, 4, 2, 11}, []string{"a!"}},
		{"body as bytes", Telling{BodyAsBytes: true}, &Body{Bytes: []byte("a\xff")}, []protowire.Number{1, 4, 2, 12}, []string{"a\xff"}},
		{"a client does not say what is partial", Telling{RawHeaders: true}, &Body{Partial: true}, []protowire.Number{1, 4, 2, 13, 1, 3}, []string{"POST", "app", "/a?b", strings.Repeat("x", 300), "true"}},
	} {
		b := tc.tell.AppendRequest(nil, s, tc.body, 3)
		var got []string
		for _, f := range field(b[FrameSize:], tc.path...) {
			got = append(got, string(f))
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	b := all.AppendConnection(nil, &s.Info)
	if got := field(b[FrameSize:], 1, 12, 1); len(got) != 1 || string(got[0]) != "sni.test" {
		t.Errorf("of a connection: %q", got)
	}
}

func TestAQuestionIsWrittenWithoutGarbage(t *testing.T) {
	s := stream()
	tell := Telling{TLSSession: true, Extensions: [][2]string{{"e", "f"}}}
	b := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { tell.AppendRequest(b, s, nil, 0) }); n > 4 {
		t.Errorf("%v allocations", n)
	}
}

func header(kv ...string) *message.Header {
	h := &message.Header{}
	for i := 0; i < len(kv); i += 2 {
		h.Add(kv[i], kv[i+1])
	}
	return h
}

func TestAnswersThatCannotBeSentAreNotValid(t *testing.T) {
	for _, bad := range []Header{
		{Name: "a", Value: "b\r\nc: d"},
		{Name: "a", Value: "\x00"},
		{Name: "a b", Value: "c"},
		{Name: "", Value: "c"},
		{Name: "a:b", Value: "c"},
		{Name: ":path", Value: "a"},
		{Name: ":path", Value: "/a b"},
		{Name: ":authority", Value: "a/b"},
		{Name: ":method", Value: "A B"},
		{Name: ":scheme", Value: "ftp"},
		{Name: ":status", Value: "200"},
		{Name: ":other", Value: "x"},
	} {
		for _, a := range []Answer{{Headers: []Header{bad}}, {ResponseHeaders: []Header{bad}}, {Kind: Denied, Headers: []Header{bad}}} {
			if a.Valid(false) {
				t.Errorf("%q: %q is valid", bad.Name, bad.Value)
			}
		}
	}
	a := Answer{SetQuery: [][2]string{{"a", "b c"}}}
	if !a.Valid(false) || a.Valid(true) {
		t.Error("query parameters that need escaping are invalid for the strict only")
	}
}

func TestAQueryStaysOneQuery(t *testing.T) {
	for _, tc := range []struct{ path, k, v, want string }{
		{"/a?b=1&x=2", "x", "3", "/a?b=1&x=3"},
		{"/a", "x", "3", "/a?x=3"},
		{"/a", "x", "a b&c#d HTTP/1.1\r\n", "/a?x=a%20b%26c%23d%20HTTP/1.1%0D%0A"},
	} {
		h := header(message.Path, tc.path)
		a := Answer{SetQuery: [][2]string{{tc.k, tc.v}}}
		if !a.EditQuery(h) || h.Get(message.Path) != tc.want {
			t.Errorf("%s: %s, want %s", tc.path, h.Get(message.Path), tc.want)
		}
	}
}

func TestFramingIsNotTheServices(t *testing.T) {
	a := Answer{
		Headers:         []Header{{Name: "content-length", Value: "1"}, {Name: "transfer-encoding", Value: "chunked", Add: true}, {Name: "upgrade", Value: "x", Append: true}, {Name: "x", Value: "1"}},
		Remove:          []string{"host", ":path", "content-length", "y"},
		ResponseHeaders: []Header{{Name: "content-length", Value: "1"}, {Name: ":status", Value: "500"}, {Name: "x", Value: "1"}},
	}
	h := header(message.Path, "/", "content-length", "3", "upgrade", "a", "y", "1")
	a.EditRequest(h, nil)
	if h.Get("content-length") != "3" || h.Get("upgrade") != "a" || h.Has("transfer-encoding") || h.Get(message.Path) != "/" || h.Has("y") || h.Get("x") != "1" {
		t.Errorf("request %+v", h)
	}
	h = header(message.Status, "200", "content-length", "3")
	a.EditResponse(h)
	if h.Get("content-length") != "3" || h.Get(message.Status) != "200" || h.Get("x") != "1" {
		t.Errorf("response %+v", h)
	}
	h = header(message.Status, "403", "content-length", "3")
	a.EditRefusal(h)
	if h.Get("content-length") != "3" || h.Has("transfer-encoding") || h.Get("x") != "1" {
		t.Errorf("refusal %+v", h)
	}
}

func TestNoSpellingOfAHeaderOfTheServiceIsTheClients(t *testing.T) {
	h := header(message.Path, "/", "x-user-id", "1", "x-user-id", "2", "x_user_id", "3", "x-user_id", "4", "x-secret-key", "5", "x_secret_key", "6", "x-role", "7", "x_role", "8", "x-user-ids", "9")
	a := Answer{Headers: []Header{{Name: "x-user-id", Value: "7"}, {Name: "x-role", Value: "admin", Add: true}}, Remove: []string{"x-secret-key"}}
	a.EditRequest(h, nil)
	want := header(message.Path, "/", "x-user-id", "7", "x-role", "7", "x-user-ids", "9", "x-role", "admin")
	if h.Len() != want.Len() || h.Count("x-user-id") != 1 || h.Get("x-user-id") != "7" || h.Has("x_user_id") || h.Has("x-user_id") || h.Has("x-secret-key") || h.Has("x_secret_key") || h.Has("x_role") || !h.Has("x-user-ids") {
		t.Errorf("%+v", h)
	}
}

// Whatever a header holds, the service is told all of it, and text.
func TestAQuestionLeavesNothingOut(t *testing.T) {
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	for _, kv := range [][2]string{{message.Method, "GET"}, {message.Authority, "a\xffb"}, {message.Path, "/\xfe"}, {"x-role", "user"}, {"x-role", "admin"}, {"x-role", ""}, {"x-list", "a,b"}, {"x-bytes", "k\xff\xc0\xaf"}, {"x-empty", ""}} {
		s.Request.Add(kv[0], kv[1])
	}
	pairs := func(tell Telling, path ...protowire.Number) (out []string) {
		for _, f := range field(tell.AppendRequest(nil, s, nil, 0)[FrameSize:], path...) {
			out = append(out, string(f))
		}
		return out
	}
	if got, want := pairs(Telling{}, 1, 4, 2, 3, 2), []string{"GET", "a!b", "/!", "user,admin,", "a,b", "k!!!", ""}; !slices.Equal(got, want) {
		t.Errorf("joined: %q, want %q", got, want)
	}
	if got, want := pairs(Telling{RawHeaders: true}, 1, 4, 2, 13, 1, 3), []string{"GET", "a\xffb", "/\xfe", "user", "admin", "a,b", "k\xff\xc0\xaf"}; !slices.Equal(got, want) {
		t.Errorf("raw: %q, want %q", got, want)
	}
}

// FuzzAnswer: no answer of an authorizer that is taken for valid puts line
// breaks or NUL into a field, nor a space, a line break or a fragment into the
// path.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0x0a, 2, 0x08, 7})
	f.Add([]byte("\x1a\x0a\x12\x08\x0a\x06\x0a\x01a\x12\x01b"))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAnswer(b)
		if err != nil {
			return
		}
		if !a.Valid(false) {
			return
		}
		h := header(message.Method, "GET", message.Path, "/?a", message.Authority, "a", "x", "y")
		a.EditRequest(h, nil)
		a.EditQuery(h)
		for i := range h.Len() {
			if v := h.At(i).Value; strings.ContainsAny(v, "\r\n\x00") {
				t.Errorf("%q: %q", h.At(i).Name, v)
			}
		}
		if strings.ContainsAny(h.Get(message.Path), " \r\n#") {
			t.Errorf("path %q", h.Get(message.Path))
		}
		a.EditResponse(header(message.Status, "200"))
		a.EditRefusal(header(message.Status, "403"))
	})
}
