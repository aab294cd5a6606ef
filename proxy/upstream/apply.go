package upstream

import (
	"slices"

	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Apply replaces the set of clusters: it is Update for those that are given, which
// removes the others.
func (m *Manager) Apply(clusters []*xdsresource.Cluster) {
	m.mu.Lock()
	defer m.mu.Unlock()
	given := make(map[string]bool, len(clusters))
	for _, spec := range clusters {
		given[spec.Name] = true
	}
	var gone []string
	for name := range m.all.All() {
		if !given[name] {
			gone = append(gone, name)
		}
	}
	slices.Sort(gone)
	m.updateLocked(clusters, gone)
}

// Update adds and changes clusters, and removes those of other names that are
// given; it takes no time for the rest. Those whose Digest is unchanged stay as
// they are. A new or changed cluster serves once it is warm (endpoints arrived,
// names resolved, or the timeout); until then a changed one's former version goes
// on. Removed ones drain.
func (m *Manager) Update(clusters []*xdsresource.Cluster, remove []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.updateLocked(clusters, remove)
}

func (m *Manager) updateLocked(clusters []*xdsresource.Cluster, remove []string) {
	if m.closed || len(clusters)+len(remove) == 0 {
		return
	}
	var started []*Cluster
	changed := false
	for _, spec := range clusters {
		sl, ok := m.all.Get(spec.Name)
		if !ok {
			sl, changed = &slot{}, true
			m.all.Set(spec.Name, sl)
		}
		if c := m.renewLocked(sl, spec); c != nil {
			started = append(started, c)
		}
	}
	var gone []*Cluster
	for _, name := range remove {
		sl, ok := m.all.Get(name)
		if !ok {
			continue
		}
		changed = true
		m.all.Delete(name)
		m.countStatName(sl.spec, -1)
		if c := m.warming[name]; c != nil {
			delete(m.warming, name)
			m.closeLocked(c)
			gone = append(gone, c)
		}
		if c := sl.Load(); c != nil {
			m.st.removed.Inc()
			m.closeLocked(c)
			gone = append(gone, c)
		}
	}
	if changed {
		m.publishLocked()
	}
	m.forget(gone)
	for name := range m.unasked {
		delete(m.unasked, name)
		delete(m.assignments, name)
	}
	for _, c := range started {
		m.start(c)
	}
}

// renewLocked returns the cluster that is to warm for spec, nil if there is one
// like that.
func (m *Manager) renewLocked(sl *slot, spec *xdsresource.Cluster) *Cluster {
	m.countStatName(sl.spec, -1)
	m.countStatName(spec, 1)
	sl.spec = spec
	cur, warm := sl.Load(), m.warming[spec.Name]
	switch {
	case warm != nil && warm.spec.Digest == spec.Digest:
		return nil
	case warm != nil:
		delete(m.warming, spec.Name)
		m.closeLocked(warm)
	}
	if cur != nil && cur.spec.Digest == spec.Digest {
		return nil
	}
	if cur != nil {
		m.st.modified.Inc()
	} else if warm == nil {
		m.st.added.Inc()
	}
	c := m.newCluster(spec)
	m.warming[spec.Name] = c
	if n := c.asksFor(); n != "" {
		m.byEDS[n] = append(m.byEDS[n], c)
		delete(m.unasked, n)
	}
	return c
}

// asksFor is the name of the endpoints that c needs, "" if it needs none.
func (c *Cluster) asksFor() string {
	if c.spec.Broken != "" {
		return ""
	}
	return c.edsName()
}

// closeLocked closes a cluster that serves or warms no more.
func (m *Manager) closeLocked(c *Cluster) {
	c.close()
	n := c.asksFor()
	if n == "" {
		return
	}
	left := slices.DeleteFunc(m.byEDS[n], func(o *Cluster) bool { return o == c })
	if len(left) > 0 {
		m.byEDS[n] = left
		return
	}
	delete(m.byEDS, n)
	if m.assignments[n] != nil {
		m.unasked[n] = struct{}{}
	}
}

func (m *Manager) publishLocked() {
	s := m.all.Snapshot()
	m.slots.Store(&s)
}

// forgetEndpoints forgets which endpoints there are, and who asks for them.
func (m *Manager) forgetEndpoints() {
	m.byEDS, m.assignments, m.unasked = map[string][]*Cluster{}, map[string]*xdsresource.ClusterLoadAssignment{}, map[string]struct{}{}
}

// countStatName adds to how many clusters count under the alt_stat_name of spec.
func (m *Manager) countStatName(spec *xdsresource.Cluster, add int) {
	if spec == nil || spec.AltStatName == "" {
		return
	}
	if m.statNames[spec.AltStatName] += add; m.statNames[spec.AltStatName] == 0 {
		delete(m.statNames, spec.AltStatName)
	}
}

// countsUnder tells whether a cluster that there is counts under name.
func (m *Manager) countsUnder(name string) bool {
	sl, ok := m.all.Get(name)
	return m.statNames[name] > 0 || ok && sl.spec.AltStatName == ""
}

// forget ends the metrics of clusters that are gone, unless one that there is
// counts under the same name, and what is known of callouts to them. The caller holds
// m.mu.
func (m *Manager) forget(gone []*Cluster) {
	if len(gone) == 0 {
		return
	}
	var scopes []*stats.Scope
	for _, c := range gone {
		s := c.endStats()
		if !m.countsUnder(c.StatName()) {
			scopes = append(scopes, s)
		}
		if g, ok := m.callouts.LoadAndDelete(c.spec.Name); ok && !m.countsUnder(c.spec.Name) {
			scopes = append(scopes, g.(*calloutGuard).scope) //nolint:errcheck,forcetypeassert // nothing else is stored
		}
	}
	stats.Release(scopes...)
}
