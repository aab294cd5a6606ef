package h1

import (
	"time"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/timer"
)

// rareTimers are what most connections have no use for.
type rareTimers struct{ deadline, age timer.Timer }

// timers returns the rare ones. Only the connection's goroutine may call it.
func (s *Server) timers() *rareTimers {
	if s.rare == nil {
		s.rare = &rareTimers{}
	}
	return s.rare
}

func (s *Server) stopDeadline() {
	if s.rare != nil {
		s.rare.deadline.Stop()
	}
}

func (s *Server) idleTimeout() time.Duration {
	if s.cfg.IdleTimeout == 0 {
		return defaultIdleTimeout
	}
	return s.cfg.IdleTimeout
}

// armIdle notes that the connection is idle from now on. The timer that runs is
// left to find out.
func (s *Server) armIdle(now time.Time) {
	d := s.idleTimeout()
	if d <= 0 {
		return
	}
	s.idleSince.Store(int64(now.Sub(epoch)))
	if !s.idling.Swap(true) {
		s.idle.ArmAt(now, d, s.idleExpired)
	}
}

// idleExpired ends the connection if it has been idle for all the time.
func (s *Server) idleExpired() {
	s.idling.Store(false)
	if s.state.Load() != stateIdle || s.heading.Load() != 0 { // the request's end arms it
		return
	}
	since, d := s.idleSince.Load(), s.idleTimeout()
	if rest := d - (time.Since(epoch) - time.Duration(since)); rest > 0 {
		if !s.idling.Swap(true) {
			s.idle.Arm(rest, s.idleExpired)
		}
		return
	}
	if s.state.CompareAndSwap(stateIdle, stateClosing) {
		netio.InterruptRead(s.rd.c, errIdle)
	}
}

// headExpired gives up the head of the nth request if that is still incomplete: it
// may come late, when that was served and the connection is idle again. heading is
// n while the timer may still end the request, and negative once it has.
func (s *Server) headExpired(n int32) {
	if s.heading.CompareAndSwap(n, -1) && s.state.CompareAndSwap(stateIdle, stateClosing) {
		netio.InterruptRead(s.rd.c, errTimedOut)
	}
}

// tooOld drains a connection that has reached MaxConnectionDuration; an idle
// one ends, as in Envoy.
func (s *Server) tooOld() {
	s.Drain()
	if s.state.CompareAndSwap(stateIdle, stateClosing) {
		netio.InterruptRead(s.rd.c, errClosed)
	}
}
