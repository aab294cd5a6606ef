package listener

import (
	"context"
	"errors"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Opener is implemented by terminal filters that can open their upstream
// without having a downstream connection to copy from: tcp_proxy. It is what
// fuses an internal hop: whoever dials the internal listener gets the upstream
// stream itself.
type Opener interface {
	// Open connects upstream on behalf of c, whose Conn is nil. The returned
	// connection ends c's record when it is closed.
	Open(ctx context.Context, c *filters.Connection) (netio.Conn, error)
}

// ErrNoSuchListener means that no listener can be dialled under that name.
var ErrNoSuchListener = errors.New("internal listener is not configured")

// Dial connects to an internal listener. info holds the addresses and filter
// state that cross the hop. If the chain that takes the connection is a plain
// byte relay, the relay is left out and its upstream connection returned;
// otherwise the two ends are joined by an in-memory pipe. A test holds both
// forms equal.
func (l *Listener) Dial(ctx context.Context, info *streaminfo.Conn) (netio.Conn, error) {
	cur := l.current.Load()
	if cur == nil {
		return nil, ErrNoSuchListener
	}
	if cn, chain := l.fusable(cur, info); cn != nil {
		return l.open(ctx, cur, cn, chain)
	}
	return l.pipe(cur, info), nil
}

// DialPipe is Dial without the short cut.
func (l *Listener) DialPipe(info *streaminfo.Conn) (netio.Conn, error) {
	cur := l.current.Load()
	if cur == nil {
		return nil, ErrNoSuchListener
	}
	return l.pipe(cur, info), nil
}

func (l *Listener) pipe(cur *compiled, info *streaminfo.Conn) netio.Conn {
	near, far := netio.Pipe(info.Remote, info.Local)
	go l.serve(cur, far, info, func() {})
	return near
}

// fusable runs the listener filters, which must not need bytes, and picks the
// chain; it returns nil if the connection must be served in the general way.
func (l *Listener) fusable(cur *compiled, ci *streaminfo.Conn) (*connection, *Chain) {
	probe := filters.Connection{}
	cn := &connection{l: l, done: func() {}}
	cn.info.Conn = ci
	probe.Info = &cn.info
	if needsPeek(cur, &probe) {
		return nil, nil
	}
	ci.ListenerName = l.name
	ci.Start = time.Now()
	cn.info.Start = ci.Start
	cn.info.FilterState.Reset(&ci.FilterState)
	cn.fc = filters.Connection{Info: &cn.info}
	for i := range cur.cfg.ListenerFilters {
		f := &cur.cfg.ListenerFilters[i]
		if f.Disabled != nil && predicate(f.Disabled, ci) {
			continue
		}
		if err := f.Filter.OnAccept(&cn.fc); err != nil {
			return nil, nil
		}
	}
	defaultTransport(ci)
	chain := cur.selector.pick(ci)
	if chain == nil || chain.Broken != "" || chain.TLS != nil {
		return nil, nil
	}
	if _, ok := chain.Terminal.(Opener); !ok {
		return nil, nil
	}
	for _, f := range chain.Network {
		if s, ok := f.(interface{ NeedsConn() bool }); !ok || s.NeedsConn() {
			return nil, nil
		}
	}
	return cn, chain
}

func (l *Listener) open(ctx context.Context, cur *compiled, cn *connection, chain *Chain) (netio.Conn, error) {
	ci := cn.info.Conn
	ci.FilterChainName = chain.Name
	l.active.Add(1)
	l.st.cxTotal.Inc()
	l.st.cxActive.Add(1)
	for _, f := range chain.Network {
		cn.passed++
		if err := f.OnNewConnection(&cn.fc); err != nil {
			cn.chain = chain
			cn.endFused()
			return nil, err
		}
	}
	op, _ := chain.Terminal.(Opener)
	up, err := op.Open(ctx, &cn.fc)
	if err != nil {
		cn.chain = chain
		cn.endFused()
		cur.debug("internal hop failed", "listener", l.name, "local", ci.Local, "error", err)
		return nil, err
	}
	fc := &fusedConn{Conn: up, cn: cn}
	cn.fc.Conn = up
	chain.add(cn)
	return fc, nil
}

// endFused is end without a connection to close.
func (cn *connection) endFused() {
	if !cn.ended.CompareAndSwap(false, true) {
		return
	}
	if ch := cn.chain; ch != nil {
		for i := cn.passed - 1; i >= 0; i-- {
			if e, ok := ch.Network[i].(filters.ConnectionEnder); ok {
				e.OnConnectionEnd(&cn.fc)
			}
		}
		ch.remove(cn)
	}
	cn.l.active.Add(-1)
	cn.l.st.cxActive.Add(-1)
}

// fusedConn ends the listener's record with the connection.
type fusedConn struct {
	netio.Conn
	cn *connection
}

// Close implements netio.Conn.
func (f *fusedConn) Close() error {
	err := f.Conn.Close()
	f.cn.endFused()
	return err
}

// Reset implements netio.Conn.
func (f *fusedConn) Reset() {
	f.Conn.Reset()
	f.cn.endFused()
}
