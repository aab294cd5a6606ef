package netio

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"time"
)

var errTODO = errors.New("netio: not built yet")

// ListenOptions are socket options of a listener; the zero value is a plain
// listener with SO_REUSEADDR.
type ListenOptions struct {
	ReusePort, Transparent, FreeBind bool
	Backlog                          int
}

// Listener accepts TCP connections.
type Listener struct{}

// Listen binds addr (port 0 picks one).
func Listen(addr netip.AddrPort, o ListenOptions) (*Listener, error) { return nil, errTODO }

// Accept blocks for the next connection; TCP_NODELAY is set. Running out of
// file descriptors is retried with a delay and logged, not returned.
func (l *Listener) Accept() (Conn, error) { return nil, errTODO }

// Addr is the bound address.
func (l *Listener) Addr() netip.AddrPort { return netip.AddrPort{} }

// Close stops accepting; accepted connections go on.
func (l *Listener) Close() error { return errTODO }

// DialOptions are socket options of an outgoing connection.
type DialOptions struct {
	// Source binds the local end; the zero AddrPort lets the system choose.
	Source netip.AddrPort
	// Transparent allows a foreign Source (IP_TRANSPARENT).
	Transparent bool
	// Keepalive: idle, interval and count; zero values leave the system's.
	KeepaliveIdle, KeepaliveInterval time.Duration
	KeepaliveCount                   int
}

// Dial connects to addr; ctx bounds it.
func Dial(ctx context.Context, addr netip.AddrPort, o DialOptions) (Conn, error) { return nil, errTODO }

// DialUnix connects to a Unix stream socket.
func DialUnix(ctx context.Context, path string) (Conn, error) { return nil, errTODO }

// ServerTLS runs the server side of a handshake on c and returns the protected
// stream. ctx bounds the handshake. On error c is closed.
func ServerTLS(ctx context.Context, c Conn, cfg *tls.Config) (Conn, error) { return nil, errTODO }

// ClientTLS is ServerTLS for the client side.
func ClientTLS(ctx context.Context, c Conn, cfg *tls.Config) (Conn, error) { return nil, errTODO }

// Pipe returns two connected in-memory streams with bounded buffers (64 KiB
// each way) whose Park calls back. a's remote is b's local address and so on.
func Pipe(aLocal, aRemote netip.AddrPort) (a, b Conn) { return nil, nil }

// Join copies both ways between a and b until both directions have ended, with
// half-close passed on, and closes both. It returns the bytes copied from a to
// b and from b to a. No buffer is held while a direction is idle. A reset or
// error on one side resets the other.
func Join(a, b Conn, opts JoinOptions) (aToB, bToA uint64, err error) { return 0, 0, errTODO }

// JoinOptions bounds a Join.
type JoinOptions struct {
	// IdleTimeout ends the join when no byte moved for that long; 0: never.
	IdleTimeout time.Duration
	// OnBytes, if not nil, sees progress (at most every few chunks and at the end).
	OnBytes func(aToB, bToA uint64)
}
