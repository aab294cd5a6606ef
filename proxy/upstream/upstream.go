// Package upstream owns clusters, their hosts and their connection pools.
//
// A Manager holds the running clusters. Configuration arrives by Apply,
// endpoints by UpdateEndpoints; both keep what did not change: hosts with
// their pools, ejections and counters. A stream that holds a Cluster or Host
// may go on using it after it was removed.
package upstream

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// InternalDialer connects to an internal listener of this process: package
// proxy provides it.
type InternalDialer interface {
	// DialInternal returns the client end of a stream into listener name. h is
	// the endpoint that was picked, conn the downstream connection it serves
	// (nil for callouts and for streams that will be pooled); filter state
	// shared with upstream and passthrough metadata cross the hop. The dialer
	// must not keep o.
	DialInternal(ctx context.Context, name string, h *Host, o *ConnectOptions) (netio.Conn, error)
	// TakeOver hands a downstream byte stream to listener name as if it had
	// connected there; done is called when it has ended. It is how a CONNECT
	// request to an internal cluster is served without a copy. If it returns
	// an error it has not taken c and done is not called.
	TakeOver(name string, h *Host, c netio.Conn, o *ConnectOptions, done func()) error
}

// Errors of Pick.
var (
	// ErrNoHealthyHost means that no host may take traffic: Envoy's
	// "no_healthy_upstream", flag UH.
	ErrNoHealthyHost = errors.New("no healthy upstream")
)

// BrokenError is why a cluster can't be executed. Its requests fail.
type BrokenError struct{ Cluster, Reason string }

// Error names the cluster and the reason.
func (e *BrokenError) Error() string {
	return "cluster " + e.Cluster + " can't be used: " + e.Reason
}

// PickContext is what load balancing may look at.
type PickContext struct {
	Hash    uint64
	HasHash bool
	// Avoid, if not nil, rejects hosts (retry host predicates); it is asked up
	// to Attempts times.
	Avoid    func(*Host) bool
	Attempts int
	// SkipPriorities is a bit mask of priorities that earlier attempts used
	// (retry_priority previous_priorities).
	SkipPriorities uint64
	Conn           *streaminfo.Conn
	// Info is the record of the stream or TCP connection, may be nil; ORIGINAL_DST
	// reads its metadata and filter state.
	Info *streaminfo.Info
	// Stream is nil for TCP.
	Stream *filters.Stream
	// High selects the HIGH priority circuit breaker.
	High bool
}

// ConnectOptions describe on whose behalf a connection is made.
type ConnectOptions struct {
	Conn *streaminfo.Conn
	// Info is the record of the stream; nil for connections that will be
	// shared by several streams.
	Info *streaminfo.Info
	// FilterState is the stream's; its objects that are shared with upstream
	// cross an internal hop. nil: nothing crosses.
	FilterState *streaminfo.FilterState
	// State is what the cluster's filters keep for the connection, set by the
	// cluster for internal hops; what is shared of it crosses. It may be nil.
	State *streaminfo.FilterState
	// Passthrough and ClusterMetadata are set by the cluster for internal hops:
	// the namespaces that its internal_upstream socket passes on, and its own
	// metadata.
	Passthrough     []xdsresource.PassthroughMetadata
	ClusterMetadata *streaminfo.Metadata
	// Version is the downstream protocol, for use_downstream_protocol.
	Version message.Version
	// Authority is the request's, for auto_sni and auto_san_validation.
	Authority string
	// SNI and VerifyName override what the cluster says (filter state
	// envoy.network.upstream_server_name and ..._subject_alt_names); "": don't.
	SNI, VerifyName string
	// ALPN is offered to the TLS server in place of what the cluster says, names
	// separated by commas (filter state envoy.network.application_protocols); "":
	// don't.
	ALPN string
	// HTTP2 forces HTTP/2 whatever the cluster's protocol options say.
	HTTP2 bool
	High  bool
	// RepeatableAt is when the request came, if it does no harm to send it again
	// after a connection turned out to have ended. Zero: it does harm, and a
	// connection is looked at before it is used again.
	RepeatableAt time.Time
	// Source binds the local end of the connection (transparent proxying).
	Source netip.AddrPort
}

// detached is a copy of o that a dial may use after the stream that asked for
// it has gone.
func (o *ConnectOptions) detached() *ConnectOptions {
	d := *o
	d.Info = nil
	if o.FilterState != nil {
		d.FilterState = o.FilterState.Shared()
	}
	d.Authority, d.SNI, d.VerifyName = strings.Clone(o.Authority), strings.Clone(o.SNI), strings.Clone(o.VerifyName)
	d.ALPN = strings.Clone(o.ALPN)
	return &d
}

// Demand takes over what the filter state of a stream asks of TLS to upstream,
// as Envoy's TransportSocketOptions do.
func (o *ConnectOptions) Demand(fs *streaminfo.FilterState) {
	o.SNI = fs.GetString("envoy.network.upstream_server_name")
	o.VerifyName = fs.GetString("envoy.network.upstream_subject_alt_names")
	o.ALPN = fs.GetString("envoy.network.application_protocols")
}
