package xdsclient

import (
	"testing"
	"testing/synctest"
	"time"

	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// A View is due as a response is taken over, and before what it refers to has been
// asked for.
func TestAViewDoesNotComeBetweenAResponseAndItsQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := New(Config{
			Target: "none", Node: Node{ID: "n"},
			Types: []ResourceType{{TypeURL: "a", Wildcard: true, Decode: func(_ string, b []byte) (any, []Key, error) {
				return string(b), []Key{{"b", string(b)}}, nil
			}}, {TypeURL: "b", Decode: nop}},
		})
		if err != nil {
			t.Fatal(err)
		}
		c.beginLocked(time.Now())
		c.advance(changes{})
		c.setUp(true)
		take := func(url, name, value string) changes {
			ch := changes{}
			c.handle(&discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: url, Resources: []*discoveryv3pb.Resource{{Name: name, Resource: &anypb.Any{TypeUrl: url, Value: []byte(value)}}}}, ch)
			return ch
		}
		c.advance(take("a", "x", "1"))
		c.advance(take("b", "1", "1"))
		c.makeView()
		c.advance(take("a", "y", "1"))
		time.Sleep(time.Minute) // it is due
		ch := take("a", "x", "2")
		if c.publishIn() == 0 {
			t.Error("a View is made without what it refers to")
		}
		c.advance(ch)
		if got := c.publishIn(); got != c.cfg.SettleTimeout {
			t.Errorf("the View comes in %s, want %s", got, c.cfg.SettleTimeout)
		}
		c.advance(take("b", "2", "2"))
		time.Sleep(time.Minute)
		if got := c.publishIn(); got != 0 {
			t.Errorf("the View comes in %s", got)
		}
	})
}
