package xdsclient

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// A control plane may go away between a resource and what it refers to. What was
// complete stays in force until the rest can be had, however long that takes.
func TestHalfAPushIsNotPutInForceWhileTheControlPlaneIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var views []*View
		streams := make(chan chan *discoveryv3pb.DeltaDiscoveryResponse, 2)
		c, err := New(Config{
			Node: Node{ID: "n"},
			Types: []ResourceType{
				{TypeURL: "a", Wildcard: true, Decode: func(_ string, b []byte) (any, []Key, error) {
					return string(b), []Key{{"b", string(b)}}, nil
				}},
				{TypeURL: "b", Decode: nop},
			},
			OnView: func(v *View) { views = append(views, v) },
			connect: func(ctx context.Context) (stream, func(), error) {
				select {
				case in := <-streams:
					return &fakeStream{ctx, make(chan *discoveryv3pb.DeltaDiscoveryRequest, 100), in}, func() {}, nil
				default:
					return nil, nil, errors.New("refused")
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		send := func(in chan *discoveryv3pb.DeltaDiscoveryResponse, url, name, value string) {
			in <- &discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: url, Nonce: "n", Resources: []*discoveryv3pb.Resource{{Name: name, Version: value, Resource: &anypb.Any{TypeUrl: url, Value: []byte(value)}}}}
			synctest.Wait()
		}
		first, second := make(chan *discoveryv3pb.DeltaDiscoveryResponse), make(chan *discoveryv3pb.DeltaDiscoveryResponse)
		streams <- first
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = c.Run(ctx) }()
		send(first, "a", "x", "1")
		send(first, "b", "1", "1")
		time.Sleep(time.Second)
		synctest.Wait()
		if len(views) != 1 {
			t.Fatalf("%d views, want 1", len(views))
		}
		send(first, "a", "x", "2") // refers to 2, which does not come
		close(first)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if len(views) != 1 {
			t.Fatalf("%d views while the control plane is away", len(views))
		}
		streams <- second
		for len(streams) > 0 {
			time.Sleep(time.Second)
		}
		synctest.Wait()
		send(second, "b", "2", "2")
		time.Sleep(time.Second)
		synctest.Wait()
		if len(views) != 2 || len(views[1].missing) > 0 {
			t.Fatalf("%d views, the last of which misses %v", len(views), views[len(views)-1].missing)
		}
		cancel()
		synctest.Wait()
	})
}
