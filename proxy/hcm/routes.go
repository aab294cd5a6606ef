package hcm

import (
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/usage"
	"github.com/fairlead-mesh/fairlead/routing"
)

// Routes holds what new streams are routed by and run through: fixed for an inline
// route_config, replaced when RDS or ECDS bring another. A stream keeps to what was
// there when it began. Without a table it is answered 404.
type Routes struct {
	p      atomic.Pointer[generation]
	closed atomic.Bool
}

// generation is a route table, the chain of what it does not route, and the streams
// that began with them.
type generation struct {
	table *routing.Table
	// unrouted, if not nil, stands for Config.DefaultChain.
	unrouted []filters.HTTPFilter
	users    usage.Count
}

// Table returns the current table, nil if none has arrived.
func (r *Routes) Table() *routing.Table {
	if g := r.p.Load(); g != nil {
		return g.table
	}
	return nil
}

// Set installs t for streams that start from now on.
func (r *Routes) Set(t *routing.Table) { r.Replace(t, nil, nil) }

// Replace installs t, which may be nil, and unrouted, which stands for
// Config.DefaultChain unless it is nil, for streams that start from now on.
// unrouted must not be modified afterwards. unused is called once, when the last
// stream has ended that began with what was there before: soon, or in hours. It
// must not block, and may be nil.
func (r *Routes) Replace(t *routing.Table, unrouted []filters.HTTPFilter, unused func()) {
	retire(r.p.Swap(&generation{table: t, unrouted: unrouted}), unused)
}

// Close ends the streams that begin from now on, without an answer: all connections
// have ended, or been cut. unused is as for Replace.
func (r *Routes) Close(unused func()) {
	r.closed.Store(true)
	retire(r.p.Swap(nil), unused)
}

func retire(g *generation, unused func()) {
	switch {
	case unused == nil:
	case g == nil:
		unused()
	default:
		g.users.Retire(unused)
	}
}

// begin makes sure that there is something to begin with.
func (r *Routes) begin() {
	if !r.closed.Load() {
		r.p.CompareAndSwap(nil, &generation{})
	}
}

// enter returns what a stream begins with, nil after Close. Its users.Leave must
// follow when the stream has ended.
func (r *Routes) enter() *generation {
	for {
		g := r.p.Load()
		if g == nil {
			return nil
		}
		t := g.users.Enter()
		if r.p.Load() == g {
			return g
		}
		g.users.Undo(t)
	}
}

// chain returns what runs in g when no route matched.
func (m *Manager) chain(g *generation) []filters.HTTPFilter {
	if g.unrouted != nil {
		return g.unrouted
	}
	return m.cfg.DefaultChain
}
