package listener

import (
	"sync"
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/linked"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/refusal"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/internal/usage"
)

// connection is a connection in a chain. There may be many idle ones: streams of
// tunnels are connections of an internal listener.
type connection struct {
	// raw is the connection as it came, which may be cut at any time; conn is what
	// transport socket and network filters made of it.
	raw, conn netio.Conn
	info      *streaminfo.Conn
	// rec is nil while a filters.ConnTerminal has the connection.
	rec                     *record
	chain                   *Chain
	linked.Node[connection] // in chain.conns

	l    *Listener
	done func()
	tell *telling
	// known is what network filters had found out when they admitted the
	// connection, nil if that was nothing.
	known *known
	// revoked is set before a connection is cut that would not be admitted now.
	revoked atomic.Pointer[streaminfo.Revocation]
	// passed is how many network filters saw the connection.
	passed int16
	// admitted, guarded by chain.mu, is set when they have let it pass: nothing but
	// its end is to come, and conn and info stay as they are.
	admitted bool
	ended    atomic.Bool
}

// telling is who hears of the end of a connection.
type telling struct {
	logs []AccessLogger
	// refusals may be nil.
	refusals *refusal.Recorder
	// users may be nil.
	users *usage.Count
}

// take begins a connection with what is in force, nil if nothing is. The end of the
// connection must follow.
func (l *Listener) take() *compiled {
	for {
		cur := l.current.Load()
		if cur == nil {
			return nil
		}
		users := cur.cfg.LogUsers
		if users == nil {
			l.active.Add(1)
			return cur
		}
		t := users.Enter()
		if l.current.Load() == cur {
			l.active.Add(1)
			return cur
		}
		users.Undo(t)
	}
}

// cut ends the connection now.
func (cn *connection) cut(cause error) {
	cn.raw.Interrupt(cause)
	cn.raw.Reset()
}

// record is what filters know of a connection.
type record struct {
	fc   filters.Connection
	info streaminfo.Info
}

var records = sync.Pool{New: func() any { return new(record) }}

// newRecord begins the record of cn.
func newRecord(cn *connection) *record {
	r := records.Get().(*record) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	r.info.Conn, r.info.Start = cn.info, cn.info.Start
	r.info.FilterState.Reset(&cn.info.FilterState)
	r.fc = filters.Connection{Conn: cn.conn, Info: &r.info}
	r.fc.RevokedBy(&cn.revoked)
	return r
}

// recordIsBlank reports whether the record can be made again from what the
// connection keeps, and nobody else has it.
func (cn *connection) recordIsBlank() bool {
	for _, f := range cn.chain.Network {
		if _, ok := f.(filters.Detached); !ok {
			return false
		}
		if _, ok := f.(filters.ConnectionEnder); ok {
			return false
		}
	}
	return !cn.rec.fc.Observed() && cn.rec.info.Blank()
}

// dropRecord gives the record back.
func (cn *connection) dropRecord() {
	r := cn.rec
	cn.rec = nil
	r.fc = filters.Connection{}
	r.info = streaminfo.Info{}
	records.Put(r)
}
