package hcm

import (
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func TestWhatStreamsBeganWithIsUnusedBehindTheLastOfThem(t *testing.T) {
	r := &Routes{}
	m, err := New(Config{Spec: &xdsresource.HTTPConnectionManager{}, Routes: r, DefaultChain: []filters.HTTPFilter{seen{}}})
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	tell := func(what string) func() { return func() { told = append(told, what) } }
	first := r.enter()
	if len(m.chain(first)) != 1 {
		t.Error("not the chain of the configuration")
	}
	r.Replace(nil, []filters.HTTPFilter{}, tell("first"))
	second := r.enter()
	if second == first || len(m.chain(second)) != 0 {
		t.Error("not what replaced it")
	}
	r.Replace(nil, nil, tell("second"))
	r.Replace(nil, nil, tell("third")) // which nobody used
	r.Close(tell("fourth"))
	second.users.Leave()
	first.users.Leave()
	if r.enter() != nil || r.Table() != nil {
		t.Error("a stream begins after the end")
	}
	if got := len(told); got != 4 || told[0] != "third" || told[1] != "fourth" || told[2] != "second" || told[3] != "first" {
		t.Error(told)
	}
}

// A connection that comes so late finds nothing that it could run through.
func TestAStreamThatBeginsAfterTheEndIsEndedUnanswered(t *testing.T) {
	r := &Routes{}
	m, err := New(Config{Spec: &xdsresource.HTTPConnectionManager{}, Routes: r, DefaultChain: []filters.HTTPFilter{seen{}}})
	if err != nil {
		t.Fatal(err)
	}
	r.Close(nil)
	s := &fakeStream{version: message.HTTP11}
	(&conn{m: m, info: &streaminfo.Conn{}}).ServeStream(s)
	if len(s.wrote) != 0 {
		t.Errorf("answered %v", s.wrote)
	}
}
