package listener

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/linked"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/internal/timer"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Chain is one compiled filter chain.
type Chain struct {
	Name string
	// Metadata may be nil.
	Metadata *streaminfo.Metadata
	// Digest identifies the content; an equal Chain is kept on update.
	Digest xdsresource.Digest
	Match  *xdsresource.FilterChainMatch
	// TLS is nil for plaintext.
	TLS              ServerTLS
	HandshakeTimeout time.Duration // 0: 15 s
	Network          []filters.NetworkFilter
	Terminal         filters.TerminalFilter
	// Broken, if not empty, closes every connection: the chain holds something
	// that can't be executed.
	Broken string
	// Policy stands for the content of what decides about connections: two chains
	// with the same one admit the same. "" admits all.
	Policy string
	// Refuses, if not nil, is how Broken ends connections that are open: a network
	// filter can't be executed, and might have refused them.
	Refuses *filters.Denied

	mu       sync.Mutex
	conns    linked.List[connection, *connection]
	draining bool
	timed    bool // cut will be called
	over     bool // it was: a connection that comes late is cut, too
}

// Drainer is implemented by terminal filters that can end their connections in
// order.
type Drainer interface{ Drain() }

var errHandshakeTime = errors.New("listener: the time for the tls handshake is over")

func (c *Chain) handshake(fc *filters.Connection, ci *streaminfo.Conn) error {
	if c.TLS == nil {
		return nil
	}
	cfg, err := c.TLS.Config()
	if err != nil {
		return err
	}
	d := c.HandshakeTimeout
	if d == 0 {
		d = 15 * time.Second
	}
	raw, late := fc.Conn, &timer.Timer{}
	late.Arm(d, func() { raw.Interrupt(errHandshakeTime) })
	tc, err := netio.ServerTLS(context.Background(), raw, cfg)
	if !late.Stop() && err == nil {
		_ = tc.Close()
		err = errHandshakeTime
	}
	if err != nil {
		return err
	}
	fc.Conn = tc
	if cs := tc.TLS(); cs != nil {
		ci.TLS = c.TLS.Describe(cs)
		if ci.RequestedServerName == "" && isName(cs.ServerName) {
			ci.RequestedServerName, ci.NameFromTLS = cs.ServerName, true
		}
	}
	return nil
}

// isName is tls_inspector's idea of a server name: a client can write nothing
// into a log that looks like more than a name.
func isName(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

func (c *Chain) add(cn *connection) {
	if c.enter(cn) {
		cn.cut(errDrained)
	}
}

func (c *Chain) enter(cn *connection) (over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cn.chain = c
	c.conns.PushFront(cn)
	return c.over
}

func (c *Chain) remove(cn *connection) {
	c.mu.Lock()
	c.conns.Remove(cn)
	c.mu.Unlock()
}

// Active is the number of connections in the chain.
func (c *Chain) Active() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conns.Len()
}

// Drain ends the chain's connections in order and cuts what is left after
// drainTime (0: never), and what comes after that.
func (c *Chain) Drain(drainTime time.Duration) {
	c.mu.Lock()
	first, timed := !c.draining, drainTime > 0 && !c.timed
	c.draining, c.timed = true, c.timed || timed
	c.mu.Unlock()
	if d, ok := c.Terminal.(Drainer); ok && first {
		d.Drain()
	}
	if timed {
		time.AfterFunc(drainTime, c.cut)
	}
}

// cut ends every connection now.
func (c *Chain) cut() {
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	for _, cn := range c.connections(false) {
		cn.cut(errDrained)
	}
}

// connections lists those that are open, or of them those that were admitted.
func (c *Chain) connections(admitted bool) []*connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	conns := make([]*connection, 0, c.conns.Len())
	for cn := range c.conns.All() {
		if cn.admitted || !admitted {
			conns = append(conns, cn)
		}
	}
	return conns
}

var errDrained = errors.New("listener: drain time is over")
