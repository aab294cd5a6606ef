package router

import (
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
)

// repeatable tells whether the request, whatever the retry policy, may be sent
// again if a reused connection ended before it brought a byte: the peer closed
// it while the request was on its way (RFC 9112 section 9.3.1). It may if its
// method is safe (RFC 9110 section 9.2.1) and no body moves, for it may have
// been executed.
func (rq *request) repeatable() bool {
	if rq.kind != noTunnel || rq.body.kind == streaming {
		return false
	}
	switch rq.s.Request.Get(message.Method) {
	case "GET", "HEAD", "OPTIONS", "TRACE":
		return true
	}
	return false
}

// stale tells whether st, whose attempt ended with err, was begun on a
// connection that had ended. Connections are looked at before they are used
// from now on.
func (rq *request) stale(st *upstream.Stream, err error) bool {
	rq.opts.RepeatableAt = time.Time{}
	if st == nil || !st.Reused() || st.BytesIn() != 0 {
		return false
	}
	if r := transport.ReasonOf(err); r != 0 && r != transport.ConnectionTermination {
		return false
	}
	st.Ended()
	return true
}

// freeRetry allows one further attempt for a stale connection. Envoy has no such
// attempt.
func (rq *request) freeRetry() bool {
	if rq.freeTried || !rq.repeatable() {
		return false
	}
	rq.freeTried = true
	rq.attempts--
	return true
}
