package hcm

import (
	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// requestBody is the codec's body with the record kept: bytes, completion, idle
// timer.
type requestBody struct {
	st       *stream
	b        message.Body
	complete bool
	closed   bool
	err      error
}

func (r *requestBody) begin(st *stream, b message.Body) {
	*r = requestBody{st: st, b: b, complete: b == message.NoBody}
}

// Next implements message.Body.
func (r *requestBody) Next() ([]byte, bool, error) {
	p, last, err := r.b.Next()
	st := r.st
	st.s.Info.BytesReceived += uint64(len(p))
	st.touch()
	if err != nil {
		if cause := st.s.Cause(); cause != nil {
			err = cause
		}
		r.err = err
		return nil, false, err
	}
	if last && !r.complete {
		r.complete = true
		st.s.Info.RequestComplete = st.s.Info.Now()
		st.request.Stop()
	}
	return p, last, nil
}

// Ready implements message.Body.
func (r *requestBody) Ready() (int, bool) { return r.b.Ready() }

// Trailers implements message.Body.
func (r *requestBody) Trailers() *message.Header { return r.b.Trailers() }

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
