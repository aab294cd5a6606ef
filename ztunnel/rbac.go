package ztunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/workload"
)

// flowInfo is what policies see of a connection.
type flowInfo struct {
	source netip.Addr
	// id is the peer's identity; the zero ID is none (plaintext).
	id          identity.ID
	destination netip.AddrPort
}

// deniedError says that policies refuse a connection.
type deniedError struct{ reason string }

func (e *deniedError) Error() string {
	return "connection closed due to policy rejection: " + e.reason
}

// authorize returns a *deniedError if the policies that concern w deny f.
func (m *mesh) authorize(w *workload.Workload, f *flowInfo) error {
	allows, allowed := false, false
	for _, p := range m.policies {
		if p.DryRun || !concerns(p, w) {
			continue
		}
		switch {
		case p.Deny:
			if policyMatches(p, f) {
				return &deniedError{"explicitly denied by: " + p.Key()}
			}
		case !allowed:
			allows = true
			allowed = policyMatches(p, f)
		}
	}
	if allows && !allowed {
		return &deniedError{"allow policies exist, but none allowed"}
	}
	return nil
}

func concerns(p *workload.Policy, w *workload.Workload) bool {
	switch p.Scope {
	case workload.PolicyGlobal:
		return true
	case workload.PolicyNamespace:
		return p.Namespace == w.Namespace
	default:
		return slices.Contains(w.Policies, p.Key())
	}
}

func policyMatches(p *workload.Policy, f *flowInfo) bool {
	return slices.ContainsFunc(p.Rules, func(rule [][]workload.Match) bool {
		for _, clause := range rule {
			if !clauseMatches(clause, f) {
				return false
			}
		}
		return true
	})
}

// clauseMatches is true for no matches at all; an empty match is skipped.
func clauseMatches(clause []workload.Match, f *flowInfo) bool {
	if len(clause) == 0 {
		return true
	}
	for i := range clause {
		m := &clause[i]
		if m.Always || !m.Empty() && matches(m, f) {
			return true
		}
	}
	return false
}

func matches(m *workload.Match, f *flowInfo) bool {
	some := f.id != (identity.ID{})
	principal := ""
	if some {
		principal = strings.TrimPrefix(f.id.String(), "spiffe://")
	}
	byPrincipal := func(s workload.StringMatch) bool { return some && s.Match(principal) }
	byNamespace := func(s workload.StringMatch) bool { return s.Match(f.id.Namespace) }
	byAccount := func(a workload.ServiceAccount) bool {
		return some && a.Namespace == f.id.Namespace && a.Name == f.id.ServiceAccount
	}
	fromSource := func(p netip.Prefix) bool { return p.Contains(f.source) }
	toAddr := func(p netip.Prefix) bool { return p.Contains(f.destination.Addr()) }
	toPort := func(p uint32) bool { return p == uint32(f.destination.Port()) }
	return any2(m.Namespaces, m.NotNamespaces, byNamespace) &&
		any2(m.Principals, m.NotPrincipals, byPrincipal) &&
		any2(m.ServiceAccounts, m.NotServiceAccounts, byAccount) &&
		any2(m.SourceIPs, m.NotSourceIPs, fromSource) &&
		any2(m.DestinationIPs, m.NotDestinationIPs, toAddr) &&
		any2(m.DestinationPorts, m.NotPorts, toPort)
}

// any2 is true if some of yes (unless it is empty) and none of no holds.
func any2[T any](yes, no []T, f func(T) bool) bool {
	return (len(yes) == 0 || slices.ContainsFunc(yes, f)) && !slices.ContainsFunc(no, f)
}

// inboundError carries the status that a tunnel request is refused with.
type inboundError struct {
	status int
	err    error
}

func (e *inboundError) Error() string { return e.err.Error() }
func (e *inboundError) Unwrap() error { return e.err }

func refuse(status int, format string, args ...any) error {
	return &inboundError{status, fmt.Errorf(format, args...)}
}

// inboundTable decides about tunnels that peers ask for.
type inboundTable struct {
	m        *mesh
	self     *workload.Workload
	upstream netip.Addr // zero: the connection's
	illegal  func(port uint16) bool
}

// target returns where a tunnel goes, by its authority and the address that
// its connection was made to.
func (t *inboundTable) target(authority string, local netip.Addr) (netip.AddrPort, error) {
	host, port, err := splitAuthority(authority)
	if err != nil {
		return netip.AddrPort{}, refuse(400, "authority: %w", err)
	}
	to := local.Unmap()
	if t.upstream.IsValid() {
		to = t.upstream
	}
	if a, err := netip.ParseAddr(host); err == nil {
		own := a == local.Unmap() || t.upstream.IsValid() && slices.Contains(t.self.Addresses, a)
		if !own {
			return netip.AddrPort{}, refuse(400, "ip mismatch: %s != %s", a, local.Unmap())
		}
	} else if port, err = t.servicePort(host, port); err != nil {
		return netip.AddrPort{}, &inboundError{503, err}
	}
	if t.illegal(port) {
		return netip.AddrPort{}, refuse(503, "port %d is this ztunnel's own", port)
	}
	return netip.AddrPortFrom(to, port), nil
}

// servicePort translates the port of a service that the own workload serves.
func (t *inboundTable) servicePort(host string, port uint16) (uint16, error) {
	s := t.m.serviceNamed(host, t.self.Namespace)
	if s == nil {
		return 0, fmt.Errorf("hostname %s is not known", host)
	}
	for i := range s.endpoints {
		if e := &s.endpoints[i]; e.w == t.self {
			if p := s.port(e, uint32(port)); p != 0 {
				return uint16(p), nil
			}
			return 0, fmt.Errorf("service %s has no port %d", s.Key(), port)
		}
	}
	return 0, fmt.Errorf("service %s is not served here", s.Key())
}

func statusOf(err error) int {
	var ie *inboundError
	var de *deniedError
	switch {
	case errors.As(err, &ie):
		return ie.status
	case errors.As(err, &de):
		return 401
	}
	return 503
}
