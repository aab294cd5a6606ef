// Package upstream owns clusters, their hosts and their connection pools.
package upstream

import (
	"context"
	"net/netip"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// InternalDialer connects to an internal listener of this process: package
// proxy provides it.
type InternalDialer interface {
	// DialInternal returns the client end of a stream into listener name. h is
	// the endpoint that was picked, conn the downstream connection it serves
	// (nil for callouts); filter state shared with upstream and passthrough
	// metadata cross the hop.
	DialInternal(ctx context.Context, name string, h *Host, o *ConnectOptions) (netio.Conn, error)
	// TakeOver hands a downstream byte stream to listener name as if it had
	// connected there; done is called when it has ended. It is how a CONNECT
	// request to an internal cluster is served without a copy.
	TakeOver(name string, h *Host, c netio.Conn, o *ConnectOptions, done func()) error
}

// Manager is the set of clusters of a process. Clusters outlive snapshots: an
// update with an unchanged Digest keeps hosts, pools, ejections and breakers.
type Manager struct{}

// Cluster is a running cluster. It stays usable for streams that hold it after
// it was removed.
type Cluster struct {
	spec *xdsresource.Cluster
}

// Host is one endpoint of a cluster. Its identity (address, endpoint ID)
// survives EDS updates, with its pools and outlier state.
type Host struct {
	Endpoint xdsresource.Endpoint
	Locality string
	Priority uint32
}

// PickContext is what load balancing may look at.
type PickContext struct {
	Hash    uint64
	HasHash bool
	// Avoid, if not nil, rejects hosts (retry host predicates); it is asked up
	// to Attempts times.
	Avoid    func(*Host) bool
	Attempts int
	// MetadataMatch is the route's metadata_match (subset LB).
	MetadataMatch map[string]any
	Conn          *streaminfo.Conn
	// Stream is nil for TCP.
	Stream *filters.Stream
	// High selects the HIGH priority circuit breaker.
	High bool
}

// ConnectOptions describe on whose behalf a connection is made.
type ConnectOptions struct {
	Conn *streaminfo.Conn
	Info *streaminfo.Info
	// FilterState is what crosses an internal hop (already filtered).
	FilterState *streaminfo.FilterState
	// Passthrough and ClusterMetadata are set by the cluster for internal hops:
	// the namespaces that its internal_upstream socket passes on, and its own
	// metadata.
	Passthrough     []xdsresource.PassthroughMetadata
	ClusterMetadata *streaminfo.Metadata
	// Version is the downstream protocol, for use_downstream_protocol.
	Version message.Version
	// SNI for auto_sni.
	Authority string
	High      bool
	Source    netip.AddrPort
}

// Cluster returns the cluster called name, nil if there is none.
func (m *Manager) Cluster(name string) *Cluster { return nil }

// Pick chooses a host. The error is ErrNoHealthyHost or names the cause.
func (c *Cluster) Pick(p *PickContext) (*Host, error) { return nil, nil }

// NewStream starts an HTTP exchange with h on a pooled connection, waiting for
// a connection within connect_timeout; circuit breakers apply. Errors are
// *transport.ResetError. interrupt, if not nil, receives what to interrupt
// while waiting.
func (c *Cluster) NewStream(ctx context.Context, h *Host, o *ConnectOptions) (transport.ClientStream, error) {
	return nil, nil
}

// Connect opens a plain byte stream to h (tcp_proxy, upgrades).
func (c *Cluster) Connect(ctx context.Context, h *Host, o *ConnectOptions) (netio.Conn, error) {
	return nil, nil
}
