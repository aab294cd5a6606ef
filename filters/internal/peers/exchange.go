package peers

import (
	"encoding/base64"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// maxExchange bounds the header that other workloads send.
const maxExchange = 16 << 10

var exchangePeers table

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
	if err := unmarshal(b, m); err != nil {
		return nil
	}
	return FromStruct(m.AsMap(), labels)
}

// unmarshal bounds the depth of what others send.
func unmarshal(b []byte, m proto.Message) error {
	return proto.UnmarshalOptions{RecursionLimit: 16}.Unmarshal(b, m)
}

// Exchange is the x-envoy-peer-metadata header that describes p.
func Exchange(p *streaminfo.Peer) string {
	b, err := marshal(exchanged(p))
	if err != nil {
		return "" // a label that is not UTF-8
	}
	return base64.StdEncoding.EncodeToString(b)
}

func marshal(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

// exchanged describes p by node metadata, as Istio exchanges it.
func exchanged(p *streaminfo.Peer) *structpb.Struct {
	str := structpb.NewStringValue
	labels := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for _, l := range [...]struct{ k, v string }{
		{"service.istio.io/canonical-name", p.CanonicalName},
		{"service.istio.io/canonical-revision", p.CanonicalRevision},
		{"app", p.AppName},
		{"version", p.AppVersion},
	} {
		if l.v != "" {
			labels.Fields[l.k] = str(l.v)
		}
	}
	for k, v := range p.Labels {
		labels.Fields[k] = str(v)
	}
	m := &structpb.Struct{Fields: map[string]*structpb.Value{"LABELS": structpb.NewStructValue(labels)}}
	for _, f := range [...]struct{ k, v string }{
		{"NAME", p.InstanceName},
		{"NAMESPACE", p.Namespace},
		{"WORKLOAD_NAME", p.Workload},
		{"CLUSTER_ID", p.ClusterID},
		{"IDENTITY", p.Identity},
		{"REGION", p.Region},
		{"AVAILABILITY_ZONE", p.Zone},
	} {
		if f.v != "" {
			m.Fields[f.k] = str(f.v)
		}
	}
	if p.WorkloadType != "" {
		m.Fields["OWNER"] = str("kubernetes://apis/apps/v1/namespaces/" + p.Namespace + "/" + p.WorkloadType + "s/" + p.Workload)
	}
	return m
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
