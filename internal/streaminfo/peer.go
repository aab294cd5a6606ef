package streaminfo

// Peer describes a workload as Istio's telemetry sees it: the object behind
// the filter-state keys downstream_peer and upstream_peer. A Peer is immutable
// once published; the workload table shares one Peer among all streams.
type Peer struct {
	Namespace, Workload, WorkloadType string
	CanonicalName, CanonicalRevision  string
	AppName, AppVersion               string
	ClusterID, InstanceName           string
	Identity, Region, Zone, NetworkID string
	Labels                            map[string]string
	// DenseID is a small number unique to this Peer in this process, for
	// metric caches keyed by integers; 0 means none.
	DenseID uint32
}

// Serialize returns the workload name.
func (p *Peer) Serialize() string { return p.Workload }

// Field implements Object with the names that istiod's tracing tags use:
// workload, namespace, service, revision, app, version, cluster, type, name,
// identity, region, zone.
func (p *Peer) Field(name string) (string, bool) {
	switch name {
	case "workload":
		return p.Workload, true
	case "namespace":
		return p.Namespace, true
	case "service":
		return p.CanonicalName, true
	case "revision":
		return p.CanonicalRevision, true
	case "app":
		return p.AppName, true
	case "version":
		return p.AppVersion, true
	case "cluster":
		return p.ClusterID, true
	case "type":
		return p.WorkloadType, true
	case "name":
		return p.InstanceName, true
	case "identity":
		return p.Identity, true
	case "region":
		return p.Region, true
	case "zone":
		return p.Zone, true
	}
	return "", false
}
