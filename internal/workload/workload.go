package workload

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"unique"

	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/internal/workload/workloadpb"
)

// Type URLs of what istiod sends.
const (
	WorkloadType      = "type.googleapis.com/istio.workload.Workload"
	AddressType       = "type.googleapis.com/istio.workload.Address"
	AuthorizationType = "type.googleapis.com/istio.security.Authorization"
)

// Tunnel is how a workload is reached.
type Tunnel uint8

// Tunnels.
const (
	TunnelNone Tunnel = iota
	TunnelHBONE
	// TunnelLegacy is LEGACY_ISTIO_MTLS, which nothing here speaks.
	TunnelLegacy
)

// Workload is istio.workload.Workload, decoded and with its defaults.
type Workload struct {
	UID, Name, Namespace, Network       string
	TrustDomain, ServiceAccount         string
	Node, WorkloadName, Kind, ClusterID string // Kind: deployment, cronjob, pod, job
	CanonicalName, CanonicalRevision    string
	// Hostname is resolved by DNS if there are no addresses.
	Hostname              string
	Addresses             []netip.Addr
	Tunnel                Tunnel
	NativeTunnel          bool
	Waypoint, Gateway     *Gateway // nil: none
	Policies              []string // namespace/name of selector policies
	Healthy               bool
	Services              map[string][]Port // by namespace/hostname
	AppTunnel             AppTunnel
	Region, Zone, SubZone string
	HostNetwork           bool
	Capacity              uint32
}

// AppTunnel is how a tunnel's payload reaches the application.
type AppTunnel struct {
	Proxy bool   // a PROXY protocol header precedes it
	Port  uint32 // 0: the tunnel's own port
}

// Port maps a service port to the port that workloads listen on; 0 means that
// the other side names it.
type Port struct {
	Service, Target uint32
	// AppProtocol is "", "http11", "http2", "grpc", "tcp" or "tls".
	AppProtocol string
}

// Gateway is where a waypoint or network gateway is; exactly one of Hostname
// and Address is set.
type Gateway struct {
	Namespace, Hostname string
	Network             string
	Address             netip.Addr
	Port                uint32
}

// Identity returns the workload's SPIFFE ID.
func (w *Workload) Identity() string {
	return "spiffe://" + w.TrustDomain + "/ns/" + or(w.Namespace, "default") + "/sa/" + w.ServiceAccount
}

// DecodeWorkload decodes an istio.workload.Workload.
func DecodeWorkload(b []byte) (*Workload, error) {
	m := new(workloadpb.Workload)
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, err
	}
	return fromWorkload(m)
}

func fromWorkload(m *workloadpb.Workload) (*Workload, error) {
	w := &Workload{
		UID: m.GetUid(), Name: m.GetName(), Namespace: intern(m.GetNamespace()), Network: intern(m.GetNetwork()),
		TrustDomain: intern(or(m.GetTrustDomain(), "cluster.local")), ServiceAccount: intern(or(m.GetServiceAccount(), "default")),
		Node: intern(m.GetNode()), WorkloadName: intern(m.GetWorkloadName()),
		Kind: intern(strings.ToLower(m.GetWorkloadType().String())), ClusterID: intern(or(m.GetClusterId(), "Kubernetes")),
		CanonicalName: intern(m.GetCanonicalName()), CanonicalRevision: intern(or(m.GetCanonicalRevision(), "latest")),
		Hostname: m.GetHostname(), NativeTunnel: m.GetNativeTunnel(), Policies: m.GetAuthorizationPolicies(),
		Healthy: m.GetStatus() == workloadpb.WorkloadStatus_HEALTHY, HostNetwork: m.GetNetworkMode() == workloadpb.NetworkMode_HOST_NETWORK,
		Region: intern(m.GetLocality().GetRegion()), Zone: intern(m.GetLocality().GetZone()), SubZone: intern(m.GetLocality().GetSubzone()),
		AppTunnel: AppTunnel{
			Proxy: m.GetApplicationTunnel().GetProtocol() == workloadpb.ApplicationTunnel_PROXY, Port: m.GetApplicationTunnel().GetPort(),
		},
		Capacity: 1,
	}
	if m.GetUid() == "" {
		return nil, errors.New("workload has no uid")
	}
	switch t := m.GetTunnelProtocol(); t {
	case workloadpb.TunnelProtocol_NONE:
	case workloadpb.TunnelProtocol_HBONE:
		w.Tunnel = TunnelHBONE
	case workloadpb.TunnelProtocol_LEGACY_ISTIO_MTLS:
		w.Tunnel = TunnelLegacy
	default:
		return nil, fmt.Errorf("tunnel_protocol %v is unknown", t)
	}
	if m.Capacity != nil {
		w.Capacity = m.GetCapacity().GetValue()
	}
	var err error
	if w.Addresses, err = addresses(m.GetAddresses()); err != nil {
		return nil, err
	}
	if w.Waypoint, err = gateway(m.GetWaypoint()); err != nil {
		return nil, fmt.Errorf("waypoint: %w", err)
	}
	if w.Gateway, err = gateway(m.GetNetworkGateway()); err != nil {
		return nil, fmt.Errorf("network_gateway: %w", err)
	}
	if len(m.GetServices()) > 0 {
		w.Services = make(map[string][]Port, len(m.GetServices()))
		for k, l := range m.GetServices() {
			w.Services[intern(k)] = ports(l.GetPorts())
		}
	}
	return w, nil
}

// dense numbers Peers; see streaminfo.Peer.DenseID.
var dense atomic.Uint32

// DecodeRecord decodes an istio.workload.Workload into what a Table keeps of
// it. Identity, names and type follow Istio's workload discovery filter; a
// missing revision is "latest". A workload that shares its node's address is
// not found by it.
func DecodeRecord(b []byte) (*Record, error) {
	w, err := DecodeWorkload(b)
	if err != nil {
		return nil, err
	}
	r := &Record{uid: w.UID, Peer: &streaminfo.Peer{
		Namespace: w.Namespace, Workload: w.WorkloadName, WorkloadType: w.Kind,
		CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		AppName: w.CanonicalName, AppVersion: w.CanonicalRevision,
		ClusterID: w.ClusterID, InstanceName: w.Name, Identity: intern(w.Identity()),
		Region: w.Region, Zone: w.Zone, NetworkID: w.Network, DenseID: dense.Add(1),
	}}
	if !w.HostNetwork {
		r.Addresses = w.Addresses
	}
	if strings.Contains(w.UID, "//Pod/") {
		r.rank += 2
	}
	if w.Tunnel == TunnelHBONE {
		r.rank++
	}
	return r, nil
}

func addresses(bs [][]byte) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, b := range bs {
		a, err := address(b)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

func address(b []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}, fmt.Errorf("an address has %d bytes, want 4 or 16", len(b))
	}
	return a.Unmap(), nil
}

func gateway(g *workloadpb.GatewayAddress) (*Gateway, error) {
	if g == nil {
		return nil, nil
	}
	out := &Gateway{Port: g.GetHboneMtlsPort()}
	switch d := g.GetDestination().(type) {
	case *workloadpb.GatewayAddress_Hostname:
		out.Namespace, out.Hostname = intern(d.Hostname.GetNamespace()), intern(d.Hostname.GetHostname())
		if out.Hostname == "" {
			return nil, errors.New("the host name is empty")
		}
	case *workloadpb.GatewayAddress_Address:
		a, err := address(d.Address.GetAddress())
		if err != nil {
			return nil, err
		}
		out.Network, out.Address = intern(d.Address.GetNetwork()), a
	default:
		return nil, errors.New("neither host name nor address")
	}
	return out, nil
}

func ports(ps []*workloadpb.Port) []Port {
	out := make([]Port, 0, len(ps))
	for _, p := range ps {
		o := Port{Service: p.GetServicePort(), Target: p.GetTargetPort()}
		if a := p.GetAppProtocol(); a != workloadpb.AppProtocol_UNKNOWN {
			o.AppProtocol = strings.ToLower(a.String())
		}
		out = append(out, o)
	}
	return out
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// intern keeps one copy of strings that many workloads share.
func intern(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}
