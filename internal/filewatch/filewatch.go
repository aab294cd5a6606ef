// Package filewatch tells when the content of files has changed, also when
// they are replaced by renaming or, as Kubernetes does with mounted volumes,
// by swapping a symbolic link to their folder.
package filewatch

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// MaxBytes is how much of a file is looked at.
const MaxBytes = 16 << 20

// Watcher watches a fixed set of files. The zero values of durations mean the
// defaults given.
type Watcher struct {
	// Paths of the files; one that is missing counts as a content of its own.
	Paths []string
	// Dirs are folders to be notified of beside those of the files, for files
	// that are reached by a link which is swapped there.
	Dirs []string
	// Poll is how often files are read whatever the system notifies, 30 s.
	Poll time.Duration
	// Settle is how long no notification may arrive before the files are read,
	// so that what is written piece by piece is seen as a whole, 100 ms; ten
	// times that is waited at most.
	Settle time.Duration

	base   digest
	primed bool
}

// Prime takes the present content as what Run compares with. Call it before
// reading the files oneself, so that a change between that and Run isn't missed.
func (w *Watcher) Prime() { w.base, w.primed = w.sum(), true }

type digest [sha256.Size]byte

func (w *Watcher) sum() digest {
	h := sha256.New()
	for _, p := range w.Paths {
		f, err := os.Open(p)
		if err != nil {
			_, _ = io.WriteString(h, "\x00missing\x00")
			continue
		}
		n, _ := io.Copy(h, io.LimitReader(f, MaxBytes))
		_ = f.Close()
		_, _ = h.Write([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
	}
	return digest(h.Sum(nil))
}

// Run calls changed after each change of content until ctx ends, and returns
// ctx's error. Content is compared with what it was when Prime was called, or
// else when Run started; changed runs on Run's goroutine.
func (w *Watcher) Run(ctx context.Context, changed func()) error {
	if len(w.Paths) == 0 {
		return errors.New("no files to watch")
	}
	poll, settle := w.Poll, w.Settle
	if poll <= 0 {
		poll = 30 * time.Second
	}
	if settle <= 0 {
		settle = 100 * time.Millisecond
	}
	var events chan fsnotify.Event
	var failures chan error
	if n := w.notifier(); n != nil {
		defer func() { _ = n.Close() }()
		events, failures = n.Events, n.Errors
	}
	if !w.primed {
		w.Prime()
	}
	last := w.base
	timer := time.NewTimer(0) // look at once: something may have changed since Prime
	defer timer.Stop()
	var soon time.Time // when the first notification arrived
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			now := time.Now()
			if soon.IsZero() {
				soon = now
			}
			timer.Reset(min(settle, max(0, soon.Add(10*settle).Sub(now))))
		case <-failures: //nolint:errcheck // polling goes on
		case <-timer.C:
			soon = time.Time{}
			timer.Reset(poll)
			if s := w.sum(); s != last {
				last = s
				changed()
			}
		}
	}
}

// notifier watches the folders of the files, and nil if the system can't.
func (w *Watcher) notifier() *fsnotify.Watcher {
	n, err := fsnotify.NewWatcher()
	if err != nil {
		return nil
	}
	dirs := map[string]bool{}
	add := func(d string) {
		if !dirs[d] {
			dirs[d] = true
			_ = n.Add(d) // a missing folder is polled
		}
	}
	for _, p := range w.Paths {
		add(filepath.Dir(p))
	}
	for _, d := range w.Dirs {
		add(filepath.Clean(d))
	}
	return n
}
