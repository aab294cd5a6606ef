// Package filters is the contract between the data plane and its filters. A
// filter is a function from request to response that may block: it sees the
// stream, its compiled configuration and what Env offers, and no proxy,
// routing or xDS package.
package filters

import (
	"errors"
	"fmt"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Any is a typed_config as it arrived.
type Any struct {
	// TypeURL is the inner type's URL, "type.googleapis.com/…"; wrappers
	// (TypedStruct, Wasm with file:///go-native/…) are already removed.
	TypeURL string
	// Value is the proto wire form, or, if JSON is set, a JSON object.
	Value []byte
	JSON  bool
}

// Config is a decoded, validated filter configuration: plain data, immutable,
// no proto message.
type Config any

// Decoding collects what a decoder saw but doesn't execute. A nil *Decoding
// discards.
type Decoding struct{ ignored []Ignored }

// Ignored is one field that is accepted and not executed.
type Ignored struct {
	// Path is the field's proto path inside the message, "rules.policies[x].condition".
	Path string
	// Reason says what that means to an operator.
	Reason string
}

// Ignore records a field that is reported as ignored. Security-relevant fields
// must be rejected by an error instead.
func (d *Decoding) Ignore(path, reason string) {
	if d != nil {
		d.ignored = append(d.ignored, Ignored{path, reason})
	}
}

// Ignored returns what was recorded.
func (d *Decoding) Ignored() []Ignored {
	if d == nil {
		return nil
	}
	return d.ignored
}

// HTTPFactory turns configuration into HTTP filters. Decode and DecodeOverride
// are pure: the same bytes give an equal Config.
type HTTPFactory interface {
	// TypeURLs lists the type URLs of the filter's configuration and of its
	// per-route configuration.
	TypeURLs() []string
	// Decode validates an http_filters[].typed_config. The error names the
	// field by its proto path.
	Decode(a Any, d *Decoding) (Config, error)
	// DecodeOverride validates a typed_per_filter_config entry.
	DecodeOverride(a Any, d *Decoding) (Config, error)
	// Compile builds the filter for one route: override is nil, or the most
	// specific override. It may take metric handles and shared state from env.
	// A nil HTTPFilter without error means: nothing to do on this route.
	Compile(env *Env, base, override Config) (HTTPFilter, error)
}

// OverrideMerger is implemented by an HTTPFactory whose per-route configurations
// add up: virtual host, route and weighted cluster each contribute.
type OverrideMerger interface {
	// MergeOverrides returns what holds where specific stands below general. It
	// is pure and changes neither.
	MergeOverrides(general, specific Config) Config
}

// HTTPFilter is compiled: immutable, shared by all streams of its routes and
// called concurrently. If it also implements io.Closer, Close is called once
// after the last stream of the configuration that held it.
type HTTPFilter interface {
	// Do handles the request s, usually by calling next.Do(s) and returning
	// its response, changed or not. It returns a local reply
	// (s.LocalReply(…)) to answer by itself. A non-nil error aborts the
	// stream: HCM resets it, or answers 500 if nothing has been sent.
	//
	// A filter that changes the request does so before next.Do; s.Request is
	// then what upstream will see. To see or change the response body it
	// wraps Response.Body. It must not keep s or anything read from it.
	Do(s *Stream, next Next) (*Response, error)
}

// ErrClosed is what a filter returns to end a stream without an answer: HTTP/1
// closes its connection, HTTP/2 resets the stream.
var ErrClosed = errors.New("a filter closed the stream")

// RequestReviewer is implemented by HTTP filters that decide by a request's head
// and what is known of it and nothing else, so that they can be asked again about
// one that a former configuration admitted, and that became a tunnel.
type RequestReviewer interface {
	HTTPFilter
	// Review says why Do would refuse s, nil if it would not. Of s there are
	// Request, as it came to the terminal filter, Route, and of Info the Conn,
	// Protocol, FilterState and Metadata; it is called by any goroutine, changes
	// nothing of them, does not block, and counts refusals only.
	Review(s *Stream) *Denied
}

// StreamEnder is implemented by filters that must see every stream end, local
// replies of earlier filters included. r is nil if no response was sent. It
// runs after the last byte was handed to the downstream codec, in reverse
// order of the chain, and must not block.
type StreamEnder interface {
	OnStreamEnd(s *Stream, r *Response)
}

// Route is what filters may know of the selected route.
type Route interface {
	Name() string
	// ClusterName is the chosen cluster, "" for redirects and direct responses.
	ClusterName() string
	Metadata() *streaminfo.Metadata
	// Chain is the compiled HTTP filter chain for this route: position i
	// belongs to http_filters[i]; nil is disabled; the last one is terminal.
	Chain() []HTTPFilter
}

// Next runs the rest of the chain.
type Next struct{ i int }

// Do runs the remaining filters of s.
func (n Next) Do(s *Stream) (*Response, error) {
	for i := n.i; i < len(s.chain); i++ {
		if f := s.chain[i]; f != nil {
			return f.Do(s, Next{i + 1})
		}
	}
	return nil, fmt.Errorf("filters: chain of %d has no terminal filter", len(s.chain)) // rejected at compile time
}

// Start runs the whole chain of s.
func Start(s *Stream) (*Response, error) { return Next{}.Do(s) }

// Response is an upstream response or a local reply. It belongs to its stream
// and is valid until the stream ends.
type Response struct {
	// Header starts with ":status".
	Header message.Header
	// Body is never nil.
	Body message.Body
	// Local marks a response that this proxy made itself.
	Local bool
	// Tunnel, if not nil, takes over the downstream connection's bytes after
	// the head (2xx to CONNECT, 101) has been written. See Tunnel.
	Tunnel Tunnel
}

// Status returns the numeric :status, 0 if absent or malformed.
func (r *Response) Status() int {
	v := r.Header.Get(message.Status)
	if len(v) != 3 {
		return 0
	}
	n := 0
	for i := range 3 {
		if v[i] < '0' || v[i] > '9' {
			return 0
		}
		n = 10*n + int(v[i]-'0')
	}
	return n
}
