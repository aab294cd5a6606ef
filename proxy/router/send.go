package router

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
)

// sourceKind is how a request's body is sent.
type sourceKind uint8

const (
	empty     sourceKind = iota // no body, no trailers
	whole                       // all of it is here: one write, replayable for free
	streaming                   // pumped by a goroutine
)

// source is the request's body as the attempts see it.
type source struct {
	kind     sourceKind
	chunk    []byte
	trailers *message.Header
	err      error
}

// begin looks at what of the body is there.
func (b *source) begin(s *filters.Stream, k tunnelKind) {
	*b = source{}
	switch _, last := s.Body.Ready(); {
	case k != noTunnel:
		b.kind = empty
	case s.Body == message.NoBody:
	case !last:
		b.kind = streaming
	default:
		// The chunk stays valid: nobody calls Next again before Close.
		if b.chunk, _, b.err = s.Body.Next(); b.err != nil {
			b.err = &bodyError{b.err}
			return
		}
		if b.trailers = s.Body.Trailers(); len(b.chunk) > 0 || b.trailers != nil {
			b.kind = whole
		}
	}
}

// send writes the request on st; of a streaming body, what is there already.
func (rq *request) send(st *upstream.Stream) error {
	h := &rq.s.Request
	if rq.body.err != nil {
		return rq.body.err
	}
	rq.sent = true
	switch {
	case rq.kind != noTunnel:
		if err := st.WriteHeaders(h, false); err != nil {
			return err
		}
		return st.Flush()
	case rq.body.kind == empty:
		return st.WriteHeaders(h, true)
	case rq.body.kind == whole:
		if err := st.WriteHeaders(h, false); err != nil {
			return err
		}
		return write(st, rq.body.chunk, true, rq.body.trailers)
	}
	if err := st.WriteHeaders(h, false); err != nil {
		return err
	}
	return rq.pump.attach(st)
}

// write sends one chunk, and the end of the message if last.
func write(st *upstream.Stream, p []byte, last bool, trailers *message.Header) error {
	if len(p) > 0 || last && trailers == nil {
		if err := st.WriteData(p, last && trailers == nil); err != nil {
			return err
		}
	}
	if last && trailers != nil {
		return st.WriteTrailers(trailers)
	}
	return nil
}

// pump moves a streaming request body to the attempt in flight, on a goroutine
// of its own, and keeps what it moved for further attempts as long as that is
// within the buffer limit. It lives across attempts: between two it goes on
// collecting.
type pump struct {
	rq *request

	mu       sync.Mutex
	wrote    sync.Cond // writing has ended; L is mu
	writing  bool      // to to, without mu
	to       *upstream.Stream
	keep     bool // collect for replay
	lost     bool // some of the body is gone: no replay
	buf      []byte
	started  bool
	running  bool
	complete bool
	trailers *message.Header
	done     chan struct{}
}

// reset forgets everything but a small buffer.
func (p *pump) reset() {
	if !p.started {
		return
	}
	buf := p.buf[:0]
	if cap(buf) > 64<<10 {
		buf = nil
	}
	p.to, p.keep, p.lost, p.buf, p.started, p.running, p.complete, p.trailers, p.done = nil, false, false, buf, false, false, false, nil, nil
}

// bufferLimit bounds what is kept of the body, in bytes: the limit of the
// route, else the listener's, else Envoy's default.
func (rq *request) bufferLimit() int {
	if n, ok := rq.route.BufferLimit(); ok {
		return n
	}
	if c := rq.s.Info.Conn; c != nil && c.BufferLimit > 0 {
		return int(c.BufferLimit)
	}
	return 1 << 20
}

// attach replays what was collected to st and makes it the target.
func (p *pump) attach(st *upstream.Stream) error {
	start, err := p.target(st)
	if !start || err != nil {
		return err
	}
	body := p.rq.s.Body
	passed := false
	defer func() {
		if !passed { // a panic of the body: whoever stops the pump must not wait for it
			p.halt()
			close(p.done)
		}
	}()
	if p.atOnce() {
		if chunk, last, err := body.Next(); err == nil && !p.pass(chunk, last, body) {
			passed = true
			close(p.done)
			return nil
		}
	}
	passed = true
	go p.run()
	return nil
}

// atOnce reports whether a part of the body is there. It leaves with the head,
// before upstream can answer.
func (p *pump) atOnce() bool {
	n, _ := p.rq.s.Body.Ready()
	return n > 0
}

// target makes st the attempt in flight, and reports whether the pump is to be
// started.
func (p *pump) target(st *upstream.Stream) (start bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.started {
		p.started = true
		p.keep = p.rq.retry.on != 0 && p.rq.retry.left > 0 || len(p.rq.mirrors) > 0
	}
	if len(p.buf) > 0 || p.complete {
		if err := write(st, p.buf, p.complete, p.trailers); err != nil {
			return false, err
		}
	} else if p.running || !p.atOnce() {
		if err := st.Flush(); err != nil {
			return false, err
		}
	}
	if p.complete {
		return false, nil
	}
	p.to = st
	if p.running {
		return false, nil
	}
	p.running = true
	p.done = make(chan struct{})
	return true, nil
}

// replayable reports whether a further attempt would see the whole body.
func (p *pump) replayable() bool {
	if !p.started {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.lost
}

func (p *pump) run() {
	defer close(p.done)
	defer func() {
		if v := recover(); v != nil { // the body is filters' code
			p.rq.f.log.Error("panic in a request body", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			p.halt()
			p.rq.Interrupt(&bodyError{errPanic})
		}
	}()
	body := p.rq.s.Body
	for {
		chunk, last, err := body.Next()
		if err != nil {
			p.halt()
			p.rq.Interrupt(&bodyError{err})
			return
		}
		if !p.pass(chunk, last, body) {
			return
		}
	}
}

var errPanic = errors.New("a filter panicked")

func (p *pump) halt() {
	p.mu.Lock()
	p.running = false
	p.mu.Unlock()
}

// pass hands one chunk on. It returns false when there is nothing more to do.
func (p *pump) pass(chunk []byte, last bool, body message.Body) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.keep && len(p.buf)+len(chunk) > p.rq.bufferLimit() {
		// Too large to be sent again: this attempt goes on, there is no other.
		p.keep, p.lost, p.buf = false, true, nil
		p.rq.c.Count(upstream.EventAbandoned)
	}
	if p.keep {
		p.buf = append(p.buf, chunk...)
	} else {
		p.lost = p.lost || len(chunk) > 0
	}
	if last {
		p.complete, p.running, p.trailers = true, false, body.Trailers()
		p.rq.requestComplete()
		p.rq.armTry()
		if p.keep {
			p.rq.sendMirrors(p.buf, p.trailers)
		}
	}
	if p.to == nil {
		return !last
	}
	to := p.to
	if err := p.put(chunk, last, body); err != nil {
		// Whoever reads the response learns why: from a peer that takes no more, which
		// may have answered, or here. What comes now is for a next attempt, which
		// starts the pump again.
		if p.to == to && !earlyAnswer(err) {
			to.Interrupt(err)
		}
		p.to, p.running = nil, false
		return false
	}
	return !last
}

// put writes to the attempt in flight. It may take as long as upstream does not
// read, which may have answered: mu, which the caller holds, is not held meanwhile.
func (p *pump) put(chunk []byte, last bool, body message.Body) error {
	to := p.to
	p.writing = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.writing = false
		p.wrote.Broadcast()
	}()
	err := write(to, chunk, last, p.trailers)
	if err == nil && !last {
		if n, end := body.Ready(); n == 0 && !end {
			err = to.Flush()
		}
	}
	return err
}

// commit ends the collecting once an answer is being passed on: there is no further
// attempt, and the body of a call may go on for days. Mirrors still want all of
// it.
func (p *pump) commit() {
	if !p.started {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.keep && !p.complete && len(p.rq.mirrors) == 0 {
		p.keep, p.lost, p.buf = false, p.lost || len(p.buf) > 0, nil
	}
}

// detach takes the attempt's stream away. It must have been interrupted if it
// is not complete.
func (p *pump) detach() {
	if p.started {
		p.mu.Lock()
		p.to = nil
		for p.writing {
			p.wrote.Wait()
		}
		p.mu.Unlock()
	}
}

// stop ends the pump and waits for it. If it is waiting for the client, the
// body is interrupted, or, if it can't be, the stream as a whole.
func (p *pump) stop() {
	if !p.started {
		return
	}
	p.mu.Lock()
	running, done := p.running, p.done
	p.to, p.keep = nil, false
	p.mu.Unlock()
	if running {
		if i, ok := p.rq.s.Body.(filters.Interrupter); ok {
			i.Interrupt(errDone)
		} else {
			p.rq.s.Interrupt(errDone)
		}
	}
	if done != nil {
		<-done
	}
}

// busy reports whether the pump is running.
func (p *pump) busy() bool {
	if !p.started {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running
}

// lastWrite is how long an answer, which is complete, waits for the end of the
// request to have been written: upstream has got it, or will not take it.
const lastWrite = time.Second

// finished reports whether the whole request has been sent.
func (p *pump) finished() bool {
	if !p.started {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.complete && p.writing {
		done, t := p.done, time.NewTimer(lastWrite)
		p.mu.Unlock()
		select {
		case <-done:
		case <-t.C:
		}
		t.Stop()
		p.mu.Lock()
	}
	return p.complete && !p.writing
}

// bodyError is a failure of the request body: the client's fault, never a
// reason to retry.
type bodyError struct{ err error }

// Error implements error.
func (e *bodyError) Error() string { return "request body: " + e.err.Error() }

// Unwrap returns what the body said.
func (e *bodyError) Unwrap() error { return e.err }
