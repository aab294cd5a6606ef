package ztunnel

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/workload"
)

// mesh is what is known of workloads, services and policies. It does not change
// once it is complete.
type mesh struct {
	network   string
	workloads []*workload.Workload
	byAddr    map[netAddr]*workload.Workload
	services  map[string]*service // by namespace/hostname
	byHost    map[string][]*service
	byVIP     map[netAddr][]*service
	ranges    []vipRange
	policies  map[string]*workload.Policy
}

type netAddr struct {
	network string
	addr    netip.Addr
}

type vipRange struct {
	vip workload.VIP
	s   *service
}

type service struct {
	*workload.Service
	endpoints []endpoint
}

type endpoint struct {
	w     *workload.Workload
	ports []workload.Port
}

func newMesh(network string) *mesh {
	return &mesh{
		network: network, byAddr: make(map[netAddr]*workload.Workload), services: make(map[string]*service),
		byHost: make(map[string][]*service), byVIP: make(map[netAddr][]*service), policies: make(map[string]*workload.Policy),
	}
}

func (m *mesh) addService(ws *workload.Service) {
	s := &service{Service: ws}
	m.services[ws.Key()] = s
	host := strings.ToLower(ws.Hostname)
	m.byHost[host] = append(m.byHost[host], s)
	for _, v := range ws.VIPs {
		if v.Prefix.IsSingleIP() {
			k := netAddr{v.Network, v.Prefix.Addr()}
			m.byVIP[k] = append(m.byVIP[k], s)
		} else {
			m.ranges = append(m.ranges, vipRange{v, s})
		}
	}
}

// addWorkload indexes w; services and policies must be there.
func (m *mesh) addWorkload(w *workload.Workload) error {
	for _, key := range w.Policies {
		if m.policies[key] == nil {
			return fmt.Errorf("authorizationPolicies: there is no policy %q", key)
		}
	}
	for key := range w.Services {
		if m.services[key] == nil {
			return fmt.Errorf("services: there is no service %q (namespace/hostname)", key)
		}
	}
	m.workloads = append(m.workloads, w)
	if !w.HostNetwork {
		for _, a := range w.Addresses {
			k := netAddr{w.Network, a}
			if old := m.byAddr[k]; old == nil || rank(w) > rank(old) {
				m.byAddr[k] = w
			}
		}
	}
	for key, ps := range w.Services {
		if s := m.services[key]; w.Healthy || s.AllowUnhealthy {
			s.endpoints = append(s.endpoints, endpoint{w, ps})
		}
	}
	return nil
}

// rank decides between workloads that share an address.
func rank(w *workload.Workload) int {
	r := 0
	if strings.Contains(w.UID, "//Pod/") {
		r = 2
	}
	if w.Tunnel == workload.TunnelHBONE {
		r++
	}
	return r
}

func (m *mesh) find(namespace, name, account string) *workload.Workload {
	for _, w := range m.workloads {
		if w.Namespace == namespace && w.Name == name && w.ServiceAccount == account {
			return w
		}
	}
	return nil
}

// best picks among services that share an address or name: the client's
// namespace, then the canonical one, then the first.
func best(ss []*service, namespace string) *service {
	var r *service
	score := -1
	for _, s := range ss {
		n := 0
		switch {
		case s.Namespace == namespace:
			n = 2
		case s.NamespaceOnly:
			continue
		case s.Canonical:
			n = 1
		}
		if n > score {
			r, score = s, n
		}
	}
	return r
}

// serviceAt returns the service that owns a virtual address on the own network.
func (m *mesh) serviceAt(network string, a netip.Addr, namespace string) *service {
	if s := best(m.byVIP[netAddr{network, a}], namespace); s != nil {
		return s
	}
	var r *service
	score := -1
	for _, v := range m.ranges {
		if v.vip.Network != network || !v.vip.Prefix.Contains(a) || v.s.NamespaceOnly && v.s.Namespace != namespace {
			continue
		}
		n := v.vip.Prefix.Bits() * 2
		if v.s.Namespace == namespace {
			n += 1 << 10
		}
		if v.s.Canonical {
			n++
		}
		if n > score {
			r, score = v.s, n
		}
	}
	return r
}

// serviceNamed returns the service with a hostname, or the wildcard that covers
// it.
func (m *mesh) serviceNamed(host, namespace string) *service {
	if s := best(m.byHost[host], namespace); s != nil {
		return s
	}
	for rest := host; ; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			return nil
		}
		rest = rest[i+1:]
		if s := best(m.byHost["*."+rest], namespace); s != nil {
			return s
		}
	}
}

// serviceShort is serviceNamed with the completions that Kubernetes' resolver
// would try.
func (m *mesh) serviceShort(host, namespace, domain string) *service {
	if s := m.serviceNamed(host, namespace); s != nil {
		return s
	}
	var more []string
	switch strings.Count(host, ".") {
	case 0:
		more = []string{"." + namespace + ".svc." + domain}
	case 1:
		more = []string{".svc." + domain, "." + namespace + ".svc." + domain}
	case 2:
		more = []string{"." + domain, ".svc." + domain}
	}
	for _, suffix := range more {
		if s := best(m.byHost[host+suffix], namespace); s != nil {
			return s
		}
	}
	return nil
}

// port returns what a service port is called at the endpoint, 0 if nothing is.
func (s *service) port(e *endpoint, port uint32) uint32 {
	known := uint32(0)
	ok := false
	for _, p := range s.Ports {
		if p.Service == port {
			known, ok = p.Target, true
		}
	}
	if !ok {
		return 0
	}
	for _, p := range e.ports {
		if p.Service == port && p.Target != 0 {
			return p.Target
		}
	}
	return known
}
