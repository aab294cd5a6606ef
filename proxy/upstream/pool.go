package upstream

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/linked"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/internal/timer"
	"github.com/fairlead-mesh/fairlead/proxy/tlscontext"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// protocol is what a pool speaks. Connections of an auto pool speak what ALPN
// chose.
type protocol uint8

const (
	http1 protocol = iota
	http2
	httpAuto
	protocols
)

var alpnOf = [protocols][]string{http1: {"http/1.1"}, http2: {"h2"}, httpAuto: {"h2", "http/1.1"}}

// poolKey keeps apart streams that must not share a connection.
type poolKey struct {
	proto       protocol
	high        bool
	sni, verify string
	alpn        string // that the stream demands
	// shared is what crosses an internal hop, or a PROXY header.
	shared string
	source netip.AddrPort
}

// pool holds the connections to one host for one key. A connection that can
// take a stream is in ready, the one used last on top, so that surplus ones
// age out.
type pool struct {
	c   *Cluster
	st  *hostState
	key poolKey
	b   *breaker

	mu         sync.Mutex
	host       *Host
	last       *ConnectOptions // what the last connection was made with
	ready      []*pooledConn
	all        map[*pooledConn]struct{}
	connecting int
	waiters    linked.List[waiter, *waiter]
	trust      int // see trustAfter
	draining   bool
	sweeping   bool
	sweep      timer.Timer
	onSweep    func()
}

// pooledConn is one upstream HTTP connection.
type pooledConn struct {
	transport.ClientConn
	resumer   transport.Resumer // nil if it has none
	p         *pool
	multiplex bool
	// made: the codec is there, before nothing but OnClose may touch pc.
	made      bool // guarded by pool.mu
	inReady   bool // guarded by pool.mu
	closed    bool // guarded by pool.mu
	retired   bool // guarded by pool.mu: takes no further streams
	streams   atomic.Int32
	served    atomic.Uint32
	idleSince atomic.Int64
	start     time.Time
	local     netip.AddrPort
	tls       *streaminfo.TLS
	state     *streaminfo.FilterState
	peer      *peer
	duration  timer.Timer
	one       Stream // the only one at a time, unless multiplex
}

// protocolFor resolves the protocol that a stream uses.
func (c *Cluster) protocolFor(o *ConnectOptions) protocol {
	if o.HTTP2 {
		return http2
	}
	switch c.spec.HTTP.Version {
	case xdsresource.UpstreamHTTP2:
		return http2
	case xdsresource.UpstreamDownstreamProtocol:
		if o.Version == message.HTTP2 {
			return http2
		}
	case xdsresource.UpstreamAuto:
		return httpAuto
	case xdsresource.UpstreamHTTP1:
	}
	return http1
}

// poolFor returns the pool that a stream with o uses.
func (c *Cluster) poolFor(h *Host, o *ConnectOptions) *pool {
	key := poolKey{proto: c.protocolFor(o), high: o.High, source: o.Source}
	if key.proto == httpAuto && h.socket.TLS == nil {
		key.proto = http1 // no ALPN to choose by
	}
	if h.socket.TLS != nil {
		key.sni, key.verify = c.names(h, o)
		key.alpn = o.ALPN
	}
	if h.socket.Internal != nil && o.FilterState != nil {
		key.shared = sharedKey(o.FilterState)
	}
	if h.socket.ProxyProtocol != 0 && o.Conn != nil {
		key.shared += o.Conn.Remote.String() + "|" + o.Conn.Local.String()
	}
	prio := 0
	if o.High {
		prio = 1
	}
	if key.sni == "" && key.verify == "" && key.alpn == "" && key.shared == "" && !key.source.IsValid() {
		slot := &h.st.fast[prio][key.proto]
		if p := slot.Load(); p != nil {
			return p
		}
		return h.st.install(slot, c.newPool(h, key))
	}
	h.st.mu.Lock()
	defer h.st.mu.Unlock()
	p := h.st.keyed[key]
	if p == nil {
		if h.st.keyed == nil {
			h.st.keyed = map[poolKey]*pool{}
		}
		key.sni, key.verify = strings.Clone(key.sni), strings.Clone(key.verify)
		key.alpn = strings.Clone(key.alpn)
		p = c.newPool(h, key)
		h.st.keyed[key] = p
	}
	return p
}

// sharedKey renders what crosses an internal hop; streams with different
// values must not share a connection.
func sharedKey(fs *streaminfo.FilterState) string {
	shared := fs.Shared()
	if shared == nil {
		return ""
	}
	var b strings.Builder
	for k, v := range shared.All {
		b.WriteString(k)
		b.WriteByte(0)
		b.WriteString(v.Serialize())
		b.WriteByte(0)
	}
	return b.String()
}

func (c *Cluster) newPool(h *Host, key poolKey) *pool {
	p := &pool{c: c, st: h.st, host: h, key: key, b: c.breaker(key.high), all: map[*pooledConn]struct{}{}, draining: h.st.removed.Load()}
	p.onSweep = func() { go p.sweepIdle() }
	return p
}

// Errors of the circuit breakers; the detail is the threshold.
var (
	errMaxRequests    = &transport.ResetError{Reason: transport.Overflow, Detail: "max_requests"}
	errMaxPending     = &transport.ResetError{Reason: transport.Overflow, Detail: "max_pending_requests"}
	errMaxConnections = &transport.ResetError{Reason: transport.Overflow, Detail: "max_connections"}
)

// TryStream starts an exchange with h on a connection that is ready. It returns
// nil without an error if there is none: NewStream then waits for one. It
// does not block.
func (c *Cluster) TryStream(h *Host, o *ConnectOptions) (*Stream, error) {
	return c.poolFor(h, o).try(o.RepeatableAt)
}

// NewStream starts an HTTP exchange with h on a pooled connection, waiting for
// a connection within connect_timeout; circuit breakers apply. Errors are
// *transport.ResetError; the end of ctx is its cause.
func (c *Cluster) NewStream(ctx context.Context, h *Host, o *ConnectOptions) (*Stream, error) {
	p := c.poolFor(h, o)
	if s, err := p.try(o.RepeatableAt); s != nil || err != nil {
		return s, err
	}
	return p.wait(ctx, h, o)
}

// try takes a stream on a ready connection. at is ConnectOptions.RepeatableAt.
func (p *pool) try(at time.Time) (*Stream, error) {
	for {
		p.mu.Lock()
		n := len(p.ready)
		if n == 0 || p.waiters.Len() > 0 { // nobody overtakes those who wait
			p.mu.Unlock()
			return nil, nil
		}
		pc := p.ready[n-1]
		if !pc.multiplex {
			p.removeReady(pc)
		}
		blind := p.trusts(pc, at)
		p.mu.Unlock()
		if !p.b.requests.take() {
			if !pc.multiplex {
				p.offer(pc)
			}
			s := p.c.stats()
			s.rqActiveOverflow.Inc()
			return nil, errMaxRequests
		}
		if s := pc.begin(blind); s != nil {
			s.reused = true // or it has lain there since it was made
			return s, nil
		}
		p.b.requests.give()
	}
}

// begin starts a stream on pc; the caller has taken a request from the
// breaker. nil means that pc can't take it and is out of ready. blind leaves out
// the look whether the peer has ended pc.
func (pc *pooledConn) begin(blind bool) *Stream {
	p := pc.p
	start := pc.NewStream
	if blind && pc.resumer != nil {
		start = pc.resumer.Resume
	}
	cs, err := start()
	if err != nil {
		full := pc.multiplex && transport.ReasonOf(err) == transport.Overflow
		p.mu.Lock()
		p.trust = trustLost
		p.removeReady(pc)
		pc.retired = pc.retired || !full
		p.mu.Unlock()
		switch {
		case !full:
			pc.Drain() // ended, or going away
		case pc.Available() > 0:
			p.offer(pc) // capacity came back in between
		}
		return nil
	}
	pc.streams.Add(1)
	served := pc.served.Add(1)
	if limit := p.maxRequests(); limit > 0 && served >= limit {
		p.retire(pc)
		p.c.stats().cxMaxRequests.Inc()
	}
	s := &pc.one
	if pc.multiplex {
		s, _ = streams.Get().(*Stream)
	}
	s.ClientStream, s.pc, s.reused, s.ended = cs, pc, served > 1, false
	p.st.rqActive.Add(1)
	p.st.rqTotal.Add(1)
	st := p.c.stats()
	st.rqTotal.Inc()
	st.rqActive.Add(1)
	return s
}

func (p *pool) maxRequests() uint32 {
	if n := p.c.spec.HTTP.MaxRequestsPerConnection; n > 0 {
		return n
	}
	return p.c.spec.MaxRequestsPerConnection
}

// removeReady takes pc out of ready. The caller holds p.mu.
func (p *pool) removeReady(pc *pooledConn) {
	if !pc.inReady {
		return
	}
	pc.inReady = false
	for i, v := range slices.Backward(p.ready) {
		if v == pc {
			copy(p.ready[i:], p.ready[i+1:])
			p.ready[len(p.ready)-1] = nil
			p.ready = p.ready[:len(p.ready)-1]
			return
		}
	}
}

// offer gives pc, which can take a stream, to whoever waits, or makes it ready.
func (p *pool) offer(pc *pooledConn) {
	p.mu.Lock()
	if !pc.made || pc.closed || pc.retired {
		p.mu.Unlock()
		return
	}
	idle := pc.streams.Load() == 0
	if p.draining && p.waiters.Len() == 0 && idle {
		pc.retired = true
		p.removeReady(pc)
		p.mu.Unlock()
		pc.Close(nil)
		return
	}
	// A multiplexing connection serves as many as it can; each that gets it
	// offers it again if there is room.
	w := p.waiters.PopFront()
	if w == nil || pc.multiplex {
		if !pc.inReady {
			pc.inReady = true
			p.ready = append(p.ready, pc)
		}
	}
	if w == nil && idle {
		p.armSweep()
	}
	p.mu.Unlock()
	if w != nil {
		w.ch <- result{pc: pc}
	}
}

// markIdle notes that pc is idle since t, or since a later time noted before.
func (pc *pooledConn) markIdle(t time.Time) {
	if d := int64(t.Sub(pc.start)); d > pc.idleSince.Load() {
		pc.idleSince.Store(d)
	}
}

// onIdle is the codec's word that a stream was released and pc has room.
func (pc *pooledConn) onIdle(transport.ClientConn) {
	pc.p.offer(pc)
}

// onClose is the codec's word that pc has ended.
func (pc *pooledConn) onClose(_ transport.ClientConn, err error) {
	p := pc.p
	p.mu.Lock()
	if pc.closed {
		p.mu.Unlock()
		return
	}
	pc.closed = true
	p.removeReady(pc)
	delete(p.all, pc)
	p.mu.Unlock()
	pc.duration.Stop()
	p.c.leave(pc.peer)
	p.b.connections.give()
	p.st.cxActive.Add(-1)
	s := p.c.stats()
	s.cxActive.Add(-1)
	s.destroyed(byPeer(err), pc.streams.Load() > 0)
	if transport.ReasonOf(err) == transport.ProtocolError {
		s.cxProtocolError.Inc()
	}
	s.cxLengthMS.ObserveMillis(time.Since(pc.start))
	p.mu.Lock()
	p.connectLocked(nil)
	p.mu.Unlock()
	p.leave()
}

// dialed makes a connection that was established usable.
func (p *pool) dialed(conn *connection) (*pooledConn, error) {
	pc := &pooledConn{p: p, start: time.Now(), local: conn.LocalAddr(), state: conn.state}
	if cs := conn.TLS(); cs != nil {
		pc.tls = tlscontext.Info(cs)
	}
	pc.peer = p.c.join(conn)
	pc.multiplex = p.key.proto == http2 || p.key.proto == httpAuto && conn.alpn == "h2"
	cfg := p.c.spec.HTTP.Client
	cfg.OnIdle, cfg.OnClose = pc.onIdle, pc.onClose
	s := p.c.stats()
	// The codec may call back before its constructor returns.
	p.mu.Lock()
	if pc.multiplex {
		s.cxHTTP2.Inc()
	} else {
		s.cxHTTP1.Inc()
	}
	p.all[pc] = struct{}{}
	p.mu.Unlock()
	s.cxActive.Add(1)
	p.st.cxActive.Add(1)
	pc.markIdle(pc.start)
	var cc transport.ClientConn
	if !pc.multiplex {
		cc = p.c.m.opt.HTTP1(conn.Conn, &cfg)
	} else {
		var err error
		if cc, err = p.c.m.opt.HTTP2(conn.Conn, &cfg); err != nil {
			conn.Reset()
			pc.onClose(nil, err)
			return nil, &transport.ResetError{Reason: transport.ConnectionFailure, Detail: err.Error()}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pc.ClientConn, pc.made = cc, true
	if !pc.multiplex {
		pc.resumer, _ = cc.(transport.Resumer)
	}
	if d := p.c.spec.HTTP.MaxConnectionDuration; d > 0 && !pc.closed {
		pc.duration.Arm(d, func() {
			p.c.stats().cxMaxDuration.Inc()
			go p.retire(pc)
		})
	}
	return pc, nil
}
