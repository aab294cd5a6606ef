// Package hbone carries byte streams over HTTP/2 CONNECT and mutual TLS 1.3:
// the pooled Dialer, and Server for who terminates tunnels and nothing else
// (ztunnel). The proxy's server side is an ordinary HTTP connection manager
// with a CONNECT route.
package hbone

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// Port is where HBONE is served.
const Port = 15008

// Target is where one tunnelled stream goes.
type Target struct {
	// Address is the TCP address of the HBONE peer, port 15008 usually.
	Address netip.AddrPort
	// Authority is the CONNECT authority, "ip:port" or "host:port".
	Authority string
	// Headers are added to the CONNECT request (baggage, forwarded, …).
	Headers []message.Field
	// Key separates pools beyond Address: source identity, expected peers.
	Key PoolKey
}

// PoolKey keeps apart what must not share a connection. It is comparable.
type PoolKey struct {
	// Identity is the source identity; TLS names the TLS context (its digest or
	// the joined list of expected peers).
	Identity, TLS string
	// Source is the local address that connections are bound to; the zero Addr
	// leaves it to the system.
	Source netip.Addr
}

// Windows and limits of HTTP/2, on both sides; ztunnel uses the same.
const (
	defaultStreamWindow = 4 << 20
	defaultConnWindow   = 16 << 20
	defaultFrameSize    = 1 << 20
	defaultPingInterval = 10 * time.Second
	defaultPingTimeout  = 20 * time.Second
)

// Transport are the HTTP/2 parameters of HBONE connections. Zero values mean
// the defaults given, which are ztunnel's.
type Transport struct {
	// StreamWindow, 4 MiB, bounds what a stream buffers for a slow consumer;
	// ConnWindow, 16 MiB, what is in flight on a connection; FrameSize, 1 MiB,
	// one frame received.
	StreamWindow, ConnWindow, FrameSize uint32
	// A PING is sent after KeepaliveInterval, 10 s, without anything received,
	// and the connection is dropped if KeepaliveTimeout, 20 s, brings nothing
	// either. Negative: never.
	KeepaliveInterval, KeepaliveTimeout time.Duration
}

func (t Transport) withDefaults() Transport {
	t.StreamWindow = cmp.Or(t.StreamWindow, defaultStreamWindow)
	t.ConnWindow = cmp.Or(t.ConnWindow, defaultConnWindow)
	t.FrameSize = cmp.Or(t.FrameSize, defaultFrameSize)
	t.KeepaliveInterval = cmp.Or(t.KeepaliveInterval, defaultPingInterval)
	t.KeepaliveTimeout = cmp.Or(t.KeepaliveTimeout, defaultPingTimeout)
	return t
}

// StatusError says that the peer answered CONNECT with another status than 2xx:
// 401 is its policy, 400 a destination that is not its own, 503 a destination
// that it could not reach.
type StatusError struct {
	Status    int
	Authority string
	Address   netip.AddrPort
}

// Error names what was asked and whom.
func (e *StatusError) Error() string {
	return fmt.Sprintf("hbone: CONNECT %s via %s: status %d", e.Authority, e.Address, e.Status)
}

// DialError is a failure before the peer answered. Its chain holds the cause and
// a *transport.ResetError with Envoy's reason.
type DialError struct {
	// Stage is "connect", "tls handshake" or "CONNECT".
	Stage   string
	Address netip.AddrPort
	Cause   error
	// Hint tells what to check; it may be "".
	Hint string
}

// Error names the stage, the peer, the cause and the hint.
func (e *DialError) Error() string {
	s := fmt.Sprintf("hbone: %s %s: %v", e.Stage, e.Address, e.Cause)
	if e.Hint != "" {
		s += ": " + e.Hint
	}
	return s
}

// Unwrap returns the cause and, if it has none, a reset reason.
func (e *DialError) Unwrap() []error {
	if transport.ReasonOf(e.Cause) != 0 {
		return []error{e.Cause}
	}
	return []error{e.Cause, &transport.ResetError{Reason: transport.ConnectionFailure, Detail: e.Error()}}
}
