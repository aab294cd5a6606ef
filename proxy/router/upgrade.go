package router

import (
	"context"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// tunnelKind is whether a request asks for a byte stream, and how it gets one.
type tunnelKind uint8

const (
	noTunnel tunnelKind = iota
	// upgrade is a websocket (or other) upgrade. Codecs show it in HTTP/1 form,
	// whatever the version.
	upgrade
	// connect is a CONNECT that goes on upstream as it is.
	connect
	// terminate is a CONNECT that ends here: its bytes go to a cluster.
	terminate
)

// kindOf classifies s. HCM has refused what the configuration doesn't allow.
func kindOf(s *filters.Stream, a *xdsresource.RouteAction) tunnelKind {
	h := &s.Request
	if h.Get(message.Method) == "CONNECT" {
		for i := range a.Upgrades {
			if u := &a.Upgrades[i]; u.Type == "connect" && u.Connect {
				return terminate
			}
		}
		return connect
	}
	if h.Has("upgrade") && hasToken(h.Get("connection"), "upgrade") {
		return upgrade
	}
	return noTunnel
}

func hasToken(list, token string) bool {
	for list != "" {
		var t string
		t, list, _ = strings.Cut(list, ",")
		if strings.EqualFold(strings.TrimSpace(t), token) {
			return true
		}
	}
	return false
}

// accepted tells whether the response turns the stream into a tunnel.
func (rq *request) accepted(status int) bool {
	switch rq.kind {
	case connect:
		return status >= 200 && status < 300
	case upgrade:
		return status == 101
	case noTunnel, terminate:
	}
	return false
}

// tunnelled makes the response that hands st's bytes over.
func (rq *request) tunnelled(st *upstream.Stream) *filters.Response {
	rq.finishHead(&rq.resp.Header)
	rq.tryTimer.Stop()
	rq.idleTimer.Stop()
	rq.resp.Body = message.NoBody
	rq.held = true
	rq.s.Info.Upstream.Unmetered = st.Version() != message.HTTP2 // whose codec counts on
	rq.resp.Tunnel = &joined{rq: rq, far: st.Tunnel()}
	return rq.resp
}

// terminateConnect connects a CONNECT request to a host of its cluster.
func (rq *request) terminateConnect() (*filters.Response, bool, error) {
	var far netio.Conn
	if !rq.c.CanTakeOver(rq.host) {
		err := rq.blocking(func(ctx context.Context) (err error) {
			far, err = rq.c.Connect(ctx, rq.host, &rq.opts)
			return err
		})
		if err != nil {
			return rq.failed(err)
		}
		defer func() {
			if !rq.held { // a panic
				far.Reset()
			}
		}()
		rq.s.Info.Upstream.Local = far.LocalAddr()
	}
	s := rq.s
	rq.resp = s.NewResponse()
	rq.resp.Header.Add(message.Status, "200")
	s.Info.Details, s.Info.ResponseCode = "via_upstream", 200
	s.Info.FirstUpstreamRx = time.Now()
	s.Info.Upstream.Relayed = true
	rq.c.CountCode(200, fromInside(s))
	rq.c.Status(rq.host, 200)
	rq.retry.settle(rq.c, rq.high, true)
	rq.route.FinalizeResponse(s, rq.resp)
	rq.held = true
	if far != nil {
		rq.resp.Tunnel = &joined{rq: rq, far: far}
	} else {
		rq.resp.Tunnel = &handover{rq: rq}
	}
	return rq.resp, false, nil
}

// joined copies between downstream and far.
type joined struct {
	rq  *request
	far netio.Conn
	// taken: TakeOver or Abandon was called.
	taken bool
}

// TakeOver implements filters.Tunnel. It returns at once.
func (t *joined) TakeOver(c netio.Conn, done func()) {
	t.taken = true
	g := &tunnelGuard{c, t.far}
	o := netio.JoinOptions{}
	if d := t.rq.action.IdleTimeout; d != nil {
		o.IdleTimeout = *d
	}
	if err := t.rq.s.Guard(g); err != nil {
		c.Reset()
		t.far.Reset()
		t.end(false, done)
		return
	}
	netio.JoinAsync(c, t.far, o, func(_, _ uint64, err error) {
		t.rq.s.Unguard(g)
		t.end(err == nil, done)
	})
}

func (t *joined) end(complete bool, done func()) {
	t.rq.s.Info.LastUpstreamRx = time.Now()
	t.rq.drop(complete)
	t.rq.release()
	done()
}

// Abandon implements filters.Tunnel.
func (t *joined) Abandon() {
	if t.taken {
		return
	}
	t.taken = true
	t.far.Reset()
	t.rq.drop(false)
	t.rq.release()
}

// tunnelGuard ends a tunnel when its stream is interrupted.
type tunnelGuard struct{ near, far netio.Conn }

// Interrupt implements filters.Interrupter.
func (g *tunnelGuard) Interrupt(cause error) {
	g.near.Interrupt(cause)
	g.far.Interrupt(cause)
}

// handover gives the downstream bytes to an internal listener.
type handover struct {
	rq    *request
	taken bool
}

// TakeOver implements filters.Tunnel.
func (t *handover) TakeOver(c netio.Conn, done func()) {
	// The request goes first: a tunnel may be idle for hours, and may be over
	// before TakeOver returns.
	t.taken = true
	cluster, host, opts, log := t.rq.c, t.rq.host, t.rq.opts, t.rq.f.log
	t.rq.release()
	if err := cluster.TakeOver(host, c, &opts, done); err != nil {
		log.Warn("CONNECT can't be handed over", "cluster", cluster.Name(), "host", host.String(), "error", err)
		cluster.Failed(host, upstream.FailureConnect)
		c.Reset()
		done()
	}
}

// Departs implements filters.DepartingTunnel.
func (t *handover) Departs() {}

// Abandon implements filters.Tunnel.
func (t *handover) Abandon() {
	if !t.taken {
		t.taken = true
		t.rq.release()
	}
}
