package proxywasm

import (
	"context"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// answering is a terminal filter that does nothing else.
type answering struct{}

func (answering) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	r := s.NewResponse()
	r.Header.Add(message.Status, "200")
	return r, nil
}

func benchPlugin(tb testing.TB, module string) *Plugin {
	tb.Helper()
	p, err := Start(context.Background(), &filters.Env{}, &Config{Name: module}, guest(tb, module))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = p.Close() })
	return p
}

func serveOnce(p *Plugin, s *filters.Stream, chain []filters.HTTPFilter) string {
	s.Request.Del("x-path")
	s.SetChain(chain)
	r, err := filters.Start(s)
	if err != nil {
		return err.Error()
	}
	p.OnStreamEnd(s, r)
	s.Info.FilterState.Reset(nil)
	return r.Header.Get(message.Status)
}

// BenchmarkHeaderOnlyGuest is a request through a guest that reads one header and
// sets another: two callbacks, five calls of the host.
func BenchmarkHeaderOnlyGuest(b *testing.B) {
	p := benchPlugin(b, "header")
	s := newStream("", nil)
	chain := []filters.HTTPFilter{p, answering{}}
	b.ReportAllocs()
	for b.Loop() {
		if st := serveOnce(p, s, chain); st != "200" {
			b.Fatal(st)
		}
	}
}

func BenchmarkHeaderOnlyGuestParallel(b *testing.B) {
	p := benchPlugin(b, "header")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		s := newStream("", nil)
		chain := []filters.HTTPFilter{p, answering{}}
		for pb.Next() {
			if st := serveOnce(p, s, chain); st != "200" {
				b.Error(st)
				return
			}
		}
	})
}

// BenchmarkLoop is a loop of 10,000 rounds in the guest, with what the meter adds.
func BenchmarkLoop(b *testing.B) {
	p := benchPlugin(b, "kinds")
	s := newStream("", nil)
	chain := []filters.HTTPFilter{p, answering{}}
	for b.Loop() {
		if st := serveOnce(p, s, chain); st != "200" {
			b.Fatal(st)
		}
	}
}

// BenchmarkStart is what a plugin costs that has its code compiled anew.
func BenchmarkStart(b *testing.B) {
	code := guest(b, "probe")
	for b.Loop() {
		p, err := Start(context.Background(), &filters.Env{}, &Config{Name: "p"}, code)
		if err != nil {
			b.Fatal(err)
		}
		_ = p.Close()
	}
}
