package corpus

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	accesslogv3pb "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3pb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filelogv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	faultv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	localratelimitv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	hcmv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	snidfpv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3"
	tcpproxyv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	typev3pb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
)

// idHeader tells requests apart, here, at the origins and in the log.
const idHeader = "x-corpus-id"

// logFormat is a line for each request and connection: what the proxy says
// about the way that it took.
const logFormat = "%REQ(X-CORPUS-ID)%\t%FILTER_CHAIN_NAME%\t%ROUTE_NAME%\t%UPSTREAM_CLUSTER_RAW%\t%RESPONSE_CODE%\t%RESPONSE_FLAGS%\t%RESPONSE_CODE_DETAILS%\n"

func pack(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// unpack fills m if a is of its type.
func unpack(t *testing.T, a *anypb.Any, m proto.Message) bool {
	t.Helper()
	if !a.MessageIs(m) {
		return false
	}
	if err := a.UnmarshalTo(m); err != nil {
		t.Fatal(err)
	}
	return true
}

// editor makes a scenario observable and repeatable: names for chains and
// routes that have none, a line in the log for everything, chances made
// certain. What traffic cannot pass is taken out and counted.
type editor struct {
	t    *testing.T
	s    *scenario
	log  string
	outs []*taken
	// named starts the origin to which a chain with sni_dynamic_forward_proxy
	// connects.
	named func(*listenerv3pb.FilterChain) *net.TCPAddr
}

func (e *editor) all() {
	for _, l := range e.s.listeners {
		e.quiet(&l.AccessLog, false)
		for i, fc := range l.GetFilterChains() {
			if fc.GetName() == "" {
				fc.Name = fmt.Sprintf("%s#%d", l.GetName(), i)
			}
			e.chain(fc)
		}
	}
	for _, rc := range e.s.routes {
		e.routes(rc.GetName(), rc)
	}
}

func (e *editor) chain(fc *listenerv3pb.FilterChain) {
	var keep []*listenerv3pb.Filter
	for _, f := range fc.GetFilters() {
		if e.out(fc.GetName(), f.GetName()) {
			continue
		}
		keep = append(keep, f)
		a := f.GetTypedConfig()
		var hcm hcmv3pb.HttpConnectionManager
		var tcp tcpproxyv3pb.TcpProxy
		var sni snidfpv3pb.FilterConfig
		switch {
		case unpack(e.t, a, &hcm):
			e.quiet(&hcm.AccessLog, true)
			if rc := hcm.GetRouteConfig(); rc != nil {
				e.routes(fc.GetName(), rc)
			}
			hcm.HttpFilters = slices.DeleteFunc(hcm.GetHttpFilters(), func(h *hcmv3pb.HttpFilter) bool { return e.out(fc.GetName(), h.GetName()) })
			for _, h := range hcm.GetHttpFilters() {
				e.certain(h)
			}
			a = pack(e.t, &hcm)
		case unpack(e.t, a, &tcp):
			e.quiet(&tcp.AccessLog, true)
			a = pack(e.t, &tcp)
		case unpack(e.t, a, &sni):
			at := e.named(fc)
			sni.PortSpecifier = &snidfpv3pb.FilterConfig_PortValue{PortValue: uint32(at.Port)}
			a = pack(e.t, &sni)
		default:
			continue
		}
		f.ConfigType = &listenerv3pb.Filter_TypedConfig{TypedConfig: a}
	}
	fc.Filters = keep
}

// certain lifts limits that a test would run into.
func (e *editor) certain(h *hcmv3pb.HttpFilter) {
	var rl localratelimitv3pb.LocalRateLimit
	if a := h.GetTypedConfig(); a != nil && unpack(e.t, a, &rl) {
		rl.TokenBucket.MaxTokens = 1 << 20
		a.Value = pack(e.t, &rl).GetValue()
	}
}

// quiet keeps the configured logs off the terminal, and adds ours.
func (e *editor) quiet(logs *[]*accesslogv3pb.AccessLog, add bool) {
	for _, l := range *logs {
		var f filelogv3pb.FileAccessLog
		if unpack(e.t, l.GetTypedConfig(), &f) {
			f.Path = "/dev/null"
			l.ConfigType = &accesslogv3pb.AccessLog_TypedConfig{TypedConfig: pack(e.t, &f)}
		}
	}
	if add {
		*logs = append(*logs, &accesslogv3pb.AccessLog{Name: "corpus", ConfigType: &accesslogv3pb.AccessLog_TypedConfig{TypedConfig: pack(e.t, &filelogv3pb.FileAccessLog{
			Path: e.log, AccessLogFormat: &filelogv3pb.FileAccessLog_LogFormat{LogFormat: &corev3pb.SubstitutionFormatString{
				Format: &corev3pb.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3pb.DataSource{Specifier: &corev3pb.DataSource_InlineString{InlineString: logFormat}}},
			}},
		})}})
	}
}

// routes names every route for itself, and makes what happens by chance happen
// always.
func (e *editor) routes(table string, rc *routev3pb.RouteConfiguration) {
	for _, vh := range rc.GetVirtualHosts() {
		if strings.HasPrefix(vh.GetDomains()[0], "*.") && !wellKnown() {
			rc.IgnorePortInHostMatching = true
		}
		for i, r := range vh.GetRoutes() {
			r.Name = fmt.Sprintf("%s/%s/%d/%s", table, vh.GetName(), i, r.GetName())
			for _, m := range r.GetRoute().GetRequestMirrorPolicies() {
				always(m.GetRuntimeFraction().GetDefaultValue())
			}
			for _, a := range r.GetTypedPerFilterConfig() {
				var f faultv3pb.HTTPFault
				if unpack(e.t, a, &f) {
					always(f.GetAbort().GetPercentage())
					always(f.GetDelay().GetPercentage())
					if d := f.GetDelay(); d != nil {
						d.GetFixedDelay().Seconds = 0
						d.GetFixedDelay().Nanos = 30e6
					}
					a.Value = pack(e.t, &f).GetValue()
				}
			}
		}
	}
}

func always(p *typev3pb.FractionalPercent) {
	if p != nil {
		p.Numerator, p.Denominator = 100, typev3pb.FractionalPercent_HUNDRED
	}
}

// taken is a filter that is taken out of chains, and why.
type taken struct {
	// chain and filter are exact, or prefixes that end in "*".
	chain, filter string
	why           string
	n             int
}

func (k *taken) is(chain, filter string) bool { return glob(k.chain, chain) && glob(k.filter, filter) }

func glob(pattern, s string) bool {
	if p, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(s, p)
	}
	return pattern == s
}

func (e *editor) out(chain, filter string) bool {
	for _, k := range e.outs {
		if k.is(chain, filter) {
			k.n++
			return true
		}
	}
	return false
}

// clustersOf lists where a chain may lead to.
func (s *scenario) clustersOf(t *testing.T, fc *listenerv3pb.FilterChain) []string {
	t.Helper()
	var out []string
	for _, f := range fc.GetFilters() {
		var hcm hcmv3pb.HttpConnectionManager
		var tcp tcpproxyv3pb.TcpProxy
		switch {
		case unpack(t, f.GetTypedConfig(), &hcm):
			for _, vh := range s.table(&hcm).GetVirtualHosts() {
				for _, r := range vh.GetRoutes() {
					for _, c := range targets(r.GetRoute()) {
						out = append(out, c.GetName())
					}
				}
			}
		case unpack(t, f.GetTypedConfig(), &tcp):
			out = append(out, tcpTargets(&tcp)...)
		}
	}
	return out
}

// table is the route configuration of a connection manager.
func (s *scenario) table(hcm *hcmv3pb.HttpConnectionManager) *routev3pb.RouteConfiguration {
	if rds := hcm.GetRds(); rds != nil {
		return s.routes[rds.GetRouteConfigName()]
	}
	return hcm.GetRouteConfig()
}

// targets are the clusters of a route that get requests.
func targets(a *routev3pb.RouteAction) []*routev3pb.WeightedCluster_ClusterWeight {
	if c := a.GetCluster(); c != "" {
		return []*routev3pb.WeightedCluster_ClusterWeight{{Name: c}}
	}
	return slices.DeleteFunc(slices.Clone(a.GetWeightedClusters().GetClusters()), func(c *routev3pb.WeightedCluster_ClusterWeight) bool { return c.GetWeight().GetValue() == 0 })
}

func tcpTargets(tcp *tcpproxyv3pb.TcpProxy) []string {
	if c := tcp.GetCluster(); c != "" {
		return []string{c}
	}
	var out []string
	for _, c := range tcp.GetWeightedClusters().GetClusters() {
		if c.GetWeight() > 0 {
			out = append(out, c.GetName())
		}
	}
	return out
}

// certify puts certificates of ca in the place of those in the dump; those of
// a client have the secret's name as their common name.
func (s *scenario) certify(t *testing.T, ca *identity.DevCA) {
	t.Helper()
	for i, r := range s.rest {
		if r.TypeURL != xdstest.Secret {
			continue
		}
		var sec tlsv3pb.Secret
		if err := proto.Unmarshal(r.Value, &sec); err != nil {
			t.Fatal(err)
		}
		if c := sec.GetTlsCertificate(); c != nil {
			cert, key := issue(t, ca, r.Name)
			c.CertificateChain, c.PrivateKey = inline(cert), inline(key)
		}
		if v := sec.GetValidationContext(); v != nil {
			v.TrustedCa = inline(ca.RootsPEM())
		}
		b, err := proto.Marshal(&sec)
		if err != nil {
			t.Fatal(err)
		}
		s.rest[i].Value = b
	}
}

func inline(b []byte) *corev3pb.DataSource {
	return &corev3pb.DataSource{Specifier: &corev3pb.DataSource_InlineBytes{InlineBytes: b}}
}
