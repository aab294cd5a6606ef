//go:build linux && (amd64 || arm64) && race

package netio

import (
	"errors"
	"syscall"
	"unsafe"
)

// Under the race detector reads and writes go through package syscall, which
// tells it about the memory they touch and the order that they make.

func rawRead(fd uintptr, p []byte) (int, syscall.Errno) {
	n, err := syscall.Read(int(fd), p) //nolint:gosec // a descriptor
	return count(n, err)
}

func rawWrite(fd uintptr, p []byte) (int, syscall.Errno) {
	n, err := syscall.Write(int(fd), p) //nolint:gosec // a descriptor
	return count(n, err)
}

func rawWritev(fd uintptr, msg *syscall.Msghdr) (int, syscall.Errno) {
	first := msg.Iov
	return rawWrite(fd, unsafe.Slice(first.Base, first.Len)) // a partial write
}

func count(n int, err error) (int, syscall.Errno) {
	var e syscall.Errno
	if err != nil && !errors.As(err, &e) {
		e = syscall.EIO
	}
	return n, e
}
