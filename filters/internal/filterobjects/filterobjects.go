// Package filterobjects sets filter-state objects from format strings: what
// the HTTP and network set_filter_state filters have in common, and the keys
// that carry meaning between filters.
package filterobjects

import (
	"net/netip"
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Keys of filter-state objects that filters hand to one another.
const (
	// OriginalDstLocal and OriginalDstRemote are "ip:port" of the original
	// destination and source; the original_dst listener filter reads them.
	OriginalDstLocal  = "envoy.filters.listener.original_dst.local_ip"
	OriginalDstRemote = "envoy.filters.listener.original_dst.remote_ip"
	// TransportOriginalDst overrides the address of ORIGINAL_DST clusters.
	TransportOriginalDst = "envoy.network.transport_socket.original_dst_address"
	// ApplicationProtocols are what TLS to upstream offers by ALPN, separated by
	// commas.
	ApplicationProtocols = "envoy.network.application_protocols"
	// ConnectAuthority is the :authority of the CONNECT request.
	ConnectAuthority = "io.istio.connect_authority"
	// PeerPrincipal and LocalPrincipal are the SPIFFE IDs of the tunnel's ends.
	PeerPrincipal  = "io.istio.peer_principal"
	LocalPrincipal = "io.istio.local_principal"
)

// Kind is what sort of object a value becomes.
type Kind uint8

// Kinds of object.
const (
	// Text keeps the string: istio.hashable_string, envoy.hashable_string,
	// envoy.string.
	Text Kind = iota
	// Address is "ip:port"; other text sets nothing.
	Address
)

// Value is one FilterStateValue.
type Value struct {
	Key    string
	Kind   Kind
	Format *format.String
	// Identity is set for keys that policies take for who somebody is: absent
	// values are empty instead of "-", and nothing empty is set.
	Identity bool
	// SkipIfEmpty leaves the object as it is if the text is empty.
	SkipIfEmpty, ReadOnly bool
	Sharing               streaminfo.Sharing
}

// ReadOnly is a string object that set_filter_state does not replace.
type ReadOnly string

// Serialize returns the string.
func (r ReadOnly) Serialize() string { return string(r) }

// Field reports that a string has no fields.
func (ReadOnly) Field(string) (string, bool) { return "", false }

// Apply sets the values in order on fs, as Envoy does: an absent value is "-",
// and an empty one is set unless it is to be skipped. But an absent principal
// stays absent.
func Apply(values []Value, fs *streaminfo.FilterState, c *format.Context) {
	for i := range values {
		values[i].apply(fs, c)
	}
}

func (v *Value) apply(fs *streaminfo.FilterState, c *format.Context) {
	if _, fixed := fs.Get(v.Key).(ReadOnly); fixed {
		return
	}
	var buf [256]byte
	var b []byte
	if v.Identity {
		b = v.Format.AppendHeader(buf[:0], c)
	} else {
		b = v.Format.Append(buf[:0], c)
	}
	if len(b) == 0 && (v.SkipIfEmpty || v.Identity) {
		return
	}
	text := string(b)
	if v.Kind == Address {
		a, ok := ParseAddress(text)
		if !ok {
			return
		}
		if s := a.String(); s != text {
			text = s
		}
	}
	if v.ReadOnly {
		fs.Set(v.Key, ReadOnly(text), v.Sharing)
		return
	}
	fs.Set(v.Key, streaminfo.String(text), v.Sharing)
}

// ParseAddress parses "ip:port" or "[ip]:port".
func ParseAddress(s string) (netip.AddrPort, bool) {
	a, err := netip.ParseAddrPort(s)
	if err != nil || strings.Contains(s, "%") {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), true
}
