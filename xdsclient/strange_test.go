package xdsclient

import (
	"fmt"
	"strings"
	"testing"
	"time"

	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// opened is a client in the middle of a stream: w is a wildcard, whose resource
// "good" refers to a of x.
func opened(t *testing.T) *Client {
	t.Helper()
	dec := func(name string, b []byte) (any, []Key, error) {
		switch {
		case string(b) == "panic":
			panic("boom")
		case name == "good":
			return string(b), []Key{{"x", "a"}}, nil
		}
		return string(b), nil, nil
	}
	c, err := New(Config{Target: "t", Node: Node{ID: "n"}, Types: []ResourceType{{TypeURL: "w", Decode: dec, Wildcard: true}, {TypeURL: "x", Decode: dec}}})
	if err != nil {
		t.Fatal(err)
	}
	c.beginLocked(time.Now())
	c.advance(changes{})
	tell(t, c, "w", nil, named("w", "good", "1"))
	return c
}

func named(url, name, value string) *discoveryv3pb.Resource {
	return &discoveryv3pb.Resource{Name: name, Version: "v", Resource: &anypb.Any{TypeUrl: url, Value: []byte(value)}}
}

// tell hands over a response and returns what its answer complains of.
func tell(t *testing.T, c *Client, url string, removed []string, rs ...*discoveryv3pb.Resource) string {
	t.Helper()
	ch := changes{}
	as := c.handle(&discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: url, Nonce: "n1", Resources: rs, RemovedResources: removed}, ch)
	c.advance(ch)
	if len(as) == 0 {
		return "no answer"
	}
	if len(as) != 1 || as[0].GetTypeUrl() != url || as[0].GetResponseNonce() != "n1" {
		t.Errorf("answered with %v", as)
	}
	return as[0].GetErrorDetail().GetMessage()
}

// holds are the values of a type.
func holds(c *Client, url string) string {
	var out []string
	for _, n := range []string{"", "a", "b", "good", "q"} {
		if h := c.byURL[url].get(n); h != nil {
			out = append(out, fmt.Sprintf("%s=%v", n, h.Value))
		}
	}
	return strings.Join(out, " ")
}

func TestResourcesThatAreNoneAreRefusedByName(t *testing.T) {
	for _, c := range []struct {
		name string
		bad  *discoveryv3pb.Resource
		want string
	}{
		{"no name", named("w", "", "1"), ": the resource has no name"},
		{"nothing at all", &discoveryv3pb.Resource{}, ": the resource has no name"},
		{"no value", &discoveryv3pb.Resource{Name: "a"}, "a: the resource has no value"},
		{"a value of another type", named("x", "a", "1"), `a: the resource is a "x"`},
		{"a value of no type", named("", "a", "1"), `a: the resource is a ""`},
		{"one whose decoder panics", named("w", "a", "panic"), "a: the decoder panicked: boom"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := opened(t)
			if got := tell(t, cl, "w", nil, c.bad, named("w", "b", "2")); got != c.want {
				t.Errorf("complained of %q, want %q", got, c.want)
			}
			if got := holds(cl, "w"); got != "b=2 good=1" {
				t.Errorf("%q is held: the good ones beside it apply", got)
			}
		})
	}
}

func TestWhatNobodyAskedForChangesNothing(t *testing.T) {
	for _, c := range []struct {
		name, url string
		removed   []string
		rs        []*discoveryv3pb.Resource
		want      string
	}{
		{"a name that nobody subscribed", "x", nil, []*discoveryv3pb.Resource{named("x", "q", "1")}, ""},
		{"a bad one that nobody subscribed", "x", nil, []*discoveryv3pb.Resource{named("x", "q", "panic")}, ""},
		{"the removal of an unknown name", "w", []string{"q", "", "good2"}, nil, ""},
		{"the removal of a name of another type", "x", []string{"good"}, nil, ""},
		{"an empty response", "w", nil, nil, ""},
		{"a type that nobody subscribed", "y", []string{"good"}, []*discoveryv3pb.Resource{named("y", "q", "1")}, "no answer"},
		{"no type", "", []string{"good"}, nil, "no answer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := opened(t)
			if got := tell(t, cl, c.url, c.removed, c.rs...); got != c.want {
				t.Errorf("answered %q, want %q", got, c.want)
			}
			if got := holds(cl, "w") + "; " + holds(cl, "x"); got != "good=1; " {
				t.Errorf("held: %q", got)
			}
		})
	}
	cl := opened(t)
	if got := tell(t, cl, "x", nil, named("x", "a", "1")); got != "" || holds(cl, "x") != "a=1" {
		t.Errorf("what is subscribed: %q, held %q", got, holds(cl, "x"))
	}
}
