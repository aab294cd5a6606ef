package hbone

import (
	"context"
	"sync"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// heads are reused: a CONNECT takes one for the request and maybe one for the
// answer.
var heads = sync.Pool{New: func() any { return new(message.Header) }}

func getHead() *message.Header {
	return heads.Get().(*message.Header) //nolint:errcheck,forcetypeassert // the pool holds nothing else
}

func putHead(h *message.Header) {
	h.Reset()
	heads.Put(h)
}

// connect sends CONNECT on cs and awaits the answer. cs belongs to connect.
func connect(ctx context.Context, cs transport.ClientStream, t *Target, resp *message.Header) (netio.Conn, error) {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		cs.Interrupt(ctx.Err())
		close(interrupted)
	})
	status, err := exchange(cs, t, resp)
	if !stop() {
		<-interrupted // cs may not be touched after Release
		if err == nil {
			err = ctx.Err()
		}
	}
	if err != nil {
		cs.Release()
		return nil, &DialError{Stage: stageCONNECT + " " + t.Authority + " via", Address: t.Address, Cause: err}
	}
	if status < 200 || status > 299 {
		cs.Release()
		return nil, &StatusError{Status: status, Authority: t.Authority, Address: t.Address}
	}
	c := cs.Tunnel()
	cs.Release()
	return c, nil
}

func exchange(cs transport.ClientStream, t *Target, resp *message.Header) (status int, err error) {
	h := getHead()
	defer putHead(h)
	h.Add(message.Method, "CONNECT")
	h.Add(message.Authority, t.Authority)
	for _, f := range t.Headers {
		h.AddField(f)
	}
	if err := cs.WriteHeaders(h, false); err != nil {
		return 0, err
	}
	// The peer may have answered and stopped the stream already; ReadHeaders
	// tells, and fails if it has not answered.
	_ = cs.Flush()
	if resp == nil {
		resp = getHead()
		defer putHead(resp)
	}
	for status < 200 {
		resp.Reset()
		if status, _, err = cs.ReadHeaders(resp); err != nil {
			return 0, err
		}
	}
	return status, nil
}
