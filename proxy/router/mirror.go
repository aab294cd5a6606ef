package router

import (
	"bytes"
	"context"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
)

// pendingMirror is a copy of a request that will be sent to another cluster.
type pendingMirror struct {
	c      *upstream.Cluster
	header *message.Header
}

// planMirrors draws which mirror policies apply. The copies of a request whose
// body is here already are sent at once, the others when the body has been
// collected, if it is within the buffer limit.
func (rq *request) planMirrors() {
	policies := rq.route.Mirrors()
	if len(policies) == 0 || rq.kind != noTunnel {
		return
	}
	for i := range policies {
		m := &policies[i]
		if m.Fraction < 1 && rand.Float64() >= m.Fraction {
			continue
		}
		name := m.Cluster
		if m.ClusterHeader != "" {
			name = rq.s.Request.Get(m.ClusterHeader)
		}
		c := rq.f.d.Clusters.Cluster(name)
		if c == nil {
			continue
		}
		h := &message.Header{}
		h.CopyFrom(&rq.s.Request)
		if !m.DisableShadowHostSuffix {
			h.Set(message.Authority, shadowHost(h.Get(message.Authority)))
		}
		if v := rq.t.expected(0); v > 0 && !rq.f.cfg.SuppressEnvoyHeaders {
			h.Set(hdrExpected, rq.number(h, v.Milliseconds()))
		}
		rq.mirrors = append(rq.mirrors, pendingMirror{c, h})
	}
	if rq.body.kind != streaming {
		rq.sendMirrors(rq.body.chunk, rq.body.trailers)
	}
}

// shadowHost appends "-shadow" to the host of an authority.
func shadowHost(a string) string {
	if i := strings.LastIndexByte(a, ':'); i > strings.LastIndexByte(a, ']') {
		return a[:i] + "-shadow" + a[i:]
	}
	return a + "-shadow"
}

// mirrorTimeout bounds a mirrored request if the route has no timeout.
const mirrorTimeout = 15 * time.Second

// sendMirrors sends the planned copies on goroutines of their own; their
// responses are read and dropped.
func (rq *request) sendMirrors(body []byte, trailers *message.Header) {
	if len(rq.mirrors) == 0 {
		return
	}
	body = bytes.Clone(body)
	var t *message.Header
	if trailers != nil {
		t = &message.Header{}
		t.CopyFrom(trailers)
	}
	timeout := rq.t.route
	if timeout <= 0 {
		timeout = mirrorTimeout
	}
	opts := upstream.ConnectOptions{Version: rq.opts.Version, High: rq.high}
	for _, m := range rq.mirrors {
		select {
		case rq.f.mirrors <- struct{}{}:
			go rq.f.mirror(m, body, t, opts, timeout)
		default:
			m.c.Count(upstream.EventAbandoned)
		}
	}
	rq.mirrors = nil
}

func (f *Filter) mirror(m pendingMirror, body []byte, trailers *message.Header, opts upstream.ConnectOptions, timeout time.Duration) {
	defer func() { <-f.mirrors }()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	h, err := m.c.Pick(&upstream.PickContext{})
	if err != nil {
		return
	}
	opts.Authority = m.header.Get(message.Authority)
	st, err := m.c.NewStream(ctx, h, &opts)
	if err != nil {
		m.c.Failed(h, upstream.FailureConnect)
		return
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		st.Interrupt(errRouteTimeout)
		close(interrupted)
	})
	err = discard(m.c, h, st, m.header, body, trailers)
	if !stop() {
		<-interrupted
		m.c.Count(upstream.EventTimeout)
	}
	if err != nil {
		m.c.Failed(h, upstream.FailureReset)
		st.Reset()
	}
	st.Release()
}

// discard sends a request and reads its response without keeping it.
func discard(c *upstream.Cluster, host *upstream.Host, st *upstream.Stream, head *message.Header, body []byte, trailers *message.Header) error {
	end := len(body) == 0 && trailers == nil
	if err := st.WriteHeaders(head, end); err != nil {
		return err
	}
	if !end {
		if err := write(st, body, true, trailers); err != nil {
			return err
		}
	}
	var h message.Header
	for {
		h.Reset()
		status, end, err := st.ReadHeaders(&h)
		if err != nil {
			return err
		}
		if status < 200 {
			continue
		}
		c.CountCode(status, true) // as what this proxy asks by itself
		c.Status(host, status)
		if end {
			return nil
		}
		break
	}
	b := st.Body()
	defer b.Close()
	for {
		if _, last, err := b.Next(); err != nil || last {
			return err
		}
	}
}
