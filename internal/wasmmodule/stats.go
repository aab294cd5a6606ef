package wasmmodule

import "github.com/fairlead-mesh/fairlead/internal/stats"

// storeStats are "fairlead_wasm_…".
type storeStats struct {
	hits, misses *stats.Counter
	fetches      *stats.CounterFamily
}

func (st *storeStats) register(sc *stats.Scope, s *Store) {
	lookups := func(hit string) *stats.Counter {
		return sc.Counter("module_cache_lookups_total", stats.Label{Name: "hit", Value: hit})
	}
	st.hits, st.misses = lookups("true"), lookups("false")
	st.fetches = sc.CounterFamily("module_fetches_total", "Attempts to fetch a WebAssembly module, by result.", "result")
	sc.GaugeFunc("module_cache_entries", func() float64 { n, _ := s.cache.size(); return float64(n) })
	sc.GaugeFunc("module_cache_bytes", func() float64 { _, n := s.cache.size(); return float64(n) })
	sc.GaugeFunc("modules_missing", func() float64 { return float64(s.missing()) })
}

func (st *storeStats) lookup(hit bool) {
	if hit {
		st.hits.Inc()
	} else {
		st.misses.Inc()
	}
}

func (st *storeStats) fetched(result string) {
	st.fetches.With(result).Inc()
}

// missing is how many of the wanted modules are not here.
func (s *Store) missing() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, m := range s.modules {
		if m.sum == "" {
			n++
		}
	}
	return n
}
