package upstream

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// resolver keeps the hosts of a STRICT_DNS or LOGICAL_DNS cluster up to date.
// Names are asked again each dns_refresh_rate: the system's resolver doesn't
// tell TTLs. A failed answer keeps the last good one.
type resolver struct {
	c *Cluster

	mu     sync.Mutex
	timer  *time.Timer
	closed bool
	last   map[string][]netip.Addr
}

func newResolver(c *Cluster) *resolver { return &resolver{c: c, last: map[string][]netip.Addr{}} }

func (r *resolver) start() {
	r.mu.Lock()
	r.timer = time.AfterFunc(0, r.run)
	r.mu.Unlock()
}

func (r *resolver) close() {
	r.mu.Lock()
	r.closed = true
	if r.timer != nil {
		r.timer.Stop()
	}
	r.mu.Unlock()
}

const resolveTimeout = 10 * time.Second

// run resolves all names of the cluster once and schedules the next time.
func (r *resolver) run() {
	c := r.c
	s := c.stats()
	s.updateAttempt.Inc()
	out, changed, failed := r.resolveAll()
	if failed {
		s.updateFailure.Inc()
	}
	if changed {
		c.update(out)
	} else if !failed {
		s.updateSuccess.Inc()
	}
	c.m.promote(c)
	rate := c.spec.DNS.RefreshRate
	if rate <= 0 {
		rate = 5 * time.Second
	}
	if j := c.spec.DNS.Jitter; j > 0 {
		rate += rand.N(j)
	}
	r.mu.Lock()
	if !r.closed {
		r.timer.Reset(rate)
	}
	r.mu.Unlock()
}

// resolveAll builds the assignment with addresses in place of names.
func (r *resolver) resolveAll() (out *xdsresource.ClusterLoadAssignment, changed, failed bool) {
	spec := r.c.spec.Assignment
	if spec == nil {
		spec = &xdsresource.ClusterLoadAssignment{}
	}
	a := *spec
	a.Localities = make([]xdsresource.LocalityEndpoints, 0, len(spec.Localities))
	changed = r.c.current() == nil
	for _, l := range spec.Localities {
		es := l.Endpoints
		l.Endpoints = nil
		for i := range es {
			e := es[i]
			if e.HostName == "" || e.Address.IsValid() {
				l.Endpoints = append(l.Endpoints, e)
				continue
			}
			addrs, ch, err := r.resolve(e.HostName)
			changed = changed || ch
			if err != nil {
				failed = true
				r.c.m.log.Warn("name can't be resolved; the last answer stays in use", "cluster", r.c.spec.Name, "name", e.HostName, "error", err)
			}
			for _, addr := range addrs {
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
	return &a, changed, failed
}

// resolve returns the addresses for name: all of them for STRICT_DNS, one for
// LOGICAL_DNS, which is kept while it is among the answers so that connections
// need not move.
func (r *resolver) resolve(name string) (addrs []netip.Addr, changed bool, err error) {
	r.mu.Lock()
	last := r.last[name]
	r.mu.Unlock()
	addrs, err = r.c.m.lookup(r.c.ctx, name, r.c.spec.DNS.Family)
	if err != nil {
		return last, false, err
	}
	if r.c.spec.Discovery == xdsresource.DiscoveryLogicalDNS {
		keep := addrs[:1]
		if len(last) == 1 && slices.Contains(addrs, last[0]) {
			keep = last
		}
		addrs = keep
	} else {
		slices.SortFunc(addrs, netip.Addr.Compare)
		addrs = slices.Compact(addrs)
	}
	if slices.Equal(addrs, last) {
		return addrs, false, nil
	}
	r.mu.Lock()
	r.last[name] = addrs
	r.mu.Unlock()
	return addrs, true, nil
}

// lookup resolves name within family; the result is not empty without an
// error. IP literals are returned as they are.
func (m *Manager) lookup(ctx context.Context, name string, family xdsresource.DNSFamily) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	var res Resolver = net.DefaultResolver
	if m.opt.Resolver != nil {
		res = m.opt.Resolver
	}
	nets := []string{"ip6", "ip4"} // AUTO prefers IPv6
	switch family {
	case xdsresource.DNSV4Only:
		nets = nets[1:]
	case xdsresource.DNSV6Only:
		nets = nets[:1]
	case xdsresource.DNSV4Preferred:
		nets = []string{"ip4", "ip6"}
	case xdsresource.DNSAuto, xdsresource.DNSAll:
	}
	var out []netip.Addr
	var errs []error
	for _, n := range nets {
		as, err := res.LookupNetIP(ctx, n, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, a := range as {
			out = append(out, a.Unmap())
		}
		if len(out) > 0 && family != xdsresource.DNSAll {
			break
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	if len(errs) == 0 {
		return nil, errors.New("no addresses")
	}
	return nil, errors.Join(errs...)
}
