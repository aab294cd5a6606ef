package hbone

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/transport/h2"
)

// Config is a Dialer's configuration.
type Config struct {
	// TLS returns the client configuration for a new connection to t. It must
	// verify the peer.
	TLS func(t *Target) *tls.Config
	// Transport are the HTTP/2 parameters.
	Transport Transport
	// MaxStreams bounds the streams on one connection, 100; a peer's lower
	// limit holds. When a connection is full a further one is opened.
	MaxStreams uint32
	// ConnectTimeout bounds the TCP connect, 10 s; HandshakeTimeout the TLS
	// handshake, 10 s.
	ConnectTimeout, HandshakeTimeout time.Duration
	// IdleTimeout closes a connection without streams, 5 min.
	IdleTimeout time.Duration
	// Socket are the options of the TCP connections. Source is set from the
	// target's key.
	Socket netio.DialOptions
	// Connect replaces netio.Dial.
	Connect func(ctx context.Context, addr netip.AddrPort, o netio.DialOptions) (netio.Conn, error)
}

const (
	defaultMaxStreams = 100
	defaultTimeout    = 10 * time.Second
	defaultIdle       = 5 * time.Minute
	// TCP keepalive of ztunnel.
	keepaliveTime  = 180 * time.Second
	keepaliveCount = 9
	// maxConnectHead bounds the answer to CONNECT.
	maxConnectHead = 16 << 10
)

// Dialer opens tunnelled streams over pooled connections. Safe for concurrent
// use.
type Dialer struct {
	cfg    Config
	ctx    context.Context //nolint:containedctx // ends the connection attempts at Close
	cancel context.CancelFunc

	mu     sync.Mutex
	pools  map[poolID]*pool
	closed bool
	gen    uint64
}

type poolID struct {
	addr netip.AddrPort
	key  PoolKey
}

// pool is the connections that may carry one kind of stream; Dialer.mu guards it.
type pool struct {
	id      poolID
	conns   []*pooled // the newest last
	attempt *attempt  // at most one at a time
}

// attempt is a connection being made; whoever needs one waits for it.
type attempt struct {
	done  chan struct{}
	err   error
	stage atomic.Pointer[string]
}

var errClosed = errors.New("hbone: dialer is closed")

// NewDialer returns a Dialer; Close releases its connections.
func NewDialer(c Config) *Dialer {
	c.Transport = c.Transport.withDefaults()
	c.MaxStreams = cmp.Or(c.MaxStreams, defaultMaxStreams)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, defaultTimeout)
	c.HandshakeTimeout = cmp.Or(c.HandshakeTimeout, defaultTimeout)
	c.IdleTimeout = cmp.Or(c.IdleTimeout, defaultIdle)
	if c.Socket.KeepaliveIdle == 0 {
		c.Socket.KeepaliveIdle, c.Socket.KeepaliveInterval, c.Socket.KeepaliveCount = keepaliveTime, keepaliveTime, keepaliveCount
	}
	if c.Connect == nil {
		c.Connect = netio.Dial
	}
	d := &Dialer{cfg: c, pools: make(map[poolID]*pool)}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// Dial opens a stream; ctx bounds connect, handshake and the CONNECT answer.
// resp, if not nil, receives the CONNECT response head. Errors are *StatusError
// or *DialError.
//
// If a pooled connection turns out to be dead, the CONNECT is repeated once on a
// new one: nothing but the CONNECT can have been sent. A CONNECT that a peer
// which goes away has provably not looked at is repeated, too, a few times.
func (d *Dialer) Dial(ctx context.Context, t *Target, resp *message.Header) (netio.Conn, error) {
	after := uint64(0)
	for try := 1; ; try++ {
		cs, gen, fresh, err := d.stream(ctx, t, after)
		if err != nil {
			return nil, err
		}
		c, err := connect(ctx, cs, t, resp)
		if err == nil {
			return c, nil
		}
		if ctx.Err() != nil || !repeatable(err, fresh, try) {
			return nil, err
		}
		after = gen
	}
}

// maxTries bounds how often a refused CONNECT is sent.
const maxTries = 5

func repeatable(err error, fresh bool, try int) bool {
	r := transport.ReasonOf(err)
	return r == transport.RemoteRefused && try < maxTries || r == transport.ConnectionTermination && !fresh && try == 1
}

// stream returns a stream on a pooled connection younger than after, or on a new
// one; fresh reports that it is the first stream of its connection.
func (d *Dialer) stream(ctx context.Context, t *Target, after uint64) (cs transport.ClientStream, gen uint64, fresh bool, err error) {
	id := poolID{t.Address, t.Key}
	for {
		d.mu.Lock()
		if d.closed {
			d.mu.Unlock()
			return nil, 0, false, errClosed
		}
		p := d.pools[id]
		if p == nil {
			p = &pool{id: id}
			d.pools[id] = p
		}
		if pc, cs := p.take(after); cs != nil {
			fresh := !pc.used
			pc.used = true
			d.mu.Unlock()
			return cs, pc.gen, fresh, nil
		}
		a := p.attempt
		if a == nil {
			a = &attempt{done: make(chan struct{})}
			a.at(stageConnect)
			p.attempt = a
			tt := *t
			go d.open(p, a, &tt)
		}
		d.mu.Unlock()
		select {
		case <-a.done:
			if a.err != nil {
				return nil, 0, false, a.err
			}
		case <-ctx.Done():
			return nil, 0, false, d.stageError(t, *a.stage.Load(), ctx.Err())
		}
	}
}

// take starts a stream on the newest connection that has room.
func (p *pool) take(after uint64) (*pooled, transport.ClientStream) {
	for _, pc := range slices.Backward(p.conns) {

		if pc.gen <= after {
			continue
		}
		if cs, err := pc.cc.NewStream(); err == nil {
			pc.idle.Stop()
			return pc, cs
		}
	}
	return nil, nil
}

const (
	stageConnect   = "connect"
	stageHandshake = "tls handshake"
	stageCONNECT   = "CONNECT"
)

func (a *attempt) at(stage string) { a.stage.Store(&stage) }

func (d *Dialer) stageError(t *Target, stage string, cause error) error {
	e := &DialError{Stage: stage, Address: t.Address, Cause: cause}
	if stage == stageConnect && timedOut(cause) {
		e.Hint = fmt.Sprintf("connection timed out, maybe a NetworkPolicy is blocking HBONE port %d", t.Address.Port())
	}
	return e
}

func timedOut(err error) bool {
	var te interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &te) && te.Timeout()
}

// open makes a connection for p. It goes on if the one that asked for it gives
// up: others may wait, and the next one finds it in the pool.
func (d *Dialer) open(p *pool, a *attempt, t *Target) {
	pc, err := d.dial(a, t)
	d.mu.Lock()
	p.attempt = nil
	switch {
	case err != nil:
		a.err = err
		d.sweep(p)
	case d.closed:
		a.err = errClosed
	default:
		d.gen++
		pc.gen, pc.p = d.gen, p
		p.conns = append(p.conns, pc)
	}
	closed := d.closed
	d.mu.Unlock()
	close(a.done)
	if pc == nil {
		return
	}
	if closed {
		pc.cc.Drain()
		return
	}
	pc.start()
}

// sweep forgets an empty pool. mu is held.
func (d *Dialer) sweep(p *pool) {
	if len(p.conns) == 0 && p.attempt == nil && d.pools[p.id] == p {
		delete(d.pools, p.id)
	}
}

func (d *Dialer) dial(a *attempt, t *Target) (*pooled, error) {
	ctx, cancel := context.WithTimeout(d.ctx, d.cfg.ConnectTimeout)
	defer cancel()
	o := d.cfg.Socket
	if t.Key.Source.IsValid() {
		o.Source = netip.AddrPortFrom(t.Key.Source, 0)
	}
	nc, err := d.cfg.Connect(ctx, t.Address, o)
	if err != nil {
		return nil, d.stageError(t, stageConnect, err)
	}
	a.at(stageHandshake)
	pc := &pooled{d: d}
	if pc.cc, err = d.secure(d.ctx, nc, t, pc.config(d)); err != nil {
		return nil, err
	}
	return pc, nil
}

// secure runs the handshake on nc and starts HTTP/2; it closes nc on error.
func (d *Dialer) secure(ctx context.Context, nc netio.Conn, t *Target, cfg *transport.ClientConfig) (transport.ClientConn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.HandshakeTimeout)
	defer cancel()
	tc, err := netio.ClientTLS(ctx, nc, d.cfg.TLS(t))
	if err != nil {
		return nil, d.stageError(t, stageHandshake, err)
	}
	cc, err := h2.NewClient(tc, cfg)
	if err != nil {
		_ = tc.Close()
		return nil, d.stageError(t, stageHandshake, err)
	}
	return cc, nil
}

// DialOver opens a stream over outer: TLS, HTTP/2 and CONNECT inside it (double
// HBONE). The inner connection is never pooled, because all streams of the outer
// pool would end at the same peer; it ends with its stream. outer belongs to the
// returned Conn, and is closed on error.
func (d *Dialer) DialOver(ctx context.Context, outer netio.Conn, t *Target, resp *message.Header) (netio.Conn, error) {
	cfg := d.clientConfig()
	cc, err := d.secure(ctx, outer, t, cfg)
	if err != nil {
		return nil, err
	}
	cs, err := cc.NewStream()
	if err != nil {
		cc.Close(err)
		return nil, d.stageError(t, stageCONNECT, err)
	}
	cc.Drain() // when the stream has ended
	c, err := connect(ctx, cs, t, resp)
	if err != nil {
		cc.Close(err)
		return nil, err
	}
	return c, nil
}

func (d *Dialer) clientConfig() *transport.ClientConfig {
	tr := d.cfg.Transport
	return &transport.ClientConfig{
		MaxHeaderBytes:      maxConnectHead,
		InitialStreamWindow: tr.StreamWindow, InitialConnWindow: tr.ConnWindow, MaxFrameSize: tr.FrameSize,
		MaxConcurrentStreams: d.cfg.MaxStreams,
		KeepaliveInterval:    tr.KeepaliveInterval, KeepaliveTimeout: tr.KeepaliveTimeout,
	}
}

// Close drains all connections: streams go on, none can be opened.
func (d *Dialer) Close() {
	d.mu.Lock()
	d.closed = true
	var all []*pooled
	for _, p := range d.pools {
		all = append(all, p.conns...)
	}
	d.mu.Unlock()
	d.cancel()
	for _, pc := range all {
		pc.idle.Stop()
		pc.cc.Drain()
	}
}

// Stats returns how many connections and streams are open.
func (d *Dialer) Stats() (conns, streams int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.pools {
		conns += len(p.conns)
		for _, pc := range p.conns {
			streams += pc.cc.Active()
		}
	}
	return conns, streams
}
