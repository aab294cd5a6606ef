package xdsclient_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3pb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3pb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3pb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	xdsserver "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/xdsclient"
)

// cachePlane is go-control-plane's cache server, state of the world.
type cachePlane struct {
	t     *testing.T
	cache cache.SnapshotCache
	addr  string
	stop  func()

	mu       sync.Mutex
	requests []*discoveryv3pb.DiscoveryRequest
	version  int
}

func newCachePlane(t *testing.T) *cachePlane {
	t.Helper()
	p := &cachePlane{t: t, cache: cache.NewSnapshotCache(false, cache.IDHash{}, nil)}
	p.serve("127.0.0.1:0")
	t.Cleanup(func() { p.stop() })
	return p
}

func (p *cachePlane) serve(addr string) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := xdsserver.NewServer(ctx, p.cache, xdsserver.CallbackFuncs{StreamRequestFunc: func(_ int64, r *discoveryv3pb.DiscoveryRequest) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.requests = append(p.requests, proto.CloneOf(r))
		return nil
	}})
	g := grpc.NewServer()
	discoveryv3pb.RegisterAggregatedDiscoveryServiceServer(g, s)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		p.t.Fatal(err)
	}
	p.addr = l.Addr().String()
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	p.stop = func() { cancel(); g.Stop(); <-done }
}

// set replaces the snapshot: "cds/a=1" is a cluster a of value 1 with endpoints
// a, "lds/l=1" a listener with routes l, "eds/a=1", "rds/l=1".
func (p *cachePlane) set(world ...string) {
	p.t.Helper()
	res := map[resource.Type][]types.Resource{}
	for _, w := range world {
		kind, rest, _ := strings.Cut(w, "/")
		name, v, _ := strings.Cut(rest, "=")
		switch kind {
		case "cds":
			res[resource.ClusterType] = append(res[resource.ClusterType], &clusterv3pb.Cluster{Name: name, AltStatName: v})
		case "eds":
			res[resource.EndpointType] = append(res[resource.EndpointType], &endpointv3pb.ClusterLoadAssignment{ClusterName: name, NamedEndpoints: map[string]*endpointv3pb.Endpoint{v: {}}})
		case "lds":
			res[resource.ListenerType] = append(res[resource.ListenerType], &listenerv3pb.Listener{Name: name, StatPrefix: v})
		case "rds":
			res[resource.RouteType] = append(res[resource.RouteType], &routev3pb.RouteConfiguration{Name: name, InternalOnlyHeaders: []string{v}})
		}
	}
	p.mu.Lock()
	p.version++
	v := fmt.Sprintf("v%d", p.version)
	p.mu.Unlock()
	snap, err := cache.NewSnapshot(v, res)
	if err == nil {
		err = p.cache.SetSnapshot(context.Background(), "n", snap)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *cachePlane) sent() []*discoveryv3pb.DiscoveryRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.requests)
}

// decodeReal decodes what cachePlane.set makes; the value "bad" is refused.
func decodeReal(typeURL string) xdsclient.Decoder {
	return func(name string, b []byte) (any, []xdsclient.Key, error) {
		var v string
		var refs []xdsclient.Key
		var err error
		switch typeURL {
		case resource.ClusterType:
			var m clusterv3pb.Cluster
			err = proto.Unmarshal(b, &m)
			v, refs = m.GetAltStatName(), []xdsclient.Key{{TypeURL: resource.EndpointType, Name: name}}
		case resource.ListenerType:
			var m listenerv3pb.Listener
			err = proto.Unmarshal(b, &m)
			v, refs = m.GetStatPrefix(), []xdsclient.Key{{TypeURL: resource.RouteType, Name: name}}
		case resource.EndpointType:
			var m endpointv3pb.ClusterLoadAssignment
			err = proto.Unmarshal(b, &m)
			for k := range m.GetNamedEndpoints() {
				v = k
			}
		case resource.RouteType:
			var m routev3pb.RouteConfiguration
			err = proto.Unmarshal(b, &m)
			v = strings.Join(m.GetInternalOnlyHeaders(), "")
		}
		if err == nil && strings.HasPrefix(v, "bad") {
			err = fmt.Errorf("value %s", v)
		}
		return v, refs, err
	}
}

func sotwClient(t *testing.T, target string, tune func(*xdsclient.Config)) *xdsclient.Client {
	t.Helper()
	types := []xdsclient.ResourceType{
		{TypeURL: resource.ClusterType, Wildcard: true},
		{TypeURL: resource.EndpointType, KeepRemoved: true},
		{TypeURL: resource.ListenerType, Wildcard: true, After: []string{resource.ClusterType}},
		{TypeURL: resource.RouteType, KeepRemoved: true},
	}
	for i := range types {
		types[i].Decode = decodeReal(types[i].TypeURL)
	}
	cfg := xdsclient.Config{
		Target: target, StateOfTheWorld: true, Types: types, Node: xdsclient.Node{ID: "n"},
		MinBackoff: 10 * time.Millisecond, MaxBackoff: 50 * time.Millisecond, Quiet: 5 * time.Millisecond,
	}
	if tune != nil {
		tune(&cfg)
	}
	c, err := xdsclient.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return c
}

// holds renders what the client holds now.
func holds(c *xdsclient.Client) string {
	var out []string
	for kind, typeURL := range map[string]string{"cds": resource.ClusterType, "eds": resource.EndpointType, "lds": resource.ListenerType, "rds": resource.RouteType} {
		for r := range c.View().All(typeURL) {
			out = append(out, fmt.Sprintf("%s/%s=%v", kind, r.Name, r.Value))
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func awaitHeld(t *testing.T, what string, c *xdsclient.Client, want string) {
	t.Helper()
	for end := time.Now().Add(wait); holds(c) != want; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: held is %q, want %q", what, holds(c), want)
		}
	}
}

func TestStateOfTheWorldFromGoControlPlane(t *testing.T) {
	p := newCachePlane(t)
	p.set("cds/a=1", "cds/b=1", "eds/a=1", "eds/b=1", "lds/l=1", "rds/l=1")
	c := sotwClient(t, p.addr, nil)
	awaitHeld(t, "the first state", c, "cds/a=1 cds/b=1 eds/a=1 eds/b=1 lds/l=1 rds/l=1")
	p.set("cds/a=2", "cds/c=1", "eds/a=2", "eds/c=1", "lds/l=2", "rds/l=2")
	awaitHeld(t, "a missing cluster is removed, a new one has its endpoints", c, "cds/a=2 cds/c=1 eds/a=2 eds/c=1 lds/l=2 rds/l=2")
	p.set("cds/a=2", "cds/c=1", "lds/l=2", "lds/m=1")
	awaitHeld(t, "missing endpoints and routes stay", c, "cds/a=2 cds/c=1 eds/a=2 eds/c=1 lds/l=2 lds/m=1 rds/l=2")

	// A bad cluster keeps its last good form; the others of the response apply.
	before := len(p.sent())
	p.set("cds/a=bad", "cds/c=3", "eds/a=3", "eds/c=3", "lds/l=3", "rds/l=3")
	awaitHeld(t, "a bad one among good ones", c, "cds/a=2 cds/c=3 eds/a=3 eds/c=3 lds/l=3 rds/l=3")
	answers := func() (nacks, others int) {
		for _, r := range p.sent()[before:] {
			if r.GetErrorDetail() == nil {
				others++
			} else {
				nacks++
			}
		}
		return nacks, others
	}
	for end := time.Now().Add(wait); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if nacks, others := answers(); nacks > 0 && others > 0 {
			break // both are on their way to the server
		}
	}
	time.Sleep(200 * time.Millisecond)
	for _, r := range p.sent()[before:] {
		if r.GetErrorDetail() == nil {
			continue
		}
		if r.GetTypeUrl() != resource.ClusterType || r.GetVersionInfo() != "v3" || r.GetErrorDetail().GetMessage() != "a: value bad" {
			t.Errorf("a NACK of %s says version %s, %q", r.GetTypeUrl(), r.GetVersionInfo(), r.GetErrorDetail().GetMessage())
		}
	}
	if nacks, others := answers(); nacks == 0 || nacks > 3 || others == 0 {
		t.Errorf("%d NACKs, %d ACKs", nacks, others)
	}
	if st := c.Status(); len(st.Types[0].Rejected) != 1 || !st.Types[0].Rejected[0].Serving {
		t.Errorf("status %+v", st.Types[0])
	}
	p.set("cds/a=4", "cds/c=4", "eds/a=4", "eds/c=4", "lds/l=4", "rds/l=4")
	awaitHeld(t, "good again", c, "cds/a=4 cds/c=4 eds/a=4 eds/c=4 lds/l=4 rds/l=4")

	// Another stream: the versions that are held are named, and what has gone
	// meanwhile is removed.
	p.stop()
	for end := time.Now().Add(wait); c.Status().State == xdsclient.StateConnected && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if got := holds(c); got != "cds/a=4 cds/c=4 eds/a=4 eds/c=4 lds/l=4 rds/l=4" {
		t.Errorf("without a control plane %q is held", got)
	}
	before = len(p.sent())
	p.serve(p.addr)
	for end := time.Now().Add(wait); len(p.sent()) < before+4; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d requests after the reconnect", len(p.sent())-before)
		}
	}
	for _, r := range p.sent()[before : before+4] {
		if r.GetVersionInfo() != "v5" || r.GetResponseNonce() != "" {
			t.Errorf("the first request for %s is %v", r.GetTypeUrl(), r)
		}
	}
	p.set("cds/c=5", "eds/c=5", "lds/l=5", "rds/l=5")
	awaitHeld(t, "after a reconnect", c, "cds/c=5 eds/c=5 lds/l=5 rds/l=5")
	p.set("lds/n=1", "rds/n=1")
	awaitHeld(t, "no clusters", c, "lds/n=1 rds/n=1")
}
