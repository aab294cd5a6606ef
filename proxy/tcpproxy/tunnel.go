package tcpproxy

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
)

// responseHeadersKey is where propagate_response_headers puts the head of the
// CONNECT response.
const responseHeadersKey = "envoy.tcp_proxy.propagate_response_headers"

// tunnel opens a stream to host with CONNECT (or POST) and waits for the
// answer.
func (s *session) tunnel(host *upstream.Host, o *upstream.ConnectOptions) (netio.Conn, error) {
	ctx := context.Background()
	if d := s.f.cfg.IdleTimeout; d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	h := s.request()
	o.Authority = h.Get(message.Authority)
	st, err := s.cluster.NewStream(ctx, host, o)
	if err != nil {
		return nil, err
	}
	u := &s.info.Upstream
	u.Local, u.TLS, u.Protocol, u.State = st.LocalAddr(), st.TLS(), st.Version(), st.State()
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		st.Interrupt(context.Cause(ctx))
		close(interrupted)
	})
	far, err := s.ask(st, h)
	if !stop() {
		<-interrupted
		err = context.Cause(ctx)
	}
	if err != nil {
		st.Reset()
		s.released(st)
		if transport.ReasonOf(err) == 0 {
			err = &transport.ResetError{Reason: transport.ConnectionFailure, Detail: err.Error()}
		}
		return nil, err
	}
	s.stream = st
	u.Unmetered = st.Version() != message.HTTP2 // whose codec counts on
	return far, nil
}

// released hands st back and counts what went over the wire.
func (s *session) released(st *upstream.Stream) {
	in, out := st.ReleaseAt(time.Now())
	s.info.Upstream.WireBytesReceived += in
	s.info.Upstream.WireBytesSent += out
}

// ask sends the request and reads the answer.
func (s *session) ask(st *upstream.Stream, h *message.Header) (netio.Conn, error) {
	if err := st.WriteHeaders(h, false); err != nil {
		return nil, err
	}
	// The peer may have answered, said all and stopped the stream already: its answer
	// tells.
	_ = st.Flush()
	var resp message.Header
	for {
		resp.Reset()
		status, end, err := st.ReadHeaders(&resp)
		if err != nil {
			return nil, err
		}
		if status < 200 {
			continue
		}
		s.cluster.CountCode(status, false)
		if s.f.cfg.Tunneling.PropagateResponseHeaders {
			s.info.FilterState.Set(responseHeadersKey, newHeaders(&resp), streaminfo.SharingNone)
		}
		s.info.Upstream.ServiceTime = time.Since(s.info.Start)
		if status >= 300 || end {
			return nil, &transport.ResetError{Reason: transport.ConnectionFailure, Detail: "tunnel answered with status " + strconv.Itoa(status)}
		}
		return st.Tunnel(), nil
	}
}

// request is the head of the tunnel's request.
func (s *session) request() *message.Header {
	t := s.f.cfg.Tunneling
	ctx := format.Context{Info: s.info}
	h := &message.Header{}
	host := t.Hostname.Render(&ctx)
	if t.UsePost {
		h.Add(message.Method, "POST")
		h.Add(message.Scheme, "http")
		h.Add(message.Authority, host)
		path := "/"
		if t.PostPath != nil {
			if p := t.PostPath.Render(&ctx); p != "" {
				path = p
			}
		}
		h.Add(message.Path, path)
	} else {
		h.Add(message.Method, "CONNECT")
		h.Add(message.Authority, host)
	}
	ctx.Request = h
	s.f.headers.Apply(h, &ctx)
	return h
}

// Headers is the filter-state object that holds the head of a tunnel's
// response.
type Headers struct{ h message.Header }

func newHeaders(h *message.Header) *Headers {
	o := &Headers{}
	o.h.CopyFrom(h)
	return o
}

// Serialize returns the head, one "name: value" a line.
func (o *Headers) Serialize() string {
	var b strings.Builder
	for i := range o.h.Len() {
		f := o.h.At(i)
		b.WriteString(f.Name + ": " + f.Value + "\n")
	}
	return b.String()
}

// Field returns the first value of a header.
func (o *Headers) Field(name string) (string, bool) { return o.h.Lookup(name) }
