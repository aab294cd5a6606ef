package xdsclient

import (
	"fmt"
	"runtime"
	"testing"

	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// many is a client that holds n clusters, "0" to …, with endpoints each, and has
// made its first View.
type many struct {
	c    *Client
	view *View
}

func newMany(tb testing.TB, n int) *many {
	tb.Helper()
	named := func(_ string, b []byte) (any, []Key, error) {
		return &b, []Key{{"eds", string(b[1:])}}, nil
	}
	c, err := New(Config{Target: "x", Node: Node{ID: "n"}, Types: []ResourceType{
		{TypeURL: "cds", Decode: named, Wildcard: true}, {TypeURL: "eds", Decode: nop, OnChange: func([]Change) {}},
	}})
	if err != nil {
		tb.Fatal(err)
	}
	m := &many{c: c}
	c.mu.Lock()
	c.beginLocked(c.rested)
	c.mu.Unlock()
	c.advance(changes{})
	clusters, endpoints := &discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: "cds"}, &discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: "eds"}
	for i := range n {
		clusters.Resources = append(clusters.Resources, m.resource("cds", i, 0))
		endpoints.Resources = append(endpoints.Resources, m.resource("eds", i, 0))
	}
	m.step(clusters)
	m.step(endpoints)
	m.publish(tb, n)
	return m
}

func (*many) resource(typeURL string, i, version int) *discoveryv3pb.Resource {
	name := fmt.Sprint(i)
	return &discoveryv3pb.Resource{Name: name, Version: fmt.Sprint(version), Resource: &anypb.Any{TypeUrl: typeURL, Value: append([]byte{byte(version)}, name...)}}
}

func (m *many) step(r *discoveryv3pb.DeltaDiscoveryResponse) []*discoveryv3pb.DeltaDiscoveryRequest {
	ch := changes{}
	m.c.handle(r, ch)
	reqs, _ := m.c.advance(ch)
	return reqs
}

// publish makes the next View, which has n clusters, and tells how many differ.
func (m *many) publish(tb testing.TB, n int) (differ int) {
	tb.Helper()
	v := m.c.makeView()
	Diff(m.view, v, "cds", func(string, any, any) { differ++ })
	Diff(m.view, v, "eds", func(string, any, any) { differ++ })
	if m.view = v; v.Len("cds") != n || v.Len("eds") != n || len(v.Missing()) > 0 {
		tb.Fatalf("the view has %d and %d, want %d; missing %v", v.Len("cds"), v.Len("eds"), n, v.Missing())
	}
	return differ
}

// change gives cluster i and its endpoints another content.
func (m *many) change(i, version int) {
	for _, t := range []string{"cds", "eds"} {
		m.step(&discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: t, Resources: []*discoveryv3pb.Resource{m.resource(t, i, version)}})
	}
}

// replace removes cluster i and adds cluster k.
func (m *many) replace(tb testing.TB, i, k int) {
	tb.Helper()
	reqs := m.step(&discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: "cds", Resources: []*discoveryv3pb.Resource{m.resource("cds", k, 1)}, RemovedResources: []string{fmt.Sprint(i)}})
	if len(reqs) != 1 || fmt.Sprint(reqs[0].GetResourceNamesSubscribe(), reqs[0].GetResourceNamesUnsubscribe()) != fmt.Sprintf("[%d] [%d]", k, i) {
		tb.Fatalf("asked for %v", reqs)
	}
	m.step(&discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: "eds", Resources: []*discoveryv3pb.Resource{m.resource("eds", k, 1)}})
}

// bytesOf is what each of n runs of f allocates.
func bytesOf(n int, f func(i int)) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range n {
		f(i)
	}
	runtime.ReadMemStats(&after)
	return (after.TotalAlloc - before.TotalAlloc) / uint64(n)
}

// What a push costs, from the response to the View and what differs in it, depends
// on what it changes and not on how much there is: a copy of one map of 10,000
// resources is 400 KiB.
func TestAPushOfOneClusterOf10000CostsWhatItChanges(t *testing.T) {
	const n, most = 10000, 64 << 10
	m := newMany(t, n)
	if got := bytesOf(100, func(i int) {
		m.change(7, i+1)
		if d := m.publish(t, n); d != 2 {
			t.Fatalf("%d differ, want 2", d)
		}
	}); got > most {
		t.Errorf("a change takes %d bytes, want at most %d", got, most)
	}
	if got := bytesOf(100, func(i int) {
		m.replace(t, i, n+i)
		if d := m.publish(t, n); d != 4 {
			t.Fatalf("%d differ, want 4", d)
		}
	}); got > most {
		t.Errorf("a cluster that comes and one that goes take %d bytes, want at most %d", got, most)
	}
}

func BenchmarkPushOneClusterOf10000(b *testing.B) {
	m := newMany(b, 10000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m.change(7, i)
		m.publish(b, 10000)
	}
}

func BenchmarkReplaceOneClusterOf10000(b *testing.B) {
	m := newMany(b, 10000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m.replace(b, i, 10000+i)
		m.publish(b, 10000)
	}
}
