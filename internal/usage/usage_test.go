package usage_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/internal/usage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// thing is something that is replaced while it is used.
type thing struct {
	users  usage.Count
	closed atomic.Int32
}

func enter(p *atomic.Pointer[thing]) *thing {
	for {
		x := p.Load()
		ticket := x.users.Enter()
		if p.Load() == x {
			return x
		}
		x.users.Undo(ticket)
	}
}

func TestTheLastUserIsTheOneThatTells(t *testing.T) {
	for n := range 4 {
		var c usage.Count
		told := 0
		for range n {
			c.Enter()
		}
		c.Retire(func() { told++ })
		for i := range n {
			if told != 0 {
				t.Fatalf("told with %d of %d users", n-i, n)
			}
			c.Undo(c.Enter()) // who comes too late changes nothing
			c.Leave()
		}
		if told != 1 {
			t.Errorf("%d users: told %d times", n, told)
		}
		c.Undo(c.Enter())
		if told != 1 {
			t.Errorf("%d users: told %d times in the end", n, told)
		}
	}
}

// Every thing is closed once, and never under a user.
func TestNothingIsClosedUnderItsUsers(t *testing.T) {
	var p atomic.Pointer[thing]
	p.Store(&thing{})
	var users, swaps sync.WaitGroup
	stop := make(chan struct{})
	var under atomic.Int64
	for range 8 {
		users.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				x := enter(&p)
				if x.closed.Load() != 0 {
					under.Add(1)
				}
				if i%3 == 0 { // leaves elsewhere
					users.Go(func() {
						if x.closed.Load() != 0 {
							under.Add(1)
						}
						x.users.Leave()
					})
					continue
				}
				x.users.Leave()
			}
		})
	}
	var all []*thing
	swaps.Go(func() {
		for range 2000 {
			x := p.Swap(&thing{})
			all = append(all, x)
			x.users.Retire(func() { x.closed.Add(1) })
		}
	})
	swaps.Wait()
	close(stop)
	users.Wait()
	for i, x := range all {
		if n := x.closed.Load(); n != 1 {
			t.Fatalf("thing %d was closed %d times", i, n)
		}
	}
	if n := under.Load(); n != 0 {
		t.Errorf("%d uses of what was closed", n)
	}
}

func TestCountingDoesNotAllocate(t *testing.T) {
	var c usage.Count
	if n := testing.AllocsPerRun(1000, func() { c.Enter(); c.Leave() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkEnterAndLeave(b *testing.B) {
	var c usage.Count
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c.Enter()
			c.Leave()
		}
	})
}
