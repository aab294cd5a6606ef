package netio

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// ErrReset is in the chain of errors that mean that the peer reset the
// connection or no longer takes bytes (ECONNRESET, EPIPE, RST_STREAM).
var ErrReset = errors.New("netio: connection reset by peer")

var errHandshake = errors.New("netio: tls handshake abandoned")

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// sysError is a failed system call.
type sysError struct {
	op    string
	errno syscall.Errno
}

func (e *sysError) Error() string { return e.op + ": " + e.errno.Error() }
func (e *sysError) Unwrap() error { return e.errno }
func (e *sysError) Is(target error) bool {
	return target == ErrReset && (e.errno == syscall.ECONNRESET || e.errno == syscall.EPIPE)
}

// wouldBlock is what crypto/tls gets from the connection below when nothing
// can be read now. crypto/tls keeps its partial record and is not broken by
// the error because it is temporary; a test pins that.
//
//nolint:errname // not an error that callers see
type wouldBlock struct{}

func (wouldBlock) Error() string   { return ErrWouldBlock.Error() }
func (wouldBlock) Timeout() bool   { return false }
func (wouldBlock) Temporary() bool { return true }
func (wouldBlock) Is(target error) bool {
	return target == ErrWouldBlock
}

// asSysError gives an error of package net the shape of the raw path's.
func asSysError(err error) error {
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		op := "read"
		if oe := (*net.OpError)(nil); errors.As(err, &oe) {
			op = oe.Op
		}
		return &sysError{op, e}
	}
	return err
}
