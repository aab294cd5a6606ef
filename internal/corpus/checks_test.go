package corpus

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	clusterv3pb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3pb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tcpproxyv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	internalv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	proxyprotocolv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	tlsv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

type tlsCert = tls.Certificate

// isDFP tells whether the route leads to where the request itself names.
func (w *world) isDFP(r *routev3pb.Route) bool {
	return w.clusters[r.GetRoute().GetCluster()].GetClusterType().GetName() == "envoy.clusters.dynamic_forward_proxy"
}

// resolvable is a name within domain that resolves to an origin of the route's
// cluster, on the port that a request without one has.
func (w *world) resolvable(r *routev3pb.Route, domain string) string {
	c := r.GetRoute().GetCluster()
	if w.names[c] == "" {
		port := 0
		switch {
		case !wellKnown():
		case w.socket(c, nil).tls != nil:
			port = 443
		default:
			port = 80
		}
		at := w.origins.listen(c, port)
		w.names[c] = dnsLabel(at.IP) + strings.TrimPrefix(domain, "*")
		if port == 0 {
			w.names[c] += fmt.Sprintf(":%d", at.Port)
		}
	}
	return w.names[c]
}

// wellKnown tells whether this process may listen on ports 80 and 443. If not,
// requests say the port of an origin that they name.
var wellKnown = sync.OnceValue(func() bool {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", fmt.Sprintf("127.31.%d.%d:80", os.Getpid()>>8&255, os.Getpid()&255))
	if err != nil {
		return false
	}
	return l.Close() == nil
})

// named starts the origin of a chain that finds it by SNI.
func (w *world) named(fc *listenerv3pb.FilterChain) *net.TCPAddr {
	c := w.clustersOf(w.t, fc)[0]
	at := w.origins.plain(c)
	_, domain, _ := strings.Cut(fc.GetName(), "|*")
	w.names[c] = dnsLabel(at.IP) + domain
	return at
}

// socket is what a cluster's transport sockets come to.
type socket struct {
	tls     *tlsv3pb.UpstreamTlsContext
	proxied bool
}

// socket of a cluster for endpoints with the metadata of
// envoy.transport_socket_match.
func (w *world) socket(cluster string, match map[string]string) socket {
	c := w.clusters[cluster]
	a := c.GetTransportSocket().GetTypedConfig()
	for _, m := range c.GetTransportSocketMatches() {
		fits := true
		for k, v := range m.GetMatch().GetFields() {
			fits = fits && match[k] == v.GetStringValue()
		}
		if fits {
			a = m.GetTransportSocket().GetTypedConfig()
			break
		}
	}
	var out socket
	for a != nil {
		var in internalv3pb.InternalUpstreamTransport
		var pp proxyprotocolv3pb.ProxyProtocolUpstreamTransport
		var u tlsv3pb.UpstreamTlsContext
		switch {
		case unpack(w.t, a, &in):
			a = in.GetTransportSocket().GetTypedConfig()
		case unpack(w.t, a, &pp):
			out.proxied = true
			a = pp.GetTransportSocket().GetTypedConfig()
		case unpack(w.t, a, &u):
			out.tls, a = &u, (*anypb.Any)(nil)
		default:
			a = nil
		}
	}
	return out
}

// transport checks how the origin was spoken to, by the configuration of the
// cluster that it belongs to.
func (w *world) transport(at string, e echo) {
	c := w.clusters[e.Cluster]
	if e.Cluster == "encap" {
		if len(e.Via) != 1 {
			w.t.Errorf("%s: went through %v, want one tunnel", at, e.Via)
			return
		}
		w.tunnel(at, hbone, e.Via[0])
		return
	}
	var kinds []string           // how the cluster's endpoints may be reached
	var locals, remotes []string // and where tunnels to them go
	match := map[string]string{}
	cla := w.endpoints[edsName(c)]
	if cla == nil {
		cla = c.GetLoadAssignment()
	}
	for _, le := range cla.GetEndpoints() {
		for _, ep := range le.GetLbEndpoints() {
			kinds = append(kinds, ep.GetEndpoint().GetAddress().GetEnvoyInternalAddress().GetServerListenerName())
			md := ep.GetMetadata().GetFilterMetadata()
			if v := md["envoy.filters.listener.original_dst"].GetFields()["local"].GetStringValue(); v != "" {
				locals = append(locals, v)
			}
			if v := md["istio"].GetFields()["double_hbone"].GetStructValue().GetFields()["hbone_target_address"].GetStringValue(); v != "" {
				remotes = append(remotes, v)
			}
			for k, v := range ep.GetMetadata().GetFilterMetadata()["envoy.transport_socket_match"].GetFields() {
				match[k] = v.GetStringValue()
			}
		}
	}
	via := strings.TrimPrefix(wayOf(e), " ")
	if via == hbone && slices.Contains(kinds, forwarded) {
		via = forwarded
	}
	if len(kinds) > 0 && !slices.Contains(kinds, via) {
		w.t.Errorf("%s: %s was reached through %q (%v), want one of %q", at, e.Cluster, via, e.Via, kinds)
	}
	switch via {
	case forwarded:
		w.tunnel(at, forwarded, e.Via[0])
	case hbone:
		w.tunnel(at, hbone, e.Via[0], locals...)
	case doubleHBONE:
		w.tunnel(at, "outer_connect_originate", e.Via[0], remotes...)
		w.tunnel(at, doubleHBONE, e.Via[1], remotes...)
	}
	s := w.socket(e.Cluster, match)
	if s.proxied != (e.Proxied != "") {
		w.t.Errorf("%s: PROXY protocol header %q", at, e.Proxied)
	}
	if s.tls == nil {
		return
	}
	if want := s.tls.GetSni(); want != "" && e.SNI != want {
		w.t.Errorf("%s: SNI %q, want %q", at, e.SNI, want)
	}
	for _, sc := range s.tls.GetCommonTlsContext().GetTlsCertificateSdsSecretConfigs() {
		want := sc.GetName()
		switch {
		case strings.HasPrefix(want, "file-cert:"):
			want = "file-cert"
		case want == "default":
			want = "spiffe://cluster.local/ns/app/sa/waypoint"
		}
		if e.Client != want {
			w.t.Errorf("%s: the client certificate is %q, want %q", at, e.Client, want)
		}
	}
	if e.SNI == "" && e.Client == "" && c.GetType() != clusterv3pb.Cluster_ORIGINAL_DST {
		w.t.Errorf("%s: no TLS to %s", at, e.Cluster)
	}
}

// tunnel checks a CONNECT request against the listener that sent it. to is where
// it may go, all that endpoints say; none if no endpoint says it.
func (w *world) tunnel(at, listener string, h hop, to ...string) {
	for _, l := range w.listeners {
		if l.GetName() != listener {
			continue
		}
		w.reached[l.GetFilterChains()[0].GetName()] = true
		_, tcp := terminal(w.t, l.GetFilterChains()[0])
		for _, o := range tcp.GetTunnelingConfig().GetHeadersToAdd() {
			got, want := strings.Join(h.Header.Values(o.GetHeader().GetKey()), ","), o.GetHeader().GetValue()
			computed := strings.Contains(want, "%") // of what this proxy knows
			if !computed && got != want || computed && len(got) < 2 {
				w.t.Errorf("%s: CONNECT of %s has %s: %q, want %q", at, listener, o.GetHeader().GetKey(), got, want)
			}
		}
	}
	if len(to) > 0 && !slices.Contains(to, h.Authority) {
		w.t.Errorf("%s: CONNECT of %s to %q, want one of %q", at, listener, h.Authority, to)
	}
}

// wayOf is how an origin was reached, "" without a tunnel.
func wayOf(e echo) string {
	if e.Cluster == "encap" {
		return ""
	}
	return [...]string{"", " " + hbone, " " + doubleHBONE}[min(len(e.Via), 2)]
}

// ways adds how a cluster must be reached: for each kind of endpoint that takes
// part (those of the first priority) once.
func (w *world) ways(cluster string, ways map[string]bool) {
	c := w.clusters[cluster]
	if c == nil {
		return
	}
	ways[cluster] = true
	for _, le := range w.endpoints[edsName(c)].GetEndpoints() {
		for _, ep := range le.GetLbEndpoints() {
			delete(ways, cluster)
			if le.GetPriority() > 0 {
				continue
			}
			kind := ep.GetEndpoint().GetAddress().GetEnvoyInternalAddress().GetServerListenerName()
			if kind == forwarded {
				kind = hbone
			}
			ways[strings.TrimSuffix(cluster+" "+kind, " ")] = true
		}
	}
}

// tcp sends a line through a chain that proxies bytes, until each of its
// clusters was reached.
func (w *world) tcp(d door, fc *listenerv3pb.FilterChain, p *tcpproxyv3pb.TcpProxy) {
	want := tcpTargets(p)
	if len(want) == 1 && w.clusters[want[0]] == nil {
		w.refused(d)
		return
	}
	left := map[string]bool{}
	for _, c := range want {
		w.ways(c, left)
		if cl := w.clusters[c]; cl.GetClusterType().GetName() == "envoy.clusters.dynamic_forward_proxy" {
			d.sni = w.names[c]
		}
	}
	for range tries {
		got := w.bytes(d)
		if got == nil {
			return
		}
		if !slices.Contains(want, got.echo.Cluster) || got.echo.Path != "corpus over tcp" {
			w.t.Errorf("%v: reached %+v, want one of %q", d, got.echo, want)
			return
		}
		if d.sni != "" && !d.terminated && got.echo.SNI != d.sni {
			w.t.Errorf("%v: the origin saw SNI %q", d, got.echo.SNI)
		}
		if d.sni == "" {
			w.transport(d.String(), got.echo)
		}
		w.reached[fc.GetName()] = true
		delete(left, got.echo.Cluster+wayOf(got.echo))
		if len(left) == 0 {
			return
		}
	}
	w.t.Errorf("%v: %q got nothing", d, slices.Sorted(maps.Keys(left)))
}

// refused sends a line through d, whose connection must be closed instead.
func (w *world) refused(d door) {
	conn, err := w.enter(d, w.caller(d.chain))
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	if got, err := exchangeTCP(conn); err == nil {
		w.t.Errorf("%v: reached %+v, want a closed connection", d, got.echo)
	}
}

// bytes sends a line through d; nil if nothing comes back, which is an error.
func (w *world) bytes(d door) *result {
	id := w.caller(d.chain)
	conn, err := w.enter(d, id)
	if err == nil && d.authority != "" && (d.sni != "" || w.opaque(d.chain)) {
		// TLS, or HBONE, from end to end.
		conn, err = w.within(conn, d, id)
	}
	if err != nil {
		w.t.Errorf("%v: %v", d, err)
		return nil
	}
	defer func() { _ = conn.Close() }()
	got, err := exchangeTCP(conn)
	if err != nil {
		w.t.Errorf("%v: %v", d, err)
		return nil
	}
	return got
}

// crossOrigin asks what a route with a CORS policy answers browsers.
func (w *world) crossOrigin(d door, domain string, r *routev3pb.Route) {
	origin, p := cors(w.t, r)
	if p == nil {
		return
	}
	q := satisfying(w.t, domain, r)
	q.set("origin", origin)
	allowed := map[string]string{"access-control-allow-origin": origin, "access-control-expose-headers": p.GetExposeHeaders()}
	if p.GetAllowCredentials().GetValue() {
		allowed["access-control-allow-credentials"] = "true"
	}
	if got := w.send(d, q, r.GetName()); got != nil {
		w.headers(r.GetName(), allowed, got.header)
	}
	q.method = http.MethodOptions
	q.set("access-control-request-method", "GET")
	delete(allowed, "access-control-expose-headers")
	allowed["access-control-allow-methods"], allowed["access-control-allow-headers"], allowed["access-control-max-age"] = p.GetAllowMethods(), p.GetAllowHeaders(), p.GetMaxAge()
	if got := w.send(d, q, r.GetName()); got != nil {
		if got.status != http.StatusOK || got.echo.Cluster != "" {
			w.t.Errorf("%s: the preflight is answered %d by %q", r.GetName(), got.status, got.echo.Cluster)
		}
		w.headers(r.GetName()+" preflight", allowed, got.header)
	}
}

// grpcWeb is what a browser asks: the origin must see gRPC, and the browser its
// trailers in the body.
func (w *world) grpcWeb(d door, r *routev3pb.Route) {
	q := satisfying(w.t, "*", r)
	q.method = http.MethodPost
	q.set("content-type", "application/grpc-web")
	got := w.send(d, q, r.GetName())
	if got == nil {
		return
	}
	if !strings.Contains(got.body, `"Content-Type":["application/grpc"]`) || !strings.Contains(got.body, "\x80\x00\x00\x00\x0fgrpc-status:0\r\n") {
		w.t.Errorf("%v: a browser gets %q", d, got.body)
	}
}

// coverage is what the log of the proxy shows of a scenario.
type coverage struct {
	chains, routes map[string]bool
	probes         map[string][]string
}

// lines ends all connections and reads the log, until every probe shows in it
// and all of the names but the unreached. Connections inside of the proxy end
// later; that there was one is known from what origins saw of it.
func (w *world) lines(names []string, unreached map[string]string) coverage {
	w.close()
	var c coverage
	_ = eventually(func() bool {
		c = coverage{maps.Clone(w.reached), map[string]bool{}, map[string][]string{}}
		b, err := os.ReadFile(w.log)
		if err != nil {
			return false
		}
		for l := range strings.Lines(string(b)) {
			f := strings.Split(strings.TrimSuffix(l, "\n"), "\t")
			if len(f) < strings.Count(logFormat, "\t")+1 {
				return false // half a line
			}
			if f[0] != "-" {
				c.probes[f[0]] = f
			}
			c.chains[f[1]], c.routes[f[2]] = true, true
		}
		for _, n := range names {
			if _, none := unreached[n]; !none && !c.chains[n] && !c.routes[n] {
				return false
			}
		}
		return len(c.probes) >= len(w.probes)
	})
	for id, p := range w.probes {
		f := c.probes[id]
		if f == nil {
			w.t.Errorf("%s is not in the log", p.what)
			continue
		}
		if f[1] != p.chain || f[2] != p.route {
			w.t.Errorf("%s took chain %q and route %q (%v), want %q and %q", p.what, f[1], f[2], f[3:], p.chain, p.route)
		}
	}
	return c
}
