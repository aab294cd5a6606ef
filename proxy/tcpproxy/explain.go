package tcpproxy

import (
	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/explain"
)

// Plan says where Serve would take the connection: by the first of weighted
// clusters, if there are several. Nothing is opened or counted.
func (f *Filter) Plan(c *filters.Connection) (out *explain.Upstream, weighted []explain.Choice) {
	out = &explain.Upstream{}
	name := c.Info.FilterState.GetString(clusterKey)
	if name == "" {
		name = f.cfg.Cluster
		for i := range f.cfg.Weighted {
			w := &f.cfg.Weighted[i]
			if name == "" && w.Weight > 0 {
				name = w.Name
			}
			weighted = append(weighted, explain.Choice{Cluster: w.Name, Weight: uint64(w.Weight), Chosen: w.Name == name})
		}
	}
	out.Cluster = name
	cl := f.d.Clusters.Cluster(name)
	if cl == nil {
		out.Problem = "there is no such cluster"
		return out, weighted
	}
	cl.Explain(out)
	out.Timeouts = &explain.Timeouts{
		Connect: explain.Duration(cl.Spec().ConnectTimeout), StreamIdle: explain.Duration(f.cfg.IdleTimeout), MaxDuration: explain.Duration(f.cfg.MaxConnectionDuration),
	}
	return out, weighted
}
