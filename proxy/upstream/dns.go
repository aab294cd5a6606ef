package upstream

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/dns"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// resolver keeps the hosts of a STRICT_DNS or LOGICAL_DNS cluster up to date.
// Each name has a pace of its own. A failure keeps the last good answer.
type resolver struct {
	c *Cluster

	mu     sync.Mutex
	closed bool
	names  map[string]*resolvedName
	// open counts names that were not answered yet, and did not fail.
	open int

	// building serialises changes of the assignment.
	building sync.Mutex
}

// resolvedName is one name of a cluster. Its timer runs one resolution at a time.
type resolvedName struct {
	name  string
	timer *time.Timer
	pause pause

	tried bool // guarded by resolver.mu
	addrs []netip.Addr
}

func newResolver(c *Cluster) *resolver {
	r := &resolver{c: c, names: map[string]*resolvedName{}}
	if a := c.spec.Assignment; a != nil {
		for _, l := range a.Localities {
			for i := range l.Endpoints {
				if e := &l.Endpoints[i]; named(e) && r.names[e.HostName] == nil {
					r.names[e.HostName] = &resolvedName{name: e.HostName, pause: pause{d: &c.spec.DNS}}
				}
			}
		}
	}
	r.open = len(r.names)
	return r
}

// named tells whether an endpoint's address is to be resolved.
func named(e *xdsresource.Endpoint) bool { return e.HostName != "" && !e.Address.IsValid() }

func (r *resolver) start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.names {
		n.timer = time.AfterFunc(0, func() { r.run(n) })
	}
	if len(r.names) == 0 {
		time.AfterFunc(0, func() { r.build(true, true) })
	}
}

func (r *resolver) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, n := range r.names {
		if n.timer != nil {
			n.timer.Stop()
		}
	}
}

const resolveTimeout = 10 * time.Second

// run resolves one name and schedules the next time.
func (r *resolver) run(n *resolvedName) {
	c := r.c
	s := c.stats()
	s.updateAttempt.Inc()
	a, err := c.m.lookup(c.ctx, n.name, &c.spec.DNS, resolveTimeout)
	if err == nil && len(a.Addrs) == 0 && c.spec.Discovery == xdsresource.DiscoveryLogicalDNS {
		err = errNoAddress // the one address stays, as in Envoy; STRICT_DNS has none then
	}
	if err != nil {
		s.updateFailure.Inc()
		if c.ctx.Err() == nil {
			c.m.log.Warn("name can't be resolved; the last answer stays in use", "cluster", c.spec.Name, "name", n.name, "error", err)
		}
	}
	changed, first, last := r.take(n, a.Addrs, err)
	if changed || last {
		r.build(changed || first, last)
	}
	if err == nil && !changed {
		s.updateSuccess.Inc()
	}
	next := n.pause.failed()
	if err == nil {
		next = n.pause.answered(len(a.Addrs) > 0, a.TTL)
	}
	r.mu.Lock()
	if !r.closed {
		n.timer.Reset(next)
	}
	r.mu.Unlock()
}

// take notes what became of a resolution. first: it was the name's first; last:
// no other name is still to be answered for the first time.
func (r *resolver) take(n *resolvedName, addrs []netip.Addr, err error) (changed, first, last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if first = !n.tried; first {
		n.tried = true
		r.open--
		last = r.open == 0
	}
	if err != nil {
		return false, first, last
	}
	if r.c.spec.Discovery == xdsresource.DiscoveryLogicalDNS {
		keep := addrs[:1]
		if len(n.addrs) == 1 && slices.Contains(addrs, n.addrs[0]) {
			keep = n.addrs // connections need not move
		}
		addrs = keep
	} else {
		slices.SortFunc(addrs, netip.Addr.Compare)
		addrs = slices.Compact(addrs)
	}
	changed = !slices.Equal(addrs, n.addrs)
	n.addrs = addrs
	return changed, first, last
}

// build gives the cluster what is known, if that changed, and lets it serve if it
// is warm.
func (r *resolver) build(changed, warm bool) {
	r.building.Lock()
	defer r.building.Unlock()
	if changed || r.c.current() == nil {
		r.c.update(r.assignment())
	}
	if warm {
		r.c.m.promote(r.c)
	}
}

// assignment is the cluster's with addresses in place of names.
func (r *resolver) assignment() *xdsresource.ClusterLoadAssignment {
	spec := r.c.spec.Assignment
	if spec == nil {
		spec = &xdsresource.ClusterLoadAssignment{}
	}
	a := *spec
	a.Localities = make([]xdsresource.LocalityEndpoints, 0, len(spec.Localities))
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range spec.Localities {
		es := l.Endpoints
		l.Endpoints = nil
		for i := range es {
			e := es[i]
			if !named(&e) {
				l.Endpoints = append(l.Endpoints, e)
				continue
			}
			for _, addr := range r.names[e.HostName].addrs {
				h := e
				h.Address = netip.AddrPortFrom(addr, uint16(e.Port))
				if h.DisplayHost == "" {
					h.DisplayHost = e.HostName
				}
				l.Endpoints = append(l.Endpoints, h)
			}
		}
		a.Localities = append(a.Localities, l)
	}
	return &a
}

// pause is after how long a name is resolved again.
type pause struct {
	d    *xdsresource.DNS
	step time.Duration // of failures in a row
}

// answered is the pause after an answer: its TTL, if that counts and it has one.
func (p *pause) answered(any bool, ttl time.Duration) time.Duration {
	p.step = 0
	next := p.rate()
	if any && p.d.RespectTTL && (ttl > 0 || p.d.MinRefreshRate > 0) {
		next = max(ttl, p.d.MinRefreshRate)
	}
	if j := p.d.Jitter; j > 0 {
		next += rand.N(j)
	}
	return next
}

// failed is the pause after a failure: of dns_failure_refresh_rate, which grows
// from failure to failure and is jittered over its whole length.
func (p *pause) failed() time.Duration {
	if p.d.FailureBase <= 0 {
		return p.rate()
	}
	p.step = min(max(2*p.step, p.d.FailureBase), p.d.FailureMax)
	return max(rand.N(p.step), time.Millisecond)
}

func (p *pause) rate() time.Duration {
	if p.d.RefreshRate > 0 {
		return p.d.RefreshRate
	}
	return 5 * time.Second
}

// lookup resolves name within the family that d wants, in at most the given time
// if that isn't 0. An answer without addresses is one: the name has none.
func (m *Manager) lookup(ctx context.Context, name string, d *xdsresource.DNS, timeout time.Duration) (dns.Answer, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return dns.Answer{Addrs: []netip.Addr{a}}, nil
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	types := []dns.Type{dns.IPv6, dns.IPv4} // AUTO prefers IPv6
	switch d.Family {
	case xdsresource.DNSV4Only:
		types = types[1:]
	case xdsresource.DNSV6Only:
		types = types[:1]
	case xdsresource.DNSV4Preferred:
		types = []dns.Type{dns.IPv4, dns.IPv6}
	case xdsresource.DNSAuto, xdsresource.DNSAll:
	}
	var out dns.Answer
	var errs []error
	res := m.resolver(d)
	for _, t := range types {
		a, err := res.Lookup(ctx, name, t)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if len(a.Addrs) > 0 && (len(out.Addrs) == 0 || a.TTL < out.TTL) {
			out.TTL = a.TTL
		}
		for _, addr := range a.Addrs {
			out.Addrs = append(out.Addrs, addr.Unmap())
		}
		if len(out.Addrs) > 0 && d.Family != xdsresource.DNSAll {
			break
		}
	}
	if len(out.Addrs) > 0 {
		return out, nil
	}
	return out, errors.Join(errs...)
}

// resolver is the one that d asks for. Clusters that ask for the same share it.
func (m *Manager) resolver(d *xdsresource.DNS) Resolver {
	if m.opt.Resolver != nil {
		return m.opt.Resolver
	}
	cfg := d.Resolver
	if cfg == nil {
		cfg = m.opt.DNS
	}
	if cfg == nil {
		cfg = &dns.Config{}
	}
	key := cfg.Key()
	r, ok := m.resolvers.Load(key)
	if !ok {
		r, _ = m.resolvers.LoadOrStore(key, Resolver(dns.New(*cfg, m.opt.Names)))
	}
	return r.(Resolver) //nolint:errcheck,forcetypeassert // nothing else is stored
}
