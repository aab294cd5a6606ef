package hcm

import (
	"slices"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// trailed is a body of trailers only.
type trailed struct{ h message.Header }

func (b *trailed) Next() ([]byte, bool, error) { return nil, true, nil }
func (b *trailed) Ready() (int, bool)          { return 0, true }
func (b *trailed) Trailers() *message.Header   { return &b.h }
func (b *trailed) Close()                      {}

type trailedStream struct {
	fakeStream
	body trailed
}

func (s *trailedStream) Body() message.Body { return &s.body }

// taking is a terminal filter that reads the body and keeps its trailers' names.
type taking struct{ names *[]string }

func (f taking) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	*f.names = nil
	if _, _, err := s.Body.Next(); err != nil {
		return nil, err
	}
	if t := s.Body.Trailers(); t != nil {
		for i := range t.Len() {
			*f.names = append(*f.names, t.At(i).Name)
		}
		if t.Len() == 0 {
			*f.names = append(*f.names, "(empty)")
		}
	}
	return s.LocalReply(204, "", "taken", 0), nil
}

// An origin that takes trailers for headers would believe them.
func TestTrailersOfARequestHoldNothingThatAProxyWrites(t *testing.T) {
	for _, v := range []message.Version{message.HTTP11, message.HTTP2} {
		for _, c := range []struct{ in, want []string }{
			{[]string{"x-forwarded-client-cert", "x-checksum", "x_forwarded_client_cert", "x-forwarded_client-cert", "grpc-status", "x_envoy_internal", "x-envoy-peer-metadata", "x-request-id", "traceparent", "forwarded", "authorization"}, []string{"x-checksum", "grpc-status"}},
			{[]string{"x-forwarded-for"}, nil},
			{[]string{"x-checksum"}, []string{"x-checksum"}},
			{nil, nil},
		} {
			var got []string
			m, err := New(Config{Spec: &xdsresource.HTTPConnectionManager{ForwardClientCert: xdsresource.XFCCAlwaysForwardOnly}, Routes: &Routes{}, DefaultChain: []filters.HTTPFilter{taking{&got}}})
			if err != nil {
				t.Fatal(err)
			}
			s := &trailedStream{fakeStream: fakeStream{version: v}}
			for _, n := range c.in {
				s.body.h.Add(n, "forged")
			}
			cn := &conn{m: m, info: &streaminfo.Conn{}}
			cn.ServeStream(s)
			if !slices.Equal(got, c.want) || !slices.Equal(s.wrote, []string{"204"}) {
				t.Errorf("%v %v: got %v, want %v; answered %v", v, c.in, got, c.want, s.wrote)
			}
		}
	}
}
