package builtin

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// stoppable is a request body that can be interrupted.
type stoppable struct {
	message.Body
	cause error
}

func (b *stoppable) Next() ([]byte, bool, error) { return []byte("AAAA"), true, nil }
func (b *stoppable) Ready() (int, bool)          { return 4, true }
func (b *stoppable) Interrupt(cause error)       { b.cause = cause }

// early answers before the request has ended, and interrupts its body as the
// router does.
type early struct{ cause error }

func (e *early) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	if i, ok := s.Body.(filters.Interrupter); ok {
		i.Interrupt(e.cause)
	}
	r := s.NewResponse()
	r.Header.Add(message.Status, "200")
	return r, nil
}

// A filter that puts a body of its own in the place of the request's passes on
// interruptions: else an early end of the request ends the whole stream.
func TestFiltersThatWrapARequestBodyLetItBeInterrupted(t *testing.T) {
	for typ, config := range map[string]string{
		"type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb":        `{}`,
		"type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig": `{"statsForAllMethods":true}`,
		"type.googleapis.com/fairlead.dlp.v1.Config":                                   `{"rules":[{"name":"r","infoTypes":["CREDIT_CARD_NUMBER"]}]}`,
		"type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm":               `{"config":{"vmConfig":{"code":{"local":{"filename":"../internal/proxywasm/testdata/probe.wasm"}}}}}`,
	} {
		f := Registry().HTTP(typ)
		c, err := f.Decode(filters.Any{TypeURL: typ, Value: []byte(config), JSON: true}, &filters.Decoding{})
		if err != nil {
			t.Errorf("%s: %v", typ, err)
			continue
		}
		h, err := f.Compile(&filters.Env{Name: "f", Stats: (&stats.Registry{}).Scope(""), Logger: slog.New(slog.DiscardHandler)}, c, nil)
		if err != nil {
			t.Errorf("%s: %v", typ, err)
			continue
		}
		s := &filters.Stream{}
		s.Reset()
		s.Info.Conn = &streaminfo.Conn{}
		s.Info.IsGRPC = true
		s.Request.Add(message.Method, "POST")
		s.Request.Add(message.Path, "/a.B/C")
		s.Request.Add("content-type", "application/grpc-web-text")
		in, e := &stoppable{Body: message.NoBody}, &early{cause: errors.New("over")}
		s.Body = in
		s.SetChain([]filters.HTTPFilter{h, e})
		if _, err := filters.Start(s); err != nil {
			t.Errorf("%s: %v", typ, err)
		}
		if !errors.Is(in.cause, e.cause) {
			t.Errorf("%s: the body heard %v", typ, in.cause)
		}
		if s.Body == message.Body(in) {
			t.Errorf("%s: the body isn't wrapped, so that nothing is tested", typ)
		}
	}
}
