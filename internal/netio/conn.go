// Package netio is the byte-stream layer: what a connection is to everything
// above it, and how sockets are driven. Sockets use raw non-blocking system
// calls inside the runtime's RawConn callbacks, so that a lightly loaded
// process does not wake the scheduler's monitor on each call; buffers are
// taken only once a connection is readable.
package netio

import (
	"crypto/tls"
	"errors"
	"net/netip"
)

// ErrWouldBlock is returned by TryRead when no byte is available now.
var ErrWouldBlock = errors.New("netio: would block")

// ErrClosed is returned by calls on a connection closed by this side.
var ErrClosed = errors.New("netio: connection closed")

// Conn is a full-duplex stream of bytes: a TCP socket, TLS over one, a CONNECT
// stream of an HTTP/2 connection, or one end of a Pipe.
//
// One goroutine may read while another writes. Close, Reset and Interrupt may
// be called by any goroutine, any number of times.
type Conn interface {
	// Read blocks until at least one byte is there. It returns io.EOF after
	// the peer's orderly end (FIN, close_notify, END_STREAM); the other
	// direction stays usable.
	Read(p []byte) (int, error)
	// TryRead is Read without blocking: 0, ErrWouldBlock if nothing is there.
	TryRead(p []byte) (int, error)
	// Write writes all of p, blocking while the peer is slow (back-pressure).
	// p may be reused when it returns.
	Write(p []byte) (int, error)
	// Park waits until TryRead would not return ErrWouldBlock, holding no
	// buffer. If the connection can call back, Park keeps resume, returns true
	// at once, and later calls resume once on a goroutine of its own: the
	// caller must give up its goroutine and must not read before that. If it
	// cannot (a socket), Park blocks and returns false; resume is not called.
	Park(resume func()) (parked bool)
	// CloseWrite ends the outgoing direction in order.
	CloseWrite() error
	// Close ends both directions; bytes already written are delivered as far
	// as the transport can.
	Close() error
	// Reset ends both directions abruptly: TCP RST, RST_STREAM(CANCEL).
	Reset()
	// Interrupt makes blocked and future reads and writes fail with cause.
	// It does not release anything: Close or Reset must follow.
	Interrupt(cause error)
	// LocalAddr and RemoteAddr are the addresses of this end and the peer;
	// for tunnelled streams the original destination and source. The zero
	// AddrPort means unknown.
	LocalAddr() netip.AddrPort
	RemoteAddr() netip.AddrPort
	// TLS returns the state of the TLS session that protects this very
	// stream, or nil. A stream inside a TLS tunnel returns nil.
	TLS() *tls.ConnectionState
}

// Peeker is implemented by connections that can show bytes before they are
// read, for listener filters.
type Peeker interface {
	// Peek blocks until n bytes are buffered, the peer ends, or an error. It
	// returns what is buffered, at most n bytes, valid until the next call on
	// the connection. n is at most 64 KiB.
	Peek(n int) ([]byte, error)
}
