package upstream

import (
	"context"

	"github.com/fairlead-mesh/fairlead/internal/linked"
)

// waiter is a stream that waits for a connection: Envoy's pending request.
type waiter struct {
	linked.Node[waiter] // in pool.waiters

	ch chan result // holds one: who takes w out of the queue sends once, and never blocks
}

type result struct {
	pc  *pooledConn
	err error
}

// wait queues for a connection and has one made if that is allowed.
func (p *pool) wait(ctx context.Context, h *Host, o *ConnectOptions) (*Stream, error) {
	st := p.c.stats()
	if !p.b.pending.take() {
		st.rqPendingOverflow.Inc()
		p.leave()
		return nil, errMaxPending
	}
	st.rqPendingTotal.Inc()
	st.rqPendingActive.Add(1)
	p.st.pending.Add(1)
	defer func() {
		p.b.pending.give()
		st.rqPendingActive.Add(-1)
		p.st.pending.Add(-1)
		p.served()
	}()
	w := &waiter{ch: make(chan result, 1)}
	p.mu.Lock()
	p.host = h
	p.waiters.PushBack(w)
	p.connectLocked(o)
	p.mu.Unlock()
	p.rouse()
	for {
		select {
		case r := <-w.ch:
			if r.err != nil {
				st.rqPendingFailure.Inc()
				return nil, r.err
			}
			s, err := p.attach(r.pc)
			if s != nil || err != nil {
				return s, err
			}
			// The connection ended or filled up meanwhile: first in the queue
			// again.
			p.mu.Lock()
			p.waiters.PushFront(w)
			p.connectLocked(o)
			p.mu.Unlock()
			p.rouse() // a stream may have been released before w queued again
		case <-ctx.Done():
			p.abandon(w)
			st.rqCancelled.Inc()
			return nil, context.Cause(ctx)
		}
	}
}

// attach starts a stream on a connection that was handed over.
func (p *pool) attach(pc *pooledConn) (*Stream, error) {
	if !p.b.requests.take() {
		st := p.c.stats()
		st.rqActiveOverflow.Inc()
		p.offer(pc)
		return nil, errMaxRequests
	}
	s := pc.begin(false)
	if s == nil {
		p.b.requests.give()
		return nil, nil
	}
	if pc.multiplex {
		p.rouse()
	}
	return s, nil
}

// rouse gives a ready connection to the first waiter. It closes the gap between
// a connection becoming ready and a waiter queueing, and lets a multiplexing
// connection serve the next.
func (p *pool) rouse() {
	p.mu.Lock()
	n := len(p.ready)
	if n == 0 || p.waiters.Len() == 0 {
		p.mu.Unlock()
		return
	}
	pc := p.ready[n-1]
	if !pc.multiplex {
		p.removeReady(pc)
	}
	w := p.waiters.PopFront()
	p.mu.Unlock()
	w.ch <- result{pc: pc}
}

// abandon takes w out of the queue, passing on what it was given.
func (p *pool) abandon(w *waiter) {
	p.mu.Lock()
	queued := p.waiters.Remove(w)
	p.mu.Unlock()
	if !queued {
		if r := <-w.ch; r.pc != nil {
			p.offer(r.pc)
		}
	}
}

// connectLocked starts connections for the waiters that no connection in the
// making will serve. o is nil if no stream asks right now. The caller holds
// p.mu.
func (p *pool) connectLocked(o *ConnectOptions) {
	capacity := p.connecting
	if p.key.proto != http1 {
		capacity *= int(p.streamsPerConn())
	}
	for p.waiters.Len() > capacity {
		if !p.b.connections.take() {
			// A host without any connection gets one in spite of the limit, or
			// its waiters would wait for ever.
			if p.connecting > 0 || len(p.all) > 0 {
				p.c.stats().cxOverflow.Inc()
				return
			}
			p.b.connections.force()
		}
		var d *ConnectOptions
		switch {
		case o != nil:
			d = o.detached()
		case p.last != nil:
			d = p.last
		default:
			d = &ConnectOptions{}
		}
		if d.Conn != nil && p.host.socket.ProxyProtocol == 0 {
			d.Conn = nil // the connection will serve others, too; of p.last somebody may be reading
		}
		p.last = d
		p.connecting++
		go p.dial(p.host, d)
		if p.key.proto == http1 {
			capacity++
		} else {
			capacity += int(p.streamsPerConn())
		}
	}
}

func (p *pool) streamsPerConn() uint32 {
	n := p.c.spec.HTTP.Client.MaxConcurrentStreams
	if n == 0 || n > 1024 {
		n = 1024
	}
	if limit := p.maxRequests(); limit > 0 && limit < n {
		n = limit
	}
	return n
}

// dial makes one connection. If that fails, everybody who waits fails with it,
// as in Envoy: a retry may choose another host.
func (p *pool) dial(h *Host, o *ConnectOptions) {
	conn, err := p.c.connect(p.c.ctx, h, o, alpnOf[p.key.proto])
	var pc *pooledConn
	if err == nil {
		pc, err = p.dialed(conn)
	} else {
		p.b.connections.give()
	}
	p.mu.Lock()
	p.connecting--
	if err != nil {
		for w := p.waiters.PopFront(); w != nil; w = p.waiters.PopFront() {
			w.ch <- result{err: err}
		}
		p.mu.Unlock()
		p.leave()
		return
	}
	p.mu.Unlock()
	p.offer(pc)
	p.mu.Lock()
	p.connectLocked(nil)
	p.mu.Unlock()
}
