package proxy

import (
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

const closerType = "type.googleapis.com/fairlead.test.v1.Closer"

// closers makes filters that count how often they are closed, by configuration.
type closers struct{ closed [3]atomic.Int32 }

func (*closers) TypeURLs() []string { return []string{closerType} }

func (c *closers) Decode(a filters.Any, _ *filters.Decoding) (filters.Config, error) {
	var n int
	_, err := fmt.Sscanf(string(a.Value), `{"n":%d}`, &n)
	return n, err
}

func (c *closers) DecodeOverride(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	return c.Decode(a, d)
}

func (c *closers) Compile(_ *filters.Env, base, _ filters.Config) (filters.HTTPFilter, error) {
	n, _ := base.(int)
	if n == nothingToClose {
		return plain{}, nil
	}
	return closer{&c.closed[n]}, nil
}

// nothingToClose configures a plain filter.
const nothingToClose = 9

type plain struct{}

func (plain) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) { return next.Do(s) }

type closer struct{ closed *atomic.Int32 }

func (closer) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) { return next.Do(s) }

func (c closer) Close() error {
	c.closed.Add(1)
	return nil
}

// closing is a Server with such filters, and what makes the listener "l" of one.
// Its table sends all to host, unless that is empty.
func closing(t *testing.T) (s *Server, c *closers, listen func(n, port int, host string) *Resources) {
	t.Helper()
	c = &closers{}
	reg := &filters.Registry{}
	reg.RegisterHTTP(c)
	s, err := New(Options{Registry: reg, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	dec := xdsresource.NewDecoder(reg, xdsresource.Options{})
	return s, c, func(n, port int, host string) *Resources {
		hosts := ""
		if host != "" {
			hosts = fmt.Sprintf(`, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, redirect: {host_redirect: %s}}]}]`, host)
		}
		v, err := dec.FromYAML(xdsresource.ListenerType, fmt.Appendf(nil, `{name: l, address: {socket_address: {address: 127.0.0.1, port_value: %d}}, filter_chains: [{filters: [{name: h, typed_config: {
"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: h, route_config: {name: r%s},
http_filters: [{name: c, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: %s, value: {n: %d}}},
{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]}`, port, hosts, closerType, n))
		if err != nil {
			t.Fatal(err)
		}
		l, _ := v.(*xdsresource.Listener)
		return &Resources{Listeners: map[string]*xdsresource.Listener{"l": l}}
	}
}

func (s *Server) releaseNow() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releasePending()
	s.releaseUnused(false)
}

func TestAListenerThatKeepsItsFormerConfigurationKeepsItsFilters(t *testing.T) {
	s, c, listen := closing(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := taken.Addr().(*net.TCPAddr).Port
	closed := func(want ...int32) {
		t.Helper()
		s.releaseNow() // as if the drain time were over
		for i, n := range want {
			if got := c.closed[i].Load(); got != n {
				t.Errorf("the filter of configuration %d was closed %d times, want %d", i, got, n)
			}
		}
	}
	if err := s.Apply(listen(0, 0, "")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Apply(listen(1, port, "")); err == nil {
			t.Fatal("bound a port that is taken")
		}
		closed(0, 0, 0)
	}
	if err := s.Apply(listen(2, port, "")); err == nil {
		t.Fatal("bound a port that is taken")
	}
	closed(0, 1, 0)
	_ = taken.Close()
	if err := s.Apply(listen(2, port, "")); err != nil { // the same again: it was not in force
		t.Fatal(err)
	}
	closed(1, 1, 0)
	s.Close()
	closed(1, 1, 1)
}

// Tables are replaced each second where much is deployed: what no stream uses does
// not wait.
func TestAReplacedFilterWaitsForStreamsOnly(t *testing.T) {
	for _, n := range []int{nothingToClose, 0} {
		s, c, listen := closing(t)
		for i := range 10 {
			if err := s.Apply(listen(n, 0, fmt.Sprintf("h%d", i))); err != nil {
				t.Fatal(err)
			}
		}
		s.frees.wg.Wait()
		s.mu.Lock()
		waiting, shared := len(s.pending)+len(s.outdated), len(s.filters.m)
		s.mu.Unlock()
		if waiting != 0 || shared != 1 {
			t.Errorf("configuration %d: %d releases wait, %d filters are there", n, waiting, shared)
		}
		s.releaseNow()
		if n := c.closed[0].Load(); n != 0 {
			t.Errorf("a filter that is in use was closed %d times", n)
		}
	}
}

// The time of a release comes while Close is at work.
func TestWhatIsToBeReleasedIsReleasedBeforeCloseReturns(t *testing.T) {
	s, _, _ := closing(t)
	released, fired := 0, make(chan struct{})
	s.mu.Lock()
	s.laterIn(0, func() { released++ })
	time.AfterFunc(0, func() { close(fired) })
	<-fired
	s.releasePending() // as Close does
	n := released
	s.mu.Unlock()
	if n != 1 {
		t.Errorf("released %d times", n)
	}
	s.Close()
	time.Sleep(10 * time.Millisecond) // for the timer's own turn
	s.mu.Lock()
	defer s.mu.Unlock()
	if released != 1 {
		t.Errorf("released %d times in the end", released)
	}
}
