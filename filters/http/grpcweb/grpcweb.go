// Package grpcweb is Envoy's grpc_web HTTP filter: it turns the requests of
// browsers, which have no trailers and maybe no binary bodies, into gRPC and
// the responses back (gRPC's PROTOCOL-WEB.md).
package grpcweb

import (
	"fmt"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

const (
	contentType = "content-type"
	grpcType    = "application/grpc"
	binaryType  = "application/grpc-web"
	textType    = "application/grpc-web-text"
	proto       = "+proto"
)

// Factory makes grpc_web filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.HTTPFactory.
func (Factory) Compile(_ *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	if _, ok := base.(*Config); !ok || override != nil {
		return nil, fmt.Errorf("grpc_web: configuration is a %T, override a %T", base, override)
	}
	return filter{}, nil
}

type filter struct{}

// Do implements filters.HTTPFilter.
func (filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	web, encoded := kind(s.Request.Get(contentType))
	if !web {
		return next.Do(s)
	}
	textual, _ := s.Request.Lookup("accept")
	_, answersText := kind(textual)
	request(s)
	var in *decoder
	if encoded && s.Body != message.NoBody {
		in = &decoder{inner: s.Body}
		s.Body = filters.Interruptible(in, s.Body)
	}
	r, err := next.Do(s)
	if in != nil && in.err != nil && (err != nil || r == nil || r.Local) {
		// What reached upstream was cut off here: tell the client so.
		if r != nil {
			r.Body.Close()
		}
		s.Info.IsGRPC = false // as Envoy: a plain answer
		return s.LocalReply(400, "Bad gRPC-web request, invalid base64 data.", "grpc_base_64_decode_failed", 0), nil
	}
	if err != nil || r == nil {
		return r, err
	}
	response(s, r, answersText)
	return r, nil
}

// kind tells whether a content-type is gRPC-Web's, and whether in base64.
func kind(ct string) (web, encoded bool) {
	switch ct {
	case binaryType, binaryType + proto:
		return true, false
	case textType, textType + proto:
		return true, true
	}
	return false, false
}

// request makes the head one of gRPC.
func request(s *filters.Stream) {
	h := &s.Request
	h.Set(contentType, grpcType)
	h.Set("te", "trailers")
	h.Set("grpc-accept-encoding", "identity,deflate,gzip")
	h.Del("content-length")
	s.Info.IsGRPC = true
}

// response makes a response of gRPC one for a browser.
func response(s *filters.Stream, r *filters.Response, encoded bool) {
	if ct := r.Header.Get(contentType); ct != grpcType && !strings.HasPrefix(ct, grpcType+"+") && !strings.HasPrefix(ct, grpcType+";") {
		return // whatever it is, no frames are in it
	}
	ct := binaryType + proto
	if encoded {
		ct = textType + proto
	}
	r.Header.Set(contentType, ct)
	r.Header.Del("content-length")
	if !message.IsEmpty(r.Body) {
		r.Body = &framed{inner: r.Body, s: s, text: encoded}
	}
}

// Explain makes the head one of gRPC, and says so.
func (filter) Explain(s *filters.Stream) filters.Explanation {
	x := filters.Explanation{Verdict: filters.VerdictPass}
	if web, _ := kind(s.Request.Get(contentType)); web {
		request(s)
		x.Text = []string{"the request goes on as gRPC"}
	}
	return x
}
