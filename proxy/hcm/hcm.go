// Package hcm is the HTTP connection manager: the terminal network filter that
// picks the codec, sanitises and normalizes requests, selects the route, runs
// its HTTP filter chain, and writes the response, the access log and the
// downstream statistics. It follows Envoy's connection manager; names are
// normalized here and nowhere else, before any matcher sees them.
package hcm

import (
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/linked"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/overload"
	"github.com/fairlead-mesh/fairlead/internal/refusal"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/internal/tracing"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/transport/h1"
	"github.com/fairlead-mesh/fairlead/proxy/transport/h2"
	"github.com/fairlead-mesh/fairlead/routing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// AccessLogger records finished streams. The context and everything it points
// to is valid during the call only.
type AccessLogger interface {
	Log(c *format.Context)
}

// Clusters knows the clusters of routes. *upstream.Manager implements it.
type Clusters interface {
	// DescribeCluster records the cluster called name in u, if there is one.
	DescribeCluster(name string, u *streaminfo.Upstream)
}

// Config is what a Manager is compiled from.
type Config struct {
	Spec *xdsresource.HTTPConnectionManager
	// Routes must not be nil.
	Routes *Routes
	// DefaultChain runs when no route matched: the filters without overrides,
	// ending in a terminal filter that answers 404.
	DefaultChain []filters.HTTPFilter
	AccessLogs   []AccessLogger
	// Clusters, if not nil, tells about the cluster of a route whose request
	// didn't get there.
	Clusters Clusters
	// Trace is how requests are traced; nil without a provider. Egress is set on
	// outbound listeners.
	Trace  *tracing.Config
	Egress bool
	// Refusals records what is denied and what goes wrong; may be nil.
	Refusals *refusal.Recorder
	// Stats is the scope for the "http" statistics of this manager.
	Stats  *stats.Scope
	Logger *slog.Logger
	// Overload, if not nil, has requests answered 503 while memory is short.
	Overload *overload.Monitor
}

// Manager is a compiled connection manager. It is immutable but for its set of
// connections, and safe for concurrent use.
type Manager struct {
	cfg      Config
	spec     *xdsresource.HTTPConnectionManager
	server   transport.ServerConfig // spec's, with what it counts
	upgrades map[string]xdsresource.Upgrade
	// mapped are the header edits of the local reply mappers, by position.
	mapped []*routing.Mutations

	st managerStats

	draining atomic.Bool
	mu       sync.Mutex
	conns    linked.List[conn, *conn]
	pool     sync.Pool
	places   streaminfo.Places // of tunnels
	tunnels  tunnels
}

// managerStats are the handles of envoy_http_downstream_*.
type managerStats struct {
	rqTotal, rqCompleted, cxDestroy                     *stats.Counter
	rqClass                                             [6]*stats.Counter // by the status' first digit
	rqHTTP1, rqHTTP2, rqRxReset, rqTimeout, rqIdle      *stats.Counter
	rqTooLarge, rqMaxDuration, cxTotal, cxProtocolError *stats.Counter
	droppedUnderscores, overload                        *stats.Counter
	cxHTTP1, cxHTTP2, cxDestroyRemote                   *stats.Counter
	upgradesTotal, panics, pathRedirect, wsFail         *stats.Counter
	rqActive, cxActive, upgradesActive                  *stats.Gauge
	rqTime                                              *stats.Histogram
}

// New compiles a Manager. The error names what the specification asks for and
// can't be done.
func New(cfg Config) (*Manager, error) {
	if cfg.Routes == nil {
		return nil, errors.New("http_connection_manager: no route source")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	m := &Manager{cfg: cfg, spec: cfg.Spec, server: cfg.Spec.Server, upgrades: map[string]xdsresource.Upgrade{}}
	for _, u := range cfg.Spec.Upgrades {
		m.upgrades[u.Type] = u
	}
	if lr := cfg.Spec.LocalReply; lr != nil {
		for i := range lr.Mappers {
			m.mapped = append(m.mapped, routing.CompileMutations(&xdsresource.HeaderMutations{Add: lr.Mappers[i].Headers}))
		}
	}
	m.pool.New = func() any { return newStream(m) }
	cfg.Routes.begin()
	m.tunnels.m, m.tunnels.reviewed = m, cfg.Routes.Table()
	sc := cfg.Stats
	m.server.Received, m.server.Sent = sc.Counter("downstream_cx_rx_bytes_total"), sc.Counter("downstream_cx_tx_bytes_total")
	m.st = managerStats{
		rqTotal: sc.Counter("downstream_rq_total"), rqCompleted: sc.Counter("downstream_rq_completed"),
		rqHTTP1: sc.Counter("downstream_rq_http1_total"), rqHTTP2: sc.Counter("downstream_rq_http2_total"),
		rqRxReset: sc.Counter("downstream_rq_rx_reset"), rqTimeout: sc.Counter("downstream_rq_timeout"), rqIdle: sc.Counter("downstream_rq_idle_timeout"),
		rqTooLarge: sc.Counter("downstream_rq_too_large"), rqMaxDuration: sc.Counter("downstream_rq_max_duration_reached"),
		cxTotal: sc.Counter("downstream_cx_total"), cxProtocolError: sc.Counter("downstream_cx_protocol_error"),
		cxHTTP1: sc.Counter("downstream_cx_http1_total"), cxHTTP2: sc.Counter("downstream_cx_http2_total"),
		cxDestroyRemote:    sc.Counter("downstream_cx_destroy_remote_active_rq"),
		droppedUnderscores: sc.Counter("dropped_headers_with_underscores"), overload: sc.Counter("downstream_rq_overload_close"),
		cxDestroy: sc.Counter("downstream_cx_destroy"), upgradesTotal: sc.Counter("downstream_cx_upgrades_total"), panics: sc.Counter("downstream_rq_panics"),
		pathRedirect: sc.Counter("downstream_rq_redirected_with_normalized_path"), wsFail: sc.Counter("downstream_rq_ws_on_non_ws_route"),
		rqActive: sc.Gauge("downstream_rq_active"), cxActive: sc.Gauge("downstream_cx_active"), upgradesActive: sc.Gauge("downstream_cx_upgrades_active"),
		rqTime: sc.Histogram("downstream_rq_time", nil),
	}
	for i := 1; i < len(m.st.rqClass); i++ {
		m.st.rqClass[i] = sc.Counter("downstream_rq_xx", stats.Label{Name: "envoy_response_code_class", Value: strconv.Itoa(i)})
	}
	return m, nil
}

// Spec returns the specification that m was compiled from.
func (m *Manager) Spec() *xdsresource.HTTPConnectionManager { return m.spec }

// Serve implements filters.TerminalFilter.
func (m *Manager) Serve(c *filters.Connection, done func()) { m.ServeConn(c.Conn, c.Info.Conn, done) }

// ServeConn implements filters.ConnTerminal.
func (m *Manager) ServeConn(c netio.Conn, info *streaminfo.Conn, done func()) {
	cn := &conn{m: m, info: info, done: done}
	m.st.cxTotal.Inc()
	m.st.cxActive.Add(1)
	cn.start(c)
}

// Drain ends all connections in order: HTTP/2 gets GOAWAY, HTTP/1 "connection:
// close" with its next response. New connections are still served, and told to
// close after their first response.
func (m *Manager) Drain() {
	m.draining.Store(true)
	m.mu.Lock()
	conns := m.conns.Snapshot()
	m.mu.Unlock()
	for _, c := range conns {
		c.server.Drain()
	}
}

// Active is the number of open connections.
func (m *Manager) Active() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.conns.Len()
}

// Memory is what the connections hold in buffers.
func (m *Manager) Memory() transport.Memory {
	m.mu.Lock()
	conns := m.conns.Snapshot()
	m.mu.Unlock()
	var sum transport.Memory
	for _, c := range conns {
		sum.Add(c.server)
	}
	return sum
}

// conn is one downstream connection.
type conn struct {
	linked.Node[conn] // in m.conns, once the codec is known

	m      *Manager
	info   *streaminfo.Conn
	server transport.ServerConn // nil until the codec is known
	done   func()
	// drainLate: the first stream drains the connection.
	drainLate bool
	// lost: the client went away with a request in flight.
	lost atomic.Bool
	// secure tells the scheme; internal addresses of XFF are decided per request.
	secure bool
}

// defaultIdle is Envoy's, as for the codecs.
const defaultIdle = time.Hour

// start decides the codec. It blocks on sockets and parks where it can.
func (cn *conn) start(c netio.Conn) {
	cn.secure = cn.info.TLS != nil
	switch cn.m.spec.Codec {
	case xdsresource.CodecHTTP1:
		cn.serve(c, nil, false)
	case xdsresource.CodecHTTP2:
		cn.serve(c, nil, true)
	case xdsresource.CodecAuto:
		if t := cn.info.TLS; t != nil && t.ALPN != "" {
			cn.serve(c, nil, t.ALPN == "h2")
			return
		}
		idle := cn.m.server.IdleTimeout
		if idle == 0 {
			idle = defaultIdle
		}
		sniff(c, idle, cn)
	}
}

// serve runs the codec on c, whose first bytes have been read.
func (cn *conn) serve(c netio.Conn, first []byte, http2 bool) {
	cfg := &cn.m.server
	type runner interface {
		transport.ServerConn
		Serve(done func())
	}
	var r runner
	if http2 {
		cn.m.st.cxHTTP2.Inc()
		r = h2.NewServer(netio.WithPrefix(c, first), cfg, cn)
	} else {
		cn.m.st.cxHTTP1.Inc()
		s := h1.NewServer(c, cfg, cn)
		s.Unread(first)
		r = s
	}
	cn.server = r
	cn.m.mu.Lock()
	cn.m.conns.PushFront(cn)
	cn.m.mu.Unlock()
	if cn.m.draining.Load() {
		// An HTTP/2 client that hears GOAWAY before it has sent anything takes
		// its request elsewhere, and may find nobody else.
		if cn.drainLate = http2; !http2 {
			r.Drain()
		}
	}
	r.Serve(cn.end)
}

// fail is end for a connection c without codec.
func (cn *conn) fail(c netio.Conn) {
	_ = c.Close()
	cn.end()
}

// end closes the books.
func (cn *conn) end() {
	cn.m.mu.Lock()
	cn.m.conns.Remove(cn)
	cn.m.mu.Unlock()
	cn.m.st.cxActive.Add(-1)
	cn.m.st.cxDestroy.Inc()
	cn.done()
}

// now is time.Now, with one place to look at for its cost.
func now() time.Time { return time.Now() }
