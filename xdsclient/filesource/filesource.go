// Package filesource reads xDS resources from files, as path_config_source of
// Envoy's API names them, and follows their changes. A file holds a
// DiscoveryResponse (YAML, JSON, or serialized as .pb). A file that can't be
// read or parsed changes nothing, a resource in it that can't be executed keeps
// its last good form, and both are logged, counted and listed by Files.
package filesource

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/filewatch"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/xdsclient"
)

// MaxBytes bounds a file: what a Watcher looks at.
const MaxBytes = filewatch.MaxBytes

// Ref is what somebody wants from a file.
type Ref struct {
	// Key names the resource; an empty name stands for all of the type, and what
	// is no longer in the file is removed then. A named one stays.
	Key xdsclient.Key
	// Path of the file. Watch, if not empty, is a folder in which a move (the
	// swap of a link) means that the file may be another one.
	Path, Watch string
}

// Config is what a Source is made from.
type Config struct {
	// Decode has a decoder for each type.
	Decode map[string]xdsclient.Decoder
	// OnChange is called after a change of what Resources returns, or of Files,
	// on a goroutine of the Source; Want may be called from it.
	OnChange func()
	Logger   *slog.Logger
	// Stats is the scope of update_success_total, update_failure_total (files
	// that can't be read or parsed) and update_rejected_total (resources).
	Stats *stats.Scope
	// Settle is filewatch.Watcher's, for tests.
	Settle time.Duration
}

// Source reads and watches files. Its methods are safe for concurrent use.
type Source struct {
	cfg                         Config
	log                         *slog.Logger
	success, failures, rejected *stats.Counter

	mu     sync.Mutex
	files  map[fileKey]*file
	run    context.Context //nolint:containedctx // nil before Run
	wg     sync.WaitGroup
	seq    uint64
	closed bool
}

type fileKey struct{ typeURL, path, watch string }

// file is one file that is wanted for one type.
type file struct {
	key     fileKey
	watcher *filewatch.Watcher
	stop    context.CancelFunc // nil while nobody watches

	all    bool
	wanted map[string]bool
	// parsed is the last content that could be parsed.
	parsed   *content
	held     map[string]*held
	rejected map[string]xdsclient.Rejected
	err      error // why the newest content could not be parsed
	at       time.Time
}

type content struct {
	version string
	items   []item
}

type item struct {
	typeURL, name string
	b             []byte
	digest        [sha256.Size]byte
}

type held struct {
	xdsclient.Resource
	digest [sha256.Size]byte
	refs   []xdsclient.Key
}

// New returns a Source without files.
func New(c Config) *Source {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Stats == nil {
		c.Stats = (&stats.Registry{}).Scope("")
	}
	return &Source{
		cfg: c, log: c.Logger, files: map[fileKey]*file{},
		success: c.Stats.Counter("update_success_total"), failures: c.Stats.Counter("update_failure_total"), rejected: c.Stats.Counter("update_rejected_total"),
	}
}

// Run watches files until ctx ends. Before it, files are read once by Want.
func (s *Source) Run(ctx context.Context) {
	s.mu.Lock()
	s.run = ctx
	for _, f := range s.files {
		s.watchLocked(f)
	}
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wg.Wait()
}

// Want replaces what is wanted: files that are new are read before it returns,
// files that nobody wants any more are forgotten.
func (s *Source) Want(refs []Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, names := map[fileKey]bool{}, map[fileKey]map[string]bool{}
	for _, r := range refs {
		k := fileKey{r.Key.TypeURL, r.Path, r.Watch}
		if names[k] == nil {
			names[k] = map[string]bool{}
		}
		if r.Key.Name == "" {
			all[k] = true
			continue
		}
		names[k][r.Key.Name] = true
	}
	for k, f := range s.files {
		if names[k] == nil {
			if f.stop != nil {
				f.stop()
			}
			delete(s.files, k)
		}
	}
	for k, n := range names {
		f := s.files[k]
		if f == nil {
			f = &file{key: k, held: map[string]*held{}, rejected: map[string]xdsclient.Rejected{}}
			f.watcher = &filewatch.Watcher{Paths: []string{k.path}, Settle: s.cfg.Settle}
			if k.watch != "" {
				f.watcher.Dirs = []string{k.watch}
			}
			f.all, f.wanted = all[k], n
			f.watcher.Prime()
			s.files[k] = f
			s.readLocked(f)
			s.watchLocked(f)
			continue
		}
		if f.all != all[k] || !maps.Equal(f.wanted, n) {
			f.all, f.wanted = all[k], n
			s.acceptLocked(f)
		}
	}
}

func (s *Source) watchLocked(f *file) {
	if s.run == nil || s.closed || f.stop != nil {
		return
	}
	ctx, cancel := context.WithCancel(s.run)
	f.stop = cancel
	s.wg.Go(func() {
		_ = f.watcher.Run(ctx, func() {
			s.mu.Lock()
			current := s.files[f.key] == f && ctx.Err() == nil
			if current {
				s.readLocked(f)
			}
			s.mu.Unlock()
			if current && s.cfg.OnChange != nil {
				s.cfg.OnChange()
			}
		})
	})
}

// readLocked takes over the content of a file.
func (s *Source) readLocked(f *file) {
	f.at = time.Now()
	c, err := read(f.key.path)
	if f.err = err; err != nil {
		s.failures.Inc()
		s.log.Error("a configuration file can't be used; what it held before stays in force", "path", f.key.path, "type", f.key.typeURL, "error", err)
		return
	}
	f.parsed = c
	if s.acceptLocked(f) {
		s.success.Inc()
	}
}

// acceptLocked decodes what is wanted of the parsed content, and reports whether
// all of it could be.
func (s *Source) acceptLocked(f *file) bool {
	bad := map[string]xdsclient.Rejected{}
	reject := func(name string, err error) {
		bad[name] = xdsclient.Rejected{Name: name, Version: f.version(), Err: fmt.Errorf("%s: %w", f.key.path, err), At: f.at, Serving: f.held[name] != nil}
	}
	seen := map[string]bool{}
	if f.parsed != nil {
		for i := range f.parsed.items {
			it := &f.parsed.items[i]
			if !f.all && !f.wanted[it.name] {
				continue
			}
			seen[it.name] = true
			if err := s.takeLocked(f, it); err != nil {
				reject(it.name, err)
			}
		}
		for n := range f.wanted {
			if !seen[n] {
				reject(n, errors.New("the file has no such resource"))
			}
		}
	}
	for n := range f.held {
		if gone := f.all && !seen[n] && !f.wanted[n]; gone || !f.all && !f.wanted[n] {
			delete(f.held, n)
		}
	}
	for n, r := range bad {
		if old, ok := f.rejected[n]; !ok || old.Version != r.Version {
			s.rejected.Inc()
			s.log.Error("a resource of a configuration file is rejected", "path", f.key.path, "type", f.key.typeURL, "resource", n, "error", r.Err, "serving_older", r.Serving)
		}
	}
	f.rejected = bad
	return len(bad) == 0
}

func (f *file) version() string {
	if f.parsed == nil {
		return ""
	}
	return f.parsed.version
}

func (s *Source) takeLocked(f *file, it *item) error {
	h := f.held[it.name]
	switch {
	case it.typeURL != f.key.typeURL:
		return fmt.Errorf("the resource is a %q", it.typeURL)
	case it.name == "":
		return errors.New("the resource has no name")
	case h != nil && h.digest == it.digest:
		h.Version = f.parsed.version
		return nil
	}
	decode := s.cfg.Decode[it.typeURL]
	if decode == nil {
		return fmt.Errorf("resource type %q is not supported", it.typeURL)
	}
	v, refs, err := call(decode, it.name, it.b)
	if err != nil {
		return err
	}
	s.seq++
	f.held[it.name] = &held{
		Resource: xdsclient.Resource{Name: it.name, Version: f.parsed.version, Value: v, Seq: s.seq, Updated: f.at, Raw: it.b},
		digest:   it.digest, refs: refs,
	}
	return nil
}

func call(d xdsclient.Decoder, name string, b []byte) (v any, refs []xdsclient.Key, err error) {
	defer func() {
		if p := recover(); p != nil {
			v, refs, err = nil, nil, fmt.Errorf("the decoder panicked: %v", p)
		}
	}()
	return d(name, b)
}

// Resources returns what is in force by type and name. If two files hold the
// same resource, that of the file whose path sorts first is it. The maps are the
// caller's.
func (s *Source) Resources() map[string]map[string]xdsclient.Resource {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]map[string]xdsclient.Resource{}
	for _, f := range s.sortedLocked() {
		m := out[f.key.typeURL]
		if m == nil {
			m = map[string]xdsclient.Resource{}
			out[f.key.typeURL] = m
		}
		for n, h := range f.held {
			if _, taken := m[n]; !taken {
				m[n] = h.Resource
			}
		}
	}
	return out
}

// ADS lists what resources in force need from the control plane, sorted, each
// once.
func (s *Source) ADS() []xdsclient.Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []xdsclient.Key
	for _, f := range s.files {
		for _, h := range f.held {
			out = append(out, h.refs...)
		}
	}
	slices.SortFunc(out, func(a, b xdsclient.Key) int {
		return cmp.Or(strings.Compare(a.TypeURL, b.TypeURL), strings.Compare(a.Name, b.Name))
	})
	return slices.Compact(out)
}

// File is the condition of one file, for operators.
type File struct {
	TypeURL, Path string
	Version       string
	// Err is why the newest content could not be read or parsed; what it held
	// before is in force then.
	Err      error
	Read     time.Time
	Rejected []xdsclient.Rejected
}

// Files lists the files by path and type.
func (s *Source) Files() []File {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []File
	for _, f := range s.sortedLocked() {
		x := File{TypeURL: f.key.typeURL, Path: f.key.path, Version: f.version(), Err: f.err, Read: f.at}
		for _, r := range f.rejected {
			x.Rejected = append(x.Rejected, r)
		}
		slices.SortFunc(x.Rejected, func(a, b xdsclient.Rejected) int { return strings.Compare(a.Name, b.Name) })
		out = append(out, x)
	}
	return out
}

func (s *Source) sortedLocked() []*file {
	out := make([]*file, 0, len(s.files))
	for _, f := range s.files {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b *file) int {
		return cmp.Or(strings.Compare(a.key.path, b.key.path), strings.Compare(a.key.typeURL, b.key.typeURL), strings.Compare(a.key.watch, b.key.watch))
	})
	return out
}

func read(path string) (*content, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > MaxBytes {
		return nil, fmt.Errorf("%s is larger than %d MiB", path, MaxBytes>>20)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c, err := parse(path, b)
	if err != nil {
		return nil, err
	}
	if c.version == "" {
		d := sha256.Sum256(b)
		c.version = hex.EncodeToString(d[:8])
	}
	for i := range c.items {
		c.items[i].digest = sha256.Sum256(c.items[i].b)
	}
	return c, nil
}

// Compare orders refs.
func Compare(a, b Ref) int {
	return cmp.Or(strings.Compare(a.Key.TypeURL, b.Key.TypeURL), strings.Compare(a.Key.Name, b.Key.Name), strings.Compare(a.Path, b.Path), strings.Compare(a.Watch, b.Watch))
}
