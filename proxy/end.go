package proxy

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/fairlead-mesh/fairlead/proxy/listener"
)

// DrainListeners stops accepting (unless graceful) and asks all connections to
// end in order, as Envoy's /drain_listeners.
func (s *Server) DrainListeners(graceful bool) { s.drain(graceful, false) }

// DrainInbound is DrainListeners for listeners with traffic direction INBOUND.
func (s *Server) DrainInbound(graceful bool) { s.drain(graceful, true) }

// shut is which listeners have stopped.
type shut uint8

const (
	shutNone shut = iota
	shutInbound
	shutAll
)

func (s *Server) drain(graceful, inboundOnly bool) {
	s.draining.Store(true)
	s.mu.Lock()
	switch {
	case graceful:
	case inboundOnly:
		s.shut = max(s.shut, shutInbound)
	default:
		s.shut = shutAll
	}
	ls := make([]*listener.Listener, 0, len(s.listeners))
	for _, l := range s.listeners {
		if c := l.Config(); inboundOnly && (c == nil || c.Spec.Direction != "inbound") {
			continue
		}
		ls = append(ls, l)
	}
	s.mu.Unlock()
	for _, l := range ls {
		if !graceful {
			l.StopAccepting()
		}
		l.Drain(0)
	}
}

// Draining tells whether DrainListeners or DrainInbound was called.
func (s *Server) Draining() bool { return s.draining.Load() }

// open yields the listeners that may have connections: those of the configuration
// and those that were removed.
func (s *Server) open(yield func(*listener.Listener) bool) {
	for _, l := range *s.byName.Load() { // first: one that is removed meanwhile is seen, or seen twice
		if !yield(l) {
			return
		}
	}
	for _, l := range s.leaving() {
		if !yield(l) {
			return
		}
	}
}

// Active is the number of downstream connections on sockets. Internal hops are
// not counted: they end with what they serve, or are idle connections to
// upstreams.
func (s *Server) Active() int64 {
	var n int64
	for l := range s.open {
		if c := l.Config(); c == nil || !c.Spec.Internal {
			n += l.Active()
		}
	}
	return n
}

// Shutdown drains for at most ctx and then closes everything.
func (s *Server) Shutdown(ctx context.Context) error {
	s.DrainListeners(false)
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for s.accepting() || s.Active() > 0 {
		select {
		case <-ctx.Done():
			n := s.Active()
			s.Close()
			return fmt.Errorf("proxy: %d connections were cut at the end of the drain time", n)
		case <-t.C:
		}
	}
	s.Close()
	return nil
}

// accepting reports whether a socket still takes what the kernel has accepted.
func (s *Server) accepting() bool {
	for l := range s.open {
		if l.Accepting() {
			return true
		}
	}
	return false
}

// Close cuts every connection and releases everything.
func (s *Server) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	ls := slices.AppendSeq(slices.Clone(s.leaving()), maps.Values(s.listeners))
	s.mu.Unlock()
	s.StartServing() // no Apply waits any more
	s.modules.Close()
	s.workshop.close()
	for _, l := range ls {
		l.Close()
	}
	awaitEnds(ls)
	s.calm()
	s.shared.Finish() // exporters send what they have, over clusters
	s.clusters.Close()
	s.secrets.Close()
	s.peers.close()
	s.frees.close()
	if err := s.logs.Close(); err != nil {
		s.log.Warn("closing access logs", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releasePending()
	if snap := s.snapshot.Load(); snap != nil {
		for c := range usedBy(snap) {
			s.releaseChains([]*builtChain{c})
		}
		for h := range holdsOf(snap) {
			h.release()
		}
	}
	for len(s.outdated) > 0 {
		s.releaseUnused(true)
	}
}

// awaitEnds waits until connections that were cut have ended, and logged that.
// They need no more than the processor; one that hangs is not waited for.
func awaitEnds(ls []*listener.Listener) {
	end := time.Now().Add(2 * time.Second)
	for _, l := range ls {
		for l.Active() > 0 && time.Now().Before(end) {
			time.Sleep(time.Millisecond)
		}
	}
}
