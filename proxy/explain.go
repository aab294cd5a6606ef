package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/explain"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/hcm"
	"github.com/fairlead-mesh/fairlead/proxy/listener"
	"github.com/fairlead-mesh/fairlead/proxy/router"
	"github.com/fairlead-mesh/fairlead/proxy/tcpproxy"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
)

// Explain says what would happen to a request: the filter chain, the route, what
// every filter says, and where it would go. It asks the objects that serve live
// traffic; none is told that there was a request, and nothing leaves the
// process. The error says what is wrong with the question.
func (s *Server) Explain(q *explain.Request) (*explain.Report, error) {
	snap := s.Snapshot()
	if snap == nil {
		return nil, errors.New("explain: there is no configuration yet")
	}
	w := &walk{s: s, snap: snap, q: q, out: &explain.Report{Request: *q}}
	if err := w.run(); err != nil {
		return nil, fmt.Errorf("explain: %w", err)
	}
	return w.out, nil
}

// maxHops bounds internal listeners that lead to each other.
const maxHops = 8

// walk follows one question from listener to listener.
type walk struct {
	s    *Server
	snap *Snapshot
	q    *explain.Request
	out  *explain.Report
	// dest is where the client connects to.
	dest destination
	// closed is set once nothing further is reached.
	closed bool
}

// streamExplainer and connectionExplainer are filters that can be asked.
type streamExplainer interface {
	Explain(s *filters.Stream) filters.Explanation
}

type connectionExplainer interface {
	Explain(c *filters.Connection) filters.Explanation
}

func (w *walk) note(format string, args ...any) {
	w.out.Notes = append(w.out.Notes, fmt.Sprintf(format, args...))
}

// settle records the outcome, unless there is one. Where it depended on
// somebody whether the request comes this far, an end here is the end.
func (w *walk) settle(outcome, decider string, status int, details string) {
	if w.out.Outcome == explain.Unknown && outcome != explain.Unknown && outcome != explain.Forward {
		w.note("it may end earlier, by %s, which is not asked here", w.out.Decider)
		w.out.Outcome = ""
	}
	if w.out.Outcome == "" {
		w.out.Outcome, w.out.Decider, w.out.Status, w.out.Details = outcome, decider, status, details
	}
}

func (w *walk) run() error {
	bl, tunnel, err := w.entry()
	if err != nil {
		return err
	}
	if len(w.q.ConnectHeaders) > 0 && !tunnel {
		return fmt.Errorf("connect_headers: the request reaches listener %s through no tunnel", bl.spec.Name)
	}
	ci, err := w.downstream(bl, tunnel)
	if err != nil {
		return err
	}
	for range maxHops {
		next, info, err := w.hop(bl, ci, tunnel)
		if err != nil {
			return err
		}
		if next == "" {
			w.settle(explain.Forward, "", 0, "")
			return nil
		}
		if bl = w.snap.Listeners[next]; bl == nil {
			w.settle(explain.Close, "internal listener "+next, 0, "")
			w.note("internal listener %s is not configured", next)
			return nil
		}
		ci, tunnel = info, false
	}
	return fmt.Errorf("more than %d internal listeners lead to each other", maxHops)
}

// downstream describes the client's connection to the first listener.
func (w *walk) downstream(bl *builtListener, tunnel bool) (*streaminfo.Conn, error) {
	ci := &streaminfo.Conn{ID: listener.NextConnectionID(), Start: time.Now()}
	if a := w.q.Source.Address; a != "" {
		ap, err := netip.ParseAddrPort(a)
		if err != nil {
			ip, err := netip.ParseAddr(a)
			if err != nil {
				return nil, fmt.Errorf("source.address: %q is neither an IP address nor ip:port", a)
			}
			ap = netip.AddrPortFrom(ip, 40000)
		}
		ci.Remote, ci.DirectRemote = ap, ap
	}
	ci.Local = w.dest.addr
	if len(bl.spec.Addresses) > 0 && (tunnel || !ci.Local.IsValid()) {
		ci.Local = bl.spec.Addresses[0]
	}
	ci.RequestedServerName, ci.ApplicationProtocols = w.q.SNI, w.q.ALPN
	return ci, nil
}

// hop explains one listener. next is the internal listener that the bytes go to,
// "" if they go nowhere or out.
func (w *walk) hop(bl *builtListener, ci *streaminfo.Conn, tunnel bool) (next string, info *streaminfo.Conn, err error) {
	ci.ListenerName = bl.spec.Name
	c := &filters.Connection{Info: &streaminfo.Info{Conn: ci, Start: ci.Start}}
	c.Info.FilterState.Reset(&ci.FilterState)
	w.out.Hops = append(w.out.Hops, explain.Hop{Listener: bl.spec.Name, Chains: len(bl.config.Chains)})
	h := &w.out.Hops[len(w.out.Hops)-1]
	ran, waiting, err := bl.config.Inspect(c)
	h.ListenerFilters = ran
	if err != nil {
		w.settle(explain.Close, "listener filter of "+bl.spec.Name, 0, "")
		w.note("listener %s: %v", bl.spec.Name, err)
		return "", nil, nil
	}
	w.sniff(bl, ci, waiting, tunnel)
	h.Destination = destinationText(ci)
	bc, err := w.choose(bl, ci)
	if bc == nil || err != nil {
		return "", nil, err
	}
	h.FilterChain, ci.FilterChainName = bc.chain.Name, bc.chain.Name
	w.secure(bc, ci, tunnel)
	if !w.networkFilters(h, bc, c) {
		return "", nil, nil
	}
	switch t := bc.chain.Terminal.(type) {
	case *hcm.Manager:
		h.Protocol = "http"
		next, info = w.http(h, bc.hcms[len(bc.hcms)-1], t, c, tunnel)
	case *tcpproxy.Filter:
		h.Protocol = "tcp"
		w.tcp(h, t, c)
	default:
		w.note("the terminal filter %T can't be asked", t)
	}
	return next, info, nil
}

func destinationText(ci *streaminfo.Conn) string {
	switch {
	case ci.LocalName != "":
		return ci.LocalName
	case ci.Local.IsValid():
		return ci.Local.String()
	}
	return ""
}

// sniff tells what inspectors would find in the first bytes: they are not there,
// but the question says what they would be.
func (w *walk) sniff(bl *builtListener, ci *streaminfo.Conn, waiting []string, tunnel bool) {
	if tunnel {
		ci.TransportProtocol, ci.ApplicationProtocols = "tls", []string{"h2"}
		return
	}
	last := bl.spec.Internal || !hasTLS(bl)
	switch {
	case w.q.Scheme == "https", len(w.q.ALPN) > 0, w.q.SNI != "", w.q.Scheme == "" && !last:
		ci.TransportProtocol = "tls"
		if ci.RequestedServerName == "" {
			ci.RequestedServerName = w.serverName()
		}
	case len(waiting) > 0 && w.q.HTTP1:
		ci.ApplicationProtocols = []string{"http/1.1"}
	case len(waiting) > 0:
		ci.ApplicationProtocols = []string{"h2c"}
	}
}

// hasTLS tells whether some chain of bl terminates TLS.
func hasTLS(bl *builtListener) bool {
	for _, c := range bl.chains {
		if c.chain.TLS != nil {
			return true
		}
	}
	return false
}

// serverName is what a client would send as SNI.
func (w *walk) serverName() string {
	host, _, _ := strings.Cut(w.host(), ":")
	if _, err := netip.ParseAddr(host); err == nil {
		return ""
	}
	return host
}

// choose picks the filter chain.
func (w *walk) choose(bl *builtListener, ci *streaminfo.Conn) (*builtChain, error) {
	ch, err := bl.config.Choose(ci)
	if err != nil {
		return nil, err
	}
	if ch == nil {
		w.settle(explain.Close, "listener "+bl.spec.Name, 0, "filter_chain_not_found")
		w.note("no filter chain of listener %s takes a connection to %s", bl.spec.Name, destinationText(ci))
		return nil, nil //nolint:nilnil // no chain is an answer
	}
	for _, bc := range bl.chains {
		if bc.chain != ch {
			continue
		}
		if ch.Broken != "" {
			w.settle(explain.Close, "filter chain "+ch.Name, 0, "filter_chain_not_executable")
			w.closed = true
			w.note("filter chain %s of listener %s can't be executed: %s", ch.Name, bl.spec.Name, ch.Broken)
		}
		return bc, nil
	}
	return nil, fmt.Errorf("listener %s: filter chain %s is not part of the snapshot", bl.spec.Name, ch.Name)
}

// secure gives the connection the identity that its handshake would show.
func (w *walk) secure(bc *builtChain, ci *streaminfo.Conn, tunnel bool) {
	id := w.q.Source.Identity
	if bc.chain.TLS == nil {
		if id != "" && len(w.out.Hops) == 1 {
			w.note("filter chain %s does not terminate TLS: it does not learn the identity %s", bc.chain.Name, id)
		}
		return
	}
	ci.TLS = &streaminfo.TLS{Version: "TLSv1.3"}
	if a, ok := bc.chain.TLS.(interface{ Admits(id string) error }); ok {
		if err := a.Admits(id); err != nil {
			w.note("TLS handshake with filter chain %s: %v", bc.chain.Name, err)
			w.settle(explain.Close, "TLS handshake", 0, "")
			w.closed = true
		}
	}
	if id != "" {
		ci.TLS.Peer = streaminfo.Certificate{URISANs: []string{id}, Digest: strings.Repeat("0", 64)}
	}
	if tunnel || !w.q.HTTP1 {
		ci.TLS.ALPN = "h2"
	}
}

// networkFilters asks the filters before the terminal one. It returns false if
// the connection is refused.
func (w *walk) networkFilters(h *explain.Hop, bc *builtChain, c *filters.Connection) bool {
	for i, f := range bc.chain.Network {
		out := explain.Filter{Name: bc.network[i], State: explain.NotExplained, Reached: !w.closed}
		if e, ok := f.(connectionExplainer); ok {
			out.State, out.Explanation = explain.Explained, e.Explain(c)
		}
		h.NetworkFilters = append(h.NetworkFilters, out)
		w.consider("network", &out, explain.Close)
	}
	return !w.closed
}

// consider lets what a filter says decide; refused is the outcome if it denies.
func (w *walk) consider(kind string, f *explain.Filter, refused string) {
	switch {
	case w.closed:
	case f.State == explain.NotExplained:
		w.note("%s filter %s can't be asked; what it would do is not in this answer", kind, f.Name)
	case f.Verdict == filters.VerdictDeny:
		w.settle(refused, f.Name, f.Status, f.Details)
		w.closed = true
	case f.Verdict == filters.VerdictUnknown:
		w.settle(explain.Unknown, f.Name, 0, "")
	}
}

// tcp explains a tcp_proxy.
func (w *walk) tcp(h *explain.Hop, f *tcpproxy.Filter, c *filters.Connection) {
	var weighted []explain.Choice
	h.Upstream, weighted = f.Plan(c)
	if weighted != nil {
		h.Routing = &explain.Routing{Route: &explain.Route{Match: "weighted_clusters", Cluster: h.Upstream.Cluster, Weighted: weighted}}
	}
	w.warming(h.Upstream)
	if h.Upstream.Problem != "" {
		w.settle(explain.Close, "tcp_proxy", 0, "")
	}
}

// warming corrects what is said about a cluster that does not serve yet.
func (w *walk) warming(u *explain.Upstream) {
	for _, n := range w.s.clusters.Warming() {
		if n == u.Cluster && u.Type == "" {
			u.Problem = "the cluster is warming: its endpoints have not arrived"
		}
	}
}

// http explains a connection manager.
func (w *walk) http(h *explain.Hop, built *builtHCM, m *hcm.Manager, c *filters.Connection, tunnel bool) (next string, info *streaminfo.Conn) {
	head, version := w.head(c.Info.Conn, tunnel)
	r := m.Rehearse(&hcm.Question{Connection: c, Version: version, Head: head, Body: []byte(w.q.Body), Random: w.q.Random})
	defer r.Done()
	h.Request = router.Head(&r.Stream.Request)
	if r.Reply != nil {
		h.Reply = reply(r)
		w.settle(explain.Answer, "http_connection_manager", h.Reply.Status, h.Reply.Details)
		return "", nil
	}
	h.Routing = w.routing(r)
	chosen := r.Stream.Route
	w.filters(h, built, r.Stream)
	if n := r.Reselected(); n > 0 && r.Stream.Route != chosen {
		h.Routing = w.routing(r)
		h.Routing.Reselected = true
	}
	chain := r.Stream.Chain()
	if len(chain) == 0 {
		return "", nil
	}
	switch t := chain[len(chain)-1].(type) {
	case *router.Filter:
		h.Upstream = t.Plan(r.Stream)
	case streamExplainer:
		x := t.Explain(r.Stream)
		h.Upstream = &explain.Upstream{Reply: &explain.Reply{Status: x.Status, Details: x.Details}}
	default:
		w.note("the terminal filter %T can't be asked", t)
		return "", nil
	}
	if w.q.Response != nil && !tunnel && !w.closed {
		w.response(h, built, r.Stream)
	}
	w.warming(h.Upstream)
	if t := h.Upstream.Timeouts; t != nil {
		t.StreamIdle, t.Request = explain.Duration(r.StreamIdle), explain.Duration(r.RequestTimeout)
		if t.MaxDuration == 0 {
			t.MaxDuration = explain.Duration(r.MaxDuration)
		}
	}
	if w.closed {
		return "", nil
	}
	if rp := h.Upstream.Reply; rp != nil {
		w.settle(explain.Answer, "router", rp.Status, rp.Details)
		return "", nil
	}
	if h.Upstream.Next == "" {
		return "", nil
	}
	return h.Upstream.Next, w.inner(r.Stream, h.Upstream.Cluster)
}

// inner describes the connection on the far side of an internal hop, as
// internalHop makes it.
func (w *walk) inner(s *filters.Stream, cluster string) *streaminfo.Conn {
	o := upstream.ConnectOptions{Conn: s.Info.Conn, Info: &s.Info, FilterState: &s.Info.FilterState}
	var host *upstream.Host
	if c := w.s.clusters.Cluster(cluster); c != nil {
		if h, with := c.InternalHost(o); h != nil {
			host, o = h, *with
		}
	}
	ci := hopInfo(host, &o)
	ci.Start = time.Now()
	return ci
}

func (w *walk) routing(r *hcm.Rehearsal) *explain.Routing {
	if r.Table == nil {
		w.note("the route configuration has not arrived")
		return &explain.Routing{}
	}
	return r.Table.Explain(r.Stream)
}

func reply(r *hcm.Rehearsal) *explain.Reply {
	out := &explain.Reply{Status: r.Stream.Info.ResponseCode, Details: r.Stream.Info.Details, Location: r.Reply.Header.Get("location")}
	r.Reply.Body.Close()
	return out
}

// filters asks the HTTP filters in order, as Next runs them: by position in the
// chain of the route that is selected then.
func (w *walk) filters(h *explain.Hop, built *builtHCM, s *filters.Stream) {
	for i := 0; i < len(s.Chain())-1; i++ { //nolint:intrange // the chain may change
		f := s.Chain()[i]
		out := explain.Filter{Name: built.chains.specs[i].Name, State: explain.NotExplained, Reached: !w.closed}
		if f == nil {
			out.State = explain.Off
		} else if e, ok := f.(streamExplainer); ok {
			out.State, out.Explanation = explain.Explained, e.Explain(s)
		}
		h.Filters = append(h.Filters, out)
		w.consider("http", &out, explain.Deny)
	}
}

// responseExplainer is an HTTP filter that can be asked about a response. It
// leaves in r what it makes of it.
type responseExplainer interface {
	ExplainResponse(s *filters.Stream, r *filters.Response) filters.Explanation
}

// response asks the HTTP filters, from the last to the first, about the
// response that the question gives.
func (w *walk) response(h *explain.Hop, built *builtHCM, s *filters.Stream) {
	q := w.q.Response
	r := s.NewResponse()
	status := q.Status
	if status == 0 {
		status = 200
	}
	r.Header.Add(message.Status, strconv.Itoa(status))
	addLines(&r.Header, q.Headers)
	if q.Body != "" && !r.Header.Has("content-length") {
		r.Header.Add("content-length", strconv.Itoa(len(q.Body)))
	}
	r.Body = message.Bytes([]byte(q.Body))
	for i := len(s.Chain()) - 2; i >= 0; i-- {
		if e, ok := s.Chain()[i].(responseExplainer); ok {
			h.ResponseFilters = append(h.ResponseFilters, explain.Filter{Name: built.chains.specs[i].Name, State: explain.Explained, Reached: true, Explanation: e.ExplainResponse(s, r)})
		}
	}
	r.Body.Close()
}

// head is the request as a codec would read it.
func (w *walk) head(ci *streaminfo.Conn, tunnel bool) (*message.Header, message.Version) {
	h := &message.Header{}
	if tunnel {
		h.Add(message.Method, "CONNECT")
		h.Add(message.Authority, w.dest.authority())
		addLines(h, w.q.ConnectHeaders)
		return h, message.HTTP2
	}
	q := w.q
	method, path, scheme := q.Method, q.Path, q.Scheme
	if method == "" {
		method = "GET"
	}
	if path == "" {
		path = "/"
	}
	if scheme == "" {
		if scheme = "http"; ci.TLS != nil {
			scheme = "https"
		}
	}
	h.Add(message.Method, method)
	h.Add(message.Scheme, scheme)
	h.Add(message.Authority, w.host())
	if method != "CONNECT" {
		h.Add(message.Path, path)
	}
	addLines(h, q.Headers)
	if q.Body != "" && !h.Has("content-length") {
		h.Add("content-length", strconv.Itoa(len(q.Body)))
	}
	version := message.HTTP2
	if q.HTTP1 {
		version = message.HTTP11
	}
	return h, version
}

// host is the :authority of the request.
func (w *walk) host() string {
	if w.q.Host != "" {
		return w.q.Host
	}
	return w.q.Destination
}
