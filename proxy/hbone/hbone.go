// Package hbone carries byte streams over HTTP/2 CONNECT and mutual TLS 1.3:
// the pooled dialer. The server side is an ordinary HTTP connection manager
// with a CONNECT route (proxy), or Server (ztunnel).
package hbone

import (
	"context"
	"crypto/tls"
	"net/netip"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
)

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
	Source        netip.Addr
}

// Dialer opens tunnelled streams over pooled connections.
type Dialer struct{}

// Config is a Dialer's configuration.
type Config struct {
	// TLS returns the client configuration for a new connection to t.
	TLS func(t *Target) *tls.Config
}

// NewDialer returns a Dialer; Close releases its connections.
func NewDialer(c Config) *Dialer { return &Dialer{} }

// Dial opens a stream; ctx bounds connect, handshake and the CONNECT answer.
// resp, if not nil, receives the CONNECT response head.
func (d *Dialer) Dial(ctx context.Context, t *Target, resp *message.Header) (netio.Conn, error) {
	return nil, nil
}

// Close drains all connections.
func (d *Dialer) Close() {}
