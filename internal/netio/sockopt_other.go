//go:build !linux

package netio

import (
	"errors"
	"net"
	"net/netip"
)

func listenSockopts(_ int, _ netip.Addr, o ListenOptions) error {
	if o.ReusePort || o.Transparent || o.FreeBind {
		return errors.ErrUnsupported
	}
	return nil
}

func dialSockopts(_ int, _ netip.Addr, o DialOptions) error {
	if o.Transparent {
		return errors.ErrUnsupported
	}
	return nil
}

func setBacklog(*net.TCPListener, int) error { return errors.ErrUnsupported }

func steer(*net.TCPListener, int) error { return errors.ErrUnsupported }

func unsteer(*net.TCPListener) {}

func waiting(*net.TCPListener) bool { return false }

func listeners(*net.TCPListener) int { return 1 }
