package upstream

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func serving(t testing.TB, o *origin, spec *xdsresource.Cluster) *Cluster {
	m := newTestManager(t, o, nil)
	m.Apply([]*xdsresource.Cluster{spec})
	c := m.Cluster(spec.Name)
	if c == nil {
		t.Fatal("cluster does not serve")
	}
	return c
}

func idle(t *testing.T, c *Cluster) {
	t.Helper()
	for i := range c.breakers {
		b := &c.breakers[i]
		if n := b.requests.n.Load() + b.pending.n.Load() + b.retries.n.Load(); n != 0 {
			t.Errorf("breaker %d holds %d units at rest", i, n)
		}
		if got, want := b.connections.n.Load(), int64(0); i == 1 && got != want {
			t.Errorf("HIGH breaker holds %d connections", got)
		}
	}
}

func TestHTTP1ConnectionIsReusedLastInFirstOut(t *testing.T) {
	o := &origin{}
	c := serving(t, o, cluster("a", "10.0.0.1:80"))
	s1, s2 := open(t, c), open(t, c)
	if o.count() != 2 {
		t.Fatalf("%d dials for two streams at once", o.count())
	}
	pc1, pc2 := s1.pc, s2.pc
	finish(t, s1)
	finish(t, s2)
	s := open(t, c)
	if s.pc != pc2 || !s.Reused() {
		t.Error("the connection released last is not the one used first")
	}
	finish(t, s)
	_ = pc1
	if o.count() != 2 {
		t.Errorf("%d dials, want 2", o.count())
	}
	idle(t, c)
}

// close_connections_on_host_set_change: streams in flight end as they would.
func TestConnectionsAreRenewedWhenTheHostsChange(t *testing.T) {
	for _, renew := range []bool{false, true} {
		o := &origin{}
		spec := cluster("a", "10.0.0.1:80")
		spec.LB.RenewOnChange = renew
		c := serving(t, o, spec)
		s1, s2 := open(t, c), open(t, c)
		idleOne := s2.pc
		finish(t, s2)
		c.update(assignment("10.0.0.1:80")) // the same hosts
		s2 = open(t, c)
		if s2.pc != idleOne {
			t.Errorf("renew %v: the connection is another one although the hosts are the same", renew)
		}
		finish(t, s2)
		c.update(assignment("10.0.0.1:80", "10.0.0.2:80"))
		c.update(assignment("10.0.0.1:80"))
		if s := open(t, c); (s.pc == idleOne) == renew {
			t.Errorf("renew %v: the former connection is used: %v", renew, !renew)
		} else {
			finish(t, s)
		}
		finish(t, s1)
		if s := open(t, c); renew && s.pc == s1.pc {
			t.Error("the connection of a stream that was in flight is used again")
		} else {
			finish(t, s)
		}
		idle(t, c)
	}
}

func TestHTTP2StreamsShareAConnectionUpToItsLimit(t *testing.T) {
	o := &origin{limit: 3}
	spec := cluster("a", "10.0.0.1:80")
	spec.HTTP.Version = xdsresource.UpstreamHTTP2
	c := serving(t, o, spec)
	var ss []*Stream
	for range 7 {
		ss = append(ss, open(t, c))
	}
	if o.count() != 3 {
		t.Errorf("%d connections for 7 streams of 3 each", o.count())
	}
	for _, s := range ss {
		finish(t, s)
	}
	idle(t, c)
}

func TestMaxRequestsPerConnectionReplacesTheConnection(t *testing.T) {
	o := &origin{}
	spec := cluster("a", "10.0.0.1:80")
	spec.HTTP.MaxRequestsPerConnection = 2
	c := serving(t, o, spec)
	for range 6 {
		finish(t, open(t, c))
	}
	if o.count() != 3 {
		t.Errorf("%d connections for 6 requests of 2 each", o.count())
	}
}

func TestRequestsBreakerOverflows(t *testing.T) {
	o := &origin{}
	spec := cluster("a", "10.0.0.1:80")
	spec.Breakers[0].MaxRequests = 1
	c := serving(t, o, spec)
	s := open(t, c)
	_, err := c.NewStream(context.Background(), pick(t, c), &ConnectOptions{})
	if transport.ReasonOf(err) != transport.Overflow {
		t.Errorf("second request: %v, want overflow", err)
	}
	hi, err := c.NewStream(context.Background(), pick(t, c), &ConnectOptions{High: true})
	if err != nil {
		t.Fatalf("HIGH has its own breaker: %v", err)
	}
	finish(t, hi)
	finish(t, s)
	finish(t, open(t, c))
	idle2 := c.breakers[0].requests.n.Load()
	if idle2 != 0 {
		t.Errorf("%d requests at rest", idle2)
	}
}

func TestBreakersAdmitExactlyTheirMaximum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		o := &origin{gate: gate}
		spec := cluster("a", "10.0.0.1:80")
		spec.Breakers[0].MaxConnections, spec.Breakers[0].MaxPendingRequests = 1, 3
		m := newTestManager(t, o, nil)
		m.Apply([]*xdsresource.Cluster{spec})
		c := m.Cluster("a")
		var mu sync.Mutex
		overflow, ok := 0, 0
		for range 100 {
			go func() {
				s, err := c.NewStream(context.Background(), pick(t, c), &ConnectOptions{})
				mu.Lock()
				if err != nil {
					overflow++
				} else {
					ok++
				}
				mu.Unlock()
				if s != nil {
					time.Sleep(time.Millisecond)
					finish(t, s)
				}
			}()
		}
		synctest.Wait()
		mu.Lock()
		if overflow != 97 || o.count() != 1 {
			t.Errorf("%d overflowed with %d dials, want 97 with 1", overflow, o.count())
		}
		mu.Unlock()
		close(gate)
		time.Sleep(time.Second)
		mu.Lock()
		defer mu.Unlock()
		if ok != 3 {
			t.Errorf("%d served, want 3", ok)
		}
		idle(t, c)
		m.Close()
	})
}

func TestConnectFailureFailsEverybodyWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{gate: make(chan struct{}), refuse: errors.New("connection refused")}
		spec := cluster("a", "10.0.0.1:80")
		spec.Breakers[0].MaxConnections = 1
		m := newTestManager(t, o, nil)
		m.Apply([]*xdsresource.Cluster{spec})
		c := m.Cluster("a")
		errs := make(chan error, 3)
		for range 3 {
			go func() {
				_, err := c.NewStream(context.Background(), pick(t, c), &ConnectOptions{})
				errs <- err
			}()
		}
		synctest.Wait()
		close(o.gate)
		for range 3 {
			if err := <-errs; transport.ReasonOf(err) != transport.ConnectionFailure {
				t.Errorf("got %v", err)
			}
		}
		synctest.Wait()
		idle(t, c)
		if n := c.breakers[0].connections.n.Load(); n != 0 {
			t.Errorf("%d connections at rest", n)
		}
		m.Close()
	})
}

func TestConnectTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{hang: true}
		spec := cluster("a", "10.0.0.1:80")
		spec.ConnectTimeout = 300 * time.Millisecond
		m := newTestManager(t, o, nil)
		m.Apply([]*xdsresource.Cluster{spec})
		start := time.Now()
		_, err := m.Cluster("a").NewStream(context.Background(), pick(t, m.Cluster("a")), &ConnectOptions{})
		var re *transport.ResetError
		if !errors.As(err, &re) || re.Reason != transport.ConnectionFailure || re.Detail != DetailConnectTimeout {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start); d != 300*time.Millisecond {
			t.Errorf("after %v", d)
		}
		m.Close()
	})
}

func TestCancelledWaiterPassesItsConnectionOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{gate: make(chan struct{})}
		m := newTestManager(t, o, nil)
		m.Apply([]*xdsresource.Cluster{cluster("a", "10.0.0.1:80")})
		c := m.Cluster("a")
		ctx, cancel := context.WithCancelCause(context.Background())
		cause := errors.New("client went away")
		done := make(chan error)
		go func() {
			_, err := c.NewStream(ctx, pick(t, c), &ConnectOptions{})
			done <- err
		}()
		synctest.Wait()
		cancel(cause)
		if err := <-done; !errors.Is(err, cause) {
			t.Errorf("got %v", err)
		}
		close(o.gate)
		synctest.Wait()
		s := open(t, c)
		if !s.Reused() { // its peer may have given it up
			t.Error("a connection that has lain idle since it was made is taken for a new one")
		}
		finish(t, s)
		if o.count() != 1 {
			t.Errorf("%d dials: the connection made for the cancelled stream was not used", o.count())
		}
		idle(t, c)
		m.Close()
	})
}

func TestAWaiterTakesTheConnectionThatIsReleasedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{}
		spec := cluster("a", "10.0.0.1:80")
		spec.Breakers[0].MaxConnections = 1
		m := newTestManager(t, o, nil)
		m.Apply([]*xdsresource.Cluster{spec})
		c := m.Cluster("a")
		s := open(t, c)
		got := make(chan *Stream)
		go func() { got <- open(t, c) }()
		synctest.Wait()
		finish(t, s)
		finish(t, <-got)
		if o.count() != 1 {
			t.Errorf("%d dials", o.count())
		}
		m.Close()
	})
}

func TestRemovedHostDrains(t *testing.T) {
	o := &origin{}
	spec := cluster("a")
	spec.Discovery, spec.Assignment = xdsresource.DiscoveryEDS, nil
	m := newTestManager(t, o, nil)
	m.Apply([]*xdsresource.Cluster{spec})
	if m.Cluster("a") != nil || len(m.Warming()) != 1 {
		t.Fatal("an EDS cluster serves before its endpoints arrived")
	}
	m.UpdateEndpoints("a", assignment("10.0.0.1:80"))
	c := m.Cluster("a")
	s, rest := open(t, c), open(t, c)
	finish(t, rest)
	h := pick(t, c)
	m.UpdateEndpoints("a", assignment("10.0.0.1:80", "10.0.0.2:80"))
	if got := c.hosts()[0]; got != h {
		t.Error("an unchanged endpoint lost its identity")
	}
	m.UpdateEndpoints("a", assignment("10.0.0.2:80"))
	if c.hosts()[0].String() != "10.0.0.2:80" || len(c.hosts()) != 1 {
		t.Fatal("hosts were not replaced")
	}
	if n := h.st.cxActive.Load(); n != 1 {
		t.Errorf("%d connections to the removed host, want the one in use", n)
	}
	finish(t, s)
	if n := h.st.cxActive.Load(); n != 0 {
		t.Errorf("%d connections to the removed host after its last stream", n)
	}
}

func TestIdleConnectionsCloseAfterTheirTimeout(t *testing.T) {
	o := &origin{}
	spec := cluster("a", "10.0.0.1:80")
	spec.HTTP.IdleTimeout = 30 * time.Millisecond
	c := serving(t, o, spec)
	finish(t, open(t, c))
	h := pick(t, c)
	for range 1000 {
		if h.st.cxActive.Load() == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("an idle connection stays open")
}

func TestStreamOnAReadyConnectionDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool forget")
	}
	o := &origin{}
	c := serving(t, o, cluster("a", "10.0.0.1:80", "10.0.0.2:80"))
	pc := &PickContext{}
	opt := &ConnectOptions{}
	finish(t, open(t, c))
	finish(t, open(t, c))
	var h message.Header
	n := testing.AllocsPerRun(200, func() {
		host, _ := c.Pick(pc)
		s, _ := c.TryStream(host, opt)
		h.Reset()
		_, _, _ = s.ReadHeaders(&h)
		s.Release()
	})
	// The fake makes its stream and the channel in it.
	if n > 2 {
		t.Errorf("%v allocations", n)
	}
}

func TestConcurrentStreamsLeaveNothingBehind(t *testing.T) {
	for _, v := range []xdsresource.UpstreamHTTP{xdsresource.UpstreamHTTP1, xdsresource.UpstreamHTTP2} {
		o := &origin{limit: 4}
		spec := cluster("a", "10.0.0.1:80", "10.0.0.2:80")
		spec.HTTP.Version, spec.HTTP.MaxRequestsPerConnection = v, 50
		spec.Breakers[0].MaxConnections = 3
		c := serving(t, o, spec)
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for range 100 {
					finish(t, open(t, c))
				}
			})
		}
		wg.Wait()
		idle(t, c)
		if n := c.breakers[0].connections.n.Load(); n > 4 {
			t.Errorf("%d connections at rest", n)
		}
	}
}
