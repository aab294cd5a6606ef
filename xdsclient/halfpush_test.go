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

// What came and went before a View could show it is known for a minute.
func TestWhatPassedBetweenViewsIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := make(chan *discoveryv3pb.DeltaDiscoveryResponse)
		views := 0
		c, err := New(Config{
			Node: Node{ID: "n"}, Quiet: 10 * time.Millisecond,
			Types:  []ResourceType{{TypeURL: "a", Wildcard: true, Decode: nop}},
			OnView: func(*View) { views++ },
			connect: func(ctx context.Context) (stream, func(), error) {
				return &fakeStream{ctx, make(chan *discoveryv3pb.DeltaDiscoveryRequest, 100), in}, func() {}, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = c.Run(ctx) }()
		send := func(add, remove string) {
			r := &discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: "a", Nonce: "n"}
			if add != "" {
				r.Resources = []*discoveryv3pb.Resource{{Name: add, Version: "1", Resource: &anypb.Any{TypeUrl: "a"}}}
			}
			if remove != "" {
				r.RemovedResources = []string{remove}
			}
			in <- r
			synctest.Wait()
		}
		passed := func(want ...string) {
			t.Helper()
			got := c.Passed("a")
			for _, n := range want {
				if !got[n] {
					t.Errorf("%s is not known to have passed", n)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%v passed, want %v", got, want)
			}
		}
		view := func() {
			time.Sleep(time.Second)
			synctest.Wait()
		}
		send("x", "")
		view()
		send("y", "x") // x was shown
		passed()
		send("z", "y")
		passed("y")
		view()
		passed("y")
		send("", "z")
		passed("y")
		send("y", "")
		passed()
		send("", "y")
		passed("y")
		view()
		time.Sleep(passedTime)
		send("x", "")
		view()
		passed()
		if views != 4 {
			t.Errorf("%d views, want 4", views)
		}
		if c.Passed("b") != nil {
			t.Error("an unknown type")
		}
		cancel()
		synctest.Wait()
	})
}
