package hcm

import (
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// fakeStream is a request without a codec; it notes the statuses written.
type fakeStream struct {
	version message.Version
	fields  []string
	wrote   []string
	onReset func(error)
}

func (f *fakeStream) Version() message.Version { return f.version }

func (f *fakeStream) ReadHeaders(h *message.Header) {
	for _, kv := range append([]string{":method=POST", ":scheme=http", ":authority=a", ":path=/"}, f.fields...) {
		n, v, _ := strings.Cut(kv, "=")
		h.Add(n, v)
	}
}

func (f *fakeStream) note(h *message.Header) error {
	f.wrote = append(f.wrote, h.Get(message.Status))
	return nil
}

func (f *fakeStream) Body() message.Body                           { return message.NoBody }
func (f *fakeStream) WriteInformational(h *message.Header) error   { return f.note(h) }
func (f *fakeStream) WriteHeaders(h *message.Header, _ bool) error { return f.note(h) }
func (f *fakeStream) WriteData([]byte, bool) error                 { return nil }
func (f *fakeStream) WriteTrailers(*message.Header) error          { return nil }
func (f *fakeStream) Flush() error                                 { return nil }
func (f *fakeStream) Tunnel() netio.Conn                           { return nil }
func (f *fakeStream) Reset(transport.ResetReason)                  {}
func (f *fakeStream) OnReset(g func(error))                        { f.onReset = g }
func (f *fakeStream) BytesIn() uint64                              { return 0 }
func (f *fakeStream) BytesOut() uint64                             { return 0 }
func (f *fakeStream) CloseAfter()                                  {}

// hints is a terminal filter that passes an origin's 103 on, as the router does.
type hints struct{ expect *string }

func (f hints) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	*f.expect = s.Request.Get("expect")
	if s.Informational != nil {
		var h message.Header
		h.Add(message.Status, "103")
		if err := s.Informational(&h); err != nil {
			return nil, err
		}
	}
	return s.LocalReply(204, "", "hints", 0), nil
}

func TestInterimResponsesPassOnlyWithProxy100Continue(t *testing.T) {
	for _, c := range []struct {
		name         string
		version      message.Version
		proxy        bool
		field        string
		wrote, asked string
	}{
		{"an origin's is dropped", message.HTTP11, false, "", "204", ""},
		{"an origin's is passed on if asked for", message.HTTP11, true, "", "103 204", ""},
		{"HTTP/1.0 knows none", message.HTTP10, true, "", "204", ""},
		{"HTTP/2 gets its 100 at once", message.HTTP2, false, "expect=100-Continue", "100 204", ""},
		{"an origin is asked if that is configured", message.HTTP2, true, "expect=100-continue", "103 204", "100-continue"},
		{"another expectation is the origin's", message.HTTP2, false, "expect=magic", "204", "magic"},
		{"the codec of HTTP/1 has answered", message.HTTP11, false, "expect=100-continue", "204", "100-continue"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked string
			spec := &xdsresource.HTTPConnectionManager{Server: transport.ServerConfig{Proxy100Continue: c.proxy}}
			m, err := New(Config{Spec: spec, Routes: &Routes{}, DefaultChain: []filters.HTTPFilter{hints{&asked}}})
			if err != nil {
				t.Fatal(err)
			}
			f := &fakeStream{version: c.version}
			if c.field != "" {
				f.fields = []string{c.field}
			}
			cn := &conn{m: m, info: &streaminfo.Conn{}}
			cn.ServeStream(f)
			if got := strings.Join(f.wrote, " "); got != c.wrote || asked != c.asked {
				t.Errorf("wrote %q, expect %q", got, asked)
			}
		})
	}
}
