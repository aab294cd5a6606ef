package proxy

import (
	"io"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/usage"
	"github.com/fairlead-mesh/fairlead/routing"
)

// outdated is a part of a former configuration that streams or connections may
// still use. As in Envoy it lives as long as they do.
type outdated struct {
	release func()
	unused  atomic.Bool
}

// whenUnused returns what anybody may call, once, when nothing uses a part any more
// that was replaced: release runs soon after it, with the lock held. The caller holds
// the lock.
func (s *Server) whenUnused(release func()) (unused func()) {
	o := &outdated{release: release}
	s.outdated[o] = true
	return func() {
		o.unused.Store(true)
		s.frees.start(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.releaseUnused(false)
		})
	}
}

// releaseUnused releases what nothing uses any more, or all that was replaced. The
// caller holds the lock.
func (s *Server) releaseUnused(all bool) {
	for o := range s.outdated {
		if all || o.unused.Load() {
			delete(s.outdated, o)
			o.release()
		}
	}
}

// install makes t, and the chain without overrides, what new streams of h begin with.
// Filters that only former ones run through are closed behind the last of these. The
// caller holds the lock.
func (s *Server) install(h *builtHCM, t *routing.Table) {
	old := h.held
	h.held = h.chains.renew()
	for _, r := range h.chains.base {
		r.refs++
		h.held = append(h.held, r)
	}
	h.routes.Replace(t, h.unrouted, s.whenUnusedRelease(old))
}

// whenUnusedRelease is whenUnused for filters. Those with nothing to close are given
// back now; nil is that there are no others.
func (s *Server) whenUnusedRelease(refs []*filterRef) (unused func()) {
	var closers, rest []*filterRef
	for _, r := range refs {
		if _, ok := r.filter.(io.Closer); ok {
			closers = append(closers, r)
		} else {
			rest = append(rest, r)
		}
	}
	s.filters.release(rest, s.log)
	if len(closers) == 0 {
		return nil
	}
	return s.whenUnused(func() { s.filters.release(closers, s.log) })
}

// releaseReplaced closes the filters of chains that are gone, once their
// streams have had the drain time.
func (s *Server) releaseReplaced(prev, snap *Snapshot) {
	if prev == nil {
		return
	}
	used := usedBy(snap)
	var gone []*builtChain
	for c := range usedBy(prev) {
		if !used[c] {
			gone = append(gone, c)
		}
	}
	held := holdsOf(snap)
	for h := range holdsOf(prev) {
		if !held[h] && h != nil && len(h.releases) > 0 {
			h.users.Retire(s.whenUnused(h.release))
		}
	}
	if len(gone) == 0 {
		return
	}
	now, draining := time.Now(), s.drainingChains()
	for _, c := range gone {
		draining = append(draining, drainingChain{chain: c.chain, filled: now.Add(entryTime), until: now.Add(s.opt.DrainTime)})
	}
	s.linger.chains = draining
	s.later(func() { s.releaseChains(gone) })
}

// later runs f under the lock once connections of replaced parts have had the drain
// time. The caller holds the lock.
func (s *Server) later(f func()) { s.laterIn(s.opt.DrainTime+time.Second, f) }

func (s *Server) laterIn(d time.Duration, f func()) {
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.pending[t] != nil { // else Close has
			delete(s.pending, t)
			f()
		}
	})
	s.pending[t] = f
}

// releasePending does at once what later was told. The caller holds the lock.
func (s *Server) releasePending() {
	for t, f := range s.pending {
		t.Stop()
		delete(s.pending, t)
		f()
	}
}

// releaseChains closes what chains hold whose connections have been cut, behind the
// last of them: the time to end is theirs. The caller holds the lock.
func (s *Server) releaseChains(cs []*builtChain) {
	for _, c := range cs {
		if c.chain.Active() > 0 && !s.closed {
			s.laterIn(time.Second, func() { s.releaseChains([]*builtChain{c}) })
			continue
		}
		release := c.hold.release
		for _, h := range c.hcms {
			then := release
			release = func() { h.routes.Close(s.whenUnused(func() { s.releaseManager(h); then() })) }
		}
		release()
	}
}

// releaseManager closes what a connection manager holds that no stream uses.
func (s *Server) releaseManager(h *builtHCM) {
	s.filters.release(h.chains.base, s.log)
	s.filters.release(h.held, s.log)
	h.chains.base, h.held = nil, nil
	for _, f := range h.release {
		f()
	}
	h.release = nil
}

// hold is what a part of the configuration shares with others until it is
// released: exporters of its access logs.
type hold struct {
	releases []func()
	// users are the connections of a listener whose own logs these are.
	users usage.Count
}

func (h *hold) release() {
	if h == nil {
		return
	}
	for _, f := range h.releases {
		f()
	}
	h.releases = nil
}
