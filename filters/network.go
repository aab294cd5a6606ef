package filters

import (
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Connection is a downstream connection on its way through listener and
// network filters. Filters may replace Conn by a wrapper.
type Connection struct {
	netio.Conn
	// Info is the record of the connection as a stream (TCP proxying, access
	// log, Istio's TCP metrics); Info.Conn describes the connection itself.
	Info *streaminfo.Info

	observers []func(*Connection)
	connected []func(*Connection)
	revoked   *atomic.Pointer[streaminfo.Revocation]
}

// RevokedBy makes Revoked return what p holds.
func (c *Connection) RevokedBy(p *atomic.Pointer[streaminfo.Revocation]) { c.revoked = p }

// Revoked returns why the connection was ended after it had been admitted, nil if
// it was not. It is known before the connection breaks off.
func (c *Connection) Revoked() *streaminfo.Revocation {
	if c.revoked == nil {
		return nil
	}
	return c.revoked.Load()
}

// WhenConnected adds f to what Connected calls.
func (c *Connection) WhenConnected(f func(*Connection)) { c.connected = append(c.connected, f) }

// Connected is called by a terminal filter once, when the upstream connection is
// established, before any byte is passed on; Info.Upstream is complete then.
func (c *Connection) Connected() {
	for _, f := range c.connected {
		f(c)
	}
}

// Observe adds f to what Progress calls. Network filters use it to report on
// long connections while they last.
func (c *Connection) Observe(f func(*Connection)) { c.observers = append(c.observers, f) }

// Observed reports whether somebody waits for Progress.
func (c *Connection) Observed() bool { return len(c.observers) > 0 }

// Progress is called by a terminal filter when the upstream connection is
// established, and then every few seconds as long as the connection lasts, if
// it is observed. Info's byte counts and Upstream must be up to date and must
// not change during the call; calls never overlap, nor with OnConnectionEnd.
func (c *Connection) Progress() {
	for _, f := range c.observers {
		f(c)
	}
}

// ListenerFactory turns configuration into listener filters.
type ListenerFactory interface {
	TypeURLs() []string
	Decode(a Any, d *Decoding) (Config, error)
	Compile(env *Env, cfg Config) (ListenerFilter, error)
}

// ListenerFilter inspects a connection before its filter chain is chosen. It
// may peek (netio.Peeker) and set fields of c.Info.Conn. An error closes the
// connection. It runs under the listener_filters_timeout.
type ListenerFilter interface {
	OnAccept(c *Connection) error
}

// NetworkFactory turns configuration into network filters.
type NetworkFactory interface {
	TypeURLs() []string
	Decode(a Any, d *Decoding) (Config, error)
	// Compile returns a NetworkFilter or a TerminalFilter.
	Compile(env *Env, cfg Config) (any, error)
}

// NetworkFilter sees a connection before the terminal filter.
type NetworkFilter interface {
	// OnNewConnection may block, wrap c.Conn, or refuse the connection with an
	// error; a *Denied error carries termination details and a flag.
	OnNewConnection(c *Connection) error
}

// Reviewer is implemented by network filters that decide by what is known of a
// connection and nothing else, so that they can be asked again about one that a
// former configuration admitted.
type Reviewer interface {
	NetworkFilter
	// Review says why OnNewConnection would refuse c, nil if it would not. Of c
	// there is Info with Conn, FilterState and Metadata, as they were when c was
	// admitted; it is called by any goroutine, changes nothing of them, does not
	// block, and counts refusals only.
	Review(c *Connection) *Denied
}

// ConnectionEnder is implemented by network filters that must see every
// connection end, in reverse order, also when a later filter refused it.
type ConnectionEnder interface {
	OnConnectionEnd(c *Connection)
}

// TerminalFilter owns the connection: HTTP connection manager and tcp_proxy.
type TerminalFilter interface {
	// Serve may return at once, leaving the connection to its own events. It
	// calls done exactly once, after the connection ended.
	Serve(c *Connection, done func())
}

// ConnTerminal is implemented by terminal filters that keep records of their own,
// and need no Connection: if no other filter does, there is none while such a
// filter serves, which spares idle connections its memory.
type ConnTerminal interface {
	TerminalFilter
	// ServeConn is Serve for c, which info describes.
	ServeConn(c netio.Conn, info *streaminfo.Conn, done func())
}

// Opener is implemented by terminal filters that can give their upstream byte
// stream away instead of copying to it. An internal listener that is dialled
// then costs no copy and no goroutine.
type Opener interface {
	TerminalFilter
	// CanOpen reports whether Open may be called instead of Serve.
	CanOpen() bool
	// Open connects upstream for c, whose Conn carries no bytes, and returns
	// the stream; it blocks until then. If there is no upstream, what is
	// returned has ended. done is called once, after the caller has closed the
	// stream.
	Open(c *Connection, done func()) netio.Conn
}

// RefusalWitness is implemented by network filters that must hear of connections
// that ended before their OnNewConnection was called: an earlier filter or the
// TLS handshake refused them.
type RefusalWitness interface {
	OnConnectionRefused(c *Connection)
}

// Detached is implemented by listener and network filters that neither read
// nor write nor wrap the connection, so that they may run before it carries
// bytes.
type Detached interface{ Detached() }

// Denied is returned by a network filter that refuses a connection.
//
//nolint:errname // a verdict
type Denied struct {
	// Details becomes %CONNECTION_TERMINATION_DETAILS%, for example
	// "rbac_access_denied_matched_policy[none]".
	Details string
	Flag    streaminfo.ResponseFlag
	// Decision is what will be told about it, nil for nothing but Details.
	Decision *streaminfo.Decision
}

// Error returns the details.
func (d *Denied) Error() string { return d.Details }

// Revocation is d for what had been admitted before.
func (d *Denied) Revocation() *streaminfo.Revocation {
	r := &streaminfo.Revocation{Details: d.Details, Flag: d.Flag, Decision: d.Decision}
	if r.Decision == nil {
		r.Decision = &streaminfo.Decision{}
	}
	return r
}

// Registry maps type URLs to factories. It is filled once, before use.
type Registry struct {
	http     map[string]HTTPFactory
	network  map[string]NetworkFactory
	listener map[string]ListenerFactory
	upstream map[string]UpstreamFactory
}

// RegisterHTTP adds f and panics if one of its type URLs is taken.
func (r *Registry) RegisterHTTP(f HTTPFactory) { register(&r.http, f.TypeURLs(), f) }

// RegisterNetwork adds f and panics if one of its type URLs is taken.
func (r *Registry) RegisterNetwork(f NetworkFactory) { register(&r.network, f.TypeURLs(), f) }

// RegisterListener adds f and panics if one of its type URLs is taken.
func (r *Registry) RegisterListener(f ListenerFactory) { register(&r.listener, f.TypeURLs(), f) }

// RegisterUpstream adds f and panics if one of its type URLs is taken.
func (r *Registry) RegisterUpstream(f UpstreamFactory) { register(&r.upstream, f.TypeURLs(), f) }

func register[F any](m *map[string]F, urls []string, f F) {
	if *m == nil {
		*m = map[string]F{}
	}
	for _, u := range urls {
		if _, dup := (*m)[u]; dup {
			panic("filters: " + u + " registered twice")
		}
		(*m)[u] = f
	}
}

// HTTP returns the factory for a type URL, nil if there is none.
func (r *Registry) HTTP(typeURL string) HTTPFactory { return r.http[typeURL] }

// Network returns the factory for a type URL, nil if there is none.
func (r *Registry) Network(typeURL string) NetworkFactory { return r.network[typeURL] }

// Listener returns the factory for a type URL, nil if there is none.
func (r *Registry) Listener(typeURL string) ListenerFactory { return r.listener[typeURL] }

// Upstream returns the factory for a type URL, nil if there is none.
func (r *Registry) Upstream(typeURL string) UpstreamFactory { return r.upstream[typeURL] }
