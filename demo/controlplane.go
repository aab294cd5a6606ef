package demo

import (
	"context"
	"fmt"
	"net"
	"strconv"
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
	// refused gets the first refusal of a resource by a proxy.
	refused chan error
}

func newControlPlane(ctx context.Context, l net.Listener) *controlPlane {
	c := &controlPlane{cache: cache.NewSnapshotCache(true, cache.IDHash{}, nil), grpc: grpc.NewServer(), l: l, refused: make(chan error, 1)}
	discoveryv3pb.RegisterAggregatedDiscoveryServiceServer(c.grpc, server.NewServer(ctx, c.cache, server.CallbackFuncs{
		StreamDeltaRequestFunc: func(_ int64, r *discoveryv3pb.DeltaDiscoveryRequest) error {
			if e := r.GetErrorDetail(); e != nil {
				select {
				case c.refused <- fmt.Errorf("refused %s of the control plane: %s", r.GetTypeUrl(), e.GetMessage()):
				default:
				}
			}
			return nil
		},
	}))
	return c
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
