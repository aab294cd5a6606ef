package upstream

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// TestOnlyAHostThatKeepsItsConnectionsIsTrusted: a connection goes without a look
// if it was in use just now, the request may be sent again, and the host has
// ended none for long.
func TestOnlyAHostThatKeepsItsConnectionsIsTrusted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{}
		c := serving(t, o, cluster("a", "10.0.0.1:80"))
		defer c.m.Close()
		// use sends a request pause after the last one, and tells whether the
		// connection was looked at.
		use := func(pause time.Duration, repeatable bool) (s *Stream, looked bool) {
			t.Helper()
			time.Sleep(pause)
			opt := &ConnectOptions{}
			if repeatable {
				opt.RepeatableAt = time.Now()
			}
			before := 0
			if o.count() > 0 {
				before = o.conns[0].blind
			}
			s, err := c.NewStream(context.Background(), pick(t, c), opt)
			if err != nil {
				t.Fatal(err)
			}
			return s, o.conns[0].blind == before
		}
		must := func(n int, pause time.Duration, repeatable, want bool) {
			t.Helper()
			for i := range n {
				s, looked := use(pause, repeatable)
				if looked != want {
					t.Fatalf("use %d: looked at: %v", i, looked)
				}
				finish(t, s)
			}
		}
		must(1+trustAfter, 0, true, true)
		must(3, trustFor-1, true, false)
		must(3, trustFor, true, true)
		must(3, 0, false, true)
		must(1, 0, true, false)
		s, _ := use(0, true)
		s.Ended()
		finish(t, s)
		must(-trustLost+trustAfter, 0, true, true)
		must(1, 0, true, false)
		if o.count() != 1 {
			t.Errorf("%d connections", o.count())
		}
		o.conns[0].mu.Lock()
		o.conns[0].drain = true // as if a look had found that it has ended
		o.conns[0].mu.Unlock()
		s, _ = use(0, false)
		finish(t, s)
		if p := c.poolFor(pick(t, c), &ConnectOptions{}); p.trust != trustLost {
			t.Errorf("trust is %d after a connection had ended", p.trust)
		}
	})
}

var _ transport.Resumer = (*fakeConn)(nil)
