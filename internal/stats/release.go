package stats

import "slices"

// owned is shared by the scopes of one object.
type owned struct{ released bool }

// Own returns a scope like s for an object that can go away, such as a cluster,
// and which the last label of s names. Release forgets what was taken through
// such scopes, and leaves other metrics with the same label alone.
func (s *Scope) Own() *Scope {
	if s == nil {
		return nil
	}
	n := *s
	n.owned = &owned{}
	return &n
}

// Release forgets the series of objects that are gone. Handles that are still
// held, and those that are taken from such a scope from now on, count unseen.
// Objects of one name share their series: the last of them is released. It looks
// at all series once, however many scopes there are; they are of one Registry,
// and Own has made them. Nil scopes are left out.
func Release(scopes ...*Scope) {
	gone := map[Label]bool{}
	var r *Registry
	for _, s := range scopes {
		if s != nil && s.owned != nil && len(s.labels) > 0 {
			r, gone[s.labels[len(s.labels)-1]] = s.r, true
		}
	}
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range scopes {
		if s != nil && s.owned != nil {
			s.owned.released = true
		}
	}
	for text, set := range r.sets {
		if !slices.ContainsFunc(set.labels, func(l Label) bool { return gone[l] }) {
			continue
		}
		set.series = slices.DeleteFunc(set.series, func(e series) bool {
			if e.f.owned {
				e.f.n--
			}
			return e.f.owned
		})
		if len(set.series) == 0 {
			set.dead = true
			delete(r.sets, text)
		}
	}
}
