package upstream

import "github.com/fairlead-mesh/fairlead/internal/streaminfo"

// ClusterMetadata returns the static metadata of the cluster called name, nil
// if there is no such cluster. Filters use it before a host is picked.
func (m *Manager) ClusterMetadata(name string) *streaminfo.Metadata {
	c := m.Cluster(name)
	if c == nil {
		return nil
	}
	return &c.spec.Metadata
}
