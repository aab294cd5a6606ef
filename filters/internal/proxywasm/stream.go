package proxywasm

import (
	"errors"
	"strconv"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// What a headers callback returns; anything greater pauses too.
const (
	headersContinue      = 0
	headersStopIteration = 1
	headersDontEnd       = 2 // as continue
)

// localReply is an answer of the guest's, or, if it is own, of the host's.
type localReply struct {
	own           bool
	status        int
	body, details string
	headers       [][2]string
	grpc          int32
}

// errAnswered ends the pulling of a body whose stream is answered otherwise.
var errAnswered = errors.New("wasm: the guest answers the stream otherwise")

// Do implements filters.HTTPFilter for p.
func (p *Plugin) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	v := p.pool.lock()
	if v == nil {
		return p.unavailable(s, next)
	}
	c := v.newStream(p, s)
	if c == nil {
		v.mu.Unlock()
		return p.failStream(s), nil
	}
	s.Info.FilterState.SetStatic(p.stateKey, c, streaminfo.SharingNone)
	c.request = &s.Request
	o := c.requestHead()
	c.request, c.requestTrailers, c.requestBody = nil, nil, nil
	if o == nil {
		c.watchRequest()
	}
	c.publish()
	v.mu.Unlock()
	if o != nil {
		return c.conclude(s, o)
	}
	if c.rerouted {
		c.rerouted = false
		s.ClearRouteCache()
	}
	r, err := next.Do(s)
	return c.respond(s, r, err)
}

// unavailable is what becomes of a stream for which there is no VM.
func (p *Plugin) unavailable(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	if p.cfg.Policy == FailOpen {
		return next.Do(s)
	}
	return p.failStream(s), nil
}

// failStream answers as Envoy does when a VM fails.
func (p *Plugin) failStream(s *filters.Stream) *filters.Response {
	return s.Deny(503, "", "wasm_fail_stream", 0, p.broken())
}

// newStream makes the context of s. It returns nil if the VM failed meanwhile.
func (v *vm) newStream(p *Plugin, s *filters.Stream) *guestContext {
	root := v.roots[p.key]
	if root == nil {
		return nil
	}
	c := &guestContext{vm: v, id: v.newID(), plugin: p, root: root, stream: s}
	v.contexts[c.id] = c
	if f := v.fn.contextCreate; f != nil {
		if _, ok := v.call(f, c, uint64(c.id), uint64(root.id)); !ok {
			return nil
		}
	}
	return c
}

// outcome is how the guest ends a stream, nil if it goes on.
type outcome struct {
	local  *localReply
	fail   bool // by the failure policy
	closed bool
	err    error // the stream's own
}

// wants returns what the guest, or its failure, makes of the stream.
func (c *guestContext) wants() *outcome {
	switch {
	case c.failed, c.vm.failed.Load() && c.plugin.cfg.Policy != FailOpen:
		return &outcome{fail: true}
	case c.local != nil && !c.replied:
		c.replied = true
		return &outcome{local: c.local}
	case c.closed:
		return &outcome{closed: true}
	}
	return nil
}

// requestHead runs the callback for the request's head and waits until the guest
// lets the stream go on. The VM is locked.
func (c *guestContext) requestHead() *outcome {
	f := c.vm.fn.requestHeaders
	if f == nil {
		return c.wants()
	}
	s := c.stream
	var action uint32
	if c.vm.fn.requestArgs == 2 {
		action, _ = c.vm.call(f, c, uint64(c.id), uint64(s.Request.Len()))
	} else {
		action, _ = c.vm.call(f, c, uint64(c.id), uint64(s.Request.Len()), flag(message.IsEmpty(s.Body)))
	}
	if o := c.wants(); o != nil || action == headersContinue || action == headersDontEnd {
		return o
	}
	if action == headersStopIteration && c.plugin.cfg.AllowStopIteration && !message.IsEmpty(s.Body) && c.vm.fn.requestBody != nil {
		b := c.wrapRequest()
		c.vm.mu.Unlock()
		err := b.prefetch()
		c.vm.mu.Lock()
		if o := c.wants(); o != nil || err == nil {
			return o
		}
		return &outcome{err: err}
	}
	return c.wait(&c.requestWaiter, &c.goRequest)
}

func flag(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// wait lets others run the guest until it sets on, answers or closes the stream,
// or the stream ends. The VM is locked.
func (c *guestContext) wait(w *waiter, on *bool) *outcome {
	s, v := c.stream, c.vm
	for {
		if o := c.wants(); o != nil {
			return o
		}
		switch stopped := w.stopped.Load(); {
		case stopped != nil:
			return &outcome{err: *stopped}
		case *on || v.failed.Load():
			*on = false
			return nil
		case v.closed:
			return &outcome{fail: true}
		}
		if w.ch == nil {
			w.ch = make(chan struct{}, 1)
		}
		if err := s.Guard(w); err != nil {
			return &outcome{err: err}
		}
		w.waiting = true
		v.mu.Unlock()
		<-w.ch
		s.Unguard(w)
		v.mu.Lock()
		w.waiting = false
		if err := s.Cause(); err != nil {
			return &outcome{err: err}
		}
	}
}

// conclude ends the stream as o says, before there was a response.
func (c *guestContext) conclude(s *filters.Stream, o *outcome) (*filters.Response, error) {
	switch {
	case o.err != nil:
		return nil, o.err
	case o.closed:
		s.Info.Details = "wasm_close_stream"
		return nil, filters.ErrClosed
	case o.fail:
		return c.plugin.failStream(s), nil
	}
	r := c.plugin.reply(s, o.local)
	return c.respond(s, r, nil)
}

// reason is the response code details of l: the guest's words, as in Envoy,
// unless they would become the label of a metric.
func (l *localReply) reason(s *filters.Stream) string {
	if l.own || l.details != "" && (l.status >= 400 || !s.Info.IsGRPC) {
		return l.details
	}
	return "wasm_local_response"
}

// denied and broken are what is told about a stream that the guest refused, and
// of one whose guest failed.
func (p *Plugin) denied() streaminfo.Decision {
	return streaminfo.Decision{Filter: "wasm", Policy: p.cfg.Name, Reason: "local_response"}
}

func (p *Plugin) broken() streaminfo.Decision {
	return streaminfo.Decision{Filter: "wasm", Policy: p.cfg.Name, Reason: "vm_failed", Why: p.pool.why}
}

// cut notes why a response that has begun breaks off.
func (c *guestContext) cut(s *filters.Stream) {
	c.vm.mu.Lock()
	defer c.vm.mu.Unlock()
	info := &s.Info
	switch {
	case c.failed:
		d := c.plugin.broken()
		info.Details, info.Decision = "wasm_fail_stream", &d
	case c.local != nil:
		info.Details = c.local.reason(s)
		if !c.local.own {
			d := c.plugin.denied()
			info.Decision = &d
		}
	case c.closed:
		info.Details = "wasm_close_stream"
	}
}

// reply makes the guest's answer.
func (p *Plugin) reply(s *filters.Stream, l *localReply) *filters.Response {
	details := l.reason(s)
	var r *filters.Response
	if l.status >= 400 && !l.own {
		r = s.Deny(l.status, l.body, details, 0, p.denied())
	} else {
		r = s.LocalReply(l.status, l.body, details, 0)
	}
	for _, kv := range l.headers {
		if kv[0] == "content-type" {
			if s.Info.IsGRPC {
				continue
			}
			r.Header.Del("content-type")
		}
		r.Header.Add(kv[0], kv[1])
	}
	if s.Info.IsGRPC && l.grpc >= 0 {
		r.Header.Set("grpc-status", strconv.Itoa(int(l.grpc)))
	}
	return r
}

// respond shows the response to the guest.
func (c *guestContext) respond(s *filters.Stream, r *filters.Response, err error) (*filters.Response, error) {
	v := c.vm
	v.mu.Lock()
	o := c.wants()
	if o == nil && (err != nil || r == nil) {
		v.mu.Unlock()
		return r, err
	}
	if o == nil {
		o = c.responseHead(s, r)
	}
	c.publish()
	v.mu.Unlock()
	if o == nil {
		return r, nil
	}
	if r != nil {
		r.Body.Close()
		if r.Tunnel != nil {
			r.Tunnel.Abandon()
		}
	}
	switch {
	case o.local != nil && err != nil: // of the request's body
		return c.respond(s, c.plugin.reply(s, o.local), nil)
	case o.local != nil:
		return c.plugin.reply(s, o.local), nil
	}
	return c.conclude(s, o)
}

// responseHead runs the callback for the response's head. The VM is locked.
func (c *guestContext) responseHead(s *filters.Stream, r *filters.Response) *outcome {
	c.response = &r.Header
	defer func() { c.response, c.responseTrailers, c.responseBody = nil, nil, nil }()
	f := c.vm.fn.responseHeaders
	if f != nil && !c.vm.failed.Load() {
		end := flag(message.IsEmpty(r.Body) || s.Request.Get(message.Method) == "HEAD")
		var action uint32
		if c.vm.fn.responseArgs == 2 {
			action, _ = c.vm.call(f, c, uint64(c.id), uint64(r.Header.Len()))
		} else {
			action, _ = c.vm.call(f, c, uint64(c.id), uint64(r.Header.Len()), end)
		}
		o := c.wants()
		if o == nil && action != headersContinue && action != headersDontEnd {
			if action == headersStopIteration && c.plugin.cfg.AllowStopIteration && end == 0 && r.Tunnel == nil {
				if b := c.wrapResponse(r); b != nil {
					return c.prefetchResponse(b)
				}
			}
			o = c.wait(&c.responseWaiter, &c.goResponse)
		}
		if o != nil {
			return o
		}
	}
	if r.Tunnel == nil {
		c.wrapResponse(r)
	}
	return nil
}

func (c *guestContext) prefetchResponse(b *responseReader) *outcome {
	c.vm.mu.Unlock()
	err := b.prefetch()
	c.vm.mu.Lock()
	if o := c.wants(); o != nil || err == nil {
		return o
	}
	return &outcome{err: err}
}

// OnStreamEnd implements filters.StreamEnder for p. A stream that an earlier
// filter answered has a context for its log only, as in Envoy.
func (p *Plugin) OnStreamEnd(s *filters.Stream, r *filters.Response) {
	c, _ := s.Info.FilterState.Get(p.stateKey).(*guestContext)
	if c != nil {
		c.vm.mu.Lock()
	} else {
		if p.pool.module.has["proxy_on_log"] {
			if v := p.pool.healthy(); v != nil {
				c = v.newStream(p, s)
				if c == nil {
					v.mu.Unlock()
				}
			}
		}
		if c == nil {
			return
		}
	}
	defer c.vm.mu.Unlock()
	c.end(s, r)
}

// end is the end of a stream: log, done, delete.
func (c *guestContext) end(s *filters.Stream, r *filters.Response) {
	v := c.vm
	c.replied, c.readOnly = true, true
	c.request, c.requestTrailers, c.requestBody, c.responseBody = &s.Request, nil, nil, nil
	if r != nil {
		c.response = &r.Header
	}
	if f := v.fn.log; f != nil {
		v.call(f, c, uint64(c.id))
	}
	c.request, c.response = nil, nil
	finished := true
	if f := v.fn.done; f != nil {
		done, ok := v.call(f, c, uint64(c.id))
		finished = !ok || done != 0
	}
	c.stream = nil
	if !finished && !v.failed.Load() {
		c.finishing = true // until proxy_done
		return
	}
	v.deleteContext(c)
}
