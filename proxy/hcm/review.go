package hcm

import (
	"errors"
	"fmt"
	"hash/maphash"
	"runtime/debug"
	"sync"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/linked"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/routing"
)

// grounds are what a tunnel was admitted on, and will be judged by again. Tunnels
// with the same ones share them; they don't change.
type grounds struct {
	head  message.Packed
	chain []filters.HTTPFilter
}

// sharedGrounds is how many different ones are kept for tunnels to come, and
// sharedHead how long in bytes a head may be for that.
const (
	sharedGrounds = 32
	sharedHead    = 512
)

var groundsSeed = maphash.MakeSeed()

// known is what filters found out about a request, and whose it is.
type known struct {
	conn     *streaminfo.Conn
	state    streaminfo.FilterState
	metadata streaminfo.Metadata
}

// known takes it from st, which is not used any more; nil is no more than what the
// connection says.
func (st *stream) known() *known {
	i := &st.s.Info
	if i.FilterState.Empty() && i.Metadata.Empty() && i.Conn == st.cn.info {
		return nil
	}
	k := &known{i.Conn, i.FilterState.Snapshot(), i.Metadata}
	i.Metadata = streaminfo.Metadata{}
	return k
}

// tunnels are those of a Manager that are open. A tunnel is added once nothing of
// its record changes any more until it is removed.
type tunnels struct {
	m    *Manager
	mu   sync.Mutex // guards what follows, and that of each tunnel
	open linked.List[tunnel, *tunnel]
	// successor is that of the last review, nil before the first.
	successor func(*streaminfo.Conn) filters.TerminalFilter
	// reviewed is the table by which all tunnels were admitted, or reviewed last.
	reviewed *routing.Table
	// refused are those that would not be admitted now, until they are removed.
	refused map[*tunnel]*filters.Denied
	// shared are grounds of tunnels of late, each at a place that its head has.
	shared [sharedGrounds]*grounds
}

// grounds returns the ones of a tunnel: those of an earlier one if they are equal.
func (ts *tunnels) grounds(head message.Packed, chain []filters.HTTPFilter) *grounds {
	place := maphash.Comparable(groundsSeed, head) % sharedGrounds
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if g := ts.shared[place]; g != nil && g.head == head && sameSlice(g.chain, chain) {
		return g
	}
	g := &grounds{head, chain}
	if head.Len() <= sharedHead {
		ts.shared[place] = g
	}
	return g
}

func sameSlice(a, b []filters.HTTPFilter) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// manager is the one that t is a tunnel of.
func (t *tunnel) manager() *Manager {
	if t.st != nil {
		return t.st.m
	}
	return t.parked.cn.m
}

// add lists t, which was routed by the table seen. What has come into force since
// then judges it here.
func (ts *tunnels) add(t *tunnel, seen *routing.Table) {
	ts.mu.Lock()
	ts.open.PushFront(t)
	var d *filters.Denied
	if ts.successor != nil || ts.m.cfg.Routes.Table() != seen {
		d = ts.judge(t, seen)
	}
	ts.mu.Unlock()
	t.revoke(d)
}

// remove takes t off the list, and says why it was revoked; nil is that it was not.
func (ts *tunnels) remove(t *tunnel) *filters.Denied {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if !ts.open.Remove(t) {
		return nil
	}
	d := ts.refused[t]
	delete(ts.refused, t)
	return d
}

// refuse notes that t would not be admitted now. ts.mu is held.
func (ts *tunnels) refuse(t *tunnel, d *filters.Denied) {
	if ts.refused == nil {
		ts.refused = map[*tunnel]*filters.Denied{}
	}
	ts.refused[t] = d
}

// Review implements listener.TunnelReviewer.
func (m *Manager) Review(successor func(ci *streaminfo.Conn) filters.TerminalFilter) {
	ts := &m.tunnels
	ts.mu.Lock()
	ts.successor = successor
	before := ts.reviewed
	ts.reviewed = m.cfg.Routes.Table()
	open := ts.open.Snapshot()
	ts.mu.Unlock()
	for _, t := range open {
		var d *filters.Denied
		ts.mu.Lock()
		if t.Linked() {
			d = ts.judge(t, before)
		}
		ts.mu.Unlock()
		t.revoke(d)
	}
}

// judge says why t would be refused now, nil if it would not, or if the same
// decides about it that admitted it. by is the table of this manager that it has
// been judged by. ts.mu is held.
func (ts *tunnels) judge(t *tunnel, by *routing.Table) (d *filters.Denied) {
	m, cn := ts.m, t.parked.cn
	if t.st != nil {
		cn = t.st.cn
	}
	if ts.refused[t] != nil {
		return nil
	}
	defer func() {
		if p := recover(); p != nil { // as if it came now
			m.st.panics.Inc()
			m.cfg.Logger.Error("panic while reviewing a tunnel", "panic", fmt.Sprint(p), "chain", cn.info.FilterChainName, "stack", string(debug.Stack()))
			d = &filters.Denied{Details: "internal_error_panic"}
		}
		if d != nil {
			ts.refuse(t, d)
		}
	}()
	next := m
	if ts.successor != nil {
		var ok bool
		if next, ok = ts.successor(cn.info).(*Manager); !ok {
			return nil // it drains
		}
	}
	if next == m && m.cfg.Routes.Table() == by {
		return nil
	}
	return next.refuses(t)
}

// refuses says which filter of m would refuse t's request.
func (m *Manager) refuses(t *tunnel) *filters.Denied {
	s := &filters.Stream{Body: message.NoBody, Random: t.random}
	s.Request.Unpack(t.admitted.head)
	if m.spec.GenerateRequestID && s.Request.Get("x-request-id") == "" {
		s.Request.Set("x-request-id", string(newRequestID(nil))) // as good as the one it got
	}
	t.recall(&s.Info)
	g := m.cfg.Routes.enter()
	if g == nil {
		return nil // it ends
	}
	defer g.users.Leave()
	if table := g.table; table != nil {
		if r := table.Match(s); r != nil {
			s.SelectRoute(r)
		}
	}
	if s.Route == nil {
		s.SetChain(m.chain(g))
	}
	if SamePolicies(s.Chain(), t.admitted.chain) {
		return nil
	}
	for _, f := range s.Chain() {
		if r, ok := f.(filters.RequestReviewer); ok {
			if d := r.Review(s); d != nil {
				return d
			}
		}
	}
	return nil
}

// recall fills i with what is known of the request. Nothing of it may be changed.
func (t *tunnel) recall(i *streaminfo.Info) {
	if st := t.st; st != nil {
		from := &st.s.Info
		i.Conn, i.Start, i.Protocol, i.Metadata = from.Conn, from.Start, from.Protocol, from.Metadata
		i.FilterState.Reset(&from.FilterState)
		return
	}
	p := &t.parked
	i.Conn, i.Start, i.Protocol = p.cn.info, p.began(), message.HTTP2
	state := &p.cn.info.FilterState
	switch {
	case p.rec != nil:
		i.Conn, state, i.Metadata = p.rec.info.Known()
	case p.known != nil:
		i.Conn, state, i.Metadata = p.known.conn, &p.known.state, p.known.metadata
	}
	i.FilterState.Reset(state)
}

// SamePolicies reports whether the same filters decide about requests in both
// chains, of those that can be asked again. Filters of equal content are one object.
func SamePolicies(a, b []filters.HTTPFilter) bool {
	for {
		var f, g filters.RequestReviewer
		f, a = nextReviewer(a)
		g, b = nextReviewer(b)
		if f != g {
			return false
		}
		if f == nil {
			return true
		}
	}
}

func nextReviewer(chain []filters.HTTPFilter) (f filters.RequestReviewer, rest []filters.HTTPFilter) {
	for i, x := range chain {
		if r, ok := x.(filters.RequestReviewer); ok {
			return r, chain[i+1:]
		}
	}
	return nil, nil
}

var errRevoked = errors.New("hcm: the tunnel would not be admitted now")

// revoke ends a tunnel that is refused by d; nil does nothing. Its far side hears
// of it as of a client's reset.
func (t *tunnel) revoke(d *filters.Denied) {
	if d == nil {
		return
	}
	t.Interrupt(errRevoked)
	t.Conn.Reset()
}

// revoked records that d ended the stream.
func (st *stream) revoked(d *filters.Denied) {
	info := &st.s.Info
	info.Revoke(d.Revocation())
	info.Details, info.ConnectionTerminationDetails = d.Details, ""
}
