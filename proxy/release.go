package proxy

import (
	"io"
	"time"
)

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
			s.later(h.release)
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

// later runs f under the lock once streams of replaced parts have had the drain
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

// releaseFilters gives back filters that a table or a chain no longer has: those
// with something to close once streams have had the drain time, the others at once.
// The caller holds the lock.
func (s *Server) releaseFilters(refs []*filterRef) {
	var closers, rest []*filterRef
	for _, r := range refs {
		if _, ok := r.filter.(io.Closer); ok {
			closers = append(closers, r)
		} else {
			rest = append(rest, r)
		}
	}
	s.filters.release(rest, s.log)
	if len(closers) > 0 {
		s.later(func() { s.filters.release(closers, s.log) })
	}
}

func (s *Server) releaseChains(cs []*builtChain) {
	for _, c := range cs {
		for _, h := range c.hcms {
			s.filters.release(h.chains.base, s.log)
			s.filters.release(h.chains.refs, s.log)
			h.chains.base, h.chains.refs = nil, nil
			for _, f := range h.release {
				f()
			}
			h.release = nil
		}
		c.hold.release()
	}
}

// hold is what a part of the configuration shares with others until it is
// released: exporters of its access logs.
type hold struct{ releases []func() }

func (h *hold) release() {
	if h == nil {
		return
	}
	for _, f := range h.releases {
		f()
	}
	h.releases = nil
}
