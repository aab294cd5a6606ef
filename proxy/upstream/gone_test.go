package upstream

import (
	"runtime"
	"testing"
	"time"
	"weak"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// A timer that waits for connections to be idle for an hour must not keep a
// removed cluster that long.
func TestARemovedClusterIsGarbage(t *testing.T) {
	o := &origin{}
	m := newTestManager(t, o, nil)
	gone := func() weak.Pointer[Cluster] {
		m.Apply([]*xdsresource.Cluster{cluster("a", "10.0.0.1:80")})
		c := m.Cluster("a")
		finish(t, open(t, c))
		m.Apply(nil)
		o.conns = nil
		return weak.Make(c)
	}()
	for end := time.Now().Add(10 * time.Second); gone.Value() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("something keeps it")
		}
		runtime.GC()
	}
}
