package upstream

import (
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

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

// HTTPVersion returns what the cluster called name is spoken to on behalf of a
// request that came as v: HTTP/1.1, or HTTP/2, also where ALPN may still choose
// less. It is 0 if there is no such cluster.
func (m *Manager) HTTPVersion(name string, v message.Version) message.Version {
	c := m.Cluster(name)
	if c == nil {
		return 0
	}
	if c.protocolFor(&ConnectOptions{Version: v}) == http1 {
		return message.HTTP11
	}
	return message.HTTP2
}
