package hbone

import (
	"slices"

	"github.com/fairlead-mesh/fairlead/internal/timer"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// pooled is a connection of a pool. Dialer.mu guards its fields.
type pooled struct {
	d    *Dialer
	p    *pool // nil until it is in the pool and after it has left
	cc   transport.ClientConn
	gen  uint64
	used bool
	idle timer.Timer
}

func (pc *pooled) config(d *Dialer) *transport.ClientConfig {
	cfg := d.clientConfig()
	cfg.OnIdle = func(transport.ClientConn) { pc.start() }
	cfg.OnClose = func(transport.ClientConn, error) { pc.leave() }
	return cfg
}

// start begins to wait for the idle timeout if no stream is open, and removes a
// connection that ended before it was in the pool.
func (pc *pooled) start() {
	d := pc.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if pc.p == nil {
		return
	}
	select {
	case <-pc.cc.Done():
		pc.leaveLocked()
	default:
		if pc.cc.Active() == 0 {
			pc.idle.Arm(d.cfg.IdleTimeout, pc.expire)
		}
	}
}

// expire closes a connection that has been idle.
func (pc *pooled) expire() {
	pc.d.mu.Lock()
	gone := pc.p != nil && pc.cc.Active() == 0
	if gone {
		pc.leaveLocked()
	}
	pc.d.mu.Unlock()
	if gone {
		pc.cc.Drain()
	}
}

func (pc *pooled) leave() {
	pc.d.mu.Lock()
	defer pc.d.mu.Unlock()
	pc.leaveLocked()
}

func (pc *pooled) leaveLocked() {
	p := pc.p
	if p == nil {
		return
	}
	pc.p = nil
	pc.idle.Stop()
	if i := slices.Index(p.conns, pc); i >= 0 {
		p.conns = slices.Delete(p.conns, i, i+1)
	}
	pc.d.sweep(p)
}
