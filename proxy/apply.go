package proxy

// Apply makes dynamic, beside the static resources, the configuration in force.
// It returns an error if a listener could not be bound; everything else is in
// force then, and the listener keeps its former configuration. The order is
// Envoy's: secrets and clusters before the listeners that name them, removal
// after.
func (s *Server) Apply(dynamic *Resources) error {
	if s.opt.AwaitClusters && !s.serving() {
		if err := s.warm(dynamic); err != nil {
			return err
		}
	}
	return s.apply(dynamic)
}

// apply puts dynamic in force, or the last one again if it is nil.
func (s *Server) apply(dynamic *Resources) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applyLocked(dynamic)
}

func (s *Server) applyLocked(dynamic *Resources) (err error) {
	defer s.containApply(&err)
	switch {
	case s.closed && dynamic == nil:
		return nil
	case s.closed:
		return errClosed
	case dynamic == nil && s.dynamic == nil:
		return nil
	case dynamic == nil:
		dynamic = s.dynamic
	}
	s.dynamic = dynamic
	prev := s.snapshot.Load()
	res := merge(s.opt.Static, dynamic)
	s.secrets.SetADS(res.Secrets)
	res, notes := s.passOver(prev, res)
	s.applyClusters(res)
	res, more := s.withModules(prev, res) // which clusters may serve
	b := &builder{s: s, res: res, prev: prev, diags: append(notes, more...)}
	snap := b.build()
	b.refreshRoutes(snap)
	s.st.snapshots.Inc()
	s.st.chainsCompiled.Add(uint64(b.fresh))
	s.count(prev, snap)
	err = s.swap(prev, snap)
	s.review(b.review)
	s.removeParting(res)
	s.reportNew(prev, snap)
	return err
}

// count publishes how much of the configuration isn't executed.
func (s *Server) count(prev, snap *Snapshot) {
	errs := 0
	for _, d := range snap.Diagnostics {
		if d.Severity == "error" {
			errs++
		}
	}
	s.st.diagErrors.Set(int64(errs))
	before, view := &Resources{}, 0
	if prev != nil {
		before, view = prev.Resources, prev.ignoredInView
	}
	var all int
	all, snap.ignoredInView = snap.Resources.ignored(before, view)
	s.st.diagIgnored.Set(int64(all))
}

// reportNew logs diagnostics that the previous snapshot did not have.
func (s *Server) reportNew(prev, snap *Snapshot) {
	seen := map[Diagnostic]bool{}
	if prev != nil {
		for _, d := range prev.Diagnostics {
			seen[d] = true
		}
	}
	for _, d := range snap.Diagnostics {
		if seen[d] {
			continue
		}
		seen[d] = true
		switch d.Severity {
		case "error":
			s.log.Error("configuration is not executable as given", "resource", d.Resource, "path", d.Path, "reason", d.Message)
		default:
			s.log.Warn("configuration", "resource", d.Resource, "path", d.Path, "note", d.Message)
		}
	}
}
