package filters

import (
	"net/netip"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// UpstreamConnection is a connection to a host of a cluster on its way through
// the cluster's filters.
type UpstreamConnection struct {
	// Conn is nil before the connection is established. Filters may replace it by
	// a wrapper.
	netio.Conn
	// Address is that of the workload behind the host, invalid if unknown.
	Address netip.AddrPort
	// Internal is the internal listener that the host is, "" if it is none.
	Internal string
	// HostMetadata and ClusterMetadata are read-only.
	HostMetadata, ClusterMetadata *streaminfo.Metadata
	// State is read by all streams on the connection, as Info.Upstream.State, once
	// OnConnected has returned. What is shared crosses to an internal listener.
	State streaminfo.FilterState
}

// UpstreamFilter stands on the connections of a cluster to its hosts. It is
// immutable, shared by all of them and called concurrently.
type UpstreamFilter interface {
	// OnDial sees a connection that is about to be made.
	OnDial(c *UpstreamConnection)
	// OnConnected sees it established, TLS included, before its first byte. An
	// error ends it.
	OnConnected(c *UpstreamConnection) error
}

// UpstreamFactory turns configuration into filters of a cluster.
type UpstreamFactory interface {
	TypeURLs() []string
	Decode(a Any, d *Decoding) (Config, error)
	CompileUpstream(env *Env, cfg Config) (UpstreamFilter, error)
}
