package h1

import (
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/timer"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// watcher looks whether the client still is there: while a request is in flight
// nobody reads the connection. A Server has one from a request on until it was
// idle for a moment.
type watcher struct {
	s    *Server // nil in the pool
	tm   timer.Timer
	fn   func() // check
	seen uint32
	wait time.Duration
}

const (
	watchMin = 50 * time.Millisecond
	watchMax = time.Second
)

var watchers = sync.Pool{New: func() any { return new(watcher) }}

// startWatching is called with mu held.
func (s *Server) startWatching() {
	w := watchers.Get().(*watcher) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	if w.fn == nil {
		w.fn = w.check
	}
	w.s, w.wait = s, watchMin
	w.seen = s.seq.Load() - 1 // it has not seen this request
	s.watch = w
	w.tm.Arm(w.wait, w.fn)
}

// stopWatching is for the end of the connection.
func (s *Server) stopWatching() {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.watch
	s.watch = nil
	if w != nil && w.tm.Stop() { // else it may be running
		w.free()
	}
}

func (w *watcher) free() {
	w.s = nil
	watchers.Put(w)
}

// check runs on the timer's goroutine.
func (w *watcher) check() {
	s := w.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watch != w {
		return
	}
	seq := s.seq.Load()
	same := seq == w.seen
	w.seen = seq
	switch {
	case seq&1 == 0 && same: // idle: the next request brings another
		s.watch = nil
		w.free()
		return
	case !same:
		w.wait = watchMin
	case seq&1 == 1:
		p, ok := s.rd.c.(netio.Prober)
		if !ok {
			return
		}
		s.mu.Unlock()
		_, ended := p.Probe()
		if ended && s.seq.Load() == seq {
			s.lost(&transport.ResetError{Reason: transport.ConnectionTermination, Detail: "the client closed the connection"})
			s.mu.Lock()
			return
		}
		s.mu.Lock()
		if s.watch != w {
			return
		}
		w.wait = min(2*w.wait, watchMax)
	}
	w.tm.Arm(w.wait, w.fn)
}

// loss is why the client is gone.
type loss struct {
	cause error
	told  chan struct{} // closed when the callback of OnReset has returned; nil if there was none
}

// lost tells the stream's owner that the client is gone.
func (s *Server) lost(cause error) {
	s.mu.Lock()
	if s.gone != nil {
		s.mu.Unlock()
		return
	}
	f, l := s.onReset, &loss{cause: cause}
	if f != nil {
		l.told = make(chan struct{})
		defer close(l.told)
	}
	s.gone, s.onReset = l, nil
	s.mu.Unlock()
	if f != nil {
		f(cause)
	}
}

// OnReset implements transport.ServerStream.
func (st *serverStream) OnReset(f func(cause error)) {
	s := st.s
	s.mu.Lock()
	gone := s.gone
	if gone == nil {
		s.onReset = f
		if f != nil && s.watch == nil {
			s.startWatching()
		}
	}
	s.mu.Unlock()
	switch {
	case gone == nil:
	case f != nil:
		f(gone.cause)
	case gone.told != nil:
		<-gone.told
	}
}
