package behaviour

import "syscall"

// ReservePort returns a TCP port of 127.0.0.1 that nobody else gets until
// release is called: neither another listener that asks for any port nor a
// connection. A process that is told the port can listen at it, for the socket
// that holds it does not listen and lets its address be reused (as servers do).
// Until somebody listens, connections are refused.
func ReservePort() (port int, release func(), err error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, err
	}
	release = func() { _ = syscall.Close(fd) }
	var sa syscall.Sockaddr
	err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		sa, err = syscall.Getsockname(fd)
	}
	if err != nil {
		release()
		return 0, nil, err
	}
	return sa.(*syscall.SockaddrInet4).Port, release, nil
}
