package hcm

import (
	"errors"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/refusal"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/routing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// respond writes r downstream. r.Body is closed in any case.
func (st *stream) respond(r *filters.Response) {
	st.responding = true
	s := &st.s
	given := r.Body // mapLocalReply may replace it
	defer func() {
		r.Body.Close()
		if r.Body != given {
			given.Close()
		}
	}()
	if r.Local {
		if rt, ok := s.Route.(*routing.Route); ok {
			rt.FinalizeResponse(s, r)
		}
		if r.Status() == http.StatusRequestEntityTooLarge {
			st.m.st.rqTooLarge.Inc()
		}
		st.mapLocalReply(r)
	}
	s.Response = r
	s.Info.FirstDownstreamTx = st.beginsAt(r)
	st.finalizeHeaders(r)
	if r.Tunnel != nil {
		st.becomeTunnel(r)
		return
	}
	head := s.Request.Get(message.Method) == "HEAD"
	end := head || message.IsEmpty(r.Body)
	st.headersSent = true
	if err := st.ss.WriteHeaders(&r.Header, end); err != nil {
		st.writeFailed(err)
		return
	}
	if end {
		return
	}
	st.writeBody(r.Body)
}

// beginsAt is the time at which r, which is complete, is about to be written: that
// of its arrival, unless a filter saw it in between.
func (st *stream) beginsAt(r *filters.Response) time.Time {
	info := &st.s.Info
	if !r.Local && len(st.s.Chain()) == 1 && !info.FirstUpstreamRx.IsZero() {
		return info.FirstUpstreamRx
	}
	return info.Now()
}

// writeBody pulls the body chunk by chunk; pulling is the back-pressure. What is
// ready leaves together; a pause flushes.
func (st *stream) writeBody(b message.Body) {
	info := &st.s.Info
	waited := false
	for {
		if n, last := b.Ready(); n == 0 && !last {
			waited = true
			if err := st.ss.Flush(); err != nil {
				st.writeFailed(err)
				return
			}
		}
		p, last, err := b.Next()
		if err != nil {
			st.bodyFailed(err)
			return
		}
		if waited {
			st.touch()
		} else { // it came with the head
			st.touchAt(info.FirstDownstreamTx)
		}
		waited = true
		var t *message.Header
		if last {
			t = b.Trailers()
		}
		if err := st.writeChunk(p, last, t); err != nil {
			st.writeFailed(err)
			return
		}
		if last {
			return
		}
	}
}

// writeChunk writes a chunk, and the trailers that end the response, in one go if
// the protocol can.
func (st *stream) writeChunk(p []byte, last bool, t *message.Header) error {
	if t != nil && len(p) > 0 {
		if w, ok := st.ss.(transport.LastWriter); ok {
			if err := w.WriteLast(p, t); err != nil {
				return err
			}
			st.s.Info.BytesSent += uint64(len(p))
			return nil
		}
	}
	if len(p) > 0 || last && t == nil {
		if err := st.ss.WriteData(p, last && t == nil); err != nil {
			return err
		}
		st.s.Info.BytesSent += uint64(len(p))
	}
	if t != nil {
		return st.ss.WriteTrailers(t)
	}
	return nil
}

// bodyFailed ends a response that broke off: the client must not take what it
// has for the whole.
func (st *stream) bodyFailed(err error) {
	cause := st.s.Cause()
	info := &st.s.Info
	info.Cut = true
	switch {
	case errors.Is(cause, errStreamIdle):
		st.m.st.rqIdle.Inc()
		info.Flags = info.Flags.With(streaminfo.StreamIdleTimeout)
		info.Details, info.Limit = "stream_idle_timeout", "stream idle timeout "+st.idleTimeout.String()
	case errors.Is(cause, errMaxDuration):
		st.m.st.rqMaxDuration.Inc()
		info.Flags = info.Flags.With(streaminfo.DurationTimeout)
		info.Details, info.Limit = "max_duration_timeout", "max stream duration "+st.m.spec.MaxStreamDuration.String()
	case cause != nil:
		st.downstreamReset(cause)
		return
	default:
		if info.Details == "" || info.Details == "via_upstream" {
			info.Details = "upstream_reset_after_response_started{" + reason(err) + "}"
		}
	}
	st.ss.Reset(transport.LocalReset)
}

func reason(err error) string {
	if r := transport.ReasonOf(err); r != 0 {
		return r.String()
	}
	return "local_reset"
}

func (st *stream) writeFailed(err error) {
	if cause := st.s.Cause(); cause != nil {
		err = cause
	}
	st.downstreamReset(err)
}

// finalizeHeaders adds what every response of this manager carries.
func (st *stream) finalizeHeaders(r *filters.Response) {
	s, spec := &st.s, st.m.spec
	h := &r.Header
	s.Info.ResponseCode = r.Status()
	if !h.Has("date") {
		h.Add("date", httpDate(st.s.Info.FirstDownstreamTx))
	}
	switch spec.ServerHeader {
	case xdsresource.ServerOverwrite:
		h.Set("server", st.serverName())
	case xdsresource.ServerAppendIfAbsent:
		if !h.Has("server") {
			h.Add("server", st.serverName())
		}
	case xdsresource.ServerPassThrough:
	}
	if spec.AlwaysSetRequestIDInResponse && s.Info.RequestID != "" {
		h.Set("x-request-id", s.Info.RequestID)
	}
	appendVia(h, spec.Via)
	st.decorate(h)
	// An answer before the request's end ends the connection, as in Envoy; a
	// codec for streams resets the stream instead.
	if st.m.draining.Load() || s.Info.Protocol != message.HTTP2 && r.Tunnel == nil && !st.in.complete.Load() {
		st.ss.CloseAfter()
	}
}

func (st *stream) serverName() string {
	if n := st.m.spec.ServerName; n != "" {
		return n
	}
	return "envoy"
}

// cachedDate is the Date header, made anew at most once a second.
var cachedDate atomic.Pointer[dateValue]

type dateValue struct {
	unix int64
	text string
}

func httpDate(t time.Time) string {
	if d := cachedDate.Load(); d != nil && d.unix == t.Unix() {
		return d.text
	}
	d := &dateValue{t.Unix(), t.UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT")}
	cachedDate.Store(d)
	return d.text
}

// mapLocalReply applies local_reply_config to r.
func (st *stream) mapLocalReply(r *filters.Response) {
	cfg := st.m.spec.LocalReply
	if cfg == nil {
		return
	}
	s := &st.s
	ctx := format.Context{Info: &s.Info, Request: &s.Request, Response: &r.Header}
	if b, _, err := r.Body.Next(); err == nil {
		ctx.LocalReplyBody = string(b)
	}
	body, changed := []byte(ctx.LocalReplyBody), false
	ctype, render, json := cfg.ContentType, cfg.Body, cfg.JSONBody
	for i := range cfg.Mappers {
		mp := &cfg.Mappers[i]
		if !mp.Filter.Match(&ctx) {
			continue
		}
		if mp.StatusCode != 0 {
			r.Header.Set(message.Status, strconv.Itoa(mp.StatusCode))
			s.Info.ResponseCode = mp.StatusCode
		}
		if mp.Body != nil {
			ctx.LocalReplyBody = *mp.Body
			body, changed = []byte(*mp.Body), true
		}
		st.m.mapped[i].Apply(&r.Header, &ctx)
		if mp.BodyFormat != nil || mp.JSONBody != nil {
			render, json, ctype = mp.BodyFormat, mp.JSONBody, mp.ContentType
		}
		break
	}
	switch {
	case render != nil:
		body, changed = render.Append(nil, &ctx), true
		if ctype == "" {
			ctype = "text/plain"
		}
	case json != nil:
		body, changed = append(json.Append(nil, &ctx), '\n'), true
		if ctype == "" {
			ctype = "application/json"
		}
	}
	if s.Info.IsGRPC || !changed {
		r.Body = message.Bytes([]byte(ctx.LocalReplyBody))
		if s.Request.Get(message.Method) == "HEAD" {
			r.Body = message.NoBody
		}
		return
	}
	r.Header.Set("content-length", strconv.Itoa(len(body)))
	if ctype != "" {
		r.Header.Set("content-type", ctype)
	}
	r.Body = message.Bytes(body)
}

// log writes the access log lines of a finished stream.
func (st *stream) log() {
	defer st.contain()
	s := &st.s
	ctx := &st.logged // escapes
	*ctx = format.Context{Info: &s.Info, Request: &s.Request, LogType: format.LogDownstreamEnd}
	if s.Response != nil {
		ctx.Response = &s.Response.Header
		ctx.Trailers = s.Response.Body.Trailers()
	}
	for _, l := range st.m.cfg.AccessLogs {
		l.Log(ctx)
	}
	*ctx = format.Context{}
}

// ProtocolError implements transport.Handler: a connection sent no request, but
// it still has its line in the log.
func (cn *conn) ProtocolError(status int, details string) {
	m := cn.m
	m.st.cxProtocolError.Inc()
	if status != 0 {
		m.st.rqTotal.Inc()
		m.st.rqHTTP1.Inc()
		m.st.rqRxReset.Inc() // it never came to its end
		m.st.code(status)
	}
	if len(m.cfg.AccessLogs) == 0 && (m.cfg.Refusals == nil || status == 0) {
		return
	}
	info := streaminfo.Info{Conn: cn.info, Start: now(), ResponseCode: status, Details: details, Flags: streaminfo.DownstreamProtocolError}
	if details == "request_header_timeout" {
		info.Flags = 0
	}
	if status != 0 { // an answer was made: only HTTP/1 codecs do that
		info.Protocol = message.HTTP11
		info.BytesSent = uint64(len(http.StatusText(status)))
	}
	info.End = info.Start
	if status != 0 {
		m.cfg.Refusals.HTTP(&refusal.Stream{Info: &info, Request: &message.Header{}, Local: true})
	}
	defer m.contain()
	ctx := format.Context{Info: &info, LogType: format.LogDownstreamEnd}
	if status != 0 {
		ctx.Response = &message.Header{}
		ctx.Response.Add(message.Status, strconv.Itoa(status))
		ctx.Response.Add("content-length", strconv.FormatUint(info.BytesSent, 10))
		ctx.Response.Add("content-type", "text/plain")
	}
	for _, l := range m.cfg.AccessLogs {
		l.Log(&ctx)
	}
}
