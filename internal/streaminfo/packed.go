package streaminfo

import (
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
)

// Packed is an Info that nobody looks at for long, in a fraction of its memory.
type Packed struct {
	conn  *Conn
	place *place
	start time.Time
	// rest is what a Packed has no fields for, nil if that is nothing.
	rest *Info

	firstUpstreamRx, firstDownstreamTx time.Duration // since start, 0: not set

	requestID string
	flags     ResponseFlag
	state     []entry
	metadata  Metadata
	code      int16
	protocol  message.Version
	attempts  uint8
	upstream  bool // Details are "via_upstream"
}

// place is what is the same for all streams of a route to a host.
type place struct {
	upstream                           Upstream
	routeName, virtualHost             string
	routeMetadata, virtualHostMetadata *Metadata
}

// Places lets the Packed of streams to the same place share its description. The
// zero Places is ready. It is safe for concurrent use.
type Places struct{ last atomic.Pointer[place] }

// share returns what equals p.
func (ps *Places) share(p *place) *place {
	if l := ps.last.Load(); l != nil && *l == *p {
		return l
	}
	n := new(place)
	*n = *p
	ps.last.Store(n)
	return n
}

const viaUpstream = "via_upstream"

// Pack moves what i says to a Packed; i must be reset before it is used again.
// Strings are kept as they are, except for RequestID, which is copied.
func (i *Info) Pack(ps *Places) Packed {
	p := Packed{
		conn: i.Conn, start: i.Start, flags: i.Flags, protocol: i.Protocol, requestID: strings.Clone(i.RequestID),
		place: ps.share(&place{i.Upstream, i.RouteName, i.VirtualHost, i.RouteMetadata, i.VirtualHostMetadata}),
	}
	i.Conn, i.Start, i.Flags, i.Protocol, i.RequestID = nil, time.Time{}, 0, 0, ""
	i.Upstream, i.RouteName, i.VirtualHost, i.RouteMetadata, i.VirtualHostMetadata = Upstream{}, "", "", nil, nil
	if n := i.ResponseCode; n == int(int16(n)) {
		p.code, i.ResponseCode = int16(n), 0
	}
	if n := i.AttemptCount; n == int(uint8(n)) {
		p.attempts, i.AttemptCount = uint8(n), 0
	}
	if i.Details == viaUpstream {
		p.upstream, i.Details = true, ""
	}
	p.firstUpstreamRx = sinceStart(p.start, &i.FirstUpstreamRx)
	p.firstDownstreamTx = sinceStart(p.start, &i.FirstDownstreamTx)
	if len(i.FilterState.entries) > 0 {
		p.state = slices.Clone(i.FilterState.entries)
	}
	if len(i.Metadata.m) > 0 {
		p.metadata = i.Metadata
	}
	i.FilterState, i.Metadata = FilterState{}, Metadata{}
	if !reflect.ValueOf(i).Elem().IsZero() {
		r := *i
		p.rest = &r
	}
	return p
}

// sinceStart moves a time that is after start.
func sinceStart(start time.Time, t *time.Time) time.Duration {
	d := t.Sub(start)
	if t.IsZero() || d <= 0 || start.IsZero() {
		return 0
	}
	*t = time.Time{}
	return d
}

// Known returns what is known of the stream: its connection, and what filters found
// out. It must not be changed.
func (p *Packed) Known() (*Conn, *FilterState, Metadata) {
	f := &FilterState{entries: p.state}
	if p.conn != nil {
		f.parent = &p.conn.FilterState
	}
	return p.conn, f, p.metadata
}

// Unpack makes i say what p does. i must be empty.
func (i *Info) Unpack(p *Packed) {
	state := i.FilterState
	if p.rest != nil {
		*i = *p.rest
	}
	i.Conn, i.Start, i.Flags, i.Protocol, i.RequestID = p.conn, p.start, p.flags, p.protocol, p.requestID
	l := p.place
	i.Upstream, i.RouteName, i.VirtualHost, i.RouteMetadata, i.VirtualHostMetadata = l.upstream, l.routeName, l.virtualHost, l.routeMetadata, l.virtualHostMetadata
	if p.code != 0 {
		i.ResponseCode = int(p.code)
	}
	if p.attempts != 0 {
		i.AttemptCount = int(p.attempts)
	}
	if p.upstream {
		i.Details = viaUpstream
	}
	if p.firstUpstreamRx > 0 {
		i.FirstUpstreamRx = p.start.Add(p.firstUpstreamRx)
	}
	if p.firstDownstreamTx > 0 {
		i.FirstDownstreamTx = p.start.Add(p.firstDownstreamTx)
	}
	state.Reset(nil)
	if p.conn != nil {
		state.parent = &p.conn.FilterState
	}
	state.entries = append(state.entries, p.state...)
	i.FilterState, i.Metadata = state, p.metadata
}
