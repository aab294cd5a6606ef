package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead-mesh/fairlead/proxy/listener"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// swap makes snap current: new and changed listeners first, then the pointer,
// then removal.
func (s *Server) swap(prev, snap *Snapshot) error {
	var errs []error
	names := make(map[string]*listener.Listener, len(snap.Listeners))
	taken := s.addresses(snap)
	for _, name := range sortedKeys(snap.Listeners) {
		bl := snap.Listeners[name]
		l := s.listeners[name]
		if l == nil {
			if l = listener.New(name); s.shut == shutAll || s.shut == shutInbound && bl.spec.Direction == "inbound" {
				l.StopAccepting()
			}
		} else if prev != nil && prev.former[name] == nil && unchanged(prev.Listeners[name], bl) {
			names[name] = l
			s.st.chainsKept.Add(uint64(len(bl.chains)))
			continue
		}
		err := claim(taken, bl.spec)
		if err == nil {
			err = l.Update(bl.config)
		}
		if err != nil {
			s.st.bindErrors.Inc()
			errs = append(errs, err)
			snap.Diagnostics = append(snap.Diagnostics, Diagnostic{Resource: "listener " + name, Path: "address", Severity: "error", Message: err.Error()})
			if s.listeners[name] == nil {
				continue
			}
			snap.keep(name, prev)
		} else if s.listeners[name] == nil {
			s.follow(l)
		}
		if s.draining.Load() {
			l.Drain(0)
		}
		names[name] = l
		s.st.lds.applied(s.listeners[name] == nil)
	}
	var removed []*listener.Listener
	for name, l := range s.listeners {
		if names[name] == nil {
			removed = append(removed, l)
		}
	}
	s.leave(slices.Clip(removed))
	s.listeners = names
	s.byName.Store(&names)
	s.snapshot.Store(snap)
	s.st.live.Set(1)
	s.retire(removed)
	s.releaseReplaced(prev, snap)
	return errors.Join(errs...)
}

// addresses are those of listeners that run and keep them: sockets are bound so
// that two may share an address, and the kernel would divide the connections.
func (s *Server) addresses(snap *Snapshot) map[netip.AddrPort]string {
	out := map[netip.AddrPort]string{}
	for name, l := range s.listeners {
		if bl := snap.Listeners[name]; bl != nil {
			for _, a := range l.Addresses() {
				if slices.Contains(bl.spec.Addresses, a) {
					out[a] = name
				}
			}
		}
	}
	return out
}

// claim enters the addresses of spec.
func claim(taken map[netip.AddrPort]string, spec *xdsresource.Listener) error {
	if spec.Internal || !spec.BindToPort {
		return nil
	}
	for _, a := range spec.Addresses {
		if other, ok := taken[a]; ok && other != spec.Name {
			return fmt.Errorf("listener %s: address %s is that of listener %s", spec.Name, a, other)
		}
	}
	for _, a := range spec.Addresses {
		if a.Port() != 0 {
			taken[a] = spec.Name
		}
	}
	return nil
}

// unchanged tells whether nothing that a listener serves differs: the same
// content, with what its filters are configured by, and the very same chains.
func unchanged(a, b *builtListener) bool {
	if a == nil || a.spec.Digest != b.spec.Digest || a.ecds != b.ecds || len(a.chains) != len(b.chains) {
		return false
	}
	for i := range a.chains {
		if a.chains[i] != b.chains[i] {
			return false
		}
	}
	return true
}

// leaving are listeners that were removed and may have connections.
func (s *Server) leaving() []*listener.Listener {
	if r := s.retired.Load(); r != nil {
		return *r
	}
	return nil
}

// retire drains removed listeners.
func (s *Server) retire(removed []*listener.Listener) {
	for _, l := range removed {
		s.st.lds.removed.Inc()
		l.StopAccepting()
		l.Drain(s.opt.DrainTime)
	}
}

// leave adds removed to those that leave, before they are missing in byName.
func (s *Server) leave(removed []*listener.Listener) {
	for _, l := range s.leaving() {
		if l.Accepting() || l.Active() > 0 {
			removed = append(removed, l)
		}
	}
	s.retired.Store(&removed)
}
