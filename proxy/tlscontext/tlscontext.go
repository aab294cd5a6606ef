// Package tlscontext turns decoded TLS contexts into crypto/tls
// configurations. A configuration is built once; certificates and trust are
// fetched for each handshake, so rotation reaches new connections and leaves
// open ones alone. What can't be verified fails the handshake.
package tlscontext

import (
	"crypto/tls"
	"errors"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/secret"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

var errTODO = errors.New("tlscontext: not built yet")

// Server is the TLS side of one filter chain. It is immutable and safe for
// concurrent use.
type Server struct{}

// NewServer compiles spec. An error means that the context can't be executed;
// the chain must then refuse its connections.
func NewServer(spec *xdsresource.DownstreamTLS, store *secret.Store) (*Server, error) {
	return nil, errTODO
}

// Config is the configuration for every connection of the chain; it must not
// be modified.
func (s *Server) Config() *tls.Config { return nil }

// Client is the TLS side of one transport socket of a cluster. It is safe for
// concurrent use.
type Client struct{}

// NewClient compiles spec; see NewServer.
func NewClient(spec *xdsresource.UpstreamTLS, store *secret.Store) (*Client, error) {
	return nil, errTODO
}

// Options are what a client handshake depends on besides the context.
type Options struct {
	// SNI overrides the context's; "" keeps it. VerifyName, if not empty, is a
	// DNS name or IP address that the certificate must be valid for
	// (auto_san_validation); it is demanded besides the context's matchers.
	SNI, VerifyName string
	// ALPN overrides the context's; nil keeps it.
	ALPN []string
}

// Config returns the configuration for a connection with o; it is cached and
// must not be modified.
func (c *Client) Config(o Options) *tls.Config { return nil }

// Info describes an established session for policy and telemetry. Certificates
// are described once and cached; the result is shared and read-only.
func Info(cs *tls.ConnectionState) *streaminfo.TLS { return nil }
