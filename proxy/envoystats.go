package proxy

import "github.com/fairlead-mesh/fairlead/internal/stats"

// listenerManagerStats are envoy_listener_manager_*.
type listenerManagerStats struct{ added, modified, removed, created *stats.Counter }

func (t *listenerManagerStats) register(s *Server) {
	sc := s.stats.Scope("envoy_listener_manager_")
	t.added, t.modified, t.removed = sc.Counter("listener_added"), sc.Counter("listener_modified"), sc.Counter("listener_removed")
	t.created = sc.Counter("listener_create_success")
	sc.GaugeFunc("total_listeners_active", func() float64 { return float64(len(*s.byName.Load())) })
	sc.GaugeFunc("workers_started", func() float64 { return float64(s.st.live.Value()) })
}

// applied counts a listener that is new or has changed.
func (t *listenerManagerStats) applied(isNew bool) {
	if isNew {
		t.added.Inc()
	} else {
		t.modified.Inc()
	}
	t.created.Inc()
}

// connections is how many clients the listeners have.
func (s *Server) connections() float64 {
	var n int64
	for l := range s.open {
		n += l.Active()
	}
	return float64(n)
}
