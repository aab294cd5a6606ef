package upstream

import (
	"sync/atomic"
	"time"
)

// install makes p the pool of slot, unless there is one.
func (st *hostState) install(slot *atomic.Pointer[pool], p *pool) *pool {
	if !slot.CompareAndSwap(nil, p) {
		return slot.Load()
	}
	if st.removed.Load() { // maybe before the pool was there to be drained
		p.drain()
	}
	return p
}

// retire takes pc out of use: it closes when its last stream has ended.
func (p *pool) retire(pc *pooledConn) {
	p.mu.Lock()
	pc.retired = true
	p.removeReady(pc)
	p.mu.Unlock()
	pc.Drain()
}

// renew takes all connections out of use: who comes next gets a new one.
func (p *pool) renew() {
	p.mu.Lock()
	all := p.madeLocked()
	p.mu.Unlock()
	for _, pc := range all {
		p.retire(pc)
	}
}

// madeLocked returns the connections whose codec is there. The caller holds p.mu.
func (p *pool) madeLocked() []*pooledConn {
	all := make([]*pooledConn, 0, len(p.all))
	for pc := range p.all {
		if pc.made {
			all = append(all, pc)
		}
	}
	return all
}

// drain makes every connection end with its last stream.
func (p *pool) drain() {
	p.mu.Lock()
	p.draining = true
	p.sweep.Stop() // it would keep what is drained for as long as it has to run
	if p.waiters.Len() > 0 {
		p.mu.Unlock()
		return // the last of them drains
	}
	all := p.madeLocked() // offer ends what is being made
	for _, pc := range all {
		pc.retired = true
		p.removeReady(pc)
	}
	p.mu.Unlock()
	for _, pc := range all {
		pc.Drain()
	}
}

// served is called by those who have waited. It ends the connections of a removed
// host once nobody waits for one any more.
func (p *pool) served() {
	p.mu.Lock()
	drain := p.draining && p.waiters.Len() == 0
	p.mu.Unlock()
	if drain {
		p.drain()
	}
	p.leave()
}

// leave forgets an empty pool of an unusual key: there may be one for each client, or
// for each name that clients ask for. Who holds it already may use it, once.
func (p *pool) leave() {
	st := p.st
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.keyed[p.key] != p {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.all) == 0 && p.connecting == 0 && p.waiters.Len() == 0 {
		delete(st.keyed, p.key)
		p.draining = true
		p.sweep.Stop()
	}
}

func (c *Cluster) idleTimeout() time.Duration {
	switch d := c.spec.HTTP.IdleTimeout; {
	case d < 0:
		return 0
	case d == 0:
		return time.Hour
	default:
		return d
	}
}

// armSweep starts the timer that closes idle connections. The caller holds
// p.mu.
func (p *pool) armSweep() {
	if d := p.c.idleTimeout(); d > 0 && !p.sweeping && !p.draining {
		p.sweeping = true
		p.sweep.Arm(d, p.onSweep)
	}
}

func (p *pool) sweepIdle() {
	d := p.c.idleTimeout()
	var old []*pooledConn
	next := time.Duration(0)
	p.mu.Lock()
	p.sweeping = false
	for _, pc := range p.ready {
		if pc.streams.Load() > 0 {
			continue
		}
		rest := d - (time.Since(pc.start) - time.Duration(pc.idleSince.Load()))
		if rest <= 0 {
			old = append(old, pc)
			pc.retired = true
		} else if next == 0 || rest < next {
			next = rest
		}
	}
	for _, pc := range old {
		p.removeReady(pc)
	}
	if next > 0 && !p.draining {
		p.sweeping = true
		p.sweep.Arm(next, p.onSweep)
	}
	p.mu.Unlock()
	for _, pc := range old {
		p.c.stats().cxIdleTimeout.Inc()
		pc.Drain()
	}
}
