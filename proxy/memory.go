package proxy

import (
	"cmp"
	"slices"

	"github.com/fairlead-mesh/fairlead/internal/admin"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
)

// memoryUse is /debug/memory.
func (p *Process) memoryUse() admin.MemoryUse {
	use := p.server.memoryUse()
	logs := admin.StoreUse{Name: "access logs"}
	logs.Held, logs.Bound = p.server.logs.Pending()
	use.Others = append(use.Others, logs)
	if p.client != nil {
		raw := admin.StoreUse{Name: "configuration as received"}
		v := p.client.View()
		for _, t := range p.client.Status().Types {
			for r := range v.All(t.TypeURL) {
				raw.Held += int64(len(r.Raw))
			}
		}
		use.Others = append(use.Others, raw)
	}
	return use
}

// memoryUse adds up what connections hold.
func (s *Server) memoryUse() admin.MemoryUse {
	var use admin.MemoryUse
	add := func(list *[]admin.BufferUse, kind, name string, m *transport.Memory) {
		*list = append(*list, admin.BufferUse{Name: name, Connections: m.Connections, Streams: m.Streams, Read: m.Read, Write: m.Write, Bound: m.Bound})
		for _, st := range m.Largest {
			use.Streams = append(use.Streams, admin.StreamUse{In: kind + " " + name, Peer: st.Peer, Stream: st.Stream, Held: st.Held, Bound: st.Bound})
		}
	}
	listeners := *s.byName.Load()
	for _, n := range sortedKeys(listeners) {
		m := listeners[n].Memory()
		add(&use.Listeners, "listener", n, &m)
	}
	clusters := s.clusters.Memory()
	slices.SortFunc(clusters, func(a, b upstream.ClusterMemory) int { return cmp.Compare(a.Name, b.Name) })
	for i := range clusters {
		add(&use.Clusters, "cluster", clusters[i].Name, &clusters[i].Memory)
	}
	slices.SortStableFunc(use.Streams, func(a, b admin.StreamUse) int { return cmp.Compare(b.Held, a.Held) })
	const named = 20
	use.Streams = use.Streams[:min(len(use.Streams), named)]
	return use
}
