package listener

import (
	"crypto/tls"
	"errors"
	"slices"
	"sync"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// TunnelReviewer is implemented by terminal filters whose connections carry
// tunnels that are admitted on their own, and may outlive the policy that did.
type TunnelReviewer interface {
	// Review judges the tunnels that are open, and from now on those that are
	// admitted by what is not in force any more, by the terminal filter that
	// successor returns: the one that a new connection like ci would get, nil if
	// there is none.
	Review(successor func(ci *streaminfo.Conn) filters.TerminalFilter)
}

// PeerReviewer is implemented by a ServerTLS that knows lists of revoked
// certificates.
type PeerReviewer interface {
	// Revoked says which certificate of the peer is on a list that is in force
	// now, nil if none is. It is cheap for a peer that is on none.
	Revoked(cs *tls.ConnectionState) error
}

// known is what network filters find out about a connection.
type known struct {
	state    streaminfo.FilterState
	metadata streaminfo.Metadata
}

var errRevoked = errors.New("listener: the connection would not be admitted now")

// settle ends the admission of a connection by cur, which may have been replaced
// meanwhile. From here on a review sees the connection; what came before is judged
// here. It reports whether the connection is still admitted.
func (cn *connection) settle(cur *compiled) bool {
	ch, info := cn.chain, &cn.rec.info
	if !info.FilterState.Empty() || !info.Metadata.Empty() {
		cn.known = &known{info.FilterState.Snapshot(), info.Metadata}
	}
	ch.mu.Lock()
	cn.admitted = true
	ch.mu.Unlock()
	d := ch.revokedPeer(cn.conn)
	if d == nil && cn.l.inForce() != cur {
		cn.l.adopt(ch)
		d = cn.review(cn.l.inForce())
	}
	if d == nil {
		return true
	}
	cn.revoke(d)
	info.Revoke(cn.revoked.Load())
	cn.unserved()
	return false
}

// inForce is the configuration that new connections get.
func (l *Listener) inForce() *compiled {
	for {
		next := l.heir.Load()
		if next == nil {
			return l.current.Load()
		}
		l = next
	}
}

// adopt has ch reviewed although it is no part of the configuration any more: a
// connection has got into it late.
func (l *Listener) adopt(ch *Chain) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.openChains(), ch) {
		l.replaced = append(l.replaced, ch)
	}
	if l.closed {
		ch.cut()
	}
}

// Follow makes former, a listener of the same name that was removed, one whose
// connections are reviewed by what is in force in l, now and from now on. l must
// have a configuration.
func (l *Listener) Follow(former *Listener) {
	if !former.heir.CompareAndSwap(nil, l) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.formers = append(l.formers, former)
	l.reviewLocked()
}

// openChains are those that may have connections. The caller holds l.mu.
func (l *Listener) openChains() []*Chain {
	out := slices.Clone(l.replaced)
	if cur := l.current.Load(); cur != nil {
		out = append(out, chainsOf(&cur.cfg)...)
	}
	return out
}

// all are the open chains of l and of its formers. The caller holds l.mu.
func (l *Listener) all() []*Chain {
	l.formers = slices.DeleteFunc(l.formers, func(f *Listener) bool { return f.Active() == 0 })
	out := l.openChains()
	for _, f := range l.formers {
		f.mu.Lock()
		out = append(out, f.all()...)
		f.mu.Unlock()
	}
	return out
}

// Review judges what is open by the configuration in force, whose routes or HTTP
// filters have changed: connections by the network filters of the chain that a
// new one would get, tunnels by its terminal filter. What would not be admitted
// now is ended. What is judged by the same policy as before is not looked at.
func (l *Listener) Review() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reviewLocked()
}

func (l *Listener) reviewLocked() {
	cur := l.current.Load()
	if cur == nil {
		return
	}
	judges := slices.ContainsFunc(chainsOf(&cur.cfg), func(c *Chain) bool { return c.Policy != "" || c.TLS != nil })
	for _, ch := range l.all() {
		if judges {
			for _, cn := range ch.connections(true) {
				if d := cn.review(cur); d != nil {
					cn.revoke(d)
				}
			}
		}
		if t, ok := ch.Terminal.(TunnelReviewer); ok {
			t.Review(l.successor)
		}
	}
}

// ReviewPeers ends connections whose peers' certificates were revoked.
func (l *Listener) ReviewPeers() {
	l.mu.Lock()
	chains := l.all()
	l.mu.Unlock()
	for _, ch := range chains {
		if _, ok := ch.TLS.(PeerReviewer); !ok {
			continue
		}
		for _, cn := range ch.connections(true) {
			if d := ch.revokedPeer(cn.conn); d != nil {
				cn.revoke(d)
			}
		}
	}
}

// successor returns the terminal filter that a new connection like ci would get.
func (l *Listener) successor(ci *streaminfo.Conn) filters.TerminalFilter {
	if ch := l.inForce().again(ci); ch != nil {
		return ch.Terminal
	}
	return nil
}

// again picks the chain that a connection would get if it came now; ci is what has
// become of it.
func (c *compiled) again(ci *streaminfo.Conn) *Chain {
	if ci.TLS == nil {
		return c.selector.pick(ci)
	}
	arrived, _ := arrivals.Get().(*streaminfo.Conn)
	*arrived = *ci // before its handshake
	defer func() {
		*arrived = streaminfo.Conn{}
		arrivals.Put(arrived)
	}()
	arrived.TLS = nil
	if arrived.NameFromTLS {
		arrived.RequestedServerName = ""
	}
	return c.selector.pick(arrived)
}

// arrivals are for again: each tunnel that is opened is judged once by what came
// into force meanwhile.
var arrivals = sync.Pool{New: func() any { return new(streaminfo.Conn) }}

// review says why cur would not admit the connection, nil if it would, or if what
// decides about it is what has admitted it.
func (cn *connection) review(cur *compiled) (d *filters.Denied) {
	defer func() {
		if p := recover(); p != nil { // as if it came now
			cur.reportPanic("a network filter that reviews a connection", p)
			d = &filters.Denied{Details: "network_filter_error"}
		}
	}()
	next := cur.again(cn.info)
	if next == nil || next == cn.chain {
		return nil
	}
	if next.Policy != cn.chain.Policy {
		if next.Refuses != nil {
			return next.Refuses
		}
		fc := cn.facts()
		for _, f := range next.Network {
			if r, ok := f.(filters.Reviewer); ok {
				if d := r.Review(fc); d != nil {
					return d
				}
			}
		}
	}
	return next.revokedPeer(cn.conn)
}

// facts are what a review goes by.
func (cn *connection) facts() *filters.Connection {
	info := &streaminfo.Info{Conn: cn.info, Start: cn.info.Start}
	info.FilterState.Reset(&cn.info.FilterState)
	if k := cn.known; k != nil {
		info.FilterState.Reset(&k.state)
		info.Metadata = k.metadata
	}
	return &filters.Connection{Info: info}
}

// revokedPeer says that the certificate of the peer of conn, which was admitted,
// is revoked.
func (c *Chain) revokedPeer(conn netio.Conn) *filters.Denied {
	r, ok := c.TLS.(PeerReviewer)
	if !ok {
		return nil
	}
	cs := conn.TLS()
	if cs == nil {
		return nil
	}
	err := r.Revoked(cs)
	if err == nil {
		return nil
	}
	return &filters.Denied{
		Details: "certificate_revoked", Decision: &streaminfo.Decision{Filter: "tls", Reason: "certificate_revoked", Why: err.Error},
	}
}

// revoke ends a connection that was admitted.
func (cn *connection) revoke(d *filters.Denied) {
	if cn.revoked.CompareAndSwap(nil, d.Revocation()) {
		cn.cut(errRevoked)
	}
}
