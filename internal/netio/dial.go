package netio

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// DialOptions are socket options of an outgoing connection.
type DialOptions struct {
	// Source binds the local end; the zero AddrPort lets the system choose.
	Source netip.AddrPort
	// Transparent allows a foreign Source (IP_TRANSPARENT).
	Transparent bool
	// Keepalive: idle, interval and count; zero values leave the system's, all
	// zero leaves keepalive off.
	KeepaliveIdle, KeepaliveInterval time.Duration
	KeepaliveCount                   int
}

// Dial connects to addr; ctx bounds it.
func Dial(ctx context.Context, addr netip.AddrPort, o DialOptions) (Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	d.SetMultipathTCP(false)
	if o.KeepaliveIdle > 0 || o.KeepaliveInterval > 0 || o.KeepaliveCount > 0 {
		d.KeepAliveConfig = net.KeepAliveConfig{Enable: true, Idle: system(o.KeepaliveIdle), Interval: system(o.KeepaliveInterval), Count: o.KeepaliveCount}
		if o.KeepaliveCount == 0 {
			d.KeepAliveConfig.Count = -1
		}
	}
	if o.Source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(o.Source)
	}
	if o.Transparent || o.Source.IsValid() {
		d.Control = func(_, _ string, c syscall.RawConn) error {
			return control(c, func(fd int) error { return dialSockopts(fd, addr.Addr(), o) })
		}
	}
	nc, err := d.DialContext(ctx, network(addr.Addr(), false), addr.String())
	if err != nil {
		return nil, fmt.Errorf("connect to %v: %w", addr, err)
	}
	return newSocket(nc)
}

func system(d time.Duration) time.Duration {
	if d == 0 {
		return -1 // net: leave the system's
	}
	return d
}

// DialUnix connects to a Unix stream socket.
func DialUnix(ctx context.Context, path string) (Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return newSocket(nc)
}
