// Package ratelimit makes descriptors of requests as envoy.config.route.v3.RateLimit
// says: routes and virtual hosts hold the actions, rate limit filters ask for
// what they yield.
package ratelimit

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Entry is one pair of a descriptor.
type Entry struct{ Key, Value string }

// Unit is the unit of an overriding limit, in the numbers of
// envoy.type.v3.RateLimitUnit.
type Unit int32

// Units.
const (
	UnknownUnit Unit = iota
	Second
	Minute
	Hour
	Day
	Month
	Year
)

// Override is a limit that a descriptor brings along.
type Override struct {
	Requests uint32
	Unit     Unit
}

// Descriptor is what a limit is looked up by.
type Descriptor struct {
	Entries []Entry
	// Override is nil for the service's own limit.
	Override *Override
	// Hits is how much the request counts, nil for what the filter says; it is
	// taken away if Negative.
	Hits     *uint64
	Negative bool
}

// Limit is one RateLimit: it yields a descriptor, or none if an action has
// nothing to say. It is immutable.
type Limit struct {
	// Stage is the filters' that it is for.
	Stage   uint32
	Actions []Action
	// Override and OverrideFrom are limit.rate_limit, and the metadata of
	// limit.dynamic_metadata.
	Override     *Override
	OverrideFrom *MetadataKey
	Hits         *Hits
	// OnDone is apply_on_stream_done: what is asked about the request when it has
	// ended.
	OnDone bool
}

// Moment is when a filter asks.
type Moment uint8

// Moments. A filter that knows but one takes all limits, as Envoy's local one.
const (
	AnyTime Moment = iota
	OnRequest
	OnDone
)

// Hits is hits_addend: a number, or a text that renders one.
type Hits struct {
	Number   *uint64
	Format   *format.String
	Negative bool
}

// MetadataKey names a value in metadata.
type MetadataKey struct {
	Namespace string
	Path      []string
}

// Policy are the limits of a route and of its virtual host.
type Policy struct {
	Route, VirtualHost []*Limit
	// IncludeVirtualHost is include_vh_rate_limits.
	IncludeVirtualHost bool
}

// VirtualHostLimits says when limits of the virtual host count, as vh_rate_limits
// of filters.
type VirtualHostLimits uint8

// Choices: if the route has none, always, never.
const (
	IfRouteHasNone VirtualHostLimits = iota
	IncludeVirtualHost
	IgnoreVirtualHost
)

// Descriptors are what the limits of a stage and moment make of in; p may be nil. A
// route that includes its virtual host's limits does so whatever v is.
func (p *Policy) Descriptors(stage uint32, v VirtualHostLimits, m Moment, in *Input) []Descriptor {
	if p == nil {
		return nil
	}
	out := describe(nil, p.Route, stage, m, in)
	if p.includes(v) {
		out = describe(out, p.VirtualHost, stage, m, in)
	}
	return out
}

func (p *Policy) includes(v VirtualHostLimits) bool {
	return p.IncludeVirtualHost || v == IncludeVirtualHost || v == IfRouteHasNone && len(p.Route) == 0
}

// AsksOnDone reports whether there are limits of a stage to ask about when a
// request has ended; p may be nil.
func (p *Policy) AsksOnDone(stage uint32, v VirtualHostLimits) bool {
	done := func(l *Limit) bool { return l.OnDone && l.Stage == stage }
	return p != nil && (slices.ContainsFunc(p.Route, done) || p.includes(v) && slices.ContainsFunc(p.VirtualHost, done))
}

func describe(out []Descriptor, limits []*Limit, stage uint32, m Moment, in *Input) []Descriptor {
	for _, l := range limits {
		if l.Stage != stage || m != AnyTime && l.OnDone != (m == OnDone) {
			continue
		}
		if d, ok := l.Describe(in); ok {
			out = append(out, d)
		}
	}
	return out
}

// Route is a route that has limits; RateLimits is nil if it has none.
type Route interface{ RateLimits() *Policy }

// Input is what actions look at.
type Input struct {
	Info    *streaminfo.Info
	Request *message.Header
	// Response is nil before there is one.
	Response *message.Header
	// Cluster is the route's, Node this proxy's own.
	Cluster, Node string
	// RouteMetadata may be nil.
	RouteMetadata *streaminfo.Metadata
}

// Describe returns the descriptor that l makes of in; false if there is none.
func (l *Limit) Describe(in *Input) (Descriptor, bool) {
	d := Descriptor{Entries: make([]Entry, 0, len(l.Actions)), Override: l.Override}
	for i := range l.Actions {
		e, ok, skip := l.Actions[i].entry(in)
		if skip {
			continue
		}
		if !ok {
			return Descriptor{}, false
		}
		d.Entries = append(d.Entries, e)
	}
	if len(d.Entries) == 0 {
		return Descriptor{}, false
	}
	if l.OverrideFrom != nil {
		if o := overrideOf(in.Info, l.OverrideFrom); o != nil {
			d.Override = o
		}
	}
	if h := l.Hits; h != nil {
		d.Hits, d.Negative = h.Number, h.Negative
		if h.Format != nil {
			n, err := strconv.ParseUint(h.Format.Render(in.format()), 10, 64)
			if err != nil {
				return Descriptor{}, false
			}
			d.Hits = &n
		}
	}
	return d, true
}

func (in *Input) format() *format.Context {
	return &format.Context{Info: in.Info, Request: in.Request, Response: in.Response}
}

var units = map[string]Unit{"SECOND": Second, "MINUTE": Minute, "HOUR": Hour, "DAY": Day, "MONTH": Month, "YEAR": Year}

// overrideOf reads {requests_per_unit, unit} from dynamic metadata.
func overrideOf(info *streaminfo.Info, k *MetadataKey) *Override {
	v, _ := info.Metadata.Lookup(k.Namespace, k.Path...)
	m, ok := v.(map[string]any)
	if !ok {
		return nil
	}
	n, ok := m["requests_per_unit"].(float64)
	u, ok2 := m["unit"].(string)
	unit, known := units[u]
	if !ok || !ok2 || !known || n < 0 || n > 1<<32-1 {
		return nil
	}
	return &Override{Requests: uint32(n), Unit: unit}
}

// Kind is what an Action does.
type Kind uint8

// Kinds of actions, in the order of the protocol.
const (
	SourceCluster Kind = iota
	DestinationCluster
	RequestHeader
	RemoteAddress
	Fixed // generic_key
	HeaderMatch
	MetadataValue
	MaskedAddress
	QueryMatch
	QueryValue
	AddressMatch
	Expression // extension envoy.rate_limit_descriptors.expr
)

// Action makes one entry. Which fields count depends on Kind.
type Action struct {
	Kind Kind
	Key  string
	// Value is rendered (Fixed and the matches); Default stands for an empty one.
	Value   *format.String
	Default string
	// Name of the header or query parameter; SkipIfAbsent leaves the entry out
	// instead of the descriptor.
	Name         string
	SkipIfAbsent bool
	// Expect is whether the matchers have to match, or not to.
	Expect  bool
	Headers []matcher.Header
	Query   []matcher.QueryParameter
	Ranges  []netip.Prefix
	// Expr gives the value of Expression; with SkipIfAbsent an error leaves the entry
	// out instead of the descriptor.
	Expr *format.CEL
	// Metadata is read from the stream, or from the route.
	Metadata  MetadataKey
	FromRoute bool
	// Mask4 and Mask6 are the lengths of MaskedAddress.
	Mask4, Mask6 int
}

// entry returns the entry; skip if it is left out, neither if there is to be no
// descriptor.
func (a *Action) entry(in *Input) (e Entry, ok, skip bool) {
	e.Key = a.Key
	switch a.Kind {
	case SourceCluster:
		e.Value = in.Node
		return e, true, false
	case DestinationCluster:
		e.Value = in.Cluster
		return e, true, false
	case RequestHeader:
		v, found := in.Request.Lookup(a.Name)
		e.Value = v
		return e, found, !found && a.SkipIfAbsent
	case QueryValue:
		v, found := matcher.QueryValue(query(in), a.Name)
		e.Value = v
		return e, found, !found && a.SkipIfAbsent
	case RemoteAddress:
		ip := in.remote()
		e.Value = ip.String()
		return e, ip.IsValid(), false
	case MaskedAddress:
		e.Value, ok = a.masked(in.remote())
		return e, ok, false
	case MetadataValue:
		return a.metadata(in)
	case Fixed:
		return a.rendered(in)
	case HeaderMatch:
		if matcher.MatchHeaders(a.Headers, in.Request) != a.Expect {
			return e, false, false
		}
		return a.rendered(in)
	case QueryMatch:
		q, all := query(in), true
		for i := range a.Query {
			all = all && a.Query[i].Match(q)
		}
		if all != a.Expect {
			return e, false, false
		}
		return a.rendered(in)
	case AddressMatch:
		ip, within := in.remote(), false
		for _, r := range a.Ranges {
			within = within || r.Contains(ip)
		}
		if within != a.Expect {
			return e, false, false
		}
		return a.rendered(in)
	case Expression:
		b, found := a.Expr.Append(nil, in.format())
		e.Value = string(b)
		return e, found, !found && a.SkipIfAbsent
	}
	return e, false, false
}

func query(in *Input) string {
	_, q := matcher.SplitPath(in.Request.Get(message.Path))
	return q
}

var remoteIP = func() *format.String {
	s, err := format.Compile("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%")
	if err != nil {
		panic(err)
	}
	return s
}()

// remote is the trusted address of the client.
func (in *Input) remote() netip.Addr {
	a, err := netip.ParseAddr(remoteIP.Render(in.format()))
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap()
}

func (a *Action) masked(ip netip.Addr) (string, bool) {
	bits := a.Mask6
	if ip.Is4() {
		bits = a.Mask4
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return "", false
	}
	return p.String(), true
}

func (a *Action) rendered(in *Input) (Entry, bool, bool) {
	v := a.Value.Render(in.format())
	if v == "" {
		v = a.Default
	}
	return Entry{a.Key, v}, v != "", false
}

func (a *Action) metadata(in *Input) (Entry, bool, bool) {
	md := &in.Info.Metadata
	if a.FromRoute {
		md = in.RouteMetadata
	}
	v, _ := md.Lookup(a.Metadata.Namespace, a.Metadata.Path...)
	s, _ := v.(string)
	if s == "" {
		s = a.Default
	}
	return Entry{a.Key, s}, s != "", s == "" && a.SkipIfAbsent
}
