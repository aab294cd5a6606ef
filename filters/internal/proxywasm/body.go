package proxywasm

import (
	"errors"
	"slices"

	"github.com/tetratelabs/wazero/api"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// What a body callback returns; anything greater is as dataStopNoBuffer.
const (
	dataContinue = iota
	dataStopAndBuffer
	dataStopAndWatermark
	dataStopNoBuffer
)

// bodyReader shows a body to the guest while it is pulled. What the guest holds
// back is kept here, up to a limit.
type bodyReader struct {
	inner message.Body
	c     *guestContext
	limit int
	// held is what the guest has seen and holds back, and does not see again;
	// kept what it will see with the next part.
	held, kept []byte
	// ahead is what was pulled before its time.
	ahead, aheadLast bool
	aheadData        []byte
	last             bool // of inner was seen
	done             bool
}

// direction is what differs between request and response.
type direction interface {
	// data and trailers are the callbacks.
	data(v *vm) api.Function
	trailers(v *vm) api.Function
	// show gives the guest b and t to see; shown is b.
	show(b *buffer, t *message.Header)
	shown() *buffer
	// goOn is what the guest sets to let the direction go on, waiter who waits
	// for it.
	goOn() *bool
	waiter() *waiter
	tooLarge() *localReply
}

type requestReader struct {
	bodyReader
	stream *filters.Stream
}

type responseReader struct {
	bodyReader
	stream *filters.Stream
}

func (*requestReader) data(v *vm) api.Function     { return v.fn.requestBody }
func (*requestReader) trailers(v *vm) api.Function { return v.fn.requestTrailers }
func (b *requestReader) goOn() *bool               { return &b.c.goRequest }
func (b *requestReader) waiter() *waiter           { return &b.c.requestWaiter }
func (b *requestReader) shown() *buffer            { return b.c.requestBody }
func (b *requestReader) show(d *buffer, t *message.Header) {
	b.c.requestBody, b.c.requestTrailers = d, t
}

func (*requestReader) tooLarge() *localReply {
	return &localReply{own: true, status: 413, body: "Payload Too Large", details: "request_payload_too_large", grpc: -1}
}

func (*responseReader) data(v *vm) api.Function     { return v.fn.responseBody }
func (*responseReader) trailers(v *vm) api.Function { return v.fn.responseTrailers }
func (b *responseReader) goOn() *bool               { return &b.c.goResponse }
func (b *responseReader) waiter() *waiter           { return &b.c.responseWaiter }
func (b *responseReader) shown() *buffer            { return b.c.responseBody }
func (b *responseReader) show(d *buffer, t *message.Header) {
	b.c.responseBody, b.c.responseTrailers = d, t
}

func (*responseReader) tooLarge() *localReply {
	return &localReply{own: true, status: 500, body: "Internal Server Error", details: "response_payload_too_large", grpc: -1}
}

func (c *guestContext) bodyLimit() int {
	if n := c.stream.Info.Conn; n != nil && n.BufferLimit > 0 {
		return int(n.BufferLimit)
	}
	return defaultBodySize
}

// wrapRequest puts the guest before the request's body.
func (c *guestContext) wrapRequest() *requestReader {
	b := &requestReader{bodyReader{inner: c.stream.Body, c: c, limit: c.bodyLimit()}, c.stream}
	if c.requestWaiter.ch == nil {
		c.requestWaiter.ch = make(chan struct{}, 1)
	}
	c.stream.Body, c.wrapped = b, true
	return b
}

// watchRequest wraps the request's body, if it is not yet and the guest cares.
// From now on it may be pulled by another goroutine.
func (c *guestContext) watchRequest() {
	s, v := c.stream, c.vm
	c.passed = true
	if message.IsEmpty(s.Body) || v.fn.requestBody == nil && v.fn.requestTrailers == nil && len(c.touched) == 0 {
		return
	}
	if v.pool.module.properties {
		c.copied = &message.Header{}
		c.copied.CopyFrom(&s.Request)
		c.note()
	}
	if !c.wrapped {
		c.wrapRequest()
	}
}

func (c *guestContext) wrapResponse(r *filters.Response) *responseReader {
	if c.vm.fn.responseBody == nil && c.vm.fn.responseTrailers == nil || message.IsEmpty(r.Body) {
		return nil
	}
	b := &responseReader{bodyReader{inner: r.Body, c: c, limit: c.bodyLimit()}, c.stream}
	r.Body = b
	return b
}

// Next implements message.Body.
func (b *requestReader) Next() ([]byte, bool, error) { return b.next(b) }

// Next implements message.Body.
func (b *responseReader) Next() ([]byte, bool, error) {
	p, last, err := b.next(b)
	if errors.Is(err, errAnswered) {
		b.c.cut(b.stream)
	}
	return p, last, err
}

// Trailers implements message.Body: some origins take trailers for headers, so
// what the guest set or removed in the head is none.
func (b *requestReader) Trailers() *message.Header {
	t := b.inner.Trailers()
	if t == nil || len(b.c.touched) == 0 {
		return t
	}
	t.DelFunc(func(f message.Field) bool {
		return slices.ContainsFunc(b.c.touched, func(name string) bool { return message.SameForCGI(name, f.Name) })
	})
	if t.Len() == 0 {
		return nil
	}
	return t
}

// Interrupt implements filters.Interrupter: who sends the request needs no more
// of its body.
func (b *requestReader) Interrupt(cause error) {
	b.c.requestWaiter.stopped.CompareAndSwap(nil, &cause)
	b.c.requestWaiter.signal()
	if i, ok := b.inner.(filters.Interrupter); ok {
		i.Interrupt(cause)
	} else {
		b.stream.Interrupt(cause)
	}
}

// Ready implements message.Body. Next may wait for the guest all the same.
func (b *bodyReader) Ready() (int, bool) {
	switch {
	case b.ahead:
		return len(b.aheadData), b.aheadLast
	case b.done:
		return 0, true
	case b.last:
		return len(b.held) + len(b.kept), true
	}
	return b.inner.Ready()
}

// Trailers implements message.Body.
func (b *bodyReader) Trailers() *message.Header { return b.inner.Trailers() }

// Close implements message.Body.
func (b *bodyReader) Close() {
	b.held, b.kept, b.aheadData = nil, nil, nil
	b.inner.Close()
}

// prefetch pulls until the guest lets something pass.
func (b *requestReader) prefetch() error { return b.pullAhead(b) }

func (b *responseReader) prefetch() error { return b.pullAhead(b) }

func (b *bodyReader) pullAhead(d direction) error {
	p, last, err := b.next(d)
	if err != nil {
		return err
	}
	b.ahead, b.aheadData, b.aheadLast = true, slices.Clone(p), last
	return nil
}

// next pulls a part, shows it to the guest, and again until the guest lets
// something pass.
func (b *bodyReader) next(d direction) ([]byte, bool, error) {
	if b.ahead {
		b.ahead = false
		return b.aheadData, b.aheadLast, nil
	}
	for !b.done {
		if b.last { // the guest holds back what is left
			return b.finish(d)
		}
		p, last, err := b.inner.Next()
		if err != nil {
			return nil, false, err
		}
		b.last = last
		out, pass, err := b.ask(d, p)
		if err != nil {
			return nil, false, err
		}
		if pass && (len(out) > 0 || !last) {
			if !last {
				return out, false, nil
			}
			return b.finishWith(d, out)
		}
	}
	return nil, true, nil
}

// ask runs the body callback for p. It returns what may pass now, and whether
// the guest lets it.
func (b *bodyReader) ask(d direction, p []byte) ([]byte, bool, error) {
	c, v := b.c, b.c.vm
	end := b.last && b.inner.Trailers() == nil
	if len(p) == 0 && !end {
		return nil, len(b.held)+len(b.kept) == 0 && b.last, nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if c.stream == nil {
		return nil, false, errAnswered // it has ended
	}
	f := d.data(v)
	if f == nil || v.failed.Load() && c.plugin.cfg.Policy == FailOpen && !c.failed {
		return b.pass(p), true, nil
	}
	if goOn := d.goOn(); *goOn && len(b.held)+len(b.kept) > 0 { // meanwhile
		*goOn = false
		b.held, b.kept = append(b.held, b.kept...), nil
	}
	seen := p
	if len(b.kept) > 0 {
		b.kept = append(b.kept, p...)
		seen, b.kept = b.kept, nil
	}
	if len(seen)+len(b.held) > b.limit && (len(b.held) > 0 || len(seen) > len(p)) {
		c.local = d.tooLarge()
		c.signal()
		return nil, false, errAnswered
	}
	shown := &buffer{seen}
	d.show(shown, nil)
	defer d.show(nil, nil)
	action := c.callBody(d, f, uint64(len(seen)), flag(end))
	if c.failed || c.local != nil && !c.replied || c.closed {
		return nil, false, errAnswered
	}
	if v.failed.Load() && c.plugin.cfg.Policy != FailOpen {
		c.failed = true
		return nil, false, errAnswered
	}
	switch action {
	case dataContinue:
		return b.pass(shown.b), true, nil
	case dataStopAndBuffer:
		b.kept = slices.Clone(shown.b)
	case dataStopAndWatermark:
		b.held = append(b.held, shown.b...)
	}
	if !b.last {
		return nil, false, nil
	}
	// There is nothing to wait for but the guest itself.
	d.show(&buffer{b.kept}, nil)
	if o := c.pause(d); o != nil {
		return nil, false, c.abandon(o)
	}
	if at := d.shown(); at != nil {
		b.kept = at.b
	}
	return b.pass(nil), true, nil
}

// callBody runs a callback for a part of a body.
func (c *guestContext) callBody(d direction, f api.Function, a ...uint64) uint32 {
	_, request := d.(*requestReader)
	c.pumping = request && c.passed
	action, _ := c.vm.call(f, c, append([]uint64{uint64(c.id)}, a...)...)
	c.pumping = false
	return action
}

// pass returns what was held back, with p.
func (b *bodyReader) pass(p []byte) []byte {
	if len(b.held)+len(b.kept) == 0 {
		return p
	}
	out := append(append(b.held, b.kept...), p...)
	b.held, b.kept = nil, nil
	return out
}

// finish ends a body whose last part did not pass yet.
func (b *bodyReader) finish(d direction) ([]byte, bool, error) {
	return b.finishWith(d, b.pass(nil))
}

// finishWith runs the trailers callback, and returns out as the last part.
func (b *bodyReader) finishWith(d direction, out []byte) ([]byte, bool, error) {
	b.done = true
	t := b.inner.Trailers()
	if t == nil {
		return out, true, nil
	}
	c, v := b.c, b.c.vm
	v.mu.Lock()
	defer v.mu.Unlock()
	f := d.trailers(v)
	if c.stream == nil {
		return nil, false, errAnswered
	}
	if f == nil || v.failed.Load() {
		return out, true, b.abandonIfFailed()
	}
	d.show(nil, t)
	defer d.show(nil, nil)
	action := c.callBody(d, f, uint64(t.Len()))
	if c.failed || c.local != nil && !c.replied || c.closed {
		return nil, false, errAnswered
	}
	if action != 0 {
		if o := c.pause(d); o != nil {
			return nil, false, c.abandon(o)
		}
	}
	return out, true, nil
}

func (b *bodyReader) abandonIfFailed() error {
	if b.c.vm.failed.Load() && b.c.plugin.cfg.Policy != FailOpen {
		b.c.failed = true
		return errAnswered
	}
	return nil
}

// pause is wait for a body: what the guest wants otherwise stays to be found by
// whoever answers the stream.
func (c *guestContext) pause(d direction) *outcome {
	o := c.wait(d.waiter(), d.goOn())
	if o != nil && o.local != nil {
		c.replied = false
	}
	return o
}

func (c *guestContext) abandon(o *outcome) error {
	switch {
	case o.err != nil:
		return o.err
	case o.fail:
		c.failed = true
	}
	return errAnswered
}
