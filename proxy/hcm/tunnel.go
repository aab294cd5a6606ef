package hcm

import (
	"errors"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/linked"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// tunnel is a stream whose bytes have been given away, as its far side sees it. It
// counts them for the record of the stream, which ends when the tunnel does: in
// hours, maybe. Until then the record is parked if nobody needs it meanwhile.
type tunnel struct {
	netio.Conn
	linked.Node[tunnel] // guarded by the manager's tunnels.mu

	in, out atomic.Uint64
	// state is which side ended first, a nearEnd or farEnd; how many parties still
	// use the stream: its handler, which may be in TakeOver when the tunnel is over
	// already, and the tunnel; and whether that is over.
	state atomic.Uint32
	// departs: the far side needs nothing of the stream once it has taken over.
	departs bool
	code    int16 // of the response, while parked

	st     *stream // nil while parked
	parked parked

	admitted *grounds
	random   uint64
}

// Parts of tunnel.state.
const (
	nearEnd uint32 = 1 << iota
	farEnd
	tunnelOver
	party
	anEnd      = nearEnd | farEnd
	allParties = 2 * party
)

// origin is what parked streams count from: a time.Time has three words.
var origin = time.Now()

// parked is a stream in a tenth of its memory.
type parked struct {
	cn    *conn
	ss    transport.ServerStream
	start time.Duration // of the stream, since origin
	rec   *parkedRecord // nil: nobody will read it
	known *known        // without rec: what filters found out, nil if that is nothing
}

func (p *parked) began() time.Time { return origin.Add(p.start) }

// parkedRecord is what access logs and filters get to see in the end.
type parkedRecord struct {
	info              streaminfo.Packed
	route             filters.Route
	gen               *generation
	random            uint64
	request, response message.Packed
}

// becomeTunnel writes the head of an accepted CONNECT or upgrade and gives the
// bytes to r.Tunnel.
func (st *stream) becomeTunnel(r *filters.Response) {
	st.headersSent = true
	if err := st.ss.WriteHeaders(&r.Header, false); err != nil {
		r.Tunnel.Abandon()
		st.writeFailed(err)
		return
	}
	if err := st.ss.Flush(); err != nil {
		r.Tunnel.Abandon()
		st.writeFailed(err)
		return
	}
	st.request.Stop()
	st.idle.Stop()
	st.idleTimeout = 0
	st.m.st.upgradesTotal.Inc()
	st.m.st.upgradesActive.Add(1)
	t := &tunnel{Conn: st.ss.Tunnel(), st: st}
	st.tunnel = t
	t.state.Store(allParties)
	far := r.Tunnel
	defer func() {
		if p := recover(); p != nil {
			st.reportPanic("panic while taking over a tunnel", p)
			t.Reset()
			st.abandon(far)
			t.done()
		}
	}()
	far.TakeOver(t, t.done)
	_, t.departs = far.(filters.DepartingTunnel)
}

// compactHeads is for heads that wait for the access log.
func (st *stream) compactHeads() {
	id := &st.s.Info.RequestID
	isField := *id != "" && *id == st.s.Request.Get("x-request-id")
	st.s.Request.Compact()
	if isField {
		*id = st.s.Request.Get("x-request-id") // else it keeps the old memory
	}
	if r := st.s.Response; r != nil {
		r.Header.Compact()
	}
}

func (st *stream) abandon(t filters.Tunnel) {
	defer st.contain()
	t.Abandon()
}

// done is called when the tunnel has ended in both directions.
func (t *tunnel) done() {
	if t.state.Or(tunnelOver)&tunnelOver == 0 {
		t.leave()
	}
}

// handlerDone is called when the goroutine of the stream ends.
func (t *tunnel) handlerDone() {
	if st := t.st; t.state.Load() >= allParties {
		m, seen := st.m, st.table
		t.admitted, t.random = m.tunnels.grounds(st.s.Admitted, st.s.Chain()), st.s.Random
		if t.departs && st.parkable() {
			t.st = nil
			t.code = int16(st.s.Info.ResponseCode) // of three digits
			st.park(&t.parked)
		} else {
			st.compactHeads()
		}
		m.tunnels.add(t, seen)
	}
	t.leave()
}

// leave ends the stream with the second of its two parties.
func (t *tunnel) leave() {
	if t.state.Add(^(party - 1)) >= party {
		return
	}
	d := t.manager().tunnels.remove(t)
	st := t.st
	if st == nil {
		st, _ = t.parked.cn.m.pool.Get().(*stream)
		st.tunnel = t
		st.resume(&t.parked, int(t.code))
	}
	st.s.Info.BytesReceived += t.in.Load()
	st.s.Info.BytesSent += t.out.Load()
	if d != nil {
		st.revoked(d)
	} else {
		st.upgradeEnded(t)
	}
	st.m.st.upgradesActive.Add(-1)
	st.finish()
}

// parkable reports whether nobody needs the stream before its end, and the codec
// has let it go.
func (st *stream) parkable() bool {
	s := &st.s
	if s.Info.Protocol != message.HTTP2 || st.traced || st.m.spec.MaxStreamDuration > 0 || s.Route == nil || !s.Unwatched(&st.in) {
		return false
	}
	if chain, own := s.Chain(), s.Route.Chain(); len(own) == 0 || len(chain) != len(own) || &chain[0] != &own[0] {
		return false
	}
	st.ss.OnReset(nil)
	return s.Unwatched(&st.in) // it may just have been interrupted
}

// park moves what is needed in the end to p, and gives the stream back.
func (st *stream) park(p *parked) {
	s := &st.s
	*p = parked{cn: st.cn, ss: st.ss, start: s.Info.Start.Sub(origin)}
	if st.recordIsRead() {
		p.rec = &parkedRecord{route: s.Route, random: s.Random, request: s.Request.Pack(), info: s.Info.Pack(&st.m.places)}
		p.rec.gen, st.gen = st.gen, nil
		if s.Response != nil {
			p.rec.response = s.Response.Header.Pack()
		}
	} else {
		p.known = st.known()
	}
	s.Request, s.NewResponse().Header = message.Header{}, message.Header{} // filter state may hold parts of them
	st.release()
}

// recordIsRead reports whether somebody looks at the record in the end.
func (st *stream) recordIsRead() bool {
	return len(st.m.cfg.AccessLogs) > 0 || slices.ContainsFunc(st.s.Chain(), func(f filters.HTTPFilter) bool {
		_, ok := f.(filters.StreamEnder)
		return ok
	})
}

// resume makes st, which is fresh, the stream again that was parked.
func (st *stream) resume(p *parked, code int) {
	st.cn, st.ss, st.headersSent = p.cn, p.ss, true
	s := &st.s
	s.Renew()
	if r := p.rec; r != nil {
		st.gen = r.gen
		s.SelectRoute(r.route)
		s.Random = r.random
		s.Request.Unpack(r.request)
		s.Response = s.NewResponse()
		s.Response.Header.Unpack(r.response)
		s.Info.Unpack(&r.info)
	} else {
		s.Info.Conn, s.Info.Start, s.Info.ResponseCode, s.Info.Protocol = p.cn.info, p.began(), code, message.HTTP2
	}
	st.in.begin(st, p.ss.Body())
}

// CloseWrite implements netio.Conn.
func (t *tunnel) CloseWrite() error {
	t.endedFirst(farEnd)
	return t.Conn.CloseWrite()
}

// Reset implements netio.Conn.
func (t *tunnel) Reset() {
	t.endedFirst(farEnd)
	t.Conn.Reset()
}

// endedFirst notes that side has ended, if the other has not yet.
func (t *tunnel) endedFirst(side uint32) {
	for {
		v := t.state.Load()
		if v&anEnd != 0 || t.state.CompareAndSwap(v, v|side) {
			return
		}
	}
}

// ended notes that the client has sent all that it will.
func (t *tunnel) ended(err error) {
	if err != nil && !errors.Is(err, netio.ErrWouldBlock) {
		t.endedFirst(nearEnd)
	}
}

// upgradeEnded records how an upgraded stream of HTTP/1 ended: there the end of
// the connection is the only end, and Envoy's record says whose it was.
func (st *stream) upgradeEnded(t *tunnel) {
	info := &st.s.Info
	if info.ResponseCode != http.StatusSwitchingProtocols {
		return
	}
	switch first := t.state.Load() & anEnd; {
	case first == farEnd && info.Upstream.Protocol == message.HTTP11:
		info.Cut = true
		info.Flags = info.Flags.With(streaminfo.UpstreamConnectionTermination)
		setDetails(info, "upstream_reset_after_response_started{connection_termination}")
	case first == nearEnd && info.Protocol != message.HTTP2:
		info.Cut = true
		info.Flags = info.Flags.With(streaminfo.DownstreamConnectionTermination)
		setDetails(info, "downstream_remote_disconnect")
	}
}

// WriteParts implements netio.PartsWriter.
func (t *tunnel) WriteParts(a, b, d []byte) error {
	t.out.Add(uint64(len(a) + len(b) + len(d)))
	return netio.WriteParts(t.Conn, a, b, d)
}

// Probe implements netio.Prober.
func (t *tunnel) Probe() (readable, ended bool) {
	if p, ok := t.Conn.(netio.Prober); ok {
		return p.Probe()
	}
	return false, false
}

// InterruptRead implements netio.ReadInterrupter.
func (t *tunnel) InterruptRead(cause error) { netio.InterruptRead(t.Conn, cause) }

func (t *tunnel) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	t.in.Add(uint64(n))
	t.ended(err)
	return n, err
}

func (t *tunnel) TryRead(p []byte) (int, error) {
	n, err := t.Conn.TryRead(p)
	t.in.Add(uint64(n))
	t.ended(err)
	return n, err
}

func (t *tunnel) Write(p []byte) (int, error) {
	n, err := t.Conn.Write(p)
	t.out.Add(uint64(n))
	return n, err
}

var _ netio.Conn = (*tunnel)(nil)
