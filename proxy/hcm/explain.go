package hcm

import (
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/routing"
)

// Question is a request that a Manager is asked about.
type Question struct {
	// Connection is where it would arrive; its Conn is not used.
	Connection *filters.Connection
	Version    message.Version
	// Head is complete, pseudo-headers first, as a codec gives it.
	Head   *message.Header
	Body   []byte
	Random uint64
}

// Rehearsal is a request that was made canonical and routed as a stream is, and
// goes no further.
type Rehearsal struct {
	// Stream has its route and chain selected; ClearRouteCache works.
	Stream *filters.Stream
	// Table is nil if no routes have arrived.
	Table *routing.Table
	// Reply is what the manager answers by itself, nil if filters run.
	Reply *filters.Response
	// Reselected counts the selections of the route after the first.
	Reselected func() int
	// StreamIdle and RequestTimeout are the limits that the manager puts on the
	// stream; 0 is none.
	StreamIdle, RequestTimeout, MaxDuration time.Duration

	gen *generation
}

// Done ends the use of the filters, which may be closed then if there are others
// now.
func (r *Rehearsal) Done() { r.gen.users.Leave() }

// Rehearse takes q as far as the first filter. Nothing is sent, counted, timed
// or logged. Done of what is returned must follow.
func (m *Manager) Rehearse(q *Question) *Rehearsal {
	// The handles of the statistics are nil: they discard.
	quiet := &Manager{cfg: m.cfg, spec: m.spec, upgrades: m.upgrades, mapped: m.mapped}
	st := newStream(quiet)
	st.cn = &conn{m: quiet, info: q.Connection.Info.Conn, secure: q.Connection.Info.Conn.TLS != nil}
	s := &st.s
	s.Reset()
	s.Request.CopyFrom(q.Head)
	st.describe(st.cn, q.Version, q.Random)
	if len(q.Body) > 0 {
		s.Body = message.Bytes(q.Body)
	}
	s.Info.RequestComplete = s.Info.Start
	n := 0
	s.Reselect = func(*filters.Stream) { n++; st.selectRoute() }
	if st.gen = m.cfg.Routes.enter(); st.gen == nil { // the manager has been replaced long since
		st.gen = &generation{unrouted: []filters.HTTPFilter{}}
		st.gen.users.Enter()
	}
	st.table = st.gen.table
	out := &Rehearsal{
		gen:    st.gen,
		Stream: s, Table: st.table, Reselected: func() int { return n },
		StreamIdle: m.spec.StreamIdleTimeout, RequestTimeout: m.spec.RequestTimeout, MaxDuration: m.spec.MaxStreamDuration,
	}
	if out.Reply = st.admit(); out.Reply != nil {
		return out
	}
	st.selectRoute()
	if r, ok := s.Route.(*routing.Route); ok && r.Config.Action != nil && r.Config.Action.IdleTimeout != nil {
		out.StreamIdle = *r.Config.Action.IdleTimeout
	}
	out.Reply = st.checkUpgrade()
	return out
}
