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

// DescribeCluster records in u the cluster called name as that of a request; it
// does nothing if there is no such cluster.
func (m *Manager) DescribeCluster(name string, u *streaminfo.Upstream) {
	if c := m.Cluster(name); c != nil {
		u.Cluster, u.ClusterRaw, u.ClusterMetadata = c.StatName(), c.Name(), &c.spec.Metadata
	}
}
