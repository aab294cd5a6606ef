package accesslog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

const (
	// flushBytes and flushInterval bound how long a line waits for company.
	flushBytes    = 256 << 10
	flushInterval = time.Second
	// maxPending bounds what a stalled file or pipe holds back; further lines
	// are dropped.
	maxPending = 1 << 20
	maxKept    = 8 << 10
)

// line is a pooled buffer for rendering.
type line struct{ p []byte }

type linePool struct{ p sync.Pool }

var lines linePool

func (l *linePool) Get() *line {
	if b, ok := l.p.Get().(*line); ok {
		return b
	}
	return &line{p: make([]byte, 0, 1024)}
}

func (l *linePool) Put(b *line) {
	if cap(b.p) <= maxKept {
		l.p.Put(b)
	}
}

// Sinks is the set of open log files of a process: loggers with the same path
// share one buffer and one writer. Make it with NewSinks. Safe for concurrent
// use.
type Sinks struct {
	mu     sync.Mutex
	m      map[string]*sink
	closed bool

	dropped, failed *stats.Counter
}

// NewSinks returns an empty set. scope, which may be nil, receives the counters
// dropped_lines_total and failed_writes_total; its prefix is
// "fairlead_access_log_".
func NewSinks(scope *stats.Scope) *Sinks {
	return &Sinks{
		m:       map[string]*sink{},
		dropped: scope.Counter("dropped_lines_total"),
		failed:  scope.Counter("failed_writes_total"),
	}
}

// Pending is how many bytes wait to be written, and the most that may.
func (s *Sinks) Pending() (held, bound int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.m {
		k.mu.Lock()
		held += int64(len(k.buf))
		k.mu.Unlock()
		bound += maxPending
	}
	return held, bound
}

func (s *Sinks) open(path string) (*sink, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("access logs are closed")
	}
	if k := s.m[path]; k != nil {
		return k, nil
	}
	k := &sink{path: path, set: s, wake: make(chan struct{}, 1), done: make(chan struct{})}
	if err := k.reopen(); err != nil {
		return nil, err
	}
	s.m[path] = k
	go k.run()
	return k, nil
}

// Lines returns what appends whole lines to the file called path; it
// implements filters.LogFiles.
func (s *Sinks) Lines(path string) (func(p []byte) bool, error) {
	k, err := s.open(path)
	if err != nil {
		return nil, err
	}
	return k.write, nil
}

// Reopen reopens all files, after they were rotated away. /dev/stdout and
// /dev/stderr stay. A file that can't be opened keeps its old descriptor.
func (s *Sinks) Reopen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, k := range s.m {
		errs = append(errs, k.reopen())
	}
	return errors.Join(errs...)
}

// Flush writes what is buffered.
func (s *Sinks) Flush() {
	s.mu.Lock()
	ks := make([]*sink, 0, len(s.m))
	for _, k := range s.m {
		ks = append(ks, k)
	}
	s.mu.Unlock()
	for _, k := range ks {
		k.flush()
	}
}

// Close flushes and closes all sinks; later lines are dropped.
func (s *Sinks) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	var errs []error
	for path, k := range s.m {
		errs = append(errs, k.close())
		delete(s.m, path)
	}
	return errors.Join(errs...)
}

// sink is one log file with its writer goroutine.
type sink struct {
	path string
	set  *Sinks
	wake chan struct{} // capacity 1: there is something to write, or closed
	done chan struct{} // closed when run returned

	mu     sync.Mutex // guards the fields below
	buf    []byte
	timer  *time.Timer
	closed bool
	now    io.Closer // c, for who does not wait for writes

	wmu  sync.Mutex // serializes writing; taken before mu
	w    io.Writer
	c    io.Closer // nil for standard streams
	free []byte    // the buffer that is not buf, between writes
}

func (k *sink) reopen() error {
	switch k.path {
	case "/dev/stdout":
		return k.replace(os.Stdout, nil)
	case "/dev/stderr":
		return k.replace(os.Stderr, nil)
	}
	f, err := os.OpenFile(k.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644) //nolint:gosec // logs are read by collectors
	if err != nil {
		return fmt.Errorf("access log: %w (is the directory there and writable?)", err)
	}
	return k.replace(f, f)
}

func (k *sink) replace(w io.Writer, c io.Closer) error {
	k.wmu.Lock()
	defer k.wmu.Unlock()
	old := k.c
	k.w, k.c = w, c
	k.mu.Lock()
	k.now = c
	k.mu.Unlock()
	if old != nil {
		return old.Close()
	}
	return nil
}

// render appends the line of f where it is to be written from, which saves a
// copy. It returns false, and has done nothing, if another line is on its way
// there: nobody waits for the rendering of others.
func (k *sink) render(f *File, c *format.Context) bool {
	if !k.mu.TryLock() {
		return false
	}
	n, whole := len(k.buf), false
	defer func() {
		if !whole { // a panic, which is the stream's: half a line is nobody's
			k.buf = k.buf[:n]
			k.mu.Unlock()
		}
	}()
	k.buf = f.Append(k.buf, c)
	whole = true
	k.appended(n)
	return true
}

// write appends p to the buffer and reports whether it did. It never blocks on
// I/O.
func (k *sink) write(p []byte) bool {
	k.mu.Lock()
	n := len(k.buf)
	k.buf = append(k.buf, p...)
	return k.appended(n)
}

// appended ends what render and write did: it takes back a line that is too
// much, which begins at n, or sees to it that it will be written. It is called
// with mu held, and unlocks it.
func (k *sink) appended(n int) bool {
	if k.closed || len(k.buf) > maxPending {
		k.buf = k.buf[:n]
		k.mu.Unlock()
		k.set.dropped.Inc()
		return false
	}
	first := n == 0
	full := len(k.buf) >= flushBytes
	if first && !full {
		if k.timer == nil {
			k.timer = time.AfterFunc(flushInterval, k.kick)
		} else {
			k.timer.Reset(flushInterval)
		}
	}
	k.mu.Unlock()
	if full {
		k.kick()
	}
	return true
}

func (k *sink) kick() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *sink) run() {
	defer close(k.done)
	for range k.wake {
		k.flush()
		k.mu.Lock()
		closed := k.closed
		k.mu.Unlock()
		if closed {
			return
		}
	}
}

// flush writes the buffer, swapping it with a second one.
func (k *sink) flush() {
	k.wmu.Lock()
	defer k.wmu.Unlock()
	k.mu.Lock()
	p := k.buf
	k.buf = k.free[:0]
	k.free = nil
	k.mu.Unlock()
	if len(p) > 0 {
		if _, err := k.w.Write(p); err != nil {
			k.set.failed.Inc()
		}
	}
	if cap(p) <= 2*flushBytes {
		k.free = p[:0]
	}
}

// closeTime is how long a file has for its last lines: whoever does not read a pipe
// must not hold up the end of the process.
const closeTime = 2 * time.Second

func (k *sink) close() error {
	k.mu.Lock()
	k.closed = true
	if k.timer != nil {
		k.timer.Stop()
	}
	k.mu.Unlock()
	k.kick()
	t := time.NewTimer(closeTime)
	defer t.Stop()
	select {
	case <-k.done:
	case <-t.C:
		return k.giveUp()
	}
	k.flush()
	return k.replace(io.Discard, nil)
}

// giveUp ends a write that does not end. The standard streams stay as they are.
func (k *sink) giveUp() error {
	err := fmt.Errorf("access log %s: its last lines are lost, for nobody reads it", k.path)
	k.mu.Lock()
	c := k.now
	k.mu.Unlock()
	if c != nil {
		_ = c.Close() // which ends the write
		<-k.done
	}
	return err
}
