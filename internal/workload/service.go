package workload

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/internal/workload/authzpb"
	"github.com/fairlead-mesh/fairlead/internal/workload/workloadpb"
)

// VIP is a virtual address of a service on a network; a prefix of full length
// is a single address.
type VIP struct {
	Network string
	Prefix  netip.Prefix
}

// LBMode is how endpoints of a service are chosen.
type LBMode uint8

// Load-balancing modes.
const (
	LBUnspecified LBMode = iota
	LBStrict
	LBFailover
	LBPassthrough
)

// Scope is a locality level of Service.Preference.
type Scope uint8

// Scopes.
const (
	ScopeRegion Scope = iota + 1
	ScopeZone
	ScopeSubZone
	ScopeNode
	ScopeCluster
	ScopeNetwork
)

// Service is istio.workload.Service, decoded.
type Service struct {
	Name, Namespace, Hostname string
	VIPs                      []VIP
	Ports                     []Port
	// SANs are further SPIFFE IDs that servers may present.
	SANs               []string
	Waypoint           *Gateway
	WeightedWaypoints  []WeightedGateway
	Mode               LBMode
	Preference         []Scope
	AllowUnhealthy     bool
	V4Only, V6Only     bool
	Canonical          bool
	IngressUseWaypoint bool
	// NamespaceOnly services are invisible outside of their namespace.
	NamespaceOnly bool
}

// WeightedGateway is one of several waypoints.
type WeightedGateway struct {
	Gateway
	Weight uint32
}

// Key is namespace/hostname.
func (s *Service) Key() string { return s.Namespace + "/" + s.Hostname }

// DecodeAddress decodes an istio.workload.Address; exactly one of the results
// is not nil unless there is an error.
func DecodeAddress(b []byte) (*Workload, *Service, error) {
	m := new(workloadpb.Address)
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, nil, err
	}
	switch t := m.GetType().(type) {
	case *workloadpb.Address_Workload:
		w, err := fromWorkload(t.Workload)
		return w, nil, err
	case *workloadpb.Address_Service:
		s, err := fromService(t.Service)
		return nil, s, err
	}
	return nil, nil, errors.New("the address is neither workload nor service")
}

func fromService(m *workloadpb.Service) (*Service, error) {
	s := &Service{
		Name: m.GetName(), Namespace: intern(m.GetNamespace()), Hostname: intern(m.GetHostname()),
		Ports: ports(m.GetPorts()), SANs: m.GetSubjectAltNames(), Canonical: m.GetCanonical(),
		IngressUseWaypoint: m.GetIngressUseWaypoint(),
		V4Only:             m.GetIpFamilies() == workloadpb.IPFamilies_IPV4_ONLY,
		V6Only:             m.GetIpFamilies() == workloadpb.IPFamilies_IPV6_ONLY,
		NamespaceOnly:      m.GetVisibility() == workloadpb.Service_NAMESPACE,
		AllowUnhealthy:     m.GetLoadBalancing().GetHealthPolicy() == workloadpb.LoadBalancing_ALLOW_ALL,
	}
	if s.Hostname == "" {
		return nil, errors.New("the service has no hostname")
	}
	switch mode := m.GetLoadBalancing().GetMode(); mode {
	case workloadpb.LoadBalancing_UNSPECIFIED_MODE, workloadpb.LoadBalancing_STRICT, workloadpb.LoadBalancing_FAILOVER, workloadpb.LoadBalancing_PASSTHROUGH:
		s.Mode = LBMode(mode)
	default:
		return nil, fmt.Errorf("load_balancing.mode %v is unknown", mode)
	}
	for _, p := range m.GetLoadBalancing().GetRoutingPreference() {
		if p < workloadpb.LoadBalancing_REGION || p > workloadpb.LoadBalancing_NETWORK {
			return nil, fmt.Errorf("load_balancing.routing_preference %v is unknown", p)
		}
		s.Preference = append(s.Preference, Scope(p))
	}
	for _, a := range m.GetAddresses() {
		ip, err := address(a.GetAddress())
		if err != nil {
			return nil, err
		}
		bits := ip.BitLen()
		if a.Length != nil {
			bits = int(a.GetLength())
		}
		p, err := ip.Prefix(bits)
		if err != nil {
			return nil, err
		}
		s.VIPs = append(s.VIPs, VIP{intern(a.GetNetwork()), p})
	}
	var err error
	if s.Waypoint, err = gateway(m.GetWaypoint()); err != nil {
		return nil, fmt.Errorf("waypoint: %w", err)
	}
	for _, w := range m.GetWeightedWaypoints() {
		g, err := gateway(w.GetDestination())
		if err != nil {
			return nil, fmt.Errorf("weighted_waypoints: %w", err)
		}
		if g == nil {
			return nil, errors.New("weighted_waypoints: no destination")
		}
		s.WeightedWaypoints = append(s.WeightedWaypoints, WeightedGateway{*g, w.GetWeight()})
	}
	return s, nil
}

// PolicyScope says which workloads a Policy concerns.
type PolicyScope uint8

// Scopes of policies.
const (
	PolicyGlobal PolicyScope = iota
	PolicyNamespace
	PolicySelector
)

// Policy is istio.security.Authorization, decoded: it matches if any rule
// does; a rule if all its clauses do; a clause if any of its matches does.
type Policy struct {
	Name, Namespace string
	Scope           PolicyScope
	Deny, DryRun    bool
	Rules           [][][]Match // rules, clauses, matches
	// Broken lists what could not be decoded. It fails closed: a match of a
	// DENY policy then always matches, a rule of an ALLOW policy is left out.
	Broken []string
}

// Key is namespace/name.
func (p *Policy) Key() string { return p.Namespace + "/" + p.Name }

// Match matches if every list that isn't empty does: any of its values, and
// none of a Not list's.
type Match struct {
	Namespaces, NotNamespaces           []StringMatch
	Principals, NotPrincipals           []StringMatch
	ServiceAccounts, NotServiceAccounts []ServiceAccount
	SourceIPs, NotSourceIPs             []netip.Prefix
	DestinationIPs, NotDestinationIPs   []netip.Prefix
	DestinationPorts, NotPorts          []uint32
	// Always makes m match whatever else it says.
	Always bool
}

// Empty reports whether m names nothing at all.
func (m *Match) Empty() bool {
	return !m.Always && len(m.Namespaces)+len(m.NotNamespaces)+len(m.Principals)+len(m.NotPrincipals)+len(m.ServiceAccounts)+
		len(m.NotServiceAccounts)+len(m.SourceIPs)+len(m.NotSourceIPs)+len(m.DestinationIPs)+len(m.NotDestinationIPs)+
		len(m.DestinationPorts)+len(m.NotPorts) == 0
}

// ServiceAccount is a namespace and a service account in it, whatever the
// trust domain.
type ServiceAccount struct{ Namespace, Name string }

// StringKind is how a StringMatch matches.
type StringKind uint8

// Kinds of string match. StringPresence matches every string that is there.
const (
	StringExact StringKind = iota
	StringPrefix
	StringSuffix
	StringPresence
)

// StringMatch matches a principal or namespace.
type StringMatch struct {
	Kind StringKind
	Text string
}

// Match reports whether s matches; s must be there.
func (m StringMatch) Match(s string) bool {
	switch m.Kind {
	case StringExact:
		return s == m.Text
	case StringPrefix:
		return strings.HasPrefix(s, m.Text)
	case StringSuffix:
		return strings.HasSuffix(s, m.Text)
	case StringPresence:
		return true
	}
	return false
}

// DecodePolicy decodes an istio.security.Authorization. An error means that
// nothing is known about the policy; see also Policy.Broken.
func DecodePolicy(b []byte) (*Policy, error) {
	m := new(authzpb.Authorization)
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, err
	}
	p := &Policy{Name: m.GetName(), Namespace: intern(m.GetNamespace()), DryRun: m.GetDryRun()}
	switch m.GetScope() {
	case authzpb.Scope_GLOBAL, authzpb.Scope_NAMESPACE, authzpb.Scope_WORKLOAD_SELECTOR:
		p.Scope = PolicyScope(m.GetScope())
	default:
		return nil, fmt.Errorf("scope %v is unknown", m.GetScope())
	}
	switch m.GetAction() {
	case authzpb.Action_ALLOW:
	case authzpb.Action_DENY:
		p.Deny = true
	default:
		return nil, fmt.Errorf("action %v is unknown", m.GetAction())
	}
	for i, g := range m.GetGroups() {
		if rule, ok := p.rule(i, g); ok {
			p.Rules = append(p.Rules, rule)
		}
	}
	return p, nil
}

func (p *Policy) rule(i int, g *authzpb.Group) (clauses [][]Match, ok bool) {
	clauses = make([][]Match, 0, len(g.GetRules()))
	for _, r := range g.GetRules() {
		ms := make([]Match, 0, len(r.GetMatches()))
		for _, x := range r.GetMatches() {
			d, err := fromMatch(x)
			if err != nil {
				p.Broken = append(p.Broken, fmt.Sprintf("rule %d: %v", i, err))
				if !p.Deny {
					return nil, false
				}
				d = Match{Always: true}
			}
			ms = append(ms, d)
		}
		clauses = append(clauses, ms)
	}
	return clauses, true
}

func fromMatch(x *authzpb.Match) (m Match, err error) {
	if len(x.ProtoReflect().GetUnknown()) > 0 {
		return m, errors.New("a match has a field that is unknown here")
	}
	m.DestinationPorts, m.NotPorts = x.GetDestinationPorts(), x.GetNotDestinationPorts()
	for _, l := range []struct {
		in  []*authzpb.StringMatch
		out *[]StringMatch
	}{
		{x.GetNamespaces(), &m.Namespaces},
		{x.GetNotNamespaces(), &m.NotNamespaces},
		{x.GetPrincipals(), &m.Principals},
		{x.GetNotPrincipals(), &m.NotPrincipals},
	} {
		for _, s := range l.in {
			sm, err := fromString(s)
			if err != nil {
				return m, err
			}
			*l.out = append(*l.out, sm)
		}
	}
	for _, l := range []struct {
		in  []*authzpb.Address
		out *[]netip.Prefix
	}{
		{x.GetSourceIps(), &m.SourceIPs},
		{x.GetNotSourceIps(), &m.NotSourceIPs},
		{x.GetDestinationIps(), &m.DestinationIPs},
		{x.GetNotDestinationIps(), &m.NotDestinationIPs},
	} {
		for _, a := range l.in {
			ip, ok := netip.AddrFromSlice(a.GetAddress())
			if !ok {
				return m, fmt.Errorf("an address has %d bytes, want 4 or 16", len(a.GetAddress()))
			}
			p, err := ip.Prefix(int(a.GetLength()))
			if err != nil {
				return m, err
			}
			*l.out = append(*l.out, p)
		}
	}
	for _, s := range x.GetServiceAccounts() {
		m.ServiceAccounts = append(m.ServiceAccounts, ServiceAccount{s.GetNamespace(), s.GetServiceAccount()})
	}
	for _, s := range x.GetNotServiceAccounts() {
		m.NotServiceAccounts = append(m.NotServiceAccounts, ServiceAccount{s.GetNamespace(), s.GetServiceAccount()})
	}
	return m, nil
}

func fromString(s *authzpb.StringMatch) (StringMatch, error) {
	switch t := s.GetMatchType().(type) {
	case *authzpb.StringMatch_Exact:
		return StringMatch{StringExact, t.Exact}, nil
	case *authzpb.StringMatch_Prefix:
		return StringMatch{StringPrefix, t.Prefix}, nil
	case *authzpb.StringMatch_Suffix:
		return StringMatch{StringSuffix, t.Suffix}, nil
	case *authzpb.StringMatch_Presence:
		return StringMatch{Kind: StringPresence}, nil
	}
	return StringMatch{}, errors.New("a string match is empty or of an unknown kind")
}
