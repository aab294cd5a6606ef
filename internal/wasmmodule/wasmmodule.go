// Package wasmmodule gets WebAssembly modules that filters run from where a
// configuration says they are: web servers, image registries, clusters. It does
// what istio-agent does for Envoy: pull secrets and policies, digests, the kinds
// of images, a cache with an end. A module that can't be had is tried again until
// nobody wants it any more.
package wasmmodule

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// Defaults of Options.
const (
	DefaultMaxModule     = 64 << 20
	DefaultMaxCache      = 256 << 20
	DefaultExpiry        = 24 * time.Hour
	DefaultPurgeInterval = time.Hour
	DefaultTimeout       = 15 * time.Second
	DefaultAttempts      = 5
	DefaultWait          = 10 * time.Second
)

// concurrency bounds how many modules are fetched at a time: each takes the
// memory of a module or two.
const concurrency = 8

// The pauses between attempts: of the first ones, which a configuration waits
// for, and of those that follow.
const (
	firstPause    = 500 * time.Millisecond
	maxFirstPause = 10 * time.Second
	laterPause    = 5 * time.Second
	maxLaterPause = 2 * time.Minute
)

// Options are what a Store is made from. Zero values are the defaults.
type Options struct {
	// Dir is where modules are kept, "" for memory.
	Dir string
	// MaxModule bounds a module in bytes, MaxCache all of them.
	MaxModule, MaxCache int64
	// Expiry is how long a module that nobody uses is kept; it is looked for
	// every PurgeInterval.
	Expiry, PurgeInterval time.Duration
	// Timeout is that of one attempt and Attempts how many there are before a
	// fetch counts as failed, unless a configuration says otherwise.
	Timeout  time.Duration
	Attempts int
	// Wait is after how long a module that is not here counts as failed, too.
	Wait time.Duration
	// Insecure are the hosts (with the port, if it is not the usual one) whose
	// certificates are not verified and which may speak plain HTTP; "*" is all.
	Insecure []string
	// Upstreams calls clusters; nil: modules of clusters can't be had.
	Upstreams filters.Upstreams
	Logger    *slog.Logger
	Stats     *stats.Scope
	// OnChange, if not nil, is called when a module has arrived, or has failed
	// for the first time: on a goroutine of the Store, one call at a time.
	OnChange func()
	// LaterPause replaces the first pause after a fetch has failed.
	LaterPause time.Duration
}

var errClosed = errors.New("the proxy ends")

// Store is filters.Modules. It starts no goroutine before the first module is
// asked for. It is safe for concurrent use.
type Store struct {
	opt    Options
	log    *slog.Logger
	cache  *cache
	web    *web
	slots  chan struct{}
	ctx    context.Context //nolint:containedctx // the life of the Store, which its goroutines share
	cancel context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{}
	st     storeStats

	mu      sync.Mutex
	modules map[string]*module
	tending bool
	closed  bool
}

// module is one that is wanted.
type module struct {
	ref  filters.ModuleRef
	key  string
	sum  string // of the content; "" while it isn't here
	err  error  // of the last attempt
	stop context.CancelFunc
	// settled: it is here, or its configuration need not wait for it any more.
	settled bool
	wait    *time.Timer
}

// New returns a Store. Close must follow.
func New(o Options) *Store {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	def := func(p *time.Duration, d time.Duration) {
		if *p <= 0 {
			*p = d
		}
	}
	def(&o.Expiry, DefaultExpiry)
	def(&o.PurgeInterval, DefaultPurgeInterval)
	def(&o.Timeout, DefaultTimeout)
	def(&o.Wait, DefaultWait)
	def(&o.LaterPause, laterPause)
	if o.MaxModule <= 0 {
		o.MaxModule = DefaultMaxModule
	}
	if o.MaxCache <= 0 {
		o.MaxCache = DefaultMaxCache
	}
	o.MaxCache = max(o.MaxCache, o.MaxModule)
	if o.Attempts <= 0 {
		o.Attempts = DefaultAttempts
	}
	s := &Store{
		opt: o, log: o.Logger, cache: newCache(o.Dir, o.MaxCache, o.Expiry, o.Logger), web: newWeb(o.Insecure),
		slots: make(chan struct{}, concurrency), wake: make(chan struct{}, 1), modules: map[string]*module{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.st.register(o.Stats, s)
	return s
}

// Close ends every fetch. Modules that are here can still be had.
func (s *Store) Close() {
	s.mu.Lock()
	s.closed = true
	for _, m := range s.modules {
		m.wait.Stop()
	}
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	s.web.close()
}

// keyOf names what ref stands for: equal keys, the same module. The secret is
// part of it, so that nobody gets what only another may pull. The version of
// Istio's resource is, where a new one means that the image is pulled again.
func keyOf(ref *filters.ModuleRef) string {
	h := sha256.New()
	version := ""
	switch ref.PullPolicy {
	case "Always":
		version = ref.ResourceVersion
	case "IfNotPresent":
	default:
		if latest(ref.URL) {
			version = ref.ResourceVersion
		}
	}
	for _, part := range []string{ref.URL, digestOf(ref), ref.Cluster, ref.PullSecret, version} {
		h.Write([]byte(part))
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil))
}

// digestOf is the digest that ref demands; istiod says "nil" for none.
func digestOf(ref *filters.ModuleRef) string {
	if ref.SHA256 == "nil" {
		return ""
	}
	return ref.SHA256
}

// Module implements filters.Modules.
func (s *Store) Module(ref filters.ModuleRef) ([]byte, error) {
	for range 2 {
		s.mu.Lock()
		m := s.wantLocked(&ref)
		sum, err := m.sum, m.why()
		s.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if b := s.cache.get(sum); b != nil {
			return b, nil
		}
		s.mu.Lock()
		if m.sum == sum { // its file was lost
			m.sum = ""
			s.startLocked(m)
		}
		s.mu.Unlock()
	}
	return nil, fmt.Errorf("%s: %w", shown(ref.URL), filters.ErrModulePending)
}

// why says why m is not here. It names the module, and no secret.
func (m *module) why() error {
	switch {
	case m.sum != "":
		return nil
	case m.err != nil:
		return fmt.Errorf("%s: %w", shown(m.ref.URL), m.err)
	}
	return fmt.Errorf("%s: %w", shown(m.ref.URL), filters.ErrModulePending)
}

// Want says which modules are needed from now on: new ones are fetched, the
// others forgotten, though kept for a while.
func (s *Store) Want(refs []filters.ModuleRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := make(map[string]bool, len(refs))
	for i := range refs {
		wanted[s.wantLocked(&refs[i]).key] = true
	}
	for key, m := range s.modules {
		if !wanted[key] {
			s.dropLocked(m)
		}
	}
}

// Look tells where a module is: the digest of its content, "" while it isn't here,
// and why. settled: no configuration need wait for it, because it is here, or has
// failed, or is taking too long.
func (s *Store) Look(ref filters.ModuleRef) (sum string, settled bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.wantLocked(&ref)
	return m.sum, m.settled, m.why()
}

// Here tells whether a module is here, without asking for it.
func (s *Store) Here(ref filters.ModuleRef) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := keyOf(&ref)
	if m := s.modules[key]; m != nil {
		return m.sum != ""
	}
	return s.cache.known(key) != ""
}

// wantLocked returns the module of ref; a new one is looked for in the cache,
// and fetched if it isn't there.
func (s *Store) wantLocked(ref *filters.ModuleRef) *module {
	key := keyOf(ref)
	if m := s.modules[key]; m != nil {
		return m
	}
	m := &module{ref: *ref, key: key, stop: func() {}}
	if s.closed {
		m.settled, m.err = true, errClosed
		return m
	}
	s.modules[key] = m
	sum := s.cache.known(key)
	hit := sum != "" && s.cache.pin(sum)
	s.st.lookup(hit)
	if hit {
		m.sum, m.settled = sum, true
		m.wait = time.NewTimer(0)
		m.wait.Stop()
		s.tendLocked()
		return m
	}
	m.wait = time.AfterFunc(s.opt.Wait, func() { s.tooLong(m) })
	s.startLocked(m)
	return m
}

func (s *Store) dropLocked(m *module) {
	delete(s.modules, m.key)
	m.stop()
	m.wait.Stop()
	if m.sum != "" {
		s.cache.unpin(m.sum)
	}
}

// startLocked begins to fetch m.
func (s *Store) startLocked(m *module) {
	if s.closed {
		return
	}
	s.tendLocked()
	m.stop()
	ctx, stop := context.WithCancel(s.ctx)
	m.stop = stop
	s.wg.Go(func() {
		defer stop()
		s.fetch(ctx, m)
	})
}

// tendLocked starts what removes old modules and calls OnChange.
func (s *Store) tendLocked() {
	if s.tending || s.closed {
		return
	}
	s.tending = true
	s.wg.Go(func() {
		t := time.NewTicker(s.opt.PurgeInterval)
		defer t.Stop()
		for {
			select {
			case <-s.ctx.Done():
				return
			case <-s.wake:
				if s.opt.OnChange != nil {
					s.opt.OnChange()
				}
			case now := <-t.C:
				s.cache.purge(now)
			}
		}
	})
}

func (s *Store) changed() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// tooLong ends the wait for m.
func (s *Store) tooLong(m *module) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.settled || s.modules[m.key] != m {
		return
	}
	m.settled = true
	s.log.Warn("a WebAssembly module is not here in time; its configuration does not wait any longer", "url", shown(m.ref.URL), "waited", s.opt.Wait)
	s.changed()
}
