// Package listener accepts connections, runs listener filters, picks the
// filter chain and hands the connection to it. An internal listener is the same
// without a socket: a function call with a connection.
//
// A connection keeps the filter chain that it was given for its life. Replacing
// a listener's configuration keeps its sockets and those chains that are equal;
// the others drain.
package listener

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/overload"
	"github.com/fairlead-mesh/fairlead/internal/refusal"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/internal/usage"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// ServerTLS is what a chain needs of a downstream TLS context.
type ServerTLS interface {
	// Config returns the configuration for the next handshake.
	Config() (*tls.Config, error)
	// Describe turns a finished handshake into what streams may ask about it.
	Describe(cs *tls.ConnectionState) *streaminfo.TLS
}

// AccessLogger records connections when they have ended, also those that no
// chain took and those whose handshake failed.
type AccessLogger interface {
	Log(c *format.Context)
}

// Config is a compiled listener.
type Config struct {
	Spec            *xdsresource.Listener
	ListenerFilters []ListenerFilter
	Chains          []*Chain
	Default         *Chain
	AccessLogs      []AccessLogger
	// LogUsers, if not nil, counts the connections that AccessLogs will hear of.
	LogUsers *usage.Count
	// Refusals records connections that are turned away; may be nil.
	Refusals *refusal.Recorder
	Stats    *stats.Scope
	Logger   *slog.Logger
	// Overload, if not nil, refuses connections of sockets while memory is short.
	Overload *overload.Monitor
	// DrainTime bounds how long connections of a replaced chain live on.
	DrainTime time.Duration
}

// ListenerFilter is a compiled listener filter with its predicate.
//
//nolint:revive // the term of the field; a Filter is something else here
type ListenerFilter struct {
	Filter   filters.ListenerFilter
	Disabled *xdsresource.ListenerFilterPredicate
}

// Listener is a running listener. Its configuration is replaced by Update.
type Listener struct {
	name    string
	current atomic.Pointer[compiled]
	mu      sync.Mutex
	sockets map[netip.AddrPort]*netio.Listener
	// retired are sockets that take what the kernel has accepted for them.
	retired map[*netio.Listener]bool
	// accepting counts the sockets whose accept has not ended.
	accepting atomic.Int64
	// stopped says that no socket is bound any more.
	stopped, closed bool
	wg              sync.WaitGroup
	// replaced are chains of former configurations that may have connections,
	// formers listeners of the same name that were removed; heir is the one of
	// which l is a former.
	replaced []*Chain
	formers  []*Listener
	heir     atomic.Pointer[Listener]
	active   atomic.Int64
	st       listenerStats
}

type listenerStats struct {
	cxTotal, cxDestroy, noChain, filterTimeout, filterError, sslError *stats.Counter
	overloadReject                                                    *stats.Counter
	cxActive                                                          *stats.Gauge
}

type compiled struct {
	cfg      Config
	selector *selector
	tell     *telling
}

var connIDs atomic.Uint64

// NextConnectionID returns a number that is unique in this process.
func NextConnectionID() uint64 { return connIDs.Add(1) }

// New prepares a listener without binding anything; Update does.
func New(name string) *Listener {
	return &Listener{name: name, sockets: map[netip.AddrPort]*netio.Listener{}, retired: map[*netio.Listener]bool{}}
}

// Name returns the configured name.
func (l *Listener) Name() string { return l.name }

// Addresses returns the bound addresses, with real ports.
func (l *Listener) Addresses() []netip.AddrPort {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]netip.AddrPort, 0, len(l.sockets))
	for _, s := range l.sockets {
		out = append(out, s.Addr())
	}
	return out
}

// Config returns the configuration in force, nil before the first Update.
func (l *Listener) Config() *Config {
	if c := l.current.Load(); c != nil {
		return &c.cfg
	}
	return nil
}

// Update installs cfg. New sockets are bound first: if one can't be, nothing
// changes and the error says which. Sockets that stay are not touched. Chains of
// the former configuration that cfg doesn't hold any more drain.
func (l *Listener) Update(cfg Config) error {
	sel, err := newSelector(&cfg)
	if err != nil {
		return fmt.Errorf("listener %s: %w", l.name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("listener %s: %w", l.name, netio.ErrClosed)
	}
	added, err := l.bind(&cfg)
	if err != nil {
		return err
	}
	if l.st.cxTotal == nil {
		sc := cfg.Stats
		l.st = listenerStats{
			cxTotal: sc.Counter("downstream_cx_total"), cxDestroy: sc.Counter("downstream_cx_destroy"), noChain: sc.Counter("no_filter_chain_match"),
			filterTimeout: sc.Counter("downstream_pre_cx_timeout"), filterError: sc.Counter("downstream_listener_filter_error"),
			overloadReject: sc.Counter("downstream_cx_overload_reject"),
			sslError:       sc.Counter("ssl_connection_error"), cxActive: sc.Gauge("downstream_cx_active"),
		}
	}
	old := l.current.Swap(&compiled{cfg, sel, &telling{cfg.AccessLogs, cfg.Refusals, cfg.LogUsers}})
	for a, s := range added {
		l.sockets[a] = s
		l.accepting.Add(1)
		l.wg.Go(func() { l.accept(s) })
	}
	wanted := map[netip.AddrPort]bool{}
	for _, a := range cfg.Spec.Addresses {
		wanted[a] = true
	}
	for a, s := range l.sockets {
		if !wanted[a] {
			l.retire(a, s)
		}
	}
	l.replaced = slices.DeleteFunc(l.replaced, func(c *Chain) bool { return c.Active() == 0 })
	if old != nil {
		l.replaced = append(l.replaced, drainReplaced(&old.cfg, &cfg)...)
	}
	l.reviewLocked()
	return nil
}

// chainsOf lists all chains of cfg.
func chainsOf(cfg *Config) []*Chain {
	if cfg.Default == nil {
		return cfg.Chains
	}
	return append(slices.Clip(cfg.Chains), cfg.Default)
}

// bind opens the sockets of cfg that aren't open yet.
func (l *Listener) bind(cfg *Config) (map[netip.AddrPort]*netio.Listener, error) {
	added := map[netip.AddrPort]*netio.Listener{}
	if cfg.Spec.Internal || !cfg.Spec.BindToPort || l.stopped {
		return added, nil
	}
	for _, a := range cfg.Spec.Addresses {
		if l.sockets[a] != nil {
			continue
		}
		s, err := netio.Listen(a, netio.ListenOptions{ReusePort: cfg.Spec.ReusePort, Transparent: cfg.Spec.Transparent, FreeBind: cfg.Spec.FreeBind, Backlog: cfg.Spec.TCPBacklog, V6Only: !cfg.Spec.IPv4Compat})
		if err != nil {
			for _, s := range added {
				_ = s.Close()
			}
			return nil, fmt.Errorf("listener %s: bind %s: %w (is another process listening there, or does the port need a privilege?)", l.name, a, err)
		}
		added[a] = s
	}
	return added, nil
}

// drainReplaced drains the chains of old that cfg doesn't hold, and returns them.
func drainReplaced(old, cfg *Config) (replaced []*Chain) {
	kept := map[*Chain]bool{cfg.Default: true}
	for _, c := range cfg.Chains {
		kept[c] = true
	}
	for _, c := range chainsOf(old) {
		if !kept[c] {
			c.Drain(cfg.DrainTime)
			replaced = append(replaced, c)
		}
	}
	return replaced
}

// Drain asks every chain to end its connections in order; after drainTime the
// rest is cut. New connections are still accepted (Envoy's drain_listeners
// closes the sockets by StopAccepting).
func (l *Listener) Drain(drainTime time.Duration) {
	c := l.current.Load()
	if c == nil {
		return
	}
	for _, ch := range chainsOf(&c.cfg) {
		ch.Drain(drainTime)
	}
}

// Close stops accepting and cuts every connection.
func (l *Listener) Close() {
	l.StopAccepting()
	l.mu.Lock()
	l.closed = true
	replaced := l.replaced
	l.replaced = nil
	for s := range l.retired {
		_ = s.Close()
	}
	l.mu.Unlock()
	for _, ch := range replaced {
		ch.cut()
	}
	if c := l.current.Load(); c != nil {
		for _, ch := range chainsOf(&c.cfg) {
			ch.cut()
		}
	}
	l.wg.Wait()
}

// Active is the number of connections.
func (l *Listener) Active() int64 { return l.active.Load() }

func (l *Listener) accept(s *netio.Listener) {
	defer l.forget(s)
	for {
		c, err := s.Accept()
		if err != nil {
			if !errors.Is(err, netio.ErrClosed) {
				if cfg := l.Config(); cfg != nil && cfg.Logger != nil {
					cfg.Logger.Error("accept failed, the listener stopped", "listener", l.name, "error", err)
				}
			}
			return
		}
		if cur := l.current.Load(); cur.cfg.Overload.RefusesConnections() {
			l.st.overloadReject.Inc()
			c.Reset()
			continue
		}
		info := &streaminfo.Conn{ID: NextConnectionID(), Local: c.LocalAddr(), Remote: c.RemoteAddr(), DirectRemote: c.RemoteAddr()}
		go l.serve(l.take(), c, info, func() {})
	}
}

// Serve takes a connection that did not come through a socket: the stream of an
// internal hop. info holds addresses and shared filter state; done is called
// once when the connection has ended. It may return before that.
func (l *Listener) Serve(c netio.Conn, info *streaminfo.Conn, done func()) {
	cur := l.take()
	if cur == nil {
		c.Reset()
		done()
		return
	}
	l.serve(cur, c, info, done)
}

func (l *Listener) serve(cur *compiled, c netio.Conn, ci *streaminfo.Conn, done func()) {
	if cn := l.enter(cur, c, ci, done); cn != nil {
		cn.serve(cur)
	}
}

// enter runs a connection, which take has begun, up to the terminal filter of its chain. nil means that
// it was refused, and has ended.
func (l *Listener) enter(cur *compiled, c netio.Conn, ci *streaminfo.Conn, done func()) *connection {
	spec := cur.cfg.Spec
	ci.ListenerName, ci.ListenerMetadata, ci.ListenerDirection, ci.BufferLimit = l.name, &spec.Metadata, spec.Direction, spec.PerConnectionBufferLimit
	ci.Start = time.Now()
	l.st.cxTotal.Inc()
	l.st.cxActive.Add(1)
	cn := &connection{l: l, done: done, raw: c, conn: c, info: ci, tell: cur.tell}
	cn.rec = newRecord(cn)
	if !cn.enter(cur) {
		return nil
	}
	return cn
}

// enter is the part of it that runs code of filters. It reports whether the
// connection has arrived at its terminal filter.
func (cn *connection) enter(cur *compiled) (entered bool) {
	defer cn.cutByPanic(cur, &entered)
	l, ci, fc := cn.l, cn.info, &cn.rec.fc
	err := l.runListenerFilters(cur, fc)
	cn.conn = fc.Conn
	if err != nil {
		cn.refuse(cur, err)
		return false
	}
	defaultTransport(ci)
	chain := cur.selector.pick(ci)
	if chain == nil || chain.Broken != "" {
		cn.noChain(cur, chain)
		return false
	}
	ci.FilterChainName, ci.FilterChainMetadata = chain.Name, chain.Metadata
	chain.add(cn)
	err = chain.handshake(fc, ci)
	cn.conn = fc.Conn
	if err != nil {
		l.st.sslError.Inc()
		ci.TransportFailureReason = err.Error()
		cur.debug("tls handshake failed", "listener", l.name, "chain", chain.Name, "remote", ci.Remote, "error", err)
		cn.end()
		return false
	}
	for _, f := range chain.Network {
		cn.passed++
		err := cn.admit(cur, f)
		cn.conn = fc.Conn
		if err != nil {
			cn.deny(cur, err)
			return false
		}
	}
	return cn.settle(cur)
}

// defaultTransport names the transport that no inspector found to be TLS, as
// Envoy does before it matches.
func defaultTransport(ci *streaminfo.Conn) {
	if ci.TransportProtocol == "" {
		ci.TransportProtocol = "raw_buffer"
	}
}

func (c *compiled) debug(msg string, args ...any) {
	if c.cfg.Logger != nil {
		c.cfg.Logger.Debug(msg, args...)
	}
}

// end closes the books of a connection; it is called once by the terminal
// filter, or when the connection was refused.
func (cn *connection) end() {
	if !cn.ended.CompareAndSwap(false, true) {
		return
	}
	cn.close()
	small := cn.rec == nil
	if small {
		cn.rec = newRecord(cn)
	}
	if ch := cn.chain; ch != nil {
		cn.refused(ch.Network[cn.passed:])
		for i := cn.passed - 1; i >= 0; i-- {
			if e, ok := ch.Network[i].(filters.ConnectionEnder); ok {
				cn.endFilter(e)
			}
		}
		ch.remove(cn)
	}
	cn.record()
	cn.log()
	if small {
		cn.dropRecord()
	}
	if u := cn.tell.users; u != nil {
		u.Leave()
	}
	cn.l.active.Add(-1)
	cn.l.st.cxActive.Add(-1)
	cn.l.st.cxDestroy.Inc()
	cn.done()
}

func (cn *connection) close() {
	defer cn.contain("closing a connection")
	_ = cn.conn.Close()
}

// record tells of a connection that was turned away.
func (cn *connection) record() {
	defer cn.contain("recording a refused connection")
	if v := cn.revoked.Load(); v != nil {
		cn.rec.info.Revoke(v)
	}
	cn.tell.refusals.Connection(&cn.rec.info)
}

// deny ends a connection that a network filter refused.
func (cn *connection) deny(cur *compiled, err error) {
	info := &cn.rec.info
	if d, ok := errors.AsType[*filters.Denied](err); ok {
		cn.info.TerminationDetails = d.Details
		info.Flags = info.Flags.With(d.Flag)
		info.Decision = d.Decision
	} else {
		cn.info.TerminationDetails = "network_filter_error"
	}
	cur.debug("connection refused", "listener", cn.l.name, "chain", cn.chain.Name, "remote", cn.info.Remote, "reason", err)
	cn.unserved()
}

// unserved ends a connection that its terminal filter never got.
func (cn *connection) unserved() {
	cn.rec.info.End = time.Now()
	if lg, ok := cn.chain.Terminal.(interface{ LogRefused(c *filters.Connection) }); ok {
		lg.LogRefused(&cn.rec.fc)
	}
	cn.conn.Reset()
	cn.end()
}

func (cn *connection) refuse(cur *compiled, err error) {
	cn.l.st.filterError.Inc()
	cur.debug("connection closed before a filter chain was chosen", "listener", cn.l.name, "remote", cn.info.Remote, "error", err)
	cn.end()
}

// noChain closes a connection that no chain takes, and says so in the log.
func (cn *connection) noChain(cur *compiled, broken *Chain) {
	cn.l.st.noChain.Inc()
	info := &cn.rec.info
	info.Flags = info.Flags.With(streaminfo.NoRouteFound)
	info.Details, info.Cut = "filter_chain_not_found", true
	if broken != nil {
		cn.info.FilterChainName, cn.info.FilterChainMetadata = broken.Name, broken.Metadata
		info.Details = "filter_chain_not_executable"
		if cur.cfg.Logger != nil {
			cur.cfg.Logger.Warn("connection closed: its filter chain can't be executed", "listener", cn.l.name, "chain", broken.Name, "reason", broken.Broken)
		}
	}
	cn.conn.Reset()
	cn.end()
}

// log writes the listener's own access log.
func (cn *connection) log() {
	if len(cn.tell.logs) == 0 {
		return
	}
	defer cn.contain("a listener's access log")
	info := &cn.rec.info
	if info.End.IsZero() {
		info.End = time.Now()
	}
	ctx := format.Context{Info: info}
	for _, lg := range cn.tell.logs {
		lg.Log(&ctx)
	}
}
