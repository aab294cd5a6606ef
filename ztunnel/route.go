package ztunnel

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/workload"
)

var (
	errRecursive       = errors.New("attempted recursive call to ourselves")
	errUnknownWaypoint = errors.New("unknown waypoint: its service or workload is not known, or has no usable endpoint")
	errNoHealthy       = errors.New("no healthy upstream: the service has no such port, or no healthy endpoint")
	errOtherNetwork    = errors.New("no valid routing destination: it is on another network, and network gateways are not supported")
	errNoIdentity      = errors.New("the next hop has no identity that could be expected")
)

// route is the next hop of a connection.
type route struct {
	// tunnel: HBONE to addr with authority; else plain TCP.
	tunnel bool
	// known is false for destinations outside of the mesh.
	known     bool
	addr      netip.AddrPort
	hostname  string // resolved at connect if addr has no address
	authority string
	expect    []string // SPIFFE IDs, sorted
	dest      *workload.Workload
	service   *workload.Service
}

// router is the outbound decision table.
type router struct {
	m       *mesh
	self    *workload.Workload
	illegal func(port uint16) bool
	// intn is a source of randomness, below n.
	intn func(n uint64) uint64
}

// route decides where a connection to dst goes. First hit wins.
func (r *router) route(dst netip.AddrPort) (route, error) {
	a := dst.Addr()
	if a.IsLoopback() && r.illegal(dst.Port()) || a.IsUnspecified() {
		return route{}, errRecursive
	}
	if s := r.m.serviceAt(r.m.network, a, r.self.Namespace); s != nil {
		return r.toService(s, dst)
	}
	w := r.m.byAddr[netAddr{r.m.network, a}]
	if w == nil {
		return route{addr: dst}, nil
	}
	if w.Waypoint != nil && !r.isWaypointOf(w) {
		return r.toWaypoint(w.Waypoint, dst, nil)
	}
	return r.toWorkload(w, dst, nil)
}

func (r *router) toService(s *service, dst netip.AddrPort) (route, error) {
	if g := r.waypointOf(s.Service); g != nil {
		rt, err := r.toWaypoint(g, dst, s.Service)
		rt.service = s.Service
		return rt, err
	}
	if s.Mode == workload.LBPassthrough {
		return route{addr: dst, known: true, service: s.Service}, nil
	}
	e := r.balance(s, uint32(dst.Port()), false)
	if e == nil {
		return route{service: s.Service}, errNoHealthy
	}
	port := uint16(s.port(e, uint32(dst.Port())))
	return r.toWorkload(e.w, netip.AddrPortFrom(pickAddr(e.w, s.Service, dst.Addr()), port), s.Service)
}

func (r *router) waypointOf(s *workload.Service) *workload.Gateway {
	var total uint64
	for i := range s.WeightedWaypoints {
		total += uint64(s.WeightedWaypoints[i].Weight)
	}
	if total == 0 {
		return s.Waypoint
	}
	n := r.intn(total)
	for i := range s.WeightedWaypoints {
		w := uint64(s.WeightedWaypoints[i].Weight)
		if n < w {
			return &s.WeightedWaypoints[i].Gateway
		}
		n -= w
	}
	return s.Waypoint
}

// toWaypoint fails if the waypoint can't be found: it is never bypassed.
func (r *router) toWaypoint(g *workload.Gateway, dst netip.AddrPort, orig *workload.Service) (route, error) {
	w, sans, addr, err := r.resolve(g, dst.Addr())
	if err != nil {
		return route{}, err
	}
	if w.Network != r.m.network {
		return route{}, errOtherNetwork
	}
	rt := route{tunnel: true, known: true, addr: addr, authority: dst.String(), dest: w, service: orig}
	if !addr.Addr().IsValid() {
		rt.hostname = w.Hostname
	}
	rt.expect, err = expected(w, sans)
	return rt, err
}

// resolve finds a waypoint's workload and address.
func (r *router) resolve(g *workload.Gateway, family netip.Addr) (*workload.Workload, []string, netip.AddrPort, error) {
	var s *service
	if g.Hostname != "" {
		s = r.m.services[g.Namespace+"/"+g.Hostname]
	} else if s = r.m.serviceAt(g.Network, g.Address, r.self.Namespace); s != nil {
		family = g.Address
	}
	if s != nil {
		e := r.balance(s, g.Port, true)
		if e == nil {
			return nil, nil, netip.AddrPort{}, fmt.Errorf("%w (service %s)", errUnknownWaypoint, s.Key())
		}
		port := s.port(e, g.Port)
		if port == 0 {
			port = g.Port // the endpoint has an application tunnel
		}
		return e.w, s.SANs, netip.AddrPortFrom(pickAddr(e.w, s.Service, family), uint16(port)), nil
	}
	if g.Hostname != "" {
		for _, w := range r.m.workloads {
			if w.Hostname == g.Hostname && w.Namespace == g.Namespace {
				return w, nil, netip.AddrPortFrom(pickAddr(w, nil, family), uint16(g.Port)), nil
			}
		}
		return nil, nil, netip.AddrPort{}, fmt.Errorf("%w (%s/%s)", errUnknownWaypoint, g.Namespace, g.Hostname)
	}
	if w := r.m.byAddr[netAddr{g.Network, g.Address}]; w != nil {
		return w, nil, netip.AddrPortFrom(g.Address, uint16(g.Port)), nil
	}
	return nil, nil, netip.AddrPort{}, fmt.Errorf("%w (%s/%s)", errUnknownWaypoint, g.Network, g.Address)
}

// isWaypointOf reports whether the own workload is an endpoint of w's waypoint.
// Address and identity count.
func (r *router) isWaypointOf(w *workload.Workload) bool {
	g := w.Waypoint
	if g.Hostname == "" {
		if g.Network == r.self.Network && slices.Contains(r.self.Addresses, g.Address) {
			return true
		}
		return r.serves(r.m.serviceAt(g.Network, g.Address, r.self.Namespace))
	}
	if s := r.m.services[g.Namespace+"/"+g.Hostname]; s != nil {
		return r.serves(s)
	}
	return r.self.Namespace == g.Namespace && r.self.Hostname == g.Hostname
}

func (r *router) serves(s *service) bool {
	return s != nil && slices.ContainsFunc(s.endpoints, func(e endpoint) bool { return e.w == r.self })
}

// toWorkload goes to w itself, at the address and port to.
func (r *router) toWorkload(w *workload.Workload, to netip.AddrPort, s *workload.Service) (route, error) {
	if w.Network != r.m.network {
		return route{dest: w, service: s}, errOtherNetwork
	}
	rt := route{known: true, addr: to, dest: w, service: s}
	if !to.Addr().IsValid() {
		rt.hostname = w.Hostname
	}
	if w.Tunnel != workload.TunnelHBONE {
		return rt, nil
	}
	if rt.hostname != "" { // what authority would it accept?
		return rt, fmt.Errorf("%w: HBONE to a workload known by hostname only", errNoHealthy)
	}
	var sans []string
	if s != nil {
		sans = s.SANs
	}
	rt.tunnel, rt.authority, rt.addr = true, to.String(), netip.AddrPortFrom(to.Addr(), hbonePort)
	var err error
	rt.expect, err = expected(w, sans)
	return rt, err
}

// expected lists the identities that the next hop may have. Names that are not
// SPIFFE IDs are left out.
func expected(w *workload.Workload, sans []string) ([]string, error) {
	var r []string
	if _, err := identity.ParseID(w.Identity()); err == nil {
		r = append(r, w.Identity())
	}
	for _, s := range sans {
		if _, err := identity.ParseID(s); err == nil {
			r = append(r, s)
		}
	}
	if len(r) == 0 {
		return nil, errNoIdentity
	}
	slices.Sort(r)
	return slices.Compact(r), nil
}

// balance picks an endpoint of s that serves the port, nil if there is none.
func (r *router) balance(s *service, port uint32, waypoint bool) *endpoint {
	var candidates []*endpoint
	top := 0
	var total uint64
	for i := range s.endpoints {
		e := &s.endpoints[i]
		if !r.usable(s, e, port, waypoint) {
			continue
		}
		n := r.rank(s.Service, e.w)
		switch {
		case s.Mode == workload.LBStrict && n < len(s.Preference), s.Mode == workload.LBFailover && n < top:
			continue
		case s.Mode == workload.LBFailover && n > top:
			top, candidates, total = n, nil, 0
		}
		candidates = append(candidates, e)
		total += uint64(e.w.Capacity)
	}
	if total == 0 {
		return nil
	}
	n := r.intn(total)
	for _, e := range candidates {
		c := uint64(e.w.Capacity)
		if n < c {
			return e
		}
		n -= c
	}
	return nil
}

func (r *router) usable(s *service, e *endpoint, port uint32, waypoint bool) bool {
	if !pickAddr(e.w, s.Service, netip.Addr{}).IsValid() && e.w.Hostname == "" && (e.w.Network == r.m.network || e.w.Gateway == nil) {
		return false
	}
	return s.port(e, port) != 0 || waypoint && (e.w.AppTunnel.Proxy || e.w.AppTunnel.Port != 0)
}

// rank is how many leading preferences w meets. A leading network preference
// outweighs all others and does not stop the comparison.
func (r *router) rank(s *workload.Service, w *workload.Workload) int {
	n := 0
	for i, sc := range s.Preference {
		same := r.same(sc, w)
		switch {
		case i == 0 && sc == workload.ScopeNetwork && s.Mode == workload.LBFailover:
			if same {
				n += len(s.Preference)
			}
		case same:
			n++
		default:
			return n
		}
	}
	return n
}

func (r *router) same(sc workload.Scope, w *workload.Workload) bool {
	me := r.self
	switch sc {
	case workload.ScopeRegion:
		return me.Region == w.Region
	case workload.ScopeZone:
		return me.Zone == w.Zone
	case workload.ScopeSubZone:
		return me.SubZone == w.SubZone
	case workload.ScopeNode:
		return me.Node == w.Node
	case workload.ScopeCluster:
		return me.ClusterID == w.ClusterID
	case workload.ScopeNetwork:
		return me.Network == w.Network
	}
	return false
}

// pickAddr returns want if w owns it, else an address that s allows, of want's
// family if there is one; the zero Addr if there is none.
func pickAddr(w *workload.Workload, s *workload.Service, want netip.Addr) netip.Addr {
	var r netip.Addr
	for _, a := range w.Addresses {
		if a == want {
			return a
		}
		if s != nil && (s.V4Only && !a.Is4() || s.V6Only && a.Is4()) {
			continue
		}
		if !r.IsValid() || want.IsValid() && a.Is4() == want.Is4() && r.Is4() != want.Is4() {
			r = a
		}
	}
	return r
}

func randomBelow(n uint64) uint64 { return rand.Uint64N(n) }
