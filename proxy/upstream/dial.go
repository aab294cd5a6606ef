package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/tlscontext"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// socketTLS is the compiled TLS context of one transport socket.
type socketTLS struct {
	spec   *xdsresource.UpstreamTLS
	client ClientTLS
	err    error
}

// compileSockets compiles the TLS contexts of all transport sockets, so that a
// broken one is known before the first connection.
func (c *Cluster) compileSockets() {
	add := func(t *xdsresource.TransportSocket) {
		if t.TLS == nil {
			return
		}
		s := socketTLS{spec: t.TLS}
		if c.m.opt.TLS == nil {
			s.err = errors.New("this process has no TLS contexts")
		} else {
			s.client, s.err = c.m.opt.TLS(t.TLS)
		}
		if s.err != nil {
			c.m.log.Error("TLS context of cluster can't be used; its connections will fail", "cluster", c.spec.Name, "error", s.err)
		}
		c.tls = append(c.tls, s)
	}
	add(&c.spec.TransportSocket)
	for i := range c.spec.Matches {
		add(&c.spec.Matches[i].Socket)
	}
}

func (c *Cluster) clientTLS(spec *xdsresource.UpstreamTLS) (ClientTLS, error) {
	for i := range c.tls {
		if c.tls[i].spec == spec {
			return c.tls[i].client, c.tls[i].err
		}
	}
	return nil, errors.New("the TLS context is unknown")
}

// names returns the server name and the name to verify for a connection to h:
// what the stream demands, else auto_sni, auto_host_sni and
// auto_san_validation. "" keeps what the context says.
func (c *Cluster) names(h *Host, o *ConnectOptions) (sni, verify string) {
	t := h.socket.TLS
	if t == nil {
		return "", ""
	}
	sni, verify = o.SNI, o.VerifyName
	auto := ""
	if c.spec.HTTP.AutoSNI || c.spec.HTTP.AutoSANValidation {
		auto = hostOf(o.Authority)
	}
	if sni == "" && c.spec.HTTP.AutoSNI && auto != "" {
		// Longer names don't fit into the extension (RFC 1035 §2.3.4): without.
		if _, err := netip.ParseAddr(auto); err != nil && len(auto) <= maxName {
			sni = auto
		}
	}
	if sni == "" && t.AutoHostSNI {
		sni = h.Endpoint.DisplayHost
	}
	if verify == "" && c.spec.HTTP.AutoSANValidation {
		verify = auto
	}
	if verify == "" && t.AutoSNISANValidation {
		if verify = sni; verify == "" {
			verify = t.SNI
		}
	}
	return sni, verify
}

const maxName = 255

// hostOf returns the host of an authority, without port and brackets.
func hostOf(authority string) string {
	if strings.HasPrefix(authority, "[") {
		if i := strings.IndexByte(authority, ']'); i > 0 {
			return authority[1:i]
		}
		return ""
	}
	if i := strings.LastIndexByte(authority, ':'); i >= 0 && strings.IndexByte(authority, ':') == i {
		return authority[:i]
	}
	return authority
}

// connection is an established transport connection.
type connection struct {
	netio.Conn
	took  time.Duration
	alpn  string
	state *streaminfo.FilterState // of the cluster's filters, nil without any
	// client is the TLS side, nil without TLS.
	client ClientTLS
	host   *Host
}

// connect opens the transport to h: socket or internal hop, PROXY header, TLS.
// alpn is offered unless the stream demands or the context names others; nil
// offers none. The error is a *transport.ResetError.
func (c *Cluster) connect(ctx context.Context, h *Host, o *ConnectOptions, alpn []string) (*connection, error) {
	start := time.Now()
	timeout := c.spec.ConnectTimeout
	if timeout <= 0 {
		timeout = 5 * time.Second
	}
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	s := c.stats()
	s.cxTotal.Inc()
	h.st.cxTotal.Add(1)
	conn, err := c.establish(ctx, h, o, alpn)
	took := time.Since(start)
	if err == nil {
		s.cxConnectMS.ObserveMillis(took)
		conn.took, conn.host = took, h
		return conn, nil
	}
	s.cxConnectFail.Inc()
	h.st.cxFail.Add(1)
	s.destroyed(parent.Err() == nil && ctx.Err() == nil, false)
	switch {
	case parent.Err() != nil:
		return nil, &transport.ResetError{Reason: transport.LocalReset, Detail: "cancelled"}
	case ctx.Err() != nil:
		s.cxConnectTimeout.Inc()
		return nil, &transport.ResetError{Reason: transport.ConnectionFailure, Detail: DetailConnectTimeout}
	}
	var re *transport.ResetError
	if !errors.As(err, &re) {
		re = &transport.ResetError{Reason: transport.ConnectionFailure, Detail: err.Error()}
	}
	return nil, re
}

// DetailConnectTimeout is the detail of a ResetError when connect_timeout
// expired. Envoy reports that as a reset reason of its own, without a transport
// failure reason.
const DetailConnectTimeout = "connection timeout"

func (c *Cluster) establish(ctx context.Context, h *Host, o *ConnectOptions, alpn []string) (*connection, error) {
	if h.socket.Unknown != "" {
		return nil, errors.New("transport socket can't be used: " + h.socket.Unknown)
	}
	if c.filtersErr != nil {
		return nil, c.filtersErr
	}
	f := c.filtered(h)
	f.dialing()
	raw, err := c.dial(ctx, h, f.options(o))
	if err != nil {
		return nil, err
	}
	if v := h.socket.ProxyProtocol; v != 0 {
		if _, err := raw.Write(proxyHeader(v, o)); err != nil {
			raw.Reset()
			return nil, fmt.Errorf("PROXY header: %w", err)
		}
	}
	if h.socket.TLS == nil {
		return f.connected(&connection{Conn: raw})
	}
	client, err := c.clientTLS(h.socket.TLS)
	if err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("TLS_error: %w", err)
	}
	to := tlscontext.Options{}
	to.SNI, to.VerifyName = c.names(h, o)
	switch {
	case o.ALPN != "":
		to.ALPN = strings.Split(o.ALPN, ",")
	case len(h.socket.TLS.ALPN) == 0 && len(alpn) > 0:
		to.ALPN = alpn
	}
	sec, err := netio.ClientTLS(ctx, raw, client.Config(to))
	if err != nil {
		return nil, fmt.Errorf("TLS_error: %w", err)
	}
	out := &connection{Conn: sec, client: client}
	if cs := sec.TLS(); cs != nil {
		out.alpn = cs.NegotiatedProtocol
	}
	return f.connected(out)
}

// dial opens the byte stream below TLS.
func (c *Cluster) dial(ctx context.Context, h *Host, o *ConnectOptions) (netio.Conn, error) {
	e := &h.Endpoint
	switch {
	case e.InternalListener != "":
		d := c.m.internalDialer()
		if d == nil {
			return nil, errors.New("internal listener " + e.InternalListener + " can't be reached: no internal listeners in this process")
		}
		return d.DialInternal(ctx, e.InternalListener, h, c.hop(h, o))
	case e.Pipe != "":
		return netio.DialUnix(ctx, e.Pipe)
	case !e.Address.IsValid():
		return nil, errors.New("endpoint " + h.name + " has no address")
	}
	do := netio.DialOptions{Source: c.spec.BindSource}
	if o.Source.IsValid() {
		do.Source, do.Transparent = o.Source, true
	}
	if k := c.spec.TCPKeepalive; k != nil {
		do.KeepaliveCount = int(k.Probes)
		do.KeepaliveIdle, do.KeepaliveInterval = time.Duration(k.Time)*time.Second, time.Duration(k.Interval)*time.Second
	}
	conn, err := c.m.opt.Dial(ctx, e.Address, do)
	if err != nil {
		if no, ok := errors.AsType[syscall.Errno](err); ok {
			if no == syscall.EADDRNOTAVAIL || no == syscall.EADDRINUSE {
				c.stats().bindErrors.Inc()
			}
			return nil, errors.New("delayed connect error: " + capitalise(no.Error()))
		}
		return nil, err
	}
	return conn, nil
}

func capitalise(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// hop completes o for an internal hop to h.
func (c *Cluster) hop(h *Host, o *ConnectOptions) *ConnectOptions {
	d := *o
	if h.socket.Internal != nil {
		d.Passthrough, d.ClusterMetadata = h.socket.Internal.Passthrough, &c.spec.Metadata
	} else {
		d.FilterState = nil // without internal_upstream nothing crosses
	}
	return &d
}

// proxyHeader is the PROXY protocol header for the downstream connection of o;
// LOCAL or UNKNOWN without one.
func proxyHeader(version int, o *ConnectOptions) []byte {
	var src, dst netip.AddrPort
	if o.Conn != nil {
		src, dst = unmap(o.Conn.Remote), unmap(o.Conn.Local)
	}
	known := src.IsValid() && dst.IsValid() && src.Addr().Is4() == dst.Addr().Is4()
	if version == 1 {
		if !known {
			return []byte("PROXY UNKNOWN\r\n")
		}
		fam := "TCP4"
		if src.Addr().Is6() {
			fam = "TCP6"
		}
		return []byte("PROXY " + fam + " " + src.Addr().String() + " " + dst.Addr().String() + " " +
			strconv.Itoa(int(src.Port())) + " " + strconv.Itoa(int(dst.Port())) + "\r\n")
	}
	b := []byte("\r\n\r\n\x00\r\nQUIT\n")
	if !known {
		return append(b, 0x20, 0, 0, 0)
	}
	fam, size := byte(0x11), 12
	if src.Addr().Is6() {
		fam, size = 0x21, 36
	}
	b = append(b, 0x21, fam)
	b = binary.BigEndian.AppendUint16(b, uint16(size))
	b = append(b, src.Addr().AsSlice()...)
	b = append(b, dst.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	return binary.BigEndian.AppendUint16(b, dst.Port())
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// Connect opens a plain byte stream to h (tcp_proxy, upgrades, CONNECT with
// connect_config). The connection counts against max_connections until it is
// closed. Errors are *transport.ResetError.
func (c *Cluster) Connect(ctx context.Context, h *Host, o *ConnectOptions) (netio.Conn, error) {
	b := c.breaker(o.High)
	if !b.connections.take() {
		c.stats().cxOverflow.Inc()
		return nil, errMaxConnections
	}
	conn, err := c.connect(ctx, h, o, nil)
	if err != nil {
		b.connections.give()
		return nil, err
	}
	c.stats().cxActive.Add(1)
	h.st.cxActive.Add(1)
	t := &tcpConn{Conn: conn.Conn, c: c, h: h, b: b, start: time.Now(), state: conn.state}
	t.peer = c.join(conn)
	return t, nil
}

// TakeOver hands conn to the internal listener that h names, see
// InternalDialer.TakeOver.
func (c *Cluster) TakeOver(h *Host, conn netio.Conn, o *ConnectOptions, done func()) error {
	d := c.m.internalDialer()
	if d == nil {
		return errors.New("internal listener " + h.Endpoint.InternalListener + " can't be reached: no internal listeners in this process")
	}
	b, s := c.breaker(o.High), c.stats()
	if !b.connections.take() {
		s.cxOverflow.Inc()
		return errMaxConnections
	}
	s.cxTotal.Inc()
	h.st.cxTotal.Add(1)
	s.cxActive.Add(1)
	h.st.cxActive.Add(1)
	err := d.TakeOver(h.Endpoint.InternalListener, h, conn, c.hop(h, o), func() {
		leftHop(b, s, h)
		done()
	})
	if err != nil {
		leftHop(b, s, h)
		s.cxConnectFail.Inc()
		h.st.cxFail.Add(1)
	}
	return err
}

// leftHop closes the books of a stream that was taken over.
func leftHop(b *breaker, s *clusterStats, h *Host) {
	b.connections.give()
	s.cxActive.Add(-1)
	h.st.cxActive.Add(-1)
	s.destroyed(false, false)
}

// CanTakeOver reports whether a byte stream to h can be handed over without a
// copy: an internal endpoint without TLS or PROXY header in between.
func (c *Cluster) CanTakeOver(h *Host) bool {
	return h.Endpoint.InternalListener != "" && h.socket.TLS == nil && h.socket.ProxyProtocol == 0 && h.socket.Unknown == ""
}

// tcpConn keeps the books of a connection that Connect returned.
type tcpConn struct {
	netio.Conn
	c     *Cluster
	h     *Host
	b     *breaker
	start time.Time
	state *streaminfo.FilterState
	peer  *peer
	once  sync.Once
}

// StateOf returns what the filters of the cluster know of a connection that
// Connect returned, nil without filters.
func StateOf(conn netio.Conn) *streaminfo.FilterState {
	if t, ok := conn.(*tcpConn); ok {
		return t.state
	}
	return nil
}

func (t *tcpConn) ended() {
	t.once.Do(func() {
		t.c.leave(t.peer)
		t.b.connections.give()
		s := t.c.stats()
		s.cxActive.Add(-1)
		t.h.st.cxActive.Add(-1)
		remote := false
		if p, ok := t.Conn.(netio.Prober); ok {
			_, remote = p.Probe()
		}
		s.destroyed(remote, false)
		s.cxLengthMS.ObserveMillis(time.Since(t.start))
	})
}

// Close implements netio.Conn.
func (t *tcpConn) Close() error {
	t.ended()
	return t.Conn.Close()
}

// Reset implements netio.Conn.
func (t *tcpConn) Reset() {
	t.ended()
	t.Conn.Reset()
}

// Unwrap returns the connection below, for those that can drive it faster.
func (t *tcpConn) Unwrap() netio.Conn { return t.Conn }
