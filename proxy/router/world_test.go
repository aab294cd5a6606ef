package router

import (
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
	"github.com/fairlead-mesh/fairlead/routing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// world is a router over one origin.
type world struct {
	t     testing.TB
	o     *origin
	m     *upstream.Manager
	rc    *xdsresource.RouteConfiguration
	f     filters.HTTPFilter
	edit  func(s *filters.Stream) // of cases
	conns []*fakeConn
	mu    sync.Mutex
	// answered, if not nil, is called by do when the head of an answer is there.
	answered func()
}

func newWorld(t testing.TB, o *origin, addrs ...string) *world {
	if o.version == 0 {
		o.version = message.HTTP11
	}
	w := &world{t: t, o: o}
	client := func(c netio.Conn, cfg *transport.ClientConfig) transport.ClientConn {
		f := &fakeConn{o: o, host: c.(rawConn).host, cfg: *cfg}
		w.mu.Lock()
		w.conns = append(w.conns, f)
		w.mu.Unlock()
		return f
	}
	w.m = upstream.NewManager(upstream.Options{
		Dial: o.dial, HTTP1: client,
		HTTP2: func(c netio.Conn, cfg *transport.ClientConfig) (transport.ClientConn, error) {
			return client(c, cfg), nil
		},
	})
	t.Cleanup(w.m.Close)
	if len(addrs) == 0 {
		addrs = []string{"10.0.0.1:80"}
	}
	w.m.Apply([]*xdsresource.Cluster{clusterOf("c", addrs...), clusterOf("shadow", "10.9.9.9:80"), clusterOf("empty")})
	w.rc = &xdsresource.RouteConfiguration{VirtualHosts: []*xdsresource.VirtualHost{{
		Name: "v", Domains: []string{"*"},
		Routes: []*xdsresource.Route{{Name: "r", Match: xdsresource.RouteMatch{Path: "/", RuntimeFraction: -1}, Action: &xdsresource.RouteAction{Cluster: "c", Timeout: 5 * time.Second}}},
	}}}
	w.f = New(nil, Deps{Clusters: w.m})
	return w
}

const unlimited = 4294967295

func clusterOf(name string, addrs ...string) *xdsresource.Cluster {
	c := &xdsresource.Cluster{Assignment: &xdsresource.ClusterLoadAssignment{Localities: []xdsresource.LocalityEndpoints{{Weight: 1}}}}
	c.Name = name
	for i := range c.Breakers {
		c.Breakers[i] = xdsresource.CircuitBreaker{MaxConnections: unlimited, MaxPendingRequests: unlimited, MaxRequests: unlimited, MaxRetries: unlimited}
	}
	for _, a := range addrs {
		c.Assignment.Localities[0].Endpoints = append(c.Assignment.Localities[0].Endpoints, xdsresource.Endpoint{Address: netip.MustParseAddrPort(a), Weight: 1})
	}
	return c
}

func (w *world) route() *xdsresource.Route { return w.rc.VirtualHosts[0].Routes[0] }

func (w *world) action() *xdsresource.RouteAction { return w.route().Action }

func (w *world) vhost() *xdsresource.VirtualHost { return w.rc.VirtualHosts[0] }

func (w *world) retry(p xdsresource.RetryPolicy) { w.action().Retry = &p }

func (w *world) apply(cs ...*xdsresource.Cluster) { w.m.Apply(cs) }

func (w *world) table() *routing.Table {
	t, _ := routing.Compile(w.rc, routing.Options{}) // broken routes are cases, too
	return t
}

func newStream(fields ...string) *filters.Stream {
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	s.Info.FilterState.Reset(&s.Info.Conn.FilterState)
	s.Info.Start = time.Now()
	s.Info.Protocol = message.HTTP11
	has := map[string]bool{}
	for i := 0; i < len(fields); i += 2 {
		has[fields[i]] = true
	}
	for _, d := range [][2]string{{message.Method, "GET"}, {message.Scheme, "http"}, {message.Authority, "svc.test"}, {message.Path, "/x"}} {
		if !has[d[0]] {
			s.Request.Set(d[0], d[1])
		}
	}
	for i := 0; i < len(fields); i += 2 {
		s.Request.Set(fields[i], fields[i+1])
	}
	return s
}

// result is what the client would have seen.
type result struct {
	status   int
	body     string
	header   *message.Header
	trailers *message.Header
	err      error // from Do
	bodyErr  error
	info     *streaminfo.Info
	resp     *filters.Response
}

func (w *world) do(s *filters.Stream) result {
	w.t.Helper()
	if s.Route == nil {
		if r := w.table().Match(s); r != nil {
			s.SelectRoute(r)
		}
	}
	resp, err := w.f.Do(s, filters.Next{})
	r := result{err: err, info: &s.Info, resp: resp}
	if err != nil {
		s.Body.Close()
		return r
	}
	r.status, r.header = resp.Status(), &resp.Header
	if w.answered != nil {
		w.answered()
	}
	if resp.Tunnel != nil {
		return r
	}
	for {
		p, last, err := resp.Body.Next()
		if err != nil {
			r.bodyErr = err
			break
		}
		r.body += string(p)
		if last {
			break
		}
	}
	if t := resp.Body.Trailers(); t != nil {
		r.trailers = &message.Header{}
		r.trailers.CopyFrom(t)
	}
	resp.Body.Close()
	if t := resp.Body.Trailers(); r.trailers != nil && (t == nil || t.Len() != r.trailers.Len()) {
		w.t.Error("trailers are gone after Close")
	}
	s.Body.Close()
	return r
}

// idle checks that nothing is held at rest.
func (w *world) idle() {
	w.t.Helper()
	for range 100 {
		busy := ""
		for _, c := range w.m.Clusters() {
			for i, b := range c.Breakers {
				if b.Pending+b.Requests+b.Retries != 0 {
					busy = c.Name + " priority " + strconv.Itoa(i)
				}
			}
		}
		if busy == "" {
			return
		}
		time.Sleep(5 * time.Millisecond)
		if w.t.Failed() {
			return
		}
	}
	w.t.Errorf("breakers hold units at rest: %+v", w.m.Clusters())
}
