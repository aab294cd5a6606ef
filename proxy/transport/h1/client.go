package h1

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/timer"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// Client is an upstream connection; it implements transport.ClientConn.
type Client struct {
	rd     reader
	cfg    *transport.ClientConfig
	prober netio.Prober
	quiet  netio.Quieter
	st     clientStream
	done   chan struct{}
	one    [1]byte

	mu       sync.Mutex
	active   bool
	draining bool
	closed   bool

	// sweep looks now and then whether the peer of an idle connection is gone.
	sweep   timer.Timer
	sweepFn func()
	wait    time.Duration
	uses    atomic.Uint32
	born    time.Time
	seen    uint32
	armed   bool // guarded by mu
}

const (
	sweepMin = time.Second
	sweepMax = 30 * time.Second
)

// NewClient wraps c as an upstream connection. cfg is shared and read-only.
func NewClient(c netio.Conn, cfg *transport.ClientConfig) transport.ClientConn {
	cl := &Client{cfg: cfg, done: make(chan struct{}), born: time.Now()}
	cl.rd.c = c
	cl.prober, _ = c.(netio.Prober)
	cl.quiet, _ = c.(netio.Quieter)
	cl.sweepFn = cl.checkPeer
	cl.st.init(cl)
	return cl
}

func (c *Client) maxHeaderBytes() int {
	if c.cfg.MaxHeaderBytes > 0 {
		return c.cfg.MaxHeaderBytes
	}
	return defaultMaxHeaderBytes
}

// NewStream implements transport.ClientConn. A connection whose peer has ended
// it, or has sent something unasked, is closed and refused here, before
// anything was sent; one that is used as soon as it was made is not looked at.
func (c *Client) NewStream() (transport.ClientStream, error) { return c.newStream(true) }

// Resume implements transport.Resumer.
func (c *Client) Resume() (transport.ClientStream, error) { return c.newStream(false) }

func (c *Client) newStream(look bool) (transport.ClientStream, error) {
	c.mu.Lock()
	switch {
	case c.closed || c.draining && !c.active:
		c.mu.Unlock()
		return nil, &transport.ResetError{Reason: transport.ConnectionTermination, Detail: "the connection is closed"}
	case c.active:
		c.mu.Unlock()
		return nil, &transport.ResetError{Reason: transport.Overflow, Detail: "the connection is in use"}
	}
	c.active = true
	c.mu.Unlock()
	if (c.uses.Add(1) > 1 || time.Since(c.born) > sweepMin) && look && c.stale() {
		err := &transport.ResetError{Reason: transport.ConnectionTermination, Detail: "the peer closed the idle connection"}
		c.Close(err)
		return nil, err
	}
	c.st.begin()
	return &c.st, nil
}

// stale reports whether an idle connection has something to read: nothing good.
func (c *Client) stale() bool {
	if c.quiet != nil {
		return !c.quiet.Quiet()
	}
	holder, over := c.rd.c.(netio.Holder)
	readable, ended := over && holder.Holds(), false
	if c.prober != nil && !readable {
		readable, ended = c.prober.Probe()
	}
	if readable && !ended && over {
		// Perhaps a session ticket or key update, which is no data.
		_, err := c.rd.c.TryRead(c.one[:])
		return !errors.Is(err, netio.ErrWouldBlock)
	}
	return readable
}

// checkPeer runs on the timer's goroutine.
func (c *Client) checkPeer() {
	c.mu.Lock()
	n := c.uses.Load()
	switch {
	case c.closed:
		c.armed = false
		c.mu.Unlock()
		return
	case c.active || n != c.seen:
		c.seen, c.wait = n, sweepMin
		if c.active {
			c.armed = false // released streams arm it
			c.mu.Unlock()
			return
		}
	default:
		if _, ended := c.prober.Probe(); ended {
			c.closeLocked(&transport.ResetError{Reason: transport.ConnectionTermination, Detail: "the peer closed the idle connection"})
			return
		}
		c.wait = min(2*c.wait, sweepMax)
	}
	c.sweep.Arm(c.wait, c.sweepFn)
	c.mu.Unlock()
}

// Available implements transport.ClientConn.
func (c *Client) Available() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.active || c.draining || c.closed {
		return 0
	}
	return 1
}

// Active implements transport.ClientConn.
func (c *Client) Active() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.active && !c.closed {
		return 1
	}
	return 0
}

// Drain implements transport.ClientConn.
func (c *Client) Drain() {
	c.mu.Lock()
	c.draining = true
	if c.active {
		c.mu.Unlock()
		return
	}
	c.closeLocked(netio.ErrClosed)
}

// Close implements transport.ClientConn.
func (c *Client) Close(cause error) {
	if cause == nil {
		cause = netio.ErrClosed
	}
	c.mu.Lock()
	c.closeLocked(cause)
}

// closeLocked ends the connection; it unlocks mu.
func (c *Client) closeLocked(cause error) {
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	active := c.active
	c.mu.Unlock()
	c.sweep.Stop()
	if active { // calls of the stream fail with the cause
		c.st.stop(cause)
		c.rd.c.Interrupt(cause)
		c.rd.c.Reset()
	} else {
		_ = c.rd.c.Close()
	}
	c.ended(cause)
}

// ended tells the owner that the connection is gone.
func (c *Client) ended(cause error) {
	close(c.done)
	if c.cfg.OnClose != nil {
		c.cfg.OnClose(c, cause)
	}
}

// Done implements transport.ClientConn.
func (c *Client) Done() <-chan struct{} { return c.done }

// tunnelEnded is called when a tunnel over the connection is closed.
func (c *Client) tunnelEnded() {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	c.mu.Unlock()
	c.ended(netio.ErrClosed)
}

// release takes the connection back from a stream; ok: it can serve another.
func (c *Client) release(ok bool) {
	c.mu.Lock()
	switch {
	case c.closed:
		c.active = false
		c.mu.Unlock()
		return
	case !ok:
		c.closeLocked(netio.ErrClosed)
		return
	case c.draining:
		c.active = false
		c.closeLocked(netio.ErrClosed)
		return
	}
	c.active = false
	if c.prober != nil && !c.armed {
		c.armed, c.wait = true, sweepMin
		c.sweep.Arm(sweepMin, c.sweepFn)
	}
	c.mu.Unlock()
	if c.cfg.OnIdle != nil {
		c.cfg.OnIdle(c)
	}
}

var _ transport.ClientConn = (*Client)(nil)
