package proxy

import (
	"math"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy/secret"
)

// certificateStats tells of the proxy's own certificates that states lists: when
// each expires, and Envoy's days until the first does (0 once one has expired,
// 4294967295 without any). They are looked at when metrics are read. Trusted CAs
// don't count, unlike in Envoy.
func certificateStats(r *stats.Registry, states func() []secret.State) {
	label := func(name string) stats.Label { return stats.Label{Name: "envoy_tls_certificate", Value: name} }
	days := r.Scope("").Gauge("envoy_server_days_until_first_cert_expiring")
	shown := map[string]*stats.Gauge{}
	r.OnCollect(func() {
		ends := map[string]int64{} // inline certificates share a name
		for _, st := range states() {
			if st.Leaf == nil {
				continue
			}
			at := st.Leaf.NotAfter.Unix()
			if other, ok := ends[st.Name]; !ok || at < other {
				ends[st.Name] = at
			}
		}
		first, now := int64(math.MaxUint32), time.Now().Unix()
		for name, at := range ends {
			g := shown[name]
			if g == nil {
				g = r.Scope("").Gauge("fairlead_certificate_expiration_unix_time_seconds", label(name))
				shown[name] = g
			}
			g.Set(at)
			first = min(first, max(at-now, 0)/(24*60*60))
		}
		for name := range shown {
			if _, is := ends[name]; !is {
				r.Forget(label(name))
				delete(shown, name)
			}
		}
		days.Set(first)
	})
}
