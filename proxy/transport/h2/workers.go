package h2

import (
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/timer"
)

// task is what a worker runs: a stream's handler or a function.
type task struct {
	s  *stream
	fn func()
}

// worker is a goroutine that waits for tasks. Its stack has already grown to
// what a request needs, which is what starting a fresh goroutine would pay for.
type worker struct {
	ch   chan task
	next *worker
}

// workerPool keeps idle workers, last used first. It serves all connections of
// the process and is empty when there are none, or soon after a burst.
type workerPool struct {
	mu    sync.Mutex
	free  *worker
	n     int // idle workers
	low   int // fewest idle ones since the last trim
	users int // open connections
	armed bool
	tm    timer.Timer
}

const (
	maxIdleWorkers = 1024
	workerTrim     = 2 * time.Second
)

// workers is the pool that connections take when they are made. Tests that run in
// a bubble of their own put one of their own here.
var workers = &workerPool{}

// run executes t on a goroutine of its own and returns at once.
func (p *workerPool) run(t task) {
	p.mu.Lock()
	w := p.free
	if w == nil {
		p.mu.Unlock()
		w = &worker{ch: make(chan task, 1)}
		go w.loop(p, t)
		return
	}
	p.free = w.next
	p.n--
	p.low = min(p.low, p.n)
	p.mu.Unlock()
	w.ch <- t
}

func (w *worker) loop(p *workerPool, t task) {
	for {
		if t.s != nil {
			t.s.serve()
		} else {
			t.fn()
		}
		t = task{} //nolint:wastedassign // an idle worker keeps no stream alive
		if !p.park(w) {
			return
		}
		var ok bool
		if t, ok = <-w.ch; !ok {
			return
		}
	}
}

func (p *workerPool) park(w *worker) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users == 0 || p.n >= maxIdleWorkers {
		return false
	}
	w.next = p.free
	p.free = w
	p.n++
	if !p.armed {
		p.armed, p.low = true, 0
		p.tm.Arm(workerTrim, p.trim)
	}
	return true
}

// attach and detach count the connections that use the pool.
func (p *workerPool) attach() {
	p.mu.Lock()
	p.users++
	p.mu.Unlock()
}

func (p *workerPool) detach() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users--; p.users == 0 {
		p.dropLocked(p.n)
		p.tm.Stop()
		p.armed = false
	}
}

// trim ends the workers that were not needed since the last trim.
func (p *workerPool) trim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropLocked(p.low)
	p.low = p.n
	p.armed = p.n > 0
	if p.armed {
		p.tm.Arm(workerTrim, p.trim)
	}
}

func (p *workerPool) dropLocked(n int) {
	for ; n > 0 && p.free != nil; n-- {
		w := p.free
		p.free = w.next
		p.n--
		close(w.ch)
	}
	p.low = min(p.low, p.n)
}
