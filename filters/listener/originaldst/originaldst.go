// Package originaldst is the original_dst listener filter: it restores where a
// connection was going before it was tunnelled or redirected.
package originaldst

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/filterobjects"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Factory makes original_dst filters.
type Factory struct{}

// TypeURLs implements filters.ListenerFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.ListenerFactory.
func (Factory) Compile(*filters.Env, filters.Config) (filters.ListenerFilter, error) {
	return filter{}, nil
}

// Redirected is implemented by connections that know the destination they had
// before the kernel redirected them (SO_ORIGINAL_DST).
type Redirected interface {
	// OriginalDst returns the destination, false if there was no redirection.
	OriginalDst() (netip.AddrPort, bool)
}

type filter struct{}

// Immediate tells the listener that the filter never waits for bytes.
func (filter) Immediate() bool { return true }

// OnAccept implements filters.ListenerFilter.
func (filter) OnAccept(c *filters.Connection) error {
	ci := c.Info.Conn
	if !fromFilterState(ci) && !fromMetadata(ci) {
		if r, ok := c.Conn.(Redirected); ok {
			if a, ok := r.OriginalDst(); ok {
				ci.Local, ci.LocalName = a, ""
			}
		}
	}
	if a, ok := filterobjects.ParseAddress(ci.FilterState.GetString(filterobjects.OriginalDstRemote)); ok {
		ci.Remote, ci.DirectRemote = a, a
	}
	return nil
}

// metadataNamespace is the endpoint metadata that an internal hop passes on.
const metadataNamespace = "envoy.filters.listener.original_dst"

// fromMetadata sets the local address from the endpoint that the hop was made
// for (istiod's endpoints name the pod there), and reports whether it said
// anything.
func fromMetadata(ci *streaminfo.Conn) bool {
	v, _ := ci.Metadata.Lookup(metadataNamespace, "local")
	text, _ := v.(string)
	a, ok := filterobjects.ParseAddress(text)
	if ok {
		ci.Local, ci.LocalName = a, ""
	}
	return ok
}

// fromFilterState sets the local address from what the tunnel said, and
// reports whether it said anything.
func fromFilterState(ci *streaminfo.Conn) bool {
	if a, ok := filterobjects.ParseAddress(ci.FilterState.GetString(filterobjects.OriginalDstLocal)); ok {
		ci.Local, ci.LocalName = a, ""
		return true
	}
	// A tunnel to a host name (double HBONE) has no address, only a name.
	authority := ci.FilterState.GetString(filterobjects.ConnectAuthority)
	i := strings.LastIndexByte(authority, ':')
	if i < 0 {
		return false
	}
	port, err := strconv.ParseUint(authority[i+1:], 10, 16)
	if err != nil {
		return false
	}
	ci.Local, ci.LocalName = netip.AddrPortFrom(netip.Addr{}, uint16(port)), authority
	return true
}

// Detached implements filters.Detached: an internal connection has no socket to
// ask.
func (filter) Detached() {}
