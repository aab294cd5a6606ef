package demo

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"

	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fairlead-mesh/fairlead/internal/xdstest"
)

// controlPlane is go-control-plane's ADS server with its snapshot cache.
type controlPlane struct {
	cache   cache.SnapshotCache
	grpc    *grpc.Server
	l       net.Listener
	version atomic.Uint64

	mu sync.Mutex
	// nodes are who is at the other end of a stream; unanswered counts the
	// responses that a node has neither taken nor refused, refused is its first
	// refusal.
	nodes      map[int64]string
	unanswered map[string]int
	refused    map[string]error
}

func newControlPlane(ctx context.Context, l net.Listener) *controlPlane {
	c := &controlPlane{
		cache: cache.NewSnapshotCache(true, cache.IDHash{}, nil), grpc: grpc.NewServer(), l: l,
		nodes: map[int64]string{}, unanswered: map[string]int{}, refused: map[string]error{},
	}
	discoveryv3pb.RegisterAggregatedDiscoveryServiceServer(c.grpc, server.NewServer(ctx, c.cache, server.CallbackFuncs{
		StreamDeltaRequestFunc:  c.requested,
		StreamDeltaResponseFunc: c.responded,
	}))
	return c
}

// requested sees each request; only the first of a stream names its node.
func (c *controlPlane) requested(stream int64, r *discoveryv3pb.DeltaDiscoveryRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id := r.GetNode().GetId(); id != "" {
		c.nodes[stream] = id
	}
	node := c.nodes[stream]
	if r.GetResponseNonce() != "" {
		c.unanswered[node]--
	}
	if e := r.GetErrorDetail(); e != nil && c.refused[node] == nil {
		c.refused[node] = fmt.Errorf("refused %s of the control plane: %s", r.GetTypeUrl(), e.GetMessage())
	}
	return nil
}

func (c *controlPlane) responded(stream int64, _ *discoveryv3pb.DeltaDiscoveryRequest, _ *discoveryv3pb.DeltaDiscoveryResponse) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unanswered[c.nodes[stream]]++
}

// verdict is what a node refused, and whether it has judged all it was sent.
func (c *controlPlane) verdict(node string) (refused error, complete bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refused[node], c.unanswered[node] == 0
}

func (c *controlPlane) serve() { _ = c.grpc.Serve(c.l) }

func (c *controlPlane) stop() { c.grpc.Stop() }

// snapshot reads a document of resources.
func (c *controlPlane) snapshot(doc []byte) (*cache.Snapshot, error) {
	rs, err := xdstest.Load(doc, nil)
	if err != nil {
		return nil, err
	}
	byType := map[string][]types.Resource{}
	for _, r := range rs {
		m, err := anypb.UnmarshalNew(&anypb.Any{TypeUrl: r.TypeURL, Value: r.Value}, proto.UnmarshalOptions{})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.Name, err)
		}
		byType[r.TypeURL] = append(byType[r.TypeURL], m)
	}
	s, err := cache.NewSnapshot(strconv.FormatUint(c.version.Add(1), 10), byType)
	if err != nil {
		return nil, err
	}
	return s, s.Consistent()
}
