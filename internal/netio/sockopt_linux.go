package netio

import (
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

func listenSockopts(fd int, a netip.Addr, o ListenOptions) error {
	if o.ReusePort {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return err
		}
	}
	if o.Transparent {
		if err := setTransparent(fd, a); err != nil {
			return err
		}
	}
	if !o.FreeBind {
		return nil
	}
	return setIP(fd, a, unix.IP_FREEBIND, unix.IPV6_FREEBIND)
}

func setTransparent(fd int, a netip.Addr) error {
	return setIP(fd, a, unix.IP_TRANSPARENT, unix.IPV6_TRANSPARENT)
}

func setIP(fd int, a netip.Addr, v4, v6 int) error {
	if a.Is4() {
		return unix.SetsockoptInt(fd, unix.SOL_IP, v4, 1)
	}
	return unix.SetsockoptInt(fd, unix.SOL_IPV6, v6, 1)
}

// ipBindAddressNoPort lets connect choose the port by the four-tuple instead
// of bind by itself, so that one source address is not limited to 28,000
// connections.
const ipBindAddressNoPort = 24

func dialSockopts(fd int, a netip.Addr, o DialOptions) error {
	if o.Transparent {
		if err := setTransparent(fd, a); err != nil {
			return err
		}
	}
	if o.Source.IsValid() && o.Source.Port() == 0 {
		return unix.SetsockoptInt(fd, unix.SOL_IP, ipBindAddressNoPort, 1)
	}
	return nil
}

func setBacklog(l *net.TCPListener, n int) error {
	rc, err := l.SyscallConn()
	if err != nil {
		return err
	}
	return control(rc, func(fd int) error { return unix.Listen(fd, n) })
}
