package proxy

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// proofKept is for how long what was prepared to prove a resource is kept for the
// configuration that it will be part of.
const proofKept = 5 * time.Second

// jobKey is what filters that are prepared once have in common.
type jobKey struct {
	typeURL, direction string
	digest             xdsresource.Digest
	modules            string // digests of what came from elsewhere
}

// task is a filter that is to be prepared.
type task struct {
	key  jobKey
	name string // of the filter
	run  func(context.Context) (io.Closer, error)
}

// job is a task that is done as long as somebody wants it. err and made are
// settled when done is closed.
type job struct {
	task
	ctx  context.Context //nolint:containedctx // as long as somebody wants it
	stop context.CancelFunc
	refs int
	done chan struct{}
	made io.Closer
	err  error
}

func (j *job) finished() bool {
	select {
	case <-j.done:
		return true
	default:
		return false
	}
}

// workshop prepares filters, one at a time, beside what applies configuration. It
// is safe for concurrent use and has a goroutine while there is work.
type workshop struct {
	// changed is told when something is ready, one call at a time.
	changed func()
	log     *slog.Logger

	mu    sync.Mutex
	jobs  map[jobKey]*job
	queue []*job
	// wanted are those of the configuration.
	wanted map[jobKey]*job
	// proving counts proofs of extension configurations that run, or have succeeded
	// just now, by name.
	proving map[string]int
	kept    map[*time.Timer]func() // what proofs keep
	news    bool                   // changed is to be called
	telling bool
	working bool
	closed  bool
	wg      sync.WaitGroup
}

func newWorkshop(changed func(), log *slog.Logger) *workshop {
	return &workshop{changed: changed, log: log, jobs: map[jobKey]*job{}, proving: map[string]int{}, kept: map[*time.Timer]func(){}}
}

// take returns the job of t, which begins unless it has. release must follow.
func (w *workshop) take(t task) *job {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.takeLocked(t)
}

func (w *workshop) takeLocked(t task) *job {
	if j := w.jobs[t.key]; j != nil {
		j.refs++
		return j
	}
	j := &job{task: t, refs: 1, done: make(chan struct{})}
	j.ctx, j.stop = context.WithCancel(context.Background())
	if w.closed {
		j.stop()
		j.err = context.Canceled
		close(j.done)
		return j
	}
	w.jobs[t.key] = j
	w.queue = append(w.queue, j)
	if !w.working {
		w.working = true
		w.wg.Go(w.work)
	}
	return j
}

// release gives jobs back; those that nobody wants any more end.
func (w *workshop) release(js ...*job) {
	var idle []io.Closer
	w.mu.Lock()
	for _, j := range js {
		if j.refs--; j.refs > 0 {
			continue
		}
		j.stop()
		if w.jobs[j.key] == j {
			delete(w.jobs, j.key)
		}
		if j.finished() && j.made != nil {
			idle = append(idle, j.made)
		}
	}
	w.mu.Unlock()
	for _, c := range idle {
		closeFilter(w.log, "prepared", c)
	}
}

// retain replaces what the configuration wants.
func (w *workshop) retain(ts []task) {
	next := make(map[jobKey]*job, len(ts))
	var gone []*job
	w.mu.Lock()
	for _, t := range ts {
		if next[t.key] != nil {
			continue
		}
		if j := w.wanted[t.key]; j != nil {
			next[t.key] = j
			continue
		}
		next[t.key] = w.takeLocked(t)
	}
	for k, j := range w.wanted {
		if next[k] == nil {
			gone = append(gone, j)
		}
	}
	w.wanted = next
	w.mu.Unlock()
	w.release(gone...)
}

// look returns the job of k if it is finished, else nil.
func (w *workshop) look(k jobKey) *job {
	w.mu.Lock()
	defer w.mu.Unlock()
	if j := w.jobs[k]; j != nil && j.finished() {
		return j
	}
	return nil
}

// await waits for what the configuration wants.
func (w *workshop) await(end <-chan time.Time) {
	w.mu.Lock()
	js := make([]*job, 0, len(w.wanted))
	for _, j := range w.wanted {
		js = append(js, j)
	}
	w.mu.Unlock()
	for _, j := range js {
		select {
		case <-j.done:
		case <-end:
			return
		}
	}
}

// tellLocked has changed called. Who applies configuration may wait for a job, so
// that is for another goroutine.
func (w *workshop) tellLocked() {
	w.news = true
	if w.telling || w.closed {
		return
	}
	w.telling = true
	w.wg.Go(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for w.news {
			w.news = false
			w.mu.Unlock()
			w.changed()
			w.mu.Lock()
		}
		w.telling = false
	})
}

// work prepares until there is nothing left.
func (w *workshop) work() {
	for {
		w.mu.Lock()
		if len(w.queue) == 0 {
			w.working = false
			w.mu.Unlock()
			return
		}
		j := w.queue[0]
		w.queue = w.queue[1:]
		w.mu.Unlock()
		w.do(j)
	}
}

func (w *workshop) do(j *job) {
	made, err := io.Closer(nil), j.ctx.Err()
	if err == nil {
		made, err = contained(w.log, j.name, func() (io.Closer, error) { return j.run(j.ctx) })
	}
	w.mu.Lock()
	j.made, j.err = made, err
	close(j.done)
	wanted := j.refs > 0
	if wanted {
		w.tellLocked()
	}
	w.mu.Unlock()
	if !wanted && made != nil {
		closeFilter(w.log, j.name, made)
	}
}

// prove waits for the jobs of ts on behalf of an extension configuration called
// ext, or of something else, and keeps them for a while. ext counts as proving since
// the caller called proofBegins.
func (w *workshop) prove(ctx context.Context, ext string, ts []task) error {
	js := make([]*job, len(ts))
	for i, t := range ts {
		js[i] = w.take(t)
	}
	var err error
	for i, j := range js {
		select {
		case <-j.done:
			if err == nil && j.err != nil {
				err = filterError{ts[i].name, j.err}
			}
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	end := func() {
		w.release(js...)
		w.proofEnds(ext)
	}
	if err != nil {
		end()
		return err
	}
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		end()
		return nil
	}
	var t *time.Timer
	t = time.AfterFunc(proofKept, func() {
		w.mu.Lock()
		_, mine := w.kept[t]
		delete(w.kept, t)
		w.mu.Unlock()
		if mine {
			end()
		}
	})
	w.kept[t] = end
	w.mu.Unlock()
	return nil
}

func (w *workshop) proofBegins(ext string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.proving[ext]++
}

// proofEnds is told when ext is refused, or has had the time to be in force.
func (w *workshop) proofEnds(ext string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ext == "" {
		return
	}
	if w.proving[ext]--; w.proving[ext] == 0 {
		delete(w.proving, ext)
	}
	w.tellLocked()
}

// proven reports whether an extension configuration that has not arrived is about
// to.
func (w *workshop) proven(ext string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.proving[ext] > 0
}

// close ends all work and gives back everything.
func (w *workshop) close() {
	w.mu.Lock()
	w.closed = true
	for _, j := range w.jobs {
		j.stop()
	}
	kept := w.kept
	w.kept = map[*time.Timer]func(){}
	w.mu.Unlock()
	w.wg.Wait()
	for t, end := range kept {
		t.Stop()
		end()
	}
	w.retain(nil)
}

// filterError is why a filter can't be prepared.
type filterError struct {
	name string
	err  error
}

func (e filterError) Error() string { return "filter " + e.name + ": " + e.err.Error() }
func (e filterError) Unwrap() error { return e.err }

// idle reports whether nothing that the configuration wants is still to be done.
func (w *workshop) idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, j := range w.wanted {
		if !j.finished() {
			return false
		}
	}
	return true
}

// busy reports whether anything is wanted, or proven.
func (w *workshop) busy() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.wanted)+len(w.proving) > 0
}
