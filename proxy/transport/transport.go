// Package transport holds what HTTP codecs and transport sockets have in
// common: the server side (ServerStream), the client side (ClientStream),
// resets, limits, and TLS contexts. The codecs are in the subpackages h1 and
// h2.
package transport

import (
	"errors"
	"fmt"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// ResetReason says how a stream ended before its message was complete. It is
// an error so that blocked calls can return it.
type ResetReason uint8

// Reset reasons, as Envoy's StreamResetReason; retry conditions and response
// flags are derived from them.
const (
	// RemoteReset: the peer sent RST_STREAM (not REFUSED_STREAM).
	RemoteReset ResetReason = iota + 1
	// RemoteRefused: RST_STREAM(REFUSED_STREAM), or a GOAWAY that excludes the
	// stream: the request was certainly not processed.
	RemoteRefused
	// LocalReset: this side gave up.
	LocalReset
	// ConnectionFailure: connecting (TCP, TLS, CONNECT) failed or timed out.
	ConnectionFailure
	// ConnectionTermination: the connection ended while the stream was active.
	ConnectionTermination
	// ProtocolError: the peer broke HTTP.
	ProtocolError
	// Overflow: a circuit breaker or the pool's limit refused the stream.
	Overflow
)

var resetNames = [...]string{"", "remote_reset", "remote_refused_stream_reset", "local_reset", "connection_failure", "connection_termination", "protocol_error", "overflow"}

// String returns Envoy's name as it appears in response code details.
func (r ResetReason) String() string { return resetNames[r] }

// ResetError is why a stream ended early.
type ResetError struct {
	Reason ResetReason
	// Detail is the transport failure reason or protocol error, for logs and
	// %UPSTREAM_TRANSPORT_FAILURE_REASON%.
	Detail string
}

// Error formats reason and detail.
func (e *ResetError) Error() string {
	if e.Detail == "" {
		return "stream reset: " + e.Reason.String()
	}
	return fmt.Sprintf("stream reset: %s: %s", e.Reason, e.Detail)
}

// ReasonOf returns the ResetReason in err's chain, 0 if there is none.
func ReasonOf(err error) ResetReason {
	if re, ok := errors.AsType[*ResetError](err); ok {
		return re.Reason
	}
	return 0
}

// ServerStream is one request received on a downstream connection. Methods
// that write belong to the goroutine that serves the stream.
type ServerStream interface {
	Version() message.Version
	// ReadHeaders fills h with the request head, validated: names lower case,
	// pseudo-headers first (":method", ":scheme", ":authority", ":path"; HTTP/1
	// requests get them from request line and Host, and ":scheme" is empty if
	// neither the request line nor ServerConfig.Scheme says it), no hop-by-hop
	// fields except "te: trailers" and, for upgrades, "connection"/"upgrade".
	// It is called once, first, and does not block.
	ReadHeaders(h *message.Header)
	// Body is the request body, message.NoBody if there is none.
	Body() message.Body
	// WriteInformational sends a 1xx head (not 101) at once.
	WriteInformational(h *message.Header) error
	// WriteHeaders starts the response. Unless end, the codec may hold the
	// head back until the first WriteData, Flush or return of the handler.
	WriteHeaders(h *message.Header, end bool) error
	// WriteData sends p, blocking for back-pressure. p may be reused.
	WriteData(p []byte, end bool) error
	// WriteTrailers ends the response with a trailer section.
	WriteTrailers(h *message.Header) error
	// Flush sends what is held back.
	Flush() error
	// Tunnel turns the stream into a byte stream after WriteHeaders of a 2xx to
	// CONNECT, or of 101. The handler's return does not end it.
	Tunnel() netio.Conn
	// Reset aborts the stream: RST_STREAM, or closing an HTTP/1 connection.
	Reset(reason ResetReason)
	// OnReset registers f to be called once if the client resets the stream or
	// the connection ends before the response is complete. f must not block;
	// it is called at once if that has happened already. OnReset(nil) takes f
	// back, and waits for one that is running: after it f is not called.
	OnReset(f func(cause error))
	// BytesIn and BytesOut are the bytes on the wire so far, framing included.
	BytesIn() uint64
	BytesOut() uint64
	// CloseAfter asks that the connection be closed in order after this
	// response ("connection: close", GOAWAY).
	CloseAfter()
}

// LastWriter is implemented by server streams that can send the last bytes of a
// body together with the trailers.
type LastWriter interface {
	// WriteLast is WriteData of p, and WriteTrailers of h.
	WriteLast(p []byte, h *message.Header) error
}

// EndNoter is implemented by server streams that use the time at which their
// handler closed its books, so as not to read the clock again.
type EndNoter interface {
	// EndedAt is called by the handler last, if at all.
	EndedAt(t time.Time)
}

// Handler serves streams.
type Handler interface {
	// ServeStream runs on a goroutine of its own, one for each request in
	// flight, and owns s until it returns. When it returns without having
	// ended the response, the codec resets the stream.
	ServeStream(s ServerStream)
	// ProtocolError is called when a connection sent something that is no
	// request and the codec answers or closes by itself; details is Envoy's
	// response code detail, for example "http1.codec_error" or
	// "http2.too_many_headers". status is what was answered, 0 if nothing. It
	// must not block.
	ProtocolError(status int, details string)
}

// ServerConn is a downstream HTTP connection. Constructors h1.Serve and
// h2.Serve return it.
type ServerConn interface {
	// Drain ends the connection in order: GOAWAY, then close when the last
	// stream has ended; HTTP/1 answers "connection: close", an idle connection
	// after one more request.
	Drain()
	// Close ends it now; active streams are reset.
	Close(cause error)
	// Active is the number of streams in flight.
	Active() int
}

// HeaderCase is how HTTP/1 codecs treat the case of header names. Names that
// the sender's codec kept (message.Header.KeepName) are always written as they
// came.
type HeaderCase uint8

// Cases of header names, as Envoy's Http1ProtocolOptions.header_key_format.
const (
	// LowerCase writes names in lower case.
	LowerCase HeaderCase = iota
	// ProperCase writes the first letter of each word as a capital
	// (proper_case_words).
	ProperCase
	// KeepCase keeps the names that are received, for whoever sends the message
	// on as HTTP/1 (the preserve_case formatter).
	KeepCase
)

// ServerConfig bounds a downstream connection. Zero values mean the defaults
// given, which are Envoy's.
type ServerConfig struct {
	// MaxHeaderBytes bounds a request head, 60 KiB. Exceeding it answers 431.
	MaxHeaderBytes int
	// MaxHeaders bounds the number of fields, 100. Exceeding it answers 431.
	MaxHeaders int
	// IdleTimeout closes a connection without streams, 1 h. Negative: never.
	IdleTimeout time.Duration
	// HeadersTimeout bounds the time from a head's first byte to its last; 0: none
	// (Envoy's request_headers_timeout).
	HeadersTimeout time.Duration
	// MaxConnectionDuration starts a drain; 0: none.
	MaxConnectionDuration time.Duration
	// MaxRequestsPerConnection starts a drain after that many; 0: none.
	MaxRequestsPerConnection int

	// Received and Sent count the bytes of the connections, without TLS; nil counts
	// nothing.
	Received, Sent *stats.Counter

	// HTTP/1 only.
	AcceptHTTP10       bool
	DefaultHostHTTP10  string
	AllowAbsoluteURL   bool // Envoy's default is true; the decoder sets it
	EnableTrailers     bool
	AllowChunkedLength bool
	// Proxy100Continue passes "expect: 100-continue" and 100 through; otherwise
	// the codec answers 100 itself, at once as Envoy does.
	Proxy100Continue bool
	// Scheme is used for ":scheme" when the request line has none; "" leaves
	// that to the handler.
	Scheme string
	// Case is how the names of response headers are written.
	Case HeaderCase

	// HTTP/2 only.
	AllowConnect         bool   // extended CONNECT (RFC 8441) and CONNECT
	MaxConcurrentStreams uint32 // Envoy: 2^31-1 → 1024 since 1.35
	InitialStreamWindow  uint32 // 16 MiB in Envoy since 1.35 (256 KiB before); default 256 KiB
	InitialConnWindow    uint32 // default 1 MiB
	MaxFrameSize         uint32 // default 16 KiB
	KeepaliveInterval    time.Duration
	KeepaliveTimeout     time.Duration
	// Flood limits: Envoy's max_outbound_frames 10,000, max_outbound_control_frames
	// 1,000, max_consecutive_inbound_frames_with_empty_payload 1, max_inbound_priority_frames_per_stream
	// 100, max_inbound_window_update_frames_per_data_frame_sent 10.
	MaxOutboundFrames, MaxOutboundControlFrames                         int
	MaxConsecutiveEmptyFrames, MaxPriorityFrames, MaxWindowUpdateFrames int
}

// ClientStream is one request on an upstream connection. One goroutine may
// write the request while another reads the response.
type ClientStream interface {
	Version() message.Version
	// WriteHeaders sends the request head. The codec may hold it back until the
	// first WriteData, Flush, or ReadHeaders; HTTP/1 does so with a whole small
	// request, which then shares one system call's wait with its answer. An
	// error of sending may therefore come from ReadHeaders.
	WriteHeaders(h *message.Header, end bool) error
	WriteData(p []byte, end bool) error
	WriteTrailers(h *message.Header) error
	Flush() error
	// ReadHeaders blocks until the next response head and fills h; it returns
	// 1xx heads too, one call each. end reports that no body and no trailers
	// follow.
	ReadHeaders(h *message.Header) (status int, end bool, err error)
	// Body is the response body after the final head.
	Body() message.Body
	// Tunnel turns the stream into a byte stream after a 2xx to CONNECT or a 101.
	Tunnel() netio.Conn
	// Interrupt makes blocked and later calls fail with cause.
	Interrupt(cause error)
	// Reset aborts the stream if it is not complete.
	Reset()
	// Release hands the stream's connection back to its pool if the exchange
	// is complete in both directions, else resets it. It is called exactly
	// once, last.
	Release()
	// BytesIn and BytesOut are the bytes on the wire for this stream.
	BytesIn() uint64
	BytesOut() uint64
}

// ClientConn is an upstream HTTP connection.
type ClientConn interface {
	// NewStream starts an exchange. It fails with a *ResetError: Overflow if
	// the connection has no room for a further stream, ConnectionTermination
	// or RemoteRefused if it is closed or going away.
	NewStream() (ClientStream, error)
	// Available is how many further streams may be started now: 0 or 1 for
	// HTTP/1; the peer's limit less the active ones for HTTP/2; 0 after GOAWAY.
	Available() int
	Active() int
	// Drain closes the connection when its last stream has ended.
	Drain()
	Close(cause error)
	// Done is closed when the connection has ended.
	Done() <-chan struct{}
}

// Resumer is a ClientConn that can start an exchange without a look at whether
// the peer has ended the connection meanwhile: a system call less. It is for
// requests that may be sent again, on connections that were in use just now.
type Resumer interface {
	// Resume is NewStream without that look.
	Resume() (ClientStream, error)
}

// ClientConfig bounds an upstream connection.
type ClientConfig struct {
	// MaxHeaderBytes bounds a response head, 60 KiB; MaxHeaders the number of
	// fields, 100.
	MaxHeaderBytes, MaxHeaders int
	// OnIdle, if not nil, is called when a stream was released and the
	// connection can take a further one, so that a pool can reuse it; OnClose
	// once when the connection has ended. Neither may block.
	OnIdle  func(ClientConn)
	OnClose func(ClientConn, error)

	InitialStreamWindow, InitialConnWindow, MaxFrameSize, MaxConcurrentStreams uint32
	KeepaliveInterval, KeepaliveTimeout                                        time.Duration
	// EnableTrailers lets HTTP/1 send and accept trailers.
	EnableTrailers bool
	// Case is how HTTP/1 writes the names of request headers.
	Case HeaderCase
}
