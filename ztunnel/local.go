package ztunnel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/fairlead-mesh/fairlead/internal/workload"
)

// The types of this file are the schema of the local mesh description, which is
// that of Istio's ztunnel. Custom decoders would escape the check for unknown
// fields, so enums and addresses are strings that are converted afterwards.

type localGateway struct {
	Destination   string `yaml:"destination"` // namespace/hostname or network/IP
	HboneMtlsPort uint32 `yaml:"hboneMtlsPort"`
}

type localWeighted struct {
	Destination localGateway `yaml:"destination"`
	Weight      uint32       `yaml:"weight"`
}

type localLocality struct {
	Region  string `yaml:"region"`
	Zone    string `yaml:"zone"`
	Subzone string `yaml:"subzone"`
}

type localAppTunnel struct {
	Protocol string `yaml:"protocol"`
	Port     uint32 `yaml:"port"`
}

type localWorkload struct {
	UID                   string                       `yaml:"uid"`
	Name                  string                       `yaml:"name"`
	Namespace             string                       `yaml:"namespace"`
	WorkloadIPs           []string                     `yaml:"workloadIps"`
	ServiceAccount        string                       `yaml:"serviceAccount"`
	TrustDomain           string                       `yaml:"trustDomain"`
	Network               string                       `yaml:"network"`
	Node                  string                       `yaml:"node"`
	Protocol              string                       `yaml:"protocol"`
	NetworkMode           string                       `yaml:"networkMode"`
	Status                string                       `yaml:"status"`
	WorkloadName          string                       `yaml:"workloadName"`
	WorkloadType          string                       `yaml:"workloadType"`
	CanonicalName         string                       `yaml:"canonicalName"`
	CanonicalRevision     string                       `yaml:"canonicalRevision"`
	Hostname              string                       `yaml:"hostname"`
	ClusterID             string                       `yaml:"clusterId"`
	Capacity              *uint32                      `yaml:"capacity"`
	Locality              localLocality                `yaml:"locality"`
	NativeTunnel          bool                         `yaml:"nativeTunnel"`
	ApplicationTunnel     *localAppTunnel              `yaml:"applicationTunnel"`
	AuthorizationPolicies []string                     `yaml:"authorizationPolicies"`
	Waypoint              *localGateway                `yaml:"waypoint"`
	NetworkGateway        *localGateway                `yaml:"networkGateway"`
	Services              map[string]map[uint32]uint32 `yaml:"services"`
}

type localBalancer struct {
	RoutingPreferences []string `yaml:"routingPreferences"`
	Mode               string   `yaml:"mode"`
	HealthPolicy       string   `yaml:"healthPolicy"`
}

type localService struct {
	Name              string            `yaml:"name"`
	Namespace         string            `yaml:"namespace"`
	Hostname          string            `yaml:"hostname"`
	VIPs              []string          `yaml:"vips"`
	CIDRVIPs          []string          `yaml:"cidrVips"`
	Ports             map[uint32]uint32 `yaml:"ports"`
	SubjectAltNames   []string          `yaml:"subjectAltNames"`
	Waypoint          *localGateway     `yaml:"waypoint"`
	WeightedWaypoints []localWeighted   `yaml:"weightedWaypoints"`
	LoadBalancer      *localBalancer    `yaml:"loadBalancer"`
	IPFamilies        string            `yaml:"ipFamilies"`
	Canonical         bool              `yaml:"canonical"`
	Visibility        string            `yaml:"visibility"`
}

type localAccount struct {
	Namespace      string `yaml:"namespace"`
	ServiceAccount string `yaml:"serviceAccount"`
}

type localMatch struct {
	Namespaces          []yaml.Node    `yaml:"namespaces"`
	NotNamespaces       []yaml.Node    `yaml:"notNamespaces"`
	Principals          []yaml.Node    `yaml:"principals"`
	NotPrincipals       []yaml.Node    `yaml:"notPrincipals"`
	ServiceAccounts     []localAccount `yaml:"serviceAccounts"`
	NotServiceAccounts  []localAccount `yaml:"notServiceAccounts"`
	SourceIPs           []string       `yaml:"sourceIps"`
	NotSourceIPs        []string       `yaml:"notSourceIps"`
	DestinationIPs      []string       `yaml:"destinationIps"`
	NotDestinationIPs   []string       `yaml:"notDestinationIps"`
	DestinationPorts    []uint32       `yaml:"destinationPorts"`
	NotDestinationPorts []uint32       `yaml:"notDestinationPorts"`
}

type localPolicy struct {
	Name      string           `yaml:"name"`
	Namespace string           `yaml:"namespace"`
	Scope     string           `yaml:"scope"`
	Action    string           `yaml:"action"`
	DryRun    bool             `yaml:"dryRun"`
	Rules     [][][]localMatch `yaml:"rules"`
}

// decodeStrict decodes one YAML document into v and refuses unknown fields,
// duplicate ones and further documents.
func decodeStrict(data []byte, v any) error {
	var n yaml.Node
	if err := yaml.Unmarshal(data, &n); err != nil {
		return err
	}
	if err := refuseNull(&n); err != nil {
		return err
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("the file is empty")
		}
		return err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("more than one YAML document: put everything into the first")
	}
	return nil
}

// refuseNull refuses values that are not there. The decoder leaves them out of
// lists, and a policy whose match vanishes matches everything.
func refuseNull(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return fmt.Errorf("line %d: a value is missing", n.Line)
	}
	for _, c := range n.Content {
		if err := refuseNull(c); err != nil {
			return err
		}
	}
	return nil
}

func choose[T any](what, s string, def T, options map[string]T) (T, error) {
	if s == "" {
		return def, nil
	}
	v, ok := options[strings.ToLower(s)]
	if !ok {
		return def, fmt.Errorf("%s: unknown value %q", what, s)
	}
	return v, nil
}

func orElse(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func (g *localGateway) gateway() (*workload.Gateway, error) {
	if g == nil {
		return nil, nil
	}
	first, second, ok := strings.Cut(g.Destination, "/")
	if !ok || second == "" {
		return nil, fmt.Errorf("destination: %q is neither namespace/hostname nor network/address", g.Destination)
	}
	if g.HboneMtlsPort > 65535 {
		return nil, fmt.Errorf("hboneMtlsPort: %d is not a port", g.HboneMtlsPort)
	}
	r := &workload.Gateway{Port: g.HboneMtlsPort}
	if r.Port == 0 {
		r.Port = hbonePort
	}
	if a, err := netip.ParseAddr(second); err == nil {
		r.Network, r.Address = first, a.Unmap()
	} else {
		r.Namespace, r.Hostname = first, second
	}
	return r, nil
}

func ports(m map[uint32]uint32) ([]workload.Port, error) {
	var r []workload.Port
	for s, t := range m {
		if s == 0 || s > 65535 || t > 65535 {
			return nil, fmt.Errorf("ports: %d: %d is not a pair of ports", s, t)
		}
		r = append(r, workload.Port{Service: s, Target: t})
	}
	return r, nil
}

func (l *localWorkload) workload() (*workload.Workload, error) {
	if l.Name == "" || l.Namespace == "" {
		return nil, errors.New("name and namespace are required")
	}
	w := &workload.Workload{
		UID: orElse(l.UID, "local//v1/Pod/"+l.Namespace+"/"+l.Name), Name: l.Name, Namespace: l.Namespace, Network: l.Network,
		TrustDomain: orElse(l.TrustDomain, "cluster.local"), ServiceAccount: orElse(l.ServiceAccount, "default"),
		Node: l.Node, WorkloadName: l.WorkloadName, Kind: l.WorkloadType, ClusterID: orElse(l.ClusterID, "Kubernetes"),
		CanonicalName: l.CanonicalName, CanonicalRevision: l.CanonicalRevision, Hostname: l.Hostname,
		NativeTunnel: l.NativeTunnel, Policies: l.AuthorizationPolicies,
		Region: l.Locality.Region, Zone: l.Locality.Zone, SubZone: l.Locality.Subzone,
		Services: make(map[string][]workload.Port), Capacity: 1,
	}
	if l.Capacity != nil {
		w.Capacity = *l.Capacity
	}
	for _, s := range l.WorkloadIPs {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("workloadIps: %w", err)
		}
		w.Addresses = append(w.Addresses, a.Unmap())
	}
	var err, e error
	if w.Tunnel, e = choose("protocol", l.Protocol, workload.TunnelNone, map[string]workload.Tunnel{"tcp": workload.TunnelNone, "hbone": workload.TunnelHBONE}); e != nil {
		err = e
	}
	if w.HostNetwork, e = choose("networkMode", l.NetworkMode, false, map[string]bool{"standard": false, "hostnetwork": true}); e != nil {
		err = e
	}
	if w.Healthy, e = choose("status", l.Status, true, map[string]bool{"healthy": true, "unhealthy": false}); e != nil {
		err = e
	}
	if w.Waypoint, e = l.Waypoint.gateway(); e != nil {
		err = fmt.Errorf("waypoint: %w", e)
	}
	if w.Gateway, e = l.NetworkGateway.gateway(); e != nil {
		err = fmt.Errorf("networkGateway: %w", e)
	}
	if t := l.ApplicationTunnel; t != nil {
		if w.AppTunnel.Proxy, e = choose("applicationTunnel.protocol", t.Protocol, false, map[string]bool{"none": false, "proxy": true}); e != nil {
			err = e
		}
		w.AppTunnel.Port = t.Port
	}
	for key, m := range l.Services {
		if w.Services[key], e = ports(m); e != nil {
			err = fmt.Errorf("services: %s: %w", key, e)
		}
	}
	return w, err
}

func (l *localService) service() (*workload.Service, error) {
	if l.Name == "" || l.Namespace == "" || l.Hostname == "" || len(l.Ports) == 0 {
		return nil, errors.New("name, namespace, hostname and ports are required")
	}
	s := &workload.Service{Name: l.Name, Namespace: l.Namespace, Hostname: l.Hostname, SANs: l.SubjectAltNames, Canonical: l.Canonical}
	var err, e error
	if s.Ports, e = ports(l.Ports); e != nil {
		err = e
	}
	for _, v := range l.VIPs {
		network, ip, _ := strings.Cut(v, "/")
		a, e := netip.ParseAddr(ip)
		if e != nil {
			err = fmt.Errorf("vips: %q is not network/address: %w", v, e)
			continue
		}
		a = a.Unmap()
		s.VIPs = append(s.VIPs, workload.VIP{Network: network, Prefix: netip.PrefixFrom(a, a.BitLen())})
	}
	for _, v := range l.CIDRVIPs {
		network, cidr, _ := strings.Cut(v, "/")
		p, e := netip.ParsePrefix(cidr)
		if e != nil {
			err = fmt.Errorf("cidrVips: %q is not network/address/length: %w", v, e)
			continue
		}
		s.VIPs = append(s.VIPs, workload.VIP{Network: network, Prefix: p.Masked()})
	}
	if s.Waypoint, e = l.Waypoint.gateway(); e != nil {
		err = fmt.Errorf("waypoint: %w", e)
	}
	for i := range l.WeightedWaypoints {
		g, e := l.WeightedWaypoints[i].Destination.gateway()
		if e != nil {
			err = fmt.Errorf("weightedWaypoints: %w", e)
			continue
		}
		s.WeightedWaypoints = append(s.WeightedWaypoints, workload.WeightedGateway{Gateway: *g, Weight: l.WeightedWaypoints[i].Weight})
	}
	families, e := choose("ipFamilies", l.IPFamilies, "", map[string]string{"ipv4": "4", "ipv6": "6", "dual": "", "automatic": ""})
	if e != nil {
		err = e
	}
	s.V4Only, s.V6Only = families == "4", families == "6"
	if s.NamespaceOnly, e = choose("visibility", l.Visibility, false, map[string]bool{"public": false, "namespace": true}); e != nil {
		err = e
	}
	if e := l.LoadBalancer.apply(s); e != nil {
		err = fmt.Errorf("loadBalancer: %w", e)
	}
	return s, err
}

func (l *localBalancer) apply(s *workload.Service) (err error) {
	if l == nil {
		return nil
	}
	s.Mode, err = choose("mode", l.Mode, workload.LBUnspecified, map[string]workload.LBMode{
		"standard": workload.LBUnspecified, "strict": workload.LBStrict, "failover": workload.LBFailover, "passthrough": workload.LBPassthrough,
	})
	if err != nil {
		return err
	}
	for _, p := range l.RoutingPreferences {
		sc, e := choose("routingPreferences", orElse(p, "?"), workload.Scope(0), map[string]workload.Scope{
			"region": workload.ScopeRegion, "zone": workload.ScopeZone, "subzone": workload.ScopeSubZone,
			"node": workload.ScopeNode, "cluster": workload.ScopeCluster, "network": workload.ScopeNetwork,
		})
		if e != nil {
			return e
		}
		s.Preference = append(s.Preference, sc)
	}
	s.AllowUnhealthy, err = choose("healthPolicy", l.HealthPolicy, false, map[string]bool{"onlyhealthy": false, "allowall": true})
	return err
}

func (l *localPolicy) policy() (*workload.Policy, error) {
	if l.Name == "" || l.Namespace == "" || l.Scope == "" || l.Action == "" {
		return nil, errors.New("name, namespace, scope and action are required")
	}
	p := &workload.Policy{Name: l.Name, Namespace: l.Namespace, DryRun: l.DryRun}
	var err error
	if p.Scope, err = choose("scope", l.Scope, workload.PolicyGlobal, map[string]workload.PolicyScope{
		"global": workload.PolicyGlobal, "namespace": workload.PolicyNamespace, "workloadselector": workload.PolicySelector,
	}); err != nil {
		return nil, err
	}
	if p.Deny, err = choose("action", l.Action, true, map[string]bool{"allow": false, "deny": true}); err != nil {
		return nil, err
	}
	for i, rule := range l.Rules {
		var r [][]workload.Match
		for j, clause := range rule {
			var c []workload.Match
			for k := range clause {
				m, err := clause[k].match()
				if err != nil {
					return nil, fmt.Errorf("rules[%d][%d][%d]: %w", i, j, k, err)
				}
				c = append(c, *m)
			}
			r = append(r, c)
		}
		p.Rules = append(p.Rules, r)
	}
	return p, nil
}

func (l *localMatch) match() (*workload.Match, error) {
	m := &workload.Match{}
	for _, x := range []struct {
		name string
		from []yaml.Node
		to   *[]workload.StringMatch
	}{
		{"namespaces", l.Namespaces, &m.Namespaces},
		{"notNamespaces", l.NotNamespaces, &m.NotNamespaces},
		{"principals", l.Principals, &m.Principals},
		{"notPrincipals", l.NotPrincipals, &m.NotPrincipals},
	} {
		for i := range x.from {
			s, err := stringMatch(&x.from[i])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", x.name, err)
			}
			*x.to = append(*x.to, s)
		}
	}
	for _, x := range []struct {
		name string
		from []string
		to   *[]netip.Prefix
	}{
		{"sourceIps", l.SourceIPs, &m.SourceIPs},
		{"notSourceIps", l.NotSourceIPs, &m.NotSourceIPs},
		{"destinationIps", l.DestinationIPs, &m.DestinationIPs},
		{"notDestinationIps", l.NotDestinationIPs, &m.NotDestinationIPs},
	} {
		for _, s := range x.from {
			p, err := prefix(s)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", x.name, err)
			}
			*x.to = append(*x.to, p)
		}
	}
	for _, x := range []struct {
		from []localAccount
		to   *[]workload.ServiceAccount
	}{{l.ServiceAccounts, &m.ServiceAccounts}, {l.NotServiceAccounts, &m.NotServiceAccounts}} {
		for _, a := range x.from {
			if a.Namespace == "" || a.ServiceAccount == "" {
				return nil, errors.New("serviceAccounts: namespace and serviceAccount are required")
			}
			*x.to = append(*x.to, workload.ServiceAccount{Namespace: a.Namespace, Name: a.ServiceAccount})
		}
	}
	m.DestinationPorts, m.NotPorts = l.DestinationPorts, l.NotDestinationPorts
	if m.Empty() {
		return nil, errors.New("empty match: it would be skipped, so say what it shall match")
	}
	return m, nil
}

func prefix(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		return p.Masked(), err
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	return a.Unmap().Prefix(a.Unmap().BitLen())
}

var stringKinds = map[string]workload.StringKind{
	"exact": workload.StringExact, "prefix": workload.StringPrefix, "suffix": workload.StringSuffix, "presence": workload.StringPresence,
}

// stringMatch reads `!Exact x`, as ztunnel writes it, or `{exact: x}`. A plain
// string is refused, as by ztunnel.
func stringMatch(n *yaml.Node) (m workload.StringMatch, err error) {
	tag, value := strings.TrimPrefix(n.Tag, "!"), n
	if n.Kind == yaml.MappingNode && len(n.Content) == 2 && strings.HasPrefix(n.Tag, "!!") {
		tag, value = n.Content[0].Value, n.Content[1]
	}
	kind, ok := stringKinds[strings.ToLower(tag)]
	if !ok {
		return m, fmt.Errorf("line %d: write !Exact, !Prefix, !Suffix or !Presence before the value", n.Line)
	}
	m.Kind = kind
	if kind == workload.StringPresence {
		return m, nil
	}
	if value.Kind != yaml.ScalarNode || value.Value == "" {
		return m, fmt.Errorf("line %d: a value is missing", n.Line)
	}
	m.Text = strings.TrimPrefix(value.Value, "spiffe://")
	if kind == workload.StringSuffix {
		m.Text = value.Value
	}
	return m, nil
}
