package upstream

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// probe is a filter of a cluster that notes what it sees.
type probe struct {
	dialed, connected int
	seen              filters.UpstreamConnection
	fail              error
	panics            bool
}

// wrapper is what probe makes of a connection.
type wrapper struct{ netio.Conn }

func (p *probe) OnDial(c *filters.UpstreamConnection) {
	p.dialed++
	p.seen = *c
	c.State.SetStatic("once", streaminfo.String("x"), streaminfo.SharingOnce)
	c.State.SetStatic("none", streaminfo.String("y"), streaminfo.SharingNone)
}

func (p *probe) OnConnected(c *filters.UpstreamConnection) error {
	p.connected++
	if p.panics {
		panic("a defect")
	}
	c.Conn = &wrapper{c.Conn}
	return p.fail
}

// filtered is a cluster with p on its connections.
func filtered(t *testing.T, p *probe, err error, edit func(*xdsresource.Cluster), more func(*Options)) *Cluster {
	t.Helper()
	m := newTestManager(t, &origin{}, func(o *Options) {
		o.Filter = func(tc *xdsresource.TypedConfig) (filters.UpstreamFilter, error) { return p, err }
		if more != nil {
			more(o)
		}
	})
	spec := cluster("a", "10.0.0.1:80")
	spec.Filters = []xdsresource.TypedConfig{{Name: "probe"}}
	if edit != nil {
		edit(spec)
	}
	m.Apply([]*xdsresource.Cluster{spec})
	return m.Cluster("a")
}

func TestFiltersOfAClusterSeeItsConnections(t *testing.T) {
	p := &probe{}
	c := filtered(t, p, nil, func(s *xdsresource.Cluster) { s.Metadata.Set("istio", "k", "v") }, nil)
	h := pick(t, c)
	conn, err := c.Connect(context.Background(), h, &ConnectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := conn.(*tcpConn).Conn.(*wrapper); !ok || p.dialed != 1 || p.connected != 1 {
		t.Errorf("%T, dialed %d, connected %d", conn.(*tcpConn).Conn, p.dialed, p.connected)
	}
	if p.seen.Conn != nil || p.seen.Address != netip.MustParseAddrPort("10.0.0.1:80") || p.seen.Internal != "" || p.seen.ClusterMetadata.Namespace("istio")["k"] != "v" {
		t.Errorf("%+v", p.seen)
	}
	if s := StateOf(conn); s.GetString("none") != "y" {
		t.Errorf("state %v", s)
	}
	_ = conn.Close()
	idle(t, c)
}

func TestWhatAFilterSharesCrossesAnInternalHop(t *testing.T) {
	d := &hop{}
	p := &probe{}
	c := filtered(t, p, nil, func(s *xdsresource.Cluster) {
		s.Assignment.Localities[0].Endpoints = []xdsresource.Endpoint{{InternalListener: "connect_originate", EndpointID: "10.0.0.9:80", Weight: 1}}
	}, func(o *Options) { o.Internal = d })
	conn, err := c.Connect(context.Background(), pick(t, c), &ConnectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var far streaminfo.FilterState
	d.seen[0].State.ShareInto(&far)
	if far.GetString("once") != "x" || far.Get("none") != nil || p.seen.Internal != "connect_originate" || p.seen.Address.Addr().String() != "10.0.0.9" {
		t.Errorf("crossed: %q %v; %+v", far.GetString("once"), far.Get("none"), p.seen)
	}
}

func TestAFilterThatFailsCostsItsConnection(t *testing.T) {
	for name, tc := range map[string]struct {
		p   *probe
		err error // of its compilation
	}{
		"refuses":           {p: &probe{fail: errors.New("refused by the filter")}},
		"panics":            {p: &probe{panics: true}},
		"can't be executed": {p: &probe{}, err: errors.New("refused by the filter")},
	} {
		c := filtered(t, tc.p, tc.err, nil, nil)
		h := pick(t, c)
		for range 2 {
			_, err := c.Connect(context.Background(), h, &ConnectOptions{})
			if err == nil || !strings.Contains(err.Error(), "filter") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if tc.err != nil && tc.p.dialed != 0 {
			t.Errorf("%s: dialed", name)
		}
		idle(t, c)
	}
}

func TestWithoutACompilerFiltersCloseTheCluster(t *testing.T) {
	m := newTestManager(t, &origin{}, nil)
	spec := cluster("a", "10.0.0.1:80")
	spec.Filters = []xdsresource.TypedConfig{{Name: "probe"}}
	m.Apply([]*xdsresource.Cluster{spec})
	c := m.Cluster("a")
	if _, err := c.Connect(context.Background(), pick(t, c), &ConnectOptions{}); err == nil {
		t.Error("connected without the filter")
	}
}
