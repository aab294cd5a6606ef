package peers

import (
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Bounds of baggage that other workloads send.
const (
	maxBaggage = 8 << 10
	maxMembers = 64
)

var baggagePeers table

// FromBaggage describes a peer by Istio's baggage header (W3C Baggage). It
// returns nil if value says nothing about a workload or is too large.
func FromBaggage(value string) *streaminfo.Peer {
	if value == "" || len(value) > maxBaggage {
		return nil
	}
	return baggagePeers.intern(value, parseBaggage)
}

// FromBaggageOf is FromBaggage for a peer whose identity is known otherwise, ""
// if it isn't.
func FromBaggageOf(value, identity string) *streaminfo.Peer {
	if identity == "" {
		return FromBaggage(value)
	}
	if value == "" || len(value)+len(identity) > maxBaggage {
		return nil
	}
	return baggagePeers.intern(identity+"\x00"+value, func(s string) *streaminfo.Peer {
		identity, value, _ := strings.Cut(s, "\x00")
		p := parseBaggage(value)
		if p != nil {
			p.Identity = identity
		}
		return p
	})
}

func parseBaggage(value string) *streaminfo.Peer {
	p := &streaminfo.Peer{}
	known, members := false, 0
	for member := range strings.SplitSeq(value, ",") {
		if members++; members > maxMembers {
			break
		}
		member, _, _ = strings.Cut(member, ";") // properties
		k, v, ok := strings.Cut(member, "=")
		if !ok {
			continue
		}
		v = strings.TrimSpace(v)
		if !printable(v) {
			continue
		}
		known = setBaggage(p, strings.TrimSpace(k), v) || known
	}
	if !known {
		return nil
	}
	if p.AppName == "" {
		p.AppName = p.CanonicalName
	}
	if p.CanonicalName == "" {
		p.CanonicalName = p.AppName
	}
	if p.AppVersion == "" {
		p.AppVersion = p.CanonicalRevision
	}
	if p.CanonicalRevision == "" {
		p.CanonicalRevision = p.AppVersion
	}
	return p
}

func setBaggage(p *streaminfo.Peer, k, v string) bool {
	switch k {
	case "k8s.namespace.name":
		p.Namespace = v
	case "k8s.cluster.name":
		p.ClusterID = v
	case "service.name":
		p.CanonicalName = v
	case "service.version":
		p.CanonicalRevision = v
	case "app.name":
		p.AppName = v
	case "app.version":
		p.AppVersion = v
	case "k8s.instance.name":
		p.InstanceName = v
	case "cloud.region":
		p.Region = v
	case "cloud.availability_zone":
		p.Zone = v
	case "k8s.deployment.name", "k8s.pod.name", "k8s.cronjob.name", "k8s.job.name":
		p.Workload, p.WorkloadType = v, strings.TrimSuffix(strings.TrimPrefix(k, "k8s."), ".name")
	default:
		return false
	}
	return true
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// Baggage is the header value that describes p.
func Baggage(p *streaminfo.Peer) string {
	var parts []string
	add := func(k, v string) {
		if v != "" && printable(v) && !strings.ContainsAny(v, ",;=") {
			parts = append(parts, k+"="+v)
		}
	}
	kind := p.WorkloadType
	if kind == "" {
		kind = "pod"
	}
	or := func(a, b string) string {
		if a != "" {
			return a
		}
		return b
	}
	service, version := or(p.CanonicalName, p.AppName), or(p.CanonicalRevision, p.AppVersion)
	add("k8s."+kind+".name", p.Workload)
	add("service.name", service)
	if p.AppName != service {
		add("app.name", p.AppName)
	}
	add("service.version", version)
	if p.AppVersion != version {
		add("app.version", p.AppVersion)
	}
	add("k8s.namespace.name", p.Namespace)
	add("k8s.cluster.name", p.ClusterID)
	add("k8s.instance.name", p.InstanceName)
	add("cloud.region", p.Region)
	add("cloud.availability_zone", p.Zone)
	return strings.Join(parts, ",")
}
