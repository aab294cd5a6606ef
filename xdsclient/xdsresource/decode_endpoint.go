package xdsresource

import (
	"net/netip"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3pb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
)

const defaultOverprovisioning = 140

// assignment decodes endpoints; onlyIP rejects names, which are for DNS
// clusters.
func (s *scope) assignment(m *endpointv3pb.ClusterLoadAssignment, onlyIP bool) *ClusterLoadAssignment {
	s.classify(m)
	a := &ClusterLoadAssignment{
		Resource:               Resource{Name: m.GetClusterName()},
		OverprovisioningFactor: u32(m.GetPolicy().GetOverprovisioningFactor(), defaultOverprovisioning),
	}
	for _, d := range m.GetPolicy().GetDropOverloads() {
		a.DropOverloads = append(a.DropOverloads, fraction(d.GetDropPercentage()))
	}
	a.Localities = make([]LocalityEndpoints, 0, len(m.GetEndpoints()))
	for i, l := range m.GetEndpoints() {
		s.pushIndex("endpoints", i)
		a.Localities = append(a.Localities, s.locality(m, l, onlyIP))
		s.pop()
	}
	return a
}

func (s *scope) locality(m *endpointv3pb.ClusterLoadAssignment, l *endpointv3pb.LocalityLbEndpoints, onlyIP bool) LocalityEndpoints {
	out := LocalityEndpoints{
		Region: l.GetLocality().GetRegion(), Zone: l.GetLocality().GetZone(), SubZone: l.GetLocality().GetSubZone(),
		Priority: l.GetPriority(), Weight: l.GetLoadBalancingWeight().GetValue(),
	}
	eps := l.GetLbEndpoints()
	if list := l.GetLoadBalancerEndpoints(); list != nil {
		eps = list.GetLbEndpoints()
	}
	out.Endpoints = make([]Endpoint, 0, len(eps))
	for i, e := range eps {
		s.pushIndex("lb_endpoints", i)
		out.Endpoints = append(out.Endpoints, s.endpoint(m, e, onlyIP))
		s.pop()
	}
	return out
}

func (s *scope) endpoint(m *endpointv3pb.ClusterLoadAssignment, e *endpointv3pb.LbEndpoint, onlyIP bool) Endpoint {
	out := Endpoint{Weight: max(u32(e.GetLoadBalancingWeight(), 1), 1), Metadata: s.metadata(e.GetMetadata())}
	switch e.GetHealthStatus() {
	case corev3pb.HealthStatus_UNKNOWN:
	case corev3pb.HealthStatus_HEALTHY:
		out.Health = HealthHealthy
	case corev3pb.HealthStatus_DRAINING:
		out.Health = HealthDraining
	case corev3pb.HealthStatus_DEGRADED:
		out.Health = HealthDegraded
	case corev3pb.HealthStatus_UNHEALTHY, corev3pb.HealthStatus_TIMEOUT:
		out.Health = HealthUnhealthy
	default:
		s.errorf("health_status", "unknown value %d", e.GetHealthStatus())
	}
	ep := e.GetEndpoint()
	if n := e.GetEndpointName(); n != "" {
		if ep = m.GetNamedEndpoints()[n]; ep == nil {
			s.errorf("endpoint_name", "%q is not in named_endpoints", n)
			return out
		}
	}
	s.push("endpoint")
	defer s.pop()
	out.DisplayHost = ep.GetHostname()
	s.push("address")
	defer s.pop()
	s.endpointAddress(&out, ep.GetAddress(), onlyIP)
	return out
}

func (s *scope) endpointAddress(out *Endpoint, a *corev3pb.Address, onlyIP bool) {
	switch addr := a.GetAddress().(type) {
	case *corev3pb.Address_SocketAddress:
		sa := addr.SocketAddress
		if ip, err := netip.ParseAddr(sa.GetAddress()); err == nil || onlyIP {
			if err != nil {
				s.errorf("socket_address.address", "%q is not an IP address: names need a cluster of type STRICT_DNS or LOGICAL_DNS", sa.GetAddress())
				return
			}
			out.Address = netip.AddrPortFrom(ip, s.port(sa))
			return
		}
		out.HostName, out.Port = sa.GetAddress(), uint32(s.port(sa))
	case *corev3pb.Address_Pipe:
		out.Pipe = addr.Pipe.GetPath()
	case *corev3pb.Address_EnvoyInternalAddress:
		out.InternalListener = addr.EnvoyInternalAddress.GetServerListenerName()
		out.EndpointID = addr.EnvoyInternalAddress.GetEndpointId()
	default:
		s.errorf("", "is missing")
	}
}
