// Package streaminfo is the vocabulary shared by every layer of the data
// plane: who the peer is, where the bytes were going, which route and host
// were chosen, and how it ended. Access logs, metrics and filters read the one
// record kept here.
package streaminfo

import (
	"net/netip"
	"reflect"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
)

// Conn is what is known about a downstream connection. It is filled before the
// filter chain runs and then read-only, except for FilterState, which only the
// connection's own network filters write.
type Conn struct {
	// ID is unique in this process.
	ID uint64
	// Local is where the connection was going: the original destination if a
	// listener filter restored one, else the socket's local address. Remote is
	// the client; DirectRemote the peer of the socket itself, which differs
	// from Remote after PROXY protocol or an internal hop.
	Local, Remote, DirectRemote netip.AddrPort
	// LocalName is the text of Local when it is not an IP address (an internal
	// listener's or CONNECT authority's host name), else "".
	LocalName string
	// TLS is nil on a plaintext connection.
	TLS *TLS
	// RequestedServerName is the SNI, also as sniffed by tls_inspector.
	RequestedServerName string
	// TransportProtocol is "tls", "raw_buffer" or ""; ApplicationProtocols are
	// the ALPN names offered (tls_inspector) or detected (http_inspector:
	// "http/1.0", "http/1.1", "h2c").
	TransportProtocol    string
	ApplicationProtocols []string
	// FilterState holds connection-level objects, also those that crossed an
	// internal listener hop. Metadata likewise.
	FilterState FilterState
	Metadata    Metadata
	// ListenerName and FilterChainName as configured.
	ListenerName, FilterChainName string
	// ListenerMetadata and FilterChainMetadata are read-only; nil before a
	// listener took the connection or a chain was chosen.
	ListenerMetadata, FilterChainMetadata *Metadata
	// ListenerDirection is its traffic_direction: "inbound", "outbound" or "".
	ListenerDirection string
	// BufferLimit is its per_connection_buffer_limit_bytes, 0 for the default.
	BufferLimit uint32
	// NameFromTLS says that RequestedServerName was learnt in the handshake, when
	// the filter chain had been chosen.
	NameFromTLS bool
	Start       time.Time
	// TerminationDetails is %CONNECTION_TERMINATION_DETAILS%, for example
	// "rbac_access_denied_matched_policy[none]"; "" if there is none.
	TerminationDetails string
	// TransportFailureReason is %DOWNSTREAM_TRANSPORT_FAILURE_REASON%.
	TransportFailureReason string
}

// Revocation is why something that had been admitted was ended: a policy, or a
// list of revoked certificates, that came later refuses it.
type Revocation struct {
	// Details are those that a new connection would be refused with; Flag may be
	// 0. Decision is never nil.
	Details  string
	Flag     ResponseFlag
	Decision *Decision
}

// TLS is what a TLS session says about both ends.
type TLS struct {
	Version, CipherSuite, ALPN string
	// Peer is zero if the peer presented no certificate.
	Peer, LocalCert Certificate
}

// Certificate is the part of an X.509 certificate that policy and telemetry
// use.
type Certificate struct {
	URISANs, DNSSANs []string
	// Subject and Issuer in RFC 2253 form; Serial in lower-case hex;
	// Digest is the hex SHA-256 of the DER form.
	Subject, Issuer, Serial, Digest string
	PEM                             string
	NotBefore, NotAfter             time.Time
}

// Present reports whether there is a certificate.
func (c *Certificate) Present() bool { return c.Digest != "" }

// PeerURI returns the first URI SAN of the peer, "" if there is none:
// %DOWNSTREAM_PEER_URI_SAN% for the usual single SPIFFE ID.
func (c *Conn) PeerURI() string {
	if c.TLS == nil || len(c.TLS.Peer.URISANs) == 0 {
		return ""
	}
	return c.TLS.Peer.URISANs[0]
}

// Now is the present, read from the monotonic clock alone: half the price of
// time.Now. Start must be set.
func (i *Info) Now() time.Time { return i.Start.Add(time.Since(i.Start)) }

// Info accompanies one stream (an HTTP request, or one TCP connection) from
// its start to its access-log line. It belongs to the stream's goroutine.
type Info struct {
	Conn *Conn

	Start    time.Time
	Protocol message.Version // zero for TCP
	// ResponseCode is 0 until a response was chosen.
	ResponseCode int
	Flags        ResponseFlag
	// Details is %RESPONSE_CODE_DETAILS%: "via_upstream" or the cause of a
	// local reply in Envoy's words.
	Details string
	// Decision is what the filter that refused the stream leaves about it; nil
	// if none did. Limit names the limit or timer that ended the stream, with its
	// value: "route timeout 15s".
	Decision *Decision
	Limit    string
	// Hidden is what Hide was told.
	Hidden []Hidden
	// ConnectionTerminationDetails overrides Conn's for this stream.
	ConnectionTerminationDetails string
	// LocalClose is why this proxy ended a connection that had been served:
	// "tcp_session_idle_timeout".
	LocalClose string
	// Revoked says that Decision ended what had been admitted before.
	Revoked bool

	// RouteName and RouteMetadata are those of the route that matched.
	// VirtualHost and VirtualHostMetadata are there without one, too, if only
	// the authority matched. Metadata is read-only and may be nil.
	RouteName, VirtualHost             string
	RouteMetadata, VirtualHostMetadata *Metadata
	// VirtualClusterName stays "" (not supported).
	Upstream Upstream

	// BytesReceived and BytesSent count body bytes from and to downstream as
	// %BYTES_RECEIVED% and %BYTES_SENT% do. The Wire variants include headers
	// and framing, for Istio's request_bytes and response_bytes.
	BytesReceived, BytesSent         uint64
	WireBytesReceived, WireBytesSent uint64

	// FilterState starts as a view on Conn.FilterState: reads fall through.
	FilterState FilterState
	Metadata    Metadata

	// Duration points, zero if not reached: last byte of the request received,
	// first byte of the response from upstream, last byte of the response sent.
	RequestComplete, FirstUpstreamRx, LastUpstreamRx, FirstDownstreamTx, End time.Time
	AttemptCount                                                             int
	// Cut says that the response did not get to its end.
	Cut bool
	// IsGRPC is set when the request's content-type is application/grpc*.
	IsGRPC bool
	// Trace identifiers, "" if there is no trace.
	TraceID, SpanID string
	// RequestID is the effective x-request-id.
	RequestID string
}

// Revoke records that v ended the stream, or its connection.
func (i *Info) Revoke(v *Revocation) {
	i.Revoked, i.Decision, i.Cut = true, v.Decision, true
	i.Flags = i.Flags.With(v.Flag)
	i.ConnectionTerminationDetails = v.Details
}

// Blank reports whether i says no more than its connection and Start: a record
// that can be made anew.
func (i *Info) Blank() bool {
	if len(i.FilterState.entries) > 0 || len(i.Metadata.m) > 0 || len(i.Hidden) > 0 {
		return false
	}
	conn, start, fs, md := i.Conn, i.Start, i.FilterState, i.Metadata
	i.Conn, i.Start, i.FilterState, i.Metadata, i.Hidden = nil, time.Time{}, FilterState{}, Metadata{}, nil
	blank := reflect.ValueOf(i).Elem().IsZero()
	i.Conn, i.Start, i.FilterState, i.Metadata = conn, start, fs, md
	return blank
}

// Decision is a filter's refusal of a request or connection, for the event and
// the counters that tell about it. Its texts come from configuration or are
// constants: none is what a client sent.
type Decision struct {
	// Filter is the kind of filter, "rbac"; Policy the configured name of what
	// decided, "" if nothing in particular; Rule the part of it.
	Filter, Policy, Rule string
	// Reason is one of a few constants of the filter, "matched_policy".
	Reason string
	// Why, if not nil, says more, for a person. It may take its time: it is
	// called at most once and for a bounded number of streams, before the
	// stream ends.
	Why func() string
}

// Upstream is what is known about the last upstream attempt.
type Upstream struct {
	// Cluster is %UPSTREAM_CLUSTER% (alt_stat_name if set); ClusterRaw the
	// configured name.
	Cluster, ClusterRaw string
	// ClusterMetadata and HostMetadata are read-only.
	ClusterMetadata, HostMetadata *Metadata
	// HostName is the endpoint's name, "" if it has none.
	HostName string
	// Host is %UPSTREAM_HOST%: "ip:port" or "envoy://listener/endpoint".
	Host string
	// Address is the IP form of Host; for an internal address its
	// original_dst. Zero if unknown.
	Address netip.AddrPort
	Local   netip.AddrPort
	// TransportFailureReason is %UPSTREAM_TRANSPORT_FAILURE_REASON%.
	TransportFailureReason string
	Protocol               message.Version
	TLS                    *TLS
	Locality               string
	// ServiceTime is the time from the request being complete upstream to the
	// response headers, for x-envoy-upstream-service-time.
	ServiceTime time.Duration
	// WireBytesReceived and WireBytesSent are what went over the streams of all
	// attempts that are over, framing included. With Relayed the bytes of
	// downstream go on as they are, and Info's BytesSent and BytesReceived are
	// these numbers. Unmetered says that they are not known.
	WireBytesReceived, WireBytesSent uint64
	Relayed, Unmetered               bool
	// State is what the filters of the connection know, nil without any. Other
	// streams on the connection share it: it is read-only.
	State *FilterState
}

// LocalCloseReason is Envoy's word for why this proxy ended the connection of a
// TCP proxy, "" if it didn't or it is another stream's: LocalClose, or that there
// was no upstream.
func (i *Info) LocalCloseReason() string {
	switch {
	case i.LocalClose != "" || i.Protocol != 0:
		return i.LocalClose
	case i.Flags&UpstreamConnectionFailure != 0:
		return noUpstream + "0"
	case i.Flags&NoHealthyUpstream != 0:
		return noUpstream + "1"
	case i.Flags&UpstreamOverflow != 0:
		return noUpstream + "2"
	case i.Flags&NoClusterFound != 0:
		return noUpstream + "3"
	}
	return ""
}

// noUpstream is Envoy's spelling.
const noUpstream = "tcp_initializion_failure:"
