package matcher

import (
	"net/netip"
	"strconv"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// InputKind is what a Tree looks at.
type InputKind uint8

// Inputs of envoy.extensions.matching.common_inputs.network.v3 and
// common_inputs.ssl.v3.
const (
	InputDestinationIP InputKind = iota + 1
	InputDestinationPort
	InputSourceIP
	InputSourcePort
	InputDirectSourceIP
	// InputSourceType is "local" if source and destination are the same
	// address or the source is a loopback one, else absent.
	InputSourceType
	InputServerName
	InputTransportProtocol
	// InputApplicationProtocol is the offered protocols, each in single
	// quotes, joined by ",": "'h2','http/1.1'".
	InputApplicationProtocol
	// InputFilterState is the serialized object under Input.Key.
	InputFilterState
	// InputURISAN, InputDNSSAN and InputSubject read the peer certificate;
	// several names are joined by ",".
	InputURISAN
	InputDNSSAN
	InputSubject
)

// Input is one data input of a Tree.
type Input struct {
	Kind InputKind
	// Key and Field belong to InputFilterState; Field "" is the whole object.
	Key, Field string
}

// addr returns the input as an address if it is one by nature.
func (in *Input) addr(c *streaminfo.Conn) (netip.Addr, bool) {
	switch in.Kind {
	case InputDestinationIP:
		return c.Local.Addr().Unmap(), c.Local.IsValid()
	case InputSourceIP:
		return c.Remote.Addr().Unmap(), c.Remote.IsValid()
	case InputDirectSourceIP:
		return c.DirectRemote.Addr().Unmap(), c.DirectRemote.IsValid()
	default:
		s, ok := in.append(nil, c)
		if !ok {
			return netip.Addr{}, false
		}
		return parseAddr(string(s))
	}
}

// append appends the input's text to dst; false means that it is absent.
func (in *Input) append(dst []byte, c *streaminfo.Conn) ([]byte, bool) {
	switch in.Kind {
	case InputDestinationIP, InputSourceIP, InputDirectSourceIP:
		a, ok := in.addr(c)
		if !ok {
			return dst, false
		}
		return a.WithZone("").AppendTo(dst), true
	case InputDestinationPort:
		return strconv.AppendUint(dst, uint64(c.Local.Port()), 10), c.Local.IsValid()
	case InputSourcePort:
		return strconv.AppendUint(dst, uint64(c.Remote.Port()), 10), c.Remote.IsValid()
	case InputSourceType:
		a := c.Remote.Addr().Unmap()
		local := c.Remote.IsValid() && (a.IsLoopback() || a == c.Local.Addr().Unmap())
		return append(dst, "local"...), local
	case InputServerName:
		return append(dst, c.RequestedServerName...), c.RequestedServerName != ""
	case InputTransportProtocol:
		return append(dst, c.TransportProtocol...), c.TransportProtocol != ""
	case InputApplicationProtocol:
		for i, p := range c.ApplicationProtocols {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(append(append(dst, '\''), p...), '\'')
		}
		return dst, len(c.ApplicationProtocols) > 0
	case InputFilterState:
		return in.appendFilterState(dst, c)
	case InputURISAN, InputDNSSAN, InputSubject:
		return in.appendCertificate(dst, c)
	}
	return dst, false
}

func (in *Input) appendFilterState(dst []byte, c *streaminfo.Conn) ([]byte, bool) {
	o := c.FilterState.Get(in.Key)
	if o == nil {
		return dst, false
	}
	if in.Field == "" {
		return append(dst, o.Serialize()...), true
	}
	v, ok := o.Field(in.Field)
	return append(dst, v...), ok
}

func (in *Input) appendCertificate(dst []byte, c *streaminfo.Conn) ([]byte, bool) {
	if c.TLS == nil {
		return dst, false
	}
	var names []string
	switch in.Kind {
	case InputURISAN:
		names = c.TLS.Peer.URISANs
	case InputDNSSAN:
		names = c.TLS.Peer.DNSSANs
	default:
		return append(dst, c.TLS.Peer.Subject...), c.TLS.Peer.Subject != ""
	}
	for i, n := range names {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, n...)
	}
	return dst, len(names) > 0
}
