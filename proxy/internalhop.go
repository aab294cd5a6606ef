package proxy

import (
	"context"
	"fmt"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/listener"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// internalHop implements upstream.InternalDialer: an internal listener is a
// function call with a connection.
type internalHop struct{ s *Server }

// DialInternal connects to listener name.
func (h internalHop) DialInternal(ctx context.Context, name string, host *upstream.Host, o *upstream.ConnectOptions) (netio.Conn, error) {
	l := h.s.Listener(name)
	if l == nil {
		return nil, fmt.Errorf("internal listener %s: %w", name, listener.ErrNoSuchListener)
	}
	return l.Dial(ctx, hopInfo(host, o))
}

// TakeOver gives the byte stream c to listener name.
func (h internalHop) TakeOver(name string, host *upstream.Host, c netio.Conn, o *upstream.ConnectOptions, done func()) error {
	l := h.s.Listener(name)
	if l == nil {
		return fmt.Errorf("internal listener %s: %w", name, listener.ErrNoSuchListener)
	}
	info := hopInfo(host, o)
	if !info.Local.IsValid() {
		info.Local = c.LocalAddr()
	}
	l.Serve(c, info, done)
	return nil
}

// hopInfo describes the connection on the far side of an internal hop: filter
// state that is shared with upstream, and the metadata that internal_upstream
// passes through, cross; addresses start as those of the connection that it
// serves, and listener filters (original_dst) may set others.
func hopInfo(host *upstream.Host, o *upstream.ConnectOptions) *streaminfo.Conn {
	ci := &streaminfo.Conn{ID: listener.NextConnectionID()}
	if o.Conn != nil {
		ci.Local, ci.Remote, ci.DirectRemote = o.Conn.Local, o.Conn.Remote, o.Conn.DirectRemote
	}
	if host != nil && host.Endpoint.Address.IsValid() {
		ci.Local = host.Endpoint.Address
	}
	if o.FilterState != nil {
		o.FilterState.ShareInto(&ci.FilterState)
	}
	if o.State != nil {
		o.State.ShareInto(&ci.FilterState)
	}
	if host != nil {
		passMetadata(ci, host, o)
	}
	return ci
}

// passMetadata copies the namespaces that passthrough_metadata names into the
// dynamic metadata of the hop. Host metadata under
// envoy.filters.listener.original_dst also names the addresses directly, as
// Envoy's internal client connections do.
func passMetadata(ci *streaminfo.Conn, host *upstream.Host, o *upstream.ConnectOptions) {
	for _, p := range passthrough(o) {
		var src *streaminfo.Metadata
		if p.Host {
			src = &host.Endpoint.Metadata
		} else {
			src = o.ClusterMetadata
		}
		for k, v := range src.Namespace(p.Name) {
			ci.Metadata.Set(p.Name, k, v)
		}
	}
}

func passthrough(o *upstream.ConnectOptions) []xdsresource.PassthroughMetadata { return o.Passthrough }

var _ upstream.InternalDialer = internalHop{}
