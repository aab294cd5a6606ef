package hcm

import (
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// requestBody is the codec's body with the record kept: bytes, completion, idle
// timer.
type requestBody struct {
	st       *stream
	b        message.Body
	complete atomic.Bool // read by the writer of the response
	closed   bool
	err      error
}

func (r *requestBody) begin(st *stream, b message.Body) {
	r.st, r.b, r.closed, r.err = st, b, false, nil
	r.complete.Store(b == message.NoBody)
}

// Next implements message.Body.
func (r *requestBody) Next() ([]byte, bool, error) {
	p, last, err := r.b.Next()
	st := r.st
	st.s.Info.BytesReceived += uint64(len(p))
	if last && err == nil {
		r.ended()
		st.touchAt(st.s.Info.RequestComplete)
		return p, true, nil
	}
	st.touch()
	if err != nil {
		if cause := st.s.Cause(); cause != nil {
			err = cause
		}
		r.err = err
		return nil, false, err
	}
	return p, false, nil
}

// ended notes that the request is complete.
func (r *requestBody) ended() {
	if !r.complete.Swap(true) {
		r.st.s.Info.RequestComplete = r.st.s.Info.Now()
		r.st.request.Stop()
	}
}

// Ready implements message.Body.
func (r *requestBody) Ready() (int, bool) {
	n, last := r.b.Ready()
	if n == 0 && last {
		r.ended() // nobody needs to ask for nothing
	}
	return n, last
}

// Trailers implements message.Body: those that may pass, whatever the version;
// nil if none is left.
func (r *requestBody) Trailers() *message.Header {
	t := r.b.Trailers()
	for i := 0; t != nil && i < t.Len(); i++ {
		if message.ForbiddenRequestTrailer(t.At(i).Name) {
			t.DelFunc(func(f message.Field) bool { return message.ForbiddenRequestTrailer(f.Name) })
			break
		}
	}
	if t != nil && t.Len() == 0 {
		return nil
	}
	return t
}

// Interrupt implements filters.Interrupter: a Next that waits for the client,
// on whatever goroutine, fails with cause. Codecs' bodies can do that.
func (r *requestBody) Interrupt(cause error) {
	if i, ok := r.b.(filters.Interrupter); ok {
		i.Interrupt(cause)
	}
}

// Close implements message.Body.
func (r *requestBody) Close() {
	if !r.closed && r.b != nil {
		r.closed = true
		r.b.Close()
	}
}
