package rego

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// program is a policy that lives as long as any route uses it. If it comes
// from files or bundles, one goroutine looks after them and swaps the compiled
// policy when their content changed; content that doesn't compile changes
// nothing.
type program struct {
	// current is nil as long as a bundle has never arrived.
	current  atomic.Pointer[compiled]
	policy   policyConfig
	queries  queries
	allow    []string
	logger   *slog.Logger
	failures *stats.Counter
	remotes  []*remoteBundle // by index of policy.bundles; nil for files
	release  []func()
	changed  chan struct{} // a remote has new content
	stop     chan struct{}
	done     sync.WaitGroup

	// What was tried last; belongs to newProgram, then to the goroutine.
	sum   [sha256.Size]byte
	files []*loadedBundle // by index of policy.bundles; nil for remotes
	tried []*loadedBundle
}

type programKey struct{ sum [sha256.Size]byte }

// acquireProgram returns the program of c, shared by all routes with an equal
// policy.
func acquireProgram(env *filters.Env, shared *filters.Shared, c *config, logger *slog.Logger, failures *stats.Counter) (*program, func(), error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%#v %q %d %v %q", c.queries(), c.allowBuiltins, c.policy.version, c.policy.poll, c.policy.data)
	for _, s := range c.policy.sources {
		fmt.Fprintf(&b, " %q %q", s.inline, s.filename)
	}
	for _, u := range c.policy.bundles {
		fmt.Fprintf(&b, " %x", u.sum())
		if u.HTTP != nil {
			fmt.Fprintf(&b, " %v", u.HTTP.Polling)
		}
	}
	// The downloads are taken first: one shared value must not be made while
	// another is.
	remotes, releases, err := acquireRemotes(env, shared, c, logger)
	if err != nil {
		return nil, nil, err
	}
	giveBack := func() {
		for _, r := range releases {
			r()
		}
	}
	used := false
	v, release, err := shared.Acquire(programKey{sha256.Sum256(b.Bytes())}, func() (any, error) {
		used = true
		return newProgram(c, remotes, releases, logger, failures)
	})
	if err != nil || !used {
		giveBack()
	}
	if err != nil {
		return nil, nil, err
	}
	p, ok := v.(*program)
	if !ok {
		panic(fmt.Sprintf("rego: %T shared under a program's key", v)) // programmer error: the key is private
	}
	return p, release, nil
}

func acquireRemotes(env *filters.Env, shared *filters.Shared, c *config, logger *slog.Logger) ([]*remoteBundle, []func(), error) {
	remotes := make([]*remoteBundle, len(c.policy.bundles))
	var releases []func()
	for i, u := range c.policy.bundles {
		if u.HTTP == nil {
			continue
		}
		r, release, err := acquireRemote(env, shared, u, logger)
		if err != nil {
			for _, r := range releases {
				r()
			}
			return nil, nil, fmt.Errorf("bundles[%d]: %w", i, err)
		}
		remotes[i] = r
		releases = append(releases, release)
	}
	return remotes, releases, nil
}

func newProgram(c *config, remotes []*remoteBundle, releases []func(), logger *slog.Logger, failures *stats.Counter) (*program, error) {
	p := &program{
		policy: c.policy, queries: c.queries(), allow: c.allowBuiltins, logger: logger, failures: failures,
		remotes: remotes, changed: make(chan struct{}, 1), stop: make(chan struct{}),
		files: make([]*loadedBundle, len(c.policy.bundles)),
	}
	for _, r := range remotes {
		if r != nil {
			p.release = append(p.release, r.listen(p.changed))
		}
	}
	if err := p.compile(); err != nil {
		if !errors.Is(err, errNotYet) && len(releases) == 0 {
			return nil, err
		}
		// What was downloaded may be wrong now and right the next time.
		p.report(err)
	}
	p.release = append(p.release, releases...)
	if p.policy.hasFiles() || len(releases) > 0 {
		p.done.Go(p.watch)
	}
	return p, nil
}

// Close stops the goroutine, waits for it, and releases the downloads.
func (p *program) Close() error {
	close(p.stop)
	p.done.Wait()
	for _, r := range p.release {
		r()
	}
	return nil
}

func (p *program) watch() {
	var tick <-chan time.Time
	if p.policy.hasFiles() {
		t := time.NewTicker(p.policy.poll)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-p.stop:
			return
		case <-p.changed:
		case <-tick:
		}
		if err := p.compile(); err != nil {
			p.report(err)
		}
	}
}

func (p *program) report(err error) {
	if errors.Is(err, errNotYet) {
		return
	}
	p.failures.Inc()
	state := "the former policy stays in force"
	if p.current.Load() == nil {
		state = "requests are denied"
	}
	p.logger.Error("rego: policy can't be loaded; "+state, "error", err)
}

// errNotYet says that a bundle is still missing.
var errNotYet = errors.New("a bundle has not been loaded yet")

// compile gathers the parts and compiles them if any of them is another than
// at the last try.
func (p *program) compile() error {
	ps, sum, err := p.gather()
	if err != nil {
		return err
	}
	if sum == p.sum && slices.Equal(ps.bundles, p.tried) {
		return nil
	}
	p.sum, p.tried = sum, ps.bundles
	c, err := compileParts(ps, &p.policy, p.queries, p.allow)
	if err != nil {
		return err
	}
	if p.current.Swap(c) != nil || len(ps.bundles) > 0 {
		p.logger.Info("rego: policy loaded", "bundles", c.bundles)
	}
	return nil
}

func (p *program) gather() (parts, [sha256.Size]byte, error) {
	srcs, err := readSources(&p.policy)
	if err != nil {
		return parts{}, p.sum, err
	}
	ps := parts{sources: srcs}
	for i, c := range p.policy.bundles {
		var l *loadedBundle
		if r := p.remotes[i]; r != nil {
			l = r.loaded.Load()
		} else if l, err = p.readBundleFile(i, c); err != nil {
			return parts{}, p.sum, fmt.Errorf("bundles[%d] %s: %w", i, c.Name, err)
		}
		if l == nil {
			return parts{}, p.sum, fmt.Errorf("bundles[%d] %s: %w", i, c.Name, errNotYet)
		}
		ps.bundles = append(ps.bundles, l)
	}
	return ps, sumSources(srcs), nil
}

func (p *program) readBundleFile(i int, c *bundleConfig) (*loadedBundle, error) {
	b, err := readBounded(c.Filename, c.MaxBytes)
	if err != nil {
		return nil, err
	}
	if now := p.files[i]; now != nil && now.sum == sha256.Sum256(b) {
		return now, nil
	}
	l, err := readBundle(b, c)
	if err != nil {
		return nil, err
	}
	p.files[i] = l
	return l, nil
}

func sumSources(srcs []source) [sha256.Size]byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	for _, s := range srcs {
		_ = e.Encode([2]string{s.name, s.text})
	}
	return sha256.Sum256(b.Bytes())
}
