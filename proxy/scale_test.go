package proxy_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	clusterv3pb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3pb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/proxy"
)

// pusher is a control plane that does as little as possible beside sending what
// it is told to, so that what a push costs is the proxy's.
type pusher struct {
	discoveryv3pb.UnimplementedAggregatedDiscoveryServiceServer
	tb    testing.TB
	n     int // clusters
	out   chan *discoveryv3pb.DeltaDiscoveryResponse
	acks  chan string
	nonce int
}

func manyService(i int) string {
	return fmt.Sprintf("outbound|9080||service-%d.app.svc.cluster.local", i)
}

func manyCluster(i int, connect time.Duration) *clusterv3pb.Cluster {
	return &clusterv3pb.Cluster{
		Name: manyService(i), ClusterDiscoveryType: &clusterv3pb.Cluster_Type{Type: clusterv3pb.Cluster_EDS}, ConnectTimeout: durationpb.New(connect),
		EdsClusterConfig: &clusterv3pb.Cluster_EdsClusterConfig{EdsConfig: &corev3pb.ConfigSource{
			ResourceApiVersion: corev3pb.ApiVersion_V3, ConfigSourceSpecifier: &corev3pb.ConfigSource_Ads{Ads: &corev3pb.AggregatedConfigSource{}},
		}},
	}
}

func manyEndpoints(name string, weight uint32) *endpointv3pb.ClusterLoadAssignment {
	return &endpointv3pb.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3pb.LocalityLbEndpoints{{
		LbEndpoints: []*endpointv3pb.LbEndpoint{{
			HostIdentifier: &endpointv3pb.LbEndpoint_Endpoint{Endpoint: &endpointv3pb.Endpoint{Address: &corev3pb.Address{Address: &corev3pb.Address_SocketAddress{
				SocketAddress: &corev3pb.SocketAddress{Address: "127.0.0.1", PortSpecifier: &corev3pb.SocketAddress_PortValue{PortValue: 9}},
			}}}},
			LoadBalancingWeight: wrapperspb.UInt32(weight),
		}},
	}}}
}

func (p *pusher) response(typeURL string, names []string, ms ...proto.Message) *discoveryv3pb.DeltaDiscoveryResponse {
	r := &discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: typeURL}
	for i, m := range ms {
		b, err := proto.Marshal(m)
		if err != nil {
			p.tb.Error(err)
		}
		r.Resources = append(r.Resources, &discoveryv3pb.Resource{Name: names[i], Version: "1", Resource: &anypb.Any{TypeUrl: typeURL, Value: b}})
	}
	return r
}

// DeltaAggregatedResources implements the service.
func (p *pusher) DeltaAggregatedResources(st discoveryv3pb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	go p.read(st)
	for {
		select {
		case <-st.Context().Done():
			return st.Context().Err()
		case r := <-p.out:
			p.nonce++
			r.Nonce = fmt.Sprint(p.nonce)
			if err := st.Send(r); err != nil {
				return err
			}
		}
	}
}

// read answers what is asked for and hands on what is accepted.
func (p *pusher) read(st discoveryv3pb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) {
	for {
		r, err := st.Recv()
		if err != nil {
			return
		}
		if r.GetErrorDetail() != nil {
			p.tb.Errorf("refused: %s", r.GetErrorDetail().GetMessage())
		}
		var ms []proto.Message
		names := r.GetResourceNamesSubscribe()
		switch {
		case r.GetResponseNonce() != "":
			select {
			case p.acks <- r.GetTypeUrl():
			default: // nobody counts them
			}
			continue
		case r.GetTypeUrl() == xdstest.Cluster:
			names = nil
			for i := range p.n {
				names, ms = append(names, manyService(i)), append(ms, manyCluster(i, time.Second))
			}
		case r.GetTypeUrl() == xdstest.Endpoints:
			for _, n := range names {
				ms = append(ms, manyEndpoints(n, 1))
			}
		}
		select {
		case p.out <- p.response(r.GetTypeUrl(), names, ms...):
		case <-st.Context().Done():
			return
		}
	}
}

// push sends a response and waits until it is accepted.
func (p *pusher) push(r *discoveryv3pb.DeltaDiscoveryResponse) {
	for len(p.acks) > 0 {
		<-p.acks
	}
	p.out <- r
	for end := time.After(20 * time.Second); ; {
		select {
		case got := <-p.acks:
			if got == r.GetTypeUrl() {
				return
			}
		case <-end:
			p.tb.Fatal("a push is not answered")
		}
	}
}

// pushWorld is a proxy that has n clusters with endpoints from a control plane.
func pushWorld(tb testing.TB, n int) (*pusher, *proxy.Process) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &pusher{tb: tb, n: n, out: make(chan *discoveryv3pb.DeltaDiscoveryResponse, 1), acks: make(chan string, 16)}
	g := grpc.NewServer()
	discoveryv3pb.RegisterAggregatedDiscoveryServiceServer(g, p)
	go func() { _ = g.Serve(l) }()
	tb.Cleanup(g.Stop)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	proc := startProxyWith(tb, fmt.Sprintf(`
node: {id: edge, cluster: edge}
dynamic_resources:
  cds_config: {ads: {}}
  ads_config: {api_type: DELTA_GRPC, grpc_services: [{envoy_grpc: {cluster_name: cp}}]}
static_resources:
  clusters:
  - {name: cp, type: STATIC, load_assignment: {cluster_name: cp, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %s}}}}]}]}}
`, port), proxy.ProcessOptions{Registry: builtin.Registry()})
	await(tb, func() bool {
		ready := 0
		for _, c := range proc.Server().Clusters().Clusters() {
			if !c.Warming && len(c.Hosts) == 1 {
				ready++
			}
		}
		return ready == n+1
	})
	return p, proc
}

// await waits for a condition.
func await(tb testing.TB, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatal("it does not come to that")
		}
	}
}

// pushes of one cluster of many, which are in force when they return, and of the
// endpoints of one.
func (p *pusher) cluster(proc *proxy.Process, i, k int) {
	connect := time.Duration(2+k) * time.Second
	was := proc.Server().Snapshot().Generation
	p.push(p.response(xdstest.Cluster, []string{manyService(i)}, manyCluster(i, connect)))
	await(p.tb, func() bool { return proc.Server().Snapshot().Generation > was })
	if c := proc.Server().Clusters().Cluster(manyService(i)); c == nil || c.Spec().ConnectTimeout != connect {
		p.tb.Fatalf("the cluster is %v, want one with connect_timeout %v", c, connect)
	}
}

func (p *pusher) endpoints(i, k int) {
	p.push(p.response(xdstest.Endpoints, []string{manyService(i)}, manyEndpoints(manyService(i), uint32(2+k))))
}

// allocatedBy is how much memory each of n runs of f takes, in bytes.
func allocatedBy(n int, f func(k int)) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for k := range n {
		f(k)
	}
	runtime.ReadMemStats(&after)
	return (after.TotalAlloc - before.TotalAlloc) / uint64(n)
}

// What a push costs, from the wire into force, depends on what it changes and not on
// how much there is: before, 5 MB were copied for each cluster.
func TestAPushOfOneClusterOf10000CostsWhatItChanges(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector takes too long for so many")
	}
	p, proc := pushWorld(t, 10000)
	const most = 256 << 10
	if got := allocatedBy(20, func(k int) { p.cluster(proc, 7, k) }); got > most {
		t.Errorf("the push of a cluster takes %d bytes, want at most %d", got, most)
	}
	if got := allocatedBy(20, func(k int) { p.endpoints(7, k) }); got > most {
		t.Errorf("the push of endpoints takes %d bytes, want at most %d", got, most)
	}
}

// Clusters that come, change and go one by one add up to what the control plane
// has, beside static ones of the same name.
func TestPushesOfClustersAddUp(t *testing.T) {
	cp := xdstest.New(t, xdstest.Options{})
	proc := startProxy(t, strings.Replace(adsYAML(cp), "lds_config", "cds_config", 1)+
		"  - {name: c1, type: STATIC, connect_timeout: 77s, load_assignment: {cluster_name: c1}}\n", nil)
	rnd := rand.New(rand.NewPCG(7, 8))
	want := map[string]time.Duration{}
	served := func() bool {
		for name, d := range want {
			if c := proc.Server().Clusters().Cluster(name); c == nil || c.Spec().ConnectTimeout != d {
				return false
			}
		}
		return true
	}
	for range 20 {
		var set []xdstest.Resource
		var remove []xdstest.Key
		for i := range 6 {
			name := fmt.Sprint("c", i)
			switch rnd.IntN(3) {
			case 0:
				delete(want, name)
				remove = append(remove, xdstest.Key{TypeURL: xdstest.Cluster, Name: name})
			case 1:
				want[name] = time.Duration(1+rnd.IntN(5)) * time.Second
				rs, err := xdstest.Load(fmt.Appendf(nil, `[{"@type": %q, name: %s, type: STATIC, connect_timeout: %s, load_assignment: {cluster_name: %[2]s}}]`, xdstest.Cluster, name, want[name]), nil)
				if err != nil {
					t.Fatal(err)
				}
				set = append(set, rs...)
			}
		}
		cp.Update(set, remove)
		want["c1"] = 77 * time.Second
		await(t, served) // those that went linger
	}
	await(t, func() bool { return len(proc.Server().Clusters().Clusters()) == len(want)+1 && served() })
}

func BenchmarkPushOneClusterOf10000(b *testing.B) {
	p, proc := pushWorld(b, 10000)
	b.ReportAllocs()
	k := 0
	cpu := processTime()
	for b.Loop() {
		p.cluster(proc, 7, k)
		k++
	}
	b.ReportMetric(float64((processTime()-cpu).Microseconds())/float64(b.N), "µs-cpu/op")
}

func BenchmarkPushEndpointsOfOneOf10000(b *testing.B) {
	p, _ := pushWorld(b, 10000)
	b.ReportAllocs()
	k := 0
	cpu := processTime()
	for b.Loop() {
		p.endpoints(7, k)
		k++
	}
	b.ReportMetric(float64((processTime()-cpu).Microseconds())/float64(b.N), "µs-cpu/op")
}

// processTime is the processor time of this process.
func processTime() time.Duration {
	var r unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
