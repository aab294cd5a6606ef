// Package tcpproxy is the terminal network filter for opaque bytes: it joins a
// downstream connection with a connection to a host of a cluster, or with a
// CONNECT stream on one (tunneling_config, how HBONE leaves a proxy).
package tcpproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/internal/timer"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
	"github.com/fairlead-mesh/fairlead/routing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Clusters finds running clusters. *upstream.Manager implements it.
type Clusters interface {
	Cluster(name string) *upstream.Cluster
}

// AccessLogger writes one line. *accesslog.Logger implements it.
type AccessLogger interface {
	Log(c *format.Context)
}

// Deps is what a Filter works with. Only Clusters is needed.
type Deps struct {
	Clusters   Clusters
	AccessLogs []AccessLogger
	// Stats is the scope of this filter's counters ("envoy_tcp_" with its
	// stat_prefix as label).
	Stats  *stats.Scope
	Logger *slog.Logger
}

// Filter is a compiled tcp_proxy. It is immutable and serves all connections
// of its chain.
type Filter struct {
	cfg   *xdsresource.TCPProxy
	d     Deps
	log   *slog.Logger
	total uint64
	// headers are the edits of the tunnel's request, nil without.
	headers *routing.Mutations

	cxTotal, cxNoRoute, cxTx, cxRx, idleTimeout, maxDuration *stats.Counter
	cxActive                                                 *stats.Gauge
}

// New compiles cfg. The error says what can't be executed; the chain must then
// refuse its connections.
func New(cfg *xdsresource.TCPProxy, d Deps) (filters.TerminalFilter, error) {
	f := &Filter{cfg: cfg, d: d, log: d.Logger}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	for i := range cfg.Weighted {
		f.total += uint64(cfg.Weighted[i].Weight)
	}
	switch {
	case cfg.Cluster == "" && len(cfg.Weighted) == 0:
		return nil, errors.New("tcp_proxy: neither cluster nor weighted_clusters is set")
	case cfg.Cluster == "" && f.total == 0:
		return nil, errors.New("tcp_proxy: weighted_clusters: the weights add up to 0")
	case cfg.Tunneling != nil && cfg.Tunneling.Hostname == nil:
		return nil, errors.New("tcp_proxy: tunneling_config: hostname is missing")
	}
	if t := cfg.Tunneling; t != nil {
		f.headers = routing.CompileMutations(&xdsresource.HeaderMutations{Add: t.Headers})
	}
	c := d.Stats.Counter
	f.cxTotal, f.cxNoRoute, f.cxTx, f.cxRx = c("downstream_cx_total"), c("downstream_cx_no_route"), c("downstream_cx_tx_bytes_total"), c("downstream_cx_rx_bytes_total")
	f.idleTimeout, f.maxDuration = c("idle_timeout"), c("max_downstream_connection_duration")
	f.cxActive = d.Stats.Gauge("downstream_cx_active")
	return f, nil
}

// Serve implements filters.TerminalFilter. It returns when upstream is
// connected, or has failed to be.
func (f *Filter) Serve(c *filters.Connection, done func()) {
	f.cxTotal.Inc()
	f.cxActive.Add(1)
	s := &session{f: f, c: c, info: c.Info, done: done}
	s.info.Cut = true // bytes have no end that is a response's
	defer s.cutByPanic(nil)
	s.run()
}

// cutByPanic is deferred around the time until the connection has its upstream.
// instead, if not nil, is then set to a stream that has ended.
func (s *session) cutByPanic(instead *netio.Conn) {
	p := recover()
	if p == nil {
		return
	}
	s.reportPanic("panic while connecting", p)
	s.c.Reset()
	if !s.finished {
		s.finish()
	}
	if instead != nil {
		*instead = ended(s.info.Conn.Remote, s.info.Conn.Local)
	}
}

// contain is deferred around what tells of the connection.
func (s *session) contain() {
	if p := recover(); p != nil {
		s.reportPanic("panic while recording a connection", p)
	}
}

func (s *session) reportPanic(msg string, p any) {
	s.f.log.Error(msg, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
}

// finish closes the books.
func (s *session) finish() {
	s.finished = true
	s.f.cxActive.Add(-1)
	s.info.End = time.Now()
	if v := s.c.Revoked(); v != nil {
		s.info.Revoke(v)
	}
	s.log()
	s.done()
}

// refuse ends a connection that has no upstream.
func (s *session) refuse() {
	_ = s.c.Close()
	s.finish()
}

// session is one connection.
type session struct {
	f       *Filter
	c       *filters.Connection
	info    *streaminfo.Info
	done    func()
	cluster *upstream.Cluster
	host    *upstream.Host
	// finished: the books are closed.
	finished bool
	stream   *upstream.Stream // of a tunnel
	expired  atomic.Bool
	// bytesUp and bytesDown are the progress that periodic log lines show.
	bytesUp, bytesDown atomic.Uint64
	duration           timer.Timer
	watch              watch
}

func (s *session) run() {
	far := s.upstream()
	if far == nil {
		s.refuse()
		return
	}
	s.connected()
	s.join(far)
}

// upstream connects to the cluster; nil means that it could not, and Info says
// why.
func (s *session) upstream() netio.Conn {
	f, info := s.f, s.info
	name := f.route(info)
	if s.cluster = f.d.Clusters.Cluster(name); s.cluster == nil {
		f.cxNoRoute.Inc()
		f.log.Warn("tcp_proxy: no such cluster", "cluster", name, "listener", info.Conn.ListenerName, "chain", info.Conn.FilterChainName)
		info.Flags = info.Flags.With(streaminfo.NoClusterFound)
		return nil
	}
	u := &info.Upstream
	u.Cluster, u.ClusterRaw, u.ClusterMetadata = s.cluster.StatName(), s.cluster.Name(), &s.cluster.Spec().Metadata
	far, err := s.connect()
	if err != nil {
		f.log.Debug("tcp_proxy: no connection", "cluster", name, "flags", info.Flags.String(), "error", err)
		return nil
	}
	return far
}

// connected tells those who wait for it that there is an upstream.
func (s *session) connected() {
	s.tellConnected()
	if s.f.cfg.FlushOnConnected {
		s.logInfo(s.info, format.LogTCPUpstreamConnected)
	}
	s.observe()
}

func (s *session) tellConnected() {
	defer s.contain()
	s.c.Connected()
}

// clusterKey is the filter-state object by which filters name the cluster.
const clusterKey = "envoy.tcp_proxy.cluster"

// route chooses the cluster: one named by a filter, the only one, or by weight.
func (f *Filter) route(info *streaminfo.Info) string {
	if n := info.FilterState.GetString(clusterKey); n != "" {
		return n
	}
	if f.cfg.Cluster != "" {
		return f.cfg.Cluster
	}
	x := rand.Uint64N(f.total)
	for i := range f.cfg.Weighted {
		w := &f.cfg.Weighted[i]
		if x < uint64(w.Weight) {
			return w.Name
		}
		x -= uint64(w.Weight)
	}
	return "" // not reached: x is less than the sum
}

// connect makes up to max_connect_attempts.
func (s *session) connect() (netio.Conn, error) {
	info := s.info
	p := upstream.PickContext{Conn: info.Conn, Info: info}
	p.Hash, p.HasHash = s.f.hash(info)
	o := upstream.ConnectOptions{Conn: info.Conn, Info: info, FilterState: &info.FilterState}
	o.Demand(&info.FilterState)
	attempts := max(1, int(s.f.cfg.MaxConnectAttempts))
	for {
		host, err := s.cluster.Pick(&p)
		if err != nil {
			info.Flags = info.Flags.With(streaminfo.NoHealthyUpstream)
			if errors.Is(err, upstream.ErrDNS) {
				info.Flags = info.Flags&^streaminfo.NoHealthyUpstream | streaminfo.DNSResolutionFailed
			}
			return nil, err
		}
		info.AttemptCount++
		s.describe(host)
		far, err := s.dial(host, &o)
		if err == nil {
			s.cluster.Status(host, 200)
			return far, nil
		}
		if transport.ReasonOf(err) == transport.Overflow {
			info.Flags = info.Flags.With(streaminfo.UpstreamOverflow)
			info.Limit = "circuit breaker max_connections"
			info.AttemptCount-- // as in Envoy, it wasn't made
			info.Upstream.Host, info.Upstream.HostName, info.Upstream.HostMetadata = "", "", nil
			return nil, err
		}
		s.cluster.Failed(host, upstream.FailureConnect)
		if re, ok := errors.AsType[*transport.ResetError](err); ok {
			info.Upstream.TransportFailureReason = strings.ReplaceAll(re.Detail, " ", "_")
		}
		if info.AttemptCount >= attempts {
			info.Flags = info.Flags.With(streaminfo.UpstreamConnectionFailure | streaminfo.UpstreamRetryLimitExceeded)
			s.cluster.Count(upstream.EventConnectAttemptsExceeded)
			return nil, err
		}
	}
}

func (s *session) describe(h *upstream.Host) {
	s.host = h
	u := &s.info.Upstream
	u.Host, u.Address, u.Locality, u.HostMetadata = h.String(), h.Address(), h.Locality, &h.Endpoint.Metadata
	u.Local, u.TLS, u.TransportFailureReason, u.Relayed, u.State = netip.AddrPort{}, nil, "", false, nil
	u.HostName = h.Endpoint.DisplayHost
}

// hash is hash_policy: the client's address, or a filter-state object.
func (f *Filter) hash(info *streaminfo.Info) (uint64, bool) {
	switch {
	case f.cfg.HashSourceIP:
		a := info.Conn.Remote.Addr()
		if !a.IsValid() {
			return 0, false
		}
		return xxhash.Sum64String(a.Unmap().String()), true
	case f.cfg.HashFilterStateKey != "":
		if v := info.FilterState.Get(f.cfg.HashFilterStateKey); v != nil {
			return xxhash.Sum64String(v.Serialize()), true
		}
	}
	return 0, false
}

// dial opens the byte stream to host: a connection, or a tunnel on one.
func (s *session) dial(host *upstream.Host, o *upstream.ConnectOptions) (netio.Conn, error) {
	if s.f.cfg.Tunneling != nil {
		return s.tunnel(host, o)
	}
	far, err := s.cluster.Connect(context.Background(), host, o)
	if err != nil {
		return nil, err
	}
	s.info.Upstream.Local, s.info.Upstream.Relayed, s.info.Upstream.State = far.LocalAddr(), true, upstream.StateOf(far)
	return far, nil
}

var errMaxDuration = errors.New("tcpproxy: max connection duration reached")

// join has bytes copied both ways until both have ended.
func (s *session) join(far netio.Conn) {
	f, near := s.f, s.c.Conn
	if d := f.cfg.MaxConnectionDuration; d > 0 {
		s.duration.Arm(d, func() {
			s.expired.Store(true)
			near.Interrupt(errMaxDuration)
			far.Interrupt(errMaxDuration)
		})
	}
	stop := s.flushLogs()
	o := netio.JoinOptions{IdleTimeout: f.cfg.IdleTimeout, OnBytes: s.progress()}
	netio.JoinAsync(near, far, o, func(up, down uint64, err error) {
		stop()
		s.joined(up, down, err)
	})
}

// joined records how the connection ended.
func (s *session) joined(up, down uint64, err error) {
	f, info := s.f, s.info
	s.duration.Stop()
	s.watch.end()
	info.LastUpstreamRx = time.Now()
	info.BytesReceived, info.BytesSent = up, down
	info.WireBytesReceived, info.WireBytesSent = up, down
	f.cxRx.Add(up)
	f.cxTx.Add(down)
	if s.stream != nil {
		if err != nil {
			s.stream.Reset()
		}
		s.released(s.stream)
		s.stream = nil
	}
	switch {
	case s.expired.Load():
		f.maxDuration.Inc()
		info.Flags = info.Flags.With(streaminfo.DurationTimeout)
		info.LocalClose = "max_connection_duration_reached"
		info.Limit = "max downstream connection duration " + f.cfg.MaxConnectionDuration.String()
	case errors.Is(err, netio.ErrJoinIdle):
		f.idleTimeout.Inc()
		info.LocalClose = "tcp_session_idle_timeout"
		info.Limit = "idle timeout " + f.cfg.IdleTimeout.String()
	}
	s.finish()
}

// progress keeps the record's byte counts current where somebody reads them
// before the end.
func (s *session) progress() func(up, down uint64) {
	if s.f.cfg.AccessLogFlushInterval <= 0 && !s.c.Observed() {
		return nil
	}
	return func(up, down uint64) {
		s.bytesUp.Store(up)
		s.bytesDown.Store(down)
	}
}

// flushLogs writes an access-log line each access_log_flush_interval. The
// function it returns ends that.
func (s *session) flushLogs() (stop func()) {
	d := s.f.cfg.AccessLogFlushInterval
	if d <= 0 || len(s.f.d.AccessLogs) == 0 {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(d)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				// A copy: the session's own record is read by others meanwhile.
				s.watch.mu.Lock() // observers hear of it by the record
				info := *s.info
				s.watch.mu.Unlock()
				info.BytesReceived, info.BytesSent = s.bytesUp.Load(), s.bytesDown.Load()
				s.logInfo(&info, format.LogTCPPeriodic)
			case <-quit:
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

// LogRefused writes the access log of a connection that a filter before this
// one refused.
func (f *Filter) LogRefused(c *filters.Connection) {
	c.Info.Cut = true
	(&session{f: f}).logInfo(c.Info, format.LogTCPConnectionEnd)
}

func (s *session) log() { s.logInfo(s.info, format.LogTCPConnectionEnd) }

func (s *session) logInfo(info *streaminfo.Info, kind string) {
	if len(s.f.d.AccessLogs) == 0 {
		return
	}
	defer s.contain()
	ctx := format.Context{Info: info, LogType: kind}
	for _, l := range s.f.d.AccessLogs {
		l.Log(&ctx)
	}
}

var _ filters.TerminalFilter = (*Filter)(nil)
