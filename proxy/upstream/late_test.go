package upstream

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/dns"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// ejecting is a cluster with a Stats registry and outlier detection of two of its
// hosts at most.
func ejecting(t *testing.T) *Cluster {
	t.Helper()
	m := newTestManager(t, &origin{}, func(o *Options) { o.Stats = (&stats.Registry{}).Scope("") })
	spec := cluster("a", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80")
	spec.Outlier = outlier()
	m.Apply([]*xdsresource.Cluster{spec})
	return m.Cluster("a")
}

func fail(c *Cluster, h *Host) {
	for range 3 {
		c.Status(h, 500)
	}
}

func TestEjectedHostsOfAReplacedClusterDoNotCount(t *testing.T) {
	c := ejecting(t)
	fail(c, c.hosts()[0])
	ejected := c.stats().outlier.active
	if n := ejected.Value(); n != 1 {
		t.Fatalf("%d ejected hosts", n)
	}
	spec := *c.spec
	spec.Digest = xdsresource.Digest{2}
	c.m.Apply([]*xdsresource.Cluster{&spec})
	if n := ejected.Value(); n != 0 {
		t.Errorf("%d ejected hosts after the cluster was replaced", n)
	}
	c.detector.forget(c.hosts()[0])
	if n := ejected.Value(); n != 0 {
		t.Errorf("%d ejected hosts after one of the former cluster was removed", n)
	}
}

// A host is removed while its ejection ends, or while it is ejected.
func TestARemovedHostIsTakenOutOfTheEjectedOnesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := ejecting(t)
		defer c.m.Close()
		d, gone, late := c.detector, c.hosts()[0], c.hosts()[1]
		fail(c, gone)
		d.mu.Lock()
		gone.st.outlier.lastEjected = time.Now().Add(-time.Hour) // its time is over
		d.mu.Unlock()
		d.forget(gone)
		d.tick() // which has listed the hosts before
		d.forget(late)
		fail(c, late) // of a stream that was under way
		d.mu.Lock()
		defer d.mu.Unlock()
		if n := c.stats().outlier.active.Value(); n != 0 || d.active != 0 {
			t.Errorf("%d ejected hosts are shown, %d count", n, d.active)
		}
	})
}

func TestTheHostsOfAReplacedClusterAreCountedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &fakeDNS{}
		server.set(names{"svc.test": addrs("10.0.0.1", "10.0.0.2")}, nil)
		m := newTestManager(t, &origin{}, func(o *Options) { o.Resolver, o.Stats = server, (&stats.Registry{}).Scope("") })
		defer m.Close()
		for n := range byte(2) {
			spec := cluster("a")
			spec.Digest, spec.Discovery, spec.DNS.Family = xdsresource.Digest{1 + n}, xdsresource.DiscoveryStrictDNS, xdsresource.DNSV4Only
			spec.Assignment.Localities[0].Endpoints = []xdsresource.Endpoint{{HostName: "svc.test", Port: 80, Weight: 1}}
			m.Apply([]*xdsresource.Cluster{spec})
			synctest.Wait()
			if n := m.Cluster("a").stats().membershipTotal.Value(); n != 2 {
				t.Errorf("%d hosts are counted of 2", n)
			}
		}
	})
}

// The former cluster is asked for its statistics for the first time when another one
// has its name.
func TestAReplacedClusterDoesNotCountItsHosts(t *testing.T) {
	m := newTestManager(t, &origin{}, func(o *Options) { o.Stats = (&stats.Registry{}).Scope("") })
	former := cluster("a", "10.0.0.1:80")
	m.Apply([]*xdsresource.Cluster{former})
	c := m.Cluster("a")
	spec := cluster("a", "10.0.0.1:80", "10.0.0.2:80")
	spec.Digest = xdsresource.Digest{2}
	m.Apply([]*xdsresource.Cluster{spec})
	total := m.Cluster("a").stats().membershipTotal
	c.stats()
	c.rebuild()
	if n := total.Value(); n != 2 {
		t.Errorf("%d hosts are counted of 2", n)
	}
}

// never is a resolver that is not reached.
type never struct{ t *testing.T }

func (n never) Lookup(context.Context, string, dns.Type) (dns.Answer, error) {
	n.t.Error("a name is resolved for a cluster that is gone")
	return dns.Answer{}, errors.New("never")
}

func TestNobodyWaitsForANameOfAClusterThatIsGone(t *testing.T) {
	m := newTestManager(t, &origin{}, func(o *Options) { o.Resolver = never{t} })
	spec := cluster("a")
	spec.Discovery, spec.DNS.Port = xdsresource.DiscoveryDynamicForwardProxy, 80
	m.Apply([]*xdsresource.Cluster{spec})
	c := m.Cluster("a")
	n := c.dynamic.names
	n.mu.Lock()
	e := &cachedName{name: "www.test", first: make(chan struct{}), timer: time.AfterFunc(time.Hour, func() {})} // is about to be resolved
	n.names[e.name] = e
	n.mu.Unlock()
	m.Apply(nil)
	select {
	case <-e.first:
	default:
		t.Fatal("who waits for the name waits for ever")
	}
	if _, err := c.Pick(&PickContext{Conn: &streaminfo.Conn{RequestedServerName: "www.test"}}); !errors.Is(err, ErrDNS) {
		t.Errorf("%v", err)
	}
}

func TestAHostLearnedByAClusterThatIsGoneKeepsNoConnection(t *testing.T) {
	o := &origin{}
	m := newTestManager(t, o, nil)
	spec := cluster("a")
	spec.Discovery = xdsresource.DiscoveryOriginalDst
	m.Apply([]*xdsresource.Cluster{spec})
	c := m.Cluster("a")
	m.Apply(nil)
	h, err := c.Pick(&PickContext{Conn: &streaminfo.Conn{Local: netip.MustParseAddrPort("10.0.0.1:80")}})
	if err != nil {
		t.Fatal(err)
	}
	finish(t, mustOpen(t, c, h))
	if n := c.breakers[0].connections.n.Load(); n != 0 {
		t.Errorf("%d connections are kept", n)
	}
}

func TestNobodyWaitsForEndpointsOfAClusterThatIsGone(t *testing.T) {
	for name, end := range map[string]func(m *Manager){
		"it was removed":   func(m *Manager) { m.Apply(nil) },
		"the process ends": func(m *Manager) { m.Close() },
		"as its time came": func(m *Manager) {
			m.mu.Lock()
			c := m.warming["a"]
			m.mu.Unlock()
			m.Apply(nil)
			m.startEmpty(c)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log strings.Builder
				m := newTestManager(t, &origin{}, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
				defer m.Close()
				spec := cluster("a")
				spec.Discovery = xdsresource.DiscoveryEDS
				m.Apply([]*xdsresource.Cluster{spec})
				end(m)
				time.Sleep(time.Minute)
				if log.Len() > 0 {
					t.Error(log.String())
				}
			})
		})
	}
}
