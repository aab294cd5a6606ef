package netio

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/timer"
)

// ErrJoinIdle is the error of a Join that ended by its idle timeout.
var ErrJoinIdle = errors.New("netio: no byte moved for the idle timeout")

// JoinOptions bounds a Join.
type JoinOptions struct {
	// IdleTimeout ends the join when no byte moved for that long, at most a
	// quarter later; 0: never.
	IdleTimeout time.Duration
	// OnBytes, if not nil, sees progress (at most every few chunks and at the
	// end). It is not called concurrently and must not block.
	OnBytes func(aToB, bToA uint64)
}

// JoinError says on which side a Join failed.
type JoinError struct {
	// OnA: connection a failed, else b.
	OnA bool
	Err error
}

// Error names the failure.
func (e *JoinError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *JoinError) Unwrap() error { return e.Err }

// Join copies both ways between a and b until both directions have ended, with
// half-close passed on, and closes both. It returns the bytes copied from a to
// b and from b to a. No buffer is held while a direction is idle. A reset or
// error on one side resets the other; the error then is a *JoinError. After
// IdleTimeout both are closed and the error is ErrJoinIdle.
func Join(a, b Conn, opts JoinOptions) (aToB, bToA uint64, err error) {
	ended := make(chan struct{})
	j := newJoin(a, b, opts, func(x, y uint64, e error) {
		aToB, bToA, err = x, y, e
		close(ended)
	})
	go j.dir[0].run()
	j.dir[1].run()
	<-ended
	return aToB, bToA, err
}

// JoinAsync is Join without waiting: done is called once, on some goroutine. A
// direction whose source can park holds no goroutine while it is idle.
func JoinAsync(a, b Conn, opts JoinOptions, done func(aToB, bToA uint64, err error)) {
	j := newJoin(a, b, opts, done)
	go j.dir[0].run()
	go j.dir[1].run()
}

type join struct {
	dir  [2]direction
	opts JoinOptions
	done func(aToB, bToA uint64, err error)

	mu     sync.Mutex
	err    error
	ended  int
	report sync.Mutex

	idle   timer.Timer
	idleFn func()
	seen   uint64
	quiet  int
}

// direction pumps one way.
type direction struct {
	j        *join
	src, dst Conn
	fromA    bool
	n        atomic.Uint64
	size     int
	runFn    func()
}

func newJoin(a, b Conn, opts JoinOptions, done func(aToB, bToA uint64, err error)) *join {
	j := &join{opts: opts, done: done}
	j.dir[0].src, j.dir[0].dst, j.dir[0].fromA = a, b, true
	j.dir[1].src, j.dir[1].dst = b, a
	for i := range j.dir {
		d := &j.dir[i]
		d.j, d.size, d.runFn = j, SmallBuffer, d.run
	}
	if opts.IdleTimeout > 0 {
		j.idleFn = j.checkIdle
		j.idle.Arm(opts.IdleTimeout/idleParts, j.idleFn)
	}
	return j
}

// idleParts is how often activity is sampled within an idle timeout: cheaper
// than noting the time of each read.
const idleParts = 4

func (j *join) checkIdle() {
	n := j.dir[0].n.Load() + j.dir[1].n.Load()
	if n != j.seen {
		j.seen, j.quiet = n, 0
	} else {
		j.quiet++
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.ended == len(j.dir) || j.err != nil:
	case j.quiet < idleParts:
		j.idle.Arm(max(j.opts.IdleTimeout/idleParts, 1), j.idleFn)
	default:
		j.err = ErrJoinIdle
		j.dir[0].src.Interrupt(ErrJoinIdle)
		j.dir[1].src.Interrupt(ErrJoinIdle)
	}
}

// run pumps until the direction ends or has parked.
func (d *direction) run() {
	if l, ok := d.src.(Looper); ok {
		if err := l.Loop(d.step); err != nil {
			d.end(err, d.fromA)
		}
		return
	}
	for d.step() {
		if d.src.Park(d.runFn) {
			return
		}
	}
}

// step copies what is there and reports whether to wait for more.
func (d *direction) step() (wait bool) {
	buf := GetBuffer(d.size)
	defer func() { PutBuffer(buf) }()
	moved := false
	re, _ := d.src.(Rechecker)
	for {
		n, err := d.src.TryRead(*buf)
		if n > 0 {
			moved = true
			if _, err := d.dst.Write((*buf)[:n]); err != nil {
				d.end(err, !d.fromA)
				return false
			}
			d.n.Add(uint64(n))
			if n == len(*buf) && n < LargeBuffer {
				d.size = LargeBuffer
				PutBuffer(buf)
				buf = GetBuffer(d.size)
			}
			continue
		}
		if errors.Is(err, ErrWouldBlock) {
			if moved && re != nil && re.Recheck() {
				continue // an end is passed on as soon as it is there
			}
			if moved {
				d.j.progress()
			} else {
				d.size = SmallBuffer
			}
			return true
		}
		d.end(err, d.fromA)
		return false
	}
}

func (j *join) progress() {
	if j.opts.OnBytes == nil {
		return
	}
	j.report.Lock()
	j.opts.OnBytes(j.dir[0].n.Load(), j.dir[1].n.Load())
	j.report.Unlock()
}

// end finishes a direction; onA tells which connection err is from.
func (d *direction) end(err error, onA bool) {
	j := d.j
	if errors.Is(err, io.EOF) {
		if err = d.dst.CloseWrite(); errors.Is(err, errors.ErrUnsupported) {
			err = nil
		}
		onA = !d.fromA
	}
	j.mu.Lock()
	failed := err != nil && j.err == nil
	if failed {
		j.err = &JoinError{OnA: onA, Err: err}
	}
	j.ended++
	last := j.ended == len(j.dir)
	j.mu.Unlock()
	if failed {
		// Neither side may take what it got for all there was.
		d.src.Reset()
		d.dst.Reset()
	}
	if !last {
		return
	}
	j.idle.Stop()
	_ = d.src.Close()
	_ = d.dst.Close()
	j.progress()
	j.done(j.dir[0].n.Load(), j.dir[1].n.Load(), j.err)
}
