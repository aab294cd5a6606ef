package upstream

import (
	"crypto/tls"
	"errors"
	"sync"

	"github.com/fairlead-mesh/fairlead/internal/linked"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// peerReviewer is a ClientTLS that knows lists of revoked certificates.
type peerReviewer interface {
	// Revoked says which certificate of the peer is on a list that is in force
	// now, nil if none is.
	Revoked(cs *tls.ConnectionState) error
}

// peers are the open connections whose peers have certificates, of all clusters,
// also of those that drain.
type peers struct {
	mu    sync.Mutex
	list  linked.List[peer, *peer]
	ended *stats.Counter
}

// peer is one of them.
type peer struct {
	linked.Node[peer] // in peers.list

	conn *connection
	c    *Cluster
}

var errRevoked = errors.New("the certificate of the peer was revoked")

// join lists conn until leave. It returns nil for one without certificates.
func (c *Cluster) join(conn *connection) *peer {
	if _, ok := conn.client.(peerReviewer); !ok || conn.TLS() == nil {
		return nil
	}
	ps, p := &c.m.peers, &peer{conn: conn, c: c}
	ps.mu.Lock()
	ps.list.PushFront(p)
	ps.mu.Unlock()
	p.review() // a list may have come since the handshake
	return p
}

// leave takes p off the list; nil is on none.
func (c *Cluster) leave(p *peer) {
	if p == nil {
		return
	}
	ps := &c.m.peers
	ps.mu.Lock()
	ps.list.Remove(p)
	ps.mu.Unlock()
}

// ReviewPeers ends connections, pooled ones and others, whose peers' certificates
// were revoked.
func (m *Manager) ReviewPeers() {
	ps := &m.peers
	ps.mu.Lock()
	open := ps.list.Snapshot()
	ps.mu.Unlock()
	for _, p := range open {
		p.review()
	}
}

// review ends the connection if its peer's certificate is revoked.
func (p *peer) review() {
	r, _ := p.conn.client.(peerReviewer)
	err := r.Revoked(p.conn.TLS())
	if err == nil {
		return
	}
	p.c.m.peers.ended.Inc()
	p.c.m.log.Warn("upstream connection ended: a certificate of its peer was revoked", "cluster", p.c.Name(), "host", p.conn.host.String(), "error", err)
	p.c.leave(p)
	p.conn.Interrupt(errRevoked)
	p.conn.Reset()
}
