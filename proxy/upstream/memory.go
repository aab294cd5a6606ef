package upstream

import (
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// ClusterMemory is what the pooled connections of a cluster hold in buffers.
type ClusterMemory struct {
	Name string
	transport.Memory
}

// Memory returns the clusters that have connections, in no particular order.
func (m *Manager) Memory() []ClusterMemory {
	var out []ClusterMemory
	m.mu.Lock()
	var all []*Cluster
	for c := range m.each {
		all = append(all, c)
	}
	m.mu.Unlock()
	for _, c := range all {
		one := ClusterMemory{Name: c.Name()}
		for _, h := range c.allHosts() {
			h.st.memory(&one.Memory)
		}
		if one.Connections > 0 {
			out = append(out, one)
		}
	}
	return out
}

// memory adds the connections of the host's pools to m.
func (st *hostState) memory(m *transport.Memory) {
	var pools []*pool
	for prio := range st.fast {
		for proto := range st.fast[prio] {
			if p := st.fast[prio][proto].Load(); p != nil {
				pools = append(pools, p)
			}
		}
	}
	st.mu.Lock()
	for _, p := range st.keyed {
		pools = append(pools, p)
	}
	st.mu.Unlock()
	for _, p := range pools {
		p.mu.Lock()
		conns := p.madeLocked()
		p.mu.Unlock()
		for _, pc := range conns {
			m.Add(pc.ClientConn)
		}
	}
}
