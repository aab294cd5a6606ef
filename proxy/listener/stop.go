package listener

import (
	"net/netip"

	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// StopAccepting closes the sockets for good; connections go on. A socket whose
// address another process has taken over is closed within two seconds, when it has
// passed its new connections on and no client waits in it.
func (l *Listener) StopAccepting() {
	l.mu.Lock()
	l.stopped = true
	for a, s := range l.sockets {
		l.retire(a, s)
	}
	l.mu.Unlock()
}

// retire closes a socket in order. The caller holds l.mu.
func (l *Listener) retire(a netip.AddrPort, s *netio.Listener) {
	delete(l.sockets, a)
	l.retired[s] = true // until accept has ended
	s.Retire()
}

// Accepting reports whether a socket is open, be it to take what waits in it.
func (l *Listener) Accepting() bool { return l.accepting.Load() > 0 }

// forget is for a socket that is closed: what it took is counted.
func (l *Listener) forget(s *netio.Listener) {
	l.mu.Lock()
	delete(l.retired, s)
	l.mu.Unlock()
	l.accepting.Add(-1)
}
