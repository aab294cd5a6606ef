package proxy

import (
	"fmt"
	"runtime/debug"
	"sync"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/proxy/hcm"
	"github.com/fairlead-mesh/fairlead/proxy/listener"
)

// policies are the filters that decide about requests and can be asked again, if
// they are the same in all chains of a connection manager.
type policies struct {
	chain []filters.HTTPFilter // one of them
	mixed bool
}

func policiesOf(h *builtHCM) policies {
	p := policies{chain: h.unrouted}
	for _, c := range h.chains.chains {
		p.mixed = p.mixed || !hcm.SamePolicies(c, p.chain)
	}
	return p
}

// noteReview has what is open in a listener judged again if its filters or routes,
// which were replaced, may have changed what decides about requests.
func (b *builder) noteReview(name string, h *builtHCM) {
	old := h.policies
	h.policies = policiesOf(h)
	if !old.mixed && !h.policies.mixed && hcm.SamePolicies(old.chain, h.policies.chain) {
		return
	}
	if b.review == nil {
		b.review = map[string]bool{}
	}
	b.review[name] = true
}

// review judges what is open in listeners whose chains stay and decide otherwise
// now. Others do that when they are updated.
func (s *Server) review(names map[string]bool) {
	for name := range names {
		if l := s.listeners[name]; l != nil {
			l.Review()
		}
	}
}

// follow lets l, which is new, judge what is open of listeners of its name that
// were removed.
func (s *Server) follow(l *listener.Listener) {
	for _, r := range s.leaving() {
		if r.Name() == l.Name() {
			l.Follow(r)
		}
	}
}

// oneAtATime runs something by itself, one at a time: reviews of peers, whose
// revocation lists change while configuration is applied, and apart from it; releases
// of what nothing uses any more, as whoever used it last can't wait.
type oneAtATime struct {
	mu                     sync.Mutex
	running, again, closed bool
	wg                     sync.WaitGroup
}

// start runs f, or once more if it runs.
func (p *oneAtATime) start(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
	case p.running:
		p.again = true
	default:
		p.running = true
		p.wg.Go(func() {
			for more := true; more; {
				f()
				p.mu.Lock()
				more, p.again = p.again && !p.closed, false
				p.running = more
				p.mu.Unlock()
			}
		})
	}
}

// close waits for what runs; nothing follows.
func (p *oneAtATime) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.wg.Wait()
}

// reviewPeers ends connections of either side whose peers' certificates were
// revoked.
func (s *Server) reviewPeers() {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic while looking for revoked certificates", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	for _, l := range *s.byName.Load() {
		l.ReviewPeers()
	}
	s.clusters.ReviewPeers()
	for _, l := range s.leaving() {
		l.ReviewPeers()
	}
}
