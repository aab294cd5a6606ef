package proxy

import (
	"slices"
	"time"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

const (
	// lingerTime is how long a removed cluster stays for requests that were
	// routed before, if no filter chain drains.
	lingerTime = 5 * time.Second
	// entryTime is how long a connection may take from the listener to its chain:
	// listener filters have 15 s.
	entryTime = 20 * time.Second
	// warmTimeout bounds the wait of the first configuration for its clusters and
	// modules.
	warmTimeout = 15 * time.Second
)

// lingering are removed clusters that requests routed by a former configuration
// may still go to: a table that was replaced, or a chain that drains.
type lingering struct {
	clusters map[string]*xdsresource.Cluster
	// chains are replaced filter chains that may have streams.
	chains []drainingChain
}

// drainingChain is a replaced filter chain.
type drainingChain struct {
	chain interface{ Active() int }
	// filled is when no connection can enter it any more that was accepted before,
	// until is when its connections are cut.
	filled, until time.Time
}

// over reports whether the chain has no streams at now, and will have none.
func (d drainingChain) over(now time.Time) bool {
	return !now.Before(d.until) || !now.Before(d.filled) && d.chain.Active() == 0
}

// drainingChains returns the replaced chains that may have streams. The caller holds
// s.mu.
func (s *Server) drainingChains() []drainingChain {
	now := time.Now()
	s.linger.chains = slices.DeleteFunc(s.linger.chains, func(d drainingChain) bool { return d.over(now) })
	return slices.Clone(s.linger.chains)
}

// applyClusters gives the manager those clusters of res that differ from what it
// was given before. Endpoints come by UpdateEndpoints; the manager keeps an
// assignment that arrives before its cluster. Clusters that res hasn't any more stay
// until removeParting, so that none is missing while the old tables are in force. The
// caller holds s.mu.
func (s *Server) applyClusters(res *Resources) {
	var list []*xdsresource.Cluster
	for _, n := range changedClusters(s.given, res) {
		c := res.Cluster(n)
		if c == nil {
			s.parting[n] = s.given.Cluster(n)
			continue
		}
		delete(s.parting, n)
		delete(s.linger.clusters, n)
		list = append(list, c)
	}
	s.clusters.Update(list, nil)
	s.given = res // after: if it panics, the next configuration starts from the former
	if len(list) == 0 {
		return
	}
	// Endpoints that came while the manager knew no cluster for them.
	for _, n := range s.clusters.MissingEndpoints() {
		if cla := res.endpoints(n); cla != nil {
			s.clusters.UpdateEndpoints(n, cla)
		}
	}
}

// warm waits, before the first configuration serves, until the names of its
// clusters are resolved or have failed to: what is routed to one before is
// answered as if it did not exist; and until its WebAssembly modules are here. It
// is bounded by warmTimeout. For endpoints of EDS the control plane's client has
// waited.
func (s *Server) warm(dynamic *Resources) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errClosed
	}
	res := merge(s.opt.Static, dynamic)
	s.dynamic = nil // what was is not put in force again: it would forget the modules of res
	s.secrets.SetADS(res.Secrets)
	s.applyClusters(res)
	s.mu.Unlock()
	end := time.NewTimer(warmTimeout)
	defer end.Stop()
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	for {
		names := s.clusters.Resolving()
		if len(names) == 0 {
			s.awaitModules(res, look.C, end.C)
			return nil
		}
		select {
		case <-look.C:
		case <-s.hurry:
			return nil
		case <-end.C:
			s.log.Warn("names of clusters are not resolved in time; the proxy serves without them", "clusters", names)
			return nil
		}
	}
}

// applyStatic puts the static resources in force, with or without waiting for
// their clusters.
func (s *Server) applyStatic(wait bool) error {
	if wait {
		return s.Apply(&Resources{})
	}
	return s.apply(&Resources{})
}

// StartServing ends the wait of a first configuration for its clusters, and that
// of later ones: what they add warms beside the traffic.
func (s *Server) StartServing() { s.hurried.Do(func() { close(s.hurry) }) }

func (s *Server) serving() bool {
	select {
	case <-s.hurry:
		return true
	default:
		return false
	}
}

// removeParting removes the clusters that the configuration before res had. Those
// that res still refers to are missing from now on; the others linger for requests
// which were routed by a former one. The caller holds s.mu.
func (s *Server) removeParting(res *Resources) {
	if len(s.parting) == 0 {
		return
	}
	// A push is several messages: a cluster may be gone before the routes that
	// name it are.
	named, any := namedClusters(res)
	var keep, soon, now []string
	for _, n := range sortedKeys(s.parting) {
		switch {
		case !any && !named[n]:
			keep = append(keep, n)
		case s.opt.RemovalGrace > 0:
			soon = append(soon, n)
		default:
			now = append(now, n)
			continue
		}
		if s.linger.clusters == nil {
			s.linger.clusters = map[string]*xdsresource.Cluster{}
		}
		s.linger.clusters[n] = s.parting[n]
	}
	s.parting = map[string]*xdsresource.Cluster{}
	s.clusters.Update(nil, now)
	s.forget(soon, s.opt.RemovalGrace)
	s.forget(keep, min(lingerTime, s.opt.DrainTime))
}

// forget ends the lingering of clusters after wait, unless the configuration
// names them again and has them again.
func (s *Server) forget(names []string, wait time.Duration) {
	if len(names) == 0 || s.closed {
		return
	}
	specs := make([]*xdsresource.Cluster, len(names))
	for i, n := range names {
		specs[i] = s.linger.clusters[n]
	}
	s.laterIn(wait, func() {
		if s.away() {
			s.forgetWhenHeard(specs)
			return
		}
		s.forgetUnlessUsed(specs, s.drainingChains())
	})
}

func (s *Server) away() bool { return s.opt.Away != nil && s.opt.Away() }

// forgetWhenHeard waits with clusters that a control plane removed before it
// went away: that may have been in the middle of a push, and the routes in force
// may name them until it has sent the rest.
func (s *Server) forgetWhenHeard(specs []*xdsresource.Cluster) {
	if s.closed {
		return
	}
	away := s.away()
	s.laterIn(max(s.opt.RemovalGrace, 10*time.Millisecond), func() {
		if away {
			s.forgetWhenHeard(specs)
			return
		}
		s.forgetUnlessUsed(specs, s.drainingChains())
	})
}

// forgetUnlessUsed forgets clusters, but keeps those that chains may name until
// these have no streams: chains that are replaced later don't name them. Nor does
// it forget what resources name whose successors were refused.
func (s *Server) forgetUnlessUsed(specs []*xdsresource.Cluster, chains []drainingChain) {
	now := time.Now()
	chains = slices.DeleteFunc(chains, func(d drainingChain) bool { return d.over(now) })
	snap := s.snapshot.Load()
	named, any := namedClusters(snap.Resources)
	kept, all := s.namedByRefused(snap.Resources)
	var used []*xdsresource.Cluster
	var forgotten []string
	for _, c := range specs {
		switch {
		case s.linger.clusters[c.Name] != c:
		case all || kept[c.Name] || s.clung[c.Name], len(chains) > 0 && !any && !named[c.Name]:
			used = append(used, c)
		default:
			delete(s.linger.clusters, c.Name)
			forgotten = append(forgotten, c.Name)
		}
	}
	if len(used) > 0 && !s.closed {
		s.laterIn(min(lingerTime, s.opt.DrainTime), func() { s.forgetUnlessUsed(used, chains) })
	}
	s.clusters.Update(nil, forgotten)
}

// namedClusters lists the clusters that routes and TCP proxies of res name; any
// is set if a header of the request may name every one.
func namedClusters(res *Resources) (named map[string]bool, any bool) {
	n := naming{res: res, named: map[string]bool{}}
	for _, l := range res.Listeners {
		for _, fc := range l.FilterChains {
			n.chain(fc)
		}
		if l.DefaultFilterChain != nil {
			n.chain(l.DefaultFilterChain)
		}
	}
	return n.named, n.any
}

type naming struct {
	res   *Resources
	named map[string]bool
	any   bool
}

func (n *naming) chain(fc *xdsresource.FilterChain) {
	for i := range fc.Filters {
		switch f := &fc.Filters[i]; {
		case f.HCM != nil && f.HCM.RouteConfig != nil:
			n.table(f.HCM.RouteConfig)
		case f.HCM != nil:
			n.table(n.res.Routes[f.HCM.RDSName])
		case f.TCPProxy != nil:
			n.named[f.TCPProxy.Cluster] = true
			for k := range f.TCPProxy.Weighted {
				n.named[f.TCPProxy.Weighted[k].Name] = true
			}
		}
	}
}

func (n *naming) table(rc *xdsresource.RouteConfiguration) {
	if rc == nil {
		return
	}
	for _, vh := range rc.VirtualHosts {
		for _, r := range vh.Routes {
			if r.Action != nil {
				n.action(r.Action)
			}
		}
	}
}

func (n *naming) action(a *xdsresource.RouteAction) {
	n.named[a.Cluster] = true
	n.any = n.any || a.ClusterHeader != ""
	for i := range a.Weighted {
		n.named[a.Weighted[i].Name] = true
		n.any = n.any || a.Weighted[i].ClusterHeader != ""
	}
	for i := range a.Mirrors {
		n.named[a.Mirrors[i].Cluster] = true
	}
}
