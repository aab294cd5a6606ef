// Package istiometrics reports Istio's standard metrics for requests and
// connections: istio_requests_total and its relatives. The handles of a
// combination of peers, service and outcome are found by one lookup without a
// lock or an allocation.
package istiometrics

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/filterobjects"
	"github.com/fairlead-mesh/fairlead/filters/internal/peers"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

type reporter uint8

const (
	reporterSource reporter = iota
	reporterDestination
	reporterWaypoint
)

var reporterNames = [...]string{"source", "destination", "waypoint"}

// Metrics is compiled configuration.
type Metrics struct {
	reporter     reporter
	hostFallback bool
	interval     time.Duration
	workloads    filters.Workloads
	self         *streaminfo.Peer
	metrics      [metricCount]metric
	exprs        []*format.CEL
	requests     stats.Cache[key, requestHandles]
	messages     stats.Cache[key, messageHandles]
	connections  stats.Cache[key, connectionHandles]
}

// New compiles c.
func New(env *filters.Env, c *Config) *Metrics {
	ms := &Metrics{hostFallback: !c.DisableHostFallback, interval: c.Interval, self: &streaminfo.Peer{}}
	ms.requests.Own, ms.messages.Own, ms.connections.Own = key.own, key.own, key.own
	if env == nil {
		env = &filters.Env{}
	}
	switch {
	case c.Gateway:
		ms.reporter = reporterWaypoint
	case env.Direction == "inbound":
		ms.reporter = reporterDestination
	}
	ms.workloads = env.Workloads
	if env.Node != nil {
		ms.self = peers.Node(env.Node)
		version := env.Node.IstioVersion
		if version == "" {
			version = "unknown"
		}
		env.Stats.Gauge("istio_build", stats.Label{Name: "component", Value: "proxy"}, stats.Label{Name: "tag", Value: version}).Set(1)
	}
	ms.build(c, env.Stats)
	return ms
}

// Interval is the time between reports on long streams, 0 for none.
func (ms *Metrics) Interval() time.Duration { return ms.interval }

// peerKey is the end that this reporter wants to know of before it reports.
func (ms *Metrics) peerKey() string {
	if ms.reporter == reporterSource {
		return peers.Upstream
	}
	return peers.Downstream
}

// expr returns the index of an expression.
func (ms *Metrics) expr(f *format.CEL) int {
	for i, e := range ms.exprs {
		if e.Source() == f.Source() {
			return i
		}
	}
	ms.exprs = append(ms.exprs, f)
	return len(ms.exprs) - 1
}

type protocol uint8

const (
	protoHTTP protocol = iota
	protoGRPC
	protoTCP
)

var protocolNames = [...]string{"http", "grpc", "tcp"}

// key tells apart everything that labels can differ by. Strings in it belong
// to the connection, the configuration, for extra to the key itself, and for
// host to the request until own has cloned it.
type key struct {
	source, destination uint32
	// peerID and localID are principals.
	peerID, localID string
	cluster         string
	clusterMetadata *streaminfo.Metadata
	flags           streaminfo.ResponseFlag
	code            int
	grpc            int // -1: none
	proto           protocol
	host, route     string
	// extra holds what is not cached by identity: expressions, and peers without
	// a number.
	extra string
}

// own returns a key that may be kept.
func (k key) own() key {
	k.host = strings.Clone(k.host)
	return k
}

type requestHandles struct {
	requests                 *stats.Counter
	duration, received, sent *stats.Histogram
}

// messageHandles are made with the stream, their series only when something is
// reported: the labels of its end may be better ones.
type messageHandles struct {
	counters func() (requests, responses *stats.Counter)
}

type connectionHandles struct{ opened, closed, sent, received *stats.Counter }

// ends is what is known about both ends of a stream.
type ends struct {
	info                *streaminfo.Info
	source, destination *streaminfo.Peer // nil if unknown
	peerID, localID     string
	secure              string
	host                string
}

// ends finds out about the ends. request is nil for TCP.
func (ms *Metrics) ends(info *streaminfo.Info, request *message.Header) ends {
	e := ends{info: info, secure: "unknown"}
	fs := &info.FilterState
	if ms.reporter == reporterSource {
		e.source = ms.self
		if e.destination = upstreamPeer(info, request); e.destination == nil {
			e.destination = peers.FromEndpoint(info.Upstream.HostMetadata)
		}
		e.upstreamIdentity()
	} else {
		e.source = peers.Get(fs, peers.Downstream)
		e.destination = ms.self
		if ms.reporter == reporterWaypoint {
			if e.destination = upstreamPeer(info, request); e.destination == nil && request == nil {
				e.destination = peers.Lookup(ms.workloads, peers.UpstreamAddress(info))
			}
		}
		e.downstreamIdentity()
	}
	if ms.hostFallback && request != nil {
		e.host = request.Get(message.Authority)
	}
	return e
}

// upstreamPeer is what the stream, or for bytes that are not HTTP the connection
// to upstream, knows of its far end.
func upstreamPeer(info *streaminfo.Info, request *message.Header) *streaminfo.Peer {
	p := peers.Get(&info.FilterState, peers.Upstream)
	if p == nil && request == nil {
		p = peers.Get(info.Upstream.State, peers.Upstream)
	}
	return p
}

// lookup asks the table of workloads for a destination that no filter has told
// yet: the one that does, runs after this reporter.
func (ms *Metrics) lookup(e *ends) {
	if ms.reporter == reporterDestination || peers.Get(&e.info.FilterState, peers.Upstream) != nil {
		return
	}
	p := peers.Lookup(ms.workloads, peers.UpstreamAddress(e.info))
	if p == nil {
		return
	}
	e.destination = p
	if ms.reporter == reporterSource && e.peerID == "" {
		e.peerID = p.Identity
	}
}

func (e *ends) upstreamIdentity() {
	if t := e.info.Upstream.TLS; t != nil {
		e.peerID, e.localID = first(t.Peer.URISANs), first(t.LocalCert.URISANs)
	}
	if e.peerID == "" && e.destination != nil {
		e.peerID = e.destination.Identity
	}
}

func (e *ends) downstreamIdentity() {
	fs := &e.info.FilterState
	e.peerID, e.localID = text(fs.Get(filterobjects.PeerPrincipal)), text(fs.Get(filterobjects.LocalPrincipal))
	if t := e.info.Conn.TLS; e.peerID == "" && e.localID == "" && t != nil {
		e.peerID, e.localID = first(t.Peer.URISANs), first(t.LocalCert.URISANs)
	}
	e.secure = "none"
	if e.peerID != "" && e.localID != "" {
		e.secure = "mutual_tls"
	}
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

func text(o streaminfo.Object) string {
	switch o := o.(type) {
	case nil:
		return ""
	case streaminfo.String:
		return string(o)
	default:
		return o.Serialize()
	}
}

func denseID(p *streaminfo.Peer) uint32 {
	if p == nil {
		return 0
	}
	return p.DenseID
}

func (ms *Metrics) key(e *ends, proto protocol) key {
	info := e.info
	k := key{
		source: denseID(e.source), destination: denseID(e.destination), peerID: e.peerID, localID: e.localID,
		cluster: info.Upstream.ClusterRaw, clusterMetadata: info.Upstream.ClusterMetadata, flags: info.Flags, code: info.ResponseCode, grpc: -1, proto: proto,
	}
	if e.host != "" || info.RouteName == "block_all" || info.RouteName == "allow_any" {
		k.host, k.route = e.host, info.RouteName
	}
	// Peers without a number of their own are told apart by name.
	for _, p := range [...]*streaminfo.Peer{e.source, e.destination} {
		if p != nil && p.DenseID == 0 && p != ms.self {
			k.extra += "\x00" + strings.Join([]string{p.Workload, p.Namespace, p.CanonicalName, p.CanonicalRevision, p.AppName, p.AppVersion, p.ClusterID, p.Identity}, "\x01")
		}
	}
	return k
}

// evaluate renders the expressions, "unknown" for those that fail, and makes
// them part of the key.
func (ms *Metrics) evaluate(c *format.Context, k *key) []string {
	if len(ms.exprs) == 0 {
		return nil
	}
	out := make([]string, len(ms.exprs))
	for i, e := range ms.exprs {
		var buf [128]byte
		if b, ok := e.Append(buf[:0], c); ok {
			out[i] = string(b)
		} else {
			out[i] = unknown
		}
	}
	k.extra += "\x02" + strings.Join(out, "\x02")
	return out
}

// requestHandles makes the handles of one key. It is the slow path.
func (ms *Metrics) requestHandles(e *ends, k *key, exprs []string) *requestHandles {
	l := ms.labels(e, k)
	m := &ms.metrics
	return &requestHandles{
		requests: m[mRequests].counter(l, exprs), duration: m[mDuration].histogram(l, exprs),
		received: m[mRequestBytes].histogram(l, exprs), sent: m[mResponseBytes].histogram(l, exprs),
	}
}

// messageHandles are those of a gRPC stream, whose outcome is no label.
func (ms *Metrics) messageHandles(e *ends, exprs []string, k key) *messageHandles {
	k.code, k.flags, k.grpc = 0, 0, -1
	return ms.messages.Get(k, func(k key) *messageHandles {
		l := ms.labels(e, &k)
		return &messageHandles{sync.OnceValues(func() (*stats.Counter, *stats.Counter) {
			return ms.metrics[mRequestMessages].counter(l, exprs), ms.metrics[mResponseMessages].counter(l, exprs)
		})}
	})
}

func (ms *Metrics) connectionHandles(e *ends, k *key, exprs []string) *connectionHandles {
	l := ms.labels(e, k)
	m := &ms.metrics
	return &connectionHandles{
		opened: m[mOpened].counter(l, exprs), closed: m[mClosed].counter(l, exprs),
		sent: m[mSent].counter(l, exprs), received: m[mReceived].counter(l, exprs),
	}
}

// labels computes all standard labels. The strings are copied: the request's
// memory is reused.
func (ms *Metrics) labels(e *ends, k *key) *[labelCount]string {
	var l [labelCount]string
	l[lReporter] = reporterNames[ms.reporter]
	host, name, namespace := ms.service(e)
	ms.sourceLabels(&l, e)
	ms.destinationLabels(&l, e)
	ms.serviceLabels(&l, host, name, namespace)
	l[lRequestProtocol] = protocolNames[k.proto]
	l[lResponseCode] = strconv.Itoa(k.code)
	if k.grpc >= 0 {
		l[lGRPCResponseStatus] = strconv.Itoa(k.grpc)
	}
	l[lResponseFlags] = k.flags.String()
	l[lConnectionSecurityPolicy] = e.secure
	for i := range l {
		l[i] = strings.Clone(l[i])
	}
	return &l
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

const unknown = "unknown"

// sourceLabels: this proxy's own labels are written as they are, a peer's with
// defaults.
func (ms *Metrics) sourceLabels(l *[labelCount]string, e *ends) {
	p := e.source
	if ms.reporter == reporterSource {
		l[lSourceWorkload], l[lSourceCanonicalService], l[lSourceCanonicalRevision] = p.Workload, p.CanonicalName, p.CanonicalRevision
		l[lSourceWorkloadNamespace], l[lSourceApp], l[lSourceVersion], l[lSourceCluster] = p.Namespace, p.AppName, p.AppVersion, p.ClusterID
		l[lSourcePrincipal] = or(e.localID, unknown)
		return
	}
	if p == nil {
		p = &streaminfo.Peer{}
	}
	l[lSourceWorkload], l[lSourceCanonicalService] = or(p.Workload, unknown), or(p.CanonicalName, unknown)
	l[lSourceCanonicalRevision] = or(p.CanonicalRevision, "latest")
	l[lSourceWorkloadNamespace] = or(or(namespaceOf(e.peerID), p.Namespace), unknown)
	l[lSourcePrincipal] = or(e.peerID, unknown)
	l[lSourceApp], l[lSourceVersion], l[lSourceCluster] = or(p.AppName, unknown), or(p.AppVersion, unknown), or(p.ClusterID, unknown)
}

func (ms *Metrics) destinationLabels(l *[labelCount]string, e *ends) {
	p := e.destination
	if ms.reporter == reporterDestination {
		l[lDestinationWorkload], l[lDestinationWorkloadNamespace], l[lDestinationApp], l[lDestinationVersion] = p.Workload, p.Namespace, p.AppName, p.AppVersion
		l[lDestinationCanonicalService], l[lDestinationCanonicalRevision], l[lDestinationCluster] = p.CanonicalName, p.CanonicalRevision, p.ClusterID
		l[lDestinationPrincipal] = or(e.localID, unknown)
		return
	}
	if p == nil {
		p = &streaminfo.Peer{}
	}
	principal, namespace, revision := p.Identity, p.Namespace, unknown
	if ms.reporter == reporterSource {
		principal, namespace, revision = e.peerID, or(namespaceOf(e.peerID), p.Namespace), "latest"
	}
	l[lDestinationWorkload], l[lDestinationWorkloadNamespace] = or(p.Workload, unknown), or(namespace, unknown)
	l[lDestinationPrincipal] = or(principal, unknown)
	l[lDestinationApp], l[lDestinationVersion], l[lDestinationCluster] = or(p.AppName, unknown), or(p.AppVersion, unknown), or(p.ClusterID, unknown)
	l[lDestinationCanonicalService], l[lDestinationCanonicalRevision] = or(p.CanonicalName, unknown), or(p.CanonicalRevision, revision)
}

func (ms *Metrics) serviceLabels(l *[labelCount]string, host, name, namespace string) {
	switch ms.reporter {
	case reporterDestination:
		l[lDestinationService], l[lDestinationServiceName] = or(host, ms.self.CanonicalName), or(name, ms.self.CanonicalName)
		l[lDestinationServiceNamespace] = ms.self.Namespace
		return
	case reporterSource:
		if namespace == "" {
			namespace = l[lDestinationWorkloadNamespace]
		}
	case reporterWaypoint:
	}
	l[lDestinationService], l[lDestinationServiceName], l[lDestinationServiceNamespace] = or(host, unknown), or(name, unknown), or(namespace, unknown)
}

// service returns the destination service by the cluster's metadata.
func (ms *Metrics) service(e *ends) (host, name, namespace string) {
	host, name = e.host, e.host
	switch e.info.RouteName {
	case "block_all":
		return host, "BlackHoleCluster", ""
	case "allow_any":
		return host, "PassthroughCluster", ""
	}
	switch c := e.info.Upstream.ClusterRaw; c {
	case "BlackHoleCluster", "PassthroughCluster", "InboundPassthroughCluster", "InboundPassthroughClusterIpv4", "InboundPassthroughClusterIpv6":
		return host, c, ""
	}
	services, _ := e.info.Upstream.ClusterMetadata.Namespace("istio")["services"].([]any)
	if len(services) == 0 {
		return host, name, ""
	}
	s, _ := services[0].(map[string]any)
	if h, ok := s["host"].(string); ok {
		host = h
	}
	namespace, _ = s["namespace"].(string)
	if n, ok := s["name"].(string); ok {
		name = n
	} else {
		name, _, _ = strings.Cut(host, ".")
	}
	return host, name, namespace
}

// namespaceOf returns the namespace in a SPIFFE ID, "" if there is none.
func namespaceOf(principal string) string {
	_, after, ok := strings.Cut(principal, "/ns/")
	if !ok {
		return ""
	}
	ns, _, _ := strings.Cut(after, "/")
	return ns
}
