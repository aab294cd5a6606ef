package hbone

import (
	"strconv"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/transport/h2"
)

// ServerConfig bounds an HBONE connection that is served. Zero values mean the
// defaults given, which are ztunnel's.
type ServerConfig struct {
	Transport Transport
	// MaxStreams is how many CONNECTs may be open at once, 200.
	MaxStreams uint32
	// IdleTimeout closes a connection without streams, 1 h. Negative: never.
	IdleTimeout time.Duration
	// OnProtocolError, if not nil, is told when the peer broke HTTP; details is
	// Envoy's response code detail. It must not block.
	OnProtocolError func(details string)
}

const (
	serverMaxStreams = 200
	// serverMaxHead bounds a CONNECT's head.
	serverMaxHead = 64 << 10
)

// Server serves CONNECT on one connection. Safe for concurrent use.
type Server struct {
	h2     *h2.Server
	f      func(*Request)
	broken func(string)
}

// NewServer prepares conn, on which the TLS handshake is done. f is called for
// each request on a goroutine of its own; it decides by Accept or Reject. A
// request that f leaves undecided is reset. Serve must follow.
func NewServer(conn netio.Conn, cfg *ServerConfig, f func(*Request)) *Server {
	if cfg == nil {
		cfg = &ServerConfig{}
	}
	tr := cfg.Transport.withDefaults()
	s := &Server{f: f, broken: cfg.OnProtocolError}
	maxStreams := cfg.MaxStreams
	if maxStreams == 0 {
		maxStreams = serverMaxStreams
	}
	s.h2 = h2.NewServer(conn, &transport.ServerConfig{
		MaxHeaderBytes: serverMaxHead, IdleTimeout: cfg.IdleTimeout, AllowConnect: false,
		MaxConcurrentStreams: maxStreams, InitialStreamWindow: tr.StreamWindow, InitialConnWindow: tr.ConnWindow,
		MaxFrameSize: tr.FrameSize, KeepaliveInterval: tr.KeepaliveInterval, KeepaliveTimeout: tr.KeepaliveTimeout,
	}, (*handler)(s))
	return s
}

// Serve drives the connection until it ends; on a connection whose Park calls
// back it returns at once. done, which may be nil, is called once, when the
// connection has ended and f has returned for all requests.
func (s *Server) Serve(done func()) { s.h2.Serve(done) }

// Drain sends GOAWAY and closes the connection when the last tunnel has ended.
func (s *Server) Drain() { s.h2.Drain() }

// Close ends the connection now; tunnels fail with cause.
func (s *Server) Close(cause error) { s.h2.Close(cause) }

// Active is the number of requests and tunnels open.
func (s *Server) Active() int { return s.h2.Active() }

type handler Server

func (h *handler) ServeStream(st transport.ServerStream) {
	r := &Request{s: st, Header: getHead()}
	st.ReadHeaders(r.Header)
	h.f(r)
	hd := r.Header
	r.Header, r.s = nil, nil
	putHead(hd)
}

func (h *handler) ProtocolError(_ int, details string) {
	if h.broken != nil {
		h.broken(details)
	}
}

// Request is a request on an HBONE connection, usually a CONNECT. It is used by
// the goroutine that serves it and not after that has returned.
type Request struct {
	// Header is the request's head. Its strings are valid until the function
	// that serves the request returns.
	Header *message.Header
	s      transport.ServerStream
}

// IsConnect reports whether the request asks for a tunnel. Others are answered
// with 400.
func (r *Request) IsConnect() bool { return r.Header.Get(message.Method) == "CONNECT" }

// Authority is where the tunnel shall go, "ip:port" or "host:port" if the client
// behaves.
func (r *Request) Authority() string { return r.Header.Get(message.Authority) }

// OnReset registers f to be called once if the client gives up: while the request
// is undecided, and while the tunnel is open. f must not block. OnReset(nil) takes
// f back.
func (r *Request) OnReset(f func(cause error)) { r.s.OnReset(f) }

// Accept answers 200 with fields added and returns the tunnel, which outlives
// the request. It is called once, after everything that may fail has been done.
func (r *Request) Accept(fields ...message.Field) (netio.Conn, error) {
	if err := r.answer(200, fields, false); err != nil {
		return nil, err
	}
	return r.s.Tunnel(), nil
}

// Reject answers with status and no body.
func (r *Request) Reject(status int, fields ...message.Field) error {
	return r.answer(status, fields, true)
}

func (r *Request) answer(status int, fields []message.Field, end bool) error {
	h := getHead()
	defer putHead(h)
	h.Add(message.Status, strconv.Itoa(status))
	for _, f := range fields {
		h.AddField(f)
	}
	return r.s.WriteHeaders(h, end)
}
