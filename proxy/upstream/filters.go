package upstream

import (
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// compileFilters compiles the filters of the cluster's connections. Without one
// that can't be executed nothing may be sent.
func (c *Cluster) compileFilters() {
	for i := range c.spec.Filters {
		tc := &c.spec.Filters[i]
		if c.m.opt.Filter == nil {
			c.filtersErr = errors.New("this process has no filters of upstream connections")
			return
		}
		f, err := c.m.opt.Filter(tc)
		if err != nil {
			c.filtersErr = fmt.Errorf("filter %s of the cluster can't be executed: %w", tc.Name, err)
			c.m.log.Error("a filter of the cluster can't be executed; its connections will fail", "cluster", c.spec.Name, "filter", tc.Name, "error", err)
			return
		}
		c.filters = append(c.filters, f)
	}
}

// filtering is a connection on its way through the cluster's filters; nil
// without filters.
type filtering struct {
	c *Cluster
	u filters.UpstreamConnection
}

func (c *Cluster) filtered(h *Host) *filtering {
	if len(c.filters) == 0 {
		return nil
	}
	f := &filtering{c: c}
	f.u.Address, f.u.Internal = h.Address(), h.Internal()
	f.u.HostMetadata, f.u.ClusterMetadata = &h.Endpoint.Metadata, &c.spec.Metadata
	return f
}

func (f *filtering) dialing() {
	if f == nil {
		return
	}
	for _, x := range f.c.filters {
		_ = f.contain(func() error { x.OnDial(&f.u); return nil }) // OnConnected will tell
	}
}

// options adds to o what crosses to an internal listener.
func (f *filtering) options(o *ConnectOptions) *ConnectOptions {
	if f == nil {
		return o
	}
	d := *o
	d.State = &f.u.State
	return &d
}

// connected runs the filters on an established connection. If one refuses it,
// the connection is closed.
func (f *filtering) connected(conn *connection) (*connection, error) {
	if f == nil {
		return conn, nil
	}
	f.u.Conn = conn.Conn
	for _, x := range f.c.filters {
		if err := f.contain(func() error { return x.OnConnected(&f.u) }); err != nil {
			f.u.Reset()
			return nil, err
		}
	}
	conn.Conn, conn.state = f.u.Conn, &f.u.State
	f.u.Conn = netio.Conn(nil)
	return conn, nil
}

var errFilterPanic = errors.New("a filter of the cluster panicked")

// contain keeps a panic of a filter's code to its connection.
func (f *filtering) contain(run func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			f.c.m.log.Error("panic in a filter of a cluster", "cluster", f.c.spec.Name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = errFilterPanic
		}
	}()
	return run()
}
