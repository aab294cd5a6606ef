package grpcweb

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/explaintest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

const hello = "\x00\x00\x00\x00\x05hello"

// chunks is a body that comes in pieces, with trailers.
type chunks struct {
	parts    []string
	trailers *message.Header
	closed   bool
}

func (c *chunks) Next() ([]byte, bool, error) {
	if len(c.parts) == 0 {
		return nil, true, nil
	}
	p := c.parts[0]
	c.parts = c.parts[1:]
	return []byte(p), len(c.parts) == 0, nil
}
func (c *chunks) Ready() (int, bool)        { return 0, false }
func (c *chunks) Trailers() *message.Header { return c.trailers }
func (c *chunks) Close()                    { c.closed = true }

func status(v string) *message.Header {
	h := &message.Header{}
	h.Add("grpc-status", v)
	h.Add("grpc-message", "m")
	return h
}

// upstream reads the request, keeps what it got, and answers.
type upstream struct {
	t      *testing.T
	body   message.Body
	ctype  string
	got    string
	header message.Header
	err    error
}

func (u *upstream) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	u.header.CopyFrom(&s.Request)
	for last := false; !last; {
		var p []byte
		if p, last, u.err = s.Body.Next(); u.err != nil {
			return nil, u.err
		}
		u.got += string(p)
	}
	r := s.NewResponse()
	r.Header.Add(message.Status, "200")
	r.Header.Add(contentType, u.ctype)
	r.Header.Add("content-length", "99")
	r.Body = u.body
	return r, nil
}

func drain(t *testing.T, b message.Body) string {
	t.Helper()
	var out string
	for last := false; !last; {
		p, l, err := b.Next()
		if err != nil {
			t.Fatal(err)
		}
		out, last = out+string(p), l
	}
	if p, last, err := b.Next(); len(p) > 0 || !last || err != nil {
		t.Errorf("after the end: %q, %v, %v", p, last, err)
	}
	if b.Trailers() != nil {
		t.Error("trailers follow the body")
	}
	return out
}

func call(t *testing.T, ctype, accept string, request message.Body, u *upstream) (*filters.Stream, *filters.Response) {
	t.Helper()
	u.t = t
	f, err := Factory{}.Compile(nil, &Config{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	for _, h := range [][2]string{{message.Method, "POST"}, {contentType, ctype}, {"accept", accept}, {"content-length", "7"}} {
		if h[1] != "" {
			s.Request.Add(h[0], h[1])
		}
	}
	s.Body = request
	s.SetChain([]filters.HTTPFilter{f, u})
	r, err := filters.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	return s, r
}

// frame is the last one, with the trailers of status.
func frame(v string) string {
	text := "grpc-status:" + v + "\r\ngrpc-message:m\r\n"
	return "\x80\x00\x00\x00" + string([]byte{byte(len(text))}) + text
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// undo decodes text that may have padding anywhere.
func undo(t *testing.T, s string) string {
	t.Helper()
	return drain(t, &decoder{inner: &chunks{parts: strings.SplitAfter(s, "=")}})
}

func TestABrowserCallsAGRPCService(t *testing.T) {
	for name, c := range map[string]struct {
		ctype, accept string
		request       []string
		text          bool
	}{
		"binary":                             {"application/grpc-web", "", []string{hello}, false},
		"binary with its encoding":           {"application/grpc-web+proto", "*/*", []string{hello[:3], hello[3:]}, false},
		"text in one piece":                  {"application/grpc-web-text", "application/grpc-web-text", []string{b64(hello)}, true},
		"text in odd pieces":                 {"application/grpc-web-text+proto", "application/grpc-web-text+proto", strings.Split(b64(hello), ""), true},
		"text of pieces with their padding":  {"application/grpc-web-text", "application/grpc-web-text", []string{b64(hello[:1]) + b64(hello[1:3]), b64(hello[3:])}, true},
		"text there and binary back":         {"application/grpc-web-text", "", []string{b64(hello)}, false},
		"binary there and text back":         {"application/grpc-web", "application/grpc-web-text", []string{hello}, true},
		"text that ends with an empty chunk": {"application/grpc-web-text", "", []string{b64(hello), ""}, false},
	} {
		t.Run(name, func(t *testing.T) {
			u := &upstream{ctype: "application/grpc", body: &chunks{parts: []string{hello[:2], hello[2:], ""}, trailers: status("0")}}
			s, r := call(t, c.ctype, c.accept, &chunks{parts: c.request}, u)
			if u.got != hello || u.header.Get(contentType) != "application/grpc" || u.header.Get("te") != "trailers" || u.header.Has("content-length") || !s.Info.IsGRPC {
				t.Errorf("upstream got %q with %v", u.got, &u.header)
			}
			body := drain(t, r.Body)
			want := "application/grpc-web+proto"
			if c.text {
				want, body = "application/grpc-web-text+proto", undo(t, body)
			}
			if body != hello+frame("0") || r.Header.Get(contentType) != want || r.Header.Has("content-length") {
				t.Errorf("the client got %q with %v", body, &r.Header)
			}
			s.Info.End = time.Now()
			if tr := r.Body.Trailers(); tr == nil || tr.Get("grpc-status") != "0" {
				t.Errorf("the record has trailers %v", tr)
			}
		})
	}
}

func TestResponsesWithoutTrailersOrFramesStayWhatTheyAre(t *testing.T) {
	for name, c := range map[string]struct{ ctype, want string }{
		"headers only": {"application/grpc", "application/grpc-web+proto"},
		"a page":       {"text/html", "text/html"},
	} {
		body := message.NoBody
		if c.ctype == "text/html" {
			body = message.Bytes([]byte("page"))
		}
		_, r := call(t, "application/grpc-web", "", message.Bytes([]byte(hello)), &upstream{ctype: c.ctype, body: body})
		if r.Header.Get(contentType) != c.want || r.Body != body {
			t.Errorf("%s: %v", name, &r.Header)
		}
	}
}

func TestOtherRequestsPassUntouched(t *testing.T) {
	for _, ctype := range []string{"application/grpc", "application/grpc-web-x", "text/plain", ""} {
		u := &upstream{ctype: "application/grpc", body: message.Bytes([]byte(hello))}
		_, r := call(t, ctype, "application/grpc-web-text", message.Bytes([]byte("x")), u)
		if u.header.Get(contentType) != ctype || u.header.Get("content-length") != "7" || r.Header.Get(contentType) != "application/grpc" {
			t.Errorf("%q: %v", ctype, &u.header)
		}
	}
}

func TestWhatIsNotBase64IsAnswered400(t *testing.T) {
	for _, parts := range [][]string{{"!!!!"}, {"AAA"}, {"AAAA", "AA", ""}, {"A=AA"}, {"AAAA====", ""}} {
		in := &chunks{parts: parts}
		s, r := call(t, "application/grpc-web-text", "", in, &upstream{ctype: "application/grpc", body: message.NoBody})
		if r.Status() != 400 || s.Info.Details != "grpc_base_64_decode_failed" || r.Header.Get(contentType) != "text/plain" {
			t.Errorf("%q: %v", parts, &r.Header)
		}
	}
}

func TestExplainsThatTheRequestBecomesGRPC(t *testing.T) {
	for _, ctype := range []string{"application/grpc-web", "text/plain"} {
		s := &filters.Stream{}
		s.Reset()
		s.Request.Add(contentType, ctype)
		x := explaintest.Explainer(filter{}).Explain(s)
		if web := ctype == "application/grpc-web"; web != s.Info.IsGRPC || web != (len(x.Text) > 0) {
			t.Errorf("%s: %v", ctype, x)
		}
	}
}

// FuzzDecode: base64 text is decoded to the same however it is cut.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(b64(hello)), uint8(3))
	f.Add([]byte("AA==AAA="), uint8(1))
	f.Add([]byte("0\n0\n\n0\n0"), uint8(3))
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		var parts []string
		for rest := string(b); rest != ""; {
			n := min(int(size)+1, len(rest))
			parts, rest = append(parts, rest[:n]), rest[n:]
		}
		read := func(parts []string) (string, error) {
			d := &decoder{inner: &chunks{parts: parts}}
			var out string
			for {
				p, last, err := d.Next()
				if out += string(p); last || err != nil {
					return out, err
				}
			}
		}
		pieces, err1 := read(parts)
		whole, err2 := read([]string{string(b)})
		if (err1 == nil) != (err2 == nil) || err1 == nil && pieces != whole {
			t.Fatalf("%q: in pieces %q, %v; as a whole %q, %v", b, pieces, err1, whole, err2)
		}
		if _, err := (Factory{}).Decode(filters.Any{Value: b}, nil); err == nil {
			return
		}
	})
}
