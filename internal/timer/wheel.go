package timer

import "time"

// state is replaced by the wheel; until then it wraps a runtime timer.
type state struct{ t *time.Timer }

func (s *state) arm(d time.Duration, f func()) {
	s.stop()
	if d > 0 {
		s.t = time.AfterFunc(d, f)
	}
}

func (s *state) stop() bool {
	if s.t == nil {
		return false
	}
	ok := s.t.Stop()
	s.t = nil
	return ok
}
