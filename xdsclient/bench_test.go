package xdsclient

import (
	"fmt"
	"testing"

	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// BenchmarkRepeatOf1000 is what an unrelated change in the mesh costs: istiod
// sends all clusters and listeners again, with the same content.
func BenchmarkRepeatOf1000(b *testing.B) {
	c, err := New(Config{Target: "x", Node: Node{ID: "n"}, Types: []ResourceType{{TypeURL: "t", Decode: nop, Wildcard: true}}})
	if err != nil {
		b.Fatal(err)
	}
	r := &discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: "t"}
	for i := range 1000 {
		r.Resources = append(r.Resources, &discoveryv3pb.Resource{Name: fmt.Sprint(i), Resource: &anypb.Any{TypeUrl: "t", Value: make([]byte, 4096)}})
	}
	step := func() {
		ch := changes{}
		c.handle(r, ch)
		c.advance(ch)
	}
	c.mu.Lock()
	c.types[0].opened = true
	c.mu.Unlock()
	step()
	c.makeView()
	b.ReportAllocs()
	for b.Loop() {
		step()
	}
	if c.dirty {
		b.Fatal("a repeat made the view dirty")
	}
}

// BenchmarkOneOf10000 is one endpoint change among many held resources.
func BenchmarkOneOf10000(b *testing.B) {
	c, err := New(Config{Target: "x", Node: Node{ID: "n"}, Types: []ResourceType{{TypeURL: "t", Decode: nop, Wildcard: true, OnChange: func([]Change) {}}}})
	if err != nil {
		b.Fatal(err)
	}
	c.types[0].opened = true
	r := &discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: "t"}
	for i := range 10000 {
		r.Resources = append(r.Resources, &discoveryv3pb.Resource{Name: fmt.Sprint(i), Resource: &anypb.Any{TypeUrl: "t"}})
	}
	step := func() {
		ch := changes{}
		c.handle(r, ch)
		c.advance(ch)
	}
	step()
	v := make([]byte, 1024)
	r.Resources = []*discoveryv3pb.Resource{{Name: "7", Resource: &anypb.Any{TypeUrl: "t", Value: v}}}
	b.ReportAllocs()
	for b.Loop() {
		v[0]++
		step()
	}
}
