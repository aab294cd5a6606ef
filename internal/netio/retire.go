package netio

import "time"

const (
	// settleTime is how long nothing may arrive before a listener that was retired
	// is closed: a handshake that began earlier is over by then.
	settleTime = 300 * time.Millisecond
	// maxRetire bounds all of it.
	maxRetire = 2 * time.Second
)

// Retire closes the listener without losing a client if another process (or
// listener) has bound the same address with ReusePort. The kernel deals
// connections to all of them, and resets those that wait for Accept when their
// socket is closed: so new ones are sent to another socket first, and the
// listener closes when it has none left. Until then Accept goes on; somebody must
// call it. Without such a successor Retire is Close.
//
// It takes at most 2 seconds, for which Retire doesn't wait: Accept returns
// ErrClosed when it is over.
func (l *Listener) Retire() {
	n := 1
	if l.shared {
		n = listeners(l.l)
	}
	if n < 2 {
		_ = l.Close()
		return
	}
	go func() {
		l.handOver(n)
		_ = l.Close()
	}()
}

// handOver sends new connections to another of n sockets. Who listens last is
// the last one until one that is older is closed; a socket to which connections
// still come after that is this one.
func (l *Listener) handOver(n int) {
	end := time.Now().Add(maxRetire)
	for other := n - 1; other >= 0; other-- {
		if steer(l.l, other) != nil || l.quiet(end) {
			return
		}
	}
}

// quiet waits until nothing has arrived for the settle time. It reports false if
// connections come steadily.
func (l *Listener) quiet(end time.Time) bool {
	t := time.NewTicker(settleTime / 30)
	defer t.Stop()
	began := time.Now()
	since, taken := began, l.taken.Load()
	for {
		select {
		case <-l.closed:
			return true
		case <-t.C:
		}
		now := time.Now()
		if n := l.taken.Load(); n != taken || waiting(l.l) {
			since, taken = now, n
		}
		switch {
		case now.After(end), now.Sub(since) >= settleTime:
			return true
		case now.Sub(began) >= 2*settleTime:
			return false
		}
	}
}
