package listener

import (
	"net/netip"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// inspector is a listener filter that takes its time.
type inspector struct{ entered, leave chan struct{} }

func (f inspector) OnAccept(*filters.Connection) error {
	close(f.entered)
	<-f.leave
	return nil
}

// interruptible tells when it is interrupted.
type interruptible struct {
	netio.Conn
	interrupted chan struct{}
}

func (c interruptible) Interrupt(cause error) {
	c.Conn.Interrupt(cause)
	close(c.interrupted)
}

// inspected gives l, whose filter is f, a connection.
func inspected(t *testing.T, l *Listener, f inspector) (conn interruptible, done chan struct{}) {
	t.Helper()
	near, far := netio.Pipe(netip.AddrPort{}, netip.AddrPort{})
	t.Cleanup(func() { _ = near.Close() })
	conn, done = interruptible{far, make(chan struct{})}, make(chan struct{})
	go l.Serve(conn, &streaminfo.Conn{}, func() { close(done) })
	<-f.entered
	return conn, done
}

func ends(t *testing.T, done chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("the connection does not end")
	}
}

// A connection may still be looked at when its chain is cut: it must not enter that,
// whose filters are released soon.
func TestAConnectionThatComesWhenItsChainIsCutIsCut(t *testing.T) {
	for name, cut := range map[string]func(*Listener, Config){
		"by the end of the listener": func(l *Listener, _ Config) { l.Close() },
		"by a chain that replaces it": func(l *Listener, c Config) {
			old := c.Chains[0]
			c.Chains = []*Chain{{Name: "b", Terminal: greeter{"b"}}}
			c.DrainTime = time.Millisecond
			if err := l.Update(c); err != nil {
				t.Error(err)
			}
			eventually(t, "the chain is cut", func() bool {
				old.mu.Lock()
				defer old.mu.Unlock()
				return old.over
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := inspector{make(chan struct{}), make(chan struct{})}
			c := config(&lines{}, &Chain{Name: "a", Terminal: greeter{"a"}})
			c.ListenerFilters = []ListenerFilter{{Filter: f}}
			l, _ := start(t, c)
			_, done := inspected(t, l, f)
			c.ListenerFilters = nil
			cut(l, c)
			close(f.leave)
			ends(t, done)
		})
	}
}

// A listener filter may be through when its time is over: the connection, which is
// interrupted then, is one that timed out.
func TestAConnectionThatIsInterruptedByItsInspectionEnds(t *testing.T) {
	f := inspector{make(chan struct{}), make(chan struct{})}
	log := &lines{}
	c := config(log, &Chain{Name: "a", Terminal: greeter{"a"}})
	c.ListenerFilters = []ListenerFilter{{Filter: f}}
	c.Spec.ListenerFiltersTimeout = 10 * time.Millisecond
	l, _ := start(t, c)
	conn, done := inspected(t, l, f)
	<-conn.interrupted
	close(f.leave)
	ends(t, done)
	if n := l.st.filterTimeout.Value(); n != 1 {
		t.Errorf("%d timeouts are counted", n)
	}
	if got := log.take(); len(got) != 1 || got[0] != "||" {
		t.Errorf("%q", got)
	}
}
