package proxy

import (
	"context"
	"errors"
	"slices"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/xdsclient"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// prove says how a decoded resource is proven: if it has modules that are here,
// they are started before it is accepted.
func (s *Server) prove(name string, v any) xdsclient.Proof {
	var ts []task
	add := func(tc *xdsresource.TypedConfig, direction string) {
		t, ok := s.task(tc, direction)
		if !ok {
			return
		}
		if j := s.workshop.look(t.key); j == nil || j.err != nil {
			ts = append(ts, t)
		}
	}
	ext := ""
	switch v := v.(type) {
	case *xdsresource.ExtensionConfig:
		ext = name
		for _, d := range s.directionsOf(name) {
			add(&v.TypedConfig, d)
		}
	case *xdsresource.Listener:
		for _, fc := range chains(v) {
			filterConfigs(&Resources{}, fc, func(tc *xdsresource.TypedConfig, http bool, _ string) {
				if tc != nil && http {
					add(tc, v.Direction)
				}
			})
		}
	}
	if len(ts) == 0 {
		return nil
	}
	if ext != "" {
		s.workshop.proofBegins(ext)
	}
	return func(ctx context.Context) error {
		err := s.workshop.prove(ctx, ext, ts)
		if errors.Is(err, filters.ErrModulePending) {
			return nil // it was lost meanwhile: as if it were not here
		}
		return err
	}
}

// directionsOf are those that an extension configuration is used in, or may be.
func (s *Server) directionsOf(name string) []string {
	snap := s.snapshot.Load()
	if snap == nil {
		return []string{"inbound"}
	}
	var used, all []string
	for _, l := range snap.Resources.Listeners {
		for _, fc := range chains(l) {
			filterConfigs(snap.Resources, fc, func(_ *xdsresource.TypedConfig, http bool, n string) {
				if http && n == name && !slices.Contains(used, l.Direction) {
					used = append(used, l.Direction)
				}
				if http && !slices.Contains(all, l.Direction) {
					all = append(all, l.Direction)
				}
			})
		}
	}
	switch {
	case len(used) > 0:
		return used
	case len(all) > 0:
		return all[:1]
	}
	return []string{"inbound"}
}
