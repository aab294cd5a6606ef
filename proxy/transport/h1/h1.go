// Package h1 is HTTP/1.1 (RFC 9112) on both sides: strict in, one canonical
// form out.
package h1

import (
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// Server is one downstream connection; it implements transport.ServerConn.
type Server struct{ transport.ServerConn }

// NewServer prepares c; cfg is shared and read-only.
func NewServer(c netio.Conn, cfg *transport.ServerConfig, h transport.Handler) *Server {
	return &Server{}
}

// Serve drives the connection. On a connection that can park it returns at
// once whenever the connection is idle; on a socket it blocks. done is called
// once when the connection has ended.
func (s *Server) Serve(done func()) {}

// NewClient wraps c as an upstream connection.
func NewClient(c netio.Conn, cfg *transport.ClientConfig) transport.ClientConn { return nil }
