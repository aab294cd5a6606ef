//go:build !linux || (!amd64 && !arm64)

package netio

import "net"

// newSocket takes over nc; this system has the portable path only.
func newSocket(nc net.Conn) (Conn, error) { return Wrap(nc), nil }
