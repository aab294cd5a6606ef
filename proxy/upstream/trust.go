package upstream

import "time"

// A host that has kept its connections trustAfter times in a row after an answer
// is trusted to keep one for trustFor more: a request that may be sent again is
// then sent without a look at the connection. A connection that has ended costs
// that trust for a while. Without that, a host that ends connections behind its
// answers would be sent every request twice.
const (
	trustAfter = 64
	trustLost  = -4096
	trustFor   = time.Millisecond
)

// trusts counts one more use of pc, and tells whether it may go without a look.
// The caller holds p.mu.
func (p *pool) trusts(pc *pooledConn, at time.Time) bool {
	if pc.multiplex || pc.served.Load() == 0 {
		return false
	}
	if p.trust < trustAfter {
		p.trust++
		return false
	}
	if at.IsZero() {
		return false
	}
	idle := at.Sub(pc.start) - time.Duration(pc.idleSince.Load())
	return idle >= 0 && idle < trustFor
}

// distrust takes back what trusts counted.
func (p *pool) distrust() {
	p.mu.Lock()
	p.trust = trustLost
	p.mu.Unlock()
}

// Ended notes that the connection turned out to have ended when the stream was
// begun: connections to the host are looked at again before they are used.
func (s *Stream) Ended() { s.pc.p.distrust() }
