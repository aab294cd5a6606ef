package peers

import (
	"encoding/base64"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Bounds of descriptions that other workloads send.
const (
	maxBaggage  = 8 << 10
	maxMembers  = 64
	maxExchange = 16 << 10
)

var (
	baggagePeers  table
	exchangePeers table
)

// FromBaggage describes a peer by Istio's baggage header (W3C Baggage). It
// returns nil if value says nothing about a workload or is too large.
func FromBaggage(value string) *streaminfo.Peer {
	if value == "" || len(value) > maxBaggage {
		return nil
	}
	return baggagePeers.intern(value, parseBaggage)
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

// FromExchange describes a peer by the x-envoy-peer-metadata header: base64 of
// a google.protobuf.Struct. It returns nil if value is malformed or too large.
// labels are kept in Peer.Labels.
func FromExchange(value string, labels []string) *streaminfo.Peer {
	if value == "" || len(value) > maxExchange {
		return nil
	}
	if len(labels) > 0 {
		return exchangePeers.intern(strings.Join(labels, ",")+"|"+value, func(s string) *streaminfo.Peer {
			_, v, _ := strings.Cut(s, "|")
			return parseExchange(v, labels)
		})
	}
	return exchangePeers.intern(value, func(s string) *streaminfo.Peer { return parseExchange(s, nil) })
}

func parseExchange(value string, labels []string) *streaminfo.Peer {
	b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
	if err != nil {
		return nil
	}
	m := &structpb.Struct{}
	if err := (proto.UnmarshalOptions{RecursionLimit: 16}).Unmarshal(b, m); err != nil {
		return nil
	}
	return FromStruct(m.AsMap(), labels)
}

// Exchange is the x-envoy-peer-metadata header that describes p.
func Exchange(p *streaminfo.Peer) string {
	labels := map[string]any{}
	for _, l := range [...]struct{ k, v string }{
		{"service.istio.io/canonical-name", p.CanonicalName},
		{"service.istio.io/canonical-revision", p.CanonicalRevision},
		{"app", p.AppName},
		{"version", p.AppVersion},
	} {
		if l.v != "" {
			labels[l.k] = l.v
		}
	}
	for k, v := range p.Labels {
		labels[k] = v
	}
	m := map[string]any{"LABELS": labels}
	for _, f := range [...]struct{ k, v string }{
		{"NAME", p.InstanceName}, {"NAMESPACE", p.Namespace}, {"WORKLOAD_NAME", p.Workload}, {"CLUSTER_ID", p.ClusterID}, {"IDENTITY", p.Identity},
	} {
		if f.v != "" {
			m[f.k] = f.v
		}
	}
	if p.WorkloadType != "" {
		m["OWNER"] = "kubernetes://apis/apps/v1/namespaces/" + p.Namespace + "/" + p.WorkloadType + "s/" + p.Workload
	}
	s, err := structpb.NewStruct(m)
	if err != nil {
		return "" // a label that is not UTF-8
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
	if err != nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(b)
}

// FromStruct describes a peer by node metadata as Istio exchanges it. Of the
// labels that have no field of their own, those in keep are kept.
func FromStruct(m map[string]any, keep []string) *streaminfo.Peer {
	str := func(m map[string]any, k string) string { s, _ := m[k].(string); return s }
	labels, _ := m["LABELS"].(map[string]any)
	p := &streaminfo.Peer{
		InstanceName: str(m, "NAME"), Namespace: str(m, "NAMESPACE"), Workload: str(m, "WORKLOAD_NAME"), ClusterID: str(m, "CLUSTER_ID"),
		Identity: str(m, "IDENTITY"), Region: str(m, "REGION"), Zone: str(m, "AVAILABILITY_ZONE"),
		CanonicalName: str(labels, "service.istio.io/canonical-name"), CanonicalRevision: str(labels, "service.istio.io/canonical-revision"),
		AppName: str(labels, "app.kubernetes.io/name"), AppVersion: str(labels, "app.kubernetes.io/version"),
	}
	if p.AppName == "" {
		p.AppName = str(labels, "app")
	}
	if p.AppVersion == "" {
		p.AppVersion = str(labels, "version")
	}
	p.WorkloadType = ownerKind(str(m, "OWNER"))
	for _, k := range keep {
		if v := str(labels, k); v != "" {
			if p.Labels == nil {
				p.Labels = map[string]string{}
			}
			p.Labels[k] = v
		}
	}
	return p
}

// ownerKind finds the kind in ".../deployments/name".
func ownerKind(owner string) string {
	parts := strings.Split(owner, "/")
	if len(parts) < 2 {
		return ""
	}
	kind := strings.TrimSuffix(parts[len(parts)-2], "s")
	if slices.Contains([]string{"deployment", "pod", "job", "cronjob"}, kind) {
		return kind
	}
	return ""
}
