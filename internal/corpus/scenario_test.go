package corpus

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	clusterv3pb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3pb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3pb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	// What the dumps hold beside what package xdstest links.
	_ "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_web/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/mongo_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/cel/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/req_without_query/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/resource_detectors/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	_ "istio.io/api/envoy/config/filter/http/alpn/v2alpha1"

	"github.com/fairlead-mesh/fairlead/internal/xdstest"
)

// dumps are what istiod sent; see the README there.
const dumps = "../../xdsclient/xdsresource/testdata/istiod"

// scenario is one dump, decoded.
type scenario struct {
	name      string
	listeners []*listenerv3pb.Listener
	clusters  map[string]*clusterv3pb.Cluster
	routes    map[string]*routev3pb.RouteConfiguration
	endpoints map[string]*endpointv3pb.ClusterLoadAssignment
	// rest are secrets and extension configurations.
	rest []xdstest.Resource
}

func readDump(t *testing.T, name, kind string, each func(name string, raw json.RawMessage)) {
	t.Helper()
	f, err := os.Open(filepath.Join(dumps, name, kind+".json.gz"))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	var list []struct {
		Name     string
		Resource json.RawMessage
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		each(e.Name, e.Resource)
	}
}

func parse[M proto.Message](t *testing.T, raw []byte, m M) M {
	t.Helper()
	if err := protojson.Unmarshal(raw, m); err != nil {
		t.Fatal(err)
	}
	return m
}

// loadScenario reads a dump. files are put in the place of paths that only a
// pod has.
func loadScenario(t *testing.T, name string, files *strings.Replacer) *scenario {
	t.Helper()
	s := &scenario{
		name: name, clusters: map[string]*clusterv3pb.Cluster{}, routes: map[string]*routev3pb.RouteConfiguration{},
		endpoints: map[string]*endpointv3pb.ClusterLoadAssignment{},
	}
	readDump(t, name, "lds", func(_ string, raw json.RawMessage) {
		s.listeners = append(s.listeners, parse(t, []byte(files.Replace(string(raw))), &listenerv3pb.Listener{}))
	})
	readDump(t, name, "cds", func(n string, raw json.RawMessage) {
		s.clusters[n] = parse(t, []byte(files.Replace(string(raw))), &clusterv3pb.Cluster{})
	})
	readDump(t, name, "rds", func(n string, raw json.RawMessage) { s.routes[n] = parse(t, raw, &routev3pb.RouteConfiguration{}) })
	readDump(t, name, "eds", func(n string, raw json.RawMessage) {
		s.endpoints[n] = parse(t, raw, &endpointv3pb.ClusterLoadAssignment{})
	})
	for kind, typeURL := range map[string]string{"ecds": xdstest.ExtensionCfg, "sds": xdstest.Secret} {
		readDump(t, name, kind, func(n string, raw json.RawMessage) {
			doc, err := json.Marshal([]map[string]any{{"name": n, "resource": raw}})
			if err != nil {
				t.Fatal(err)
			}
			rs, err := xdstest.LoadNamed(typeURL, doc)
			if err != nil {
				t.Fatal(err)
			}
			s.rest = append(s.rest, rs...)
		})
	}
	return s
}

// serve hands the scenario to a control plane.
func (s *scenario) serve(t *testing.T, cp *xdstest.Server) {
	t.Helper()
	var rs []xdstest.Resource
	add := func(typeURL, name string, m proto.Message) {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, xdstest.Resource{TypeURL: typeURL, Name: name, Value: b})
	}
	for _, l := range s.listeners {
		add(xdstest.Listener, l.GetName(), l)
	}
	for n, m := range s.clusters {
		add(xdstest.Cluster, n, m)
	}
	for n, m := range s.routes {
		add(xdstest.Route, n, m)
	}
	for n, m := range s.endpoints {
		add(xdstest.Endpoints, n, m)
	}
	cp.Update(append(rs, s.rest...), nil)
}

// Internal listeners through which an endpoint may be reached.
const (
	hbone       = "connect_originate"
	doubleHBONE = "inner_connect_originate"
	forwarded   = "forward_inner_connect"
)

// atOrigins moves every endpoint to loopback, each to an address of its own.
func (s *scenario) atOrigins(t *testing.T, o *origins) {
	t.Helper()
	o.tunnelled("encap") // whatever is first fixes the port of tunnels
	for name, c := range s.clusters {
		cla := c.GetLoadAssignment()
		if c.GetType() == clusterv3pb.Cluster_EDS {
			cla = s.populated(edsName(c))
		}
		for _, le := range cla.GetEndpoints() {
			for _, ep := range le.GetLbEndpoints() {
				move(t, o, name, c.GetType(), ep)
			}
		}
		if od := c.GetOriginalDstLbConfig(); od.GetUpstreamPortOverride() != nil {
			od.UpstreamPortOverride = wrapperspb.UInt32(uint32(o.port))
		}
	}
}

// populated is the assignment called name, with an endpoint to move if istiod
// had none: chains that pass on TLS of sidecars have none in ambient mode.
func (s *scenario) populated(name string) *endpointv3pb.ClusterLoadAssignment {
	cla := s.endpoints[name]
	if cla == nil {
		cla = &endpointv3pb.ClusterLoadAssignment{ClusterName: name}
		s.endpoints[name] = cla
	}
	if !slices.ContainsFunc(cla.GetEndpoints(), func(l *endpointv3pb.LocalityLbEndpoints) bool { return len(l.GetLbEndpoints()) > 0 }) {
		cla.Endpoints = []*endpointv3pb.LocalityLbEndpoints{{LoadBalancingWeight: wrapperspb.UInt32(1), LbEndpoints: []*endpointv3pb.LbEndpoint{{
			HostIdentifier: &endpointv3pb.LbEndpoint_Endpoint{Endpoint: &endpointv3pb.Endpoint{Address: &corev3pb.Address{
				Address: &corev3pb.Address_SocketAddress{SocketAddress: &corev3pb.SocketAddress{}},
			}}},
		}}}}
	}
	return cla
}

func edsName(c *clusterv3pb.Cluster) string {
	if n := c.GetEdsClusterConfig().GetServiceName(); n != "" {
		return n
	}
	return c.GetName()
}

func move(t *testing.T, o *origins, cluster string, kind clusterv3pb.Cluster_DiscoveryType, ep *endpointv3pb.LbEndpoint) {
	t.Helper()
	a := ep.GetEndpoint().GetAddress()
	if sa := a.GetSocketAddress(); sa != nil {
		at := o.plain(cluster)
		if kind == clusterv3pb.Cluster_STRICT_DNS || kind == clusterv3pb.Cluster_LOGICAL_DNS {
			sa.Address = dnsLabel(at.IP) + "." + sa.GetAddress()
		} else {
			sa.Address = at.IP.String()
		}
		sa.PortSpecifier = &corev3pb.SocketAddress_PortValue{PortValue: uint32(at.Port)}
		return
	}
	in := a.GetEnvoyInternalAddress()
	if in.GetEndpointId() == "" {
		return // another listener of the proxy
	}
	switch in.GetServerListenerName() {
	case hbone, doubleHBONE, forwarded:
	default:
		t.Fatalf("%s has an endpoint behind %s", cluster, in.GetServerListenerName())
	}
	_, port, ok := strings.Cut(in.GetEndpointId(), ":")
	if !ok {
		t.Fatalf("%s: endpoint %q", cluster, in.GetEndpointId())
	}
	at := o.tunnelled(cluster)
	in.EndpointId = at + ":" + port
	dst := ep.GetMetadata().GetFilterMetadata()["envoy.filters.listener.original_dst"]
	if dst == nil {
		t.Fatalf("%s: endpoint without a destination", cluster)
	}
	if _, ok := dst.GetFields()["waypoint"]; ok { // local is the service, waypoint is dialled
		dst.Fields["waypoint"] = structpb.NewStringValue(in.GetEndpointId())
		return
	}
	dst.Fields["local"] = structpb.NewStringValue(in.GetEndpointId())
}

func dnsLabel(ip fmt.Stringer) string { return "h-" + strings.ReplaceAll(ip.String(), ".", "-") }
