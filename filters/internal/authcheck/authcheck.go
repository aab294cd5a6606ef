// Package authcheck speaks envoy.service.auth.v3.Authorization, the protocol of
// external authorization over gRPC: it writes the question about a request or
// connection, calls the service through its cluster, and reads the answer.
package authcheck

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// Service is a gRPC authorization service. It is immutable.
type Service struct {
	// Cluster is called; Authority is what :authority says.
	Cluster, Authority string
	// Timeout bounds one check; 0 is none.
	Timeout time.Duration
	// Retry is nil for none.
	Retry *filters.Retry
	// Metadata are headers of every call.
	Metadata []Metadata
}

// Metadata is one header of a call, lower case.
type Metadata struct {
	Name  string
	Value *format.String
}

// maxAnswer bounds what a service may answer, bytes.
const maxAnswer = 1 << 20

const checkPath = "/envoy.service.auth.v3.Authorization/Check"

// Errors of Check.
var (
	errNoService = errors.New("no clusters are at hand")
	errMessage   = errors.New("the answer is not one gRPC message")
)

// FrameSize is how many bytes of the gRPC frame come before the message: a
// question begins with as many bytes, which Check fills.
const FrameSize = 5

// Check sends question, made by AppendRequest or AppendConnection, and returns
// the answer. x renders the metadata. The error says that there is no decision.
func (v *Service) Check(ctx context.Context, u filters.Upstreams, question []byte, x *format.Context) (*Answer, error) {
	b, err := v.Call(ctx, u, "ext_authz", checkPath, question, x)
	if err != nil {
		return nil, err
	}
	return parseAnswer(b)
}

// Call sends question, a message with FrameSize bytes before it, to the method
// at path and returns the message that is the answer. who begins errors.
func (v *Service) Call(ctx context.Context, u filters.Upstreams, who, path string, question []byte, x *format.Context) ([]byte, error) {
	return v.Send(ctx, u, who, v.Prepare(path, question, x))
}

// Prepare makes a call. It keeps question, and nothing of x.
func (v *Service) Prepare(path string, question []byte, x *format.Context) *filters.Callout {
	question[0] = 0 // not compressed
	binary.BigEndian.PutUint32(question[1:], uint32(len(question)-FrameSize))
	c := &filters.Callout{Body: question, Timeout: v.Timeout, Retry: v.Retry, HTTP2: true}
	h := &c.Header
	h.Add(message.Method, "POST")
	h.Add(message.Scheme, "http")
	h.Add(message.Authority, v.Authority)
	h.Add(message.Path, path)
	h.Add("te", "trailers")
	h.Add("content-type", "application/grpc")
	if v.Timeout > 0 {
		h.Add("grpc-timeout", strconv.FormatInt(max(v.Timeout.Milliseconds(), 1), 10)+"m")
	}
	for i := range v.Metadata {
		h.Add(v.Metadata[i].Name, v.Metadata[i].Value.Render(x))
	}
	return c
}

// Send makes a prepared call and returns the answer's message.
func (v *Service) Send(ctx context.Context, u filters.Upstreams, who string, c *filters.Callout) ([]byte, error) {
	if u == nil {
		return nil, fmt.Errorf("%s: %w", who, errNoService)
	}
	r, err := u.RoundTrip(ctx, v.Cluster, c, maxAnswer)
	if err != nil {
		return nil, err
	}
	if r.Status != 200 {
		return nil, fmt.Errorf("%s: the service answered HTTP status %d", who, r.Status)
	}
	status, ok := r.Trailers.Lookup("grpc-status")
	if !ok {
		status = r.Header.Get("grpc-status")
	}
	if status != "0" {
		text, ok := r.Trailers.Lookup("grpc-message")
		if !ok {
			text = r.Header.Get("grpc-message")
		}
		return nil, fmt.Errorf("%s: the service answered gRPC status %q: %.200q", who, status, text)
	}
	b := r.Body
	if len(b) < FrameSize || b[0] != 0 || uint64(binary.BigEndian.Uint32(b[1:])) != uint64(len(b)-FrameSize) {
		return nil, fmt.Errorf("%s: %w", who, errMessage)
	}
	return b[FrameSize:], nil
}

// Kind says what an answer is.
type Kind uint8

// Kinds of answers. Failed is a service's own word that it can't decide.
const (
	OK Kind = iota
	Denied
	Failed
)

// Header is a header in an answer. Name is lower case.
type Header struct {
	Name, Value string
	// Append is the field of that name; HasAppend that it was set.
	Append, HasAppend bool
	// Add makes it a field of its own beside those that are there.
	Add    bool
	Action Action
}

// Action is append_action, in the protocol's numbers.
type Action int32

// Actions.
const (
	AppendOrAdd Action = iota
	AddIfAbsent
	OverwriteOrAdd
	OverwriteIfExists
)

// Answer is what a service decided.
type Answer struct {
	Kind Kind
	// Status is the HTTP status of a refusal, 0 if the service named none.
	Status int
	Body   string
	// Headers are for upstream if Kind is OK, else for the client.
	Headers []Header
	// Remove are names of request headers, lower case.
	Remove []string
	// ResponseHeaders are for the client of an allowed request.
	ResponseHeaders []Header
	// SetQuery and RemoveQuery edit the query, names and values as they are to
	// be written.
	SetQuery    [][2]string
	RemoveQuery []string
	// Metadata is dynamic metadata, nil if there is none.
	Metadata map[string]any
}
