package istiometrics

import (
	"strconv"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/grpccount"
	"github.com/fairlead-mesh/fairlead/filters/internal/peers"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/internal/timer"
)

// Request reports a request that ended. messages, if not nil, is what
// WatchMessages returned.
func (ms *Metrics) Request(s *filters.Stream, r *filters.Response, messages *Messages) {
	info := &s.Info
	e := ms.ends(info, &s.Request)
	proto := protoHTTP
	if info.IsGRPC {
		proto = protoGRPC
	}
	k := ms.key(&e, proto)
	var trailers *message.Header
	if r != nil && r.Body != nil {
		trailers = r.Body.Trailers()
	}
	if info.IsGRPC {
		k.grpc = grpcStatus(r, trailers)
	}
	var h *requestHandles
	var exprs []string
	if len(ms.exprs) > 0 {
		c := format.Context{Info: info, Request: &s.Request, Trailers: trailers}
		if r != nil {
			c.Response = &r.Header
		}
		exprs = ms.evaluate(&c, &k)
		h = ms.requests.Get(k, func(k key) *requestHandles { return ms.requestHandles(&e, &k, exprs) })
	} else {
		h = ms.requests.Get(k, func(k key) *requestHandles { return ms.requestHandles(&e, &k, nil) })
	}
	h.requests.Inc()
	h.duration.Observe(float64(info.End.Sub(info.Start) / time.Millisecond))
	h.received.Observe(float64(info.WireBytesReceived))
	h.sent.Observe(float64(info.WireBytesSent))
	switch {
	case messages != nil:
		messages.stop(ms.messageHandles(&e, exprs, k))
	case info.IsGRPC:
		if c := grpccount.Of(&info.FilterState); c != nil {
			mh := ms.messageHandles(&e, exprs, k)
			requests, responses := mh.counters()
			requests.Add(c.Request.Load())
			responses.Add(c.Response.Load())
		}
	}
}

// grpcStatus returns the status in trailers or header, -1 if there is none.
func grpcStatus(r *filters.Response, trailers *message.Header) int {
	var v string
	if trailers != nil {
		v = trailers.Get("grpc-status")
	}
	if v == "" && r != nil {
		v = r.Header.Get("grpc-status")
	}
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		return -1
	}
	return int(n)
}

// Messages reports the messages of a gRPC stream while it lasts. It is a
// filter-state object so that the end of the stream finds it.
type Messages struct {
	counts                    *grpccount.Counts
	h                         *messageHandles
	interval                  time.Duration
	timer                     timer.Timer
	tickFn                    func()
	mu                        sync.Mutex
	seenRequests, seenReplies uint64
	ticked, stopped           bool
}

// Serialize returns "": the object is internal.
func (*Messages) Serialize() string { return "" }

// Field knows none.
func (*Messages) Field(string) (string, bool) { return "", false }

// WatchMessages starts periodic reports on the messages of s, whose response has
// begun; its labels stay from the first one on. It returns nil if there is nothing
// to watch.
func (ms *Metrics) WatchMessages(s *filters.Stream) *Messages {
	c := grpccount.Of(&s.Info.FilterState)
	if c == nil || ms.interval <= 0 {
		return nil
	}
	e := ms.ends(&s.Info, &s.Request)
	ms.lookup(&e)
	k := ms.key(&e, protoGRPC)
	exprs := ms.evaluate(&format.Context{Info: &s.Info, Request: &s.Request}, &k)
	h := ms.messageHandles(&e, exprs, k)
	m := &Messages{counts: c, h: h, interval: ms.interval}
	m.tickFn = m.tick
	m.timer.Arm(m.interval, m.tickFn)
	return m
}

func (m *Messages) tick() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return
	}
	m.ticked = true
	m.report()
	m.timer.Arm(m.interval, m.tickFn)
}

func (m *Messages) report() {
	rq, rs := m.counts.Request.Load(), m.counts.Response.Load()
	requests, responses := m.h.counters()
	requests.Add(rq - m.seenRequests)
	responses.Add(rs - m.seenReplies)
	m.seenRequests, m.seenReplies = rq, rs
}

// stop makes the last report. If it is the first one as well, it has the labels
// of the end, when also the destination's workload is known.
func (m *Messages) stop(end *messageHandles) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopped = true
	if !m.ticked {
		m.h = end
	}
	m.timer.Stop()
	m.report()
}

// Connection reports on one TCP connection. It is a filter-state object.
type Connection struct {
	ms             *Metrics
	h              *connectionHandles
	sent, received uint64
}

// Serialize returns "": the object is internal.
func (*Connection) Serialize() string { return "" }

// Field knows none.
func (*Connection) Field(string) (string, bool) { return "", false }

// NewConnection starts the record of a connection.
func (ms *Metrics) NewConnection() *Connection { return &Connection{ms: ms} }

// Report adds what happened since the last report. The first one counts the
// connection as opened and fixes its labels: it waits for a peer that is to tell
// who it is over the connection, but not beyond the end.
func (c *Connection) Report(info *streaminfo.Info, end bool) {
	if c.h == nil {
		if !end && peers.Awaited(info, c.ms.peerKey()) {
			return
		}
		e := c.ms.ends(info, nil)
		k := c.ms.key(&e, protoTCP)
		exprs := c.ms.evaluate(&format.Context{Info: info}, &k)
		c.h = c.ms.connections.Get(k, func(k key) *connectionHandles { return c.ms.connectionHandles(&e, &k, exprs) })
		c.h.opened.Inc()
	}
	sent, received := max(info.WireBytesSent, info.BytesSent), max(info.WireBytesReceived, info.BytesReceived)
	c.h.sent.Add(sent - c.sent)
	c.h.received.Add(received - c.received)
	c.sent, c.received = sent, received
	if end {
		c.h.closed.Inc()
	}
}
