package listener

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"sync"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// ErrNoSuchListener means that no listener can be dialled under that name.
var ErrNoSuchListener = errors.New("internal listener is not configured")

// Dial connects to an internal listener and returns the near end. info
// describes the far one: the addresses and filter state that cross the hop.
//
// If nothing in the listener touches bytes before a terminal filter that can
// give its upstream away, what is returned is that upstream, and Dial waits for
// it as long as ctx lasts. Otherwise, and after that, it is an in-memory pipe.
func (l *Listener) Dial(ctx context.Context, info *streaminfo.Conn) (netio.Conn, error) {
	cur := l.take()
	if cur == nil {
		return nil, ErrNoSuchListener
	}
	if cur.fusible() {
		return l.dialFused(ctx, cur, info), nil
	}
	near, far := netio.Pipe(info.Remote, info.Local)
	go l.serve(cur, far, info, func() {})
	return near, nil
}

// fusible reports whether whatever chain is chosen can be opened. Listeners that
// istiod makes have one chain, or chains of one kind.
func (c *compiled) fusible() bool {
	for _, f := range c.cfg.ListenerFilters {
		if _, ok := f.Filter.(filters.Detached); !ok {
			return false
		}
	}
	for _, ch := range c.cfg.Chains {
		if !ch.fusible() {
			return false
		}
	}
	return c.cfg.Default == nil || c.cfg.Default.fusible()
}

func (c *Chain) fusible() bool {
	if c.TLS != nil || c.Broken != "" {
		return false
	}
	for _, f := range c.Network {
		if _, ok := f.(filters.Detached); !ok {
			return false
		}
	}
	o, ok := c.Terminal.(filters.Opener)
	return ok && o.CanOpen()
}

// dialFused runs the connection, which take has begun, up to the terminal filter and returns what that
// opens.
func (l *Listener) dialFused(ctx context.Context, cur *compiled, info *streaminfo.Conn) netio.Conn {
	h := &hop{local: info.Local, remote: info.Remote}
	opened := make(chan netio.Conn, 1)
	go func() {
		cn := l.enter(cur, h, info, func() {})
		if cn == nil {
			opened <- ended(h)
			return
		}
		c := cn.open(cur, h)
		h.attach(c)
		opened <- c
	}()
	select {
	case c := <-opened:
		return c
	case <-ctx.Done():
	}
	// A slow upstream is not a failed connection: there is one, to the internal
	// listener, and it waits.
	near, far := netio.Pipe(h.remote, h.local)
	go func() {
		netio.JoinAsync(far, <-opened, netio.JoinOptions{}, func(uint64, uint64, error) {})
	}()
	return near
}

// ended is a stream that the far side has closed.
func ended(h *hop) netio.Conn {
	near, far := netio.Pipe(h.remote, h.local)
	_ = far.Close()
	return near
}

// hop is the connection that a fused chain sees: it has addresses and can be
// cut, but bytes never pass through it.
type hop struct {
	local, remote netip.AddrPort

	mu    sync.Mutex
	c     netio.Conn // nil until it is opened
	cause error
	reset bool
}

// attach lets a cut reach c.
func (h *hop) attach(c netio.Conn) {
	h.mu.Lock()
	h.c = c
	cause, reset := h.cause, h.reset
	h.mu.Unlock()
	if cause != nil {
		c.Interrupt(cause)
	}
	if reset {
		c.Reset()
	}
}

var errDetached = errors.New("listener: a fused connection carries no bytes")

func (h *hop) Read([]byte) (int, error)    { return 0, errDetached }
func (h *hop) TryRead([]byte) (int, error) { return 0, errDetached }
func (h *hop) Write([]byte) (int, error)   { return 0, errDetached }
func (h *hop) Park(func()) bool            { return false }
func (h *hop) CloseWrite() error           { return errDetached }

// Close does nothing: the stream belongs to the one who dialled.
func (h *hop) Close() error { return nil }

func (h *hop) Reset() {
	h.mu.Lock()
	c := h.c
	h.reset = true
	h.mu.Unlock()
	if c != nil {
		c.Reset()
	}
}

func (h *hop) Interrupt(cause error) {
	h.mu.Lock()
	c := h.c
	h.cause = cause
	h.mu.Unlock()
	if c != nil {
		c.Interrupt(cause)
	}
}

func (h *hop) LocalAddr() netip.AddrPort  { return h.local }
func (h *hop) RemoteAddr() netip.AddrPort { return h.remote }

func (h *hop) TLS() *tls.ConnectionState { return nil }
