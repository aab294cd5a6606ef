package netio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// ListenOptions are socket options of a listener; the zero value is a plain
// listener with SO_REUSEADDR.
type ListenOptions struct {
	ReusePort, Transparent, FreeBind bool
	// Backlog is the length of the accept queue; 0 leaves the system's.
	Backlog int
	// V6Only keeps IPv4 clients away from the address "::".
	V6Only bool
}

// Listener accepts TCP connections. Its methods may be called by any
// goroutine.
type Listener struct {
	l      *net.TCPListener
	addr   netip.AddrPort
	closed chan struct{}
	once   sync.Once
	shared bool         // SO_REUSEPORT
	taken  atomic.Int64 // connections accepted
	// accept is l.AcceptTCP, replaced by tests.
	accept func() (*net.TCPConn, error)
}

// Listen binds addr (port 0 picks one).
func Listen(addr netip.AddrPort, o ListenOptions) (*Listener, error) {
	lc := net.ListenConfig{
		KeepAlive: -1,
		Control: func(_, _ string, c syscall.RawConn) error {
			return control(c, func(fd int) error { return listenSockopts(fd, addr.Addr(), o) })
		},
	}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), network(addr.Addr(), o.V6Only), addr.String())
	if err != nil {
		return nil, fmt.Errorf("listen on %v: %w", addr, err)
	}
	l, ok := ln.(*net.TCPListener)
	if !ok {
		_ = ln.Close()
		return nil, fmt.Errorf("listen on %v: unexpected listener %T", addr, ln)
	}
	if o.Backlog > 0 {
		if err := setBacklog(l, o.Backlog); err != nil {
			_ = l.Close()
			return nil, fmt.Errorf("listen on %v: backlog %d: %w", addr, o.Backlog, err)
		}
	}
	if o.ReusePort {
		unsteer(l)
	}
	return &Listener{l: l, addr: addrPort(l.Addr()), closed: make(chan struct{}), accept: l.AcceptTCP, shared: o.ReusePort}, nil
}

// network keeps an IPv4 address on an IPv4 socket and lets the IPv6 wildcard
// take both unless v6only.
func network(a netip.Addr, v6only bool) string {
	switch {
	case a.Is4():
		return "tcp4"
	case v6only && a.Is6() && a.IsUnspecified():
		return "tcp6"
	}
	return "tcp"
}

func control(c syscall.RawConn, f func(fd int) error) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

const (
	minAcceptDelay = 5 * time.Millisecond
	maxAcceptDelay = time.Second
)

// Accept blocks for the next connection; TCP_NODELAY is set. Running out of
// file descriptors or memory is retried with a growing delay (5 ms to 1 s) and
// logged, not returned. After Close it returns ErrClosed.
func (l *Listener) Accept() (Conn, error) {
	var delay time.Duration
	for {
		c, err := l.accept()
		if err == nil {
			l.taken.Add(1)
			s, err := newSocket(c)
			if err != nil { // the connection died; the listener didn't
				_ = c.Close()
				continue
			}
			return s, nil
		}
		select {
		case <-l.closed:
			return nil, ErrClosed
		default:
		}
		switch {
		case errors.Is(err, syscall.ECONNABORTED), errors.Is(err, syscall.EPROTO), errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
		default:
			return nil, fmt.Errorf("accept on %v: %w", l.addr, err)
		}
		if delay == 0 {
			slog.Error("out of descriptors or memory: new connections wait, open ones go on; check the limit of open files", "listener", l.addr, "err", err)
		}
		delay = min(max(2*delay, minAcceptDelay), maxAcceptDelay)
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-l.closed:
			t.Stop()
			return nil, ErrClosed
		}
	}
}

// Addr is the bound address.
func (l *Listener) Addr() netip.AddrPort { return l.addr }

// Close stops accepting; accepted connections go on.
func (l *Listener) Close() error {
	err := ErrClosed
	l.once.Do(func() {
		close(l.closed)
		err = l.l.Close()
	})
	if errors.Is(err, ErrClosed) {
		return nil
	}
	return err
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
