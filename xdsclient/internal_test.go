package xdsclient

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fairlead-mesh/fairlead/internal/sweep"
)

func TestBackoffDoublesWithJitterUpToItsMaximum(t *testing.T) {
	b := pauser{min: 500 * time.Millisecond, max: 30 * time.Second}
	step := 500 * time.Millisecond
	for i := range 12 {
		if d := b.next(); d < step/2 || d > step {
			t.Errorf("pause %d = %v, want within [%v, %v]", i, d, step/2, step)
		}
		step = min(2*step, 30*time.Second)
	}
	b.reset()
	if d := b.next(); d > 500*time.Millisecond {
		t.Errorf("after reset the pause is %v", d)
	}
}

// fakeStream ends when its context does or when end is closed.
type fakeStream struct {
	ctx  context.Context
	sent chan *discoveryv3pb.DeltaDiscoveryRequest
	recv chan *discoveryv3pb.DeltaDiscoveryResponse
}

func (f *fakeStream) Send(r *discoveryv3pb.DeltaDiscoveryRequest) error {
	select {
	case f.sent <- r:
		return nil
	case <-f.ctx.Done():
		return io.EOF
	}
}

func (f *fakeStream) Recv() (*discoveryv3pb.DeltaDiscoveryResponse, error) {
	select {
	case r, ok := <-f.recv:
		if !ok {
			return nil, io.EOF
		}
		return r, nil
	case <-f.ctx.Done():
		return nil, f.ctx.Err()
	}
}

func nop(string, []byte) (any, []Key, error) { return 1, nil, nil }

func TestRetriesWithGrowingPausesAndStartsAnewAfterALongStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		n := 0
		long := make(chan *discoveryv3pb.DeltaDiscoveryResponse, 1)
		c, err := New(Config{
			Node: Node{ID: "n"}, Types: []ResourceType{{TypeURL: "t", Decode: nop, Wildcard: true}},
			connect: func(ctx context.Context) (stream, func(), error) {
				at = append(at, time.Now())
				n++
				if n == 8 {
					long <- &discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: "t"}
					time.AfterFunc(time.Minute, func() { close(long) })
					return &fakeStream{ctx, make(chan *discoveryv3pb.DeltaDiscoveryRequest, 10), long}, func() {}, nil
				}
				return nil, nil, errors.New("refused")
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := c.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Run returned %v", err)
		}
		step := 500 * time.Millisecond
		for i := 1; i < 8; i++ {
			if d := at[i].Sub(at[i-1]); d < step/2 || d > step {
				t.Errorf("pause before attempt %d was %v, want within [%v, %v]", i+1, d, step/2, step)
			}
			step = min(2*step, 30*time.Second)
		}
		if d := at[8].Sub(at[7]) - time.Minute; d < 0 || d > 500*time.Millisecond {
			t.Errorf("pause after the long stream was %v", d)
		}
		if last := at[len(at)-1].Sub(at[len(at)-2]); last < 15*time.Second || last > 30*time.Second {
			t.Errorf("pauses end at %v, want 15 s to 30 s", last)
		}
		if s := c.Status(); s.State != StateStopped {
			t.Errorf("state = %v", s.State)
		}
	})
}

func TestInitialFetchTimeoutOpensWhatComesAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sent := make(chan *discoveryv3pb.DeltaDiscoveryRequest, 10)
		c, err := New(Config{
			Node: Node{ID: "n"},
			Types: []ResourceType{
				{TypeURL: "a", Decode: nop, Wildcard: true},
				{TypeURL: "b", Decode: nop, Wildcard: true, After: []string{"a"}},
			},
			connect: func(ctx context.Context) (stream, func(), error) {
				return &fakeStream{ctx, sent, nil}, func() {}, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = c.Run(ctx) }()
		begin := time.Now()
		<-sent
		r := <-sent
		if d := time.Since(begin); r.GetTypeUrl() != "b" || d != 15*time.Second {
			t.Errorf("%q was opened after %v, want b after 15 s", r.GetTypeUrl(), d)
		}
		cancel()
		synctest.Wait()
	})
}

func TestAServerThatDoesNotReadEndsTheStream(t *testing.T) {
	o := &outbox{ready: make(chan struct{}, 1)}
	for range maxQueued {
		if err := o.push([]*discoveryv3pb.DeltaDiscoveryRequest{{}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.push([]*discoveryv3pb.DeltaDiscoveryRequest{{}}); err == nil {
		t.Error("the queue has no bound")
	}
}

func TestANackIsBoundedAndValid(t *testing.T) {
	bad := []string{strings.Repeat("ü", maxErrorDetail)}
	a := answer(&discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: "t", Nonce: "n"}, bad)
	if m := a.GetErrorDetail().GetMessage(); len(m) > maxErrorDetail+8 || a.GetErrorDetail().GetCode() != 3 || a.GetResponseNonce() != "n" {
		t.Errorf("%d bytes, code %d", len(m), a.GetErrorDetail().GetCode())
	}
}

// FuzzBookkeeping feeds arbitrary responses of three types whose resources
// refer to each other, and checks the books against a fresh count.
func FuzzBookkeeping(f *testing.F) {
	f.Add([]byte("\x00\x01\x05\x02\x11\x23\x00\x91\x35"))
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 200, 201, 202, 203, 254, 255, 17, 33, 65, 129})
	urls := []string{"w", "x", "y"} // w is a wildcard; x and y are named
	names := []string{"a", "b", "c", "d"}
	dec := func(_ string, b []byte) (any, []Key, error) {
		if b[0]&0x40 != 0 {
			return nil, nil, errors.New("bad")
		}
		var ks []Key
		for i := range 3 {
			if b[0]&(1<<i) != 0 {
				ks = append(ks, Key{urls[1+i%2], names[int(b[0]>>3)&3]})
			}
		}
		return string(b), ks, nil
	}
	f.Fuzz(sweep.Around(f, func(t *testing.T, in []byte) {
		var types []ResourceType
		for i, u := range urls {
			types = append(types, ResourceType{TypeURL: u, Decode: dec, Wildcard: i == 0, KeepRemoved: i == 1})
		}
		c, err := New(Config{Target: "x", Node: Node{ID: "n"}, Types: types})
		if err != nil {
			t.Fatal(err)
		}
		subs := map[string]map[string]bool{"w": {}, "x": {}, "y": {}}
		take := func(rs []*discoveryv3pb.DeltaDiscoveryRequest) {
			for _, r := range rs {
				for _, n := range r.GetResourceNamesSubscribe() {
					if subs[r.GetTypeUrl()][n] {
						t.Fatalf("%s/%s subscribed twice", r.GetTypeUrl(), n)
					}
					subs[r.GetTypeUrl()][n] = true
				}
				for _, n := range r.GetResourceNamesUnsubscribe() {
					if !subs[r.GetTypeUrl()][n] {
						t.Fatalf("%s/%s unsubscribed without subscription", r.GetTypeUrl(), n)
					}
					delete(subs[r.GetTypeUrl()], n)
				}
			}
		}
		c.beginLocked(time.Now())
		reqs, _ := c.advance(changes{})
		take(reqs)
		for len(in) >= 2 {
			op, val := in[0], in[1]
			in = in[2:]
			if op == 0xff { // reconnect
				c.beginLocked(time.Now())
				subs = map[string]map[string]bool{"w": {}, "x": {}, "y": {}}
				reqs, _ := c.advance(changes{})
				take(reqs)
				continue
			}
			u, n := urls[int(op&3)%3], names[int(op>>2)&3]
			r := &discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: u, Nonce: "1"}
			if op&0x80 != 0 {
				r.RemovedResources = []string{n}
			} else {
				r.Resources = []*discoveryv3pb.Resource{{Name: n, Version: "1", Resource: &anypb.Any{TypeUrl: u, Value: []byte{val}}}}
			}
			ch := changes{}
			c.handle(r, ch)
			reqs, _ := c.advance(ch)
			take(reqs)
			check(t, c, subs)
		}
	}))
}

func check(t *testing.T, c *Client, subs map[string]map[string]bool) {
	t.Helper()
	refs := map[Key]int{}
	for _, ts := range c.types {
		for n, h := range ts.held.All() {
			if h.Name != n {
				t.Fatalf("%s holds %q as %q", ts.TypeURL, h.Name, n)
			}
			for _, k := range h.refs {
				refs[k]++
			}
		}
	}
	if !maps.Equal(refs, c.refs) {
		t.Fatalf("refs = %v, counted %v", c.refs, refs)
	}
	for _, ts := range c.types {
		var want []string
		for k := range refs {
			if k.TypeURL == ts.TypeURL {
				want = append(want, k.Name)
			}
		}
		slices.Sort(want)
		if got := slices.Sorted(maps.Keys(subs[ts.TypeURL])); !slices.Equal(got, want) {
			t.Fatalf("%s: server has %q, wanted %q", ts.TypeURL, got, want)
		}
		for n := range ts.held.All() {
			if !ts.Wildcard && !slices.Contains(want, n) {
				t.Fatalf("%s/%s is held for nobody", ts.TypeURL, n)
			}
		}
	}
}
