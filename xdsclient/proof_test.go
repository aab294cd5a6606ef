package xdsclient

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// prover is a client on a fake stream, whose values that begin with "slow" are
// proven: until somebody says how that ends.
type prover struct {
	t      *testing.T
	c      *Client
	stop   func()
	sent   chan *discoveryv3pb.DeltaDiscoveryRequest
	recv   chan *discoveryv3pb.DeltaDiscoveryResponse
	ends   map[string]chan error
	mu     sync.Mutex
	ended  []string // whose context has ended
	views  []*View
	nonces int
}

// proving runs f in a bubble.
func proving(t *testing.T, wildcard bool, f func(p *prover)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := &prover{t: t, sent: make(chan *discoveryv3pb.DeltaDiscoveryRequest, 1000), ends: map[string]chan error{}}
		dec := func(_ string, b []byte) (any, []Key, error) {
			if string(b) == "bad" {
				return nil, nil, errors.New("bad")
			}
			return string(b), nil, nil
		}
		tried := func(_ string, v any) Proof {
			value, _ := v.(string)
			if !strings.HasPrefix(value, "slow") {
				return nil
			}
			end := make(chan error, 1)
			p.ends[value] = end
			return func(ctx context.Context) error {
				select {
				case err := <-end:
					if err != nil && err.Error() == "panic" {
						panic("boom")
					}
					return err
				case <-ctx.Done():
					p.mu.Lock()
					defer p.mu.Unlock()
					p.ended = append(p.ended, value)
					return ctx.Err()
				}
			}
		}
		types := []ResourceType{{TypeURL: "t", Decode: dec, Prove: tried, Wildcard: wildcard}, {TypeURL: "u", Decode: dec, Wildcard: true}}
		if !wildcard {
			types[0].Names = []string{"a", "b"}
		}
		var err error
		p.c, err = New(Config{
			Node: Node{ID: "n"}, Types: types, OnView: func(v *View) { p.views = append(p.views, v) },
			connect: func(ctx context.Context) (stream, func(), error) {
				p.recv = make(chan *discoveryv3pb.DeltaDiscoveryResponse)
				return &fakeStream{ctx, p.sent, p.recv}, func() {}, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = p.c.Run(ctx) }()
		p.stop = func() { cancel(); <-done }
		p.settle()
		f(p)
		p.stop()
	})
}

// settle lets everything happen that can, and returns the answers that were sent.
func (p *prover) settle() string {
	time.Sleep(time.Second)
	synctest.Wait()
	var out []string
	for {
		select {
		case r := <-p.sent:
			switch {
			case r.GetErrorDetail() != nil:
				out = append(out, r.GetResponseNonce()+": "+r.GetErrorDetail().GetMessage())
			case r.GetResponseNonce() != "":
				out = append(out, r.GetResponseNonce())
			}
			continue
		default:
		}
		return strings.Join(out, ", ")
	}
}

// push sends a response, of "name=value" and "-name".
func (p *prover) push(url string, items ...string) {
	p.nonces++
	r := &discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: url, Nonce: fmt.Sprint("n", p.nonces)}
	for _, s := range items {
		if name, ok := strings.CutPrefix(s, "-"); ok {
			r.RemovedResources = append(r.RemovedResources, name)
			continue
		}
		name, value, _ := strings.Cut(s, "=")
		r.Resources = append(r.Resources, named(url, name, value))
	}
	p.recv <- r
}

func (p *prover) end(value string, err error) { p.ends[value] <- err }

// expect compares answers, what is held of t, and which proofs were given up.
func (p *prover) expect(what, answers, held string, ended ...string) {
	p.t.Helper()
	if got := p.settle(); got != answers {
		p.t.Errorf("%s: answers %q, want %q", what, got, answers)
	}
	if got := holds(p.c, "t"); got != held {
		p.t.Errorf("%s: %q is held, want %q", what, got, held)
	}
	slices.Sort(p.ended)
	if !slices.Equal(p.ended, ended) {
		p.t.Errorf("%s: given up were %q, want %q", what, p.ended, ended)
	}
}

func valueIn(v *View, typeURL, name string) any {
	r, _ := v.Get(typeURL, name)
	return r.Value
}

func TestAResponseIsAnsweredOnceItsResourcesAreProven(t *testing.T) {
	proving(t, true, func(p *prover) {
		p.push("t", "a=1", "b=1")
		p.push("u", "x=1")
		p.expect("without proofs", "n1, n2", "a=1 b=1")
		p.push("t", "a=slow2", "b=2")
		p.push("u", "x=2")
		p.expect("while a is proven", "n4", "a=1 b=2")
		if v := p.views[len(p.views)-1]; valueIn(v, "t", "a") != "1" || valueIn(v, "t", "b") != "2" || valueIn(v, "u", "x") != "2" {
			t.Errorf("%v", v.types)
		}
		p.push("t", "b=3")
		p.expect("behind it", "", "a=1 b=3")
		p.end("slow2", nil)
		p.expect("it is proven", "n3, n5", "a=slow2 b=3")
		if v := p.views[len(p.views)-1]; valueIn(v, "t", "a") != "slow2" {
			t.Errorf("%v", v.types)
		}
		p.push("t", "a=slow3", "b=bad", "good=slow4")
		p.expect("two are proven", "", "a=slow2 b=3")
		p.end("slow4", nil)
		p.expect("one is", "", "a=slow2 b=3 good=slow4")
		p.end("slow3", errors.New("false"))
		p.expect("the other is not", "n6: b: bad; a: false", "a=slow2 b=3 good=slow4")
		if s := p.c.Status().Types[0]; s.Nacks != 1 || len(s.Rejected) != 2 || !s.Rejected[0].Serving {
			t.Errorf("%+v", s)
		}
		p.push("t", "a=slow3")
		p.expect("what was false is proven again", "", "a=slow2 b=3 good=slow4")
		p.end("slow3", errors.New("panic"))
		p.expect("a panic", "n7: a: its proof panicked: boom", "a=slow2 b=3 good=slow4")
	})
}

func TestAProofEndsWithWhatItIsOf(t *testing.T) {
	for _, wildcard := range []bool{true, false} {
		proving(t, wildcard, func(p *prover) {
			p.push("t", "a=1", "b=1")
			p.push("u")
			p.expect("first", "n1, n2", "a=1 b=1")
			p.push("t", "a=slow2")
			p.push("t", "a=slow2", "b=2")
			p.expect("the same once more", "", "a=1 b=2")
			p.push("t", "a=slow3")
			p.expect("a newer one", "n3, n4", "a=1 b=2", "slow2")
			p.push("t", "a=1")
			p.expect("the former again", "n5, n6", "a=1 b=2", "slow2", "slow3")
			p.push("t", "a=slow4")
			p.push("t", "a=bad")
			p.expect("one that can't be decoded", "n7, n8: a: bad", "a=1 b=2", "slow2", "slow3", "slow4")
			p.push("t", "a=slow5")
			p.push("t", "-a")
			p.expect("its removal", "n9, n10", "b=2", "slow2", "slow3", "slow4", "slow5")
			p.push("t", "a=slow6", "a=slow7", "a=slow7")
			p.expect("three times in one response", "", "b=2", "slow2", "slow3", "slow4", "slow5", "slow6", "slow7")
			close(p.recv)
			p.settle()
			p.expect("the end of the stream", "", "b=2", "slow2", "slow3", "slow4", "slow5", "slow6", "slow7", "slow7")
			p.push("t", "a=slow8")
			p.settle()
			p.end("slow8", nil)
			p.expect("the next stream", "n12", "a=slow8 b=2", "slow2", "slow3", "slow4", "slow5", "slow6", "slow7", "slow7")
		})
	}
}

func TestAProofEndsWhenNobodyWantsItsResource(t *testing.T) {
	proving(t, false, func(p *prover) {
		p.c.SetNames([]Key{{"t", "good"}})
		p.settle()
		p.push("t", "good=slow1")
		p.expect("it is wanted", "", "")
		p.c.SetNames(nil)
		p.expect("it is not", "n1", "", "slow1")
	})
}

// Nothing is in force before the first View: it waits for proofs, for a time.
func TestTheFirstViewWaitsForProofs(t *testing.T) {
	proving(t, true, func(p *prover) {
		p.push("t", "a=slow1", "b=1")
		p.push("u")
		p.expect("while a is proven", "n2", "b=1")
		if len(p.views) > 0 {
			t.Fatal("there is a View")
		}
		p.end("slow1", nil)
		p.expect("it is proven", "n1", "a=slow1 b=1")
		if len(p.views) != 1 || valueIn(p.views[0], "t", "a") != "slow1" {
			t.Error(p.views)
		}
	})
	proving(t, true, func(p *prover) {
		p.push("t", "a=slow1")
		p.push("u")
		time.Sleep(16 * time.Second)
		p.expect("for too long", "n2", "")
		if len(p.views) != 1 {
			t.Error(p.views)
		}
		p.end("slow1", nil)
		p.expect("it is proven after all", "n1", "a=slow1")
		if len(p.views) != 2 {
			t.Error(p.views)
		}
	})
}
